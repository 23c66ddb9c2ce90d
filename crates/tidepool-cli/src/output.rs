//! What a command says: tables and sentences for people, or exactly one JSON object for machines.

use std::io::{self, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use tidepool_train::{Phase, Progress};

/// Version of every JSON object that a command prints.
const SCHEMA_VERSION: u32 = 1;

/// Where a command's words go. With `--json`, stdout has the one object and everything else is on stderr.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

/// Whether a command kept what it promised; decides between the exit codes 0 and 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done.
    Done,
    /// Done, but a printed promise was not kept.
    PromiseBroken,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people.
    pub(crate) fn line(self, text: impl AsRef<str>) {
        let text = text.as_ref();
        // A closed pipe (`| head`) is the reader's choice, not an error of ours.
        let _ = if self.json { writeln!(io::stderr(), "{text}") } else { writeln!(io::stdout(), "{text}") };
    }

    /// The object for machines; people have read its content as lines already.
    pub(crate) fn object(self, fields: Value) {
        if !self.json {
            return;
        }
        let mut object = Map::new();
        object.insert("schema_version".into(), SCHEMA_VERSION.into());
        match fields {
            Value::Object(fields) => object.extend(fields),
            other => {
                object.insert("value".into(), other);
            }
        }
        let _ = writeln!(io::stdout(), "{}", Value::Object(object));
        let _ = io::stdout().flush();
    }
}

/// Says why a command failed, the causes one below the other.
pub(crate) fn error(error: &anyhow::Error) {
    let mut stderr = io::stderr();
    let _ = writeln!(stderr, "error: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(stderr, "  because: {cause}");
    }
}

/// A progress bar on stderr, shown only to people at a terminal; without `total` it counts.
pub(crate) fn bar(what: &'static str, total: Option<u64>) -> ProgressBar {
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let style = ProgressStyle::with_template("{msg:<24} {bar:30} {pos}/{len} {elapsed} {per_sec}");
    bar.with_message(what).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A progress bar per phase of training.
pub(crate) fn training_bars() -> impl FnMut(Progress) {
    let all = MultiProgress::new();
    let mut shown: Vec<(Phase, ProgressBar)> = Vec::new();
    move |progress: Progress| {
        let known = shown.iter().position(|(phase, _)| *phase == progress.phase);
        let at = known.unwrap_or_else(|| {
            shown.push((progress.phase, all.add(bar(progress.phase.as_str(), Some(progress.total)))));
            shown.len() - 1
        });
        let (_, bar) = &shown[at];
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        if progress.done == progress.total {
            bar.finish();
        }
    }
}
