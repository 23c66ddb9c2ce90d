//! What a batch costs at the very least: bytes that must move, multiplications that must be made. From it come the floors
//! of docs/gpu.md, and the shares of them that the bench reports.

use super::{
    program::{Do, Left, MatmulTask, Origin, Program},
    record::Bucket,
    staging::Staging,
};
use crate::plan::view::BufferId;

/// The least that a graph of a bucket does, whatever the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of the copy to the device, of a batch that fills the bucket.
    pub copied_in: u64,
    /// Bytes of the copy back.
    pub copied_out: u64,
    /// Bytes that steps read of the device's memory and write there, if no step found anything in a cache.
    pub moved: u64,
    /// Of these, weights.
    pub weights: u64,
    /// Multiplications and additions of products, each counted.
    pub operations: u64,
    /// Kernels and products that are launched.
    pub launches: u64,
}

/// A device by its data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Bytes per second of its memory.
    pub memory: f64,
    /// Operations per second of products, in the precision that is meant.
    pub products: f64,
    /// Bytes per second between host and device, one way.
    pub host: f64,
}

impl Cost {
    /// The least time that a device of these rates takes, in microseconds: the copies, and between them what is longer,
    /// bytes over bandwidth or operations over rate.
    #[must_use]
    pub fn floor_micros(&self, rates: &Rates) -> f64 {
        let copies = (self.copied_in + self.copied_out) as f64 / rates.host;
        let work = (self.moved as f64 / rates.memory).max(self.operations as f64 / rates.products);
        (copies + work) * 1e6
    }
}

impl Program {
    /// What a bucket costs.
    pub(crate) fn cost(&self, staging: &Staging) -> Cost {
        let bucket = staging.bucket;
        let float = size_of::<f32>() as u64;
        let copied_in = staging.most(staging.head()) as u64;
        let mut cost = Cost {
            copied_in,
            copied_out: self.outputs as u64 * u64::from(bucket.rows) * float,
            // Spread over the bucket's room before the plan: read and written.
            moved: 2 * copied_in,
            launches: 1 + self.tasks.len() as u64,
            ..Cost::default()
        };
        for task in &self.tasks {
            let space = self.space(task);
            let records = bucket.records(space);
            let width = self.buffers[task.out].width as u64;
            // Reads of at most `per` numbers of each record that there is.
            let read = |buffer: BufferId, per: u64| self.read(bucket, buffer, per) * float;
            let (reads, writes) = match &task.work {
                Do::Map { per_record, loads, .. } => {
                    let per = *per_record as u64;
                    (loads.iter().map(|&load| read(load, per)).sum(), records * per * float)
                }
                Do::Start { from: Origin::Buffer(from) } => (read(*from, width), records * width * float),
                Do::Start { from: Origin::Fixed(_) } => (width * float, records * width * float),
                Do::Pack(pack) => {
                    let element = self.precision.element_bytes() as u64;
                    let rows = records * pack.m as u64;
                    (read(pack.source, (pack.m * pack.k) as u64), rows * pack.padded as u64 * element)
                }
                Do::Matmul(matmul) => {
                    let &MatmulTask { left, m, columns, k, adds, .. } = matmul;
                    let element = self.precision.element_bytes() as u64;
                    let (m, columns, k) = (m as u64, columns as u64, k as u64);
                    let weights = k * columns * element;
                    cost.weights += weights;
                    cost.operations += 2 * records * m * columns * k;
                    let left = match left {
                        Left::Packed => records * m * k * element,
                        Left::Buffer(buffer, _) => read(buffer, m * k),
                    };
                    let out = records * m * columns * float;
                    (weights + left + if adds { out } else { 0 }, out)
                }
                Do::Product { a, count, shape, .. } => {
                    let products = (count * shape.m * shape.columns) as u64;
                    cost.operations += 2 * records * products * shape.k as u64;
                    (read(*a, (count * shape.m * shape.k) as u64), records * products * float)
                }
                Do::Pair { a, b, shape, count, .. } => {
                    let (count, m, n, k) = (*count as u64, shape.m as u64, shape.n as u64, shape.k as u64);
                    cost.operations += 2 * records * count * m * n * k;
                    (read(*a, count * m * k) + read(*b, count * n * k), records * count * m * n * float)
                }
                Do::Line { source, lines, len, .. } => {
                    (read(*source, (lines * len) as u64), records * width * float)
                }
                Do::Pick { source, count, .. } => (read(*source, *count as u64), records * width * float),
            };
            cost.moved += reads + writes;
        }
        cost
    }

    /// Numbers that are read of a buffer: `per` of each record, but no more than it has.
    fn read(&self, bucket: Bucket, buffer: BufferId, per: u64) -> u64 {
        let known = self.buffers[buffer];
        match known.width as u64 {
            0 => per,
            width => per.min(width) * bucket.records(known.space),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_memory_and_arithmetic_is_the_floor() {
        let rates = Rates { memory: 1e12, products: 1e13, host: 1e10 };
        let cost = Cost {
            copied_in: 9_000,
            copied_out: 1_000,
            moved: 4_000_000,
            operations: 20_000_000,
            ..Cost::default()
        };
        assert!((cost.floor_micros(&rates) - (1.0 + 4.0)).abs() < 1e-9);
        let cost = Cost { operations: 100_000_000, ..cost };
        assert!((cost.floor_micros(&rates) - (1.0 + 10.0)).abs() < 1e-9);
    }
}
