//! Composite tables: an id is any `u64`, each of several hashes gives it one row of a dense table, and its
//! vector is composed of those rows.
//!
//! So a table of few rows serves any number of ids: two ids often share a row and almost never share all of
//! them. Nothing is stored for an id, hence every id has its rows and none is missing, unless the table is
//! empty. With [`mix64`] of `docs/table-format.md`, in a table of `rows` rows,
//!
//! ```text
//! row of hash k  = high 64 bits of mix64(id ^ seed_k) * rows        (a 128-bit product)
//! default seed_k = mix64(build_seed + (k + 1) * 0x9e3779b97f4a7c15)  for k = 0, 1, ...: splitmix64
//! ```

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{keying::Keying, mix::mix64};

/// The most hashes of a composite table. With rows of at most [`MAX_DIM`](crate::MAX_DIM) elements, a vector
/// has at most 65,536, which is also the widest input of a model.
pub const MAX_HASHES: usize = 64;

/// The step of splitmix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// How a vector is composed of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Combine {
    /// One after the other, in the order of the seeds: `[hashes * dim]`.
    Concat,
    /// Added up, in the order of the seeds: `[dim]`.
    Sum,
}

impl Combine {
    /// The number that stands for it on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Concat => 1,
            Self::Sum => 2,
        }
    }

    /// The one whose [`code`](Self::code) this is.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Concat),
            2 => Some(Self::Sum),
            _ => None,
        }
    }

    /// The word used in manifests and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Concat => "concat",
            Self::Sum => "sum",
        }
    }
}

impl fmt::Display for Combine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Combine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Concat, Self::Sum]
            .into_iter()
            .find(|combine| combine.as_str() == text)
            .ok_or_else(|| format!("unknown combination {text:?}: concat or sum"))
    }
}

/// How the ids of a composite table find their rows, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Composite {
    /// One per hash, 1 to [`MAX_HASHES`], all different.
    pub seeds: Vec<u64>,
    /// How the rows become one vector.
    pub combine: Combine,
}

impl Composite {
    /// With the default seeds: the outputs of splitmix64 that begins with `build_seed`.
    #[must_use]
    pub fn from_build_seed(build_seed: u64, hashes: u8, combine: Combine) -> Self {
        let seed = |k: u64| mix64(build_seed.wrapping_add(k.wrapping_mul(STEP)));
        Self { seeds: (1..=u64::from(hashes)).map(seed).collect(), combine }
    }

    /// How many rows an id has.
    #[must_use]
    pub fn hashes(&self) -> usize {
        self.seeds.len()
    }

    /// The row that the hash of `seed` gives to `id` in a table of `rows` rows; 0 when there are none.
    #[inline]
    #[must_use]
    pub const fn row(id: u64, seed: u64, rows: u64) -> u64 {
        ((mix64(id ^ seed) as u128 * rows as u128) >> 64) as u64
    }

    /// The rows of `id` in a table of `rows` rows, in the order of the seeds. The same row may come twice.
    pub fn rows(&self, id: u64, rows: u64) -> impl Iterator<Item = u64> {
        self.seeds.iter().map(move |seed| Self::row(id, *seed, rows))
    }

    /// Elements of a vector that is composed of rows of `dim` elements.
    #[must_use]
    pub fn vector_dim(&self, dim: u32) -> u32 {
        match self.combine {
            Combine::Concat => dim.saturating_mul(u32::try_from(self.seeds.len()).unwrap_or(u32::MAX)),
            Combine::Sum => dim,
        }
    }

