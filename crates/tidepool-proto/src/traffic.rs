//! Traffic and what was counted of it, to and from messages.

use tidepool_cluster::{
    Arm, BucketRange, ClusterEvent, Guards, KeyCounts, ScoreHistogram, Serving, Shadow, ShadowTally, Tally,
    Traffic,
};
use tidepool_types::Name;

use crate::{
    WireError,
    convert::{name, required},
    pack, v1,
};

/// The traffic of a model as a message.
pub(crate) fn traffic_to_wire((model, from): (&Name, &Traffic)) -> v1::ModelTraffic {
    let arm = |arm: &Arm| {
        let ends: Vec<u32> = arm.buckets.iter().flat_map(|range| [range.start, range.end]).collect();
        v1::Arm { release: arm.release.to_string(), buckets: pack::pack(&ends) }
    };
    let shadow = |s: &Shadow| v1::Shadow { release: s.release.to_string(), sample: s.sample };
    v1::ModelTraffic {
        model: model.to_string(),
        arms: from.arms.iter().map(arm).collect(),
        shadows: from.shadows.iter().map(shadow).collect(),
    }
}

/// The traffic of a message, and its model. Whether it is sound is for the map's own check.
pub(crate) fn traffic(from: v1::ModelTraffic) -> Result<(Name, Traffic), WireError> {
    let arm = |arm: v1::Arm| {
        let cut = WireError::Packed { field: "buckets", bytes: arm.buckets.len() };
        let ends: Vec<u32> = pack::unpack(&arm.buckets).ok_or_else(|| cut.clone())?.collect();
        let (pairs, rest) = ends.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(cut);
        }
        let buckets = pairs.iter().map(|&[start, end]| BucketRange { start, end }).collect();
        Ok(Arm { release: name("release", arm.release)?, buckets })
    };
    let shadow = |s: v1::Shadow| Ok(Shadow { release: name("release", s.release)?, sample: s.sample });
    let traffic = Traffic {
        arms: from.arms.into_iter().map(arm).collect::<Result<_, WireError>>()?,
        shadows: from.shadows.into_iter().map(shadow).collect::<Result<_, WireError>>()?,
    };
    Ok((name("model", from.model)?, traffic))
}

impl From<&ScoreHistogram> for v1::ScoreHistogram {
    fn from(from: &ScoreHistogram) -> Self {
        let (bins, counts) = from.bins().unzip();
        Self { bins, counts }
    }
}

fn histogram(from: Option<v1::ScoreHistogram>) -> Result<ScoreHistogram, WireError> {
    let from = required("scores", from)?;
    if from.bins.len() != from.counts.len() {
        return Err(WireError::Value { field: "counts", value: from.counts.len() as u64 });
    }
    Ok(ScoreHistogram::from_bins(from.bins.into_iter().zip(from.counts)))
}

impl From<&Tally> for v1::Tally {
    fn from(from: &Tally) -> Self {
        Self {
            requests: from.requests,
            errors: from.errors,
            ids: from.ids,
            missing_ids: from.missing_ids,
            scores: Some((&from.scores).into()),
            keys: pack::pack(from.keys.slots()),
            scored_keys: pack::pack(from.scored_keys.slots()),
        }
    }
}

/// Requests by the hash of their keys.
fn keys(field: &'static str, from: &bytes::Bytes) -> Result<KeyCounts, WireError> {
    let cut = WireError::Packed { field, bytes: from.len() };
    let slots: Vec<u32> = pack::unpack(from).ok_or_else(|| cut.clone())?.collect();
    KeyCounts::from_slots(slots).ok_or(cut)
}

impl TryFrom<v1::Tally> for Tally {
    type Error = WireError;

    fn try_from(from: v1::Tally) -> Result<Self, WireError> {
        Ok(Self {
            requests: from.requests,
            errors: from.errors,
            ids: from.ids,
            missing_ids: from.missing_ids,
            scores: histogram(from.scores)?,
            keys: keys("keys", &from.keys)?,
            scored_keys: keys("scored_keys", &from.scored_keys)?,
        })
    }
}

impl From<&ShadowTally> for v1::ShadowTally {
    fn from(from: &ShadowTally) -> Self {
        Self {
            compared: from.compared,
            failed: from.failed,
            dropped: from.dropped,
            scores: Some((&from.scores).into()),
            answered: Some((&from.answered).into()),
            differences: Some((&from.differences).into()),
        }
    }
}

