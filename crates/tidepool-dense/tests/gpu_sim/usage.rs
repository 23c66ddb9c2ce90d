//! What a model counts of its batches is what the driver counts.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use tidepool_dense::{
    Around, Bucket, CudaError, CudaModel, CudaOptions, DenseBatch, DenseError, RowFeed, Usage,
    rows::{Position, RowCounts},
    select::SelectRequest,
};
use tidepool_types::{Combine, RowFormat};

use crate::{
    load, models, open, options,
    oracle::{Batch, Case},
    run, same,
    sim::Sim,
};

#[test]
fn usage_is_what_the_driver_counts() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    for graphs in [true, false] {
        let model = CudaModel::load(&device, &case.model, &CudaOptions { graphs, ..options() }).unwrap();
        assert_eq!(model.usage(), Usage::default(), "a load tries itself, which nobody asked for");
        sim.reset();
        // The last is cut into two.
        let rows = [1, 8, 9, 40];
        for rows in rows {
            run(&model, &case.batch(rows, 1, 3)).unwrap();
        }
        let usage = model.usage();
        assert_eq!((usage.batches, usage.rows), (5, rows.iter().sum::<usize>() as u64));
        assert_eq!([usage.bytes_in, usage.bytes_out], sim.counters(["bytes_in", "bytes_out"]));
        let launches = sim.counters(["graph_launches", "launches", "matmuls"]);
        assert_eq!(usage.launches, launches.iter().sum::<u64>(), "graphs: {graphs}");
        assert!(usage.on_device > Duration::ZERO);
        assert_eq!((usage.busy, usage.late), (0, 0));
        // Of the batch that is cut no piece is waited for by another.
        assert_eq!(usage.waited_for_lane, Duration::ZERO, "each had a lane at once");
    }
}

#[test]
fn who_waits_and_who_may_not_are_counted() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::two_tower());
    let options = CudaOptions { deadline: Duration::from_secs(60), streams: 1, waiting: 1, ..options() };
    let model = CudaModel::load(&device, &case.model, &options).unwrap();
    let other = load(&device, &case).unwrap();
    // The first batch has the one lane of its bucket, another waits for it, and a third may not even wait: whoever hears of
    // that first tells the device to go on.
    sim.hang(true);
    let (told, hears) = mpsc::channel();
    thread::scope(|scope| {
        for seed in 0..3 {
            let (told, case, model) = (told.clone(), &case, &model);
            scope.spawn(move || {
                let error = run(model, &case.batch(4, 2, seed)).err();
                let busy = matches!(error, Some(DenseError::Device(CudaError::Busy { .. })));
                told.send(busy).unwrap();
            });
        }
        assert!(hears.recv().unwrap(), "the first to hear anything is the one that may not wait");
        sim.hang(false);
    });
    assert_eq!(model.usage().busy, 1);
    assert!(model.usage().waited_for_lane > Duration::ZERO);
    assert_eq!(other.usage(), Usage::default());
}

/// With one stream a bucket has one lane, which a batch of many pieces puts back and wants again after each of them.
#[test]
fn a_large_batch_keeps_nobody_out_for_longer_than_a_piece_takes() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::two_tower());
    let options = CudaOptions { deadline: Duration::from_secs(60), streams: 1, waiting: 1, ..options() };
    let model = CudaModel::load(&device, &case.model, &options).unwrap();
    let large = case.batch(640, 8, 1);
    sim.reset();
    sim.hang(true);
    let (told, hears) = mpsc::channel();
    thread::scope(|scope| {
        let spawn = |name: &'static str, batch: Batch| {
            let (told, case, model) = (told.clone(), &case, &model);
            scope.spawn(move || {
                let found = run(model, &batch);
                let busy = matches!(found, Err(DenseError::Device(CudaError::Busy { .. })));
                told.send(if busy { "busy" } else { name }).unwrap();
                if !busy {
                    same(case, &batch, &found.unwrap());
                }
            });
        };
        spawn("large", large);
        let begun = Instant::now();
        while sim.counter("copies_in") == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "its first piece is not on the device");
            thread::yield_now();
        }
        // Of two that fit the same bucket one waits, and the other hears that it may not.
        spawn("small", case.batch(20, 4, 2));
        spawn("small", case.batch(20, 4, 3));
        assert_eq!(hears.recv().unwrap(), "busy");
        sim.hang(false);
        assert_eq!([hears.recv().unwrap(), hears.recv().unwrap()], ["small", "large"]);
    });
    let usage = model.usage();
    assert_eq!((usage.batches, usage.busy, usage.late), (21, 1, 0));
    assert!(usage.waited_for_lane > Duration::ZERO);
    assert_eq!(sim.fault(), "");
}

