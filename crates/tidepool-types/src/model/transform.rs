//! Transforms: how what a request says of a feature (text, ids or numbers) becomes the ids that a table has rows of.
//!
//! Training makes the same ids in another language, so every step is said to the byte:
//!
//! | step | of | gives |
//! |---|---|---|
//! | `hash` | text | XXH3 with 64 bits and `seed` of the UTF-8 bytes |
//! | `hash`, `of = "ids"` | ids | XXH3 with 64 bits and `seed` of the 8 bytes of the id, the lowest first |
//! | `modulo` | ids | the remainder of the id, as an unsigned number, by `n` |
//! | `bucketize` | numbers, as f32 | how many of the ascending `boundaries` (as f32) are not above it |
//! | `last` | anything | the last `n` of a bag, and their weights |
//! | `default` | ids | `id`, with weight 1, for a bag that is empty |

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::read::{Fields, Problems};

/// Steps that are taken one after the other; none: ids are taken as they come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transform {
    stages: Vec<Stage>,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// XXH3 with 64 bits.
    Hash {
        /// Of what.
        of: Hashed,
        /// Its seed.
        seed: u64,
    },
    /// The remainder by `n`.
    Modulo {
        /// At least 1.
        n: u64,
    },
    /// How many boundaries are not above the number.
    Bucketize {
        /// Ascending, finite.
        boundaries: Vec<f32>,
    },
    /// The last of a bag.
    Last {
        /// How many, at least 1.
        n: u32,
    },
    /// An id for an empty bag.
    Default {
        /// That id.
        id: u64,
    },
}

/// What a hash is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashed {
    /// The UTF-8 bytes of a text.
    Text,
    /// The 8 bytes of an id, little-endian.
    Ids,
}

/// What a request must say of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawKind {
    /// Texts.
    Texts,
    /// Whole numbers of 64 bits, unsigned.
    Ids,
    /// Numbers.
    Numbers,
}

/// The values of one feature, of all rows one after the other.
#[derive(Clone, Debug, PartialEq)]
pub enum RawValues {
    /// Texts.
    Texts(Vec<String>),
    /// Ids.
    Ids(Vec<u64>),
    /// Numbers.
    Numbers(Vec<f32>),
}

/// Bags of ids, one per row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bags {
    /// The ids of all bags.
    pub ids: Vec<u64>,
    /// Ids per bag; `None`: one each.
    pub lengths: Option<Vec<u32>>,
    /// A weight per id; `None`: ones.
    pub weights: Option<Vec<f32>>,
}

/// Values that a transform cannot take.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TransformError {
    /// Another kind of values than the first step takes.
    #[error("the model takes {} here, not {}", wanted.as_str(), found.as_str())]
    Kind {
        /// What the contract says.
        wanted: RawKind,
        /// What came.
        found: RawKind,
    },
    /// A number that has no bucket.
    #[error("number {at} is NaN, it has no bucket")]
    Nan {
        /// Its position among those of all rows.
        at: usize,
    },
    /// Lengths or weights that do not fit the values.
    #[error("there are {values} values, and lengths or weights for {found}")]
    Shape {
        /// Values.
        values: usize,
        /// What the lengths add up to, or the weights.
        found: u64,
    },
}

impl Bags {
    /// Leaves the last `n` of each bag, and their weights.
    pub fn keep_last(&mut self, n: u32) {
        let mut ids = RawValues::Ids(std::mem::take(&mut self.ids));
        last(n, &mut ids, &mut self.lengths, &mut self.weights);
        if let RawValues::Ids(ids) = ids {
            self.ids = ids;
        }
    }
}

impl RawKind {
    /// The word in problems and in descriptions.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Texts => "texts",
            Self::Ids => "ids",
            Self::Numbers => "numbers",
        }
    }
}

impl RawValues {
    /// What they are.
    #[must_use]
    pub const fn kind(&self) -> RawKind {
        match self {
            Self::Texts(_) => RawKind::Texts,
            Self::Ids(_) => RawKind::Ids,
            Self::Numbers(_) => RawKind::Numbers,
        }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Ids(ids) => ids.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the given ranges.
    fn keep(&mut self, ranges: &[(usize, usize)]) {
        match self {
            Self::Texts(texts) => keep(texts, ranges),
            Self::Ids(ids) => keep(ids, ranges),
            Self::Numbers(numbers) => keep(numbers, ranges),
        }
    }
}

impl Transform {
    /// The most steps.
    pub const MAX_STAGES: usize = 16;
    /// The most boundaries of one step.
    pub const MAX_BOUNDARIES: usize = 65_536;

