//! The samples that are shipped state what the code does: each key, with its default.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// For a test of each role: checks that the sample file `text` parses as `Raw`, that it has every key that
/// the defaults have, and that each value is the default.
///
/// A key without a default in the code (`None`, an empty string or an empty list) may have any example in
/// the sample, or stand there as a comment, `# key = "example"`; but it must stand there.
///
/// # Errors
/// All differences, one a line.
pub fn sample_matches_defaults<Raw>(text: &str) -> Result<(), String>
where
    Raw: Serialize + DeserializeOwned + Default,
{
    toml::from_str::<Raw>(text).map_err(|e| format!("the sample is not accepted: {e}"))?;
    let sample: toml::Table = text.parse().map_err(|e| format!("the sample is not TOML: {e}"))?;
    // As JSON and not as TOML, because JSON writes a `None` out.
    let object = |value: serde_json::Result<Value>| match value {
        Ok(Value::Object(map)) => Ok(map),
        other => Err(format!("a configuration is a table of keys, not {other:?}")),
    };
    let sample = object(serde_json::to_value(sample))?;
    let defaults = object(serde_json::to_value(Raw::default()))?;
    let mut comparison = Comparison { text, differences: Vec::new() };
    comparison.compare("", &defaults, &sample);
    if comparison.differences.is_empty() { Ok(()) } else { Err(comparison.differences.join("\n")) }
}

struct Comparison<'a> {
    text: &'a str,
    differences: Vec<String>,
}

impl Comparison<'_> {
    /// Compares one section; `section` is empty or ends with a dot.
    fn compare(&mut self, section: &str, defaults: &Map<String, Value>, sample: &Map<String, Value>) {
        for (name, default) in defaults {
            let key = format!("{section}{name}");
            match (default, sample.get(name)) {
                (_, None) if is_unset(default) && self.has_comment(name) => {}
                (_, None) => {
                    self.differences.push(format!("{key}: not in the sample, the default is {default}"));
                }
                (Value::Object(default), Some(Value::Object(stated))) => {
                    self.compare(&format!("{key}."), default, stated);
                }
                (default, Some(stated)) if default == stated || is_unset(default) => {}
                (default, Some(stated)) => {
                    self.differences
                        .push(format!("{key}: the sample says {stated}, the default is {default}"));
                }
            }
        }
        for name in sample.keys().filter(|name| !defaults.contains_key(*name)) {
            self.differences.push(format!("{section}{name}: in the sample, the defaults have no such key"));
        }
    }

    /// Whether a comment line sets `name`, in whatever section.
    fn has_comment(&self, name: &str) -> bool {
        self.text.lines().any(|line| {
            let comment = line.trim_start().strip_prefix('#').and_then(|c| c.trim_start().strip_prefix(name));
            comment.is_some_and(|rest| rest.trim_start().starts_with('='))
        })
    }
}

fn is_unset(default: &Value) -> bool {
    match default {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Raw {
        name: String,
        queue_len: u32,
        pool: Pool,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Pool {
        threads: u32,
        share: f64,
        hosts: Vec<String>,
        zone: Option<String>,
    }

    impl Default for Raw {
        fn default() -> Self {
            Self { name: String::new(), queue_len: 8, pool: Pool::default() }
        }
    }

    impl Default for Pool {
        fn default() -> Self {
            Self { threads: 2, share: 0.1, hosts: Vec::new(), zone: None }
        }
    }

    const COMPLETE: &str = r#"
name = "node-1" # required
queue_len = 8
[pool]
threads = 2
share = 0.1
hosts = ["a"]
# zone = "a"
"#;

    #[test]
    fn a_complete_sample_passes() {
        assert_eq!(sample_matches_defaults::<Raw>(COMPLETE), Ok(()));
        let stated = COMPLETE.replace("# zone", "zone");
        assert_eq!(sample_matches_defaults::<Raw>(&stated), Ok(()));
    }

    #[test]
    fn each_difference_is_named() {
        let error = sample_matches_defaults::<Raw>("queue_len = 9\n# threads = 2\n[pool]\nshare = 0.1\n");
        let error = error.unwrap_err();
        let mut lines: Vec<_> = error.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "name: not in the sample, the default is \"\"",
                "pool.hosts: not in the sample, the default is []",
                "pool.threads: not in the sample, the default is 2",
                "pool.zone: not in the sample, the default is null",
                "queue_len: the sample says 9, the default is 8",
            ]
        );
        let unknown = sample_matches_defaults::<Raw>(&COMPLETE.replace("queue", "quue")).unwrap_err();
        assert!(unknown.contains("quue_len"), "{unknown}");
    }
}
