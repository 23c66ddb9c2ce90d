//! Pooling bags of 20 int4 rows by every instruction set of this CPU, the scalar reference being the
//! baseline. `cache`: the table stays in the second-level cache, so what is measured is instructions.
//! `memory`: it is larger than any cache (on pages as the allocator gives them), and rows are asked for one
//! bag ahead by `prefetch_read`. `touch` beside them is the physical limit: the same ids and addresses, each
//! cache line of each row touched once, nothing decoded.
//!
//! `cargo bench -p tidepool-kernels --bench pool`; criterion's elements are rows.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidepool_kernels::{Isa, RowKernel, prefetch_read};
use tidepool_types::{RowFormat, mix64};

const DIMS: [u32; 3] = [32, 64, 128];
const BAG: usize = 20;
const LINE_BYTES: usize = 64;

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

/// One word of each cache line of a row.
fn touch(row: &[u8]) -> u64 {
    let lines = row.iter().step_by(LINE_BYTES).chain(row.last());
    lines.fold(0, |sum, &byte| sum.wrapping_add(u64::from(byte)))
}

fn pool(c: &mut Criterion) {
    // The lists of ids: small enough to leave the cache to the table, or long enough that no cache below
    // the table's own remembers the rows of the last round.
    for (place, table_bytes, bags) in [("cache", 256 << 10, 512), ("memory", 1 << 30, 65_536)] {
        for dim in DIMS {
            let row_bytes = RowFormat::Int4.row_bytes(dim);
            let rows = table_bytes / row_bytes;
            let bytes = table(rows, row_bytes);
            let ids: Vec<u32> = (0..bags * BAG).map(|at| (mix64(at as u64) % rows as u64) as u32).collect();
            let row = |id: u32| &bytes[id as usize * row_bytes..][..row_bytes];
            let ahead = if place == "memory" { BAG } else { 0 };

            let mut group = c.benchmark_group(format!("pool_int4_bag20/{place}/dim{dim}"));
            group.throughput(Throughput::Elements(ids.len() as u64));
            group.sample_size(10).warm_up_time(Duration::from_millis(300));
            group.measurement_time(Duration::from_secs(1));
            for isa in Isa::available() {
                let Some(kernel) = RowKernel::with_isa(RowFormat::Int4, dim, isa) else { continue };
                group.bench_function(BenchmarkId::from_parameter(isa), |b| {
                    let mut acc = vec![0.0; dim as usize];
                    let mut bag: [&[u8]; BAG] = [&[]; BAG];
                    b.iter(|| {
                        for (first, bag_ids) in (0..).step_by(BAG).zip(ids.chunks_exact(BAG)) {
                            if ahead > 0 {
                                let next = &ids[(first + ahead).min(ids.len())..];
                                next.iter().take(BAG).for_each(|&id| prefetch_read(row(id)));
                            }
                            for (slot, &id) in bag.iter_mut().zip(bag_ids) {
                                *slot = row(id);
                            }
                            acc.fill(0.0);
                            kernel.accumulate(&bag, &[], &mut acc);
                            black_box(&mut acc);
                        }
                    });
                });
            }
            group.bench_function("touch", |b| {
                b.iter(|| {
                    let mut sum = 0u64;
                    for (at, &id) in ids.iter().enumerate() {
                        if ahead > 0 {
                            ids.get(at + ahead).into_iter().for_each(|&id| prefetch_read(row(id)));
                        }
                        sum = sum.wrapping_add(touch(row(id)));
                    }
                    black_box(sum)
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, pool);
criterion_main!(benches);
