//! Rankings as JSON: what `POST /v1/rank` takes and gives. `tidepool rank FILE` posts its file there.
//!
//! ```json
//! {"model": "movielens", "top_k": 10,
//!  "user": {"user": 196, "age": [0.3], "seen": {"ids": [1, 2], "weights": [0.5, 1.0]}},
//!  "candidates": {"item": [242, 302], "genres": [[1, 2], [3]]}}
//! ```
//! A user feature is a number, a text or a list of one of the two; a candidate feature is a list with one entry per
//! candidate, each a number, a text or a list; `{"ids": ..., "weights": ...}` of the same shape gives a weight per id,
//! text or number of a bag. Optional keys: `release`, `top_k` (0: as the contract says), `outputs`, `surface`,
//! `deadline_ms`, `request_id`, `tenant`, `routing_key`; a `scenario` may stand in
//! place of the `model`. Ids are whole numbers up to 2^64-1.
//!
//! Whether numbers are ids is for the model's contract to say, not for how they are written. (A feature that the
//! contract does not have is refused later, by name; until then it is what it looks like. Where the contract ignores
//! such features, nothing but the name is kept of it.)

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Number, Value, json};
use thiserror::Error;
use tidepool_proto::{
    pack::{pack, unpack},
    v1,
};
use tidepool_types::{FeatureKind, ModelSpec, RawKind, Side, UnknownFeatures};

use crate::{choice::Choice, features::declared};

