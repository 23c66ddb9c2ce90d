//! Tensors to the ranker's own request: which tensor is which feature, and how many rows they have.

use std::collections::BTreeMap;

use axum::body::Bytes;
use tidepool_proto::{pack::pack, v1};
use tidepool_types::{FeatureKind, FeatureSpec, RawKind, Side};

use super::{
    Infer,
    answer::Answering,
    contract::{Contract, LENGTHS, WEIGHTS},
    tensors::{MAX_TEXTS, Tensor, told},
};
use crate::RankError;

/// Tensors that nothing of a contract takes, where it says that they are ignored.
const MAX_UNKNOWN: usize = 1000;

/// The request that `infer` is by this contract, and what its answer is to have.
pub(super) fn convert(
    infer: &Infer,
    contract: &Contract<'_>,
) -> Result<(v1::RankRequest, Answering), RankError> {
    // Each feature has lengths and weights beside it, and some that nothing takes may be ignored.
    let (found, most) = (infer.inputs.len(), 3 * contract.features.len() + MAX_UNKNOWN);
    if found > most {
        return Err(RankError::Invalid(format!("{found} inputs, a request of this model may have {most}")));
    }
    let of_texts = infer.inputs.iter().filter(|tensor| tensor.frame.datatype.is_text());
    let texts: usize = of_texts.map(|tensor| tensor.frame.elements).sum();
    if texts > MAX_TEXTS {
        return Err(RankError::Invalid(format!("{texts} texts, a request may have {MAX_TEXTS}")));
    }
    let mut by_name = BTreeMap::new();
    for tensor in &infer.inputs {
        if by_name.insert(tensor.frame.name.as_str(), tensor).is_some() {
            return Err(tensor.wrong("it stands twice"));
        }
    }
    let mut take = |name: &str| by_name.remove(name);
    let (mut user, mut candidate) = (Vec::new(), Vec::new());
    let mut rows: Option<(usize, &str)> = None;
    for feature in &contract.features {
        let tensor = take(&feature.name);
        let [lengths, weights] = [LENGTHS, WEIGHTS]
            .map(|suffix| contract.beside(feature, suffix).and_then(|beside| take(&beside)));
        let Some(tensor) = tensor else {
            return Err(RankError::Invalid(format!("input {:?} is missing", feature.name)));
        };
        let (found, message) = message(feature, tensor, lengths, weights)?;
        if feature.side == Side::User {
            if found != 1 {
                return Err(
                    tensor.wrong(format!("{found} rows: what belongs to the user comes once, as one row"))
                );
            }
            user.push(message);
            continue;
        }
        match rows {
            Some((wanted, first)) if wanted != found => {
                return Err(tensor.wrong(format!("{found} rows, input {first:?} has {wanted}")));
            }
            _ => rows = Some((found, &feature.name)),
        }
        candidate.push(message);
    }
    for tensor in by_name.into_values() {
        if !contract.ignores_unknown() {
            return Err(tensor.wrong(format!("model {} takes none of this name", contract.spec.model)));
        }
        // Whose it would be is not known. It is counted, and named in the answer.
        user.push(v1::Feature { name: tensor.frame.name.clone(), ..v1::Feature::default() });
    }
    // A model that looks at no candidate has one row: the user's.
    let rows = rows.map_or(1, |(rows, _)| rows);
    let Ok(candidates) = u32::try_from(rows) else {
        return Err(RankError::Invalid(format!("{rows} rows are too many")));
    };
    let answering = Answering::of(infer, contract)?;
    let top_k = match infer.parameters.top_k {
        // Also of a model that gives fewer to those who do not say.
        Some(0) => candidates,
        Some(k) => k,
        None => 0,
    };
    let request = v1::RankRequest {
        deadline_us: infer.parameters.deadline_us,
        candidates,
        user,
        candidate,
        top_k,
        routing_key: infer.parameters.routing_key.clone(),
        surface: infer.parameters.surface.clone(),
        outputs: answering.graph_outputs(),
        ..infer.named()
    };
    Ok((request, answering))
}

/// A feature, and how many rows it has.
fn message(
    feature: &FeatureSpec,
    tensor: &Tensor,
    lengths: Option<&Tensor>,
    weights: Option<&Tensor>,
) -> Result<(usize, v1::Feature), RankError> {
    let mut message = v1::Feature { name: feature.name.clone(), ..v1::Feature::default() };
    let shape = &tensor.frame.shape[..];
    match feature.kind {
        FeatureKind::Row { width } => {
            message.values = tensor.numbers()?;
            return match *shape {
                [rows, found] if u32::try_from(found) == Ok(width) => Ok((rows, message)),
                [rows] if width == 1 => Ok((rows, message)),
                _ => Err(tensor.wrong(format!("shape {shape:?}, the model takes [rows, {width}]"))),
            };
        }
        FeatureKind::Bag(RawKind::Ids) => message.ids = tensor.ids()?,
        FeatureKind::Bag(RawKind::Numbers) => message.values = tensor.numbers()?,
        FeatureKind::Bag(RawKind::Texts) => message.texts = tensor.strings()?,
    }
    if let Some(weights) = weights {
        let (found, elements) = (weights.frame.elements, tensor.frame.elements);
        if found != elements {
            return Err(
                weights.wrong(format!("{found} weights, input {:?} has {elements} elements", feature.name))
            );
        }
        message.weights = weights.numbers()?;
    }
    let rows = match (lengths, shape) {
        (Some(lengths), [_]) => {
            message.lengths = lengths.lengths()?;
            match lengths.frame.shape[..] {
                [rows] | [rows, 1] => rows,
                _ => return Err(lengths.wrong(format!("shape {:?}, [rows] is wanted", lengths.frame.shape))),
            }
        }
        (Some(_), _) => {
            return Err(
                tensor.wrong(format!("shape {shape:?}: with lengths beside it, its elements are flat"))
            );
        }
        // All that the user has is one bag, however it is written.
        (None, [len]) if feature.side == Side::User => {
            message.lengths = repeated(*len, 1)
                .ok_or_else(|| tensor.wrong("too many rows, or too many elements in one"))?;
            1
        }
        (None, [rows]) | (None, [rows, 1]) => *rows,
        (None, [rows, len]) => {
            message.lengths = repeated(*len, *rows)
                .ok_or_else(|| tensor.wrong("too many rows, or too many elements in one"))?;
            *rows
        }
        (None, _) => {
            let name = told(&feature.name);
            return Err(tensor.wrong(format!(
                "shape {shape:?}: [rows] or [rows, length] is wanted, or flat elements beside {name}{LENGTHS}"
            )));
        }
    };
    Ok((rows, message))
}

/// One length for every row. Rows of nothing are bounded by nothing else, so their number must be one that a request
/// could have.
fn repeated(len: usize, rows: usize) -> Option<Bytes> {
    const MAX_ROWS: usize = 1 << 20;
    let len = u32::try_from(len).ok()?;
    (rows <= MAX_ROWS).then(|| pack(&vec![len; rows]))
}
