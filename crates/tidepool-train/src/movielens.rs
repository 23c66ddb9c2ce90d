//! Reads MovieLens-100K in RecBole's "atomic files": tab-separated, with a header of `name:type` columns.
//! `scripts/fetch-ml100k.sh` brings them.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    data::{Dataset, Event, Item, User},
    error::DataError,
};

/// A rating of this many stars or more counts as liked.
pub const LIKED_FROM: f32 = 4.0;
/// A rating of this many stars, the most there are, counts as a conversion.
pub const LOVED_FROM: f32 = 5.0;

/// Reads `ml-100k.user`, `ml-100k.item` and `ml-100k.inter` from `dir`, labels each rating (4 stars or more is
/// liked) and splits each user's ratings by time.
///
/// # Errors
/// [`DataError`] names the file, and the line where there is one.
pub fn load_movielens(dir: &Path) -> Result<Dataset, DataError> {
    let users = AtomicFile::read(dir.join("ml-100k.user"), &["user_id", "age", "gender", "occupation"])?;
    let items =
        AtomicFile::read(dir.join("ml-100k.item"), &["item_id", "movie_title", "release_year", "class"])?;
    let ratings =
        AtomicFile::read(dir.join("ml-100k.inter"), &["user_id", "item_id", "rating", "timestamp"])?;

    let occupations = vocabulary(users.lines().map(|(_, f)| f[3]));
    let genres = vocabulary(items.lines().flat_map(|(_, f)| f[3].split(' ').filter(|g| !g.is_empty())));
    let mut data = Dataset {
        name: "movielens".into(),
        users: Vec::new(),
        items: Vec::new(),
        genres: genres.iter().map(|&g| g.to_owned()).collect(),
        occupations: occupations.iter().map(|&o| o.to_owned()).collect(),
        train: Vec::new(),
        validation: Vec::new(),
        test: Vec::new(),
    };
    let mut user_places = HashMap::new();
    for (line, fields) in users.lines() {
        let id = users.number(line, "user_id", fields[0])?;
        let gender = match fields[2] {
            "F" => 1.0,
            "M" => 0.0,
            other => return Err(users.problem(line, format!("gender {other:?} is neither F nor M"))),
        };
        let age: f32 = users.number(line, "age", fields[1])?;
        if !(0.0..=150.0).contains(&age) {
            return Err(users.problem(line, format!("age {age} is not from 0 to 150")));
        }
        let user = User { id, age, gender, occupation: place(&occupations, fields[3]) };
        if user_places.insert(id, place_of_next(&data.users)).is_some() {
            return Err(users.problem(line, format!("user {id} stands twice")));
        }
        data.users.push(user);
    }
    let mut item_places = HashMap::new();
    for (line, fields) in items.lines() {
        let id = items.number(line, "item_id", fields[0])?;
        let year = if fields[2].is_empty() { None } else { fields[2].parse().ok() };
        let genres =
            fields[3].split(' ').filter(|g| !g.is_empty()).map(|genre| place(&genres, genre)).collect();
        if item_places.insert(id, place_of_next(&data.items)).is_some() {
            return Err(items.problem(line, format!("item {id} stands twice")));
        }
        data.items.push(Item { id, title: fields[1].to_owned(), year, genres });
    }
    let mut events = Vec::new();
    for (line, fields) in ratings.lines() {
        let user: u64 = ratings.number(line, "user_id", fields[0])?;
        let item: u64 = ratings.number(line, "item_id", fields[1])?;
        let rating: f32 = ratings.number(line, "rating", fields[2])?;
        let time: f64 = ratings.number(line, "timestamp", fields[3])?;
        if !rating.is_finite() || !time.is_finite() {
            return Err(ratings.problem(line, "rating or timestamp is not finite".into()));
        }
        let Some(&user) = user_places.get(&user) else {
            return Err(ratings.problem(line, format!("user {user} is not in ml-100k.user")));
        };
        let Some(&item) = item_places.get(&item) else {
            return Err(ratings.problem(line, format!("item {item} is not in ml-100k.item")));
        };
        let time = time as i64;
        events.push(Event {
            user,
            item,
            time,
            label: rating >= LIKED_FROM,
            true_probability: None,
            conversion: rating >= LOVED_FROM,
            true_conversion: None,
        });
    }
    data.split(events);
    Ok(data)
}

/// The distinct words, sorted: the place of a word is its id.
fn vocabulary<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    words.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The place of `word`, which the vocabulary was made from.
fn place(vocabulary: &[&str], word: &str) -> u32 {
    vocabulary.partition_point(|&w| w < word) as u32
}

fn place_of_next<T>(list: &[T]) -> u32 {
    list.len() as u32
}

/// A file, and where in its lines the wanted columns stand.
struct AtomicFile {
    path: PathBuf,
    text: String,
    columns: Vec<usize>,
    width: usize,
}