impl TryFrom<v1::ShadowTally> for ShadowTally {
    type Error = WireError;

    fn try_from(from: v1::ShadowTally) -> Result<Self, WireError> {
        Ok(Self {
            compared: from.compared,
            failed: from.failed,
            dropped: from.dropped,
            scores: histogram(from.scores)?,
            answered: histogram(from.answered)?,
            differences: histogram(from.differences)?,
        })
    }
}

impl From<&Serving> for v1::Serving {
    fn from(from: &Serving) -> Self {
        Self { since: from.since, chosen: Some((&from.chosen).into()), shadow: Some((&from.shadow).into()) }
    }
}

impl TryFrom<v1::Serving> for Serving {
    type Error = WireError;

    fn try_from(from: v1::Serving) -> Result<Self, WireError> {
        Ok(Self {
            since: from.since,
            chosen: required("chosen", from.chosen)?.try_into()?,
            shadow: required("shadow", from.shadow)?.try_into()?,
        })
    }
}

impl From<Guards> for v1::Guards {
    fn from(from: Guards) -> Self {
        Self {
            max_error_rate_increase: from.max_error_rate_increase,
            max_missing_rate_increase: from.max_missing_rate_increase,
            max_score_shift: from.max_score_shift,
            min_requests: from.min_requests,
        }
    }
}

impl From<v1::Guards> for Guards {
    fn from(from: v1::Guards) -> Self {
        Self {
            max_error_rate_increase: from.max_error_rate_increase,
            max_missing_rate_increase: from.max_missing_rate_increase,
            max_score_shift: from.max_score_shift,
            min_requests: from.min_requests,
        }
    }
}

impl From<&ClusterEvent> for v1::ClusterEvent {
    fn from(from: &ClusterEvent) -> Self {
        Self {
            number: from.number,
            unix_seconds: from.unix_seconds,
            by: from.by.clone(),
            kind: from.kind.as_str().to_owned(),
            subject: from.subject.to_string(),
            release: from.release.as_ref().map(ToString::to_string).unwrap_or_default(),
            why: from.why.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(bins: &[(i32, u64)]) -> ScoreHistogram {
        ScoreHistogram::from_bins(bins.iter().copied())
    }

    #[test]
    fn what_was_counted_comes_back_whole() {
        let (mut keys, mut scored_keys) = (KeyCounts::default(), KeyCounts::default());
        keys.record(7);
        scored_keys.record(2_000);
        let scores_of = scores(&[(-5, 2), (7, 1)]);
        let chosen =
            Tally { requests: 9, errors: 1, ids: 80, missing_ids: 3, scores: scores_of, keys, scored_keys };
        let shadow = ShadowTally {
            compared: 4,
            failed: 3,
            dropped: 2,
            scores: scores(&[(1, 1)]),
            answered: scores(&[(2, 2)]),
            differences: scores(&[]),
        };
        let serving = Serving { since: 77, chosen, shadow };
        let wire = v1::Serving::from(&serving);
        assert_eq!(Serving::try_from(wire.clone()), Ok(serving));
        let mut uneven = wire.clone();
        uneven.chosen.as_mut().unwrap().scores.as_mut().unwrap().counts.pop();
        assert_eq!(Serving::try_from(uneven), Err(WireError::Value { field: "counts", value: 1 }));
        let mut cut = wire.clone();
        cut.chosen.as_mut().unwrap().keys.truncate(4092);
        assert_eq!(Serving::try_from(cut), Err(WireError::Packed { field: "keys", bytes: 4092 }));
        let missing = v1::Serving { shadow: None, ..wire };
        assert_eq!(Serving::try_from(missing), Err(WireError::Missing("shadow")));
        let guards = Guards { min_requests: 3, ..Guards::default() };
        assert_eq!(Guards::from(v1::Guards::from(guards)), guards);
    }

    #[test]
    fn buckets_that_are_no_pairs_are_refused() {
        let arm = v1::Arm { release: "r".into(), buckets: pack::pack(&[1u32, 2, 3]) };
        let model = v1::ModelTraffic { model: "m".into(), arms: vec![arm], shadows: Vec::new() };
        assert_eq!(traffic(model), Err(WireError::Packed { field: "buckets", bytes: 12 }));
    }
}
