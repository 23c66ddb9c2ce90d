//! What a plan costs, known before it runs: memory that a run works in, and operations of its products.

use super::{
    Plan,
    step::{Step, Work},
};
use crate::cpu::{LANES, PANEL, Registers};

impl Plan {
    /// Bytes of the arena that a run of so many rows and requests works in.
    pub(crate) fn arena_bytes(&self, rows: usize, requests: usize) -> u64 {
        let kept = (self.extent.kept as u64).saturating_mul(requests as u64);
        let packed = self.request_steps.iter().chain(&self.row_steps).map(|step| match &step.work {
            Work::Pair { shape, .. } => shape.k.saturating_mul(shape.n.next_multiple_of(PANEL)),
            _ => 0,
        });
        let beside = self.longest_line + packed.max().unwrap_or(0) + 2 * LANES;
        let elements = kept.saturating_add((self.divide(rows, requests).kept_at + beside) as u64);
        elements.saturating_mul(size_of::<f32>() as u64).saturating_add(size_of::<Registers>() as u64)
    }

    /// Floating point operations of the products, per request and per row: a product and a sum are two.
    pub(crate) fn flops(&self) -> [u64; 2] {
        let of = |step: &Step| match &step.work {
            Work::Product(product) => {
                let calls = product.calls.iter().filter_map(|call| product.weights.get(call.weights));
                calls.map(|weights| 2 * (product.m * weights.depth() * weights.columns()) as u64).sum()
            }
            Work::Pair { shape, places, .. } => 2 * (places.len() * shape.m * shape.k * shape.n) as u64,
            _ => 0,
        };
        [&self.request_steps, &self.row_steps].map(|steps| steps.iter().map(of).sum())
    }
}
