//! What the demo says at its end: the numbers, the promises, and whether each was kept.

use serde::Serialize;
use serde_json::{Value, json};
use tidepool_train::{Interval, Quality};

use super::{
    ranking::{LookupRate, Ranked},
    release::Prepared,
    sizes::TableSizes,
};
use crate::output::Output;

/// Test AUC on MovieLens.
const MOVIELENS_MIN_AUC: f64 = 0.78;
/// Share of the planted optimum's lead over chance that the synthetic data's AUC reaches.
const SYNTHETIC_MIN_SHARE: f64 = 0.7;
/// How far the AUC through the cluster may be from the offline AUC of the same INT4 tables.
const CLUSTER_AUC_TOLERANCE: f64 = 1e-4;
/// What INT4 may cost against f32: AUC, and log loss as a share of itself.
const INT4_AUC_TOLERANCE: f64 = 0.001;
const INT4_LOG_LOSS_TOLERANCE: f64 = 0.003;
/// How much worse ranking must be when no table has the ids, or the tables do not matter.
const TABLES_MIN_GAIN: f64 = 0.05;

/// Everything that the report is made from.
pub(crate) struct Measured<'a> {
    pub(crate) prepared: &'a Prepared,
    pub(crate) ranked: &'a Ranked,
    pub(crate) missing: &'a Quality,
    pub(crate) top: TopFilms,
    pub(crate) rate: &'a LookupRate,
    pub(crate) sizes: Vec<TableSizes>,
    /// Label and base URL of every process.
    pub(crate) urls: Vec<(String, String)>,
    /// Every test user was ranked.
    pub(crate) complete: bool,
    pub(crate) seconds: f64,
}

/// The best films for one user.
#[derive(Debug, Serialize)]
pub(crate) struct TopFilms {
    pub(crate) user_id: u64,
    /// How many films they were chosen from.
    pub(crate) candidates: usize,
    /// Best first.
    pub(crate) films: Vec<Film>,
}

/// A film and its score.
#[derive(Debug, Serialize)]
pub(crate) struct Film {
    pub(crate) item_id: u64,
    pub(crate) title: String,
    pub(crate) year: Option<u16>,
    pub(crate) score: f32,
    /// What the user thought of it, if it is among their held-out ratings.
    pub(crate) liked: Option<bool>,
}

/// A sentence that the demo stands by.
#[derive(Debug, Serialize)]
struct Promise {
    promise: String,
    measured: String,
    kept: bool,
}

