//! The static plan beside tract and ONNX Runtime, on one thread, by turns, in time of that thread:
//! `TIDEPOOL_ORT_PYTHON=data/ort/bin/python taskset -c 1 cargo bench -p tidepool-dense --bench engines`,
//! where that Python has `onnxruntime==1.31.1` (`scripts/bench-dense.sh` sees to it). Without it the bench says so and
//! leaves that column out. `MODEL [BATCH|steps]` as arguments choose one case; a MODEL that is a folder is that of a
//! release. With `--json` the last line is one JSON object and all else goes to stderr.
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
mod report;

use std::{path::Path, time::Duration};

use models::Wanted;
use onnx::numbers;
use report::{Figure, Line, Report};
use tidepool_dense::{DenseBatch, DenseModel};
use tidepool_types::Side;

/// Turns that each engine takes, and how long it runs each time.
const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(60);
/// Rows of a run.
const BATCHES: [usize; 4] = [1, 100, 500, 4096];

fn main() {
    let (flags, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let once = flags.iter().any(|flag| flag == "--test");
    let mut report = Report::new(flags.iter().any(|flag| flag == "--json"));
    let dir = tempfile::tempdir().unwrap();
    let mut models = match arguments.first() {
        Some(folder) if Path::new(folder).is_dir() => vec![models::released(Path::new(folder))],
        _ => models::drawn(dir.path()),
    };
    if let Some(name) = arguments.first().filter(|name| !Path::new(name).is_dir()) {
        models.retain(|model| model.name == *name);
    }
    let what = arguments.get(1).map(String::as_str);
    if what == Some("steps") {
        for model in models {
            model.load().steps().iter().for_each(|step| println!("{step}"));
        }
        return;
    }
    if !once {
        limits(&mut report);
    }
    for wanted in models {
        let model = wanted.load();
        for rows in if once { vec![1] } else { BATCHES.to_vec() } {
            if what.is_none_or(|wanted| wanted == rows.to_string()) {
                report.line(measure(&wanted, &model, rows, if once { 1 } else { TURNS }));
            }
        }
    }
    report.finish();
}

/// Each engine by turns, so that what disturbs one disturbs all.
fn measure(wanted: &Wanted, model: &DenseModel, rows: usize, turns: usize) -> Line {
    let inputs = |rows_of_users: usize| -> Vec<Vec<f32>> {
        let width = wanted.spec.inputs.iter().zip(model.widths()).enumerate();
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
    let names: Vec<&str> = wanted.spec.inputs.iter().map(|input| input.name.as_str()).collect();
    let mut tract = peers::Tract::load(&wanted.path, &names, &apart, rows);
    let mut onnx_runtime = peers::OnnxRuntime::start(&wanted.path, rows);
    let mut taken: [Vec<f64>; 4] = Default::default();
    let run = |batch: &DenseBatch<'_>| {
        model.run(batch).unwrap();
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
    let taken = taken.map(|taken| taken.get(1..).unwrap_or_default().to_vec());
    let ratio = |other: &[f64]| -> Vec<f64> {
        taken[0].iter().zip(other).map(|(plan, other)| other / plan).collect()
    };
    let plan = Figure::of(&taken[0]);
    Line {
        model: wanted.name.clone(),
        rows,
        gigaflops: model.flops().iter().sum::<u64>() as f64 * rows as f64 / plan.median / 1e3,
        plan,
        tract: Figure::of(&taken[1]),
        onnx_runtime: Figure::of(&taken[2]),
        one_user: Figure::of(&taken[3]),
        tract_ratio: Figure::of(&ratio(&taken[1])),
        onnx_runtime_ratio: Figure::of(&ratio(&taken[2])),
    }
}

/// Microseconds of this thread's time per run, over one turn.
fn turn(mut run: impl FnMut()) -> f64 {
    let began = peers::thread_time();
    let mut runs = 0u32;
    loop {
        run();
        runs += 1;
        let taken = peers::thread_time() - began;
        if u128::from(taken) >= TURN.as_nanos() {
            return taken as f64 / 1e3 / f64::from(runs);
        }
    }
}

/// What this core can do at best, and what a library of matrix products reaches, with its weights packed anew at each call
/// as it does.
fn limits(report: &mut Report) {
    let mut flops = f64::NAN;
    let peak: Vec<f64> = (0..TURNS).map(|_| turn(|| flops = peers::peak())).collect();
    // The fastest turn: whatever else runs here only ever slows it down.
    report.peak(flops / Figure::of(&peak).lowest / 1e3);
    for (m, k, n) in [(64, 448, 448), (512, 448, 448), (512, 448, 2048)] {
        let (a, b): (Vec<f32>, Vec<f32>) = (numbers(1, m * k).collect(), numbers(2, k * n).collect());
        let mut c = vec![0.0f32; m * n];
        let taken: Vec<f64> =
            (0..TURNS).map(|_| turn(|| peers::multiply((m, k, n), &a, &b, &mut c))).collect();
        let gigaflops = 2.0 * (m * k * n) as f64 / Figure::of(&taken).median / 1e3;
        report.note(&format!("the gemm crate: [{m}, {k}] x [{k}, {n}]: {gigaflops:.0} GFLOP/s"));
    }
}
