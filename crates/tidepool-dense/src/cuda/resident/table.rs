//! The flat hash table, as the host has it: the same slots as on the device, but for their order within a run.
//!
//! ```text
//! slot    u64 id, u32 row, u32 number of the table; row and number all ones: empty
//! home    high 64 bits of mix64(id ^ mix64(seed + number * 0x9e3779b97f4a7c15)) * slots
//! probe   home, home + 1, ... and from the end to the beginning, until the key or an empty slot
//! ```
//! Which slots are taken does not depend on the order in which keys come, only which key stands in which slot of a
//! run of them does. So the longest run is the same on the device, where all keys come at once, and no search there, for
//! a key that is there or not, looks at more slots than it has and one.

use tidepool_types::mix64;

use super::ResidentError;

/// The step between the seeds of tables: that of splitmix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The row and number of an empty slot.
const EMPTY: u64 = u64::MAX;

/// The longest run of taken slots that a table may have. At a load of 0.6 a million keys have one of about 90, at the
/// highest load, 0.7, eight billion keys one of about 400: the run that keys have by chance is `ln(keys) / (load - 1 -
/// ln(load))`. So keys that exceed it were chosen to collide, and a larger table would not help.
const MAX_RUN: u32 = 512;

/// The loads that a table may have.
const LOADS: std::ops::RangeInclusive<f64> = 0.1..=0.7;

/// Where a row is: in which table, and which of its ids it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The number of the table in the set.
    pub table: u32,
    /// The id.
    pub id: u64,
}

/// The keys of all resident tables.
#[derive(Debug)]
pub struct KeyTable {
    /// Ids, and rows with the numbers of their tables.
    slots: Vec<(u64, u64)>,
    seed: u64,
    keys: usize,
    run: u32,
}

impl KeyTable {
    /// Makes the table of so many keys, each with its row. At most `load` of its slots are taken, from 0.1 to 0.7;
    /// there are [`slots_for`](Self::slots_for) them, never more, so that a budget of bytes holds. `seed` should be one that nobody who chooses ids knows, or their ids could be made to collide.
    ///
    /// # Errors
    /// [`ResidentError::Twice`] names a key that comes again; [`ResidentError::Crowded`] when keys collide far more
    /// than chance would have them.
    pub fn build(
        keys: impl ExactSizeIterator<Item = (Key, u32)>,
        load: f64,
        seed: u64,
    ) -> Result<Self, ResidentError> {
        let count = keys.len();
        let table = Self::fill(keys, Self::slots_for(count, load), seed)?;
        if table.run <= MAX_RUN { Ok(table) } else { Err(ResidentError::Crowded { keys: count }) }
    }

