//! Batches whose vectors are made where the model runs: the lookup brings stored rows, which go there as they are, and what
//! comes back is what each request wants of the outputs.

use std::{borrow::Cow, ops::Range};

use tidepool_client::{FeatureLookup, FeatureRows};
use tidepool_dense::{
    DenseBatch, DenseError,
    rows::RowsError,
    select::{SelectRequest, Selected},
};
use tidepool_types::Side;

use super::{
    form::{self, Passenger, Seating, Span},
    model::{BatchModel, InputFrom, RowBags, RowBatch, RowScorer},
    share::Counts,
};
use crate::{Finishing, RankError, request::InputRows};

/// The rows that the lookup of a batch has brought for one input.
#[derive(Debug)]
pub(super) struct Rows {
    rows: FeatureRows,
    /// One per id of the feature.
    weights: Option<Vec<f32>>,
}

impl Seating {
    /// Holds the rows that came against what was asked for, and puts them by input.
    ///
    /// # Errors
    /// [`RankError::Vectors`] when they are not those that were asked for.
    pub(super) fn take_rows(
        &self,
        model: &BatchModel,
        asked: Vec<FeatureLookup>,
        came: Vec<FeatureRows>,
    ) -> Result<Vec<Option<Rows>>, RankError> {
        let mut features = asked.into_iter().zip(came);
        let inputs = model.inputs.iter().map(|input| {
            if input.looked_up().is_none() {
                return Ok(None);
            }
            let wrong = |found, expected| RankError::Vectors { input: input.name.clone(), found, expected };
            let Some((asked, rows)) = features.next() else { return Err(wrong(0, 1)) };
            let expected = asked.ids.len() * rows.hashes as usize;
            if rows.members.len() != expected || rows.hashes == 0 {
                return Err(wrong(rows.members.len(), expected));
            }
            Ok(Some(Rows { rows, weights: asked.weights }))
        });
        inputs.collect()
    }

    /// The ids and bags of one passenger that were not found. Each piece of a request brings its user: what a table has not of it is
    /// told once, with the first piece; of what nobody answered for, which each piece may meet by itself, as much as any of them
    /// lacks. A bag that has no finite vector is the default row too, which is not known before it is made, and not counted.
    pub(super) fn counts_of_rows(
        &self,
        (passenger, of): (usize, &Passenger),
        model: &BatchModel,
        brought: &[Option<Rows>],
    ) -> Counts {
        let (mut counts, mut of_user) = (Counts::default(), Counts::default());
        let inputs = model.inputs.iter().zip(brought).zip(&self.spans[passenger]);
        for (at, ((input, rows), span)) in inputs.enumerate() {
            let Some(Rows { rows, .. }) = rows else { continue };
            let counts = if input.side == Side::User { &mut of_user } else { &mut counts };
            let mut count = |ids| {
                let of_bag = rows.bag_counts(ids);
                counts.missing += of_bag.missing;
                counts.unavailable += of_bag.unavailable;
                counts.defaulted += u32::from(of_bag.defaulted());
            };
            match input.from {
                // Each id has a vector of its own.
                InputFrom::Sequence { .. } => span.ids.clone().for_each(|id| count(id..id + 1)),
                InputFrom::Bags(..) | InputFrom::Request => bags(of, at, input.side, span).for_each(count),
            }
        }
        if of.at == 0 {
            counts.missing += of_user.missing;
            counts.defaulted += of_user.defaulted;
        }
        counts.unavailable += of.work.more_of_user_unavailable(of_user.unavailable);
        counts
    }
}

/// The bags that a passenger has of the input at `at`, as ranges of the ids of its feature.
fn bags(of: &Passenger, at: usize, side: Side, span: &Span) -> impl Iterator<Item = Range<usize>> {
    let (rows, lengths) = match &of.work.job.inputs[at] {
        InputRows::Numbers(_) => (0..0, None),
        InputRows::Bags { lengths, .. } if side == Side::User => (0..1, lengths.as_deref()),
        InputRows::Bags { lengths, .. } => (of.piece().rows.clone(), lengths.as_deref()),
    };
    let mut begin = span.ids.start;
    rows.map(move |row| {
        let ids = begin..begin + lengths.map_or(1, |lengths| lengths[row] as usize);
        begin = ids.end;
        ids
    })
}