/// The device checks that nothing is read that nobody wrote: a step that looked behind what a batch brings would be found, since
/// no batch before brought as much.
#[test]
fn a_batch_travels_as_long_as_it_is_and_nothing_behind_it_is_read() {
    let sim = Sim::alone();
    let device = open();
    for graph in [models::dcn_mmoe(), models::two_tower(), models::dlrm()] {
        let case = Case::new(graph);
        let options = CudaOptions {
            buckets: vec![Bucket { rows: 64, requests: 16 }],
            streams: 1,
            ..CudaOptions::default()
        };
        let model = CudaModel::load(&device, &case.model, &options).unwrap();
        let mut before = model.usage();
        for rows in [1, 2, 5, 13, 40, 64] {
            let batch = case.batch(rows, rows.div_ceil(4), rows as u64);
            same(&case, &batch, &run(&model, &batch).unwrap());
            let usage = model.usage();
            let brought: usize = batch.values.iter().map(Vec::len).sum();
            // The requests of rows, and the inputs; a header and what arrays are rounded up by are less than 32 bytes each.
            let (needed, arrays) = (4 * (rows + brought), case.spec.inputs.len() + 1);
            let copied = (usage.bytes_in - before.bytes_in) as usize;
            assert!(copied >= needed && copied < needed + 32 * (arrays + 1), "{copied} of {needed}");
            let back = (usage.bytes_out - before.bytes_out) as usize;
            assert_eq!(back, 4 * (rows + 64 * (case.spec.outputs.len() - 1)));
            before = usage;
        }
        assert_eq!(sim.fault(), "");
    }
}

/// What docs/gpu-rows.md says of a model whose item comes as rows: each candidate has one of INT4 at dim 16 and three numbers
/// beside it, and the best 20 come back.
#[test]
fn rows_and_winners_are_all_that_travels() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let options = CudaOptions {
        buckets: vec![Bucket { rows: 1024, requests: 16 }],
        streams: 1,
        ..CudaOptions::default()
    };
    let around = Around {
        tables: vec![(RowFormat::Int4, 16)],
        feeds: vec![RowFeed {
            input: 1,
            table: 0,
            mean: true,
            weighted: false,
            hashes: 1,
            combine: Combine::Concat,
            default_row: Vec::new(),
            ids: 4,
        }],
        resident: false,
        select: Some((case.spec.clone(), 16)),
    };
    let model = CudaModel::load_around(&device, &case.model, &options, Some(&around)).unwrap();
    let row = [0x21; 12];
    for (rows, expected) in [(10, [640, 216]), (100, [3856, 336]), (1000, [36_256, 336])] {
        let (user, context) = (vec![0.25; 8], vec![0.5; 3 * rows]);
        let inputs: [&[f32]; 3] = [&user, &[], &context];
        let request_of = vec![0; rows];
        let batch = DenseBatch { rows, requests: 1, request_of: &request_of, inputs: &inputs };
        let of_rows = rows as u32;
        let request =
            SelectRequest { rows: of_rows, surface: "", outputs: &[1], utility_inputs: &[], top_k: 20 };
        let counts = RowCounts { rows: vec![rows], ids: vec![rows], keys: 0 };
        let before = model.usage();
        let answered = model.answer(&batch, &counts, &[request], |writer| {
            let first: Vec<Position> = (0..rows).map(|_| writer.row(0, &row)).collect::<Result<_, _>>()?;
            first.iter().try_for_each(|position| writer.bag(0, &[*position], &[]))
        });
        let usage = model.usage();
        assert_eq!(answered.unwrap().selected[0].ranked.len(), rows.min(20));
        let moved = [usage.bytes_in - before.bytes_in, usage.bytes_out - before.bytes_out];
        assert_eq!(moved, expected, "{rows} rows");
    }
    // What there is room for, for comparison.
    let room = model.memory().iter().find(|used| used.what == "staging" && used.pinned).unwrap().bytes;
    assert_eq!(room, 87_296);
    assert_eq!(sim.fault(), "");
}