    /// A transform of these steps.
    ///
    /// # Errors
    /// Every step that does not fit what the step before it gives, or that no document may have.
    pub fn new(stages: Vec<Stage>) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        if stages.len() > Self::MAX_STAGES {
            problems.push(format!("{} steps, there may be {}", stages.len(), Self::MAX_STAGES));
        }
        let transform = Self { stages };
        let mut kind = transform.takes();
        for (at, stage) in transform.stages.iter().enumerate() {
            let taken = stage.takes();
            if taken.is_some_and(|taken| taken != kind) {
                problems.push(format!(
                    "step {at}, {}: it takes {}, the step before it gives {}",
                    stage.op(),
                    taken.unwrap_or(kind).as_str(),
                    kind.as_str()
                ));
            }
            if taken.is_some() {
                kind = RawKind::Ids;
            }
            match stage {
                Stage::Modulo { n: 0 } => problems.push(format!("step {at}, modulo: n is 0")),
                Stage::Last { n: 0 } => problems.push(format!("step {at}, last: n is 0")),
                Stage::Bucketize { boundaries } => {
                    let ascending = boundaries.is_sorted_by(|a, b| a < b);
                    let finite = boundaries.iter().all(|boundary| boundary.is_finite());
                    if boundaries.is_empty() || !ascending || !finite {
                        problems.push(format!(
                            "step {at}, bucketize: boundaries must be finite numbers, ascending, none twice"
                        ));
                    }
                    if boundaries.len() > Self::MAX_BOUNDARIES {
                        let (found, most) = (boundaries.len(), Self::MAX_BOUNDARIES);
                        problems
                            .push(format!("step {at}, bucketize: {found} boundaries, there may be {most}"));
                    }
                }
                _ => {}
            }
        }
        // Numbers and texts are no ids; only `last` would let them through, and then they were taken for ids.
        if problems.is_empty() { Ok(transform) } else { Err(problems) }
    }

    /// The steps.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Whether ids are taken as they come.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.stages.is_empty()
    }

    /// What a request must say of the feature.
    #[must_use]
    pub fn takes(&self) -> RawKind {
        self.stages.iter().find_map(Stage::takes).unwrap_or(RawKind::Ids)
    }

    /// Makes ids of `values`. `lengths` says how many belong to each row (`None`: one each), `weights` has one for
    /// each value.
    ///
    /// # Errors
    /// [`TransformError`], of values that are not what the first step takes.
    pub fn apply(
        &self,
        mut values: RawValues,
        lengths: Option<Vec<u32>>,
        weights: Option<Vec<f32>>,
    ) -> Result<Bags, TransformError> {
        let wanted = self.takes();
        if values.kind() != wanted {
            return Err(TransformError::Kind { wanted, found: values.kind() });
        }
        let sum = lengths.as_ref().map(|lengths| lengths.iter().map(|length| u64::from(*length)).sum());
        let given = weights.as_ref().map(|weights| weights.len() as u64);
        if let Some(found) = [sum, given].into_iter().flatten().find(|found| *found != values.len() as u64) {
            return Err(TransformError::Shape { values: values.len(), found });
        }
        let (mut lengths, mut weights) = (lengths, weights);
        for stage in &self.stages {
            match stage {
                Stage::Last { n } => last(*n, &mut values, &mut lengths, &mut weights),
                Stage::Default { id } => {
                    if let RawValues::Ids(ids) = &mut values {
                        fill(*id, ids, &mut lengths, &mut weights);
                    }
                }
                Stage::Hash { seed, .. } => values = RawValues::Ids(hash(&values, *seed)),
                Stage::Modulo { n } => {
                    if let RawValues::Ids(ids) = &mut values {
                        ids.iter_mut().for_each(|id| *id %= (*n).max(1));
                    }
                }
                Stage::Bucketize { boundaries } => {
                    if let RawValues::Numbers(numbers) = &values {
                        values = RawValues::Ids(bucketize(numbers, boundaries)?);
                    }
                }
            }
        }
        match values {
            RawValues::Ids(ids) => Ok(Bags { ids, lengths, weights }),
            // `new` lets no transform end in anything but ids.
            other => Err(TransformError::Kind { wanted: RawKind::Ids, found: other.kind() }),
        }
    }

    /// The `transform` of an input; `None` when something is wrong with it.
    pub(super) fn read(input: &mut Fields<'_>, problems: &mut Problems<'_>) -> Option<Self> {
        let mut stages = Vec::new();
        let mut whole = true;
        for mut step in input.tables(problems, "transform", Self::MAX_STAGES) {
            let stage = Stage::read(&mut step, problems);
            whole &= stage.is_some();
            stages.extend(stage);
            step.end(problems);
        }
        if !whole {
            return None;
        }
        let transform = Self::new(stages);
        transform
            .map_err(|found| {
                found.iter().for_each(|problem| input.problem_of(problems, "transform", problem));
            })
            .ok()
    }
}

