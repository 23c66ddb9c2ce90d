//! Messages to and from the ranker's own types.

use std::time::Duration;

use tidepool_proto::{
    pack::{Packed, pack, unpack},
    v1,
};

use crate::{
    RankError,
    rank::{RankAnswer, RankStages},
    request::{RankFeature, RankRequest},
};

impl TryFrom<v1::RankRequest> for RankRequest {
    type Error = RankError;

    fn try_from(from: v1::RankRequest) -> Result<Self, RankError> {
        let features = |side: &str, list: Vec<v1::Feature>| {
            let feature = |f| RankFeature::try_from(f).map_err(|e| RankError::Invalid(format!("{side} {e}")));
            list.into_iter().map(feature).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            request_id: from.request_id,
            tenant: from.tenant,
            // It travels beside the message.
            traceparent: None,
            budget: (from.deadline_us > 0).then(|| Duration::from_micros(from.deadline_us)),
            model: from.model,
            release: (!from.release.is_empty()).then_some(from.release),
            candidates: from.candidates,
            user: features("user", from.user)?,
            candidate: features("candidate", from.candidate)?,
            top_k: from.top_k,
            routing_key: from.routing_key,
            surface: from.surface,
            outputs: from.outputs,
        })
    }
}

impl TryFrom<v1::Feature> for RankFeature {
    type Error = RankError;

    fn try_from(from: v1::Feature) -> Result<Self, RankError> {
        let name = from.name;
        let lengths: Vec<u32> = numbers(&name, "lengths", &from.lengths)?;
        let weights: Vec<f32> = numbers(&name, "weights", &from.weights)?;
        Ok(Self {
            ids: numbers(&name, "ids", &from.ids)?,
            lengths: (!lengths.is_empty()).then_some(lengths),
            weights: (!weights.is_empty()).then_some(weights),
            values: numbers(&name, "values", &from.values)?,
            texts: from.texts,
            name,
        })
    }
}

fn numbers<T: Packed>(feature: &str, field: &str, bytes: &[u8]) -> Result<Vec<T>, RankError> {
    let numbers = unpack::<T>(bytes).ok_or_else(|| {
        let (len, width) = (bytes.len(), T::BYTES);
        RankError::Invalid(format!(
            "feature {feature:?}: {field}: {len} bytes are no whole count of {width}-byte numbers"
        ))
    })?;
    Ok(numbers.collect())
}

impl From<RankAnswer> for v1::RankResponse {
    fn from(from: RankAnswer) -> Self {
        let (indexes, scores): (Vec<u32>, Vec<f32>) = from.ranked.into_iter().unzip();
        Self {
            model: from.model.to_string(),
            release: from.release.to_string(),
            table_versions: from.table_versions.iter().map(Into::into).collect(),
            epoch: from.epoch.0,
            indexes: pack(&indexes),
            scores: pack(&scores),
            missing_ids: from.missing_ids,
            defaulted_bags: from.defaulted_bags,
            unavailable_ids: from.unavailable_ids,
            partial: from.unavailable_ids > 0,
            rows_looked_up: from.rows_looked_up,
            nodes_touched: from.nodes_touched,
            lookup_us: micros(from.lookup_time),
            dense_us: micros(from.dense_time),
            choice: v1::Choice::from(from.choice).into(),
            bucket: from.bucket,
            batch_requests: from.batch_requests,
            batch_wait_us: micros(from.batch_wait),
            queue_us: micros(from.queue_time),
            outputs: from
                .outputs
                .into_iter()
                .map(|(name, values)| v1::NamedValues { name, values: pack(&values) })
                .collect(),
            stages: Some(from.stages.into()),
            schema_hash: from.schema_hash,
            ignored_features: from.ignored_features,
            // The service knows it.
            request_id: String::new(),
        }
    }
}

impl From<RankStages> for v1::RankStages {
    fn from(from: RankStages) -> Self {
        let RankStages { took, check, lookup, finish } = from;
        Self {
            took_us: micros(took),
            check_us: micros(check),
            split_us: micros(lookup.split),
            wait_us: micros(lookup.wait),
            node_us: micros(lookup.node),
            merge_us: micros(lookup.merge),
            finish_us: micros(finish),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_fields_are_decoded_and_empty_means_absent() {
        let feature = v1::Feature {
            name: "item".into(),
            ids: pack(&[u64::MAX, 0]),
            lengths: pack(&[2u32, 0]),
            ..v1::Feature::default()
        };
        let message = v1::RankRequest {
            model: "m".into(),
            candidates: 2,
            deadline_us: 1_500,
            candidate: vec![feature],
            ..v1::RankRequest::default()
        };
        let request = RankRequest::try_from(message).unwrap();
        assert_eq!(request.budget, Some(Duration::from_micros(1_500)));
        assert_eq!((request.release, request.top_k), (None, 0));
        let item = &request.candidate[0];
        assert_eq!((item.ids.as_slice(), item.lengths.as_deref()), (&[u64::MAX, 0][..], Some(&[2, 0][..])));
        assert_eq!(item.weights, None);
    }

    #[test]
    fn a_cut_number_is_refused_and_the_field_named() {
        let feature = v1::Feature { name: "item".into(), ids: vec![0; 9].into(), ..v1::Feature::default() };
        let message = v1::RankRequest { user: vec![feature], ..v1::RankRequest::default() };
        let error = RankRequest::try_from(message).unwrap_err();
        assert_eq!(
            error.to_string(),
            "user feature \"item\": ids: 9 bytes are no whole count of 8-byte numbers"
        );
    }
}
