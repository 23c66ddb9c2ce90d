//! From the rows of several requests to one lookup, and from its vectors to the inputs of one dense run.

use std::{borrow::Cow, ops::Range, sync::Arc};

use tidepool_client::{FeatureLookup, FeatureVectors};
use tidepool_types::Side;

use super::{
    model::{BatchInput, BatchModel, InputFrom},
    share::Counts,
    work::{Piece, Work},
};
use crate::{RankError, request::InputRows};

/// A piece of a request, in its batch.
#[derive(Clone, Debug)]
pub(super) struct Passenger {
    pub(super) work: Arc<Work>,
    pub(super) at: usize,
    /// What an earlier piece has looked up for the user; None: this one does.
    pub(super) user: Option<Arc<Vec<Vec<f32>>>>,
}

impl Passenger {
    pub(super) fn piece(&self) -> &Piece {
        &self.work.pieces[self.at]
    }

    pub(super) fn rows(&self) -> usize {
        self.piece().rows.len()
    }

    /// Whether it brings rows of this input into the lookup.
    fn asks(&self, input: &BatchInput) -> bool {
        input.side == Side::Candidate || self.user.is_none()
    }
}

/// What of a feature of the lookup is one passenger's, as ranges of the feature's bags (or ids, where it is not pooled)
/// and of its ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) bags: Range<usize>,
    pub(super) ids: Range<usize>,
}

/// Which features a batch looks up, and what of them is whose.
#[derive(Debug)]
pub(super) struct Seating {
    /// Per passenger and input; of inputs that are not looked up, nothing.
    pub(super) spans: Vec<Vec<Span>>,
}

/// The vectors that the lookup of a batch has brought, one per input; None where nothing is looked up.
pub(super) type Vectors = Vec<Option<FeatureVectors>>;

/// One feature per input that is looked up, in the order of the contract: the bags of all passengers, one passenger after
/// the other. One whose user is known has none for the user.
pub(super) fn features(model: &BatchModel, passengers: &[Passenger]) -> (Vec<FeatureLookup>, Seating) {
    let mut spans: Vec<_> = passengers.iter().map(|_| vec![Span::default(); model.inputs.len()]).collect();
    let mut features = Vec::new();
    for (at, input) in model.inputs.iter().enumerate() {
        let Some((table_version, pooling)) = input.looked_up() else { continue };
        let unpooled = matches!(input.from, InputFrom::Sequence { .. });
        let (mut all_ids, mut all_lengths, mut all_weights) = (Vec::new(), Vec::new(), Vec::new());
        let (mut has_lengths, mut has_weights, mut bags) = (false, false, 0);
        for (passenger, spans) in passengers.iter().zip(&mut spans) {
            let InputRows::Bags { ids, lengths, weights } = &passenger.work.job.inputs[at] else { continue };
            if !passenger.asks(input) {
                continue;
            }
            let rows = if input.side == Side::User { 0..1 } else { passenger.piece().rows.clone() };
            let of_piece = passenger.piece().ids[at].clone();
            let begin = all_ids.len();
            all_ids.extend_from_slice(&ids[of_piece.clone()]);
            match lengths {
                Some(lengths) => {
                    all_lengths.extend_from_slice(&lengths[rows.clone()]);
                    has_lengths = true;
                }
                None => all_lengths.resize(all_lengths.len() + rows.len(), 1),
            }
            match weights {
                Some(weights) => {
                    all_weights.extend_from_slice(&weights[of_piece]);
                    has_weights = true;
                }
                None => all_weights.resize(all_ids.len(), 1.0),
            }
            let ids = begin..all_ids.len();
            spans[at] = Span { bags: if unpooled { ids.clone() } else { bags..bags + rows.len() }, ids };
            bags += rows.len();
        }
        features.push(FeatureLookup {
            table_version: table_version.clone(),
            pooling,
            ids: all_ids,
            lengths: (has_lengths && !unpooled).then_some(all_lengths),
            weights: has_weights.then_some(all_weights),
        });
    }
    (features, Seating { spans })
}

/// The request of each row, of the passengers `who`.
pub(super) fn request_of(passengers: &[Passenger], who: &[usize]) -> Vec<u32> {
    let mut request_of = Vec::new();
    for (request, at) in who.iter().enumerate() {
        let request = u32::try_from(request).unwrap_or(u32::MAX);
        request_of.resize(request_of.len() + passengers[*at].rows(), request);
    }
    request_of
}

impl Seating {
    /// Holds what came against what was asked for, and puts it by input.
    ///
    /// # Errors
    /// [`RankError::Vectors`] when it does not have the shape that was asked for.
    pub(super) fn take(
        &self,
        model: &BatchModel,
        vectors: Vec<FeatureVectors>,
    ) -> Result<Vectors, RankError> {
        let mut vectors = vectors.into_iter();
        let inputs = model.inputs.iter().enumerate().map(|(at, input)| {
            if input.looked_up().is_none() {
                return Ok(None);
            }
            let vectors = vectors.next();
            let bags = self.spans.iter().map(|spans| spans[at].bags.end).max().unwrap_or(0);
            let expected = bags.saturating_mul(input.dim());
            let found = vectors.as_ref().map_or(0, |vectors| vectors.values.len());
            match vectors {
                Some(vectors) if found == expected => Ok(Some(vectors)),
                _ => Err(RankError::Vectors { input: input.name.clone(), found, expected }),
            }
        });
        inputs.collect()
    }

