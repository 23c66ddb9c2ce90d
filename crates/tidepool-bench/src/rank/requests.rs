//! What is asked: a request is a function of the seed and its number, whoever it is asked of.

use tidepool_proto::{pack::pack, v1};
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
