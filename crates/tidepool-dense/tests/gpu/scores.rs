//! The same scores as on the CPU, within bounds that follow from each model and batch: `CudaModel::bounds` says how far a run
//! of some precision may be from the exact scores, and the CPU's is one in f32. In f32 that holds always; in TF32 and bf16
//! with the confidence that `cuda/bound.rs` states.
//!
//! A device that takes an option and computes in f32 would pass that, so some score of every model must differ from f32's. And bounds
//! must be tight enough to find a model that is wrong: one with two weights in each other's place, or without a bias.

use std::thread;

use tidepool_dense::{CudaModel, CudaOptions, DenseBatch, DenseError, Precision};

use crate::{
    load, models,
    onnx::Graph,
    oracle::{Batch, Case},
    run, small_buckets,
};

/// Rows and requests: one row, buckets' edges from both sides, many requests, and batches that are cut.
const SIZES: [(usize, usize); 11] =
    [(1, 1), (4, 4), (4, 1), (5, 2), (16, 2), (16, 3), (16, 16), (17, 8), (40, 8), (41, 1), (90, 30)];

fn compare(name: &str, case: &Case, options: &CudaOptions) {
    let model = load(case, options);
    for (seed, (rows, requests)) in SIZES.into_iter().enumerate() {
        let batch = case.batch(rows, requests, seed as u64 + 1);
        let (off, what) = worst(case, &batch, &run(&model, &batch).unwrap(), options.precision);
        assert!(off <= 1.0, "{name}, {rows} rows in {requests}, {off} times its bound: {what}");
    }
}

/// How far a score is from the CPU's at most, as a share of what it may be; and which.
fn worst(case: &Case, batch: &Batch, found: &[Vec<f32>], precision: Precision) -> (f64, String) {
    let inputs: Vec<&[f32]> = batch.values.iter().map(Vec::as_slice).collect();
    let &Batch { rows, requests, ref request_of, .. } = batch;
    let dense = DenseBatch { rows, requests, request_of, inputs: &inputs };
    let bounds = |precision| CudaModel::bounds(&case.model, precision, &dense).unwrap();
    let (own, cpu) = (bounds(precision), bounds(Precision::F32));
    let expected = case.run(batch);
    let mut worst = (0.0, String::new());
    assert_eq!(found.len(), expected.len());
    for (output, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "output {output}");
        for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
            let (own, cpu) = (own[output][row], cpu[output][row]);
            // The CPU keeps its own part of the bound.
            let apart = (f64::from(*expected) - cpu.value).abs();
            assert!(apart <= cpu.off, "output {output}, row {row}: the CPU says {expected}, it is {cpu:?}");
            let share = (f64::from(*found) - f64::from(*expected)).abs() / (own.off + cpu.off);
            if share > worst.0 || share.is_nan() {
                worst =
                    (share, format!("output {output}, row {row}: {found}, the CPU says {expected}, {own:?}"));
            }
        }
    }
    worst
}

/// The same within f32's bounds.
fn same(name: &str, case: &Case, batch: &Batch, found: &[Vec<f32>]) {
    let (off, what) = worst(case, batch, found, Precision::F32);
    assert!(off <= 1.0, "{name}: {what}; all are {found:?}");
}

#[test]
fn every_model_scores_as_on_the_cpu() {
    for (name, graph) in models::all() {
        compare(name, &Case::new(graph), &small_buckets());
    }
}

#[test]
fn less_exact_products_stay_within_their_bounds() {
    for (name, graph) in [
        ("dcn_mmoe", models::dcn_mmoe()),
        ("two_tower", models::two_tower()),
        ("dlrm", models::dlrm()),
        ("attention", models::attention()),
    ] {
        let case = Case::new(graph);
        for precision in [Precision::Tf32, Precision::Bf16] {
            let options = CudaOptions { precision, ..small_buckets() };
            compare(name, &case, &options);
            let batch = case.batch(40, 8, 1);
            let scores = |options: &CudaOptions| run(&load(&case, options), &batch).unwrap();
            assert_ne!(scores(&options), scores(&small_buckets()), "{name}: {precision:?} is used");
        }
    }
}

