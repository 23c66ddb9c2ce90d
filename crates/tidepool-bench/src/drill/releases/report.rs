//! What a drill of releases found.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    Params, ReleaseDrill,
    load::{Kind, Outcome, Window},
};
use crate::{
    BenchError, Spread,
    drill::{self, Named},
    load::Times,
};

/// What is hoped for: p99 during a transition, beside that of the requests before it.
const MOST_P99_RATIO: f64 = 1.3;
/// What a drill may take, its tables not counted.
const MOST_SECONDS: f64 = 120.0;

/// One transition, and the time before it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Requests before.
    pub requests_before: u64,
    /// Requests during the transition.
    pub requests_during: u64,
    /// From the first thing that was done to when all of it had taken effect.
    pub transition_seconds: f64,
    /// Before, the time that 99 of 100 requests kept to.
    pub p99_before_us: f64,
    /// The same during the transition.
    pub p99_during_us: f64,
    /// The one by the other.
    pub p99_ratio: f64,
}

/// What a drill of releases found. Failures, mixed and wrong answers are those of the whole drill, also before, between
/// and after transitions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Requests in all.
    pub requests: u64,
    /// Requests that were sent during transitions, and whose answers were checked.
    pub requests_during: u64,
    /// Calls to nodes that rankers made again during transitions, elsewhere or later. Nobody asks a ranker twice.
    pub retries: u64,
    /// Requests without an answer by their deadline.
    pub failed_requests: u64,
    /// The same by the word of the error's code.
    pub failures: BTreeMap<&'static str, u64>,
    /// Answers made of models and tables that do not belong together.
    pub mixed_versions: u64,
    /// Other answers that are not right.
    pub wrong_answers: u64,
    /// Answers by a release that should not answer any more, or not yet.
    pub stale_answers: u64,
    /// The median of the pairs.
    pub p99_before_us: f64,
    /// The median of the pairs.
    pub p99_during_us: f64,
    /// Of all requests during transitions, the time that 999 of 1000 kept to.
    pub p999_during_us: f64,
    /// p99 during a transition by that before it, pair by pair.
    pub p99_ratio: Spread,
    /// In the order in which they were.
    pub pairs: Vec<Pair>,
    /// What the drill took, its tables not counted.
    pub duration_seconds: f64,
    /// Tables that had to be built before, and how long that took.
    pub tables_built: usize,
    /// See [`tables_built`](Self::tables_built).
    pub build_seconds: f64,
    /// Promises and figures of this drill alone.
    #[serde(flatten)]
    pub judged: drill::Report,
}

/// What is known of a drill beside its load.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// How long each took until all of it had taken effect.
    pub(super) transitions: Vec<Duration>,
    pub(super) retries: f64,
    pub(super) duration: Duration,
    pub(super) tables_built: usize,
    pub(super) build: Duration,
}

impl Report {
    /// Whether every promise that counts was kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.judged.is_kept()
    }

    /// From what came of the load and of the drill, with the promises that all drills make.
    pub(super) fn new(
        mut judged: drill::Report,
        params: &Params,
        outcome: &Outcome,
        facts: Facts,
    ) -> Result<Self, BenchError> {
        let pairs = pairs(&outcome.windows, &facts.transitions);
        let of_pairs = |of: fn(&Pair) -> f64| Spread::of(pairs.iter().map(of)).median;
        let mut during = Times::new()?;
        let windows = |kind: Kind| outcome.windows.iter().filter(move |window| window.kind == kind);
        windows(Kind::During).for_each(|window| during.merge(&window.latency));
        let sent_during: u64 = windows(Kind::During).map(|window| window.sent).sum();
        let checked = &outcome.checked;
        let mut failures = BTreeMap::new();
        for (code, count) in outcome.windows.iter().flat_map(|window| &window.failed) {
            *failures.entry(*code).or_default() += count;
        }
        let report = Self {
            requests: outcome.windows.iter().map(|window| window.sent).sum(),
            requests_during: checked.during,
            retries: facts.retries as u64,
            failed_requests: failures.values().sum(),
            failures,
            mixed_versions: checked.mixed,
            wrong_answers: checked.wrong,
            stale_answers: checked.stale,
            p99_before_us: of_pairs(|pair| pair.p99_before_us),
            p99_during_us: of_pairs(|pair| pair.p99_during_us),
            p999_during_us: during.quantile_us(0.999),
            p99_ratio: Spread::of(pairs.iter().map(|pair| pair.p99_ratio)),
            pairs,
            duration_seconds: facts.duration.as_secs_f64(),
            tables_built: facts.tables_built,
            build_seconds: facts.build.as_secs_f64(),
            judged: drill::Report::of("", false),
        };
        let first = |first: &Option<String>| {
            first.as_ref().map(|text| format!("; the first: {text}")).unwrap_or_default()
        };
        let Self { requests, failed_requests, mixed_versions, wrong_answers, stale_answers, .. } = report;
        judged.promise(
            failed_requests == 0,
            format!("{failed_requests} of {requests} requests failed{}", first(&outcome.first_failure)),
        );
        let (bad, stale) = (first(&checked.first_bad), first(&checked.first_stale));
        judged.promise(mixed_versions == 0, format!("{mixed_versions} answers mixed versions{bad}"));
        judged.promise(
            wrong_answers == 0 && checked.answers > 0 && outcome.unchecked == 0,
            format!("{wrong_answers} of {} checked answers were wrong{bad}", checked.answers),
        );
        judged.promise(
            stale_answers == 0,
            format!("{stale_answers} answers by a release that was not to answer{stale}"),
        );
        judged.promise(
            sent_during >= params.requests_during,
            format!("{sent_during} requests were sent during transitions ({} asked)", params.requests_during),
        );
        judged.promise_of_time(
            report.duration_seconds <= MOST_SECONDS,
            format!("the drill took {:.1} s of {MOST_SECONDS:.0} s", report.duration_seconds),
        );
        let Spread { median, low, high } = report.p99_ratio;
        judged.promise_of_time(
            median <= MOST_P99_RATIO,
            format!("p99 during / before {median:.2} ({low:.2} to {high:.2}), of {MOST_P99_RATIO} that is hoped for"),
        );
        Ok(Self { judged, ..report })
    }

    /// A report of this drill in the making.
    pub(super) fn begin(drill: ReleaseDrill, params: &Params) -> drill::Report {
        drill::Report::of(drill.as_str(), params.judge_timing)
    }
}

/// The windows, two and two.
fn pairs(windows: &[Window], transitions: &[Duration]) -> Vec<Pair> {
    let of = |kind: Kind| windows.iter().filter(move |window| window.kind == kind);
    let pairs = of(Kind::Before).zip(of(Kind::During)).zip(transitions);
    let pair = |((before, during), transition): ((&Window, &Window), &Duration)| {
        let p99_before_us = before.latency.quantile_us(0.99);
        let p99_during_us = during.latency.quantile_us(0.99);
        Pair {
            requests_before: before.sent,
            requests_during: during.sent,
            transition_seconds: transition.as_secs_f64(),
            p99_before_us,
            p99_during_us,
            p99_ratio: if p99_before_us > 0.0 { p99_during_us / p99_before_us } else { 0.0 },
        }
    };
    pairs.map(pair).collect()
}
