//! What was promised of a replay, and whether it was kept. What could not be tested is a promise too, an undecided one: nothing
//! is let through because nobody could tell.

use tidepool_skew::{CellReport, OutputReport, ReleaseReport, SkewReport, Verdict};

use super::{Skew, show};

/// A release of which a larger part of its online requests than this could not be compared is not known.
const MAX_LEFT_OUT: f64 = 0.1;

/// A promise that was asked for.
pub(super) struct Promise {
    pub(super) what: String,
    pub(super) verdict: Verdict,
}

impl Promise {
    /// Nobody can tell.
    fn undecided(what: String) -> Self {
        Self { what, verdict: Verdict::Undecided }
    }
}

/// Every promise that `args` ask for.
pub(super) fn promises(args: &Skew, report: &SkewReport) -> Vec<Promise> {
    let mut promises = Vec::new();
    if let Some(bound) = args.max_loss_change {
        for release in &report.releases {
            for cell in release.cells.iter().filter(|cell| !cell.matched) {
                promises.extend(of_cell(release, cell, bound));
            }
        }
    }
    if let Some(bound) = args.max_beyond {
        let of_releases = report.releases.iter();
        promises.extend(of_releases.map(|release| of_online(release, bound, args.score_bound)));
    }
    promises
}

/// What a dense model loses with these tables, per output that has labels.
fn of_cell(release: &ReleaseReport, cell: &CellReport, bound: f64) -> Vec<Promise> {
    let which = format!("release {} with the tables of {}", release.release, show::tables(cell));
    if cell.not_comparable.is_some() {
        return vec![Promise::undecided(format!("{which} cannot be run"))];
    }
    if cell.outputs.is_empty() {
        return vec![Promise::undecided(format!("{which}: the sample has no labels"))];
    }
    let of_output = |(output, found): (&String, &OutputReport)| match found
        .change
        .as_ref()
        .and_then(|change| change.log_loss_percent)
    {
        Some(change) => Promise {
            what: format!("{which}: log loss of {output} at most {bound} % worse"),
            verdict: Verdict::of(Some(change), bound),
        },
        None => Promise::undecided(format!("{which}: {output} has labels and no log loss to compare")),
    };
    cell.outputs.iter().map(of_output).collect()
}

/// How many of the scores that a release gave online are not those that are computed here.
fn of_online(release: &ReleaseReport, bound: f64, score_bound: f64) -> Promise {
    let what = format!(
        "release {}: at most {bound} % of its online scores differ by more than {score_bound}",
        release.release
    );
    let Some(online) = release.online.as_ref().filter(|online| online.values > 0) else {
        return Promise::undecided(format!("{what}: there are none that can be compared"));
    };
    if online.beyond_percent > bound {
        return Promise { what, verdict: Verdict::Broken };
    }
    let (left_out, all) = (online.not_comparable_requests, online.requests + online.not_comparable_requests);
    if left_out as f64 > MAX_LEFT_OUT * all as f64 {
        return Promise::undecided(format!("{what}: {left_out} of {all} requests cannot be compared"));
    }
    Promise { what, verdict: Verdict::Kept }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tidepool_skew::{OnlineReport, ScoreChange};
    use tidepool_train::Tally;
    use tidepool_types::Name;

    use super::*;

    #[test]
    fn what_little_can_be_compared_promises_nothing() {
        let verdict = |requests: u64, left_out: u64, beyond_percent: f64| {
            let mut online = OnlineReport::default();
            (online.requests, online.values) = (requests, requests);
            (online.not_comparable_requests, online.beyond_percent) = (left_out, beyond_percent);
            let release = ReleaseReport {
                release: Name::new("r1").unwrap(),
                tables: Vec::new(),
                online: Some(online),
                cells: Vec::new(),
            };
            of_online(&release, 1.0, 1e-5).verdict
        };
        assert_eq!(verdict(90, 10, 1.0), Verdict::Kept);
        assert_eq!(verdict(89, 11, 1.0), Verdict::Undecided);
        assert_eq!(verdict(0, 10, 0.0), Verdict::Undecided);
        assert_eq!(verdict(5, 95, 1.1), Verdict::Broken, "what was compared is enough for that");
    }

    #[test]
    fn an_output_without_log_loss_is_not_hidden_by_another() {
        // Of forty requests one score each: a probability, and something else.
        let output = |score: f32| {
            let mut tally = Tally::default();
            (0..40).for_each(|request| tally.add(request, score, request % 3 == 0));
            OutputReport { evaluation: tally.evaluation(), change: Some(tally.change(&tally)) }
        };
        let name = |text: &str| Name::new(text).unwrap();
        let cell = CellReport {
            tables_of: name("r2"),
            only_table: None,
            matched: false,
            tables: Vec::new(),
            not_comparable: None,
            outputs: BTreeMap::from([("p".to_owned(), output(0.3)), ("value".to_owned(), output(7.5))]),
            score_change: ScoreChange::default(),
            missing: Vec::new(),
        };
        let release =
            ReleaseReport { release: name("r1"), tables: Vec::new(), online: None, cells: Vec::new() };
        let verdicts: Vec<_> = of_cell(&release, &cell, 1.0).iter().map(|one| one.verdict).collect();
        assert_eq!(verdicts, [Verdict::Kept, Verdict::Undecided]);
    }
}
