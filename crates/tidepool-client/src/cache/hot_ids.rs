//! Ids that are asked for often, as they travel from one process to another: text, one id a line.

use std::fmt::{self, Display, Formatter};

use thiserror::Error;
use tidepool_types::{Name, TableVersion};

const TITLE: &str = "# tidepool hot ids of ";

/// The ids of a table version that a cache held, most wanted first. Of a composite table: the numbers of rows.
///
/// As text: a line `# tidepool hot ids of TABLE@VERSION`, then one id a line. Empty lines and other lines that
/// begin with `#` say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotIds {
    /// Where they were asked for.
    pub table_version: TableVersion,
    /// The ids, most wanted first.
    pub ids: Vec<u64>,
}

/// A text that is no list of hot ids.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadHotIds {
    /// The first line does not say what the ids are of.
    #[error("the first line is not \"{TITLE}TABLE@VERSION\"")]
    Title,
    /// A line is neither an id nor a comment.
    #[error("line {line} is no id from 0 to 2^64 - 1: {text:?}")]
    Id {
        /// Counted from 1.
        line: usize,
        /// What stands there, its first 40 characters.
        text: String,
    },
}

impl HotIds {
    /// Reads the text.
    ///
    /// # Errors
    /// [`BadHotIds`] names the line.
    pub fn parse(text: &str) -> Result<Self, BadHotIds> {
        let mut lines = text.lines().map(str::trim);
        let title = lines.next().and_then(|line| line.strip_prefix(TITLE)).ok_or(BadHotIds::Title)?;
        let (table, version) = title.split_once('@').ok_or(BadHotIds::Title)?;
        let name = |text: &str| Name::new(text).map_err(|_| BadHotIds::Title);
        let table_version = TableVersion { table: name(table)?, version: name(version)? };
        let ids = (2..).zip(lines).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let ids = ids.map(|(line, id)| {
            let bad = |_| BadHotIds::Id { line, text: id.chars().take(40).collect() };
            id.parse().map_err(bad)
        });
        Ok(Self { table_version, ids: ids.collect::<Result<_, _>>()? })
    }
}

impl Display for HotIds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{TITLE}{}", self.table_version)?;
        self.ids.iter().try_for_each(|id| writeln!(f, "{id}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_other_text_is_refused_with_its_line() {
        let table_version: TableVersion =
            serde_json::from_str(r#"{"table": "pin", "version": "v1"}"#).unwrap();
        for ids in [vec![], vec![7, u64::MAX, 0]] {
            let hot = HotIds { table_version: table_version.clone(), ids };
            assert_eq!(HotIds::parse(&hot.to_string()), Ok(hot));
        }
        let spaced = HotIds::parse("# tidepool hot ids of pin@v1\r\n\n 5\n# more\n6").unwrap();
        assert_eq!(spaced.ids, [5, 6]);
        for title in ["", "5", "# tidepool hot ids of pin", "# tidepool hot ids of ../up@v1"] {
            assert_eq!(HotIds::parse(title), Err(BadHotIds::Title), "{title}");
        }
        for bad in ["-1", "1.5", "18446744073709551616", "x"] {
            let error = HotIds::parse(&format!("# tidepool hot ids of pin@v1\n1\n{bad}")).unwrap_err();
            assert_eq!(error, BadHotIds::Id { line: 3, text: bad.into() });
        }
    }
}
