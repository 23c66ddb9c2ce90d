//! The Open Inference Protocol by its generated client, and over HTTP where that says the same.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tidepool_proto::{
    code_of,
    inference::{
        InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
        ModelReadyRequest, RepositoryIndexRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest,
        ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest,
        grpc_inference_service_client::GrpcInferenceServiceClient,
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    },
    pack::{Packed, pack, unpack},
    v1,
};
use tidepool_types::ErrorCode;
use tonic::{Status, transport::Channel};

use crate::{
    FILMS_SCORES, Site, onnx,
    site::{FakeNode, entry, map},
    tables,
};

/// A model that hashes texts and ranks by money: `score = hash(sku) mod 1000`, `utility = score * bid`.
const SHOP: &str = r#"
    schema_version = 1
    model = "shop"
    score = "utility"
    utility = "score * bid"
    top_k = 2
    unknown_features = "ignore"
    [[inputs]]
    name = "item"
    feature = "sku"
    side = "candidate"
    table = "item"
    transform = [{ op = "hash", seed = 7 }, { op = "modulo", n = 1000 }]
    [[utility_inputs]]
    name = "bid"
    side = "candidate"
    [[outputs]]
    name = "score"
"#;

type Client = GrpcInferenceServiceClient<Channel>;

async fn client(site: &Site) -> Client {
    Client::connect(format!("http://{}", site.ranker.running.grpc_address)).await.unwrap()
}

/// A request that is built by tensors, raw.
#[derive(Clone, Default)]
struct Infer(ModelInferRequest);

impl Infer {
    fn of(model: &str) -> Self {
        Self(ModelInferRequest { model_name: model.into(), id: "request-1".into(), ..Default::default() })
    }

    fn bytes(mut self, name: &str, datatype: &str, shape: &[i64], raw: impl Into<Vec<u8>>) -> Self {
        let (name, datatype, shape) = (name.into(), datatype.into(), shape.to_vec());
        self.0.inputs.push(InferInputTensor { name, datatype, shape, ..Default::default() });
        self.0.raw_input_contents.push(raw.into().into());
        self
    }

    fn raw<T: Packed>(self, name: &str, datatype: &str, shape: &[i64], numbers: &[T]) -> Self {
        self.bytes(name, datatype, shape, pack(numbers))
    }

    fn set(mut self, name: &str, choice: ParameterChoice) -> Self {
        self.0.parameters.insert(name.into(), InferParameter { parameter_choice: Some(choice) });
        self
    }

    fn output(mut self, name: &str) -> Self {
        let output = InferRequestedOutputTensor { name: name.into(), ..Default::default() };
        self.0.outputs.push(output);
        self
    }

    async fn send(self, client: &mut Client) -> Result<ModelInferResponse, Status> {
        client.model_infer(self.0).await.map(tonic::Response::into_inner)
    }
}

/// The three candidates of `films_request`, as tensors.
fn films() -> Infer {
    Infer::of("films")
        .raw("user", "INT64", &[1], &[4u64])
        .raw("age", "FP32", &[1, 1], &[0.5f32])
        .raw("genres", "UINT64", &[4], &[1u64, 2, 3, 3])
        .raw("genres_lengths", "INT32", &[3], &[3u32, 1, 0])
        .raw("item", "INT64", &[3, 1], &[10u64, 20, 5])
}

fn numbers(response: &ModelInferResponse, name: &str) -> Vec<f32> {
    let at = response.outputs.iter().position(|output| output.name == name).unwrap();
    let output = &response.outputs[at];
    assert_eq!(output.datatype, "FP32");
    let numbers: Vec<f32> = unpack(&response.raw_output_contents[at]).unwrap().collect();
    assert_eq!(output.shape, [numbers.len() as i64]);
    numbers
}

fn said(response: &ModelInferResponse, name: &str) -> ParameterChoice {
    response.parameters[name].parameter_choice.clone().unwrap()
}

