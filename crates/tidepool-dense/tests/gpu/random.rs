//! Seeded random numbers, and names of tables.

use tidepool_kernels::RowKernel;
use tidepool_types::{Name, RowFormat, TableVersion, mix64};

/// The splitmix64 sequence of a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    /// From 0 to `bound - 1`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From -1 to 1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A stored row.
    pub(crate) fn row(&mut self, kernel: &RowKernel) -> Vec<u8> {
        let values: Vec<f32> = (0..kernel.dim()).map(|_| self.number()).collect();
        let mut row = vec![0; kernel.row_bytes()];
        kernel.quantize(&values, &mut row).unwrap();
        row
    }

    pub(crate) fn format(&mut self) -> RowFormat {
        RowFormat::ALL[self.below(4) as usize]
    }
}

pub(crate) fn version(table: &str) -> TableVersion {
    TableVersion { table: Name::new(table).unwrap(), version: Name::new("v1").unwrap() }
}
