//! What a release under a ramp must keep to, and the judgement on what rankers have counted.
//!
//! Candidate and current release are compared over the same time, so that a fault which hits both (a node that
//! is down) halts nobody. A difference counts when it is more than is allowed **and** more than chance explains:
//! judgements are made with each report, so chance is given much. Requests of one user are alike, so that chance is
//! that of so many users (`keys.rs`), not of so many requests.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{error::StepError, keys::KeyCounts, scores::ScoreHistogram};

/// How many nats more likely what was counted must be with two rates than with one: five standard deviations where
/// counts are large, and right also where they are small.
const RATE_EVIDENCE: f64 = 12.5;
/// How far apart chance puts two distributions: `sqrt(-ln(p / 2) / 2)` for a p of one in a million.
const DISTANCE_DEVIATIONS: f64 = 2.69;

/// What a release under a ramp must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guards {
    /// How much larger its share of failed requests may be than the current release's, from 0 to 1.
    pub max_error_rate_increase: f64,
    /// How much larger its share of ids that no table has may be, from 0 to 1.
    pub max_missing_rate_increase: f64,
    /// How far its scores may be from the current release's: the Kolmogorov-Smirnov distance, from 0 to 1; at 1
    /// they are not looked at.
    pub max_score_shift: f64,
    /// Requests that either must have answered before it is judged, from 1 on.
    pub min_requests: u64,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            max_error_rate_increase: 0.01,
            max_missing_rate_increase: 0.05,
            max_score_shift: 0.1,
            min_requests: 200,
        }
    }
}

/// What rankers have counted of one release: of requests that it was chosen for, not of those that named it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests.
    pub requests: u64,
    /// Those of them that were not answered.
    pub errors: u64,
    /// Ids that they looked up.
    pub ids: u64,
    /// Those of them that no table had.
    pub missing_ids: u64,
    /// Scores, at most 16 of a request: one with many candidates says no more of the release than others do.
    pub scores: ScoreHistogram,
    /// How many users there are behind the requests; empty where that was not counted: then each is one of its own.
    pub keys: KeyCounts,
    /// The same of those requests only that have scores.
    pub scored_keys: KeyCounts,
}

/// How a release broke its guards, with the numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Breach {
    /// Too many of its requests fail.
    Errors {
        /// Its tally.
        candidate: Rate,
        /// The current release's.
        current: Rate,
        /// What is allowed.
        allowed: f64,
    },
    /// Too many of its ids are in no table.
    Missing {
        /// Its tally.
        candidate: Rate,
        /// The current release's.
        current: Rate,
        /// What is allowed.
        allowed: f64,
    },
    /// Its scores are others.
    Scores {
        /// How far they are from the current release's.
        distance: f64,
        /// Requests that it is judged by.
        requests: u64,
        /// What is allowed.
        allowed: f64,
    },
}

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many.
    pub count: u64,
    /// Of so many.
    pub of: u64,
}

impl Guards {
    /// Checks that every bound can be kept and broken.
    ///
    /// # Errors
    /// [`StepError::Guards`] lists those that cannot.
    pub fn validate(&self) -> Result<(), StepError> {
        let shares = [
            ("max_error_rate_increase", self.max_error_rate_increase),
            ("max_missing_rate_increase", self.max_missing_rate_increase),
            ("max_score_shift", self.max_score_shift),
        ];
        let outside = shares.into_iter().filter(|(_, share)| !(0.0..=1.0).contains(share));
        let mut problems: Vec<_> =
            outside.map(|(which, share)| format!("{which} is {share}, it must be from 0 to 1")).collect();
        if self.min_requests == 0 {
            problems.push("min_requests is 0, it must be at least 1".into());
        }
        if problems.is_empty() { Ok(()) } else { Err(StepError::Guards { problems }) }
    }