impl Stage {
    /// Its word.
    #[must_use]
    pub const fn op(&self) -> &'static str {
        match self {
            Self::Hash { .. } => "hash",
            Self::Modulo { .. } => "modulo",
            Self::Bucketize { .. } => "bucketize",
            Self::Last { .. } => "last",
            Self::Default { .. } => "default",
        }
    }

    /// What it takes; `None`: anything, and it gives the same.
    const fn takes(&self) -> Option<RawKind> {
        match self {
            Self::Hash { of: Hashed::Text, .. } => Some(RawKind::Texts),
            Self::Bucketize { .. } => Some(RawKind::Numbers),
            Self::Hash { of: Hashed::Ids, .. } | Self::Modulo { .. } | Self::Default { .. } => {
                Some(RawKind::Ids)
            }
            Self::Last { .. } => None,
        }
    }

    fn read(step: &mut Fields<'_>, problems: &mut Problems<'_>) -> Option<Self> {
        step.need(problems, "op");
        let ops = ["hash", "modulo", "bucketize", "last", "default"];
        let Some(op) = step.word(problems, "op", &ops.map(|op| (op, op))) else {
            step.let_pass(&["of", "seed", "n", "id", "boundaries"]);
            return None;
        };
        match op {
            "hash" => {
                let of = [("text", Hashed::Text), ("ids", Hashed::Ids)];
                let hashed = if step.has("of") { None } else { Some(Hashed::Text) };
                let hashed = step.word(problems, "of", &of).or(hashed);
                let zero = if step.has("seed") { None } else { Some(0) };
                let seed = step.whole(problems, "seed", 0..=u64::MAX).or(zero);
                Some(Self::Hash { of: hashed?, seed: seed? })
            }
            "modulo" => {
                step.need(problems, "n");
                Some(Self::Modulo { n: step.whole(problems, "n", 1..=u64::MAX)? })
            }
            "last" => {
                step.need(problems, "n");
                let n = step.whole(problems, "n", 1..=u64::from(u32::MAX))?;
                Some(Self::Last { n: u32::try_from(n).ok()? })
            }
            "default" => {
                step.need(problems, "id");
                Some(Self::Default { id: step.whole(problems, "id", 0..=u64::MAX)? })
            }
            _ => {
                step.need(problems, "boundaries");
                let boundaries = step.numbers(problems, "boundaries", Transform::MAX_BOUNDARIES)?;
                Some(Self::Bucketize { boundaries: boundaries.into_iter().map(nearest).collect() })
            }
        }
    }
}

/// The f32 that is nearest to a number: what a request can say.
#[expect(clippy::cast_possible_truncation, reason = "to the nearest f32 is what is wanted")]
pub(super) fn nearest(number: f64) -> f32 {
    number as f32
}

fn hash(values: &RawValues, seed: u64) -> Vec<u64> {
    match values {
        RawValues::Texts(texts) => {
            texts.iter().map(|text| xxh3_64_with_seed(text.as_bytes(), seed)).collect()
        }
        RawValues::Ids(ids) => ids.iter().map(|id| xxh3_64_with_seed(&id.to_le_bytes(), seed)).collect(),
        RawValues::Numbers(_) => Vec::new(),
    }
}

fn bucketize(numbers: &[f32], boundaries: &[f32]) -> Result<Vec<u64>, TransformError> {
    if let Some(at) = numbers.iter().position(|number| number.is_nan()) {
        return Err(TransformError::Nan { at });
    }
    let bucket = |number: &f32| boundaries.partition_point(|boundary| boundary <= number) as u64;
    Ok(numbers.iter().map(bucket).collect())
}

/// Leaves the last `n` of each bag. Without lengths there is one in each, which stays.
fn last(n: u32, values: &mut RawValues, lengths: &mut Option<Vec<u32>>, weights: &mut Option<Vec<f32>>) {
    let Some(lengths) = lengths else { return };
    if lengths.iter().all(|length| *length <= n) {
        return;
    }
    let mut end = 0;
    let ranges: Vec<_> = lengths
        .iter_mut()
        .map(|length| {
            end += *length as usize;
            *length = (*length).min(n);
            (end - *length as usize, end)
        })
        .collect();
    values.keep(&ranges);
    if let Some(weights) = weights {
        keep(weights, &ranges);
    }
}

/// Leaves the given ranges, which are in order, without moving what is not left.
fn keep<T>(values: &mut Vec<T>, ranges: &[(usize, usize)]) {
    let mut range = 0;
    let mut at = 0;
    values.retain(|_| {
        while range < ranges.len() && ranges[range].1 <= at {
            range += 1;
        }
        let kept = range < ranges.len() && ranges[range].0 <= at;
        at += 1;
        kept
    });
}

/// Puts `id` into each bag that is empty. Without lengths no bag is.
fn fill(id: u64, ids: &mut Vec<u64>, lengths: &mut Option<Vec<u32>>, weights: &mut Option<Vec<f32>>) {
    let Some(lengths) = lengths else { return };
    let empty = lengths.iter().filter(|length| **length == 0).count();
    if empty == 0 {
        return;
    }
    let mut filled = Vec::with_capacity(ids.len() + empty);
    let mut weighed = Vec::with_capacity(weights.as_ref().map_or(0, |weights| weights.len() + empty));
    let mut at = 0;
    for length in lengths.iter_mut() {
        let end = at + *length as usize;
        filled.extend_from_slice(&ids[at..end]);
        if let Some(weights) = weights {
            weighed.extend_from_slice(&weights[at..end]);
        }
        if *length == 0 {
            filled.push(id);
            weighed.push(1.0);
            *length = 1;
        }
        at = end;
    }
    *ids = filled;
    if let Some(weights) = weights {
        *weights = weighed;
    }
}

#[cfg(test)]
#[path = "transform_tests.rs"]
mod tests;
