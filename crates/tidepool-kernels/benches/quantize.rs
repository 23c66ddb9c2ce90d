//! Quantizing Gaussian rows by every instruction set of this CPU, the scalar reference being the baseline.
//! `cache`: the values stay in the second-level cache. `memory`: they stream through it.
//!
//! `cargo bench -p tidepool-kernels --bench quantize`; criterion's elements are rows.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidepool_kernels::{Isa, Quantizer, RowKernel};
use tidepool_types::{RowFormat, mix64};

const DIMS: [u32; 3] = [32, 64, 128];

/// The sum of twelve uniform numbers is close to a Gaussian one, and needs no logarithm.
fn gaussian(at: u64) -> f32 {
    let words = [mix64(2 * at), mix64(2 * at + 1)];
    let uniform = |part: u64| (words[(part / 6) as usize] >> (10 * (part % 6)) & 0x3ff) as f32 / 1024.0;
    (0..12).map(uniform).sum::<f32>() - 6.0
}

fn quantize(c: &mut Criterion) {
    let kinds = [
        (RowFormat::Int4, Quantizer::MinMax),
        (RowFormat::Int8, Quantizer::MinMax),
        (RowFormat::Int4, Quantizer::Optimized),
    ];
    for (place, values_bytes) in [("cache", 512 << 10), ("memory", 128 << 20)] {
        let values: Vec<f32> = (0..values_bytes as u64 / 4).map(gaussian).collect();
        for (format, quantizer) in kinds {
            // What is bound by arithmetic takes as long wherever the values are.
            if place == "memory" && quantizer == Quantizer::Optimized {
                continue;
            }
            for dim in DIMS {
                let mut group = c.benchmark_group(format!("quantize_{format}_{quantizer}/{place}/dim{dim}"));
                group.sample_size(10).warm_up_time(Duration::from_millis(300));
                group.measurement_time(Duration::from_secs(1));
                for isa in Isa::available() {
                    // The reference's fused arithmetic is a call per operation: fewer rows will do.
                    let slow = isa == Isa::Scalar && quantizer == Quantizer::Optimized;
                    let values = if slow { &values[..64 * dim as usize] } else { &values[..] };
                    group.throughput(Throughput::Elements(values.len() as u64 / u64::from(dim)));
                    let Some(kernel) = RowKernel::with_isa(format, dim, isa) else { continue };
                    let mut stored = vec![0; kernel.row_bytes()];
                    group.bench_function(BenchmarkId::from_parameter(isa), |b| {
                        b.iter(|| {
                            for row in values.chunks_exact(dim as usize) {
                                let written = kernel.quantize_with(quantizer, row, &mut stored);
                                assert!(written.is_ok(), "finite values of small magnitude");
                                black_box(&mut stored);
                            }
                        });
                    });
                }
                group.finish();
            }
        }
    }
}

criterion_group!(benches, quantize);
criterion_main!(benches);
