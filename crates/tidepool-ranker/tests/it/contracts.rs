//! A whole contract: ids made of texts and numbers, calibration, a utility, chosen outputs, golden vectors.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidepool_proto::{
    pack::{pack, unpack},
    v1,
};
use tidepool_store::{NewRelease, content_hash};
use tidepool_types::ModelSpec;
use tonic::Code;

use crate::{
    onnx, ranked,
    site::{FakeController, FakeNode, Store, TestRanker, entry, map, name, raw_config, version},
    values,
};

/// `score = 3 item[0] + 2 age[0]`; XXH3 of "sku-1" and "sku-2" with seed 7 ends in 016 and 634.
const ADS: &str = r#"
    schema_version = 1
    model = "ads"
    score = "utility"
    utility = "score * bid * rate"
    top_k = 2
    unknown_features = "ignore"
    utility_inputs = [{ name = "bid", side = "candidate" }, { name = "rate", side = "user" }]
    outputs = [{ name = "score" }]
    [[inputs]]
    name = "age"
    feature = "years"
    side = "user"
    table = "user"
    transform = [{ op = "bucketize", boundaries = [18, 30] }]
    [[inputs]]
    name = "item"
    feature = "sku"
    side = "candidate"
    table = "item"
    transform = [{ op = "hash", seed = 7 }, { op = "modulo", n = 1000 }, { op = "default", id = 5 }]
    [[calibrations]]
    output = "score"
    surface = "home"
    kind = "linear"
    a = 0.5
    b = 0
"#;

const GOLDEN: &str = r#"{"schema_version": 1,
    "inputs": {"item": [{"raw": ["sku-1", "sku-2"], "ids": [16, 634]}, {"raw": [], "ids": [5]}],
               "age": [{"raw": [18], "ids": [1]}]},
    "scores": [{"surface": "home", "outputs": {"score": 3}, "inputs": {"bid": 2, "rate": 4}, "score": 12}]}"#;

struct Ads {
    _node: FakeNode,
    _controller: FakeController,
    _data: TempDir,
    /// Releases are read from it while they load.
    _store: Store,
    ranker: TestRanker,
}

/// A ranker with `ads` r1, and r2 whose golden vectors were frozen by somebody else.
async fn start() -> Ads {
    let store = Store::new();
    let graph = onnx::linear(&[("item", 2), ("age", 2)], &[3.0, 0.0, 2.0, 0.0]);
    let tables = [version("user", "v1"), version("item", "v1")];
    let model = name("ads");
    for release in ["r1", "r2"] {
        let release = name(release);
        let new = NewRelease {
            model: &model,
            release: &release,
            tables: &tables,
            model_toml: ADS,
            onnx: &graph,
            golden: Some(GOLDEN),
        };
        store.artifacts.write(new).unwrap();
    }
    let dir = store.artifacts.release_dir(&model, &name("r2"));
    let other = GOLDEN.replace("634", "635");
    let manifest = fs::read_to_string(dir.join("release.json")).unwrap();
    let manifest = manifest.replace(&content_hash(GOLDEN.as_bytes()), &content_hash(other.as_bytes()));
    fs::write(dir.join("release.json"), manifest).unwrap();
    fs::write(dir.join("golden.json"), other).unwrap();
    let node = FakeNode::start(true).await;
    let releases = vec![
        entry("ads", "r1", &tables, v1::ReleaseState::Current),
        entry("ads", "r2", &tables, v1::ReleaseState::Ready),
    ];
    let controller = FakeController::start(map(1, node.address, releases)).await;
    let data = tempfile::tempdir().unwrap();
    let raw = raw_config(&store, controller.address, data.path().join("ranker"));
    let ranker = TestRanker::start(raw).await;
    Ads { _node: node, _controller: controller, _data: data, _store: store, ranker }
}

fn texts(name: &str, texts: &[&str], lengths: &[u32]) -> v1::Feature {
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    v1::Feature { name: name.into(), texts, lengths: pack(lengths), ..v1::Feature::default() }
}