/// Has `scorer` run the model on the rows of the passengers `who`, and select what each of them wants.
///
/// # Errors
/// [`RankError`], of those passengers together; [`RankError::TooManyIds`] when there is no room for them.
pub(super) fn select(
    (model, scorer): (&BatchModel, &dyn RowScorer),
    passengers: &[Passenger],
    who: &[usize],
    seating: &Seating,
    brought: &[Option<Rows>],
) -> Result<Vec<Selected>, RankError> {
    let (mut inputs, mut fed, mut masks) = (Vec::new(), Vec::new(), Vec::new());
    for ((at, input), rows) in model.inputs.iter().enumerate().zip(brought) {
        let Some(rows) = rows else {
            inputs.push(seating.input((at, input), passengers, who, None).0);
            fed.push(None);
            continue;
        };
        let most = match input.from {
            InputFrom::Sequence { max_len, mask, .. } => {
                masks.extend(mask.then_some(Cow::Borrowed(&[][..])));
                max_len
            }
            InputFrom::Request | InputFrom::Bags(..) => usize::MAX,
        };
        let of = |who: &usize| bags(&passengers[*who], at, input.side, &seating.spans[*who][at]);
        let ids = who.iter().flat_map(of).map(|ids| ids.start..ids.end.min(ids.start.saturating_add(most)));
        fed.push(Some(RowBags { rows: &rows.rows, ids: ids.collect(), weights: rows.weights.as_deref() }));
        inputs.push(Cow::Borrowed(&[][..]));
    }
    inputs.append(&mut masks);
    let slices: Vec<&[f32]> = inputs.iter().map(AsRef::as_ref).collect();
    let request_of = form::request_of(passengers, who);
    let dense =
        DenseBatch { rows: request_of.len(), requests: who.len(), request_of: &request_of, inputs: &slices };
    let numbers: Vec<_> = who.iter().map(|who| utility_inputs(&passengers[*who])).collect();
    let wanted = who.iter().zip(&numbers).map(|(who, numbers)| {
        let of = &passengers[*who];
        let Finishing { surface, outputs, top_k, .. } = &*of.work.job.finishing;
        let rows = u32::try_from(of.rows()).unwrap_or(u32::MAX);
        SelectRequest { rows, surface, outputs, utility_inputs: numbers, top_k: *top_k }
    });
    let requests: Vec<_> = wanted.collect();
    let batch = RowBatch { dense, bags: &fed, requests: &requests };
    let selected = scorer.select(&batch).map_err(|error| match error {
        DenseError::Rows(rows @ RowsError::TooMany { .. }) => RankError::TooManyIds { rows },
        error => error.into(),
    })?;
    check("requests", selected.len(), requests.len())?;
    selected.iter().zip(&requests).try_for_each(|(selected, request)| check_one(selected, request))?;
    Ok(selected)
}

/// The numbers that the formula takes from a request: all of the user's, and those of its piece's candidates.
fn utility_inputs(of: &Passenger) -> Cow<'_, [Vec<f32>]> {
    let (job, rows) = (&of.work.job, &of.piece().rows);
    let all = &job.finishing.utility_inputs;
    if rows.len() == job.rows as usize {
        return Cow::Borrowed(all);
    }
    // A request that was cut has several candidates, so one number is the user's.
    let own = |numbers: &Vec<f32>| match numbers.get(rows.clone()) {
        Some(own) if numbers.len() > 1 => own.to_vec(),
        _ => numbers.clone(),
    };
    all.iter().map(own).collect()
}

/// Holds what was selected for a request against what it wanted.
fn check_one(selected: &Selected, request: &SelectRequest<'_>) -> Result<(), RankError> {
    if selected.not_finite.is_some() {
        return Ok(());
    }
    let winners = match request.top_k {
        0 => request.rows,
        k => k.min(request.rows),
    } as usize;
    check("candidates", selected.ranked.len(), winners)?;
    check("outputs", selected.outputs.len(), request.outputs.len())?;
    selected.outputs.iter().try_for_each(|output| check("values of an output", output.len(), winners))?;
    let of_request = selected.ranked.iter().filter(|(at, _)| *at < request.rows).count();
    check("candidates of the request", of_request, winners)
}

fn check(what: &'static str, found: usize, expected: usize) -> Result<(), RankError> {
    if found == expected { Ok(()) } else { Err(RankError::Selection { what, found, expected }) }
}
