//! The same rankings as JSON, and what the admin pages show.

use serde_json::{Value, json};

use crate::{FILMS_SCORES, Site};

fn request() -> Value {
    json!({
        "model": "films",
        "top_k": 2,
        "user": { "user": [4], "age": 0.5 },
        "candidates": { "item": [[10], 20, [5]], "genres": [[1, 2, 3], [3], []] },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ranking_as_json() {
    let site = Site::start().await;
    let (status, body) = site.ranker.http("POST", "/v1/rank", &request().to_string()).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        answer["results"],
        json!([{ "index": 1, "score": FILMS_SCORES[1] }, { "index": 0, "score": FILMS_SCORES[0] }])
    );
    assert_eq!((&answer["release"], &answer["epoch"]), (&json!("r1"), &json!(1)));
    assert_eq!(answer["table_versions"][0], json!({ "table": "user", "version": "v1" }));

    // The largest id there is goes through as it is; a weight per id is taken; whole numbers are values too.
    let mut other = request();
    other["user"] = json!({ "user": u64::MAX, "age": 1 });
    other["candidates"]["genres"] = json!({ "ids": [[1, 5], [2], []], "weights": [[3, 1], [8], []] });
    let (status, body) = site.ranker.http("POST", "/v1/rank", &other.to_string()).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["results"][0], json!({ "index": 1, "score": 7.0 + 60.0 + 10.0 + 100.0 }));
    let calls = site.node.calls.lock().unwrap().clone();
    let user = calls[1].features.iter().find(|f| f.table_version.as_ref().unwrap().table == "user").unwrap();
    assert_eq!(user.ids.as_ref(), u64::MAX.to_le_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_a_code_and_its_status() {
    let site = Site::start().await;
    let change = |key: &str, value: Value| {
        let mut request = request();
        request[key] = value;
        request.to_string()
    };
    let cases = [
        ("{".to_owned(), 400, "invalid_request", "does not parse"),
        (change("models", json!(1)), 400, "invalid_request", "models"),
        (change("model", json!("books")), 404, "not_found", "books"),
        (change("release", json!("r9")), 404, "not_found", "r9"),
        (change("user", json!({ "user": [4] })), 400, "invalid_request", "\"age\" is missing"),
        (change("user", json!({ "user": [-4], "age": 1 })), 400, "invalid_request", "-4 is no id"),
        (change("candidates", json!({ "item": 5 })), 400, "invalid_request", "one entry per candidate"),
        (" ".repeat(1 << 17), 413, "invalid_request", ""),
    ];
    for (body, status, code, text) in cases {
        let (found, answer) = site.ranker.http("POST", "/v1/rank", &body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(text), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_pages_show_the_releases() {
    let site = Site::start().await;
    assert_eq!(site.ranker.http("GET", "/readyz", "").await, (200, "ready\n".to_owned()));
    site.ranker.http("POST", "/v1/rank", &request().to_string()).await;
    site.ranker.http("POST", "/v1/rank", "{").await;
    let (_, status) = site.ranker.http("GET", "/status", "").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["role"], &status["ranker"]), (&json!("ranker"), &json!("ranker-1")));
    assert_eq!(status["device"], json!({ "name": "cpu", "engine": "tidepool-dense" }));
    assert_eq!(status["controller"], json!(site.controller.address.to_string()));
    let release = &status["releases"][0];
    assert_eq!((&release["release"], &release["state"]), (&json!("r1"), &json!("ready")));
    assert_eq!((&release["current"], &status["releases"][1]["current"]), (&json!(true), &json!(false)));
    assert_eq!(
        release["contract"]["inputs"][3],
        json!({
            "name": "genres", "side": "candidate", "width": 2, "pooling": "mean",
            "table": { "table": "genre", "version": "v1" },
        })
    );
    let (_, metrics) = site.ranker.http("GET", "/metrics", "").await;
    for line in [
        "tidepool_ranker_requests_total{code=\"ok\"} 1",
        "tidepool_ranker_requests_total{code=\"invalid_request\"} 1",
        "tidepool_ranker_requests_total{code=\"overloaded\"} 0",
        "tidepool_ranker_releases{state=\"ready\"} 3",
        "tidepool_ranker_releases{state=\"failed\"} 0",
        "tidepool_ranker_map_epoch 1",
        "tidepool_ranker_dense_seconds_count 1",
        "tidepool_ranker_request_candidates_sum 3",
        "tidepool_ranker_defaulted_bags_total 1",
        "tidepool_ranker_unavailable_ids_total 0",
        "tidepool_ranker_cpu_pool_threads 2",
        "tidepool_client_lookups_total{code=\"ok\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let report = site.controller.report(|r| r.releases.len() == 3).await;
    assert_eq!(report.grpc_address, site.ranker.running.grpc_address.to_string());
}