/// A document that is no ranking request.
#[derive(Debug, Error)]
pub(crate) enum JsonError {
    /// Not JSON, or not these keys.
    #[error("the request does not parse")]
    Syntax(#[from] serde_json::Error),
    /// A feature is not of the shapes above.
    #[error("{side} feature {name:?}: {problem}", side = .side.as_str())]
    Feature {
        /// Where it stands.
        side: Side,
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Features disagree on how many candidates there are.
    #[error("candidate feature {name:?} has {found} entries, {first:?} has {expected}")]
    Candidates {
        /// The one that differs.
        name: String,
        /// Its entries.
        found: usize,
        /// The first feature.
        first: String,
        /// The entries of that.
        expected: usize,
    },
}

/// A ranking request as it was written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JsonRequest {
    /// The model; empty when a scenario says which.
    #[serde(default)]
    pub(crate) model: String,
    /// What stands for a model.
    #[serde(default)]
    pub(crate) scenario: String,
    /// That very release; absent: the current one.
    #[serde(default)]
    pub(crate) release: Option<String>,
    /// How many of the best to return; 0: as the contract says.
    #[serde(default)]
    pub(crate) top_k: u32,
    /// Outputs to return beside the score.
    #[serde(default)]
    pub(crate) outputs: Vec<String>,
    /// Where the candidates are to be shown.
    #[serde(default)]
    pub(crate) surface: String,
    /// The whole budget, in milliseconds; absent: the ranker's default.
    #[serde(default)]
    pub(crate) deadline_ms: Option<u64>,
    /// Echoed in logs.
    #[serde(default)]
    pub(crate) request_id: String,
    /// Who asks.
    #[serde(default)]
    pub(crate) tenant: String,
    /// Whose request it is, as far as the choice of a release goes.
    #[serde(default)]
    pub(crate) routing_key: String,
    user: Features,
    candidates: Features,
}

/// The features in the order of the document, repeated names included.
#[derive(Clone, Debug, Default)]
struct Features(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Features;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of features by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Features, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Features(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl JsonRequest {
    /// Reads the text of a request.
    ///
    /// # Errors
    /// [`JsonError::Syntax`] says where it does not parse.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, JsonError> {
        let request: Self = serde_json::from_slice(text)?;
        if request.model.is_empty() && request.scenario.is_empty() {
            return Err(serde_json::Error::missing_field("model").into());
        }
        Ok(request)
    }

    /// The one id, text or number that each candidate has of a feature.
    ///
    /// # Errors
    /// Says why the feature names no candidates.
    pub(crate) fn candidate_names(&self, feature: &str) -> Result<Vec<String>, String> {
        let named = self.candidates.0.iter().find(|(name, _)| name == feature);
        let (_, value) = named.ok_or_else(|| format!("there is no candidate feature {feature:?}"))?;
        let rows = rows(value).map_err(|problem| format!("candidate feature {feature:?}: {problem}"))?;
        let name = |(at, entry): (usize, &&[Value])| match entry {
            [Value::String(text)] => Ok(text.clone()),
            [Value::Number(number)] => Ok(number.to_string()),
            _ => Err(format!("candidate feature {feature:?}: candidate {at} does not have one id of it")),
        };
        rows.entries.iter().enumerate().map(name).collect()
    }

    /// The message to send. `spec` says which features are ids.
    ///
    /// # Errors
    /// [`JsonError`] names the feature. Whether the features are those of the model is for the ranker to say.
    pub(crate) fn to_message(&self, spec: &ModelSpec) -> Result<v1::RankRequest, JsonError> {
        let mut candidates: Option<(&str, usize)> = None;
        let mut user = Vec::new();
        let ignored =
            |name: &str| spec.unknown_features == UnknownFeatures::Ignore && declared(spec, name).is_none();
        let only_named = |name: &String| v1::Feature { name: name.clone(), ..v1::Feature::default() };
        for (name, value) in &self.user.0 {
            user.push(match ignored(name) {
                true => only_named(name),
                false => message(Side::User, name, &one_row(value), spec)?,
            });
        }
        let mut candidate = Vec::new();
        for (name, value) in &self.candidates.0 {
            if ignored(name) {
                candidate.push(only_named(name));
                continue;
            }
            let rows = self::rows(value).map_err(|problem| fail(Side::Candidate, name, problem))?;
            match candidates {
                Some((first, expected)) if expected != rows.entries.len() => {
                    let (name, found, first) = (name.clone(), rows.entries.len(), first.to_owned());
                    return Err(JsonError::Candidates { name, found, first, expected });
                }
                _ => candidates = Some(candidates.unwrap_or((name, rows.entries.len()))),
            }
            candidate.push(message(Side::Candidate, name, &Ok(rows), spec)?);
        }
        Ok(v1::RankRequest {
            request_id: self.request_id.clone(),
            tenant: self.tenant.clone(),
            deadline_us: self.deadline_ms.map_or(0, |ms| ms.saturating_mul(1_000).max(1)),
            model: self.model.clone(),
            release: self.release.clone().unwrap_or_default(),
            candidates: u32::try_from(candidates.map_or(0, |(_, n)| n)).unwrap_or(u32::MAX),
            user,
            candidate,
            top_k: self.top_k,
            routing_key: self.routing_key.clone(),
            scenario: self.scenario.clone(),
            surface: self.surface.clone(),
            outputs: self.outputs.clone(),
        })
    }
}

fn fail(side: Side, name: &str, problem: String) -> JsonError {
    JsonError::Feature { side, name: name.to_owned(), problem }
}

/// The values of a feature, row by row.
struct Rows<'v> {
    entries: Vec<&'v [Value]>,
    weights: Option<Vec<&'v [Value]>>,
}

/// A candidate feature: a list of entries, or two of them.
fn rows<'v>(value: &'v Value) -> Result<Rows<'v>, String> {
    let list = |value: &'v Value| match value {
        Value::Array(rows) => Ok(rows.iter().map(entry).collect::<Vec<_>>()),
        _ => Err("a list with one entry per candidate is expected".to_owned()),
    };
    weighted(value, list)
}

/// A user feature: one entry, or two of them.
fn one_row(value: &Value) -> Result<Rows<'_>, String> {
    weighted(value, |value| Ok(vec![entry(value)]))
}

/// An entry is a list, or what may be a number or a text.
fn entry(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        single => std::slice::from_ref(single),
    }
}

