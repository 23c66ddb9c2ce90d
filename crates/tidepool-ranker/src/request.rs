//! A ranking request in the words of the model: every input there once, on its side, and nothing else.

use std::time::Duration;

use tidepool_client::TraceParent;
use tidepool_types::{Calibration, InputSpec, ModelSpec, Name, NameError, Side, UnknownFeatures};

use crate::{RankError, features, finish::Finishing};

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
    /// How many of the best to return; 0: as many as the contract says, which may be all.
    pub top_k: u32,
    /// Whose request it is, as far as the choice of a release goes; empty: the ids of the user features say.
    pub routing_key: String,
    /// Where the candidates are to be shown; empty: nowhere in particular.
    pub surface: String,
    /// Outputs of the model to return beside the score.
    pub outputs: Vec<String>,
}

impl RankRequest {
    /// The longest `request_id`, in bytes: it is sent to every node that is asked, and kept.
    pub const MAX_REQUEST_ID_BYTES: usize = 256;
    /// The longest `routing_key`, in bytes.
    pub const MAX_ROUTING_KEY_BYTES: usize = 1024;
}

/// A feature: a bag of ids, texts or numbers per row, or a fixed count of numbers per row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankFeature {
    /// Its name in the contract.
    pub name: String,
    /// The ids of all rows.
    pub ids: Vec<u64>,
    /// Ids, texts or numbers of a bag per row; `None`: one per row.
    pub lengths: Option<Vec<u32>>,
    /// A weight per id, text or number of a bag; `None`: ones.
    pub weights: Option<Vec<f32>>,
    /// The numbers of all rows.
    pub values: Vec<f32>,
    /// The texts of all rows.
    pub texts: Vec<String>,
}

/// What one request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Candidates.
    pub max_candidates: u32,
    /// Ids of all inputs together, and what they are made from.
    pub max_ids: u64,
}

/// A request that fits its contract.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Of each input, in the contract's order.
    pub rows: Vec<InputRows>,
    /// What is done after the graph.
    pub finishing: Finishing,
    /// Features that nothing takes, at most [`Checked::MAX_TOLD`] of them.
    pub ignored_features: Vec<String>,
}

impl Checked {
    /// Ignored features that are told by name.
    pub const MAX_TOLD: usize = 64;
}

