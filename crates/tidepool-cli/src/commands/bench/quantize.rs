//! `tidepool bench quantize`: the rows of a file, quantized in memory again and again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use tidepool_bench::quantize::{self, Params, Report};
use tidepool_import::{ArrayPath, ArraySource, RowSource};
use tidepool_kernels::Isa;
use tidepool_types::{Quantizer, RowFormat};

use crate::output::Output;

#[derive(Args)]
pub(crate) struct Quantize {
    /// A .npy file of vectors, which must fit in memory.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// How rows are stored: int4, int8, f16 or f32.
    #[arg(long, default_value = "int4")]
    format: RowFormat,
    /// How scales and biases are chosen: min_max or optimized.
    #[arg(long, default_value = "min_max")]
    quantizer: Quantizer,
    /// The instruction set: scalar, avx2 or avx512. Without it the best that this CPU has.
    #[arg(long)]
    isa: Option<Isa>,
    /// How long to measure; three passes over the rows are timed in any case.
    #[arg(long, default_value_t = 2.0, value_parser = super::seconds)]
    seconds: f64,
    /// Write the stored rows into this file, one after the other.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Quantize, output: Output) -> Result<()> {
    let (dim, values) = read(&args.from).with_context(|| format!("reading {}", args.from.display()))?;
    let params = Params {
        values: &values,
        dim,
        format: args.format,
        quantizer: args.quantizer,
        isa: args.isa,
        time: Duration::from_secs_f64(args.seconds),
    };
    let (report, stored) =
        quantize::run(&params).with_context(|| format!("quantizing {}", args.from.display()))?;
    if let Some(out) = &args.out {
        fs::write(out, &stored).with_context(|| format!("writing {}", out.display()))?;
    }
    show(&report, output);
    output.object(serde_json::to_value(&report)?);
    Ok(())
}

fn read(from: &Path) -> Result<(u32, Vec<f32>)> {
    let mut source = ArraySource::open(&ArrayPath::Npy(from.into()), None)?;
    let (mut row, mut values) = (vec![0.0; source.dim() as usize], Vec::new());
    while source.next_row(&mut row)?.is_some() {
        values.extend_from_slice(&row);
    }
    Ok((source.dim(), values))
}

fn show(report: &Report, output: Output) {
    let Report { rows, dim, format, quantizer, isa, passes, machine, .. } = report;
    output.line(format!(
        "{rows} rows of dim {dim}, {format}, {quantizer}; one thread, {isa}, on {}",
        machine.cpu
    ));
    for (clock, of) in
        [("by clock", &report.rows_per_second_spread), ("on a core", &report.rows_per_second_on_cpu)]
    {
        let [median, low, high] = [of.median, of.low, of.high].map(|rate| rate / 1e6);
        output.line(format!("{clock:<10} {median:>9.3} ({low:.3} to {high:.3}) M rows/s in {passes} passes"));
    }
    output.line(format!(
        "mean squared error {:.6e}, relative L2 error {:.6}",
        report.mean_squared_error, report.relative_l2
    ));
}
