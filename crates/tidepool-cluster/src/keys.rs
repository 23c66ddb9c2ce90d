//! How many users there are behind so many requests: counts by the hash of their keys, in so many slots, so that they
//! can be counted in any number of processes, added up, and subtracted.
//!
//! Requests of one user are alike. What decides how much chance there is in what was counted is not their number but
//! Kish's effective sample size, `(sum of n)^2 / sum of n^2` over the users with `n` requests each: it is the number of
//! users where all ask as often, and little more than one where one of them asks most of the time. The sum of squares
//! is told from the slots: users that share one are accounted for, since hashes spread them evenly.

/// Requests by slot; empty where nobody has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyCounts(Vec<u32>);

impl KeyCounts {
    /// Slots: with so many the sum of squares is told to about 4 %, however many users there are.
    pub const SLOTS: usize = 1024;

    /// From counts by slot; `None` when there are neither none nor [`SLOTS`](Self::SLOTS) of them.
    #[must_use]
    pub fn from_slots(slots: Vec<u32>) -> Option<Self> {
        (slots.is_empty() || slots.len() == Self::SLOTS).then_some(Self(slots))
    }

    /// Counts by slot; none where nobody has counted.
    #[must_use]
    pub fn slots(&self) -> &[u32] {
        &self.0
    }

    /// Counts a request of the user whose key has this hash. Any 64-bit hash does that spreads keys evenly, as long
    /// as it is the same everywhere.
    pub fn record(&mut self, hash: u64) {
        self.0.resize(Self::SLOTS, 0);
        let slot = &mut self.0[(hash % Self::SLOTS as u64) as usize];
        *slot = slot.wrapping_add(1);
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        if other.0.is_empty() {
            return;
        }
        self.0.resize(Self::SLOTS, 0);
        self.0.iter_mut().zip(&other.0).for_each(|(slot, count)| *slot = slot.wrapping_add(*count));
    }

    /// What has been counted since `before`, of which it is a continuation.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        if !since.0.is_empty() {
            since.0.iter_mut().zip(&before.0).for_each(|(slot, count)| *slot = slot.wrapping_sub(*count));
        }
        since
    }

    /// Requests in all slots.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|count| u64::from(*count)).sum()
    }

    /// The effective sample size: from 1 to the number of requests, 0 without any.
    #[must_use]
    pub fn effective(&self) -> f64 {
        let total = self.total() as f64;
        if total == 0.0 {
            return 0.0;
        }
        let slots = Self::SLOTS as f64;
        let squares: f64 = self.0.iter().map(|count| f64::from(*count) * f64::from(*count)).sum();
        // Of two requests of different users, one in so many pairs meets in a slot.
        let of_users = (squares - total * total / slots) / (1.0 - 1.0 / slots);
        total * total / of_users.clamp(total, total * total)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidepool_types::mix64;

    use super::*;

    /// Counts of users with so many requests each.
    fn of(users: impl IntoIterator<Item = u32>, seed: u64) -> KeyCounts {
        let mut counts = KeyCounts::default();
        for (user, requests) in (0u64..).zip(users) {
            (0..requests).for_each(|_| counts.record(mix64(seed.wrapping_mul(1 << 32) + user)));
        }
        counts
    }

    #[test]
    fn users_who_ask_alike_count_one_each() {
        for seed in 0..20 {
            for users in [1u32, 2, 10, 250, 5_000, 200_000] {
                for each in [1, 3] {
                    let effective = of(std::iter::repeat_n(each, users as usize), seed).effective();
                    let share = effective / f64::from(users);
                    // Few users in many requests are told less well: as more of them, at most so many.
                    assert!((0.8..=1.25).contains(&share), "{users} users of {each}: {effective}");
                }
            }
        }
    }

    #[test]
    fn who_asks_most_of_the_time_counts_for_most() {
        // One user has half of all requests: what is counted of them is hardly more than two observations of two.
        let effective = of([1_000].into_iter().chain(std::iter::repeat_n(1, 1_000)), 7).effective();
        assert!((3.5..=4.5).contains(&effective), "{effective}");
        assert_eq!(KeyCounts::default().effective(), 0.0);
        assert_eq!(of([9], 1).effective(), 1.0);
    }

    proptest! {
        #[test]
        fn counting_in_parts_is_counting_at_once(
            before in prop::collection::vec(0..9u32, 0..20),
            later in prop::collection::vec(0..9u32, 0..20),
        ) {
            let (first, second) = (of(before, 1), of(later, 2));
            let mut all = first.clone();
            all.add(&second);
            let since = all.since(&first);
            prop_assert_eq!(since.total(), second.total());
            prop_assert_eq!(since.slots().iter().zip(second.slots()).filter(|(a, b)| a != b).count(), 0);
        }
    }
}
