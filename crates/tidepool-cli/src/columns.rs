//! Tables for people: columns as wide as they must be, numbers in units that can be read.

use crate::output::Output;

/// Between two columns.
const GAP: &str = "  ";

/// How a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// A table, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    heads: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// Columns with these heads. One that begins with `>` stands on the right, as numbers do.
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        let head = |head: &&'static str| match head.strip_prefix('>') {
            Some(head) => (head, Side::Right),
            None => (*head, Side::Left),
        };
        Self { heads: heads.iter().map(head).collect(), rows: Vec::new() }
    }

    /// One more row: a cell per head.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(cells.len(), self.heads.len());
        self.rows.push(cells.into());
    }

    /// The lines, the heads first; none without rows.
    pub(crate) fn lines(&self) -> Vec<String> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let heads: Vec<String> = self.heads.iter().map(|(head, _)| (*head).to_owned()).collect();
        let all = || std::iter::once(&heads).chain(&self.rows);
        let letters = |cell: &String| cell.chars().count();
        let widths: Vec<usize> =
            (0..heads.len()).map(|at| all().map(|row| letters(&row[at])).max().unwrap_or(0)).collect();
        let line = |row: &Vec<String>| {
            let cells =
                row.iter().zip(&widths).zip(&self.heads).map(|((cell, width), (_, side))| match side {
                    Side::Left => format!("{cell:<width$}"),
                    Side::Right => format!("{cell:>width$}"),
                });
            cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
        };
        all().map(line).collect()
    }

    /// Prints it, each line after `indent`.
    pub(crate) fn print(&self, indent: &str, output: Output) {
        self.lines().iter().for_each(|line| output.line(format!("{indent}{line}")));
    }
}

/// A number of bytes in the unit that people would use.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let at = ((count.ilog2() / 10) as usize).min(UNITS.len());
    let scaled = count as f64 / (1u64 << (10 * at)) as f64;
    let unit = UNITS[at - 1];
    if scaled < 99.95 { format!("{scaled:.1} {unit}") } else { format!("{scaled:.0} {unit}") }
}

/// A count with its thousands set apart.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in UTC, as `2026-11-22 13:45:07`; a dash for the zero that stands for no time.
pub(crate) fn utc(unix_seconds: u64) -> String {
    if unix_seconds == 0 {
        return "-".into();
    }
    let (days, of_day) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// The day that comes so many days after 1970-01-01. Years are counted from March, so that a leap day is the last
/// of its year; 146,097 days are 400 years.
fn date(days: u64) -> (u64, u64, u64) {
    let since_march_0 = days + 719_468;
    let (era, of_era) = (since_march_0 / 146_097, since_march_0 % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Text from elsewhere for a terminal: what would steer it is spelled out.
pub(crate) fn harmless(text: &str) -> String {
    let steers = |c: char| {
        // Control characters, and those that turn the direction of what follows.
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut columns = Columns::new(&["node", ">rows", "why"]);
        assert!(columns.lines().is_empty());
        columns.row(["a-1".into(), "7".into(), String::new()]);
        columns.row(["bär-10".into(), "1,000,000".into(), "down".into()]);
        let expected = ["node         rows  why", "a-1             7", "bär-10  1,000,000  down"];
        assert_eq!(columns.lines(), expected);
    }

    #[test]
    fn numbers_have_units_and_groups() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (200 << 20, "200 MiB"),
            (5 << 40, "5.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        cases.into_iter().for_each(|(count, words)| assert_eq!(bytes(count), words));
        assert_eq!(
            (grouped(0), grouped(999), grouped(1_234_567)),
            ("0".into(), "999".into(), "1,234,567".into())
        );
    }

    #[test]
    fn times_are_told_in_utc() {
        let cases = [
            (0, "-"),
            (1, "1970-01-01 00:00:01"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_709_251_200, "2024-03-01 00:00:00"),
            (4_102_444_799, "2099-12-31 23:59:59"),
        ];
        cases.into_iter().for_each(|(seconds, words)| assert_eq!(utc(seconds), words));
    }

    #[test]
    fn what_would_steer_a_terminal_is_spelled_out() {
        assert_eq!(harmless("größe\u{1b}[2J\n\u{202e}x"), "größe\\u{1b}[2J\\n\\u{202e}x");
    }
}