fn weighted<'v>(
    value: &'v Value,
    list: impl Fn(&'v Value) -> Result<Vec<&'v [Value]>, String>,
) -> Result<Rows<'v>, String> {
    let Value::Object(parts) = value else { return Ok(Rows { entries: list(value)?, weights: None }) };
    if let Some(other) = parts.keys().find(|key| !["ids", "weights"].contains(&key.as_str())) {
        return Err(format!("unknown key {other:?}: ids and weights are known"));
    }
    let ids = parts.get("ids").ok_or("ids are missing")?;
    let rows = Rows { entries: list(ids)?, weights: parts.get("weights").map(list).transpose()? };
    let lens = |rows: &[&[Value]]| rows.iter().map(|row| row.len()).collect::<Vec<_>>();
    if rows.weights.as_ref().is_some_and(|weights| lens(weights) != lens(&rows.entries)) {
        return Err("the weights are not of the shape of the ids".into());
    }
    Ok(rows)
}

fn message(
    side: Side,
    name: &str,
    rows: &Result<Rows<'_>, String>,
    spec: &ModelSpec,
) -> Result<v1::Feature, JsonError> {
    let fail = |problem: String| fail(side, name, problem);
    let rows = rows.as_ref().map_err(|problem| fail(problem.clone()))?;
    let values = rows.entries.iter().copied().flatten();
    let mut feature = v1::Feature { name: name.to_owned(), ..v1::Feature::default() };
    let kind = match declared(spec, name) {
        Some((_, FeatureKind::Bag(kind))) => Some(kind),
        Some((_, FeatureKind::Row { .. })) => rows.weights.is_some().then_some(RawKind::Ids),
        None => looks_like(rows),
    };
    match kind {
        Some(RawKind::Texts) => {
            let text = |value: &Value| match value {
                Value::String(text) => Ok(text.clone()),
                other => Err(fail(format!("{other} is no text"))),
            };
            feature.texts = values.map(text).collect::<Result<_, _>>()?;
        }
        Some(RawKind::Ids) => {
            let id = |value: &Value| {
                let number = number(value).map_err(fail)?;
                number.as_u64().ok_or_else(|| fail(format!("{number} is no id: a whole number up to 2^64-1")))
            };
            feature.ids = pack(&values.map(id).collect::<Result<Vec<u64>, _>>()?);
        }
        Some(RawKind::Numbers) | None => {
            let value = |value: &Value| number(value).and_then(float).map_err(fail);
            feature.values = pack(&values.map(value).collect::<Result<Vec<f32>, _>>()?);
        }
    }
    if kind.is_none() {
        let width = rows.entries.first().map_or(0, |row| row.len());
        if let Some(at) = rows.entries.iter().position(|row| row.len() != width) {
            let found = rows.entries[at].len();
            return Err(fail(format!("entry {at} has {found} numbers, entry 0 has {width}")));
        }
        return Ok(feature);
    }
    let lengths = rows.entries.iter().map(|row| u32::try_from(row.len()).unwrap_or(u32::MAX));
    feature.lengths = pack(&lengths.collect::<Vec<u32>>());
    if let Some(weights) = &rows.weights {
        let weight = |weight: &Value| match weight {
            Value::Number(number) => float(number).map_err(fail),
            other => Err(fail(format!("weight {other} is no number"))),
        };
        let weights = weights.iter().copied().flatten().map(weight);
        feature.weights = pack(&weights.collect::<Result<Vec<f32>, _>>()?);
    }
    Ok(feature)
}

/// What a bag is made of that the contract says nothing of; `None`: numbers that are no bag.
fn looks_like(rows: &Rows<'_>) -> Option<RawKind> {
    let mut values = rows.entries.iter().copied().flatten();
    if values.clone().any(Value::is_string) {
        return Some(RawKind::Texts);
    }
    (rows.weights.is_some() || values.all(|value| !value.is_number() || value.is_u64()))
        .then_some(RawKind::Ids)
}

