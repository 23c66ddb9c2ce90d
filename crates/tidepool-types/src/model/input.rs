//! What the graph takes: its inputs, and which feature of a request each is made from.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    read::{Fields, Problems},
    transform::{RawKind, Transform},
};
use crate::{name::Name, pooling::Pooling};

/// One input of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Name of the graph input.
    pub name: String,
    /// Name of the feature in a request. Several inputs may take the same one.
    pub feature: String,
    /// Whose feature it is.
    pub side: Side,
    /// Where its values come from.
    pub source: InputSource,
    /// What makes ids of the feature; nothing, of numbers.
    pub transform: Transform,
}

/// Whose feature: sent once per request, or once per candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The same for every candidate of a request.
    User,
    /// One per candidate.
    Candidate,
}

/// Where the values of an input come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputSource {
    /// A bag of ids, pooled from a table: `[rows, vector_dim]`.
    Pooled {
        /// The table; the release pins its version.
        table: Name,
        /// Sum or mean.
        pooling: Pooling,
    },
    /// Ids in their order, a vector each: `[rows, max_len, vector_dim]`, zeros after the last.
    Sequence {
        /// The table; the release pins its version.
        table: Name,
        /// The most ids of a row; of more, the last are kept.
        max_len: u32,
        /// A graph input `[rows, max_len]` of f32: 1 where there is an id, 0 after the last.
        mask: Option<String>,
    },
    /// Numbers from the request: `[rows, width]`.
    Dense {
        /// Numbers per row.
        width: u32,
    },
}

impl InputSource {
    /// The table, if there is one.
    #[must_use]
    pub const fn table(&self) -> Option<&Name> {
        match self {
            Self::Pooled { table, .. } | Self::Sequence { table, .. } => Some(table),
            Self::Dense { .. } => None,
        }
    }
}

/// What a request says of one feature, and what needs it: clients send these and no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureSpec {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub side: Side,
    /// What it is made of.
    pub kind: FeatureKind,
    /// The inputs that are made from it, and the utility where it says a number of the formula.
    pub used_by: Vec<String>,
}

/// What a feature is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureKind {
    /// So many of these per row as there are.
    Bag(RawKind),
    /// So many numbers per row.
    Row {
        /// How many.
        width: u32,
    },
}

impl FeatureKind {
    /// What it says, in words.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Bag(kind) => kind.as_str().to_owned(),
            Self::Row { width: 1 } => "a number".to_owned(),
            Self::Row { width } => format!("{width} numbers"),
        }
    }
}

impl Side {
    /// The word in documents and problems.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Candidate => "candidate",
        }
    }

    pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems<'_>) -> Option<Self> {
        fields.need(problems, "side");
        fields.word(problems, "side", &[("user", Self::User), ("candidate", Self::Candidate)])
    }
}

impl InputSpec {
    /// The widest dense input, and the longest sequence.
    pub const MAX_WIDTH: u32 = 65_536;
    /// The longest name of an input, an output or a feature, in bytes.
    pub const MAX_NAME_BYTES: usize = 256;
    /// The graph input that the ranker fills by itself: which request a row is of.
    pub const REQUEST_INDEX: &'static str = "request_index";

    /// An input that takes the feature of its own name, and its ids as they come.
    #[must_use]
    pub fn new(name: impl Into<String>, side: Side, source: InputSource) -> Self {
        let name = name.into();
        Self { feature: name.clone(), name, side, source, transform: Transform::default() }
    }

    /// What its feature must be made of.
    #[must_use]
    pub fn takes(&self) -> FeatureKind {
        match self.source {
            InputSource::Dense { width } => FeatureKind::Row { width },
            InputSource::Pooled { .. } | InputSource::Sequence { .. } => {
                FeatureKind::Bag(self.transform.takes())
            }
        }
    }

    /// One of `[[inputs]]`.
    pub(super) fn read(input: &mut Fields<'_>, problems: &mut Problems<'_>) -> Option<Self> {
        let name = name(input, problems);
        let side = Side::read(input, problems);
        let feature = input.text(problems, "feature");
        if let Some(feature) = feature {
            check_name(input, problems, "feature", feature);
        }
        let transform = Transform::read(input, problems);
        let source = source(input, problems);
        if matches!(source, Some(InputSource::Dense { .. }))
            && transform.as_ref().is_some_and(|transform| !transform.is_identity())
        {
            input.problem(problems, "a transform makes ids, an input of a width takes numbers as they are");
        }
        let (name, source, side, transform) = (name?, source?, side?, transform?);
        let feature = feature.map_or_else(|| name.clone(), str::to_owned);
        Some(Self { name, feature, side, source, transform })
    }
}

