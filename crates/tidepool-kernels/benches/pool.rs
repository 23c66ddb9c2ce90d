//! Pooling bags of 20 int4 rows of dimension 64, by every instruction set of this CPU, the scalar
//! reference being the baseline. `l2`: the table stays in the second-level cache. `memory`: it is larger
//! than any cache, so what is measured is how the kernel waits for memory (on 4 KiB pages).
//!
//! `cargo bench -p tidepool-kernels`; criterion's elements are rows.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidepool_kernels::{Isa, RowKernel};
use tidepool_types::{RowFormat, mix64};

const DIM: u32 = 64;
const BAG: usize = 20;
/// Bags per measured call: enough distinct ids that no cache below the table's own remembers them.
const BAGS: usize = 4096;

/// `rows` stored rows, each of other bytes: scale 1/8 and bias -1, so that sums stay finite.
fn table(rows: usize, row_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; rows * row_bytes];
    for (row, at) in bytes.chunks_exact_mut(row_bytes).zip(0u64..) {
        let (codes, scale_bias) = row.split_at_mut(row_bytes - 4);
        for (chunk, lane) in codes.chunks_mut(8).zip(0u64..) {
            chunk.copy_from_slice(&mix64(at * 8 + lane).to_le_bytes()[..chunk.len()]);
        }
        scale_bias.copy_from_slice(&[0x00, 0x30, 0x00, 0xbc]);
    }
    bytes
}

fn pool(c: &mut Criterion) {
    let row_bytes = RowFormat::Int4.row_bytes(DIM);
    for (place, table_bytes) in [("l2", 512 << 10), ("memory", 1 << 30)] {
        let rows = table_bytes / row_bytes;
        let bytes = table(rows, row_bytes);
        let mut group = c.benchmark_group(format!("pool_int4_dim64_bag20/{place}"));
        group.throughput(Throughput::Elements((BAGS * BAG) as u64));
        group.measurement_time(Duration::from_secs(5));
        for isa in Isa::available() {
            let Some(kernel) = RowKernel::with_isa(RowFormat::Int4, DIM, isa) else { continue };
            let mut next_id = 0u64;
            group.bench_function(BenchmarkId::from_parameter(isa), |b| {
                let mut acc = [0.0; DIM as usize];
                let mut bag: [&[u8]; BAG] = [&[]; BAG];
                b.iter(|| {
                    for _ in 0..BAGS {
                        for row in &mut bag {
                            next_id += 1;
                            let at = mix64(next_id) as usize % rows * row_bytes;
                            *row = &bytes[at..at + row_bytes];
                        }
                        acc.fill(0.0);
                        kernel.accumulate(&bag, &mut acc);
                        black_box(&mut acc);
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, pool);
criterion_main!(benches);