fn number(value: &Value) -> Result<&Number, String> {
    match value {
        Value::Number(number) => Ok(number),
        other => Err(format!("{other} is no number")),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "to the nearest f32; what is too large becomes infinite")]
fn float(number: &Number) -> Result<f32, String> {
    let value = number.as_f64().map(|value| value as f32).filter(|value| value.is_finite());
    value.ok_or_else(|| format!("{number} is beyond f32"))
}

/// An answer as JSON: what was ranked, by which release and tables, and what it took.
pub(crate) fn answer(response: &v1::RankResponse) -> Value {
    let indexes = unpack::<u32>(&response.indexes).into_iter().flatten();
    let scores = unpack::<f32>(&response.scores).into_iter().flatten();
    let outputs: Vec<(&str, Vec<f32>)> = response
        .outputs
        .iter()
        .map(|output| (output.name.as_str(), unpack(&output.values).into_iter().flatten().collect()))
        .collect();
    let results = indexes.zip(scores).enumerate().map(|(at, (index, score))| {
        let mut result = json!({ "index": index, "score": short(score) });
        if !outputs.is_empty() {
            let value = |values: &Vec<f32>| values.get(at).map(|value| short(*value));
            let named = outputs.iter().map(|(name, values)| ((*name).to_owned(), json!(value(values))));
            result["outputs"] = Value::Object(named.collect());
        }
        result
    });
    let versions = response.table_versions.iter();
    json!({
        "request_id": response.request_id,
        "model": response.model,
        "release": response.release,
        "choice": Choice::word(response.choice()),
        "bucket": response.bucket,
        "epoch": response.epoch,
        "table_versions":
            versions.map(|t| json!({ "table": t.table, "version": t.version })).collect::<Vec<_>>(),
        "results": results.collect::<Vec<_>>(),
        "schema_hash": format!("{:016x}", response.schema_hash),
        "ignored_features": response.ignored_features,
        "missing_ids": response.missing_ids,
        "defaulted_bags": response.defaulted_bags,
        "unavailable_ids": response.unavailable_ids,
        "partial": response.partial,
        "rows_looked_up": response.rows_looked_up,
        "nodes_touched": response.nodes_touched,
        "batch_requests": response.batch_requests,
        "batch_wait_us": response.batch_wait_us,
        "lookup_us": response.lookup_us,
        "queue_us": response.queue_us,
        "dense_us": response.dense_us,
    })
}

