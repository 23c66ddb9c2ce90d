//! Who is answered by which release: the buckets of a model, the releases that have some of them, and those
//! that are asked in the shadow of an answer.
//!
//! A request has a key, a key has one of [`BUCKETS`] buckets, and a bucket belongs to one arm or to the current
//! release. An arm that grows keeps the buckets it has, and one that shrinks gives back those it got last: who
//! saw a release at 1 % sees it at 5 %.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tidepool_types::{Name, mix64};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Buckets of every model: the finest share of its traffic is one in so many.
pub const BUCKETS: u32 = 10_000;

/// The bucket of a request, below [`BUCKETS`]: `mix64(xxh3_64(model, 0, key)) mod BUCKETS`, the same in every
/// process and every version of this program. Golden vectors stand in `docs/releases.md`.
#[must_use]
pub fn bucket_of(model: &str, key: &str) -> u32 {
    let mut hash = Xxh3::new();
    hash.update(model.as_bytes());
    // No name has it: a model and a key cannot be another model and another key.
    hash.update(&[0]);
    hash.update(key.as_bytes());
    (mix64(hash.digest()) % u64::from(BUCKETS)) as u32
}

/// What the requests of one model find beside its current release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Releases with buckets of their own; what no arm has is the current release's.
    pub arms: Vec<Arm>,
    /// Releases that are asked as well, and whose answers nobody is given.
    pub shadows: Vec<Shadow>,
}

/// A release with a share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// The release.
    pub release: Name,
    /// Its buckets, in the order in which it got them.
    pub buckets: Vec<BucketRange>,
}

/// Buckets that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketRange {
    /// The first.
    pub start: u32,
    /// The one after the last; larger than `start`, at most [`BUCKETS`].
    pub end: u32,
}

/// A release that is asked in the shadow of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// The release.
    pub release: Name,
    /// Of [`BUCKETS`] requests so many are asked of it too, from 1 on.
    pub sample: u32,
}

/// Traffic that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TrafficError {
    /// A range without a bucket, or beyond the last.
    #[error("release {release} has the buckets {start} to {end}, there are 0 to {BUCKETS}")]
    Range {
        /// Whose.
        release: Name,
        /// Its start.
        start: u32,
        /// Its end.
        end: u32,
    },
    /// A bucket that two arms have, or one has twice.
    #[error("bucket {bucket} is given away twice, the second time to release {release}")]
    Overlap {
        /// The second that has it.
        release: Name,
        /// Which.
        bucket: u32,
    },
    /// A sample of nothing, or of more than all.
    #[error("release {release} is the shadow of {sample} requests in {BUCKETS}")]
    Sample {
        /// Which shadow.
        release: Name,
        /// Its sample.
        sample: u32,
    },
    /// A release that is an arm twice, or a shadow twice.
    #[error("release {release} stands twice")]
    Twice {
        /// Which.
        release: Name,
    },
}

impl Traffic {
    /// Releases of one model that may have buckets of their own at a time.
    pub const MAX_ARMS: usize = 16;
    /// Releases of one model that may be shadows at a time: each is a second request.
    pub const MAX_SHADOWS: usize = 4;

