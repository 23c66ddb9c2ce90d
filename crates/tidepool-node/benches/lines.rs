//! Where two lines of a node's configuration are to be drawn: `inline_max_rows`, up to which a lookup is answered
//! where it arrives, and `piece_rows`, the size of the pieces that larger ones are cut into. No network: the
//! service alone, one lookup at a time, with a pool of one thread per core.
//!
//! `inline` is the work itself. `pool` hands the same work to a thread in one piece: what it takes longer is the
//! price of handing it over. `pieces_N` cuts it into pieces of N rows: with idle cores it should take less than
//! `pool`, and how little the pieces may be before they cost more than they bring is the line. Rows are counted
//! as the node counts them: ids, bags of 20 and one feature; table of 4 million int4 rows of dimension 64, hashed.
//!
//! `cargo bench -p tidepool-node --bench lines`; criterion's elements are ids.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should stop where it stands")]

use std::{cell::Cell, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidepool_kernels::RowKernel;
use tidepool_node::in_process::InProcess;
use tidepool_proto::{pack::pack, v1};
use tidepool_table::{LayoutReader, LayoutView, TableBuilder, TableSpec};
use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableVersion, mix64};
use tokio::runtime::Runtime;

const ROWS: u64 = 4_000_000;
const DIM: u32 = 64;
const BAG: usize = 20;
/// Requests that are asked in turn, so that none finds its rows in a near cache from the time before.
const REQUESTS: u64 = 64;

fn table(dir: &std::path::Path) -> Arc<LayoutView> {
    let name = |text: &str| Name::new(text).unwrap();
    let spec = TableSpec {
        table_version: TableVersion { table: name("pin"), version: name("v1") },
        dim: DIM,
        format: RowFormat::Int4,
        keying: Keying::Hashed,
        partitions: PartitionCount::new(8).unwrap(),
        default_row: Vec::new(),
        composite: None,
        full_keys: false,
        seed: 1,
    };
    let mut builder = TableBuilder::new(spec).unwrap();
    let mut row = [0.0f32; DIM as usize];
    for id in 0..ROWS {
        row.iter_mut()
            .zip(0..)
            .for_each(|(value, at)| *value = (mix64(id ^ at << 40) % 256) as f32 / 64.0 - 2.0);
        builder.push(id, &row).unwrap();
    }
    builder.publish(dir, &mut |_, _| {}).unwrap();
    let reader = LayoutReader::open(dir).unwrap();
    Arc::new(reader.into_view(RowKernel::new(RowFormat::Int4, DIM)))
}

fn request(ids: usize, seed: u64) -> v1::LookupRequest {
    let all: Vec<u64> = (0..ids as u64).map(|at| mix64(seed << 32 | at) % ROWS).collect();
    let mut lengths = vec![BAG as u32; ids / BAG];
    lengths.extend((!ids.is_multiple_of(BAG)).then_some((ids % BAG) as u32));
    let feature = v1::FeatureRequest {
        table_version: Some(v1::TableVersion { table: "pin".into(), version: "v1".into() }),
        partitions: 8,
        wire_form: v1::WireForm::Pool.into(),
        ids: pack(&all),
        bag_lengths: pack(&lengths),
        ..v1::FeatureRequest::default()
    };
    v1::LookupRequest { features: vec![feature], ..v1::LookupRequest::default() }
}

fn lines(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let view = table(&dir.path().join("v1"));
    let runtime = Runtime::new().unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let node =
        |inline, piece| InProcess::new(Name::new("n").unwrap(), &view, threads, inline, piece).unwrap();
    let mut ways =
        vec![("inline".to_owned(), node(u64::MAX, u64::MAX)), ("pool".to_owned(), node(0, u64::MAX))];
    ways.extend([512, 1024, 2048, 4096, 8192, 16384].map(|rows| (format!("pieces_{rows}"), node(0, rows))));

    for ids in [64, 256, 1024, 2048, 4096, 8192, 16384, 65536] {
        let requests: Vec<_> = (0..REQUESTS).map(|seed| request(ids, seed)).collect();
        let mut group = c.benchmark_group(format!("lookup/{ids}_ids"));
        group.throughput(Throughput::Elements(ids as u64));
        group.sample_size(20).warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(600));
        for (way, node) in &ways {
            let larger =
                way.strip_prefix("pieces_").is_some_and(|rows| rows.parse::<usize>().unwrap() >= ids);
            if larger {
                continue;
            }
            let turn = Cell::new(0);
            group.bench_function(way, |b| {
                b.iter(|| {
                    turn.set((turn.get() + 1) % requests.len());
                    runtime.block_on(node.lookup(requests[turn.get()].clone())).unwrap()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, lines);
criterion_main!(benches);
