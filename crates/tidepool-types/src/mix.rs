//! `mix64`: the bijection on `u64` that spreads ids over partitions and over the index.

/// Scrambles an id: the finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
/// number generators", OOPSLA 2014, with Stafford's variant 13 constants).
///
/// It is a bijection, so distinct ids never collide and [`unmix64`] gives the id back. Its golden
/// vectors stand in `docs/table-format.md`; they are part of the file format and never change.
#[inline]
#[must_use]
pub const fn mix64(id: u64) -> u64 {
    let mut z = id;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Gives the id whose [`mix64`] is `mixed`.
#[inline]
#[must_use]
pub const fn unmix64(mixed: u64) -> u64 {
    // A xorshift by s is undone by xoring the shifts s, 2s, ... that still fit 64 bits; a multiplication
    // by the inverse of the constant modulo 2^64.
    let mut z = mixed;
    z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    z ^ (z >> 30) ^ (z >> 60)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The vectors of `docs/table-format.md`, computed once with arbitrary-precision integers.
    const GOLDEN: [(u64, u64); 6] = [
        (0, 0x0000_0000_0000_0000),
        (1, 0x5692_161d_100b_05e5),
        (2, 0xdbd2_3897_3a2b_148a),
        (42, 0xa759_ea27_d472_7622),
        (0xdead_beef, 0x4e06_2702_ec92_9eea),
        (u64::MAX, 0xb4d0_55fc_f2cb_bd7b),
    ];

    #[test]
    fn golden_vectors() {
        for (id, mixed) in GOLDEN {
            assert_eq!(mix64(id), mixed, "mix64({id})");
            assert_eq!(unmix64(mixed), id, "unmix64({mixed:#x})");
        }
    }

    proptest! {
        #[test]
        fn unmix_undoes_mix(id in any::<u64>()) {
            prop_assert_eq!(unmix64(mix64(id)), id);
            prop_assert_eq!(mix64(unmix64(id)), id);
        }
    }
}
