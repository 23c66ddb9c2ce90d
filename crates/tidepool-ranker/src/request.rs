//! A ranking request in the words of the model: every input there once, on its side, and nothing else.

use std::time::Duration;

use tidepool_client::TraceParent;
use tidepool_types::{InputSource, InputSpec, ModelSpec, Name, NameError, Side};

use crate::RankError;

/// The most numbers that the inputs of one dense run may have together (256 MiB as f32): the bound that
/// `max_candidates` alone would not give for a model with wide inputs.
const MAX_ELEMENTS: u64 = 1 << 26;

/// A request as it came, decoded, not yet held against a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankRequest {
    /// Echoed in the answer and in logs; empty: the ranker gives it one.
    pub request_id: String,
    /// On whose behalf; empty: the ranker's own.
    pub tenant: String,
    /// The caller's place in a trace, which nodes are told.
    pub traceparent: Option<TraceParent>,
    /// The whole budget; `None`: the ranker's default.
    pub budget: Option<Duration>,
    /// The model.
    pub model: String,
    /// That very release; `None`: the current one.
    pub release: Option<String>,
    /// How many candidates there are.
    pub candidates: u32,
    /// One row each.
    pub user: Vec<RankFeature>,
    /// One row per candidate each.
    pub candidate: Vec<RankFeature>,
    /// How many of the best to return; 0: all.
    pub top_k: u32,
    /// Whose request it is, as far as the choice of a release goes; empty: the ids of the user features say.
    pub routing_key: String,
}

impl RankRequest {
    /// The longest `request_id`, in bytes: it is sent to every node that is asked, and kept.
    pub const MAX_REQUEST_ID_BYTES: usize = 256;
    /// The longest `routing_key`, in bytes.
    pub const MAX_ROUTING_KEY_BYTES: usize = 1024;
}

/// A feature: a bag of ids per row, or numbers per row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankFeature {
    /// Name of the model's input.
    pub name: String,
    /// The ids of all rows.
    pub ids: Vec<u64>,
    /// Ids per row; `None`: one per row.
    pub lengths: Option<Vec<u32>>,
    /// A weight per id; `None`: ones.
    pub weights: Option<Vec<f32>>,
    /// The numbers of all rows.
    pub values: Vec<f32>,
}

/// What one request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Candidates.
    pub max_candidates: u32,
    /// Ids of all features together.
    pub max_ids: u64,
}

/// The rows of one input, in the shape that the model wants.
#[derive(Clone, Debug, PartialEq)]
pub enum InputRows {
    /// Bags to look up: one (user side) or one per candidate.
    Bags {
        /// The ids of all bags.
        ids: Vec<u64>,
        /// Ids per bag, adding up; `None`: one per bag.
        lengths: Option<Vec<u32>>,
        /// A finite weight per id.
        weights: Option<Vec<f32>>,
    },
    /// Finite numbers, `[rows, width]`.
    Numbers(Vec<f32>),
}

/// Holds `request` against the contract, and gives the rows of each input in the contract's order.
///
/// # Errors
/// [`RankError::Invalid`] names the feature.
pub fn check(
    request: RankRequest,
    spec: &ModelSpec,
    widths: &[usize],
    limits: Limits,
) -> Result<Vec<InputRows>, RankError> {
    let candidates = request.candidates;
    if candidates > limits.max_candidates {
        let limit = limits.max_candidates;
        return Err(invalid(format!("{candidates} candidates, a request may have {limit}")));
    }
    if !request.tenant.is_empty()
        && let Err(error) = Name::new(request.tenant.as_str())
    {
        return Err(invalid(match error {
            NameError::TooLong(name) => format!("tenant: a name of {} bytes is too long", name.len()),
            other => format!("tenant: {other}"),
        }));
    }
    let (id_bytes, limit) = (request.request_id.len(), RankRequest::MAX_REQUEST_ID_BYTES);
    if id_bytes > limit {
        return Err(invalid(format!("request_id: {id_bytes} bytes, it may have {limit}")));
    }
    let (key_bytes, limit) = (request.routing_key.len(), RankRequest::MAX_ROUTING_KEY_BYTES);
    if key_bytes > limit {
        return Err(invalid(format!("routing_key: {key_bytes} bytes, it may have {limit}")));
    }
    let width: u64 = widths.iter().map(|w| *w as u64).sum();
    let elements = width.saturating_mul(u64::from(candidates));
    if elements > MAX_ELEMENTS {
        return Err(invalid(format!(
            "{candidates} candidates of {width} numbers each are {elements}, a request may have {MAX_ELEMENTS}"
        )));
    }
    let features = || request.user.iter().chain(&request.candidate);
    let ids: u64 = features().map(|f| f.ids.len() as u64).sum();
    if ids > limits.max_ids {
        return Err(invalid(format!("{ids} ids, a request may have {}", limits.max_ids)));
    }
    let mut sides = [(Side::User, request.user), (Side::Candidate, request.candidate)];
    for (side, features) in &sides {
        check_names(*side, features, spec)?;
    }
    let mut rows_of = |input: &InputSpec| {
        let (side, features) = &mut sides[usize::from(input.side == Side::Candidate)];
        let Some(at) = features.iter().position(|f| f.name == input.name) else {
            return Err(invalid(format!("{} feature {:?} is missing", word(*side), input.name)));
        };
        let rows = if *side == Side::User { 1 } else { candidates };
        check_rows(features.swap_remove(at), input, rows)
    };
    spec.inputs.iter().map(&mut rows_of).collect()
}

