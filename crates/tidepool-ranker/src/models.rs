//! `GET /v1/models`: what the models that are loaded here take, so that clients send that and no more.
//! `model=NAME` (percent-encoded) asks for one model alone.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tidepool_types::{ErrorCode, FeatureKind, FeatureSpec, ModelSpec, RawKind, Side, UnknownFeatures};

use crate::{http::answer_error, loaded::LoadedRelease, recent::decoded, releases::Releases};

/// The route.
pub(crate) fn routes(ranker: String, releases: Releases) -> Router {
    Router::new().route("/v1/models", get(tell)).with_state((ranker, releases))
}

async fn tell(State((ranker, releases)): State<(String, Releases)>, uri: Uri) -> Response {
    let refused = |problem: &str| answer_error(StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest, problem);
    let model = match uri.query().unwrap_or_default() {
        "" => None,
        query => match query.strip_prefix("model=").map(decoded) {
            Some(Some(model)) => Some(model),
            Some(None) => return refused("model: it is not percent-encoded UTF-8"),
            None => return refused("model=NAME is known, and nothing else"),
        },
    };
    let now = releases.snapshot();
    let wanted =
        |loaded: &&Arc<LoadedRelease>| model.as_deref().is_none_or(|model| model == loaded.model.as_str());
    let models: Vec<_> = now
        .loaded()
        .filter(wanted)
        .map(|loaded| {
            let current = now.map.current_release(&loaded.model);
            describe(loaded, current.is_some_and(|current| current.release == loaded.release))
        })
        .collect();
    if let (Some(model), true) = (&model, models.is_empty()) {
        let model: String = model.chars().take(100).collect();
        let problem = format!("no release of a model {model:?} is loaded here");
        return answer_error(StatusCode::NOT_FOUND, ErrorCode::NotFound, &problem);
    }
    Json(json!({ "schema_version": 1, "ranker": ranker, "models": models })).into_response()
}

fn describe(loaded: &LoadedRelease, current: bool) -> Value {
    let mut object = contract(&loaded.spec);
    object["model"] = json!(loaded.model);
    object["release"] = json!(loaded.release);
    object["current"] = json!(current);
    object["schema_hash"] = json!(format!("{:016x}", loaded.schema_hash));
    object
}

/// What a contract takes of a request, and what it gives.
fn contract(spec: &ModelSpec) -> Value {
    let features = |side: Side| {
        let features = spec.features().into_iter().filter(move |feature| feature.side == side);
        let feature = |feature: FeatureSpec| {
            let (kind, width) = match feature.kind {
                FeatureKind::Bag(kind) => (kind, None),
                FeatureKind::Row { width } => (RawKind::Numbers, Some(width)),
            };
            // A bag has as many as there are; a width says how many numbers each row has.
            json!({ "name": feature.name, "kind": kind.as_str(), "width": width, "used_by": feature.used_by })
        };
        features.map(feature).collect::<Vec<_>>()
    };
    let surfaces: BTreeSet<_> =
        spec.calibrations.iter().map(|calibration| calibration.surface.as_str()).collect();
    json!({
        "user": features(Side::User),
        "candidate": features(Side::Candidate),
        "outputs": spec.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(),
        "score": spec.score_name(),
        "utility": spec.utility.as_ref().map(|utility| utility.text()),
        "surfaces": surfaces,
        "top_k": spec.top_k,
        "unknown_features": match spec.unknown_features {
            UnknownFeatures::Refuse => "refuse",
            UnknownFeatures::Ignore => "ignore",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contract_tells_what_it_takes_and_gives() {
        let spec = ModelSpec::from_toml(
            r#"schema_version = 1
            model = "ads"
            score = "utility"
            utility = "ctr * bid"
            utility_inputs = [{ name = "bid", side = "candidate" }]
            inputs = [
                { name = "age", side = "user", width = 2 },
                { name = "item", feature = "sku", side = "candidate", table = "item", transform = [{ op = "hash" }] },
                { name = "item_2", feature = "sku", side = "candidate", table = "item", transform = [{ op = "hash" }] },
            ]
            outputs = [{ name = "ctr" }]"#,
        )
        .unwrap();
        let told = contract(&spec);
        assert_eq!(
            told["user"],
            json!([{ "name": "age", "kind": "numbers", "width": 2, "used_by": ["age"] }])
        );
        assert_eq!(
            told["candidate"],
            json!([
                { "name": "sku", "kind": "texts", "width": null, "used_by": ["item", "item_2"] },
                { "name": "bid", "kind": "numbers", "width": 1, "used_by": ["utility"] },
            ])
        );
        assert_eq!((&told["score"], &told["utility"]), (&json!("utility"), &json!("ctr * bid")));
    }
}
