//! What a batch asks of the device, what a model keeps there, and that all of it is given back.

use std::{
    thread,
    time::{Duration, Instant},
};

use tidepool_dense::{Bucket, CudaModel, CudaOptions};

use crate::{load, models, open, oracle::Case, run, same, sim::Sim};

/// What must not change once a model is loaded.
const LIVE: [&str; 4] = ["allocations_live", "bytes_live", "pinned_live", "events_live"];

#[test]
fn a_batch_is_one_copy_in_one_graph_and_one_copy_out() {
    let sim = Sim::alone();
    let device = open();
    for graph in [models::dcn_mmoe(), models::two_tower(), models::dlrm()] {
        let case = Case::new(graph);
        let model = load(&device, &case).unwrap();
        let live = sim.counters(LIVE);
        for (rows, requests) in [(1, 1), (8, 4), (9, 2), (32, 8)] {
            sim.reset();
            let batch = case.batch(rows, requests, 3);
            same(&case, &batch, &run(&model, &batch).unwrap());
            let names = ["copies_in", "graph_launches", "copies_out", "launches", "matmuls", "fills"];
            assert_eq!(sim.counters(names), [1, 1, 1, 0, 0, 0], "{rows} rows");
            assert_eq!(sim.counter("allocations") + sim.counter("pinned_allocations"), 0);
        }
        assert_eq!(sim.counters(LIVE), live, "batches leave nothing on the device");
    }
}

#[test]
fn everything_is_given_back() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dlrm());
    let before = sim.counters(LIVE);
    let model = load(&device, &case).unwrap();
    let told: u64 = model.memory().iter().filter(|used| !used.pinned).map(|used| used.bytes).sum();
    let counted = sim.counter("bytes_live") - before[1];
    // The driver rounds each allocation, by less than 512 bytes.
    assert!(counted >= told && counted < told + 512 * model.memory().len() as u64, "{counted} of {told}");
    run(&model, &case.batch(5, 2, 1)).unwrap();
    drop(model);
    assert_eq!(sim.counters(LIVE), before);
    drop(device);
    assert_eq!(sim.counter("leaks"), 0, "{}", sim.fault());
    assert_eq!(sim.counters(["streams_live", "events_live", "graphs_live", "modules_live"]), [0; 4]);
    assert_eq!(sim.fault(), "");
}

/// Whatever the order in which the device does what it may do in any order, scores are the same. `SEEDS` says how many
/// orders are tried, `SEED` with which to begin.
#[test]
fn scores_do_not_depend_on_when_the_device_works() {
    let number = |name: &str, or: u64| std::env::var(name).map_or(or, |text| text.parse().unwrap());
    let sim = Sim::alone();
    let case = Case::new(models::dcn_mmoe());
    for seed in (number("SEED", 1)..).take(number("SEEDS", 6) as usize) {
        sim.set("seed", seed);
        let model = load(&open(), &case).unwrap();
        thread::scope(|scope| {
            for of in 0..4_u64 {
                let (model, case) = (&model, &case);
                scope.spawn(move || {
                    for round in 0..4 {
                        let batch = case.batch(1 + (of * 7 + round * 5) as usize, 1, of * 10 + round);
                        same(
                            case,
                            &batch,
                            &run(model, &batch).unwrap_or_else(|e| panic!("SEED={seed}: {e}")),
                        );
                    }
                });
            }
        });
        drop(model);
        assert_eq!(sim.fault(), "", "SEED={seed} SEEDS=1");
    }
}

/// While the device does nothing, no piece can be done: what was asked for by then was asked for side by side.
#[test]
fn pieces_of_a_large_batch_run_side_by_side_on_all_streams() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let bucket = |rows, requests| Bucket { rows, requests };
    let options = CudaOptions {
        buckets: vec![bucket(8, 4), bucket(32, 8)],
        streams: 3,
        deadline: Duration::from_secs(60),
        ..CudaOptions::default()
    };
    let model = CudaModel::load(&device, &case.model, &options).unwrap();
    // Of 32, 32, 32, 32 and 5 rows.
    let batch = case.batch(133, 3, 9);
    sim.reset();
    sim.hang(true);
    thread::scope(|scope| {
        let running = scope.spawn(|| run(&model, &batch));
        let until = Instant::now() + Duration::from_secs(60);
        while sim.counter("copies_in") < 3 {
            assert!(Instant::now() < until, "{} pieces", sim.counter("copies_in"));
            thread::yield_now();
        }
        sim.hang(false);
        same(&case, &batch, &running.join().unwrap().unwrap());
    });
    assert_eq!(sim.counters(["copies_in", "graph_launches", "copies_out"]), [5; 3]);
    assert_eq!((model.usage().batches, model.usage().rows), (5, 133));
    // Two large ones at once do not wait for each other's lanes.
    thread::scope(|scope| {
        let large = |seed| {
            let (model, case) = (&model, &case);
            scope.spawn(move || {
                let batch = case.batch(150, 2, seed);
                same(case, &batch, &run(model, &batch).unwrap());
            })
        };
        [1, 2, 3].map(large).into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(sim.fault(), "");
}