/// A site with `shop` s1 beside the other models.
async fn with_shop() -> Site {
    let site = Site::with_node(FakeNode::start(true).await).await;
    let item = tables("v1")[1..2].to_vec();
    site.store.release("shop", "s1", &item, SHOP, &onnx::linear(&[("item", 2)], &[1.0, 0.0]));
    let mut releases = crate::releases();
    releases.push(entry("shop", "s1", &item, v1::ReleaseState::Current));
    site.controller.send(map(2, site.node.address, releases));
    site.controller.report(|r| r.epoch == 2 && r.releases.iter().all(|release| release.ready)).await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_come_in_the_order_of_the_request() {
    let site = Site::start().await;
    let mut client = client(&site).await;
    let answer = films().send(&mut client).await.unwrap();
    assert_eq!((answer.model_name.as_str(), answer.model_version.as_str()), ("films", "r1"));
    assert_eq!((answer.id.as_str(), answer.outputs.len()), ("request-1", 1));
    assert_eq!(numbers(&answer, "score"), FILMS_SCORES);
    let text = |text: &str| ParameterChoice::StringParam(text.into());
    assert_eq!(said(&answer, "table_versions"), text("user@v1,item@v1,genre@v1"));
    assert_eq!((said(&answer, "choice"), said(&answer, "release")), (text("current"), text("r1")));
    assert_eq!(said(&answer, "defaulted_bags"), ParameterChoice::Int64Param(1));

    // A version is a release; rows of one length need no lengths; those of other datatypes are taken.
    let even = Infer::of("films")
        .raw("user", "UINT64", &[1, 1], &[4u64])
        .raw("age", "FP32", &[1], &[0.5f32])
        .raw("genres", "INT64", &[2, 2], &[1u64, 3, 3, 3])
        .raw("genres_weights", "FP32", &[4], &[1.0f32, 3.0, 1.0, 1.0])
        .raw("item", "INT64", &[2], &[10u64, 20])
        .raw("item_lengths", "UINT64", &[2], &[1u64, 1]);
    let mut newer = even.clone();
    newer.0.model_version = "r2".into();
    let answer = even.send(&mut client).await.unwrap();
    assert_eq!(numbers(&answer, "score"), [11.5 + 30.0 + 5.0 * 2.5 + 100.0, 11.5 + 60.0 + 15.0 + 100.0]);
    let answer = newer.send(&mut client).await.unwrap();
    assert_eq!(answer.model_version, "r2");
    assert_eq!(numbers(&answer, "score")[1], 80.0 + 3.5 + 600.0 + 150.0 + 100.0);

    // No candidates are fine too.
    let none = Infer::of("films")
        .raw("user", "INT64", &[1], &[4u64])
        .raw("age", "FP32", &[1, 1], &[0.5f32])
        .raw::<u64>("genres", "INT64", &[0], &[])
        .raw::<u64>("item", "INT64", &[0], &[]);
    assert_eq!(numbers(&none.send(&mut client).await.unwrap(), "score"), [0.0f32; 0]);

    // It was counted and recorded as any ranking.
    let (_, metrics) = site.ranker.http("GET", "/metrics", "").await;
    assert!(metrics.contains("tidepool_ranker_requests_total{code=\"ok\"} 4"), "{metrics}");
    let (_, record) = site.ranker.http("GET", "/v1/requests?id=request-1", "").await;
    assert!(record.contains("\"outcome\":\"answered\"") && record.contains("\"release\":\"r2\""), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_come_first_when_they_are_asked_for() {
    let site = Site::start().await;
    let mut client = client(&site).await;
    let best = films().set("top_k", ParameterChoice::Int64Param(2));
    let answer = best.clone().send(&mut client).await.unwrap();
    let indexes: Vec<u32> = unpack(&answer.raw_output_contents[0]).unwrap().collect();
    assert_eq!((answer.outputs[0].name.as_str(), answer.outputs[0].datatype.as_str()), ("indexes", "UINT32"));
    assert_eq!(indexes, [1, 0]);
    assert_eq!(numbers(&answer, "scores"), [FILMS_SCORES[1], FILMS_SCORES[0]]);
    let answer = best.output("score").send(&mut client).await.unwrap();
    assert_eq!((answer.outputs.len(), numbers(&answer, "score").len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_a_bid_and_a_utility() {
    let site = with_shop().await;
    let mut client = client(&site).await;
    let skus = ["red shoes", "blue shoes", "hat"];
    let texts = |texts: &[&str]| -> Vec<u8> {
        let one = |text: &&str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        texts.iter().flat_map(one).collect()
    };
    let bids = [0.5f32, 2.0, 1.0];
    let shop = || Infer::of("shop").bytes("sku", "BYTES", &[3], texts(&skus)).raw("bid", "FP32", &[3], &bids);
    let all = shop().set("top_k", ParameterChoice::Int64Param(0));
    let answer = all.send(&mut client).await.unwrap();
    let (scores, utility) = (numbers(&answer, "score"), numbers(&answer, "utility"));
    assert_eq!(scores.iter().zip(bids).map(|(score, bid)| score * bid).collect::<Vec<_>>(), utility);
    assert_eq!(answer.outputs.len(), 2);

    // The contract says how many come by default.
    let answer = shop().send(&mut client).await.unwrap();
    let names: Vec<_> = answer.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["indexes", "scores", "score"]);
    let indexes: Vec<u32> = unpack(&answer.raw_output_contents[0]).unwrap().collect();
    let best = indexes.iter().map(|at| utility[*at as usize]).collect::<Vec<_>>();
    assert_eq!((numbers(&answer, "scores"), indexes.len()), (best, 2));
    let of = indexes.iter().map(|at| scores[*at as usize]).collect::<Vec<_>>();
    assert_eq!(numbers(&answer, "score"), of);

    // What nothing takes is told where the contract ignores it.
    let answer = shop().raw("colour", "INT64", &[3], &[1u64, 2, 3]).send(&mut client).await.unwrap();
    assert_eq!(said(&answer, "ignored_features"), ParameterChoice::StringParam("colour".into()));
    let (status, described) = site.ranker.http("GET", "/v2/models/shop", "").await;
    let described: Value = serde_json::from_str(&described).unwrap();
    assert_eq!(status, 200, "{described}");
    assert_eq!(described["inputs"][0], json!({ "name": "sku", "datatype": "BYTES", "shape": [-1] }));
    let (status, answer) = site
        .ranker
        .http(
            "POST",
            "/v2/models/shop/infer",
            &json!({ "inputs": [
            { "name": "sku", "datatype": "BYTES", "shape": [3], "data": skus },
            { "name": "bid", "datatype": "FP32", "shape": [3], "data": bids },
        ] })
            .to_string(),
        )
        .await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["outputs"][0]["data"]), (200, &json!(indexes)), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_by_name() {
    let site = Site::start().await;
    let mut client = client(&site).await;
    type Change = fn(&mut ModelInferRequest);
    let cases: [(Change, &str); 22] = [
        (|r| r.inputs[0].datatype = "FP64".into(), "input \"user\": datatype \"FP64\" is not taken here"),
        (|r| r.inputs[4].datatype = "BYTES".into(), "input \"item\": the raw bytes end in element 1"),
        (
            |r| r.inputs[1].datatype = "INT32".into(),
            "input \"age\": datatype INT32, the model takes FP32 here",
        ),
        (|r| r.inputs[1].shape = vec![1, 1, 1], "input \"age\": shape [1, 1, 1], the model takes [rows, 1]"),
        (|r| r.inputs[4].shape = vec![-3], "input \"item\": shape [-3]: -3 is no size"),
        (|r| r.inputs[4].shape = vec![i64::MAX, i64::MAX], "more elements than can be counted"),
        (|r| r.inputs[4].shape = vec![4], "input \"item\": 24 raw bytes, shape [4] of INT64 has 4 elements"),
        (
            |r| r.raw_input_contents[4] = pack(&[1u64, 2, u64::MAX]),
            "input \"item\": element 2, -1, is no id: those from 2^63 on come as UINT64",
        ),
        (
            |r| r.raw_input_contents[3] = pack(&[3u32, 1, 1]),
            "\"genres\": the lengths add up to 5, there are 4",
        ),
        (
            |r| r.raw_input_contents[3] = pack(&[3u32, 1, u32::MAX]),
            "\"genres_lengths\": element 2 is no length",
        ),
        (
            |r| {
                r.inputs[3].shape = vec![2];
                r.raw_input_contents[3] = pack(&[3u32, 1]);
            },
            "input \"genres\": 2 rows, input \"item\" has 3",
        ),
        (|r| r.raw_input_contents[1] = pack(&[f32::NAN]), "feature \"age\": number 0 is NaN"),
        (|r| r.raw_input_contents.truncate(4), "4 raw input contents for 5 inputs"),
        (
            |r| r.inputs[1].contents = Some(InferTensorContents::default()),
            "input \"age\": it has both raw and typed contents",
        ),
        (
            |r| {
                r.inputs.pop();
                r.raw_input_contents.pop();
            },
            "input \"item\" is missing",
        ),
        (|r| r.inputs[0].name = "users".into(), "input \"user\" is missing"),
        (
            |r| {
                r.inputs.push(r.inputs[0].clone());
                r.raw_input_contents.push(r.raw_input_contents[0].clone());
            },
            "input \"user\": it stands twice",
        ),
        (
            |r| {
                let zip = InferInputTensor { name: "zip".into(), ..r.inputs[0].clone() };
                r.inputs.push(zip);
                r.raw_input_contents.push(pack(&[1u64]));
            },
            "input \"zip\": model films takes none of this name",
        ),
        (
            |r| {
                r.outputs =
                    vec![InferRequestedOutputTensor { name: "probability".into(), ..Default::default() }]
            },
            "output \"probability\": model films gives none of this name",
        ),
        (
            |r| {
                let choice = Some(ParameterChoice::StringParam("r".into()));
                let region = InferParameter { parameter_choice: choice };
                r.inputs[0].parameters = BTreeMap::from([("shared_memory_region".into(), region)]);
            },
            "input \"user\": parameter \"shared_memory_region\": shared memory is not served",
        ),
        (
            |r| {
                r.inputs[4].shape = vec![101];
                r.raw_input_contents[4] = pack(&[1u64; 101]);
                r.inputs[3].shape = vec![101];
                r.raw_input_contents[3] = pack(&[&[4u32][..], &[0; 100]].concat());
            },
            "101 candidates, a request may have 100",
        ),
        (
            |r| {
                r.inputs[0].shape = vec![2, 1];
                r.raw_input_contents[0] = pack(&[1u64, 2]);
            },
            "input \"user\": 2 rows: what belongs to the user comes once",
        ),
    ];
    for (change, text) in cases {
        let mut request = films();
        change(&mut request.0);
        let status = request.send(&mut client).await.unwrap_err();
        assert_eq!(
            (code_of(&status), status.code()),
            (ErrorCode::InvalidRequest, tonic::Code::InvalidArgument)
        );
        assert!(status.message().contains(text), "{:?} does not say {text:?}", status.message());
    }
    let sequence = films().set("sequence_id", ParameterChoice::Int64Param(5));
    let status = sequence.send(&mut client).await.unwrap_err();
    assert!(status.message().contains("sequences are not served"), "{status:?}");
    for (model, release, code) in [
        ("books", "", ErrorCode::NotFound),
        ("films", "r9", ErrorCode::NotFound),
        (&*"x".repeat(1 << 12), "", ErrorCode::InvalidRequest),
    ] {
        let mut request = films();
        (request.0.model_name, request.0.model_version) = (model.into(), release.into());
        let status = request.send(&mut client).await.unwrap_err();
        assert_eq!(code_of(&status), code, "{status:?}");
        assert!(status.message().len() < 200, "{status:?}");
    }
    assert!(site.node.calls.lock().unwrap().is_empty(), "nothing was looked up for them");
    assert_eq!(numbers(&films().send(&mut client).await.unwrap(), "score"), FILMS_SCORES);
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_contents_are_answered_typed() {
    let site = Site::start().await;
    let mut client = client(&site).await;
    let input = |name: &str, datatype: &str, shape: &[i64], contents: InferTensorContents| InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        contents: Some(contents),
        ..Default::default()
    };
    let ids = |ids: &[i64]| InferTensorContents { int64_contents: ids.to_vec(), ..Default::default() };
    let lengths = InferTensorContents { uint_contents: vec![3, 1, 0], ..Default::default() };
    let age = InferTensorContents { fp32_contents: vec![0.5], ..Default::default() };
    let inputs = vec![
        input("user", "INT64", &[1], ids(&[4])),
        input("age", "FP32", &[1, 1], age),
        input("genres", "INT64", &[4], ids(&[1, 2, 3, 3])),
        input("genres_lengths", "UINT32", &[3], lengths),
        input("item", "INT64", &[3], ids(&[10, 20, 5])),
    ];
    let request = Infer(ModelInferRequest { model_name: "films".into(), inputs, ..Default::default() });
    let answer = request.clone().send(&mut client).await.unwrap();
    assert_eq!(answer.outputs[0].contents.as_ref().unwrap().fp32_contents, FILMS_SCORES);
    assert!(answer.raw_output_contents.is_empty() && answer.id.starts_with("auto-"), "{answer:?}");
    let mut other = request.clone();
    other.0.inputs[1].contents.as_mut().unwrap().fp64_contents = vec![0.5];
    let status = other.send(&mut client).await.unwrap_err();
    assert_eq!(
        status.message(),
        "input \"age\": it has fp64_contents, datatype FP32 stands in fp32_contents"
    );
    let mut short = request;
    short.0.inputs[4].contents.as_mut().unwrap().int64_contents.pop();
    let status = short.send(&mut client).await.unwrap_err();
    assert_eq!(status.message(), "input \"item\": 2 elements, shape [3] has 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_and_its_models_describe_themselves() {
    let site = Site::start().await;
    let mut client = client(&site).await;
    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let server = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!((server.name.as_str(), &server.extensions[0][..]), ("tidepool", "binary_tensor_data"));
    let mut ready = async |name: &str, version: &str| {
        let request = ModelReadyRequest { name: name.into(), version: version.into() };
        client.model_ready(request).await.unwrap().into_inner().ready
    };
    assert!(ready("films", "").await && ready("films", "r2").await);
    assert!(!ready("films", "r9").await && !ready("books", "").await && !ready("", "").await);

    let request = ModelMetadataRequest { name: "films".into(), version: String::new() };
    let model = client.model_metadata(request).await.unwrap().into_inner();
    assert_eq!(
        (model.platform.as_str(), &model.versions[..]),
        ("tidepool", &["r1".to_owned(), "r2".into()][..])
    );
    let inputs: Vec<_> =
        model.inputs.iter().map(|i| (i.name.as_str(), i.datatype.as_str(), &i.shape[..])).collect();
    assert_eq!(
        inputs,
        [
            ("user", "INT64", &[-1][..]),
            ("user_lengths", "INT32", &[1]),
            ("user_weights", "FP32", &[-1]),
            ("age", "FP32", &[1, 1]),
            ("item", "INT64", &[-1]),
            ("item_lengths", "INT32", &[-1]),
            ("item_weights", "FP32", &[-1]),
            ("genres", "INT64", &[-1]),
            ("genres_lengths", "INT32", &[-1]),
            ("genres_weights", "FP32", &[-1]),
        ]
    );
    assert_eq!((model.outputs[0].name.as_str(), &model.outputs[0].shape[..]), ("score", &[-1][..]));
    // The same over HTTP.
    let (status, body) = site.ranker.http("GET", "/v2/models/films/versions/r1", "").await;
    let described: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, described["inputs"].as_array().unwrap().len()), (200, 10), "{described}");
    for (path, status) in [
        ("/v2", 200),
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/films/ready", 200),
        ("/v2/models/films/versions/r9/ready", 404),
        ("/v2/models/books", 404),
        ("/v2/models/films/config", 404),
        ("/v2/systemsharedmemory/status", 404),
    ] {
        let (found, body) = site.ranker.http("GET", path, "").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(found, status, "{path}: {body}");
        assert!(status == 200 || body["error"].is_string(), "{path}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_repository_is_the_cluster_map() {
    let site = Site::start().await;
    let mut client = client(&site).await;
    // A release that the store does not have: it fails, and goes on being listed.
    let mut releases = crate::releases();
    releases.push(entry("films", "r3", &tables("v1"), v1::ReleaseState::Loading));
    site.controller.send(map(2, site.node.address, releases));
    site.controller.report(|r| r.releases.iter().any(|release| !release.problem.is_empty())).await;
    let index = client.repository_index(RepositoryIndexRequest::default()).await.unwrap().into_inner();
    let listed = index.models.iter().map(|m| (m.name.as_str(), m.version.as_str(), m.state.as_str()));
    assert_eq!(
        listed.collect::<Vec<_>>(),
        [
            ("films", "r1", "READY"),
            ("films", "r2", "READY"),
            ("prices", "p1", "READY"),
            ("films", "r3", "UNAVAILABLE"),
        ]
    );
    assert!(index.models[3].reason.contains("reading the release"), "{index:?}");
    let ready = RepositoryIndexRequest { ready: true, ..Default::default() };
    assert_eq!(client.repository_index(ready).await.unwrap().into_inner().models.len(), 3);

    let load = |model: &str| RepositoryModelLoadRequest { model_name: model.into(), ..Default::default() };
    let status = client.repository_model_load(load("films")).await.unwrap_err();
    assert_eq!(code_of(&status), ErrorCode::NotServed);
    assert!(status.message().contains("release r3 of model films is not loaded here"), "{status:?}");
    client.repository_model_load(load("prices")).await.unwrap();
    let status = client.repository_model_load(load("books")).await.unwrap_err();
    assert_eq!(code_of(&status), ErrorCode::NotFound);
    // It is there now, and is not waited for until the next try.
    site.store.release("films", "r3", &tables("v1"), crate::FILMS, &crate::films_onnx());
    client.repository_model_load(load("films")).await.unwrap();
    let (status, answer) = site.ranker.http("POST", "/v2/repository/models/films/load", "{}").await;
    assert_eq!(status, 200, "{answer}");
    let config = r#"{"parameters": {"config": "{}"}}"#;
    let (status, answer) = site.ranker.http("POST", "/v2/repository/models/films/load", config).await;
    assert!(status == 400 && answer.contains("as it was published"), "{answer}");
    let (_, index) = site.ranker.http("POST", "/v2/repository/index", "").await;
    let index: Value = serde_json::from_str(&index).unwrap();
    assert_eq!((&index[3]["version"], &index[3]["state"]), (&json!("r3"), &json!("READY")));

    let unload = RepositoryModelUnloadRequest { model_name: "films".into(), ..Default::default() };
    let status = client.repository_model_unload(unload).await.unwrap_err();
    assert_eq!((code_of(&status), status.code()), (ErrorCode::Conflict, tonic::Code::FailedPrecondition));
    assert!(status.message().contains("tidepool release retire films RELEASE"), "{status:?}");
    let (status, _) = site.ranker.http("POST", "/v2/repository/models/films/unload", "{}").await;
    assert_eq!(status, 409);
    // Each try is in the audit log, with what became of it.
    let audit = std::fs::read_to_string(site.data.path().join("ranker/audit.log")).unwrap();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcomes: Vec<_> = lines.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert_eq!(
        outcomes,
        ["begun", "not_served", "begun", "ok", "begun", "not_found", "begun", "ok", "begun", "ok"]
    );
    assert!(lines.iter().all(|line| line["action"] == "load_here"), "{audit}");
}
