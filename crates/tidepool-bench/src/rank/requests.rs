//! What is asked: a request is a function of the seed and its number, whoever it is asked of.

use tidepool_proto::{
    inference::{
        InferParameter, ModelInferRequest,
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    },
    pack::pack,
    v1,
};
use tidepool_ranker::InputRows;
use tidepool_types::{InputSource, InputSpec, ModelSpec, Pooling, Side, mix64};

use super::tables::RankTable;
use crate::{draw::Random, rows::id_of};

/// Ids of a bag that is averaged; others have one.
const MEAN_BAG: u32 = 3;

/// Makes requests.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub(super) spec: ModelSpec,
    pub(super) tables: Vec<RankTable>,
    pub(super) candidates: u32,
    pub(super) seed: u64,
}

impl Requests {
    /// The rows of request `number`, per input of the contract.
    pub(super) fn rows(&self, number: u64) -> Vec<InputRows> {
        let mut random = Random::new(mix64(self.seed).wrapping_add(number));
        self.spec.inputs.iter().map(|input| self.input(input, &mut random)).collect()
    }

    fn input(&self, input: &InputSpec, random: &mut Random) -> InputRows {
        let rows = if input.side == Side::User { 1 } else { self.candidates };
        match &input.source {
            InputSource::Pooled { pooling, .. } => {
                let bag = if *pooling == Pooling::Mean { MEAN_BAG } else { 1 };
                let ids = match RankTable::find(&self.tables, &self.spec, &input.name) {
                    Some(table) => {
                        (0..rows * bag).map(|_| id_of(table.keying, random.below(table.rows))).collect()
                    }
                    None => Vec::new(),
                };
                let lengths = (bag > 1).then(|| vec![bag; rows as usize]);
                InputRows::Bags { ids, lengths, weights: None }
            }
            InputSource::Dense { width } => {
                InputRows::Numbers((0..rows * width).map(|_| random.unit() as f32 * 40.0).collect())
            }
            // A model with sequences is refused before anything is asked.
            InputSource::Sequence { .. } => {
                InputRows::Bags { ids: Vec::new(), lengths: Some(vec![0; rows as usize]), weights: None }
            }
        }
    }

    /// Request `number` as clients of the Open Inference Protocol send it: all rows in the order of the request, and the
    /// first output of each.
    pub(super) fn tensors(&self, number: u64) -> ModelInferRequest {
        let mut request = ModelInferRequest {
            model_name: self.spec.model.to_string(),
            id: format!("bench-{number}"),
            outputs: vec![InferRequestedOutputTensor {
                name: self.spec.outputs[0].name.clone(),
                ..InferRequestedOutputTensor::default()
            }],
            ..ModelInferRequest::default()
        };
        let mut tensor = |name: String, datatype: &str, shape: Vec<usize>, bytes| {
            let shape = shape.into_iter().map(|dim| dim as i64).collect();
            request.inputs.push(InferInputTensor {
                name,
                datatype: datatype.into(),
                shape,
                ..InferInputTensor::default()
            });
            request.raw_input_contents.push(bytes);
        };
        for (input, rows) in self.spec.inputs.iter().zip(self.rows(number)) {
            let name = input.feature.clone();
            match rows {
                InputRows::Bags { ids, lengths, .. } => {
                    let lengths_of = format!("{name}_lengths");
                    tensor(name, "UINT64", vec![ids.len()], pack(&ids));
                    if let Some(lengths) = lengths {
                        tensor(lengths_of, "UINT32", vec![lengths.len()], pack(&lengths));
                    }
                }
                InputRows::Numbers(values) => {
                    let width = match input.source {
                        InputSource::Dense { width } => width.max(1) as usize,
                        _ => 1,
                    };
                    tensor(name, "FP32", vec![values.len() / width, width], pack(&values));
                }
            }
        }
        let word = |text: &str| InferParameter {
            parameter_choice: Some(ParameterChoice::StringParam(text.to_owned())),
        };
        let whole = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(0)) };
        request.parameters.insert("routing_key".into(), word(&format!("user-{number}")));
        request.parameters.insert("top_k".into(), whole);
        request
    }

    /// Request `number` as a message, but for what it may take.
    pub(super) fn message(&self, number: u64) -> v1::RankRequest {
        let features = self.spec.inputs.iter().zip(self.rows(number));
        let (mut user, mut candidate) = (Vec::new(), Vec::new());
        for (input, rows) in features {
            let name = input.feature.clone();
            let feature = match rows {
                InputRows::Bags { ids, lengths, .. } => v1::Feature {
                    name,
                    ids: pack(&ids),
                    lengths: pack(&lengths.unwrap_or_default()),
                    ..v1::Feature::default()
                },
                InputRows::Numbers(values) => {
                    v1::Feature { name, values: pack(&values), ..v1::Feature::default() }
                }
            };
            if input.side == Side::User { user.push(feature) } else { candidate.push(feature) }
        }
        v1::RankRequest {
            request_id: format!("bench-{number}"),
            model: self.spec.model.to_string(),
            candidates: self.candidates,
            user,
            candidate,
            top_k: 0,
            routing_key: format!("user-{number}"),
            ..v1::RankRequest::default()
        }
    }
}