/// The whole report.
pub(crate) struct Report<'a> {
    measured: Measured<'a>,
    promises: Vec<Promise>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(measured: Measured<'a>) -> Self {
        let promises = promises(&measured);
        Self { measured, promises }
    }

    pub(crate) fn promises_kept(&self) -> bool {
        self.promises.iter().all(|p| p.kept)
    }

    /// Tables for people; the object for machines.
    pub(crate) fn print(&self, output: Output) {
        self.print_quality(output);
        self.print_sizes(output);
        self.print_serving(output);
        self.print_top(output);
        output.line("");
        for promise in &self.promises {
            let mark = if promise.kept { "kept  " } else { "BROKEN" };
            output.line(format!("{mark} {}: {}", promise.promise, promise.measured));
        }
        output.line(format!("\ndone in {:.1} s", self.measured.seconds));
        output.object(self.object());
    }

    fn print_quality(&self, output: Output) {
        let training = &self.measured.prepared.report;
        let ranked = self.measured.ranked;
        output.line(format!("\n{:<34} {:>8} {:>9}", "test quality", "AUC", "log loss"));
        let row =
            |what: &str, q: &Quality| output.line(format!("{what:<34} {:>8.4} {:>9.4}", q.auc, q.log_loss));
        row("through the cluster, INT4 tables", &ranked.quality);
        let offline = &training.offline;
        for (what, quality) in
            [("f32", &offline.f32), ("f16", &offline.f16), ("INT8", &offline.int8), ("INT4", &offline.int4)]
        {
            row(&format!("offline, {what} tables"), quality);
        }
        row("offline, without pretraining (f32)", &training.without_pretraining);
        row("through the cluster, no id found", self.measured.missing);
        if let Some(optimum) = &training.planted_optimum {
            row("planted optimum", optimum);
        }
        let cost = &training.int4_minus_f32;
        output.line(format!(
            "INT4 less f32, with 95 % intervals of a paired bootstrap ({} resamples): AUC {}, log loss {}",
            cost.resamples,
            interval(&cost.auc, 1.0, ""),
            interval(&cost.log_loss_relative, 100.0, " %"),
        ));
        let wide = |i: &Interval, bound: f64| i.low < -bound || i.high > bound;
        if wide(&cost.auc, INT4_AUC_TOLERANCE) || wide(&cost.log_loss_relative, INT4_LOG_LOSS_TOLERANCE) {
            output.line(format!(
                "{} test examples are too few to bound the cost of INT4 this tightly: the interval is wider than the promise",
                training.test_examples
            ));
        }
    }

    fn print_sizes(&self, output: Output) {
        output.line(format!(
            "\n{:<12} {:>6} {:>4} {:>6} | {:>5} {:>7} {:>7} | {:>11} {:>6} {:>7} | {:>8} {:>8}",
            "table",
            "rows",
            "dim",
            "format",
            "B/row",
            "of f16",
            "of f32",
            "rows + keys",
            "index",
            "file",
            "as f16",
            "as f32"
        ));
        let share = |part: u64, whole: u64| match whole {
            0 => "-".to_owned(),
            _ => format!("{:.1} %", part as f64 / whole as f64 * 100.0),
        };
        for t in &self.measured.sizes {
            let row_bytes = t.row_bytes as u64 * t.rows;
            output.line(format!(
                "{:<12} {:>6} {:>4} {:>6} | {:>5} {:>7} {:>7} | {:>11} {:>6} {:>7} | {:>8} {:>8}",
                t.table,
                t.rows,
                t.dim,
                t.format,
                t.row_bytes,
                share(row_bytes, t.f16_bytes),
                share(row_bytes, t.f32_bytes),
                t.rows_and_keys_bytes,
                t.index_bytes,
                t.file_bytes,
                t.f16_bytes,
                t.f32_bytes
            ));
        }
        output
            .line("(bytes of all rows; file = rows, keys, index, checksums and a 4 KiB header page for each");
        output.line(" partition: tables as small as these are mostly header pages)");
    }

    fn print_serving(&self, output: Output) {
        let ranked = self.measured.ranked;
        output.line(format!(
            "\nranked {} users, {} candidates: p50 {} us, p99 {} us a call; {} failed",
            ranked.call_us.len(),
            ranked.candidates,
            quantile(&ranked.call_us, 0.5),
            quantile(&ranked.call_us, 0.99),
            ranked.failed_requests,
        ));
        if let Some(why) = &ranked.first_failure {
            output.line(format!("the first failure: {why}"));
        }
        output.line(format!(
            "lookups: {:.0} rows/s from {} nodes to one client",
            self.measured.rate.rows_per_second, self.measured.rate.nodes_touched
        ));
        for (label, url) in &self.measured.urls {
            let dead = ranked.killed.as_ref() == Some(label);
            output.line(format!(
                "{label:<22} {url}/status {url}/metrics{}",
                if dead { " (killed)" } else { "" }
            ));
        }
    }

    fn print_top(&self, output: Output) {
        let top = &self.measured.top;
        output.line(format!(
            "\ntop {} of {} films for user {}",
            top.films.len(),
            top.candidates,
            top.user_id
        ));
        for (rank, film) in (1..).zip(&top.films) {
            let year = film.year.map_or_else(String::new, |year| format!(" ({year})"));
            let thought = match film.liked {
                Some(true) => "  <- held out, liked",
                Some(false) => "  <- held out, not liked",
                None => "",
            };
            output.line(format!("{rank:>3}. {:.3} {}{year}{thought}", film.score, film.title));
        }
    }

    fn object(&self) -> Value {
        let Measured { prepared, ranked, missing, top, rate, sizes, urls, seconds, .. } = &self.measured;
        let training = &prepared.report;
        let offline = &training.offline;
        let by_format = |of: fn(&Quality) -> f64| json!({ "f32": of(&offline.f32), "f16": of(&offline.f16), "int8": of(&offline.int8), "int4": of(&offline.int4) });
        json!({
            "data": prepared.dataset.name,
            "seed": training.seed,
            "machine": machine(),
            "model": prepared.manifest.model,
            "release": prepared.manifest.release,
            "release_reused": prepared.reused,
            "auc_cluster": ranked.quality.auc,
            "log_loss_cluster": ranked.quality.log_loss,
            "auc_cluster_tables_missing": missing.auc,
            "auc_offline": by_format(|q| q.auc),
            "log_loss_offline": by_format(|q| q.log_loss),
            "auc_without_pretraining": training.without_pretraining.auc,
            "log_loss_without_pretraining": training.without_pretraining.log_loss,
            "auc_planted_optimum": training.planted_optimum.map(|q| q.auc),
            "int4_minus_f32": training.int4_minus_f32,
            "rank_p50_us": quantile(&ranked.call_us, 0.5),
            "rank_p99_us": quantile(&ranked.call_us, 0.99),
            "rank_requests": ranked.call_us.len(),
            "candidates": ranked.candidates,
            "lookup_rows_per_second": rate.rows_per_second,
            "lookups": rate.lookups,
            "failed_requests": ranked.failed_requests,
            "mixed_versions": ranked.mixed_versions,
            "killed": ranked.killed,
            "tables": sizes,
            "top": top,
            "urls": urls.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "promises": self.promises,
            "seconds": seconds,
        })
    }
}