/// The rows of one input, in the shape that the model wants.
#[derive(Clone, Debug, PartialEq)]
pub enum InputRows {
    /// Bags to look up, or sequences of ids: one (user side) or one per candidate. A sequence is no longer than the
    /// contract allows, and has no weights.
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

/// Holds `request` against the contract: makes ids of its features, and gives the rows of each input in the
/// contract's order.
///
/// # Errors
/// [`RankError::Invalid`] names the feature.
pub fn check(request: RankRequest, spec: &ModelSpec, limits: Limits) -> Result<Checked, RankError> {
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
    let outputs = chosen_outputs(&request, spec)?;
    let ids = features::count(&request, spec);
    if ids > limits.max_ids {
        return Err(invalid(format!("{ids} ids, a request may have {}", limits.max_ids)));
    }
    let mut ignored_features = Vec::new();
    let mut sides = [(Side::User, request.user), (Side::Candidate, request.candidate)];
    for (side, features) in &mut sides {
        check_names(*side, features, spec, &mut ignored_features)?;
    }
    let rows_of = |side: Side| if side == Side::User { 1 } else { candidates };
    // Several inputs may take the same feature: all but the last of them take a copy.
    let mut take = |name: &str, side: Side, again: bool| {
        let (side, features) = &mut sides[usize::from(side == Side::Candidate)];
        match features.iter().position(|feature| feature.name == name) {
            Some(at) if again => Ok(features[at].clone()),
            Some(at) => Ok(features.swap_remove(at)),
            None => Err(invalid(format!("{} feature {name:?} is missing", side.as_str()))),
        }
    };
    let taken_later = |name: &str, rest: &[InputSpec]| {
        rest.iter().any(|input| input.feature == name)
            || spec.utility_inputs.iter().any(|input| input.name == name)
    };
    let mut rows = Vec::with_capacity(spec.inputs.len());
    for (at, input) in spec.inputs.iter().enumerate() {
        let again = taken_later(&input.feature, &spec.inputs[at + 1..]);
        let feature = take(&input.feature, input.side, again)?;
        rows.push(features::rows(feature, input, rows_of(input.side))?);
    }
    let mut utility_inputs = Vec::with_capacity(spec.utility_inputs.len());
    for input in &spec.utility_inputs {
        let feature = take(&input.name, input.side, false)?;
        utility_inputs.push(features::numbers(feature, 1, rows_of(input.side))?);
    }
    let top_k = if request.top_k == 0 { spec.top_k } else { request.top_k };
    let finishing = Finishing { surface: request.surface, outputs, utility_inputs, top_k };
    Ok(Checked { rows, finishing, ignored_features })
}

pub(crate) fn invalid(problem: String) -> RankError {
    RankError::Invalid(problem)
}

/// The outputs that are to be returned, and whether the surface is one.
fn chosen_outputs(request: &RankRequest, spec: &ModelSpec) -> Result<Vec<usize>, RankError> {
    let (surface_bytes, limit) = (request.surface.len(), Calibration::MAX_SURFACE_BYTES);
    if surface_bytes > limit {
        return Err(invalid(format!("surface: {surface_bytes} bytes, it may have {limit}")));
    }
    let mut chosen = Vec::new();
    for name in &request.outputs {
        let Some(at) = spec.output(name) else {
            let name = features::shown(name);
            let known: Vec<_> = spec.outputs.iter().map(|output| output.name.as_str()).collect();
            let known = known.join(", ");
            return Err(invalid(format!("model {} has no output {name:?}: it has {known}", spec.model)));
        };
        if chosen.contains(&at) {
            return Err(invalid(format!("output {name:?} is asked for twice")));
        }
        chosen.push(at);
    }
    Ok(chosen)
}

/// Leaves the features that the contract has, each once and on its side.
fn check_names(
    side: Side,
    features: &mut Vec<RankFeature>,
    spec: &ModelSpec,
    ignored: &mut Vec<String>,
) -> Result<(), RankError> {
    if spec.unknown_features == UnknownFeatures::Ignore {
        features.retain(|feature| {
            let known = features::declared(spec, &feature.name).is_some();
            if !known && ignored.len() < Checked::MAX_TOLD {
                ignored.push(features::shown(&feature.name).to_owned());
            }
            known
        });
    }
    for (at, feature) in features.iter().enumerate() {
        let name = features::shown(&feature.name);
        match features::declared(spec, &feature.name) {
            None => {
                return Err(invalid(format!(
                    "model {} takes no {} feature {name:?}",
                    spec.model,
                    side.as_str()
                )));
            }
            Some((declared, _)) if declared != side => {
                return Err(invalid(format!(
                    "feature {name:?} belongs to the {} side, it came on the {} side",
                    declared.as_str(),
                    side.as_str()
                )));
            }
            Some(_) => {}
        }
        if features[..at].iter().any(|earlier| earlier.name == feature.name) {
            return Err(invalid(format!("{} feature {name:?} stands twice", side.as_str())));
        }
    }
    Ok(())
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
        check(request, &spec(), LIMITS).map(|checked| checked.rows)
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

    /// A contract whose features are shared, hashed, cut and weighed.
    fn ads(policy: &str) -> ModelSpec {
        ModelSpec::from_toml(&format!(
            r#"schema_version = 1
            model = "ads"
            score = "utility"
            utility = "p * bid"
            top_k = 7
            unknown_features = "{policy}"
            utility_inputs = [{{ name = "bid", side = "candidate" }}]
            inputs = [
                {{ name = "seen", feature = "items", side = "user", table = "item", sequence = 2 }},
                {{ name = "liked", feature = "items", side = "user", table = "item", transform = [{{ op = "modulo", n = 10 }}] }},
                {{ name = "price", feature = "bid", side = "candidate", width = 1 }},
            ]
            outputs = [{{ name = "p" }}, {{ name = "q" }}]"#
        ))
        .unwrap()
    }

    fn ads_request() -> RankRequest {
        RankRequest {
            candidates: 2,
            user: vec![ids("items", &[11, 22, 33], Some(&[3]))],
            candidate: vec![numbers("bid", &[0.5, 2.0])],
            ..RankRequest::default()
        }
    }

    fn held(request: RankRequest, policy: &str, limits: Limits) -> Result<Checked, RankError> {
        check(request, &ads(policy), limits)
    }

    #[test]
    fn inputs_share_a_feature_and_each_makes_its_own_of_it() {
        let request = RankRequest { outputs: vec!["q".into()], surface: "home".into(), ..ads_request() };
        let checked = held(request, "refuse", LIMITS).unwrap();
        let bags = |ids: &[u64]| {
            let lengths = Some(vec![ids.len() as u32]);
            InputRows::Bags { ids: ids.to_vec(), lengths, weights: None }
        };
        let price = InputRows::Numbers(vec![0.5, 2.0]);
        assert_eq!(checked.rows, [bags(&[22, 33]), bags(&[1, 2, 3]), price]);
        let utility_inputs = vec![vec![0.5, 2.0]];
        let finishing = Finishing { surface: "home".into(), outputs: vec![1], utility_inputs, top_k: 7 };
        assert_eq!(checked.finishing, finishing);
        let asked = RankRequest { top_k: 3, ..ads_request() };
        assert_eq!(held(asked, "refuse", LIMITS).unwrap().finishing.top_k, 3);
        // What two inputs make work of counts twice.
        let limits = Limits { max_ids: 5, ..LIMITS };
        let many = held(ads_request(), "refuse", limits).unwrap_err();
        assert!(many.to_string().ends_with("6 ids, a request may have 5"), "{many}");
        let mut weighed = ads_request();
        weighed.user[0].weights = Some(vec![1.0; 3]);
        let weighed = held(weighed, "refuse", LIMITS).unwrap_err();
        assert!(weighed.to_string().ends_with("feature \"items\": a sequence has no weights"), "{weighed}");
    }

    #[test]
    fn unknown_features_are_refused_or_told() {
        let mut request = ads_request();
        request.user.push(numbers("hat", &[f32::NAN]));
        request.candidate.extend([ids("x", &[1], None), ids(&"x".repeat(1000), &[1], None)]);
        let refused = held(request.clone(), "refuse", LIMITS).unwrap_err();
        assert!(refused.to_string().ends_with("model ads takes no user feature \"hat\""), "{refused}");
        let checked = held(request, "ignore", LIMITS).unwrap();
        assert_eq!(checked.ignored_features, ["hat".to_owned(), "x".into(), "x".repeat(256)]);
        assert_eq!(checked.rows.len(), 3);
        let mut many = ads_request();
        many.user.extend((0..100).map(|n| ids(&format!("f{n}"), &[], None)));
        let checked = held(many, "ignore", LIMITS).unwrap();
        assert_eq!(checked.ignored_features.len(), Checked::MAX_TOLD);
    }

    #[test]
    fn no_candidates_are_fine() {
        let mut request = good();
        request.candidates = 0;
        request.candidate = vec![numbers("price", &[]), ids("genres", &[], None)];
        assert_eq!(run(request).unwrap().len(), 3);
    }
}