/// The shortest decimal that reads back as this very f32; widened as it is, 0.9 would show 16 digits.
pub(crate) fn short(score: f32) -> f64 {
    score.to_string().parse().unwrap_or_else(|_| f64::from(score))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A contract that has none of the features below.
    fn unrelated() -> ModelSpec {
        let text = r#"schema_version = 1
            model = "m"
            score = "p"
            inputs = [{ name = "unrelated", side = "user", width = 1 }]
            outputs = [{ name = "p" }]"#;
        ModelSpec::from_toml(text).unwrap()
    }

    fn convert(text: &str, spec: &ModelSpec) -> Result<v1::RankRequest, JsonError> {
        JsonRequest::parse(text.as_bytes())?.to_message(spec)
    }

    fn refusal(text: &str) -> String {
        tidepool_runtime::error::chain(&convert(text, &unrelated()).unwrap_err())
    }

    #[test]
    fn numbers_lists_and_weights_become_features() {
        let text = r#"{"model": "m", "top_k": 3, "deadline_ms": 20, "release": "r",
            "user": {"user": 18446744073709551615, "age": [0.5],
                     "seen": {"ids": [1, 2], "weights": [0.25, 1]}},
            "candidates": {"item": [242, [302]], "genres": [[1, 2], []], "price": [[1.5], [2]]}}"#;
        let request = convert(text, &unrelated()).unwrap();
        assert_eq!((request.candidates, request.top_k, request.deadline_us), (2, 3, 20_000));
        assert_eq!((request.model.as_str(), request.release.as_str()), ("m", "r"));
        let user = &request.user;
        assert_eq!(user[0].ids, pack(&[u64::MAX]));
        assert_eq!((&user[1].values, user[1].ids.len(), user[1].lengths.len()), (&pack(&[0.5f32]), 0, 0));
        assert_eq!((&user[2].ids, &user[2].weights), (&pack(&[1u64, 2]), &pack(&[0.25f32, 1.0])));
        assert_eq!(user[2].lengths, pack(&[2u32]));
        let candidate = &request.candidate;
        assert_eq!(candidate[0].lengths, pack(&[1u32, 1]));
        assert_eq!((&candidate[1].ids, &candidate[1].lengths), (&pack(&[1u64, 2]), &pack(&[2u32, 0])));
        assert_eq!(candidate[2].values, pack(&[1.5f32, 2.0]), "one written as a value makes all values");
    }

    #[test]
    fn the_contract_decides_where_it_is_at_hand() {
        let spec = ModelSpec::from_toml(
            r#"
            schema_version = 1
            model = "m"
            score = "p"
            inputs = [
                { name = "age", side = "user", width = 1 },
                { name = "item", side = "candidate", table = "item" },
            ]
            outputs = [ { name = "p" } ]
            "#,
        )
        .unwrap();
        let text = r#"{"model": "m", "user": {"age": 1}, "candidates": {"item": [7]}}"#;
        let request = convert(text, &spec).unwrap();
        assert_eq!(
            (request.user[0].values.as_ref(), request.user[0].ids.len()),
            (&1f32.to_le_bytes()[..], 0)
        );
        assert_eq!(request.candidate[0].ids, pack(&[7u64]));
        let text = r#"{"model": "m", "user": {"age": 1}, "candidates": {"item": [-7]}}"#;
        let error = convert(text, &spec).unwrap_err().to_string();
        assert_eq!(error, "candidate feature \"item\": -7 is no id: a whole number up to 2^64-1");
    }

    #[test]
    fn malformed_documents_are_refused_and_the_place_named() {
        assert!(refusal("{").contains("does not parse"));
        assert_eq!(refusal("{").matches("EOF").count(), 1, "the cause is not said twice");
        assert!(refusal(r#"{"user": {}, "candidates": {}}"#).contains("model"));
        let rank = |user: &str, candidates: &str| {
            refusal(&format!(r#"{{"model": "m", "user": {user}, "candidates": {candidates}}}"#))
        };
        assert!(refusal(r#"{"model": "m", "user": {}, "candidates": {}, "topk": 1}"#).contains("topk"));
        assert_eq!(rank(r#"{"a": ["x", 1]}"#, "{}"), "user feature \"a\": 1 is no text");
        assert_eq!(rank(r#"{"a": [null]}"#, "{}"), "user feature \"a\": null is no number");
        assert!(rank(r#"{"a": 1e39}"#, "{}").contains("beyond f32"));
        assert!(rank(r#"{"a": {"ids": [1], "weights": [1, 2]}}"#, "{}").contains("shape of the ids"));
        assert!(rank(r#"{"a": {"weights": [1]}}"#, "{}").contains("ids are missing"));
        assert!(rank(r#"{"a": {"ids": [1], "w": [1]}}"#, "{}").contains("unknown key \"w\""));
        assert!(rank("{}", r#"{"a": 5}"#).contains("one entry per candidate"));
        assert!(rank("{}", r#"{"a": [[0.5, 1], [1]]}"#).contains("entry 1 has 1 numbers, entry 0 has 2"));
        assert_eq!(
            rank("{}", r#"{"a": [1, 2], "b": [1]}"#),
            "candidate feature \"b\" has 1 entries, \"a\" has 2"
        );
        assert!(rank("[]", "{}").contains("an object of features"));
    }

    /// A contract with texts, buckets and a formula, which ignores what it does not have.
    fn ads() -> ModelSpec {
        ModelSpec::from_toml(
            r#"schema_version = 1
            model = "ads"
            score = "utility"
            utility = "ctr * bid"
            unknown_features = "ignore"
            utility_inputs = [{ name = "bid", side = "candidate" }]
            inputs = [
                { name = "age", side = "user", table = "age", transform = [{ op = "bucketize", boundaries = [18] }] },
                { name = "item", side = "candidate", table = "item", transform = [{ op = "hash", seed = 7 }] },
            ]
            outputs = [{ name = "ctr" }]"#,
        )
        .unwrap()
    }

    #[test]
    fn texts_buckets_and_numbers_of_the_formula_are_what_the_contract_says() {
        let text = r#"{"model": "ads", "surface": "home", "outputs": ["ctr"],
            "user": {"age": 17, "hat": {"size": null}},
            "candidates": {"item": ["a", ["b", "c"]], "bid": [1, 2.5], "color": 5}}"#;
        let request = convert(text, &ads()).unwrap();
        assert_eq!(
            (request.surface.as_str(), request.outputs, request.candidates),
            ("home", vec!["ctr".into()], 2)
        );
        assert_eq!((&request.user[0].values, &request.user[0].lengths), (&pack(&[17f32]), &pack(&[1u32])));
        assert_eq!(request.user[1], v1::Feature { name: "hat".into(), ..v1::Feature::default() });
        let item = &request.candidate[0];
        assert_eq!((item.texts.join(""), &item.lengths), ("abc".to_owned(), &pack(&[1u32, 2])));
        assert_eq!(
            (&request.candidate[1].values, request.candidate[1].lengths.len()),
            (&pack(&[1f32, 2.5]), 0)
        );
        let said = |candidates: &str| {
            let text = format!(r#"{{"model": "ads", "user": {{}}, "candidates": {candidates}}}"#);
            convert(&text, &ads()).unwrap_err().to_string()
        };
        assert_eq!(said(r#"{"item": ["a", 5]}"#), "candidate feature \"item\": 5 is no text");
        assert_eq!(said(r#"{"bid": ["1"]}"#), "candidate feature \"bid\": \"1\" is no number");
    }

    #[test]
    fn a_repeated_name_is_kept_for_the_ranker_to_refuse() {
        let text = r#"{"model": "m", "user": {"a": 1, "a": 2}, "candidates": {}}"#;
        assert_eq!(convert(text, &unrelated()).unwrap().user.len(), 2);
    }

    #[test]
    fn chosen_outputs_stand_beside_the_score() {
        let ctr = v1::NamedValues { name: "ctr".into(), values: pack(&[0.25f32, 0.5]) };
        let response = v1::RankResponse {
            indexes: pack(&[1u32, 0]),
            scores: pack(&[2f32, 1.0]),
            outputs: vec![ctr],
            schema_hash: 0xab,
            ignored_features: vec!["hat".into()],
            ..v1::RankResponse::default()
        };
        let answer = answer(&response);
        assert_eq!(answer["results"][1], json!({ "index": 0, "score": 1.0, "outputs": { "ctr": 0.5 } }));
        assert_eq!(
            (&answer["schema_hash"], &answer["ignored_features"]),
            (&json!("00000000000000ab"), &json!(["hat"]))
        );
    }

    #[test]
    fn scores_are_written_short_and_read_back_the_same() {
        let response = v1::RankResponse {
            indexes: pack(&[1u32, 0]),
            scores: pack(&[0.9f32, 0.1]),
            ..v1::RankResponse::default()
        };
        let text = answer(&response).to_string();
        assert!(text.contains(r#"[{"index":1,"score":0.9},{"index":0,"score":0.1}]"#), "{text}");
        for bits in [1u32, 0x3f7f_ffff, 0x7f7f_ffff, 0xbf80_0001] {
            let score = f32::from_bits(bits);
            assert_eq!((short(score) as f32).to_bits(), bits);
        }
    }
}
