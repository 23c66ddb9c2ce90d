//! Tests of the layers: which wins, and what an error says.

use std::error::Error;

use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    name: String,
    listen: String,
    peers: Vec<String>,
    exact: bool,
    pool: Pool,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Pool {
    threads: usize,
    queue_len: usize,
    share: f64,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            name: String::new(),
            listen: "127.0.0.1:1".into(),
            peers: vec![],
            exact: false,
            pool: Pool::default(),
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { threads: 1, queue_len: 10, share: 0.5 }
    }
}

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

fn overrides(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

/// Loads with `text` as the file.
fn load_text(text: &str, vars: &[(&str, &str)], sets: &[(&str, &str)]) -> Result<Raw, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    fs::write(&path, text).unwrap();
    load_from(Some(&path), "T_NODE", env(vars), &overrides(sets))
}

/// An error and its sources, as a role prints them.
fn chain(error: &ConfigError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text += &format!(": {e}");
        source = e.source();
    }
    text
}

#[test]
fn nothing_given_is_the_defaults() {
    assert_eq!(load_from::<Raw>(None, "T_NODE", env(&[]), &[]).unwrap(), Raw::default());
    assert_eq!(load::<Raw>(None, "TIDEPOOL_NO_SUCH_PREFIX", &[]).unwrap(), Raw::default());
}

#[test]
fn the_later_layer_wins_key_by_key() {
    let file = "name = 'file'\nlisten = 'file'\n[pool]\nthreads = 2\nqueue_len = 20\n";
    let vars = [("T_NODE__LISTEN", "env"), ("T_NODE__POOL__QUEUE_LEN", "30"), ("T_NODE__EXACT", "true")];
    let raw = load_text(file, &vars, &[("pool.queue_len", "40"), ("peers", "['a', 'b']")]).unwrap();
    let expected = Raw {
        name: "file".into(),
        listen: "env".into(),
        peers: vec!["a".into(), "b".into()],
        exact: true,
        pool: Pool { threads: 2, queue_len: 40, share: 0.5 },
    };
    assert_eq!(raw, expected);
}

#[test]
fn text_needs_no_quotes_even_when_it_looks_like_a_number() {
    for (text, name) in [
        ("2026", "2026"),
        ("true", "true"),
        ("\"quoted\"", "quoted"),
        ("nœud 1", "nœud 1"),
        ("", ""),
        ("1\nexact = true", "1\nexact = true"),
    ] {
        let raw = load_text("", &[("T_NODE__NAME", text)], &[]).unwrap();
        assert_eq!(raw, Raw { name: name.into(), ..Raw::default() });
    }
}

#[test]
fn variables_of_others_are_not_ours() {
    let vars = [
        ("T_NODE", "x"),
        ("T_NODE_PORT", "tcp://10.0.0.1:7410"),
        ("T_NODES__NAME", "x"),
        ("NAME", "x"),
        ("t_node__name", "x"),
    ];
    assert_eq!(load_text("", &vars, &[]).unwrap(), Raw::default());
}

#[test]
fn an_unknown_key_is_refused_by_source_and_name() {
    let file = chain(&load_text("[pool]\nthreds = 2\n", &[], &[]).unwrap_err());
    assert!(file.contains("node.toml") && file.contains("threds") && file.contains("line 2"), "{file}");

    let var = chain(&load_text("", &[("T_NODE__POOL__THREDS", "2")], &[]).unwrap_err());
    assert!(var.contains("T_NODE__POOL__THREDS") && var.contains("pool.threds"), "{var}");
    assert!(var.contains("unknown field `threds`") && var.contains("`threads`"), "{var}");

    let set = chain(&load_text("", &[], &[("pol.threads", "2")]).unwrap_err());
    assert!(set.contains("command-line override of pol.threads"), "{set}");
    assert!(set.contains("unknown field `pol`"), "{set}");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_by_source_and_key() {
    let file = chain(&load_text("exact = 1\n", &[], &[]).unwrap_err());
    assert!(file.contains("node.toml") && file.contains("exact = 1"), "{file}");

    let var = chain(&load_text("", &[("T_NODE__POOL__THREADS", "-2")], &[]).unwrap_err());
    assert!(var.contains("T_NODE__POOL__THREADS") && var.contains("-2"), "{var}");
    let word = chain(&load_text("", &[("T_NODE__POOL__THREADS", "two")], &[]).unwrap_err());
    assert!(word.contains("T_NODE__POOL__THREADS") && word.contains("two"), "{word}");

    // A path that goes on below a value.
    let deep = chain(&load_text("", &[], &[("exact.more", "1")]).unwrap_err());
    assert!(deep.contains("exact.more") && deep.contains("expected a boolean"), "{deep}");
}

#[test]
fn keys_with_an_empty_level_are_refused() {
    for key in ["", "pool.", ".threads", "pool..threads"] {
        assert!(matches!(load_text("", &[], &[(key, "1")]), Err(ConfigError::Key { .. })), "{key:?}");
    }
    assert!(matches!(load_text("", &[("T_NODE__", "1")], &[]), Err(ConfigError::Key { .. })));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load_from::<Raw>(Some(Path::new("/no/such.toml")), "T_NODE", env(&[]), &[]).unwrap_err();
    assert!(matches!(&error, ConfigError::Read { .. }));
    assert!(error.to_string().contains("/no/such.toml"), "{error}");
    let syntax = chain(&load_text("a = = 1", &[], &[]).unwrap_err());
    assert!(syntax.contains("line 1"), "{syntax}");
}

#[test]
fn a_variable_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStringExt;
    let vars = [(OsString::from("T_NODE__NAME"), OsString::from_vec(vec![0xff]))];
    let error = load_from::<Raw>(None, "T_NODE", vars, &[]).unwrap_err();
    assert!(error.to_string().contains("T_NODE__NAME"), "{error}");
    let other = [(OsString::from_vec(vec![0xff]), OsString::from("x"))];
    assert!(load_from::<Raw>(None, "T_NODE", other, &[]).is_ok());
}

#[derive(Debug)]
struct Config;

impl TryFrom<Raw> for Config {
    type Error = InvalidConfig;

    fn try_from(raw: Raw) -> Result<Self, InvalidConfig> {
        let mut problems = Problems::default();
        problems.check(!raw.name.is_empty(), "name: must be given");
        problems.check(raw.pool.threads <= 64, "pool.threads: at most 64");
        problems.finish(|| Some(Self))
    }
}

#[test]
fn a_validated_load_reports_all_problems_at_once() {
    let sets = overrides(&[("pool.threads", "65")]);
    let error = load_valid::<Raw, Config>(None, "TIDEPOOL_NO_SUCH_PREFIX", &sets).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("name: must be given; pool.threads: at most 64"), "{text}");
    let sets = overrides(&[("name", "n")]);
    assert!(load_valid::<Raw, Config>(None, "TIDEPOOL_NO_SUCH_PREFIX", &sets).is_ok());
}