    /// Slots for so many keys.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a count of slots, made larger by rounding"
    )]
    pub fn slots_for(keys: usize, load: f64) -> usize {
        // One is always empty, so that every search ends.
        ((keys as f64 / load.clamp(*LOADS.start(), *LOADS.end())).ceil() as usize).max(keys + 1)
    }

    fn fill(
        keys: impl ExactSizeIterator<Item = (Key, u32)>,
        slots: usize,
        seed: u64,
    ) -> Result<Self, ResidentError> {
        let mut table = Self { slots: vec![(0, EMPTY); slots], seed, keys: keys.len(), run: 0 };
        for (key, row) in keys {
            let (mut at, mut tried) = (table.home(key), 0);
            loop {
                let slot = &mut table.slots[at];
                if slot.1 == EMPTY {
                    *slot = (key.id, u64::from(key.table) << 32 | u64::from(row));
                    break;
                }
                if slot.0 == key.id && slot.1 >> 32 == u64::from(key.table) {
                    return Err(ResidentError::Twice { table: key.table, id: key.id });
                }
                at = table.after(at);
                tried += 1;
                if tried > MAX_RUN {
                    // Also so that ids that were chosen to collide cost no more than others.
                    table.run = tried;
                    return Ok(table);
                }
            }
        }
        table.run = table.longest_run();
        Ok(table)
    }

    /// The row of a key.
    #[must_use]
    pub fn find(&self, key: Key) -> Option<u32> {
        let mut at = self.home(key);
        for _ in 0..self.probes() {
            let (id, of) = self.slots[at];
            if of == EMPTY {
                return None;
            }
            if id == key.id && of >> 32 == u64::from(key.table) {
                #[expect(clippy::cast_possible_truncation, reason = "the row is the low half")]
                return Some(of as u32);
            }
            at = self.after(at);
        }
        None
    }

    /// The ids of a table, in the order of their rows. It looks at every slot.
    #[must_use]
    pub fn ids(&self, table: u32) -> Vec<u64> {
        let of_table = |slot: &&(u64, u64)| slot.1 != EMPTY && slot.1 >> 32 == u64::from(table);
        let mut rows: Vec<_> = self.slots.iter().filter(of_table).map(|(id, of)| (*of, *id)).collect();
        rows.sort_unstable();
        rows.into_iter().map(|(_, id)| id).collect()
    }

    /// Slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Keys.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// The most slots that a search looks at, whatever it searches for.
    #[must_use]
    pub fn probes(&self) -> u32 {
        self.run + 1
    }

    /// What ids are mixed with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Bytes of the slots, here and on the device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        16 * self.slots.len()
    }

    fn home(&self, key: Key) -> usize {
        let of_table = mix64(self.seed.wrapping_add(u64::from(key.table).wrapping_mul(STEP)));
        let mixed = mix64(key.id ^ of_table);
        ((u128::from(mixed) * self.slots.len() as u128) >> 64) as usize
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }

    fn longest_run(&self) -> u32 {
        let Some(gap) = self.slots.iter().position(|slot| slot.1 == EMPTY) else { return u32::MAX - 1 };
        // From behind an empty slot all the way round, so that no run is cut in two.
        let (head, tail) = self.slots.split_at(gap);
        let (mut longest, mut run) = (0, 0);
        for slot in tail.iter().chain(head) {
            run = if slot.1 == EMPTY { 0 } else { run + 1 };
            longest = longest.max(run);
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u64) -> impl ExactSizeIterator<Item = (Key, u32)> + Clone {
        (0..count as u32).map(|n| (Key { table: n % 3, id: u64::from(n / 3) * 1000 }, n))
    }

    #[test]
    fn every_key_is_found_and_no_other_at_any_load() {
        for count in [0, 1, 2, 3, 100, 50_000] {
            for load in [0.1, 0.5, 0.6, 0.7] {
                let table = KeyTable::build(keys(count), load, 7).unwrap();
                assert!(table.slots() > table.keys() && table.keys() == count as usize);
                assert!(count < 100 || table.keys() as f64 <= load * table.slots() as f64);
                assert_eq!(table.slots(), KeyTable::slots_for(count as usize, load));
                for (key, row) in keys(count) {
                    assert_eq!(table.find(key), Some(row), "{key:?}");
                    assert_eq!(table.find(Key { id: key.id + 1, ..key }), None);
                    assert_eq!(table.find(Key { table: key.table + 3, ..key }), None);
                }
            }
        }
    }

    #[test]
    fn runs_are_short_at_the_usual_load_and_the_same_in_any_order() {
        let all: Vec<_> = keys(100_000).collect();
        let table = KeyTable::build(all.iter().copied(), 0.6, 1).unwrap();
        let reversed = KeyTable::build(all.iter().rev().copied(), 0.6, 1).unwrap();
        assert_eq!(table.probes(), reversed.probes());
        let taken = |table: &KeyTable| table.slots.iter().map(|slot| slot.1 != EMPTY).collect::<Vec<_>>();
        assert_eq!(taken(&table), taken(&reversed));
        assert!(table.probes() < 150, "{}", table.probes());
    }

    #[test]
    fn a_key_that_comes_twice_is_named() {
        let twice =
            [(Key { table: 1, id: 5 }, 0), (Key { table: 2, id: 5 }, 1), (Key { table: 1, id: 5 }, 2)];
        let error = KeyTable::build(twice.into_iter(), 0.5, 0).unwrap_err();
        assert_eq!(error, ResidentError::Twice { table: 1, id: 5 });
    }

    #[test]
    fn ids_that_were_chosen_to_collide_do_not_under_another_seed() {
        // Ids whose homes under seed 0 all lie in the first thousandth of the slots.
        let of_table = mix64(0);
        let chosen: Vec<_> = (0..2000u64).map(|n| tidepool_types::unmix64(n << 40) ^ of_table).collect();
        let keys =
            || (0u32..).zip(&chosen).map(|(row, id)| (Key { table: 0, id: *id }, row)).collect::<Vec<_>>();
        let error = KeyTable::build(keys().into_iter(), 0.5, 0).unwrap_err();
        assert_eq!(error, ResidentError::Crowded { keys: 2000 });
        assert!(KeyTable::build(keys().into_iter(), 0.5, 1).is_ok());
    }
}