    /// The first bound that `candidate` has broken, beside what `current` did at the same time.
    #[must_use]
    pub fn judge(&self, candidate: &Tally, current: &Tally) -> Option<Breach> {
        if candidate.requests < self.min_requests {
            return None;
        }
        let compared = current.requests >= self.min_requests;
        // Without anything to compare with (a ramp of everything), failures speak for themselves.
        let errors = Rate { count: candidate.errors, of: candidate.requests };
        let others = Rate { count: current.errors, of: current.requests };
        let (weights, allowed) =
            ((candidate.sample(), compared.then(|| current.sample())), self.max_error_rate_increase);
        if errors.exceeds(others, weights, allowed) {
            return Some(Breach::Errors { candidate: errors, current: others, allowed });
        }
        if !compared {
            return None;
        }
        let missing = Rate { count: candidate.missing_ids, of: candidate.ids };
        let others = Rate { count: current.missing_ids, of: current.ids };
        // Ids of one request are missing together, and of one user: there are as many observations as users.
        if missing.exceeds(others, weights, self.max_missing_rate_increase) {
            let allowed = self.max_missing_rate_increase;
            return Some(Breach::Missing { candidate: missing, current: others, allowed });
        }
        let chance =
            DISTANCE_DEVIATIONS * (1.0 / candidate.scored_sample() + 1.0 / current.scored_sample()).sqrt();
        let distance = candidate.scores.distance(&current.scores)?;
        let (allowed, requests) = (self.max_score_shift, candidate.requests);
        (distance > allowed && distance > chance).then_some(Breach::Scores { distance, requests, allowed })
    }
}

impl Tally {
    /// Of how many independent observations its requests are worth.
    fn sample(&self) -> f64 {
        if self.keys.total() == 0 { self.requests as f64 } else { self.keys.effective() }
    }

    /// The same of those requests that have scores.
    fn scored_sample(&self) -> f64 {
        match self.scored_keys.total() {
            0 => self.requests.saturating_sub(self.errors) as f64,
            _ => self.scored_keys.effective(),
        }
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        self.ids = self.ids.saturating_add(other.ids);
        self.missing_ids = self.missing_ids.saturating_add(other.missing_ids);
        self.scores.add(&other.scores);
        self.keys.add(&other.keys);
        self.scored_keys.add(&other.scored_keys);
    }

    /// What has been counted since `before`; `None` when a number has become smaller, so that it is no
    /// continuation.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            requests: self.requests.checked_sub(before.requests)?,
            errors: self.errors.checked_sub(before.errors)?,
            ids: self.ids.checked_sub(before.ids)?,
            missing_ids: self.missing_ids.checked_sub(before.missing_ids)?,
            scores: self.scores.since(&before.scores)?,
            keys: self.keys.since(&before.keys),
            scored_keys: self.scored_keys.since(&before.scored_keys),
        })
    }
}

impl Rate {
    fn share(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.count as f64 / self.of as f64 }
    }

    /// Whether it is larger than `other` by more than is allowed, and by more than chance explains for so many
    /// observations of either. Without observations of the other, whether it is larger than what is allowed.
    fn exceeds(self, other: Self, (mine, others): (f64, Option<f64>), allowed: f64) -> bool {
        let share = self.share();
        let Some(others) = others else {
            return share > allowed && mine * divergence(share, allowed) > RATE_EVIDENCE;
        };
        let other = other.share();
        let together = (share * mine + other * others) / (mine + others);
        let evidence = mine * divergence(share, together) + others * divergence(other, together);
        share - other > allowed && evidence > RATE_EVIDENCE
    }
}

