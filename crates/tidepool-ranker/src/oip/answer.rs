//! The ranker's own answer as tensors: every output in the order of the request, or of the best candidates first.

use axum::body::Bytes;
use tidepool_proto::{pack::unpack, v1};

use super::{
    Infer,
    contract::{Contract, INDEXES, SCORES},
    parameters::{Named, Value},
    tensors::{Datatype, Frame, Tensor, told},
};
use crate::{RankError, choice::Choice};

/// What an answer is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answering {
    /// The best first, and no more of them than were asked for; otherwise all, in the order of the request.
    ranked: bool,
    outputs: Vec<(String, Give)>,
}

/// Where an output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Give {
    /// What candidates are ranked by.
    Score,
    /// Positions in the request.
    Indexes,
    /// An output of the graph.
    Graph,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Inferred {
    pub(super) model: String,
    /// The release.
    pub(super) version: String,
    pub(super) id: String,
    pub(super) parameters: Named,
    pub(super) outputs: Vec<Tensor>,
}

impl Answering {
    pub(super) fn of(infer: &Infer, contract: &Contract<'_>) -> Result<Self, RankError> {
        let ranked = infer.parameters.top_k.unwrap_or(contract.spec.top_k) > 0;
        let spec = contract.spec;
        let own = [INDEXES, SCORES].into_iter().find(|name| spec.output(name).is_some());
        if ranked && let Some(name) = own {
            let model = &spec.model;
            return Err(RankError::Invalid(format!(
                "model {model} has an output {name:?} of its own, so top_k is not served for it by this protocol: \
                 ask for all rows with top_k 0, or by the native Rank call"
            )));
        }
        let names: Vec<&str> = match &infer.outputs[..] {
            [] => contract.gives(ranked),
            names => names.iter().map(String::as_str).collect(),
        };
        let mut outputs: Vec<(String, Give)> = Vec::with_capacity(names.len());
        for name in names {
            let wrong =
                |problem: &str| Err(RankError::Invalid(format!("output {:?}: {problem}", told(name))));
            if outputs.iter().any(|(earlier, _)| earlier == name) {
                return wrong("it stands twice");
            }
            let give = match name {
                INDEXES if ranked => Give::Indexes,
                SCORES if ranked => Give::Score,
                name if name == spec.score_name() => Give::Score,
                name if spec.output(name).is_some() => Give::Graph,
                INDEXES | SCORES => return wrong("it is given with the parameter top_k alone"),
                _ => return wrong(&format!("model {} gives none of this name", spec.model)),
            };
            outputs.push((name.to_owned(), give));
        }
        Ok(Self { ranked, outputs })
    }

    /// The outputs of the graph that the ranker is to give beside the score.
    pub(super) fn graph_outputs(&self) -> Vec<String> {
        let graph = self.outputs.iter().filter(|(_, give)| *give == Give::Graph);
        graph.map(|(name, _)| name.clone()).collect()
    }

    /// The answer as it is to be.
    pub(super) fn answer(&self, mut response: v1::RankResponse) -> Result<Inferred, RankError> {
        let rows = response.indexes.len() / 4;
        let order = (!self.ranked).then(|| response.indexes.clone());
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for (name, give) in &self.outputs {
            let datatype = if *give == Give::Indexes { Datatype::Uint32 } else { Datatype::Fp32 };
            let values = match give {
                Give::Indexes => response.indexes.clone(),
                Give::Score => response.scores.clone(),
                Give::Graph => {
                    let found = response.outputs.iter_mut().find(|output| output.name == *name);
                    found.map(|output| std::mem::take(&mut output.values)).unwrap_or_default()
                }
            };
            let found = values.len();
            let values = match &order {
                Some(order) => in_order(order, &values),
                None => Some(values),
            };
            let frame = Frame { name: name.clone(), datatype, shape: vec![rows], elements: rows };
            let tensor = values.filter(|_| found == 4 * rows).map(|raw| Tensor { frame, raw });
            let broken = || RankError::Answer { output: name.clone(), found, expected: 4 * rows };
            outputs.push(tensor.ok_or_else(broken)?);
        }
        let parameters = parameters(&response);
        let v1::RankResponse { model, release, request_id, .. } = response;
        Ok(Inferred { model, version: release, id: request_id, parameters, outputs })
    }
}

/// Numbers of 4 bytes put where `order` says; `None` when it does not say one place for each.
fn in_order(order: &[u8], values: &[u8]) -> Option<Bytes> {
    if order.len() != values.len() {
        return None;
    }
    let mut placed = vec![0; values.len()];
    for (at, value) in unpack::<u32>(order)?.zip(values.chunks_exact(4)) {
        let at = usize::try_from(at).ok()?.checked_mul(4)?;
        placed.get_mut(at..at + 4)?.copy_from_slice(value);
    }
    Some(placed.into())
}

/// What the native answer says beside the scores.
fn parameters(response: &v1::RankResponse) -> Named {
    let tables = response.table_versions.iter().map(|table| format!("{}@{}", table.table, table.version));
    let whole = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let mut named = vec![
        ("release", Value::Text(response.release.clone())),
        ("choice", Value::Text(Choice::word(response.choice()).to_owned())),
        ("bucket", whole(response.bucket.into())),
        ("epoch", whole(response.epoch)),
        ("table_versions", Value::Text(tables.collect::<Vec<_>>().join(","))),
        ("schema_hash", Value::Text(format!("{:016x}", response.schema_hash))),
        ("missing_ids", whole(response.missing_ids.into())),
        ("defaulted_bags", whole(response.defaulted_bags.into())),
        ("unavailable_ids", whole(response.unavailable_ids.into())),
        ("partial", Value::Bool(response.partial)),
        ("rows_looked_up", whole(response.rows_looked_up.into())),
        ("nodes_touched", whole(response.nodes_touched.into())),
        ("lookup_us", whole(response.lookup_us)),
        ("dense_us", whole(response.dense_us)),
    ];
    if !response.ignored_features.is_empty() {
        named.push(("ignored_features", Value::Text(response.ignored_features.join(","))));
    }
    named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use tidepool_proto::pack::pack;

    use super::*;

    #[test]
    fn numbers_go_where_the_order_says_or_nowhere() {
        let order = pack(&[2u32, 0, 1]);
        let placed = in_order(&order, &pack(&[0.9f32, 0.5, 0.1])).unwrap();
        assert_eq!(placed, pack(&[0.5f32, 0.1, 0.9]));
        assert_eq!(in_order(&order, &pack(&[0.9f32])), None);
        assert_eq!(in_order(&pack(&[3u32]), &pack(&[0.9f32])), None);
        assert_eq!(in_order(&[], &[]).unwrap(), Bytes::new());
    }

    #[test]
    fn an_output_that_did_not_come_is_a_defect() {
        let outputs = vec![("p".to_owned(), Give::Score), ("q".to_owned(), Give::Graph)];
        let answering = Answering { ranked: false, outputs };
        let response = v1::RankResponse {
            indexes: pack(&[1u32, 0]),
            scores: pack(&[0.9f32, 0.1]),
            outputs: vec![v1::NamedValues { name: "q".into(), values: pack(&[1.0f32, 2.0]) }],
            ..v1::RankResponse::default()
        };
        let inferred = answering.answer(response.clone()).unwrap();
        assert_eq!(inferred.outputs[1].raw, pack(&[2.0f32, 1.0]));
        let error = answering.answer(v1::RankResponse { outputs: Vec::new(), ..response }).unwrap_err();
        assert_eq!(error.to_string(), "output \"q\" of the answer has 0 bytes, 8 were expected");
    }
}
