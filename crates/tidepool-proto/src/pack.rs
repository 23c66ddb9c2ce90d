//! Numbers packed into `bytes`, little-endian: how ids, lengths, weights and sums travel.

/// Packs numbers, one after the other.
pub trait Packed: Copy + Sized {
    /// Bytes of one number.
    const BYTES: usize;
    /// Appends the number.
    fn put(self, out: &mut Vec<u8>);
    /// Reads a number from exactly [`BYTES`](Self::BYTES) bytes; a shorter slice reads as if padded with zeros.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! packed {
    ($($number:ty),*) => {$(
        impl Packed for $number {
            const BYTES: usize = size_of::<$number>();
            #[inline]
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            #[inline]
            fn get(bytes: &[u8]) -> Self {
                let mut whole = [0; size_of::<$number>()];
                let len = bytes.len().min(whole.len());
                whole[..len].copy_from_slice(&bytes[..len]);
                Self::from_le_bytes(whole)
            }
        }
    )*};
}
packed!(u32, u64, f32);

/// The bytes of `numbers`.
#[must_use]
pub fn pack<T: Packed>(numbers: &[T]) -> bytes::Bytes {
    let mut out = Vec::with_capacity(numbers.len() * T::BYTES);
    numbers.iter().for_each(|n| n.put(&mut out));
    out.into()
}

/// The numbers in `bytes`, decoded one by one as they are asked for; `None` when a number is cut off.
#[must_use]
pub fn unpack<'a, T: Packed + 'a>(bytes: &'a [u8]) -> Option<impl ExactSizeIterator<Item = T> + Clone + 'a> {
    bytes.len().is_multiple_of(T::BYTES).then(|| bytes.chunks_exact(T::BYTES).map(T::get))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unpack_undoes_pack(ids: Vec<u64>, lengths: Vec<u32>) {
            prop_assert_eq!(unpack::<u64>(&pack(&ids)).unwrap().collect::<Vec<_>>(), ids);
            prop_assert_eq!(unpack::<u32>(&pack(&lengths)).unwrap().collect::<Vec<_>>(), lengths);
        }
    }

    #[test]
    fn a_cut_number_is_refused() {
        assert!(unpack::<u64>(&[0; 9]).is_none());
        assert!(unpack::<f32>(&[0; 4]).is_some());
    }
}
