//! A token bucket: extra calls are paid for by ordinary ones, so that a cluster in trouble is not asked twice
//! as much as one in health. Time is passed in.

use std::time::Instant;

/// What may be spent on calls that are no one's first.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Earned per ordinary call.
    per_call: f64,
    /// Earned per second, whatever is called.
    per_second: f64,
    most: f64,
    tokens: f64,
    at: Option<Instant>,
}

impl Budget {
    /// A full bucket of `most` tokens.
    pub(crate) fn new(per_call: f64, per_second: f64, most: f64) -> Self {
        Self { per_call, per_second, most, tokens: most, at: None }
    }

    /// `calls` ordinary calls are made.
    pub(crate) fn earn(&mut self, calls: usize) {
        #[expect(clippy::cast_precision_loss, reason = "calls of one lookup are few")]
        let earned = self.per_call * calls as f64;
        self.tokens = (self.tokens + earned).min(self.most);
    }

    /// Pays for `calls` extra calls, of which a full bucket pays any number; false: they must not be made.
    pub(crate) fn spend(&mut self, now: Instant, calls: usize) -> bool {
        let passed = now.saturating_duration_since(*self.at.get_or_insert(now));
        self.at = Some(now);
        self.tokens = (self.tokens + self.per_second * passed.as_secs_f64()).min(self.most);
        #[expect(clippy::cast_precision_loss, reason = "calls of one lookup are few")]
        let cost = (calls as f64).min(self.most).max(1.0);
        let enough = self.tokens >= cost;
        if enough {
            self.tokens -= cost;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn spent(budget: &mut Budget, now: Instant) -> usize {
        (0..1000).take_while(|_| budget.spend(now, 1)).count()
    }

    #[test]
    fn a_burst_then_a_share_of_the_calls() {
        let (mut budget, now) = (Budget::new(0.125, 0.0, 4.0), Instant::now());
        assert_eq!(spent(&mut budget, now), 4);
        budget.earn(7);
        assert_eq!(spent(&mut budget, now), 0);
        budget.earn(1);
        assert_eq!(spent(&mut budget, now + Duration::from_secs(3600)), 1, "time alone earns nothing");
        budget.earn(1_000_000);
        assert_eq!(spent(&mut budget, now), 4, "what is not spent is kept up to the burst");
    }

    #[test]
    fn many_calls_cost_as_many_and_never_more_than_there_can_be() {
        let (mut budget, now) = (Budget::new(1.0, 0.0, 4.0), Instant::now());
        assert!(budget.spend(now, 3));
        assert!(!budget.spend(now, 2));
        assert!(budget.spend(now, 1));
        budget.earn(3);
        assert!(!budget.spend(now, 100), "a full bucket pays for them");
        budget.earn(1);
        assert!(budget.spend(now, 100));
        assert!(!budget.spend(now, 1));
    }

    #[test]
    fn a_few_per_second_whatever_is_called() {
        let (mut budget, now) = (Budget::new(0.0, 2.0, 10.0), Instant::now());
        assert_eq!(spent(&mut budget, now), 10);
        assert_eq!(spent(&mut budget, now + Duration::from_millis(1500)), 3);
        assert_eq!(spent(&mut budget, now), 0, "a clock that went back earns nothing");
    }

    #[test]
    fn an_empty_bucket_stays_empty() {
        let (mut budget, now) = (Budget::new(0.0, 0.0, 0.0), Instant::now());
        budget.earn(100);
        assert!(!budget.spend(now + Duration::from_secs(9), 1));
    }
}