/// The `name` of a table of the document, which from here on is part of the table's place.
pub(super) fn name(fields: &mut Fields<'_>, problems: &mut Problems<'_>) -> Option<String> {
    fields.need(problems, "name");
    let name = fields.text(problems, "name")?;
    check_name(fields, problems, "name", name);
    fields.place = format!("{} {name:?}", fields.place);
    Some(name.to_owned())
}

fn check_name(fields: &Fields<'_>, problems: &mut Problems<'_>, key: &str, name: &str) {
    let most = InputSpec::MAX_NAME_BYTES;
    if name.is_empty() || name.len() > most {
        fields.problem_of(problems, key, format!("it must have from 1 to {most} bytes, not {}", name.len()));
    }
}

/// A table, a table and `sequence`, or a width.
fn source(input: &mut Fields<'_>, problems: &mut Problems<'_>) -> Option<InputSource> {
    let (has_table, has_width) = (input.has("table"), input.has("width"));
    let table = input.parsed::<Name>(problems, "table");
    let poolings = [("sum", Pooling::Sum), ("mean", Pooling::Mean)];
    let pooling = input.word(problems, "pooling", &poolings);
    let max = u64::from(InputSpec::MAX_WIDTH);
    let whole = |number: Option<u64>| number.and_then(|number| u32::try_from(number).ok());
    let max_len = whole(input.whole(problems, "sequence", 1..=max));
    let mask = input.text(problems, "mask");
    if let Some(mask) = mask {
        check_name(input, problems, "mask", mask);
    }
    let width = whole(input.whole(problems, "width", 1..=max));
    if has_table == has_width {
        input.problem(problems, "give it a table or a width, one of the two");
        return None;
    }
    let misplaced = |input: &Fields<'_>, problems: &mut Problems<'_>, key: &str, with: &str| {
        if input.has(key) {
            input.problem_of(problems, key, with);
        }
    };
    if has_width {
        for key in ["pooling", "sequence", "mask"] {
            misplaced(input, problems, key, "it goes with a table, not with a width");
        }
        return Some(InputSource::Dense { width: width? });
    }
    if input.has("sequence") {
        misplaced(input, problems, "pooling", "a sequence has a vector for each id: they are not pooled");
        let mask = mask.map(str::to_owned);
        return Some(InputSource::Sequence { table: table?, max_len: max_len?, mask });
    }
    misplaced(input, problems, "mask", "it goes with a sequence");
    let pooling = if input.has("pooling") { pooling? } else { Pooling::Sum };
    Some(InputSource::Pooled { table: table?, pooling })
}

/// Notes inputs, masks and features that cannot be told from each other, or do not agree. `inputs` come with the byte
/// where they stand.
pub(super) fn agree(inputs: &[(usize, InputSpec)], problems: &mut Problems<'_>) {
    let mut graph = BTreeSet::new();
    for (at, input) in inputs {
        let place = format!("input {:?}", input.name);
        let mask = match &input.source {
            InputSource::Sequence { mask, .. } => mask.as_deref(),
            _ => None,
        };
        for name in std::iter::once(input.name.as_str()).chain(mask) {
            if name == InputSpec::REQUEST_INDEX {
                problems.add(*at, &place, format!("the graph input {name:?} is filled by the ranker itself"));
            } else if !graph.insert(name) {
                problems.add(*at, "", format!("input {name:?} stands twice"));
            }
        }
    }
    let mut features: BTreeMap<&str, &InputSpec> = BTreeMap::new();
    for (at, input) in inputs {
        // The first with this feature; of itself there is nothing to say.
        let first = *features.entry(&input.feature).or_insert(input);
        let place = format!("input {:?}", input.name);
        if first.name == input.name {
            continue;
        }
        if first.side != input.side {
            problems.add(
                *at,
                &place,
                format!(
                    "feature {:?} is of the {} side here, and of the {} side for input {:?}",
                    input.feature,
                    input.side.as_str(),
                    first.side.as_str(),
                    first.name
                ),
            );
        } else if first.takes() != input.takes() {
            let (here, there) = (input.takes().words(), first.takes().words());
            let problem =
                format!("feature {:?} is {here} here, and {there} for input {:?}", input.feature, first.name);
            problems.add(*at, &place, problem);
        }
    }
}
