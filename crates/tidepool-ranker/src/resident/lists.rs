//! Lists of hot ids in a folder, as `GET /v1/hot-ids` and `tidepool hot-ids export` write them, and how the ids of several
//! sources become one list.
//!
//! Lists are taken by the name of their table, whatever their version: an id is as hot in the next version as it was in this
//! one. That of exactly the release's version comes first, then the others, by when they were last written, the newest first.
//! What is no list fails nobody; it is told.

use std::{
    collections::HashSet,
    fs,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use tidepool_client::HotIds;
use tidepool_types::TableVersion;

/// Files of the folder that are looked at, at most.
const MAX_FILES: usize = 4096;
/// Bytes of the line that says what a list is of, at most.
const TITLE_BYTES: u64 = 1024;
/// Bytes of a list beside those of its ids: a title and remarks.
const BESIDE_BYTES: u64 = 1 << 16;
/// Bytes of the longest id and the end of its line.
const LINE_BYTES: u64 = 22;

/// A folder of lists, as it was found.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    found: Vec<Found>,
    /// What was wrong, in words for the log and `/status`.
    pub(crate) problems: Vec<String>,
}

#[derive(Debug)]
struct Found {
    path: PathBuf,
    of: TableVersion,
    written: SystemTime,
}

impl Lists {
    /// Reads what each file of a folder says that it is of. Files whose names begin with a dot, and folders, are passed over.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn of(folder: &Path) -> io::Result<Self> {
        let mut lists = Self::default();
        let mut paths = Vec::new();
        for (number, entry) in fs::read_dir(folder)?.enumerate() {
            if number == MAX_FILES {
                let folder = folder.display();
                lists.problems.push(format!(
                    "{folder} has more than {MAX_FILES} files: only so many are looked at, as the folder gives them"
                ));
                break;
            }
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.push(entry.path());
            }
        }
        paths.sort_unstable();
        for path in paths {
            match title(&path) {
                Ok(None) => {}
                Ok(Some((of, written))) => lists.found.push(Found { path, of, written }),
                Err(problem) => lists.problems.push(format!("{}: {problem}", path.display())),
            }
        }
        // The sort is stable: of lists that were written at the same time the first by name.
        lists.found.sort_by_key(|found| std::cmp::Reverse(found.written));
        Ok(lists)
    }

    /// No lists, for their folder cannot be read.
    pub(crate) fn unreadable(folder: &Path, error: &io::Error) -> Self {
        let problems = vec![format!("{}: {error}", folder.display())];
        Self { found: Vec::new(), problems }
    }

    /// The ids of a table without repetitions, those that `may_be` refuses left out: all of the best list, then what the next has
    /// beside them, `limit` of them at most. No list is read that there is no need of, and none is begun after `end`.
    pub(crate) fn ids(
        &mut self,
        table: &TableVersion,
        limit: usize,
        end: Instant,
        may_be: impl Fn(u64) -> bool,
    ) -> Vec<u64> {
        let mut of_table: Vec<_> = self.found.iter().filter(|found| found.of.table == table.table).collect();
        of_table.sort_by_key(|found| found.of != *table);
        let (mut ids, mut seen) = (Vec::new(), HashSet::new());
        for (number, found) in of_table.iter().enumerate() {
            if ids.len() >= limit {
                break;
            }
            if Instant::now() >= end {
                let left = of_table.len() - number;
                self.problems.push(format!("{table}: {left} lists were not read, for the time was up"));
                break;
            }
            match read(&found.path, limit) {
                Ok(hot) => {
                    let new = hot.ids.into_iter().filter(|id| may_be(*id) && seen.insert(*id));
                    ids.extend(new.take(limit - ids.len()));
                }
                Err(problem) => self.problems.push(format!("{}: {problem}", found.path.display())),
            }
        }
        ids
    }
}

/// What a file says that it is a list of, and when it was written; `None`: it is no file.
fn title(path: &Path) -> Result<Option<(TableVersion, SystemTime)>, String> {
    let words = |error: io::Error| error.to_string();
    let about = fs::metadata(path).map_err(words)?;
    // Others, such as pipes, might keep their reader waiting for ever.
    if !about.is_file() {
        return Ok(None);
    }
    let mut line = Vec::new();
    let file = fs::File::open(path).map_err(words)?;
    BufReader::new(file.take(TITLE_BYTES)).read_until(b'\n', &mut line).map_err(words)?;
    let hot = HotIds::parse(&String::from_utf8_lossy(&line)).map_err(|error| error.to_string())?;
    Ok(Some((hot.table_version, about.modified().map_err(words)?)))
}

