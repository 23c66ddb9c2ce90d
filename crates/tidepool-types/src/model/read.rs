//! Reads a document key by key, so that whoever writes one sees all that is wrong with it at once, each with its line.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Problems that are told one by one.
const MAX_TOLD: usize = 200;

/// What is wrong with a document so far.
pub(super) struct Problems<'t> {
    text: &'t str,
    /// Line and sentence.
    found: Vec<(usize, String)>,
    /// Those that are not told any more.
    more: usize,
}

impl<'t> Problems<'t> {
    /// Of a document with this text.
    pub(super) fn of(text: &'t str) -> Self {
        Self { text, found: Vec::new(), more: 0 }
    }

    /// Notes a problem of `place` (empty: the document) at a byte of the text.
    pub(super) fn add(&mut self, at: usize, place: &str, problem: impl Display) {
        if self.found.len() == MAX_TOLD {
            self.more += 1;
            return;
        }
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
        self.found.push((line, format!("line {line}: {place}{problem}")));
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Each problem, in the order of the lines.
    pub(super) fn into_list(mut self) -> Vec<String> {
        self.found.sort_by_key(|(line, _)| *line);
        let more = (self.more > 0).then(|| format!("and {} more", self.more));
        self.found.into_iter().map(|(_, problem)| problem).chain(more).collect()
    }
}

/// The keys of one table of the document.
pub(super) struct Fields<'d> {
    table: &'d DeTable<'d>,
    /// What it is called in problems.
    pub(super) place: String,
    /// The byte where it begins.
    pub(super) at: usize,
    asked: Vec<&'static str>,
}

impl<'d> Fields<'d> {
    /// Of a table that begins at the byte `at` and is called `place`.
    pub(super) fn of(table: &'d DeTable<'d>, place: String, at: usize) -> Self {
        Self { table, place, at, asked: Vec::new() }
    }

    /// Notes a problem of this table.
    pub(super) fn problem(&self, problems: &mut Problems<'_>, problem: impl Display) {
        problems.add(self.at, &self.place, problem);
    }

    /// Notes a problem of a key's value.
    pub(super) fn problem_of(&self, problems: &mut Problems<'_>, key: &str, problem: impl Display) {
        let at = self.table.get(key).map_or(self.at, |value| value.span().start);
        problems.add(at, &self.place, format!("{key}: {problem}"));
    }

    /// Whether the key is there, whatever it says.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn get(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.asked.push(key);
        self.table.get(key)
    }

    /// Notes that a key is missing.
    pub(super) fn need(&self, problems: &mut Problems<'_>, key: &str) {
        if !self.has(key) {
            self.problem(problems, format!("{key} is missing"));
        }
    }

    /// The text of a key, unless it is absent or no text.
    pub(super) fn text(&mut self, problems: &mut Problems<'_>, key: &'static str) -> Option<&'d str> {
        let value = self.get(key)?.get_ref();
        let text = value.as_str();
        if text.is_none() {
            self.problem_of(problems, key, format!("it is {}, a string is wanted", a(value)));
        }
        text
    }

    /// The value of a key that stands as text.
    pub(super) fn parsed<T: FromStr<Err: Display>>(
        &mut self,
        problems: &mut Problems<'_>,
        key: &'static str,
    ) -> Option<T> {
        let text = self.text(problems, key)?;
        text.parse().map_err(|error| self.problem_of(problems, key, error)).ok()
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(
        &mut self,
        problems: &mut Problems<'_>,
        key: &'static str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(problems, key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.problem_of(problems, key, format!("{text:?} is none of {}", known.join(", ")));
        }
        found
    }

    /// A whole number within bounds.
    pub(super) fn whole(
        &mut self,
        problems: &mut Problems<'_>,
        key: &'static str,
        bounds: RangeInclusive<u64>,
    ) -> Option<u64> {
        let value = self.get(key)?.get_ref();
        let number = value.as_integer().and_then(|int| u64::from_str_radix(int.as_str(), int.radix()).ok());
        let number = number.filter(|number| bounds.contains(number));
        if number.is_none() {
            let shown = match value {
                DeValue::Integer(int) => int.to_string(),
                other => a(other).to_owned(),
            };
            let (least, most) = (bounds.start(), bounds.end());
            self.problem_of(
                problems,
                key,
                format!("it is {shown}, a whole number from {least} to {most} is wanted"),
            );
        }
        number
    }

    /// A finite number.
    pub(super) fn number(&mut self, problems: &mut Problems<'_>, key: &'static str) -> Option<f64> {
        let value = self.get(key)?.get_ref();
        let number = number(value);
        if number.is_none() {
            self.problem_of(problems, key, format!("it is {}, a finite number is wanted", a(value)));
        }
        number
    }

    /// The entries of a list, at most `most` of them, each with its place.
    pub(super) fn list(
        &mut self,
        problems: &mut Problems<'_>,
        key: &'static str,
        most: usize,
    ) -> Option<&'d [Spanned<DeValue<'d>>]> {
        let value = self.get(key)?.get_ref();
        let Some(entries) = value.as_array() else {
            self.problem_of(problems, key, format!("it is {}, a list is wanted", a(value)));
            return None;
        };
        if entries.len() > most {
            self.problem_of(problems, key, format!("{} entries, there may be {most}", entries.len()));
            return None;
        }
        Some(entries)
    }

    /// A list of finite numbers.
    pub(super) fn numbers(
        &mut self,
        problems: &mut Problems<'_>,
        key: &'static str,
        most: usize,
    ) -> Option<Vec<f64>> {
        let entries = self.list(problems, key, most)?;
        let found: Option<Vec<_>> = entries.iter().map(|entry| number(entry.get_ref())).collect();
        if found.is_none() {
            self.problem_of(problems, key, "a list of finite numbers is wanted");
        }
        found
    }

    /// The tables of a list of tables; none when the key is absent.
    pub(super) fn tables(
        &mut self,
        problems: &mut Problems<'_>,
        key: &'static str,
        most: usize,
    ) -> Vec<Fields<'d>> {
        let mut tables = Vec::new();
        for (position, entry) in self.list(problems, key, most).unwrap_or_default().iter().enumerate() {
            let (at, place) = (entry.span().start, format!("{key}[{position}]"));
            let place = if self.place.is_empty() { place } else { format!("{}: {place}", self.place) };
            match entry.get_ref() {
                DeValue::Table(table) => tables.push(Fields::of(table, place, at)),
                other => problems.add(at, &place, format!("it is {}, a table is wanted", a(other))),
            }
        }
        tables
    }

    /// Lets keys pass of which nothing can be said, for a problem that was told.
    pub(super) fn let_pass(&mut self, keys: &[&'static str]) {
        self.asked.extend(keys);
    }

    /// Notes every key that was not asked for.
    pub(super) fn end(self, problems: &mut Problems<'_>) {
        for key in self.table.keys().filter(|key| !self.asked.contains(&key.get_ref().as_ref())) {
            let known = self.asked.join(", ");
            let problem = format!("unknown key {:?}: {known} are known", key.get_ref());
            problems.add(key.span().start, &self.place, problem);
        }
    }
}

/// A finite number, written with or without a point.
pub(super) fn number(value: &DeValue<'_>) -> Option<f64> {
    let text = match value {
        DeValue::Float(float) => float.as_str(),
        DeValue::Integer(int) if int.radix() == 10 => int.as_str(),
        _ => return None,
    };
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// What a value is, with its article.
pub(super) fn a(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
