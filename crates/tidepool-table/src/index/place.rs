//! Places the buckets of one part: a pilot for each, so that all keys of the part get slots of their own.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::IndexShape;

/// A slot that no bucket holds.
const FREE: u32 = u32::MAX;
/// How many of the buckets that were placed last may not be evicted again: it breaks short cycles.
const RECENT: usize = 16;

/// Which slots of a part are taken, one bit each.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken(Vec<u64>);

impl Taken {
    fn new(slots: usize) -> Self {
        Self(vec![0; slots.div_ceil(64)])
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        self.0[slot / 64] >> (slot % 64) & 1 == 1
    }

    fn set(&mut self, slot: usize) {
        self.0[slot / 64] |= 1 << (slot % 64);
    }

    fn clear(&mut self, slot: usize) {
        self.0[slot / 64] &= !(1 << (slot % 64));
    }
}

/// The placement of one part in progress.
struct Placing<'a> {
    shape: IndexShape,
    /// Spread keys of the part, ascending, so those of a bucket lie together.
    keys: &'a [u64],
    /// Where the keys of each bucket begin; one entry more than there are buckets.
    starts: Vec<u32>,
    pilots: &'a mut [u8],
    taken: Taken,
    /// The bucket that holds each slot.
    owner: Vec<u32>,
    /// Slots of the bucket in hand.
    slots: Vec<usize>,
}

/// Finds the pilots of one part. `keys` are its spread keys in ascending order. `None` when no placement
/// was found within the bound on evictions: another seed must be tried.
pub(super) fn place(shape: IndexShape, keys: &[u64], pilots: &mut [u8]) -> Option<Taken> {
    let slots = shape.slots_per_part as usize;
    if keys.len() > slots {
        return None;
    }
    let starts = bucket_starts(shape, keys);
    pilots.fill(0);
    let mut placing = Placing {
        shape,
        keys,
        starts,
        pilots,
        taken: Taken::new(slots),
        owner: vec![FREE; slots],
        slots: Vec::new(),
    };
    let mut evictions_left = 16 * slots + 1024;
    for bucket in placing.by_size() {
        placing.settle(bucket, &mut evictions_left)?;
    }
    Some(placing.taken)
}

fn bucket_starts(shape: IndexShape, keys: &[u64]) -> Vec<u32> {
    let mut starts = vec![0u32; shape.buckets_per_part as usize + 1];
    for &x in keys {
        starts[shape.part_and_bucket(x).1 as usize + 1] += 1;
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    starts
}

impl Placing<'_> {
    fn size(&self, bucket: u32) -> usize {
        (self.starts[bucket as usize + 1] - self.starts[bucket as usize]) as usize
    }

    fn keys_of(&self, bucket: u32) -> &[u64] {
        &self.keys[self.starts[bucket as usize] as usize..self.starts[bucket as usize + 1] as usize]
    }

    /// Buckets that have keys, the largest first; equal ones in their order.
    fn by_size(&self) -> Vec<u32> {
        let mut buckets: Vec<u32> =
            (0..self.shape.buckets_per_part).filter(|&bucket| self.size(bucket) > 0).collect();
        buckets.sort_by_key(|&bucket| Reverse(self.size(bucket)));
        buckets
    }

    /// Places `bucket`, and again whatever has to give way to it, the largest first.
    fn settle(&mut self, bucket: u32, evictions_left: &mut usize) -> Option<()> {
        if let Some(pilot) = self.free_pilot(bucket) {
            self.hold(bucket, pilot);
            return Some(());
        }
        let mut waiting = BinaryHeap::from([(self.size(bucket), Reverse(bucket))]);
        let mut recent = [FREE; RECENT];
        let mut turn = 0usize;
        while let Some((_, Reverse(bucket))) = waiting.pop() {
            let pilot = match self.free_pilot(bucket) {
                Some(pilot) => pilot,
                None => self.cheapest_pilot(bucket, &recent, turn)?,
            };
            self.fill_slots(bucket, pilot);
            for at in 0..self.slots.len() {
                let owner = self.owner[self.slots[at]];
                if owner != FREE {
                    *evictions_left = evictions_left.checked_sub(1)?;
                    self.release(owner);
                    waiting.push((self.size(owner), Reverse(owner)));
                    // Releasing goes through the slots of the other bucket: back to this one's.
                    self.fill_slots(bucket, pilot);
                }
            }
            self.hold(bucket, pilot);
            recent[turn % RECENT] = bucket;
            turn += 1;
        }
        Some(())
    }

    fn fill_slots(&mut self, bucket: u32, pilot: u8) {
        let range = self.starts[bucket as usize] as usize..self.starts[bucket as usize + 1] as usize;
        self.slots.clear();
        self.slots.extend(self.keys[range].iter().map(|&x| self.shape.slot(x, pilot) as usize));
    }

    fn hold(&mut self, bucket: u32, pilot: u8) {
        self.fill_slots(bucket, pilot);
        self.pilots[bucket as usize] = pilot;
        for &slot in &self.slots {
            self.taken.set(slot);
            self.owner[slot] = bucket;
        }
    }

    fn release(&mut self, bucket: u32) {
        self.fill_slots(bucket, self.pilots[bucket as usize]);
        for &slot in &self.slots {
            self.taken.clear(slot);
            self.owner[slot] = FREE;
        }
    }

    /// The first pilot under which the keys of `bucket` get free and distinct slots.
    fn free_pilot(&mut self, bucket: u32) -> Option<u8> {
        (0..=u8::MAX).find(|&pilot| {
            let free =
                self.keys_of(bucket).iter().all(|&x| !self.taken.has(self.shape.slot(x, pilot) as usize));
            free && {
                self.fill_slots(bucket, pilot);
                distinct(&mut self.slots)
            }
        })
    }

    /// The pilot whose evictions cost least (the squared sizes of the evicted), sparing `recent` buckets.
    /// The search starts at another pilot each time, so that equal costs do not bring the same choice back.
    fn cheapest_pilot(&mut self, bucket: u32, recent: &[u32; RECENT], turn: usize) -> Option<u8> {
        let first = (turn as u8).wrapping_mul(89).wrapping_add(bucket as u8);
        let mut best = None;
        let mut least = usize::MAX;
        for step in 0..=u8::MAX {
            let pilot = first.wrapping_add(step);
            let mut cost = 0usize;
            for &x in self.keys_of(bucket) {
                let owner = self.owner[self.shape.slot(x, pilot) as usize];
                if owner != FREE {
                    if recent.contains(&owner) {
                        cost = usize::MAX;
                    } else {
                        let size = self.size(owner);
                        cost = cost.saturating_add(size * size);
                    }
                }
                if cost >= least {
                    break;
                }
            }
            if cost < least {
                self.fill_slots(bucket, pilot);
                if distinct(&mut self.slots) {
                    least = cost;
                    best = Some(pilot);
                }
            }
        }
        best
    }
}

/// Whether no slot stands twice; leaves them sorted.
fn distinct(slots: &mut [usize]) -> bool {
    slots.sort_unstable();
    slots.windows(2).all(|pair| pair[0] != pair[1])
}
