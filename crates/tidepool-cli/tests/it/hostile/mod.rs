//! Hostile and malformed requests to a node that is a process of its own. Each gets a typed error or its
//! connection closed; the memory of the node stays bounded; and after every single one an honest request on
//! the same connection is answered rightly, by the oracle.
//!
//! A random failure prints its seed: set `TIDEPOOL_TEST_SEED` to it to see that failure again.

mod http2;
mod memory;
mod messages;
mod victim;
mod wire;

use tidepool_types::mix64;

/// Seeded numbers (splitmix64).
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(mix64(seed))
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    pub(crate) const fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// The seeds of a random test: `count` of them, or the one that `TIDEPOOL_TEST_SEED` asks for.
pub(crate) fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("TIDEPOOL_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("TIDEPOOL_TEST_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}