    /// The arm that has `bucket`; `None` when it is the current release's.
    #[must_use]
    pub fn arm(&self, bucket: u32) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.buckets.iter().any(|range| range.contains(bucket)))
    }

    /// Buckets of a release, 0 when it is no arm.
    #[must_use]
    pub fn share(&self, release: &str) -> u32 {
        self.arms.iter().find(|arm| arm.release.as_str() == release).map_or(0, Arm::share)
    }

    /// Buckets that no arm has.
    #[must_use]
    pub fn free(&self) -> u32 {
        BUCKETS - self.arms.iter().map(Arm::share).sum::<u32>().min(BUCKETS)
    }

    /// Gives `release` so many buckets: it keeps what it has, or the first of it. With 0 it is no arm any more.
    /// When there are not so many, it gets those that there are.
    pub(crate) fn set_share(&mut self, release: &Name, share: u32) {
        let at = self.arms.iter().position(|arm| arm.release == *release);
        let mut arm = at
            .map_or_else(|| Arm { release: release.clone(), buckets: Vec::new() }, |at| self.arms.remove(at));
        let has = arm.share();
        if share < has {
            arm.shrink(has - share);
        } else if share > has {
            arm.buckets.extend(self.take(&arm, share - has));
            arm.join();
        }
        if !arm.buckets.is_empty() {
            self.arms.insert(at.unwrap_or(self.arms.len()), arm);
        }
    }

    /// The first `count` buckets that neither `arm` nor another has, from a place on that depends on the
    /// release: otherwise the same users would be the first to see every release.
    fn take(&self, arm: &Arm, count: u32) -> Vec<BucketRange> {
        let start = (xxh3_64(arm.release.as_bytes()) % u64::from(BUCKETS)) as u32;
        let taken = |bucket: u32| {
            self.arm(bucket).is_some() || arm.buckets.iter().any(|range| range.contains(bucket))
        };
        let all = (start..BUCKETS).chain(0..start);
        let free = all.filter(|bucket| !taken(*bucket)).take(count as usize);
        free.map(|bucket| BucketRange { start: bucket, end: bucket + 1 }).collect()
    }

    /// Whether nobody is sent anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.arms.is_empty() && self.shadows.is_empty()
    }

    /// Checks that no bucket is given away twice, and every number is in its range.
    ///
    /// # Errors
    /// [`TrafficError`] names what is not so.
    pub fn validate(&self) -> Result<(), TrafficError> {
        let mut given = vec![false; BUCKETS as usize];
        for (at, arm) in self.arms.iter().enumerate() {
            let release = || arm.release.clone();
            if self.arms[..at].iter().any(|other| other.release == arm.release) {
                return Err(TrafficError::Twice { release: release() });
            }
            for &BucketRange { start, end } in &arm.buckets {
                if start >= end || end > BUCKETS {
                    return Err(TrafficError::Range { release: release(), start, end });
                }
                for bucket in start..end {
                    if std::mem::replace(&mut given[bucket as usize], true) {
                        return Err(TrafficError::Overlap { release: release(), bucket });
                    }
                }
            }
        }
        for (at, Shadow { release, sample }) in self.shadows.iter().enumerate() {
            if !(1..=BUCKETS).contains(sample) {
                return Err(TrafficError::Sample { release: release.clone(), sample: *sample });
            }
            if self.shadows[..at].iter().any(|other| other.release == *release) {
                return Err(TrafficError::Twice { release: release.clone() });
            }
        }
        Ok(())
    }
}

impl Arm {
    /// How many buckets it has.
    #[must_use]
    pub fn share(&self) -> u32 {
        self.buckets.iter().map(|range| range.end.saturating_sub(range.start)).sum()
    }

    /// Gives the last `count` buckets back.
    fn shrink(&mut self, mut count: u32) {
        while let Some(last) = self.buckets.last_mut().filter(|_| count > 0) {
            let goes = count.min(last.end - last.start);
            last.end -= goes;
            count -= goes;
            if last.start == last.end {
                self.buckets.pop();
            }
        }
    }

    /// Makes one range of ranges that follow each other.
    fn join(&mut self) {
        let mut joined = Vec::<BucketRange>::new();
        for range in self.buckets.drain(..) {
            match joined.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => joined.push(range),
            }
        }
        self.buckets = joined;
    }
}

