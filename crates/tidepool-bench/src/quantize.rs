//! Quantizing rows that are in memory: how many a second, and how far what was stored is from what it was,
//! by the bench's own decoder.

use std::{
    hint::black_box,
    sync::Barrier,
    time::{Duration, Instant},
};

use serde::Serialize;
use tidepool_kernels::{Isa, RowKernel};
use tidepool_types::{Quantizer, RowFormat};

use crate::{BenchError, Machine, Spread, kernel::timer::Timer, oracle::decode};

/// Passes that are timed at least.
const MIN_PASSES: usize = 3;

/// What is quantized, and how.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// The rows, one after the other.
    pub values: &'a [f32],
    /// Elements of a row.
    pub dim: u32,
    /// How rows are stored.
    pub format: RowFormat,
    /// How scales and biases are chosen.
    pub quantizer: Quantizer,
    /// The instruction set; without it the best that this CPU has.
    pub isa: Option<Isa>,
    /// How long to measure; three passes are timed in any case.
    pub time: Duration,
}

/// What was measured, on one thread.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// The instruction set.
    pub isa: &'static str,
    /// Rows of a pass.
    pub rows: usize,
    /// Elements of a row.
    pub dim: u32,
    /// How rows were stored.
    pub format: RowFormat,
    /// How scales and biases were chosen.
    pub quantizer: Quantizer,
    /// Passes over all rows.
    pub passes: usize,
    /// By the clock on the wall: the median.
    pub rows_per_second: f64,
    /// By the clock on the wall.
    pub rows_per_second_spread: Spread,
    /// By the CPU time of the thread.
    pub rows_per_second_on_cpu: Spread,
    /// The mean of `(stored - original)^2` over all elements.
    pub mean_squared_error: f64,
    /// `||stored - original|| / ||original||` over all rows, L2; 0 when all of them are zeros.
    pub relative_l2: f64,
}

/// Quantizes all rows again and again, after one pass that is not timed, and gives the report and the stored
/// rows.
///
/// # Errors
/// [`BenchError`]: no rows, an instruction set that this CPU lacks, a value that cannot be stored.
pub fn run(params: &Params<'_>) -> Result<(Report, Vec<u8>), BenchError> {
    let Params { values, dim, format, quantizer, .. } = *params;
    let isa = params.isa.unwrap_or_else(Isa::detect);
    let kernel = RowKernel::with_isa(format, dim, isa).ok_or(BenchError::NoIsa(isa))?;
    let rows = values.len() / dim as usize;
    if rows == 0 {
        return Err(BenchError::Parameters("at least one row is wanted"));
    }
    let mut stored = vec![0; rows * kernel.row_bytes()];
    let mut pass = || {
        let pairs = values.chunks_exact(dim as usize).zip(stored.chunks_exact_mut(kernel.row_bytes()));
        for (row, (values, stored)) in pairs.enumerate() {
            kernel
                .quantize_with(quantizer, values, stored)
                .map_err(|source| BenchError::Value { row, source })?;
        }
        black_box(&mut stored);
        Ok::<(), BenchError>(())
    };
    pass()?;
    let (mut by_clock, mut on_cpu) = (Vec::new(), Vec::new());
    let alone = Barrier::new(1);
    let began = Instant::now();
    while by_clock.len() < MIN_PASSES || began.elapsed() < params.time {
        let timer = Timer::start(&alone);
        pass()?;
        let timed = timer.stop();
        let rate = |time: Duration| rows as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE);
        by_clock.push(rate(timed.ended.duration_since(timed.began)));
        on_cpu.push(rate(timed.on_cpu));
    }
    let (error, norm) = errors(params, &stored);
    let passes = by_clock.len();
    let by_clock = Spread::of(by_clock);
    let report = Report {
        machine: Machine::here(),
        isa: isa.as_str(),
        rows,
        dim,
        format,
        quantizer,
        passes,
        rows_per_second: by_clock.median,
        rows_per_second_spread: by_clock,
        rows_per_second_on_cpu: Spread::of(on_cpu),
        mean_squared_error: error / values.len() as f64,
        relative_l2: if norm > 0.0 { (error / norm).sqrt() } else { 0.0 },
    };
    Ok((report, stored))
}

/// The squared distance of what is stored, and the squared length of what it was.
fn errors(params: &Params<'_>, stored: &[u8]) -> (f64, f64) {
    let dim = params.dim as usize;
    let mut back = vec![0.0; dim];
    let (mut error, mut norm) = (0.0, 0.0);
    let rows = stored.chunks_exact(params.format.row_bytes(params.dim));
    for (values, stored) in params.values.chunks_exact(dim).zip(rows) {
        decode(params.format, stored, &mut back);
        for (&value, back) in values.iter().zip(&back) {
            let value = f64::from(value);
            error += (value - back) * (value - back);
            norm += value * value;
        }
    }
    (error, norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(values: &[f32], format: RowFormat, quantizer: Quantizer) -> Params<'_> {
        Params { values, dim: 8, format, quantizer, isa: None, time: Duration::ZERO }
    }

    #[test]
    fn rows_are_stored_timed_and_compared() {
        let values: Vec<f32> = (0..80u16).map(|n| f32::from(n * 37 % 101) - 50.0).collect();
        let mut errors = Vec::new();
        for (format, quantizer) in [
            (RowFormat::Int4, Quantizer::MinMax),
            (RowFormat::Int4, Quantizer::Optimized),
            (RowFormat::Int8, Quantizer::MinMax),
            (RowFormat::F32, Quantizer::MinMax),
        ] {
            let (report, stored) = run(&params(&values, format, quantizer)).unwrap();
            assert_eq!((report.rows, report.passes, stored.len()), (10, 3, 10 * format.row_bytes(8)));
            assert!(report.rows_per_second > 0.0 && report.rows_per_second_on_cpu.median > 0.0);
            let mean_square = values.iter().map(|v| f64::from(v * v)).sum::<f64>() / 80.0;
            let relative = (report.mean_squared_error / mean_square).sqrt();
            assert!((relative - report.relative_l2).abs() < 1e-12);
            errors.push(report.relative_l2);
        }
        assert!(errors.is_sorted_by(|a, b| a > b) && errors[3] == 0.0, "{errors:?}");
    }

    #[test]
    fn what_cannot_be_stored_is_named() {
        let none = run(&params(&[1.0; 7], RowFormat::Int4, Quantizer::MinMax));
        assert!(matches!(none, Err(BenchError::Parameters(_))));
        let mut values = [0.0; 24];
        values[20] = f32::NAN;
        let refused = run(&params(&values, RowFormat::Int4, Quantizer::Optimized));
        assert!(matches!(refused, Err(BenchError::Value { row: 2, .. })));
    }
}