    /// The ids and bags of one passenger that were not found.
    pub(super) fn counts(&self, passenger: usize, brought: &Vectors) -> Counts {
        let mut counts = Counts::default();
        for (span, vectors) in self.spans[passenger].iter().zip(brought) {
            let Some(vectors) = vectors else { continue };
            let sum = |of: &[u32]| of.get(span.bags.clone()).unwrap_or_default().iter().sum::<u32>();
            let (found, unavailable) = (sum(&vectors.found), sum(&vectors.unavailable));
            let asked = u32::try_from(span.ids.len()).unwrap_or(u32::MAX);
            let before = |bag: usize| vectors.defaulted.partition_point(|at| (*at as usize) < bag);
            let defaulted = before(span.bags.end) - before(span.bags.start);
            counts.missing += asked.saturating_sub(found).saturating_sub(unavailable);
            counts.unavailable += unavailable;
            counts.defaulted += u32::try_from(defaulted).unwrap_or(u32::MAX);
        }
        counts
    }

    /// The vectors of a passenger's user, per input, for the later pieces of the same request.
    pub(super) fn user(&self, passenger: usize, model: &BatchModel, brought: &Vectors) -> Vec<Vec<f32>> {
        let inputs = model.inputs.iter().zip(&self.spans[passenger]).zip(brought);
        let vectors = inputs.map(|((input, span), vectors)| match vectors {
            Some(vectors) if input.side == Side::User => {
                vectors.values[elements(&span.bags, input.dim())].to_vec()
            }
            _ => Vec::new(),
        });
        vectors.collect()
    }

    /// The inputs of the passengers `who`, as the graph takes them: those of users `[passengers, width]`, those of
    /// candidates `[rows, width]`, in the order of the contract; then the masks.
    pub(super) fn inputs<'a>(
        &self,
        model: &BatchModel,
        passengers: &'a [Passenger],
        who: &[usize],
        brought: &'a Vectors,
    ) -> Vec<Cow<'a, [f32]>> {
        let mut inputs = Vec::new();
        let mut masks = Vec::new();
        for (at, input) in model.inputs.iter().enumerate() {
            let (values, mask) = self.input((at, input), passengers, who, brought[at].as_ref());
            inputs.push(values);
            masks.extend(mask.map(Cow::Owned));
        }
        inputs.append(&mut masks);
        inputs
    }

    /// One input, and its mask if it has one. Of what is looked up, `vectors` are what has come.
    pub(super) fn input<'a>(
        &self,
        (at, input): (usize, &BatchInput),
        passengers: &'a [Passenger],
        who: &[usize],
        vectors: Option<&'a FeatureVectors>,
    ) -> (Cow<'a, [f32]>, Option<Vec<f32>>) {
        // The rows as they came, of numbers and of vectors alike.
        let rows_of = |passenger: usize| -> &'a [f32] {
            let of = &passengers[passenger];
            let known = of.user.as_ref().filter(|_| !of.asks(input));
            match (&of.work.job.inputs[at], known, vectors) {
                (InputRows::Numbers(values), ..) if input.side == Side::User => values,
                (InputRows::Numbers(values), ..) => &values[elements(&of.piece().rows, input.width)],
                (InputRows::Bags { .. }, Some(known), _) => &known[at],
                (InputRows::Bags { .. }, None, Some(vectors)) => {
                    &vectors.values[elements(&self.spans[passenger][at].bags, input.dim())]
                }
                // `take` has put vectors where there are bags.
                (InputRows::Bags { .. }, None, None) => &[],
            }
        };
        let InputFrom::Sequence { max_len, mask, .. } = &input.from else {
            // Of a single request, and of whole batches, the rows lie there as they are wanted.
            return match (who, vectors) {
                ([only], _) => (Cow::Borrowed(rows_of(*only)), None),
                (_, Some(vectors))
                    if who.len() == passengers.len() && passengers.iter().all(|p| p.asks(input)) =>
                {
                    (Cow::Borrowed(&vectors.values), None)
                }
                _ => (Cow::Owned(who.iter().flat_map(|p| rows_of(*p)).copied().collect()), None),
            };
        };
        let dim = input.dim();
        let (mut padded, mut taken) = (Vec::new(), Vec::new());
        for passenger in who {
            let (of, mut values) = (&passengers[*passenger], rows_of(*passenger));
            let rows = if input.side == Side::User { 0..1 } else { of.piece().rows.clone() };
            for row in rows {
                let InputRows::Bags { lengths, .. } = &of.work.job.inputs[at] else { continue };
                let len = lengths.as_ref().map_or(1, |lengths| lengths[row] as usize).min(*max_len);
                let (vectors, rest) = values.split_at((len * dim).min(values.len()));
                values = rest;
                padded.extend_from_slice(vectors);
                padded.resize(padded.len() + (input.width - vectors.len()), 0.0);
                if *mask {
                    taken.resize(taken.len() + len, 1.0);
                    taken.resize(taken.len() + (max_len - len), 0.0);
                }
            }
        }
        (Cow::Owned(padded), mask.then_some(taken))
    }
}

impl BatchInput {
    /// Numbers per bag, or of a sequence per id.
    pub(super) fn dim(&self) -> usize {
        match &self.from {
            InputFrom::Sequence { max_len, .. } => self.width / (*max_len).max(1),
            InputFrom::Request | InputFrom::Bags(..) => self.width,
        }
    }
}

fn elements(rows: &Range<usize>, width: usize) -> Range<usize> {
    rows.start * width..rows.end * width
}
