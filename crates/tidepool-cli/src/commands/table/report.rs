//! What a manifest reports of its rows, for people: a short form after a build, all of it in `inspect`.

use tidepool_types::{Quantizer, Size, TableManifest};

use crate::output::Output;

/// Two lines: what quantization cost, and what a row takes.
pub(super) fn short(manifest: &TableManifest, output: Output) {
    if let Some(report) = &manifest.quantization {
        let worst = report.worst_rows.first().map_or_else(
            || "no row lost anything".to_owned(),
            |row| format!("worst row {:.4} (id {})", row.relative_l2, row.id),
        );
        let quantizer = quantizer(report.quantizer);
        output
            .line(format!("quantization: {quantizer}, relative L2 error {:.4}, {worst}", report.relative_l2));
    }
    if let Some(bytes) = &manifest.bytes {
        let of =
            |size: Size| format!("{:.2} ({:.1} % of f16)", size.bytes_per_row, 100.0 * size.ratio_to_f16);
        output.line(format!(
            "bytes a row: {} alone, {} in the file, {} with index",
            of(bytes.row),
            of(bytes.file),
            of(bytes.file_with_index)
        ));
    }
}

/// Every figure of the manifest.
pub(super) fn whole(manifest: &TableManifest, output: Output) {
    match &manifest.quantization {
        Some(report) => {
            let quantizer = quantizer(report.quantizer);
            output.line(format!("quantization: {quantizer}, relative L2 error {}", report.relative_l2));
            if !report.worst_rows.is_empty() {
                output.line(format!("  {:<20} {:>12} {:>16}", "worst rows", "relative L2", "largest error"));
            }
            for row in &report.worst_rows {
                let largest =
                    row.largest_absolute_error.map_or_else(|| "not known".into(), |e| e.to_string());
                output.line(format!("  {:<20} {:>12} {largest:>16}", row.id, row.relative_l2));
            }
        }
        None => output.line("quantization: not known, rows were taken as they were stored"),
    }
    if let Some(bytes) = &manifest.bytes {
        output.line(format!("{:<22} {:>12} {:>16} {:>16}", "bytes a row", "stored", "of f16", "of f32"));
        let line = |what: &str, size: Size| {
            let [f16, f32] =
                [size.ratio_to_f16, size.ratio_to_f32].map(|ratio| format!("{:.2} %", 100.0 * ratio));
            output.line(format!("  {what:<20} {:>12.2} {f16:>16} {f32:>16}", size.bytes_per_row));
        };
        line("row", bytes.row);
        line("file", bytes.file);
        line("file with index", bytes.file_with_index);
    }
}

fn quantizer(quantizer: Option<Quantizer>) -> &'static str {
    quantizer.map_or("no scale to choose", Quantizer::as_str)
}