impl AtomicFile {
    /// Reads the file, finds the wanted columns in its header, and checks that every line has all fields.
    fn read(path: PathBuf, wanted: &[&str]) -> Result<Self, DataError> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(DataError::Read { path, source }),
        };
        let header = text.lines().next().unwrap_or_default();
        let names: Vec<&str> =
            header.split('\t').map(|column| column.split(':').next().unwrap_or(column)).collect();
        let mut columns = Vec::new();
        for name in wanted {
            match names.iter().position(|n| n == name) {
                Some(at) => columns.push(at),
                None => {
                    let problem = format!("no column {name:?} in the header {header:?}");
                    return Err(DataError::Header { path, problem });
                }
            }
        }
        let width = names.len();
        let file = Self { path, text, columns, width };
        for (line, text) in file.raw_lines() {
            let fields = text.split('\t').count();
            if fields != file.width {
                return Err(file.problem(line, format!("{fields} fields, the header has {}", file.width)));
            }
        }
        Ok(file)
    }

    /// The lines after the header that are not empty, with their numbers.
    fn raw_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().skip(1).filter(|(_, l)| !l.is_empty()).map(|(at, l)| (at + 1, l))
    }

    /// Line numbers and the wanted fields, in the order they were asked for.
    fn lines(&self) -> impl Iterator<Item = (usize, Vec<&str>)> {
        self.raw_lines().map(|(line, text)| {
            let fields: Vec<&str> = text.split('\t').collect();
            (line, self.columns.iter().map(|&c| fields[c]).collect())
        })
    }

    fn number<T: std::str::FromStr>(&self, line: usize, column: &str, field: &str) -> Result<T, DataError> {
        field.parse().map_err(|_| self.problem(line, format!("{column} {field:?} is not a number")))
    }

    fn problem(&self, line: usize, problem: String) -> DataError {
        DataError::Line { path: self.path.clone(), line, problem }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    const USERS: &str = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n\
        7\t24\tM\ttechnician\t85711\n3\t53\tF\tartist\t94043\n";
    const ITEMS: &str = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n\
        10\tThe Long Tide\t1995\tDrama War\n20\tPools\t\tComedy\n";

    fn ratings() -> String {
        let mut text = String::from("user_id:token\titem_id:token\trating:float\ttimestamp:float\n");
        // Newest first, and two in the same second.
        for k in (0..10).rev() {
            let (item, time) = (10 * (1 + k % 2), 100 + k / 2);
            writeln!(text, "7\t{item}\t{}\t{time}", 1 + k % 5).unwrap();
        }
        text + "3\t20\t4\t5\n"
    }

    fn folder(users: &str, items: &str, ratings: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("user", users), ("item", items), ("inter", ratings)] {
            fs::write(dir.path().join(format!("ml-100k.{name}")), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_small_folder_is_read_and_split_by_time() {
        let data = load_movielens(folder(USERS, ITEMS, &ratings()).path()).unwrap();
        assert_eq!(data.users[1], User { id: 3, age: 53.0, gender: 1.0, occupation: 0 });
        assert_eq!(data.items[0].title, "The Long Tide");
        assert_eq!((data.items[0].year, data.items[1].year), (Some(1995), None));
        assert_eq!(data.genres, ["Comedy", "Drama", "War"]);
        assert_eq!(data.items[0].genres, [1, 2]);
        // Ten ratings of user 7: seven, one, two; the one of user 3 is too few to hold any out.
        assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (8, 1, 2));
        let of_test: Vec<_> = data.test.iter().map(|e| (e.time, e.item, e.label)).collect();
        assert_eq!(of_test, [(104, 0, true), (104, 1, true)]);
        let newest_seen = data.train.iter().filter(|e| e.user == 0).map(|e| e.time).max();
        assert!(newest_seen <= data.validation.iter().map(|e| e.time).min());
        let requests = data.test_requests();
        assert_eq!((requests.len(), requests[0].user_id, requests[0].candidates.len()), (1, 7, 2));
    }

    #[test]
    fn the_order_of_the_file_does_not_matter() {
        let text = ratings();
        let (header, lines) = text.split_once('\n').unwrap();
        let turned: String =
            std::iter::once(header).chain(lines.lines().rev()).map(|l| format!("{l}\n")).collect();
        let data = load_movielens(folder(USERS, ITEMS, &text).path()).unwrap();
        assert_eq!(data, load_movielens(folder(USERS, ITEMS, &turned).path()).unwrap());
    }

    #[test]
    fn bad_files_are_named_with_their_line() {
        let header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n";
        let cases = [
            ("7\t10\tx\t1\n", "rating \"x\" is not a number"),
            ("7\t10\tNaN\t1\n", "not finite"),
            ("7\t10\t3\n", "3 fields, the header has 4"),
            ("8\t10\t3\t1\n", "user 8 is not in ml-100k.user"),
            ("7\t11\t3\t1\n", "item 11 is not in ml-100k.item"),
            ("-7\t10\t3\t1\n", "user_id \"-7\" is not a number"),
        ];
        for (line, expected) in cases {
            let dir = folder(USERS, ITEMS, &format!("{header}7\t10\t3\t1\n{line}"));
            let text = load_movielens(dir.path()).unwrap_err().to_string();
            assert!(text.contains("ml-100k.inter, line 3: ") && text.contains(expected), "{text}");
        }
        let twice = format!("{USERS}7\t24\tM\tartist\t1\n");
        let text = load_movielens(folder(&twice, ITEMS, header).path()).unwrap_err().to_string();
        assert!(text.contains("ml-100k.user, line 4: user 7 stands twice"), "{text}");
        let error = load_movielens(folder(USERS, "", header).path()).unwrap_err();
        assert!(
            matches!(&error, DataError::Header { problem, .. } if problem.contains("item_id")),
            "{error}"
        );
        let error = load_movielens(Path::new("/nowhere")).unwrap_err();
        assert!(matches!(error, DataError::Read { .. }), "{error}");
    }
}
