//! What the bench says: a line for each case, or one JSON object behind them.

use std::{fmt, fs};

use super::TURNS;

/// Figures of one model at one batch: microseconds per run, and the others' by the plan's, turn by turn.
pub(crate) struct Line {
    pub(crate) model: String,
    pub(crate) rows: usize,
    pub(crate) plan: Figure,
    pub(crate) tract: Figure,
    pub(crate) onnx_runtime: Figure,
    /// The plan, when all rows are of one request.
    pub(crate) one_user: Figure,
    pub(crate) tract_ratio: Figure,
    pub(crate) onnx_runtime_ratio: Figure,
    /// Billions of floating point operations of the plan's products a second, all that it does counted in the time.
    pub(crate) gigaflops: f64,
}

/// A median with its spread; NaN when nothing was taken.
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
}

impl Figure {
    pub(crate) fn of(taken: &[f64]) -> Self {
        let mut taken = taken.to_vec();
        taken.sort_by(f64::total_cmp);
        let at = |place: usize| taken.get(place).copied().unwrap_or(f64::NAN);
        Self { median: at(taken.len() / 2), lowest: at(0), highest: at(taken.len().saturating_sub(1)) }
    }

    fn json(&self) -> String {
        let number = |x: f64| if x.is_finite() { format!("{x:.3}") } else { "null".into() };
        let [median, lowest, highest] = [self.median, self.lowest, self.highest].map(number);
        format!("{{\"median\":{median},\"lowest\":{lowest},\"highest\":{highest}}}")
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median < 20.0 { 2 } else { 0 };
        write!(f, "{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.lowest, self.highest)
    }
}

/// Collects the lines.
pub(crate) struct Report {
    json: bool,
    peak: f64,
    lines: Vec<String>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        let report = Self { json, peak: f64::NAN, lines: Vec::new() };
        report.note(&format!(
            "microseconds of a thread per run, median of {TURNS} turns (lowest to highest); ratios above 1: the plan is faster"
        ));
        report
    }

    /// Says something that is no figure of the report.
    pub(crate) fn note(&self, text: &str) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    /// What this core can do, in billions of floating point operations a second.
    pub(crate) fn peak(&mut self, gigaflops: f64) {
        self.peak = gigaflops;
        self.note(&format!("this core, products and sums in registers alone: {gigaflops:.0} GFLOP/s"));
    }

    pub(crate) fn line(&mut self, line: Line) {
        let Line { model, rows, plan, tract, onnx_runtime, one_user, .. } = &line;
        let (gigaflops, share) = (line.gigaflops, line.gigaflops / self.peak);
        self.note(&format!(
            "{model:>9} {rows:>5}: plan {plan}, {gigaflops:.0} GFLOP/s = {:.0} %; ONNX Runtime {onnx_runtime} = {}x; tract {tract} = {}x; plan for one user {one_user}",
            share * 100.0,
            line.onnx_runtime_ratio,
            line.tract_ratio,
        ));
        let figures = [
            ("plan_us", plan),
            ("onnx_runtime_us", onnx_runtime),
            ("tract_us", tract),
            ("plan_one_user_us", one_user),
            ("onnx_runtime_ratio", &line.onnx_runtime_ratio),
            ("tract_ratio", &line.tract_ratio),
        ];
        let figures: Vec<String> =
            figures.iter().map(|(name, figure)| format!("\"{name}\":{}", figure.json())).collect();
        let figures = figures.join(",");
        let share = if share.is_finite() { format!("{share:.4}") } else { "null".into() };
        self.lines.push(format!(
            "{{\"model\":\"{model}\",\"rows\":{rows},\"gigaflops\":{gigaflops:.2},\"share_of_peak\":{share},{figures}}}"
        ));
    }

    /// The JSON object, if it was asked for. Inputs are the same numbers in every run: their seed is 0.
    pub(crate) fn finish(self) {
        if !self.json {
            return;
        }
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name =
            cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, n)| n);
        let name = name.unwrap_or(std::env::consts::ARCH).replace(['"', '\\'], "");
        let peak = if self.peak.is_finite() { format!("{:.2}", self.peak) } else { "null".into() };
        println!(
            "{{\"schema_version\":1,\"machine\":\"{name}\",\"seed\":0,\"threads\":1,\"turns\":{TURNS},\"peak_gigaflops\":{peak},\"cases\":[{}]}}",
            self.lines.join(",")
        );
    }
}
