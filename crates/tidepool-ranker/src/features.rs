//! A feature of a request becomes the rows of an input: its kind and its counts are held against the contract, then the
//! contract's transform makes ids of it.

use tidepool_types::{Bags, FeatureKind, InputSource, InputSpec, ModelSpec, RawKind, RawValues, Side};

use crate::{
    RankError,
    request::{InputRows, RankFeature, RankRequest, invalid},
};

/// What a problem repeats of a name that somebody made up.
const MAX_SHOWN_BYTES: usize = 256;

/// Whose a feature is, and what it is made of; `None`: the contract has none of this name.
pub(crate) fn declared(spec: &ModelSpec, name: &str) -> Option<(Side, FeatureKind)> {
    let input = spec.inputs.iter().find(|input| input.feature == name);
    let number = || spec.utility_inputs.iter().find(|input| input.name == name);
    input
        .map(|input| (input.side, input.takes()))
        .or_else(|| number().map(|input| (input.side, FeatureKind::Row { width: 1 })))
}

/// The beginning of a name.
pub(crate) fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_SHOWN_BYTES)]
}

/// The ids that a request makes work of: each as often as inputs are made from it, numbers that have a bucket
/// included.
pub(crate) fn count(request: &RankRequest, spec: &ModelSpec) -> u64 {
    let of = |feature: &RankFeature| {
        let inputs = spec.inputs.iter().filter(|input| input.feature == feature.name);
        let numbers = match declared(spec, &feature.name) {
            Some((_, FeatureKind::Bag(RawKind::Numbers))) => feature.values.len(),
            _ => 0,
        };
        let entries = feature.ids.len() + feature.texts.len() + numbers;
        entries as u64 * inputs.count().max(1) as u64
    };
    request.user.iter().chain(&request.candidate).map(of).fold(0, u64::saturating_add)
}

/// The rows of `input`, of which there must be `rows`.
///
/// # Errors
/// [`RankError::Invalid`] names the feature.
pub(crate) fn rows(feature: RankFeature, input: &InputSpec, rows: u32) -> Result<InputRows, RankError> {
    let wanted = match input.takes() {
        FeatureKind::Row { width } => return numbers(feature, width, rows).map(InputRows::Numbers),
        FeatureKind::Bag(kind) => kind,
    };
    let name = feature.name.clone();
    let fail = |problem: String| invalid(format!("feature {name:?}: {problem}"));
    let given = [
        (RawKind::Ids, feature.ids.len()),
        (RawKind::Texts, feature.texts.len()),
        (RawKind::Numbers, feature.values.len()),
    ];
    if let Some((found, _)) = given.iter().find(|(kind, entries)| *kind != wanted && *entries > 0) {
        let (wanted, found) = (wanted.as_str(), found.as_str());
        return Err(fail(format!("the model takes {wanted} here, not {found}")));
    }
    let values = match wanted {
        RawKind::Ids => RawValues::Ids(feature.ids),
        RawKind::Texts => RawValues::Texts(feature.texts),
        RawKind::Numbers => RawValues::Numbers(feature.values),
    };
    let (entries, what) = (values.len() as u64, wanted.as_str());
    match &feature.lengths {
        None if entries != u64::from(rows) => {
            let problem = format!("{entries} {what} without lengths, there must be {rows}, one per row");
            return Err(fail(problem));
        }
        Some(lengths) if lengths.len() as u64 != u64::from(rows) => {
            return Err(fail(format!("{} lengths, there must be {rows}, one per row", lengths.len())));
        }
        Some(lengths) => {
            let sum: u64 = lengths.iter().map(|l| u64::from(*l)).sum();
            if sum != entries {
                return Err(fail(format!("the lengths add up to {sum}, there are {entries} {what}")));
            }
        }
        None => {}
    }
    let sequence = match &input.source {
        InputSource::Sequence { max_len, .. } => Some(*max_len),
        _ => None,
    };
    if let Some(weights) = &feature.weights {
        if sequence.is_some() {
            return Err(fail("a sequence has no weights".into()));
        }
        if weights.len() as u64 != entries {
            return Err(fail(format!("{} weights for {entries} {what}", weights.len())));
        }
        finite(&name, "weight", weights)?;
    }
    let made = input.transform.apply(values, feature.lengths, feature.weights);
    let mut bags: Bags = made.map_err(|error| fail(error.to_string()))?;
    if let Some(max_len) = sequence {
        bags.keep_last(max_len);
    }
    Ok(InputRows::Bags { ids: bags.ids, lengths: bags.lengths, weights: bags.weights })
}

/// Numbers as they are, `[rows, width]`.
///
/// # Errors
/// [`RankError::Invalid`] names the feature.
pub(crate) fn numbers(feature: RankFeature, width: u32, rows: u32) -> Result<Vec<f32>, RankError> {
    let name = &feature.name;
    let fail = |problem: String| Err(invalid(format!("feature {name:?}: {problem}")));
    if !feature.ids.is_empty() || feature.weights.is_some() || feature.lengths.is_some() {
        return fail("the model takes numbers here, not ids".into());
    }
    if !feature.texts.is_empty() {
        return fail("the model takes numbers here, not texts".into());
    }
    let expected = u64::from(rows) * u64::from(width);
    if feature.values.len() as u64 != expected {
        let found = feature.values.len();
        return fail(format!("{found} numbers, there must be {expected}: {rows} rows of {width}"));
    }
    finite(name, "number", &feature.values)?;
    Ok(feature.values)
}

fn finite(name: &str, what: &str, numbers: &[f32]) -> Result<(), RankError> {
    match numbers.iter().position(|number| !number.is_finite()) {
        Some(at) => Err(invalid(format!("feature {name:?}: {what} {at} is {}", numbers[at]))),
        None => Ok(()),
    }
}
