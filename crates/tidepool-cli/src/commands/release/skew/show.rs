//! What people are shown of a replay: a line per dense model, tables and output.

use tidepool_skew::{CellReport, OnlineReport, OutputReport, ReleaseReport, SkewReport};
use tidepool_train::Estimate;

use crate::{
    columns::{Columns, grouped, harmless},
    output::Output,
};

/// Stands where there is nothing to be said.
const NONE: &str = "-";

pub(super) fn show(report: &SkewReport, bound: f64, output: Output) {
    output.line(format!(
        "model {}: {} requests, {} candidates, {} of them with labels",
        report.model,
        grouped(report.requests),
        grouped(report.candidates),
        grouped(report.labelled_candidates)
    ));
    if let Some(labels) = &report.labels {
        output.line(format!(
            "labels: {} read, {} joined, {} of candidates that stand several times in their request, {} of requests or \
             candidates that the sample does not have",
            grouped(labels.read),
            grouped(labels.joined),
            grouped(labels.ambiguous),
            grouped(labels.unmatched)
        ));
    }
    if let Some(first) = &report.first_damaged_line {
        output.line(format!(
            "{} lines are not whole and were left out (a ranker was killed, or its disk full): {}",
            report.damaged_lines,
            harmless(first)
        ));
    }
    output.line("");
    figures(report, output);
    output.line("");
    output.line("± is one standard error; changes are against the same model with its own tables");
    for release in &report.releases {
        for cell in &release.cells {
            if let Some(problem) = &cell.not_comparable {
                let tables = tables(cell);
                output.line(format!(
                    "{} with the tables of {tables} cannot be run: {problem}",
                    release.release
                ));
            }
        }
    }
    missing(report, output);
    for release in &report.releases {
        if let Some(found) = &release.online {
            online(release, found, bound, output);
        }
    }
    if report.online_of_other_releases > 0 {
        let count = grouped(report.online_of_other_releases);
        output.line(format!("{count} requests were answered by releases that are not judged here"));
    }
}

/// Whose tables a cell has.
pub(super) fn tables(cell: &CellReport) -> String {
    match &cell.only_table {
        None => cell.tables_of.to_string(),
        Some(table) => format!("{}, {table} only", cell.tables_of),
    }
}

fn figures(report: &SkewReport, output: Output) {
    let mut columns = Columns::new(&[
        "model",
        "tables",
        "output",
        ">labels",
        ">log loss",
        ">change",
        ">AUC",
        ">change",
        ">calibration",
        ">its error",
        ">score moves",
    ]);
    for release in &report.releases {
        for cell in release.cells.iter().filter(|cell| cell.not_comparable.is_none()) {
            let tables = if cell.matched { "its own".into() } else { tables(cell) };
            let moves = if cell.matched { NONE.into() } else { format!("{:.4}", cell.score_change.mean) };
            let row = |name: &str, found: Option<&OutputReport>| {
                let change = found.and_then(|found| found.change.as_ref());
                let told = found.map(|found| &found.evaluation);
                [
                    release.release.to_string(),
                    tables.clone(),
                    harmless(name),
                    told.map_or(NONE.into(), |told| grouped(told.examples)),
                    with_error(told.and_then(|told| told.log_loss), 4, ""),
                    signed(change.and_then(|change| change.log_loss_percent), 2, " %"),
                    with_error(told.and_then(|told| told.auc), 4, ""),
                    signed(change.and_then(|change| change.auc), 4, ""),
                    with_error(told.and_then(|told| told.calibration), 3, ""),
                    with_error(told.and_then(|told| told.calibration_error), 3, ""),
                    moves.clone(),
                ]
            };
            if cell.outputs.is_empty() {
                columns.row(row(NONE, None));
            }
            for (name, found) in &cell.outputs {
                columns.row(row(name, Some(found)));
            }
        }
    }
    columns.print("", output);
}

fn with_error(estimate: Option<Estimate>, digits: usize, unit: &str) -> String {
    let Some(Estimate { value, standard_error, .. }) = estimate else { return NONE.into() };
    match standard_error {
        Some(error) => format!("{value:.digits$} ±{error:.digits$}{unit}"),
        None => format!("{value:.digits$}{unit}"),
    }
}

fn signed(estimate: Option<Estimate>, digits: usize, unit: &str) -> String {
    let Some(Estimate { value, standard_error, .. }) = estimate else { return NONE.into() };
    match standard_error {
        Some(error) => format!("{value:+.digits$} ±{error:.digits$}{unit}"),
        None => format!("{value:+.digits$}{unit}"),
    }
}

/// Ids that tables did not have, each table once per dense model: what is asked of it depends on the model's contract.
fn missing(report: &SkewReport, output: Output) {
    let mut columns = Columns::new(&["model", "table", ">ids", ">missing", ">"]);
    let mut shown = Vec::new();
    for release in &report.releases {
        for found in release.cells.iter().flat_map(|cell| &cell.missing) {
            let key = (&release.release, &found.table);
            if shown.contains(&key) {
                continue;
            }
            shown.push(key);
            columns.row([
                release.release.to_string(),
                found.table.clone(),
                grouped(found.ids),
                grouped(found.missing_ids),
                format!("{:.2} %", found.missing_percent),
            ]);
        }
    }
    if !shown.is_empty() {
        output.line("");
    }
    columns.print("", output);
}

fn online(release: &ReleaseReport, found: &OnlineReport, bound: f64, output: Output) {
    output.line(format!(
        "release {} online: {} requests, {} scores and outputs, {} of them ({:.3} %) differ by more than {bound} from what is \
         computed here; at most {:.3e}, {:.3e} in the mean; {} requests were left out, being answered without some ids or \
         from other tables",
        release.release,
        grouped(found.requests),
        grouped(found.values),
        grouped(found.beyond),
        found.beyond_percent,
        found.max_difference,
        found.mean_difference,
        grouped(found.not_comparable_requests)
    ));
}
