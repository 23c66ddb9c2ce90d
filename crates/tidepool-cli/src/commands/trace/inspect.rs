//! `tidepool trace inspect`: what a trace holds.

use std::{fs::File, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use tidepool_bench::trace::{Distribution, TraceSummary, summarize};
use tidepool_client::trace::{Ending, TraceReader};

use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file.
    file: PathBuf,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let reading = || format!("reading {}", args.file.display());
    let mut reader = TraceReader::new(File::open(&args.file).with_context(reading)?).with_context(reading)?;
    let summary = summarize(&mut reader).with_context(reading)?;
    if let Some(Ending::Cut { lost_bytes, .. }) = reader.ending() {
        output.line(format!(
            "warning: {} was cut off; what is whole is read, {lost_bytes} bytes after it are not",
            args.file.display()
        ));
    }
    show(&summary, output);
    let mut object = serde_json::to_value(&summary)?;
    object["file"] = json!(args.file.display().to_string());
    output.object(object);
    Ok(())
}

fn show(summary: &TraceSummary, output: Output) {
    output.line(format!(
        "{} lookups of {} in {:.1} s, {:.1}/s; every {}. was to be recorded, {} were dropped",
        summary.requests,
        summary.source,
        summary.seconds,
        summary.requests_per_second,
        summary.every,
        summary.dropped
    ));
    output.line(format!("{} ids, {:.0}/s", summary.ids, summary.ids_per_second));
    let head = ["mean", "p50", "p99", "max"].map(|word| format!("{word:>10}")).concat();
    output.line(format!("{:<40}{head}", ""));
    let line = |what: &str, of: &Distribution| {
        let Distribution { mean, p50, p99, max } = of;
        output.line(format!("{what:<40}{mean:>10.1}{p50:>10}{p99:>10}{max:>10}"));
    };
    line("ids a lookup", &summary.ids_per_request);
    line("bags a lookup", &summary.bags_per_request);
    for table in &summary.tables {
        line(&format!("{}: ids a bag", table.table_version), &table.ids_per_bag);
        line(&format!("{}: ids a lookup", table.table_version), &table.ids_per_request);
        output.line(format!(
            "{:<40}{} ids, {} of them unique; {:.1} % ask for the first 1 % of those, {:.1} % for the first one",
            "",
            table.ids,
            table.unique_ids,
            100.0 * table.top_percent_share,
            100.0 * table.top_id_share
        ));
    }
    for tenant in &summary.tenants {
        output.line(format!("tenant {:?}: {} lookups, {} ids", tenant.tenant, tenant.requests, tenant.ids));
    }
}