/// A graph with other numbers in one of its tensors.
fn changed(graph: Graph, name: &str, change: impl Fn(&mut [f32])) -> Graph {
    let mut graph = graph;
    let tensor = graph.0.initializer.iter_mut().find(|tensor| tensor.name == name).unwrap();
    let numbers = tensor.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let mut numbers: Vec<f32> = numbers.collect();
    change(&mut numbers);
    tensor.raw_data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    graph
}

#[test]
fn a_model_that_is_wrong_does_not_pass_for_the_right_one() {
    for (name, graph, weights, bias) in [
        ("dcn_mmoe", models::dcn_mmoe as fn() -> Graph, "c1.w", "c1.b"),
        ("two_tower", models::two_tower, "u1.w", "i1.b"),
        ("dlrm", models::dlrm, "bottom.w", "bottom.b"),
    ] {
        let case = Case::new(graph());
        let all = &[Precision::F32, Precision::Tf32, Precision::Bf16][..];
        let swapped = changed(graph(), weights, |numbers| numbers.swap(0, 1));
        let shifted = changed(graph(), weights, |numbers| numbers.rotate_left(1));
        let unbiased = changed(graph(), bias, |numbers| numbers.fill(0.0));
        // One pair of many weights makes less of a difference than bf16 does.
        for (what, wrong, precisions) in
            [("swapped", swapped, &all[..2]), ("shifted", shifted, all), ("unbiased", unbiased, all)]
        {
            let wrong = Case::new(wrong);
            for precision in precisions.iter().copied() {
                let options = CudaOptions { precision, ..small_buckets() };
                let batch = case.batch(40, 8, 1);
                let found = run(&load(&wrong, &options), &batch).unwrap();
                let (off, _) = worst(&case, &batch, &found, precision);
                assert!(off > 1.0, "{name} {what} in {precision:?}: {off}");
            }
        }
    }
}

#[test]
fn a_batch_leaves_nothing_behind_for_the_next() {
    let case = Case::new(models::request_index());
    let model = load(&case, &small_buckets());
    let (large, small) = (case.batch(40, 8, 1), case.batch(33, 3, 2));
    for batch in [&large, &small, &large, &small] {
        same("request_index", &case, batch, &run(&model, batch).unwrap());
    }
}

#[test]
fn threads_share_one_model() {
    let case = Case::new(models::dcn_mmoe());
    let model = load(&case, &CudaOptions { streams: 2, ..small_buckets() });
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let (case, model) = (&case, &model);
            scope.spawn(move || {
                for round in 0..6u64 {
                    let rows = 1 + (thread * 17 + round * 11) as usize % 45;
                    let batch = case.batch(rows, 1 + rows / 9, thread * 100 + round);
                    same("dcn_mmoe", case, &batch, &run(model, &batch).unwrap());
                }
            });
        }
    });
}

#[test]
fn wrong_batches_are_refused_as_on_the_cpu() {
    let case = Case::new(models::two_tower());
    let model = load(&case, &small_buckets());
    let mut batch = case.batch(5, 2, 1);
    assert_eq!(run(&model, &case.batch(0, 1, 1)).unwrap(), [Vec::<f32>::new()]);
    batch.request_of[3] = 2;
    let Err(DenseError::Input { problem, .. }) = run(&model, &batch) else { panic!("accepted") };
    assert_eq!(problem, "row 3 belongs to request 2, there are 2 requests");
    // The model goes on.
    let batch = case.batch(5, 2, 1);
    same("two_tower", &case, &batch, &run(&model, &batch).unwrap());
}

#[test]
fn memory_is_told_for_each_stream_and_bucket() {
    let case = Case::new(models::dlrm());
    let options = CudaOptions { streams: 2, ..small_buckets() };
    let model = load(&case, &options);
    let count = |what: &str, pinned: bool| {
        model.memory().iter().filter(|used| used.what == what && used.pinned == pinned).count()
    };
    assert_eq!(count("arena", false), 2, "{:#?}", model.memory());
    assert_eq!(count("staging", true), 2 * options.buckets.len());
    assert!(model.memory().iter().all(|used| used.bytes > 0 && used.bytes % 256 == 0));
}
