//! What a drill found: promises, kept or not, and figures.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Drill, Named, Params};

/// Something that was promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Promise {
    /// In words, with what was found.
    pub text: String,
    /// Whether it held.
    pub kept: bool,
    /// Whether that counts; promises about time do not where others use the machine.
    pub judged: bool,
}

/// What a drill found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Which drill.
    pub drill: &'static str,
    /// In the order in which they were looked at.
    pub promises: Vec<Promise>,
    /// By name, the unit last.
    pub figures: BTreeMap<&'static str, f64>,
    /// What was looked at again and again while the drill went on, by name, in its order.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub series: BTreeMap<&'static str, Vec<f64>>,
    #[serde(skip)]
    judge_timing: bool,
}

impl Report {
    pub(super) fn new(drill: Drill, params: &Params) -> Self {
        Self::of(drill.as_str(), params.judge_timing)
    }

    /// Of the drill that has this word.
    pub(super) fn of(drill: &'static str, judge_timing: bool) -> Self {
        let (promises, figures, series) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { drill, promises, figures, series, judge_timing }
    }

    /// Whether every promise that counts was kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.promises.iter().all(|promise| promise.kept || !promise.judged)
    }

    /// Notes a promise.
    pub(super) fn promise(&mut self, kept: bool, text: impl Into<String>) {
        self.promises.push(Promise { text: text.into(), kept, judged: true });
    }

    /// Notes a promise about time, or one that takes its time to be kept.
    pub(super) fn promise_of_time(&mut self, kept: bool, text: impl Into<String>) {
        self.promises.push(Promise { text: text.into(), kept, judged: self.judge_timing });
    }

    pub(super) fn figure(&mut self, name: &'static str, value: f64) {
        self.figures.insert(name, value);
    }

    pub(super) fn series(&mut self, name: &'static str, values: impl IntoIterator<Item = f64>) {
        self.series.insert(name, values.into_iter().collect());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_promise_about_time_counts_only_where_it_is_asked_for() {
        let params = |judge_timing| Params {
            program: None,
            dir: "x".into(),
            rows: 1,
            rate: 1.0,
            phase: Duration::ZERO,
            lookups: 1,
            seed: 1,
            judge_timing,
        };
        for judge_timing in [false, true] {
            let mut report = Report::new(Drill::Kill, &params(judge_timing));
            report.promise(true, "kept");
            assert!(report.is_kept());
            report.promise_of_time(false, "slow");
            assert_eq!(report.is_kept(), !judge_timing);
            report.promise(false, "broken");
            assert!(!report.is_kept());
        }
    }
}