/// The first `limit` ids of a list. No more of a file is read than those can take.
fn read(path: &Path, limit: usize) -> Result<HotIds, String> {
    let most = (limit as u64).saturating_mul(LINE_BYTES).saturating_add(BESIDE_BYTES);
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 == most {
        // The last line may have been cut.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        bytes.truncate(whole);
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not text in UTF-8".to_owned())?;
    let mut hot = HotIds::parse(&text).map_err(|error| error.to_string())?;
    hot.ids.truncate(limit);
    Ok(hot)
}

/// The ids of several sources as one list without repetitions, those that `may_be` refuses left out: all of `first`, and behind
/// them those of `in_turns`, one of each in turn.
pub(crate) fn merged(
    first: &[u64],
    in_turns: &[Vec<u64>],
    limit: usize,
    may_be: impl Fn(u64) -> bool,
) -> Vec<u64> {
    let longest = in_turns.iter().map(Vec::len).max().unwrap_or(0);
    let turns = (0..longest).flat_map(|rank| in_turns.iter().filter_map(move |ids| ids.get(rank)));
    let mut seen = HashSet::new();
    let all = first.iter().chain(turns).copied();
    all.filter(|id| may_be(*id) && seen.insert(*id)).take(limit).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidepool_types::Name;

    use super::*;

    fn version(table: &str, version: &str) -> TableVersion {
        let name = |text: &str| Name::new(text).unwrap();
        TableVersion { table: name(table), version: name(version) }
    }

    fn write(folder: &Path, file: &str, bytes: &[u8], age: u64) {
        let path = folder.join(file);
        fs::write(&path, bytes).unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age)).unwrap();
    }

    fn list(of: &str, ids: &[u64]) -> Vec<u8> {
        let (table, v) = of.split_once('@').unwrap();
        HotIds { table_version: version(table, v), ids: ids.to_vec() }.to_string().into_bytes()
    }

    #[test]
    fn the_list_of_the_version_comes_first_then_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        write(at, "a-old.ids", &list("pin@v1", &[1, 2]), 30);
        write(at, "b-new.ids", &list("pin@v9", &[9, 8, 7]), 10);
        write(at, "c-exact.ids", &list("pin@v3", &[3]), 20);
        write(at, "other.ids", &list("board@v3", &[5]), 0);
        write(at, ".hidden", b"no list", 0);
        fs::create_dir(at.join("folder")).unwrap();
        let mut lists = Lists::of(at).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        let mut ids =
            |table: &str, of: &str, limit| lists.ids(&version(table, of), limit, later, |id| id != 1);
        assert_eq!(ids("pin", "v3", 9), [3, 9, 8, 7, 2]);
        assert_eq!(ids("pin", "v3", 3), [3, 9, 8]);
        assert_eq!(ids("pin", "v2", 9), [9, 8, 7, 3, 2]);
        assert!(ids("user", "v3", 9).is_empty());
        assert!(lists.problems.is_empty(), "{:?}", lists.problems);
        assert!(lists.ids(&version("pin", "v3"), 9, Instant::now(), |_| true).is_empty());
        assert!(lists.problems.len() == 1 && lists.problems[0].contains("3 lists"), "{:?}", lists.problems);
        assert!(Lists::of(&at.join("nowhere")).is_err());
    }

    #[test]
    fn what_is_no_list_is_told_and_harms_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        write(at, "bytes", &[0xff; 5000], 0);
        write(at, "empty", b"", 0);
        write(at, "words.ids", b"# tidepool hot ids of pin@v1\n7\nseven\n", 0);
        write(at, "latin.ids", b"# tidepool hot ids of pin@v1\n7\n# \xe9\n", 0);
        let mut long = list("pin@v1", &[]);
        (0..200_000u64).for_each(|id| long.extend(format!("{id}\n").bytes()));
        // Far behind what is read of it.
        long.extend(b"\nno id\n\xff");
        write(at, "zz-long.ids", &long, 0);
        let mut lists = Lists::of(at).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(lists.ids(&version("pin", "v1"), 3, later, |_| true), [0, 1, 2]);
        let told = lists.problems.join("\n");
        for part in
            ["bytes: the first line", "empty: the first line", "line 3 is no id", "latin.ids: it is not text"]
        {
            assert!(told.contains(part), "{part} is not in: {told}");
        }
    }

    #[test]
    fn no_list_is_read_without_need_and_no_more_files_are_looked_at_than_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        write(at, "good", &list("pin@v1", &[1, 2]), 0);
        write(at, "worse", b"# tidepool hot ids of pin@v1\nno id\n", 9);
        let later = Instant::now() + Duration::from_secs(60);
        let mut lists = Lists::of(at).unwrap();
        assert_eq!(lists.ids(&version("pin", "v1"), 2, later, |_| true), [1, 2]);
        assert!(lists.problems.is_empty(), "{:?}", lists.problems);
        (0..MAX_FILES).for_each(|number| fs::write(at.join(format!(".{number}")), b"").unwrap());
        let problems = Lists::of(at).unwrap().problems;
        assert!(problems.len() == 1 && problems[0].contains("more than 4096 files"), "{problems:?}");
    }

    #[test]
    fn sources_are_merged_by_rank_and_nothing_comes_twice() {
        let lists = [5, 6, 5, 100, 6, 7];
        let turns = [vec![1, 2, 3, 4], vec![], vec![7, 9, 1]];
        let merged = |limit| merged(&lists, &turns, limit, |id| id < 100);
        assert_eq!(merged(99), [5, 6, 7, 1, 2, 9, 3, 4]);
        assert_eq!(merged(4), [5, 6, 7, 1]);
        assert_eq!(merged(0), [0; 0]);
    }
}