/// How many nats an observation is less likely when the rate is `assumed` than when it is `rate`.
fn divergence(rate: f64, assumed: f64) -> f64 {
    let part = |of: f64, by: f64| if of == 0.0 { 0.0 } else { of * (of / by).ln() };
    part(rate, assumed) + part(1.0 - rate, 1.0 - assumed)
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} % ({} of {})", 100.0 * self.share(), self.count, self.of)
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errors { candidate, current, allowed } => write!(
                f,
                "{candidate} of its requests fail, {current} of the current release's; {:.2} points more are allowed",
                100.0 * allowed
            ),
            Self::Missing { candidate, current, allowed } => write!(
                f,
                "{candidate} of its ids are in no table, {current} of the current release's; {:.2} points more are \
                 allowed",
                100.0 * allowed
            ),
            Self::Scores { distance, requests, allowed } => write!(
                f,
                "its scores over {requests} requests are {distance:.3} away from the current release's \
                 (Kolmogorov-Smirnov), {allowed:.3} is allowed"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tally(requests: u64, errors: u64, missing: u64) -> Tally {
        Tally { requests, errors, ids: 20 * requests, missing_ids: missing, ..Tally::default() }
    }

    fn judged(candidate: &Tally, current: &Tally) -> Option<String> {
        Guards::default().judge(candidate, current).map(|breach| breach.to_string())
    }

    #[test]
    fn errors_halt_when_they_are_more_than_those_of_the_current_release() {
        let current = tally(3800, 4, 0);
        assert_eq!(judged(&tally(199, 199, 0), &current), None, "too few to say");
        assert_eq!(
            judged(&tally(200, 20, 0), &current).unwrap(),
            "10.00 % (20 of 200) of its requests fail, 0.11 % (4 of 3800) of the current release's; 1.00 points \
             more are allowed"
        );
        assert_eq!(judged(&tally(200, 3, 0), &current), None, "chance");
        assert_eq!(judged(&tally(2000, 30, 0), &tally(38_000, 380, 0)), None, "half a point more is allowed");
        assert_eq!(
            judged(&tally(200, 200, 0), &tally(3800, 3800, 0)),
            None,
            "all fail: it is not the release"
        );
        assert!(judged(&tally(200, 20, 0), &tally(0, 0, 0)).is_some(), "a ramp of everything");
        assert_eq!(judged(&tally(200, 4, 0), &tally(0, 0, 0)), None, "and chance in it");
        assert_eq!(judged(&tally(200, 3, 0), &tally(3800, 2, 0)), None, "few are chance too");
    }

    #[test]
    fn missing_ids_halt_when_they_are_more_than_those_of_the_current_release() {
        let current = tally(3800, 0, 760);
        assert!(
            judged(&tally(200, 0, 1200), &current).unwrap().contains("30.00 % (1200 of 4000) of its ids")
        );
        assert_eq!(judged(&tally(200, 0, 120), &current), None);
        assert_eq!(judged(&tally(200, 0, 4000), &tally(10, 0, 0)), None, "nothing to compare with");
    }

    #[test]
    fn a_bound_that_is_none_is_refused() {
        assert_eq!(Guards::default().validate(), Ok(()));
        let guards = Guards {
            max_error_rate_increase: -0.1,
            max_score_shift: f64::NAN,
            min_requests: 0,
            ..Guards::default()
        };
        let Err(StepError::Guards { problems }) = guards.validate() else { panic!("accepted") };
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    /// Numbers that are alike for alike seeds: splitmix64.
    struct Draws(u64);

    impl Draws {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            (tidepool_types::mix64(self.0) >> 11) as f64 / (1u64 << 53) as f64
        }

        /// So many requests of 16 candidates whose scores are those of a user, give or take.
        fn serve(&mut self, requests: u64, failing: f64, score: impl Fn(f64) -> f64) -> Tally {
            let mut tally = tally(requests, 0, 0);
            for _ in 0..requests {
                tally.errors += u64::from(self.next() < failing);
                let user = self.next();
                for _ in 0..16 {
                    let logit = 4.0 * user - 2.0 + self.next() - 0.5;
                    tally.scores.record(score(logit) as f32);
                }
            }
            tally
        }
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn the_same_model_is_never_halted_in_a_thousand_draws() {
        for seed in 0..1000 {
            let mut draws = Draws(seed);
            let current = draws.serve(3800, 0.002, sigmoid);
            let candidate = draws.serve(200, 0.002, sigmoid);
            assert_eq!(judged(&candidate, &current), None, "seed {seed}");
        }
    }

    #[test]
    fn a_skewed_model_is_always_halted() {
        for seed in 0..50 {
            let mut draws = Draws(seed);
            let current = draws.serve(3800, 0.0, sigmoid);
            let skewed = draws.serve(200, 0.0, |logit| sigmoid(logit + 2.0));
            let words = judged(&skewed, &current).unwrap_or_else(|| panic!("seed {seed}"));
            assert!(words.contains("its scores over 200 requests are"), "{words}");
        }
    }

    /// So many requests of so many users, whose scores are all around what `score` makes of the user.
    fn of_users(requests: u64, users: u64, seed: u64, score: impl Fn(f64) -> f64) -> Tally {
        let mut tally = tally(requests, 0, 0);
        let mut draws = Draws(seed);
        for request in 0..requests {
            let user = tidepool_types::mix64(seed.wrapping_mul(1_000_003) + request % users);
            tally.keys.record(user);
            tally.scored_keys.record(user);
            let of_user = (user >> 11) as f64 / (1u64 << 53) as f64;
            for _ in 0..16 {
                tally.scores.record(score(4.0 * of_user - 2.0 + 0.1 * draws.next()) as f32);
            }
        }
        tally
    }

    #[test]
    fn a_few_heavy_users_are_no_shift_and_no_fault() {
        let mut apart = 0;
        for seed in 0..200 {
            let current = of_users(20_000, 2_000, seed, sigmoid);
            let mut candidate = of_users(1_000, 5, 1_000 + seed, sigmoid);
            let distance = candidate.scores.distance(&current.scores).unwrap();
            apart += u32::from(distance > Guards::default().max_score_shift);
            assert_eq!(judged(&candidate, &current), None, "seed {seed}, {distance} apart");
            // One of them, of whose requests all fail.
            candidate.errors = 200;
            assert_eq!(judged(&candidate, &current), None, "seed {seed}");
        }
        assert!(apart > 190, "by requests they would have been halted, and not {apart} times only");
    }

    #[test]
    fn a_skewed_release_is_halted_at_250_requests_of_as_many_users() {
        for seed in 0..50 {
            let current = of_users(4_750, 4_750, seed, sigmoid);
            let skewed = of_users(250, 250, 1_000 + seed, |logit| sigmoid(logit + 2.0));
            let words = judged(&skewed, &current).unwrap_or_else(|| panic!("seed {seed}"));
            assert!(words.contains("its scores over 250 requests are"), "{words}");
            let same = of_users(250, 250, 1_000 + seed, sigmoid);
            assert_eq!(judged(&same, &current), None, "seed {seed}");
        }
    }

    #[test]
    fn requests_without_scores_say_nothing_of_scores() {
        let current = of_users(4_750, 4_750, 1, sigmoid);
        let mut few = of_users(12, 12, 2, |logit| sigmoid(logit + 2.0));
        assert!(few.scores.distance(&current.scores).unwrap() > 0.4);
        (few.requests, few.ids) = (1_000, 0);
        (0..988).for_each(|user| few.keys.record(tidepool_types::mix64(user)));
        assert_eq!(judged(&few, &current), None, "12 scored requests of 1000");
    }

    proptest! {
        #[test]
        fn counting_in_parts_is_counting_at_once(parts in prop::collection::vec((0..100u64, 0..9u64, 0..9u64), 1..9)) {
            let (mut sum, mut before) = (Tally::default(), Tally::default());
            let mut counted = Tally::default();
            for (requests, errors, missing) in parts {
                counted.add(&tally(requests, errors, missing));
                sum.add(&counted.since(&before).unwrap());
                before = counted.clone();
            }
            prop_assert_eq!(sum, counted);
        }
    }
}
