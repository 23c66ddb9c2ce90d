//! The static plan beside tract and ONNX Runtime, on one thread, by turns:
//! `TIDEPOOL_ORT_PYTHON=data/ort/bin/python taskset -c 1 cargo bench -p tidepool-dense --bench engines`,
//! where that Python has `onnxruntime==1.31.1` (`scripts/bench-dense.sh` sees to it). Without it the bench says so and
//! leaves that column out. `MODEL BATCH` as arguments choose one case.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench may panic, and prints"
)]

mod models;
#[path = "../../tests/it/onnx.rs"]
#[expect(dead_code, reason = "it is made for the tests, which use all of it")]
mod onnx;
mod peers;

use std::time::{Duration, Instant};

use onnx::numbers;
use tidepool_dense::{DenseBatch, DenseModel};
use tidepool_types::{ModelSpec, Side};

/// Turns that each engine takes, and how long it runs each time.
const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(60);
/// Rows of a run.
const BATCHES: [usize; 4] = [1, 64, 512, 2048];

/// A model of reference, ready to run.
struct Case {
    spec: ModelSpec,
    model: DenseModel,
    path: std::path::PathBuf,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let once = std::env::args().any(|argument| argument == "--test");
    let dir = tempfile::tempdir().unwrap();
    println!(
        "microseconds per run, median of {TURNS} turns (lowest to highest); ratios above 1: the plan is faster"
    );
    if !once {
        products();
    }
    for (name, graph, flops) in models::all() {
        if arguments.first().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let path = dir.path().join(format!("{name}.onnx"));
        let text = models::contract(&graph);
        std::fs::write(&path, graph.bytes()).unwrap();
        let spec = ModelSpec::from_toml(&text).unwrap();
        let model = DenseModel::load(&path, &spec, &|_| None).unwrap();
        if arguments.get(1).is_some_and(|what| what == "steps") {
            model.steps().iter().for_each(|step| println!("{step}"));
            continue;
        }
        let case = Case { spec, model, path };
        for rows in if once { vec![1] } else { BATCHES.to_vec() } {
            if arguments.get(1).is_none_or(|wanted| *wanted == rows.to_string()) {
                measure(name, &case, rows, flops, if once { 1 } else { TURNS });
            }
        }
    }
}

/// Each engine by turns, so that what disturbs one disturbs all.
fn measure(name: &str, case: &Case, rows: usize, flops: f64, turns: usize) {
    let inputs = |rows_of_users: usize| -> Vec<Vec<f32>> {
        let width = case.spec.inputs.iter().zip(case.model.widths()).enumerate();
        let values = width.map(|(at, (input, &width))| {
            let records = if input.side == Side::User { rows_of_users } else { rows };
            numbers(at as u64, records * width).collect()
        });
        values.collect()
    };
    // The same work for all engines: each row is a request of its own.
    let (apart, shared) = (inputs(rows), inputs(1));
    let own: Vec<u32> = (0..rows as u32).collect();
    let one = vec![0; rows];
    let (apart_values, shared_values): (Vec<&[f32]>, Vec<&[f32]>) =
        (apart.iter().map(Vec::as_slice).collect(), shared.iter().map(Vec::as_slice).collect());
    let each = DenseBatch { rows, requests: rows, request_of: &own, inputs: &apart_values };
    let together = DenseBatch { rows, requests: 1, request_of: &one, inputs: &shared_values };
    let mut tract = peers::Tract::load(&case.path, &apart, rows);
    let mut onnx_runtime = peers::OnnxRuntime::start(&case.path, rows);
    let mut taken: [Vec<f64>; 4] = Default::default();
    let run = |batch: &DenseBatch<'_>| {
        case.model.run(batch).unwrap();
    };
    for _ in 0..=turns {
        taken[0].push(turn(|| run(&each)));
        taken[1].push(turn(|| tract.run()));
        if let Some(peer) = &mut onnx_runtime {
            taken[2].push(peer.turn(TURN));
        }
        taken[3].push(turn(|| run(&together)));
    }
    // The first turn warms up.
    let figures = taken.map(|taken| Figure::of(taken.get(1..).unwrap_or_default()));
    let [plan, tract, onnx_runtime, shared] = &figures;
    let gigaflops = flops * rows as f64 / plan.median / 1e3;
    let ratio = |other: &Figure| if other.median > 0.0 { other.median / plan.median } else { f64::NAN };
    println!(
        "{name:>9} {rows:>5}: plan {plan} ({gigaflops:.0} GFLOP/s), tract {tract} = {:.2}x, ONNX Runtime {onnx_runtime} = {:.2}x, plan for one user {shared} = {:.2}x",
        ratio(tract),
        ratio(onnx_runtime),
        plan.median / shared.median
    );
}

/// Microseconds per run, over one turn.
fn turn(mut run: impl FnMut()) -> f64 {
    let began = Instant::now();
    let mut runs = 0;
    while runs == 0 || began.elapsed() < TURN {
        run();
        runs += 1;
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(runs)
}

/// A median with its spread.
struct Figure {
    median: f64,
    lowest: f64,
    highest: f64,
}

impl Figure {
    fn of(taken: &[f64]) -> Self {
        let mut taken = taken.to_vec();
        taken.sort_by(f64::total_cmp);
        let at = |place: usize| taken.get(place).copied().unwrap_or(0.0);
        Self { median: at(taken.len() / 2), lowest: at(0), highest: at(taken.len().saturating_sub(1)) }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} ({:.0} to {:.0})", self.median, self.lowest, self.highest)
    }
}

/// What a library of matrix products reaches here, with its weights packed anew at each call as it does.
fn products() {
    for (m, k, n) in [(64, 448, 448), (512, 448, 448), (512, 448, 2048)] {
        let (a, b): (Vec<f32>, Vec<f32>) = (numbers(1, m * k).collect(), numbers(2, k * n).collect());
        let mut c = vec![0.0f32; m * n];
        let mut taken: Vec<f64> =
            (0..TURNS).map(|_| turn(|| peers::multiply((m, k, n), &a, &b, &mut c))).collect();
        taken.sort_by(f64::total_cmp);
        let gigaflops = 2.0 * (m * k * n) as f64 / taken[TURNS / 2] / 1e3;
        println!("the gemm crate: [{m}, {k}] x [{k}, {n}]: {gigaflops:.0} GFLOP/s");
    }
}
