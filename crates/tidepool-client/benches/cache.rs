//! What a hit in the cache of rows costs: a lookup all of whose ids are known, from the deduplicated ids to
//! rows. `hot`: the same ids again and again. `spread`: ids all over a cache of a million rows.
//!
//! `cargo bench -p tidepool-client --bench cache`; criterion's elements are ids.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidepool_client::bench_cache::HitPath;

const ROWS: u64 = 1_000_000;

fn hits(c: &mut Criterion) {
    // INT4 rows of dimension 32 and 64.
    for dim in [32, 64] {
        let path = HitPath::new(dim, 256 << 20, ROWS);
        let mut group = c.benchmark_group(format!("cache_hit/dim{dim}"));
        group
            .sample_size(20)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(2));
        for batch in [100u64, 10_000] {
            group.throughput(Throughput::Elements(batch));
            let hot: Vec<u64> = (0..batch).collect();
            group.bench_function(BenchmarkId::new("hot", batch), |b| {
                b.iter(|| assert_eq!(path.read(black_box(&hot)), batch));
            });
            let mut from = 0;
            group.bench_function(BenchmarkId::new("spread", batch), |b| {
                b.iter(|| {
                    // A prime, so that every row has its turn.
                    let ids: Vec<u64> = (0..batch).map(|n| (from + n * 7919) % ROWS).collect();
                    from += batch * 7919;
                    assert_eq!(path.read(black_box(&ids)), batch);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, hits);
criterion_main!(benches);
