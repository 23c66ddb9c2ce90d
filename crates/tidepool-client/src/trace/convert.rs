//! Records to and from the messages of `proto/tidepool/v1/trace.proto`.

use std::time::{Duration, UNIX_EPOCH};

use tidepool_proto::{
    WireError,
    pack::{Packed, pack, unpack},
    v1,
};
use tidepool_types::Pooling;

use super::{TraceEnd, TraceStart, TracedLookup};
use crate::request::FeatureLookup;

/// Whole microseconds; what no u64 holds (half a million years) is the largest.
fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

impl From<&TraceStart> for v1::TraceStart {
    fn from(from: &TraceStart) -> Self {
        let began = from.began.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began_unix_us: micros(began), every: from.every, source: from.source.clone() }
    }
}

impl TryFrom<v1::TraceStart> for TraceStart {
    type Error = WireError;

    fn try_from(from: v1::TraceStart) -> Result<Self, WireError> {
        let began = UNIX_EPOCH.checked_add(Duration::from_micros(from.began_unix_us));
        let began = began.ok_or(WireError::Value { field: "began_unix_us", value: from.began_unix_us })?;
        Ok(Self { began, every: from.every, source: from.source })
    }
}

impl From<&TraceEnd> for v1::TraceEnd {
    fn from(from: &TraceEnd) -> Self {
        Self { lasted_us: micros(from.lasted), lookups: from.lookups, dropped: from.dropped }
    }
}

impl From<v1::TraceEnd> for TraceEnd {
    fn from(from: v1::TraceEnd) -> Self {
        let lasted = Duration::from_micros(from.lasted_us);
        Self { lasted, lookups: from.lookups, dropped: from.dropped }
    }
}

impl From<&TracedLookup> for v1::TracedLookup {
    fn from(from: &TracedLookup) -> Self {
        Self {
            arrival_us: micros(from.arrival),
            number: from.number,
            tenant: from.tenant.clone().unwrap_or_default(),
            features: from.features.iter().map(feature_message).collect(),
        }
    }
}

impl TryFrom<v1::TracedLookup> for TracedLookup {
    type Error = WireError;

    fn try_from(from: v1::TracedLookup) -> Result<Self, WireError> {
        Ok(Self {
            arrival: Duration::from_micros(from.arrival_us),
            number: from.number,
            tenant: Some(from.tenant).filter(|tenant| !tenant.is_empty()),
            features: from.features.into_iter().map(feature).collect::<Result<_, _>>()?,
        })
    }
}

fn feature_message(from: &FeatureLookup) -> v1::TracedFeature {
    let pooling = match from.pooling {
        Pooling::Sum => v1::TracedPooling::Sum,
        Pooling::Mean => v1::TracedPooling::Mean,
        Pooling::None => v1::TracedPooling::None,
    };
    v1::TracedFeature {
        table_version: Some((&from.table_version).into()),
        pooling: pooling.into(),
        ids: pack(&from.ids),
        lengths: pack(from.lengths.as_deref().unwrap_or_default()),
        weights: pack(from.weights.as_deref().unwrap_or_default()),
    }
}

fn feature(from: v1::TracedFeature) -> Result<FeatureLookup, WireError> {
    let pooling = match from.pooling() {
        v1::TracedPooling::Sum => Pooling::Sum,
        v1::TracedPooling::Mean => Pooling::Mean,
        v1::TracedPooling::None => Pooling::None,
        v1::TracedPooling::Unspecified => return Err(WireError::Missing("pooling")),
    };
    let lengths = numbers("lengths", &from.lengths)?;
    let weights = numbers("weights", &from.weights)?;
    Ok(FeatureLookup {
        table_version: from.table_version.ok_or(WireError::Missing("table_version"))?.try_into()?,
        pooling,
        ids: numbers("ids", &from.ids)?,
        lengths: Some(lengths).filter(|lengths| !lengths.is_empty()),
        weights: Some(weights).filter(|weights| !weights.is_empty()),
    })
}

fn numbers<T: Packed>(field: &'static str, bytes: &[u8]) -> Result<Vec<T>, WireError> {
    let cut = WireError::Packed { field, bytes: bytes.len() };
    Ok(unpack(bytes).ok_or(cut)?.collect())
}
