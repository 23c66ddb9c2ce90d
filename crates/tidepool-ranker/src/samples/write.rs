//! A request that was answered becomes a line that `POST /v1/rank` would take, and `release skew` reads.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};
use tidepool_runtime::utc;
use tidepool_types::TableVersion;

use super::{CHECKSUM_KEY, Online};
use crate::{
    json::short,
    rank::RankAnswer,
    request::{RankFeature, RankRequest},
};

/// What is kept of a request and its answer. Who asked, in whose name and with which key is not.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) request: RankRequest,
    pub(crate) release: String,
    pub(crate) tables: Vec<TableVersion>,
    /// Seconds since 1970.
    pub(crate) time: i64,
    pub(crate) ranked: Vec<(u32, f32)>,
    pub(crate) outputs: Vec<(String, Vec<f32>)>,
    pub(crate) missing_ids: u32,
    pub(crate) unavailable_ids: u32,
}

#[derive(Serialize)]
struct Line {
    /// First, so that a torn line is known for what it is.
    audit: u32,
    request: Value,
    online: Online,
}

impl Record {
    /// Of a request and what it was answered.
    pub(crate) fn new(request: RankRequest, answer: &RankAnswer) -> Self {
        Self {
            request,
            release: answer.release.to_string(),
            tables: answer.table_versions.clone(),
            time: utc::now(),
            ranked: answer.ranked.clone(),
            outputs: answer.outputs.clone(),
            missing_ids: answer.missing_ids,
            unavailable_ids: answer.unavailable_ids,
        }
    }

    /// In the order of the request.
    fn online(&self) -> Online {
        let by_candidate = |values: &mut dyn Iterator<Item = f32>| {
            let mut of_all = vec![None; self.request.candidates as usize];
            for ((candidate, _), value) in self.ranked.iter().zip(values) {
                if let Some(place) = of_all.get_mut(*candidate as usize) {
                    *place = Some(value);
                }
            }
            of_all
        };
        let outputs = self.outputs.iter();
        let outputs: BTreeMap<_, _> =
            outputs.map(|(name, values)| (name.clone(), by_candidate(&mut values.iter().copied()))).collect();
        Online {
            release: self.release.clone(),
            tables: self.tables.iter().map(ToString::to_string).collect(),
            time: utc::format(self.time),
            scores: by_candidate(&mut self.ranked.iter().map(|(_, score)| *score)),
            outputs,
            missing_ids: self.missing_ids.into(),
            unavailable_ids: self.unavailable_ids.into(),
        }
    }
}

/// The line of a record, its end included.
pub(crate) fn line(record: &Record) -> Vec<u8> {
    let line = Line { audit: 1, request: request(&record.request), online: record.online() };
    // Finite numbers, texts and lists of them: nothing of it can fail.
    let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
    // The bracket comes behind the checksum.
    bytes.pop();
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(CHECKSUM_KEY);
    bytes.extend_from_slice(format!("{checksum:08x}\"}}\n").as_bytes());
    bytes
}

/// The request as JSON, features as they were sent.
fn request(request: &RankRequest) -> Value {
    let features = |features: &[RankFeature], rows: Option<usize>| {
        let named = features.iter().map(|feature| (feature.name.clone(), as_json(feature, rows)));
        Value::Object(named.collect::<Map<_, _>>())
    };
    let mut json = json!({
        "request_id": request.request_id,
        "model": request.model,
        "user": features(&request.user, None),
        "candidates": features(&request.candidate, Some(request.candidates as usize)),
    });
    if !request.surface.is_empty() {
        json["surface"] = json!(request.surface);
    }
    json
}

/// A feature of the user, or of so many candidates.
fn as_json(feature: &RankFeature, candidates: Option<usize>) -> Value {
    let floats = |values: &[f32]| values.iter().map(|value| json!(short(*value))).collect::<Vec<_>>();
    let values = if !feature.texts.is_empty() {
        feature.texts.iter().map(|text| json!(text)).collect()
    } else if !feature.values.is_empty() {
        floats(&feature.values)
    } else {
        feature.ids.iter().map(|id| json!(id)).collect::<Vec<_>>()
    };
    let cut = |values: Vec<Value>| match (candidates, &feature.lengths) {
        (None, _) => Value::Array(values),
        (Some(_), Some(lengths)) => {
            let mut values = values.into_iter();
            let row = |length: &u32| Value::Array(values.by_ref().take(*length as usize).collect());
            Value::Array(lengths.iter().map(row).collect())
        }
        // One each; of numbers that are no bag, as many as the input is wide.
        (Some(candidates), None) => {
            let width = (values.len() / candidates.max(1)).max(1);
            match width {
                1 => Value::Array(values),
                width => Value::Array(values.chunks(width).map(|row| Value::Array(row.to_vec())).collect()),
            }
        }
    };
    match &feature.weights {
        None => cut(values),
        Some(weights) => json!({ "ids": cut(values), "weights": cut(floats(weights)) }),
    }
}