impl BucketRange {
    /// Whether it has `bucket`.
    #[must_use]
    pub const fn contains(self, bucket: u32) -> bool {
        self.start <= bucket && bucket < self.end
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn buckets(traffic: &Traffic, release: &str) -> BTreeSet<u32> {
        let arm = traffic.arms.iter().find(|arm| arm.release.as_str() == release);
        arm.iter().flat_map(|arm| &arm.buckets).flat_map(|range| range.start..range.end).collect()
    }

    /// The vectors of `docs/releases.md`.
    #[test]
    fn buckets_are_golden() {
        let golden = [
            ("m", "", 3398),
            ("m", "1", 7496),
            ("m", "2", 6326),
            ("movielens", "user-196", 3866),
            ("ads", "00000000deadbeef", 4632),
        ];
        for (model, key, bucket) in golden {
            assert_eq!(bucket_of(model, key), bucket, "{model} {key}");
        }
        assert_ne!(bucket_of("a", "b1"), bucket_of("ab", "1"), "the model ends somewhere");
    }

    #[test]
    fn keys_spread_over_buckets_evenly() {
        let mut counts = [0u32; 10];
        for key in 0..100_000 {
            counts[bucket_of("m", &key.to_string()) as usize / 1000] += 1;
        }
        assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
    }

    #[test]
    fn different_releases_begin_with_different_users() {
        let mut traffic = Traffic::default();
        traffic.set_share(&name("r1"), 100);
        let first = buckets(&traffic, "r1");
        traffic.set_share(&name("r1"), 0);
        assert!(traffic.is_empty());
        traffic.set_share(&name("r2"), 100);
        assert!(buckets(&traffic, "r2").is_disjoint(&first));
    }

    #[test]
    fn contradictions_are_found() {
        let arm = |release: &str, ranges: &[(u32, u32)]| Arm {
            release: name(release),
            buckets: ranges.iter().map(|&(start, end)| BucketRange { start, end }).collect(),
        };
        let error = |arms: Vec<Arm>| Traffic { arms, shadows: Vec::new() }.validate().unwrap_err();
        let (a, b) = (name("a"), name("b"));
        assert_eq!(
            error(vec![arm("a", &[(0, 5)]), arm("b", &[(7, 9), (4, 5)])]),
            TrafficError::Overlap { release: b, bucket: 4 }
        );
        assert_eq!(
            error(vec![arm("a", &[(0, BUCKETS + 1)])]),
            TrafficError::Range { release: a.clone(), start: 0, end: BUCKETS + 1 }
        );
        assert!(matches!(error(vec![arm("a", &[(3, 3)])]), TrafficError::Range { .. }));
        assert_eq!(error(vec![arm("a", &[]), arm("a", &[])]), TrafficError::Twice { release: a.clone() });
        let shadow = |sample| Shadow { release: a.clone(), sample };
        let shadows = |shadows| Traffic { arms: Vec::new(), shadows }.validate();
        assert!(matches!(shadows(vec![shadow(0)]), Err(TrafficError::Sample { .. })));
        assert!(matches!(shadows(vec![shadow(1), shadow(2)]), Err(TrafficError::Twice { .. })));
        assert_eq!(shadows(vec![shadow(BUCKETS)]), Ok(()));
    }

    proptest! {
        #[test]
        fn shares_are_sticky_and_no_bucket_is_given_twice(
            steps in prop::collection::vec((0..4usize, 0..=BUCKETS), 1..20)
        ) {
            let mut traffic = Traffic::default();
            for (at, share) in steps {
                let release = name(&format!("r{at}"));
                let before: Vec<_> = (0..4).map(|at| buckets(&traffic, &format!("r{at}"))).collect();
                let most = traffic.free() + traffic.share(&release);
                traffic.set_share(&release, share);
                prop_assert_eq!(traffic.validate(), Ok(()));
                prop_assert_eq!(traffic.share(&release), share.min(most));
                for (other, had) in before.iter().enumerate() {
                    let has = buckets(&traffic, &format!("r{other}"));
                    if other == at {
                        prop_assert!(has.is_subset(had) || has.is_superset(had));
                    } else {
                        prop_assert_eq!(&has, had);
                    }
                }
            }
        }

        #[test]
        fn who_came_last_goes_first(small in 1..5_000u32, more in 1..5_000u32) {
            let (mut traffic, release) = (Traffic::default(), name("r"));
            traffic.set_share(&release, small);
            let first = buckets(&traffic, "r");
            traffic.set_share(&release, small + more);
            traffic.set_share(&release, small);
            prop_assert_eq!(buckets(&traffic, "r"), first);
        }
    }
}