fn invalid(problem: String) -> RankError {
    RankError::Invalid(problem)
}

const fn word(side: Side) -> &'static str {
    match side {
        Side::User => "user",
        Side::Candidate => "candidate",
    }
}

fn check_names(side: Side, features: &[RankFeature], spec: &ModelSpec) -> Result<(), RankError> {
    for (at, feature) in features.iter().enumerate() {
        let name = &feature.name;
        match spec.inputs.iter().find(|i| &i.name == name) {
            None => {
                return Err(invalid(format!(
                    "model {} takes no {} feature {name:?}",
                    spec.model,
                    word(side)
                )));
            }
            Some(input) if input.side != side => {
                return Err(invalid(format!(
                    "feature {name:?} belongs to the {} side, it came on the {} side",
                    word(input.side),
                    word(side)
                )));
            }
            Some(_) => {}
        }
        if features[..at].iter().any(|earlier| &earlier.name == name) {
            return Err(invalid(format!("{} feature {name:?} stands twice", word(side))));
        }
    }
    Ok(())
}

fn check_rows(feature: RankFeature, input: &InputSpec, rows: u32) -> Result<InputRows, RankError> {
    let fail = |problem: String| Err(invalid(format!("feature {:?}: {problem}", input.name)));
    let finite = |what: &str, numbers: &[f32]| match numbers.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(invalid(format!("feature {:?}: {what} {at} is {}", input.name, numbers[at]))),
        None => Ok(()),
    };
    match &input.source {
        InputSource::Pooled { .. } => {
            if !feature.values.is_empty() {
                return fail("the model takes ids here, not numbers".into());
            }
            let ids = feature.ids.len() as u64;
            match &feature.lengths {
                None if ids != u64::from(rows) => {
                    return fail(format!("{ids} ids without lengths, there must be {rows}, one per row"));
                }
                Some(lengths) if lengths.len() as u64 != u64::from(rows) => {
                    return fail(format!("{} lengths, there must be {rows}, one per row", lengths.len()));
                }
                Some(lengths) => {
                    let sum: u64 = lengths.iter().map(|l| u64::from(*l)).sum();
                    if sum != ids {
                        return fail(format!("the lengths add up to {sum}, there are {ids} ids"));
                    }
                }
                None => {}
            }
            if let Some(weights) = &feature.weights {
                if weights.len() as u64 != ids {
                    return fail(format!("{} weights for {ids} ids", weights.len()));
                }
                finite("weight", weights)?;
            }
            Ok(InputRows::Bags { ids: feature.ids, lengths: feature.lengths, weights: feature.weights })
        }
        InputSource::Dense { width } => {
            if !feature.ids.is_empty() || feature.weights.is_some() || feature.lengths.is_some() {
                return fail("the model takes numbers here, not ids".into());
            }
            let expected = u64::from(rows) * u64::from(*width);
            if feature.values.len() as u64 != expected {
                let found = feature.values.len();
                return fail(format!("{found} numbers, there must be {expected}: {rows} rows of {width}"));
            }
            finite("number", &feature.values)?;
            Ok(InputRows::Numbers(feature.values))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_candidates: 10, max_ids: 20 };

    fn spec() -> ModelSpec {
        ModelSpec::from_toml(
            r#"
            schema_version = 1
            model = "m"
            score = "p"
            inputs = [
                { name = "user", side = "user", table = "user" },
                { name = "genres", side = "candidate", table = "genre", pooling = "mean" },
                { name = "price", side = "candidate", width = 2 },
            ]
            outputs = [ { name = "p" } ]
            "#,
        )
        .unwrap()
    }

    fn ids(name: &str, ids: &[u64], lengths: Option<&[u32]>) -> RankFeature {
        let lengths = lengths.map(<[u32]>::to_vec);
        RankFeature { name: name.into(), ids: ids.to_vec(), lengths, ..RankFeature::default() }
    }

    fn numbers(name: &str, values: &[f32]) -> RankFeature {
        RankFeature { name: name.into(), values: values.to_vec(), ..RankFeature::default() }
    }

    fn good() -> RankRequest {
        RankRequest {
            candidates: 2,
            user: vec![ids("user", &[u64::MAX], None)],
            candidate: vec![
                numbers("price", &[1.0, 2.0, 3.0, 4.0]),
                ids("genres", &[1, 2, 3], Some(&[3, 0])),
            ],
            ..RankRequest::default()
        }
    }

    fn run(request: RankRequest) -> Result<Vec<InputRows>, RankError> {
        check(request, &spec(), &[4, 4, 2], LIMITS)
    }

    /// What is said of the good request after `change`.
    fn refusal(change: impl FnOnce(&mut RankRequest)) -> String {
        let mut request = good();
        change(&mut request);
        match run(request) {
            Err(RankError::Invalid(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rows_come_in_the_order_of_the_contract() {
        let rows = run(good()).unwrap();
        assert_eq!(rows[0], InputRows::Bags { ids: vec![u64::MAX], lengths: None, weights: None });
        let lengths = Some(vec![3, 0]);
        assert_eq!(rows[1], InputRows::Bags { ids: vec![1, 2, 3], lengths, weights: None });
        assert_eq!(rows[2], InputRows::Numbers(vec![1.0, 2.0, 3.0, 4.0]));
    }

    #[test]
    fn names_and_sides_are_checked() {
        assert_eq!(refusal(|r| r.user.clear()), "user feature \"user\" is missing");
        assert_eq!(refusal(|r| drop(r.candidate.pop())), "candidate feature \"genres\" is missing");
        assert_eq!(
            refusal(|r| r.candidate.push(ids("color", &[1, 2], None))),
            "model m takes no candidate feature \"color\""
        );
        assert_eq!(
            refusal(|r| r.candidate.push(ids("user", &[1, 2], None))),
            "feature \"user\" belongs to the user side, it came on the candidate side"
        );
        assert_eq!(refusal(|r| r.user.push(r.user[0].clone())), "user feature \"user\" stands twice");
    }

    #[test]
    fn counts_are_checked() {
        let lengths = |lengths: &'static [u32]| {
            move |r: &mut RankRequest| r.candidate[1].lengths = Some(lengths.to_vec())
        };
        assert!(refusal(lengths(&[3])).contains("1 lengths, there must be 2"));
        assert!(refusal(lengths(&[2, 2])).contains("add up to 4, there are 3 ids"));
        assert!(refusal(lengths(&[u32::MAX, u32::MAX])).contains("add up to 8589934590"));
        assert!(refusal(|r| r.candidate[1].lengths = None).contains("3 ids without lengths"));
        assert!(refusal(|r| r.user[0].ids.push(1)).contains("there must be 1, one per row"));
        assert!(refusal(|r| r.candidate[1].weights = Some(vec![1.0])).contains("1 weights for 3 ids"));
        assert!(refusal(|r| r.candidate[0].values.truncate(3)).contains("3 numbers, there must be 4"));
        assert!(refusal(|r| r.candidates = 3).contains("there must be"));
        assert!(refusal(|r| r.candidates = 0).contains("there must be 0"));
    }

    #[test]
    fn kinds_and_values_are_checked() {
        assert!(refusal(|r| r.candidate[0].values[3] = f32::NAN).contains("\"price\": number 3 is NaN"));
        assert!(
            refusal(|r| r.candidate[1].weights = Some(vec![1.0, f32::INFINITY, 0.0])).contains("weight 1")
        );
        assert!(refusal(|r| r.candidate[1].values = vec![1.0]).contains("takes ids here"));
        assert!(refusal(|r| r.candidate[0].ids = vec![1]).contains("takes numbers here"));
    }

    #[test]
    fn limits_are_kept() {
        assert_eq!(refusal(|r| r.candidates = 11), "11 candidates, a request may have 10");
        assert_eq!(refusal(|r| r.candidates = u32::MAX), "4294967295 candidates, a request may have 10");
        assert_eq!(refusal(|r| r.candidate[1].ids = vec![0; 20]), "21 ids, a request may have 20");
        let wide = check(good(), &spec(), &[usize::MAX / 2, 4, 2], LIMITS).unwrap_err();
        assert!(wide.to_string().contains("a request may have 67108864"), "{wide}");
    }

    #[test]
    fn a_tenant_is_a_name_or_nobody() {
        assert!(refusal(|r| r.tenant = "a b".into()).starts_with("tenant: "));
        assert!(refusal(|r| r.tenant = "x".repeat(1 << 20)).len() < 100);
        for tenant in ["", "ads"] {
            assert!(run(RankRequest { tenant: tenant.into(), ..good() }).is_ok(), "{tenant:?}");
        }
    }

    #[test]
    fn a_request_id_is_short() {
        assert_eq!(
            refusal(|r| r.request_id = "ü".repeat(1 << 19)),
            "request_id: 1048576 bytes, it may have 256"
        );
    }

    #[test]
    fn a_routing_key_is_short() {
        assert_eq!(
            refusal(|r| r.routing_key = "x".repeat(2000)),
            "routing_key: 2000 bytes, it may have 1024"
        );
    }

    #[test]
    fn no_candidates_are_fine() {
        let mut request = good();
        request.candidates = 0;
        request.candidate = vec![numbers("price", &[]), ids("genres", &[], None)];
        assert_eq!(run(request).unwrap().len(), 3);
    }
}
