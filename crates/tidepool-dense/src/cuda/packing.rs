//! Where the arrays of a batch lie in its staging buffer: one behind the other, each as long as the batch has need of it, so
//! that the copy to the device is as long as what it brings.
//!
//! The graph of a bucket is captured once and holds no such place. Heads at the beginning of the buffer do not move; in
//! them stands where each array begins, in units of 16 bytes, and kernels look there. What lies behind the last array is
//! not copied, and nobody reads it.

/// What places are counted in: the widest load of a kernel.
pub(crate) const UNIT: usize = 16;

/// Arrays one behind the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packing {
    end: usize,
}

impl Packing {
    /// From this byte on, rounded up.
    pub(crate) fn new(first: usize) -> Self {
        Self { end: first.next_multiple_of(UNIT) }
    }

    /// Appends an array of so many elements of so many bytes; the byte at which it begins.
    pub(crate) fn push(&mut self, count: usize, size: usize) -> usize {
        let at = self.end;
        self.end += (count * size).next_multiple_of(UNIT);
        at
    }

    /// The byte behind the last array.
    pub(crate) fn end(self) -> usize {
        self.end
    }
}

/// A place as a head has it.
pub(crate) fn units(at: usize) -> u32 {
    // Who sizes a buffer refuses one that is too long for this.
    u32::try_from(at / UNIT).unwrap_or(u32::MAX)
}

/// Numbers as they come back from the device, so many of them.
pub(crate) fn floats(bytes: &[u8], count: usize) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().take(count).map(|number| f32::from_le_bytes(*number))
}

/// The most bytes of a staging buffer.
pub(crate) const MOST: usize = UNIT * u32::MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_aligned_and_do_not_overlap() {
        let mut packing = Packing::new(40);
        assert_eq!([(1, 4), (4, 4), (0, 8), (5, 4)].map(|(n, size)| packing.push(n, size)), [48, 64, 80, 80]);
        assert_eq!((packing.end(), units(80)), (112, 5));
    }
}
