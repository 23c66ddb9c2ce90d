//! Pooled lookups over a table larger than the caches: ids to sums through the function that a node
//! calls, beside the gather limit: the same kind of ids, the same rows and pages, touching each cache line of
//! each row once and adding one word per line, at the best of a few prefetch distances.
//!
//! No batch is repeated, so nothing is in a cache because the bench put it there. The three are timed in
//! turn, one batch each, and the ratios of a round are printed with their spread:
//! `cargo bench -p tidepool-table --bench lookup`. `TIDEPOOL_BENCH_ROWS` is the size of the tables
//! (20 M), which are built once under the target directory; `TIDEPOOL_BENCH_RESIDENCY` is where their rows
//! lie: `mapped`, `copied`, or `auto` as in a node.
#![expect(clippy::unwrap_used, reason = "a bench may end there")]

use std::{
    hint::black_box,
    ops::ControlFlow,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidepool_kernels::RowKernel;
use tidepool_table::{
    Bags, LayoutReader, LayoutView, LookupScratch, MemoryUse, Pooled, Residency, Smaps, TableBuilder,
    TableSpec, prefetch_all,
};
use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableVersion, mix64};

const DIM: u32 = 64;
const BAG: usize = 20;
const BAGS: usize = 1000;
const PARTITIONS: u32 = 16;
const DISTANCES: [usize; 6] = [8, 16, 24, 32, 48, 64];

fn rows() -> u64 {
    // The gate only sees that it runs.
    let default = if cfg!(debug_assertions) { 100_000 } else { 20_000_000 };
    std::env::var("TIDEPOOL_BENCH_ROWS").map_or(default, |rows| rows.parse().unwrap())
}

/// The id of row number `n` of a hashed table; dense ids are the numbers themselves.
fn id(keying: Keying, n: u64) -> u64 {
    match keying {
        Keying::Dense => n,
        Keying::Hashed => mix64(n ^ 0x7461_626c_6521),
    }
}

fn table(keying: Keying) -> LayoutView {
    let name = |text: &str| Name::new(text).unwrap();
    let spec = TableSpec {
        table_version: TableVersion { table: name("bench"), version: name("v1") },
        dim: DIM,
        format: RowFormat::Int4,
        keying,
        partitions: PartitionCount::new(PARTITIONS).unwrap(),
        default_row: Vec::new(),
        composite: None,
        full_keys: false,
        seed: 1,
    };
    let kernel = RowKernel::new(spec.format, DIM);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("lookup-{keying}-{}", rows()));
    if !dir.exists() {
        let mut builder = TableBuilder::new(spec).unwrap();
        let mut row = vec![0; kernel.row_bytes()];
        for n in 0..rows() {
            for (at, word) in row.chunks_mut(8).enumerate() {
                word.copy_from_slice(&mix64(n << 4 | at as u64).to_le_bytes()[..word.len()]);
            }
            // A scale and a bias of 1.
            row[32..].copy_from_slice(&[0, 0x3c, 0, 0x3c]);
            builder.push_stored(id(keying, n), &row).unwrap();
        }
        builder.publish(&dir, &mut |_, _| ()).unwrap();
    }
    let reader = LayoutReader::open(&dir).unwrap();
    reader
        .partitions()
        .iter()
        .for_each(|file| file.warm_up(None, &mut |_, _| ControlFlow::Continue(())).unwrap());
    let mut view = reader.into_view(kernel);
    let used = memory_use(&view);
    let copy = match std::env::var("TIDEPOOL_BENCH_RESIDENCY").map_or(Residency::Auto, |r| r.parse().unwrap())
    {
        // What a node does, for all partitions together, because here they are small.
        Residency::Auto => used.lacks_huge_pages(used.lookup_bytes),
        residency => residency == Residency::Copied,
    };
    if copy {
        for file in view.clone().partitions() {
            view.insert(file.meta().partition, Arc::new(file.to_copied().unwrap()));
        }
    }
    let used = memory_use(&view);
    eprintln!(
        "{keying}: {} MB that lookups read, {} MB in memory, {} MB of it on huge pages{}",
        used.lookup_bytes / 1_000_000,
        used.resident_bytes / 1_000_000,
        used.huge_page_bytes / 1_000_000,
        if copy { ", copied" } else { ", mapped" }
    );
    view
}

fn memory_use(view: &LayoutView) -> MemoryUse {
    let smaps = Smaps::read().unwrap_or_default();
    view.partitions().map(|file| file.memory_use(&smaps)).fold(MemoryUse::default(), |a, b| MemoryUse {
        lookup_bytes: a.lookup_bytes + b.lookup_bytes,
        resident_bytes: a.resident_bytes + b.resident_bytes,
        huge_page_bytes: a.huge_page_bytes + b.huge_page_bytes,
        huge_page_limit_bytes: a.huge_page_limit_bytes + b.huge_page_limit_bytes,
    })
}

/// Batches without end, each of other ids.
struct Batches {
    keying: Keying,
    state: u64,
    ids: Vec<[u8; 8]>,
    members: Vec<[u8; 4]>,
    lengths: Vec<[u8; 4]>,
}

impl Batches {
    fn new(keying: Keying) -> Self {
        Self {
            keying,
            state: 0,
            ids: Vec::new(),
            members: (0..(BAG * BAGS) as u32).map(u32::to_le_bytes).collect(),
            lengths: vec![(BAG as u32).to_le_bytes(); BAGS],
        }
    }