    /// The vector of one id; `rows` are its rows `[hashes, dim]`, in the order of the seeds.
    #[must_use]
    pub fn compose(&self, rows: Vec<f32>) -> Vec<f32> {
        let dim = rows.len() / self.seeds.len().max(1);
        match self.combine {
            Combine::Concat => rows,
            Combine::Sum if dim == 0 => Vec::new(),
            Combine::Sum => {
                let mut sum = vec![0.0; dim];
                for row in rows.chunks_exact(dim) {
                    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
                sum
            }
        }
    }

    /// All that keeps a table of this keying from being composite.
    pub(crate) fn problems(&self, keying: Keying) -> Vec<String> {
        let mut problems = Vec::new();
        if keying != Keying::Dense {
            problems.push(format!("composite: the keying must be dense, it is {keying}"));
        }
        let hashes = self.seeds.len();
        if hashes == 0 || hashes > MAX_HASHES {
            problems.push(format!("composite: {hashes} hashes; there must be 1 to {MAX_HASHES}"));
        }
        let mut seen = BTreeSet::new();
        let twice: BTreeSet<_> = self.seeds.iter().filter(|seed| !seen.insert(**seed)).collect();
        problems.extend(twice.into_iter().map(|seed| format!("composite: the seed {seed} stands twice")));
        problems
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOLDEN_SEEDS: [u64; 4] =
        [0x63cb_e1e4_5932_0dd7, 0x044c_3cd7_f43c_661c, 0xe698_4080_bab1_2a02, 0x953a_eb70_673e_29cb];
    const GOLDEN_ROWS: [(u64, [u64; 4]); 5] = [
        (0, [36_471_766, 12_114_665, 40_519_137, 35_485_146]),
        (1, [1_606_624, 74_351_217, 11_539_424, 53_166_442]),
        (42, [66_699_010, 69_012_667, 66_034_705, 37_335_006]),
        (0xdead_beef, [12_938_022, 76_455_755, 30_854_511, 19_168_022]),
        (u64::MAX, [33_019_402, 12_050_716, 43_086_487, 69_461_808]),
    ];

    /// The seeds and rows that docs/table-format.md lists, computed once with arbitrary-precision integers.
    #[test]
    fn golden_rows() {
        let composite = Composite::from_build_seed(7, 4, Combine::Concat);
        assert_eq!(composite.seeds, GOLDEN_SEEDS);
        for (id, rows) in GOLDEN_ROWS {
            assert_eq!(composite.rows(id, 80_000_000).collect::<Vec<_>>(), rows, "id {id}");
        }
    }

    #[test]
    fn rows_are_spread_evenly_and_hashes_do_not_follow_each_other() {
        const ROWS: u64 = 16;
        const PER_CELL: u64 = 400;
        for build_seed in [0, 1, u64::MAX] {
            let composite = Composite::from_build_seed(build_seed, 3, Combine::Sum);
            // Ids as people number them, and ids that differ in high bits only.
            for shift in [0, 40] {
                let mut cells = vec![[0u64; 3]; (ROWS * ROWS) as usize];
                for n in 0..ROWS * ROWS * PER_CELL {
                    let rows: Vec<_> = composite.rows(n << shift, ROWS).collect();
                    for (pair, (a, b)) in [(0, 1), (0, 2), (1, 2)].into_iter().enumerate() {
                        cells[(rows[a] * ROWS + rows[b]) as usize][pair] += 1;
                    }
                }
                for pair in 0..3 {
                    let square = |cell: &[u64; 3]| (cell[pair] as f64 - PER_CELL as f64).powi(2);
                    let chi2 = cells.iter().map(square).sum::<f64>() / PER_CELL as f64;
                    // 255 degrees of freedom: a standard deviation is 22.6.
                    assert!((chi2 - 255.0).abs() < 5.0 * 22.6, "{build_seed} {shift} {pair}: {chi2}");
                }
            }
        }
    }

    #[test]
    fn vectors_are_composed_in_the_order_of_the_seeds() {
        let concat = Composite { seeds: vec![3, 1], combine: Combine::Concat };
        let sum = Composite { combine: Combine::Sum, ..concat.clone() };
        let rows = vec![1.0, 2.0, 10.0, 20.0];
        assert_eq!((concat.vector_dim(2), concat.compose(rows.clone())), (4, rows.clone()));
        assert_eq!((sum.vector_dim(2), sum.compose(rows)), (2, vec![11.0, 22.0]));
        assert!(sum.compose(Vec::new()).is_empty());
    }

    #[test]
    fn words_and_codes_come_back() {
        for combine in [Combine::Concat, Combine::Sum] {
            assert_eq!(combine.as_str().parse(), Ok(combine));
            assert_eq!(Combine::from_code(combine.code()), Some(combine));
        }
        assert_eq!(Combine::from_code(0), None);
        assert!("mean".parse::<Combine>().is_err());
    }

    proptest! {
        #[test]
        fn every_id_has_its_rows(id: u64, build_seed: u64, hashes in 1u8..=64, rows in 1u64..) {
            let composite = Composite::from_build_seed(build_seed, hashes, Combine::Concat);
            prop_assert_eq!(composite.problems(Keying::Dense), Vec::<String>::new());
            let found: Vec<_> = composite.rows(id, rows).collect();
            prop_assert_eq!(found.len(), usize::from(hashes));
            prop_assert!(found.iter().all(|row| *row < rows));
            prop_assert!(composite.rows(id, 0).all(|row| row == 0));
        }
    }
}
