//! Shared memory of one block at a time, and who touched each byte since when.
//!
//! Two accesses of different threads to one byte race when one of them writes, not both are atomic (or
//! volatile), and nothing orders them. What orders them is a barrier of the block, which starts a new
//! epoch for all, or `bar.warp.sync`, which starts one for the accesses within a warp. A barrier or a
//! warp sync of only some threads counts as one of all: that may hide a race, and never invents one.

use super::error::{Access, FaultKind};

/// Who touched a byte last. Several threads of one epoch are kept as "some of a warp" or "some of the
/// block", which is all that a later access needs to know.
#[derive(Debug, Clone, Copy, Default)]
struct Touch {
    /// Zero when never.
    epoch: u32,
    warp_epoch: u32,
    /// One of the threads.
    thread: u32,
    line: u32,
    who: Who,
    strong: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Who {
    #[default]
    One,
    Warp,
    Block,
}

/// The thread that touches, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Toucher {
    /// Linear index in the block.
    pub(super) thread: u32,
    pub(super) line: u32,
    /// Atomic or volatile: such accesses do not race with each other.
    pub(super) strong: bool,
}

/// Shared memory. One object serves all blocks of a launch, one after the other.
pub(super) struct Shared {
    bytes: Vec<u8>,
    /// One a byte; of a word that was never touched in parts, only that of the first byte counts.
    writes: Vec<Touch>,
    reads: Vec<Touch>,
    /// Words of four bytes that were touched in parts.
    split: Vec<bool>,
    epoch: u32,
    /// Bytes written before this epoch belong to an earlier block: they are uninitialised.
    first_epoch: u32,
    warp_epochs: [u32; 32],
}

impl Shared {
    pub(super) fn new(bytes: usize) -> Self {
        let words = bytes.div_ceil(4);
        let untouched = vec![Touch::default(); words * 4];
        Self {
            bytes: vec![0; bytes],
            writes: untouched.clone(),
            reads: untouched,
            split: vec![false; words],
            epoch: 0,
            first_epoch: 0,
            warp_epochs: [0; 32],
        }
    }

    /// Forgets everything, for the next block.
    pub(super) fn start_block(&mut self) {
        self.barrier();
        self.first_epoch = self.epoch;
    }

    /// Orders all accesses so far before all that follow.
    pub(super) fn barrier(&mut self) {
        if self.epoch == u32::MAX {
            // Epochs start anew: what the block has written stays so.
            for touch in &mut self.writes {
                touch.epoch = u32::from(touch.epoch >= self.first_epoch && touch.epoch > 0);
            }
            self.reads.fill(Touch::default());
            (self.epoch, self.first_epoch) = (1, 1);
        }
        self.epoch += 1;
    }

    /// Orders the accesses of a warp's lanes among each other.
    pub(super) fn warp_sync(&mut self, warp: u32) {
        let epoch = &mut self.warp_epochs[warp as usize % 32];
        *epoch = epoch.wrapping_add(1);
    }

    /// The range of an access, when it lies inside.
    fn range(&self, offset: u64, length: usize) -> Result<std::ops::Range<usize>, Access> {
        let end = offset.checked_add(length as u64).filter(|&end| end <= self.bytes.len() as u64);
        let all = self.bytes.len() as u64;
        match end {
            Some(end) => Ok(offset as usize..end as usize),
            None => {
                Err(Access::OutOfBounds { address: offset, bytes: length as u64, nearest: Some((0, all)) })
            }
        }
    }

    /// Gives each byte of a word its own touches, when an access is of less than the word. Accesses are
    /// aligned, so only one that is shorter than a word can be.
    fn split(&mut self, range: &std::ops::Range<usize>) {
        let word = range.start / 4;
        if range.len() >= 4 || range.is_empty() || self.split[word] {
            return;
        }
        self.split[word] = true;
        let (write, read) = (self.writes[word * 4], self.reads[word * 4]);
        self.writes[word * 4..][..4].fill(write);
        self.reads[word * 4..][..4].fill(read);
    }

    /// How far the touches at a byte reach.
    fn step(&self, at: usize) -> usize {
        if self.split[at / 4] { 1 } else { 4 }
    }

    pub(super) fn load(&mut self, offset: u64, into: &mut [u8], by: Toucher) -> Result<(), FaultKind> {
        let fault = |access| FaultKind::Memory { space: "shared", store: false, access };
        let range = self.range(offset, into.len()).map_err(fault)?;
        self.split(&range);
        let mut at = range.start;
        while at < range.end {
            let write = self.writes[at];
            if write.epoch < self.first_epoch || write.epoch == 0 {
                let bytes = into.len() as u64;
                return Err(fault(Access::Uninitialised { address: offset, bytes }));
            }
            if self.races(write, by) {
                return Err(race(at, false, true, write, by));
            }
            let read = self.reads[at];
            // Readers of the whole block are the most that a touch can say.
            if read.who != Who::Block || read.strong || read.epoch != self.epoch {
                self.reads[at] = self.merged(read, by);
            }
            at += self.step(at);
        }
        into.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    pub(super) fn store(&mut self, offset: u64, from: &[u8], by: Toucher) -> Result<(), FaultKind> {
        let range = self.range(offset, from.len());
        let range = range.map_err(|access| FaultKind::Memory { space: "shared", store: true, access })?;
        self.split(&range);
        let mut at = range.start;
        while at < range.end {
            let (write, read) = (self.writes[at], self.reads[at]);
            if self.races(write, by) {
                return Err(race(at, true, true, write, by));
            }
            if self.races(read, by) {
                return Err(race(at, true, false, read, by));
            }
            self.writes[at] = self.merged(write, by);
            at += self.step(at);
        }
        self.bytes[range].copy_from_slice(from);
        Ok(())
    }

    fn warp_epoch(&self, thread: u32) -> u32 {
        self.warp_epochs[(thread / 32) as usize % 32]
    }

    fn races(&self, touch: Touch, by: Toucher) -> bool {
        if touch.epoch != self.epoch || (touch.strong && by.strong) {
            return false;
        }
        let same_warp = touch.thread / 32 == by.thread / 32;
        match touch.who {
            Who::One if touch.thread == by.thread => false,
            Who::One | Who::Warp if same_warp => touch.warp_epoch == self.warp_epoch(by.thread),
            _ => true,
        }
    }

    /// A touch after one more thread has touched.
    fn merged(&self, touch: Touch, by: Toucher) -> Touch {
        let warp_epoch = self.warp_epoch(by.thread);
        let mut new = Touch {
            epoch: self.epoch,
            warp_epoch,
            thread: by.thread,
            line: by.line,
            who: Who::One,
            strong: by.strong,
        };
        if touch.epoch != self.epoch
            || (touch.who == Who::One && touch.thread == by.thread && touch.strong == by.strong)
        {
            return new;
        }
        let same_warp = touch.thread / 32 == by.thread / 32;
        new.strong = touch.strong && by.strong;
        new.who = match touch.who {
            Who::One if touch.thread == by.thread => Who::One,
            Who::One | Who::Warp if same_warp && touch.warp_epoch == warp_epoch => Who::Warp,
            // Earlier ones of this warp are ordered before this; for other warps this one speaks for all.
            Who::One | Who::Warp if same_warp => Who::One,
            _ => Who::Block,
        };
        new
    }
}

fn race(at: usize, store: bool, other_wrote: bool, touch: Touch, by: Toucher) -> FaultKind {
    debug_assert!(touch.thread != by.thread || touch.who != Who::One);
    FaultKind::SharedRace {
        offset: at as u64,
        store,
        other: touch.thread,
        other_wrote,
        other_line: touch.line,
    }
}