/// 3 x 16 + 2 = 50, 3 x 634 + 2 = 1904 and 3 x 5 + 2 = 17, times bids of 10, 0.125 and 1, times 2.
fn request() -> v1::RankRequest {
    v1::RankRequest {
        model: "ads".into(),
        candidates: 3,
        user: vec![values("years", &[20.0]), values("rate", &[2.0])],
        candidate: vec![values("bid", &[10.0, 0.125, 1.0]), texts("sku", &["sku-1", "sku-2"], &[1, 1, 0])],
        ..v1::RankRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_utility_of_hashed_texts_ranks() {
    let mut ads = start().await;
    let answer = ads.ranker.rank(request()).await.unwrap();
    assert_eq!(ranked(&answer), [(0, 1000.0), (1, 476.0)], "as many as the contract says");
    assert_eq!(answer.schema_hash, ModelSpec::from_toml(ADS).unwrap().schema_hash());
    assert!(answer.outputs.is_empty() && answer.ignored_features.is_empty());

    let at_home = v1::RankRequest {
        surface: "home".into(),
        outputs: vec!["score".into()],
        top_k: u32::MAX,
        ..request()
    };
    let answer = ads.ranker.rank(at_home).await.unwrap();
    assert_eq!(ranked(&answer), [(0, 500.0), (1, 238.0), (2, 17.0)]);
    let outputs: Vec<f32> = unpack(&answer.outputs[0].values).unwrap().collect();
    assert_eq!((answer.outputs[0].name.as_str(), outputs), ("score", vec![25.0, 952.0, 8.5]));

    let body = json!({
        "model": "ads", "surface": "home", "outputs": ["score"],
        "user": { "years": 20, "rate": 2, "hat": { "size": 5 } },
        "candidates": { "bid": [10, 0.125, 1], "sku": ["sku-1", ["sku-2"], []], "color": "red" },
    });
    let (status, text) = ads.ranker.http("POST", "/v1/rank", &body.to_string()).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["results"][1], json!({ "index": 1, "score": 238.0, "outputs": { "score": 952.0 } }));
    assert_eq!(answer["ignored_features"], json!(["hat", "color"]));
    let (_, metrics) = ads.ranker.http("GET", "/metrics", "").await;
    assert!(metrics.contains("tidepool_ranker_ignored_features_total{model=\"ads\"} 2"), "{metrics}");
    ads.ranker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_features_of_a_whole_contract_are_named() {
    let mut ads = start().await;
    let mut cases: Vec<(v1::RankRequest, &str)> = Vec::new();
    let mut case = |change: &dyn Fn(&mut v1::RankRequest), said| {
        let mut request = request();
        change(&mut request);
        cases.push((request, said));
    };
    case(&|r| r.candidate[1] = values("sku", &[1.0; 3]), "\"sku\": the model takes texts here, not numbers");
    case(
        &|r| r.candidate[0] = texts("bid", &["1"; 3], &[]),
        "\"bid\": the model takes numbers here, not texts",
    );
    case(&|r| r.candidate[1].texts.truncate(1), "\"sku\": the lengths add up to 2, there are 1 texts");
    case(&|r| r.candidate[1].weights = pack(&[1.0f32]), "\"sku\": 1 weights for 2 texts");
    case(&|r| r.user[0] = values("years", &[f32::NAN]), "\"years\": number 0 is NaN, it has no bucket");
    case(&|r| r.user[1] = values("rate", &[f32::INFINITY]), "\"rate\": number 0 is inf");
    case(&|r| drop(r.user.pop()), "user feature \"rate\" is missing");
    case(&|r| r.user.push(r.candidate[0].clone()), "\"bid\" belongs to the candidate side");
    case(&|r| r.outputs = vec!["ctr".into()], "model ads has no output \"ctr\": it has score");
    case(&|r| r.outputs = vec!["score".into(); 2], "output \"score\" is asked for twice");
    case(&|r| r.surface = "x".repeat(101), "surface: 101 bytes, it may have 100");
    for (request, said) in cases {
        let status = ads.ranker.rank(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(said), "{said}: {}", status.message());
    }
    // What a formula has no number for is a fault of the model, and the candidate is named.
    let huge = v1::RankRequest {
        candidate: vec![values("bid", &[1.0, f32::MAX, 1.0]), request().candidate[1].clone()],
        ..request()
    };
    let status = ads.ranker.rank(huge).await.unwrap_err();
    let said = "output \"utility\" of release r1 of model ads is inf for candidate 1";
    assert!(status.code() == Code::Internal && status.message().contains(said), "{}", status.message());
    ads.ranker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_whose_golden_vectors_are_not_kept_is_not_loaded() {
    let ads = start().await;
    let (_, status) = ads.ranker.http("GET", "/status", "").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["releases"][0]["state"], "ready");
    assert_eq!(status["releases"][1]["state"], "failed");
    let problem = status["releases"][1]["problem"].as_str().unwrap();
    assert!(
        problem.contains("case 0: [\"sku-1\", \"sku-2\"] gives ids [16, 634], training gave [16, 635]"),
        "{problem}"
    );
    ads.ranker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_takes_is_told() {
    let ads = start().await;
    let (status, text) = ads.ranker.http("GET", "/v1/models?model=ads", "").await;
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, told["models"].as_array().unwrap().len()), (200, 1), "{told}");
    let model = &told["models"][0];
    assert_eq!((&model["release"], &model["current"]), (&json!("r1"), &json!(true)));
    let names = |side: &str| {
        let features = model[side].as_array().unwrap().iter();
        features.map(|f| format!("{}: {}", f["name"], f["kind"])).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(names("user"), r#""years": "numbers", "rate": "numbers""#);
    assert_eq!(names("candidate"), r#""sku": "texts", "bid": "numbers""#);
    let (status, text) = ads.ranker.http("GET", "/v1/models?model=books", "").await;
    assert!(status == 404 && text.contains("books"), "{text}");
    assert_eq!(ads.ranker.http("GET", "/v1/models?modle=ads", "").await.0, 400);
    ads.ranker.stop().await;
}