fn promises(m: &Measured<'_>) -> Vec<Promise> {
    let training = &m.prepared.report;
    let (int4, f32) = (training.offline.int4, training.offline.f32);
    let mut promises = Vec::new();
    let mut promise = |promise: String, measured: String, kept: bool| {
        promises.push(Promise { promise, measured, kept });
    };
    promise("no request fails".into(), m.ranked.failed_requests.to_string(), m.ranked.failed_requests == 0);
    promise(
        "no answer mixes versions".into(),
        m.ranked.mixed_versions.to_string(),
        m.ranked.mixed_versions == 0,
    );
    if m.complete {
        // NaN, where a class is absent, is no kept promise: every comparison below is false for it.
        let off = (m.ranked.quality.auc - int4.auc).abs();
        promise(
            format!(
                "AUC through the cluster is the offline AUC of the INT4 tables, within {CLUSTER_AUC_TOLERANCE}"
            ),
            format!("{off:.6} apart"),
            off <= CLUSTER_AUC_TOLERANCE,
        );
        let gain = m.ranked.quality.auc - m.missing.auc;
        promise(
            format!("without the tables' rows AUC is at least {TABLES_MIN_GAIN} lower"),
            format!("{gain:.4} lower"),
            gain >= TABLES_MIN_GAIN,
        );
    }
    let auc_cost = (int4.auc - f32.auc).abs();
    promise(
        format!("INT4 keeps f32's AUC within {INT4_AUC_TOLERANCE}"),
        format!("{auc_cost:.5} apart"),
        auc_cost <= INT4_AUC_TOLERANCE,
    );
    let loss_cost = (int4.log_loss / f32.log_loss - 1.0).abs();
    promise(
        format!("INT4 keeps f32's log loss within {} %", INT4_LOG_LOSS_TOLERANCE * 100.0),
        format!("{:.3} % apart", loss_cost * 100.0),
        loss_cost <= INT4_LOG_LOSS_TOLERANCE,
    );
    match training.planted_optimum {
        Some(optimum) => {
            let share = (int4.auc - 0.5) / (optimum.auc - 0.5);
            promise(
                format!(
                    "AUC reaches {} % of the planted optimum's lead over chance",
                    SYNTHETIC_MIN_SHARE * 100.0
                ),
                format!("{:.1} %", share * 100.0),
                share >= SYNTHETIC_MIN_SHARE,
            );
        }
        None => promise(
            format!("test AUC is at least {MOVIELENS_MIN_AUC}"),
            format!("{:.4}", int4.auc),
            int4.auc >= MOVIELENS_MIN_AUC,
        ),
    }
    promises
}

fn interval(i: &Interval, scale: f64, unit: &str) -> String {
    format!("{:+.4}{unit} [{:+.4}, {:+.4}]", i.difference * scale, i.low * scale, i.high * scale)
}

/// The value below which a share `q` of the (ascending) values lies.
fn quantile(ascending: &[u64], q: f64) -> u64 {
    let at = (ascending.len() as f64 * q).ceil() as usize;
    ascending.get(at.saturating_sub(1)).copied().unwrap_or_default()
}

/// Which machine the numbers are from.
fn machine() -> Value {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map(|l| l.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({ "cpu": model, "cores": cores, "isa": tidepool_kernels::Isa::detect().as_str() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_of_none() {
        assert_eq!(quantile(&[], 0.5), 0);
        assert_eq!(quantile(&[7], 0.99), 7);
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((quantile(&hundred, 0.5), quantile(&hundred, 0.99)), (50, 99));
    }
}