    fn next(&mut self) {
        self.ids.clear();
        for _ in 0..BAG * BAGS {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let n = (u128::from(mix64(self.state)) * u128::from(rows())) >> 64;
            self.ids.push(id(self.keying, n as u64).to_le_bytes());
        }
    }
}

/// One of the things that are timed: a table, its batches, and room to answer in.
struct Subject {
    view: LayoutView,
    batches: Batches,
    scratch: LookupScratch,
    out: Pooled,
}

impl Subject {
    fn new(keying: Keying) -> Self {
        Self {
            view: table(keying),
            batches: Batches::new(keying),
            scratch: LookupScratch::default(),
            out: Pooled::default(),
        }
    }

    /// Time of one batch, pooled.
    fn pool(&mut self) -> Duration {
        self.batches.next();
        let Batches { ids, members, lengths, .. } = &self.batches;
        let begin = Instant::now();
        let bags = Bags { members, lengths, weights: None };
        self.view.pool(ids, bags, &mut self.scratch, &mut self.out).unwrap();
        let took = begin.elapsed();
        black_box(&self.out);
        assert_eq!(self.out.missing.count, 0);
        took
    }

    /// Time of one batch of dense ids whose addresses are known, touched.
    fn touch(&mut self, distance: usize) -> Duration {
        self.batches.next();
        let schema = self.view.schema();
        let rows: Vec<&[u8]> = self
            .batches
            .ids
            .iter()
            .map(|id| {
                let id = u64::from_le_bytes(*id);
                let at = schema.keying.locate(id, schema.partitions);
                self.view.partition(at.partition).unwrap().find(id).unwrap()
            })
            .collect();
        let begin = Instant::now();
        black_box(touch_all(&rows, distance));
        begin.elapsed()
    }
}

/// One word of each cache line of each row, added up.
fn touch_all(rows: &[&[u8]], distance: usize) -> u64 {
    let mut sum = 0u64;
    for (at, row) in rows.iter().enumerate() {
        if let Some(later) = rows.get(at + distance) {
            prefetch_all(later);
        }
        let address = row.as_ptr().addr();
        let mut line = 0;
        while line < row.len() {
            let from = line.min(row.len() - 8);
            sum = sum.wrapping_add(row[from..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word)));
            line = ((address + line) / 64 + 1) * 64 - address;
        }
    }
    sum
}

fn median(mut numbers: Vec<f64>) -> [f64; 3] {
    numbers.sort_by(f64::total_cmp);
    [5, 50, 95].map(|percent| numbers[(numbers.len() - 1) * percent / 100])
}

/// Ratios of times taken in turn.
fn ratios(dense: &mut Subject, hashed: &mut Subject, distance: usize) {
    let rounds = if cfg!(debug_assertions) { 3 } else { 300 };
    let (mut rates, mut of_limit, mut of_dense) = (vec![Vec::new(); 3], Vec::new(), Vec::new());
    for _ in 0..rounds {
        let times = [dense.touch(distance), dense.pool(), hashed.pool()].map(|t| t.as_secs_f64());
        for (rates, time) in rates.iter_mut().zip(times) {
            rates.push((BAG * BAGS) as f64 / time / 1e6);
        }
        of_limit.push(times[0] / times[1]);
        of_dense.push(times[2] / times[1]);
    }
    for (what, rates) in ["gather limit", "dense pool", "hashed pool"].iter().zip(rates) {
        let [low, mid, high] = median(rates);
        eprintln!("{what:>14}: {mid:.1} M rows/s ({low:.1} to {high:.1})");
    }
    for (what, ratios) in
        [("dense pool / gather limit", of_limit), ("time of hashed / time of dense", of_dense)]
    {
        let [low, mid, high] = median(ratios);
        eprintln!("{what}: {mid:.3} ({low:.3} to {high:.3})");
    }
}

fn bench(criterion: &mut Criterion) {
    let (mut dense, mut hashed) = (Subject::new(Keying::Dense), Subject::new(Keying::Hashed));
    // Three times over all pages, so that no page is met for the first time while a clock runs.
    let swept = |subject: &mut Subject, distance| {
        median((0..40).map(|_| subject.touch(distance).as_secs_f64()).collect())[1]
    };
    let best = |subject: &mut Subject| {
        let times = DISTANCES.map(|distance| (swept(subject, distance), distance));
        times.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1
    };
    let distance = best(&mut dense);
    eprintln!(
        "{} rows of {} bytes, dim {DIM}, int4, {}, bags of {BAG}, prefetch distance of the limit: {distance}",
        rows(),
        dense.view.kernel().row_bytes(),
        dense.view.kernel().isa()
    );
    ratios(&mut dense, &mut hashed, distance);
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements((BAG * BAGS) as u64)).sample_size(20);
    let timed = |times: u64, mut one: Box<dyn FnMut() -> Duration + '_>| (0..times).map(|_| one()).sum();
    group.bench_function("gather_limit", |b| b.iter_custom(|n| timed(n, Box::new(|| dense.touch(distance)))));
    group.bench_function("dense", |b| b.iter_custom(|n| timed(n, Box::new(|| dense.pool()))));
    group.bench_function("hashed", |b| b.iter_custom(|n| timed(n, Box::new(|| hashed.pool()))));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
