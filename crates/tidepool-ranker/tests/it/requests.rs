//! What became of requests: `GET /v1/requests`.

use std::time::Duration;

use serde_json::{Value, json};
use tidepool_proto::{REQUEST_ID_HEADER, v1};

use crate::{
    Site, films_request, ids,
    site::{DEADLINE, FakeNode},
};

async fn told(site: &Site, query: &str) -> Value {
    let (status, body) = site.ranker.http("GET", &format!("/v1/requests?{query}"), "").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_request_is_told_with_its_release_nodes_ids_and_times() {
    let mut site = Site::start().await;
    // Item 5000 and user 7000 are in no table; the request asks for the one twice.
    let request = v1::RankRequest {
        request_id: "größe/1 & 2".into(),
        user: vec![ids("user", &[7000], &[]), films_request().user[1].clone()],
        candidate: vec![ids("genres", &[1, 2, 3, 3], &[3, 1, 0]), ids("item", &[10, 5000, 5000], &[])],
        ..films_request()
    };
    let answer = site.ranker.rank(request).await.unwrap();
    assert_eq!(answer.request_id, "größe/1 & 2");
    let told = told(&site, "id=gr%C3%B6%C3%9Fe%2F1%20%26%202").await;
    assert_eq!(
        (&told["ranker"], &told["recent_requests"], &told["kept"]),
        (&json!("ranker-1"), &json!(4096), &json!(1))
    );
    let request = &told["requests"][0];
    for (key, value) in [
        ("outcome", json!("answered")),
        ("error", json!(null)),
        ("request_id_given", json!(true)),
        ("tenant", json!("ads")),
        ("model", json!("films")),
        ("release", json!("r1")),
        ("choice", json!("current")),
        ("bucket", json!(answer.bucket)),
        ("epoch", json!(1)),
        ("table_versions", json!(["user@v1", "item@v1", "genre@v1"])),
        ("candidates", json!(3)),
        ("ids", json!(8)),
        ("rows_looked_up", json!(answer.rows_looked_up)),
        ("cache_hits", json!(0)),
        ("held_ids", json!(0)),
        ("missing_ids", json!(3)),
        ("defaulted_bags", json!(answer.defaulted_bags)),
        ("deadline_us", json!(20_000_000)),
        ("shadow", json!(false)),
    ] {
        assert_eq!(request[key], value, "{key}: {request:#}");
    }
    let feature = |name: &str| {
        let all = request["not_found"].as_array().unwrap();
        all.iter().find(|f| f["feature"] == name).unwrap().clone()
    };
    assert_eq!((&feature("item")["missing"], &feature("item")["missing_ids"]), (&json!([5000]), &json!(2)));
    assert_eq!(
        (&feature("user")["missing"], &feature("user")["table_version"]),
        (&json!([7000]), &json!("user@v1"))
    );
    assert_eq!(
        (&feature("genres")["missing"], &feature("genres")["defaulted_bags"]),
        (&json!([]), &json!(1))
    );
    let calls = request["calls"].as_array().unwrap();
    assert_eq!((calls.len(), &calls[0]["node"], &calls[0]["end"]), (1, &json!("node"), &json!("answered")));
    assert_eq!(
        (&calls[0]["kind"], &calls[0]["address"]),
        (&json!("first"), &json!(site.node.address.to_string()))
    );
    let us = |key: &str| request[key].as_u64().unwrap_or_else(|| panic!("{key}: {request:#}"));
    assert!(us("took_us") >= us("lookup_us") + us("queue_us") + us("dense_us"), "{request:#}");
    // Each is rounded down.
    assert!((us("deadline_us") - us("took_us")).abs_diff(us("left_us")) <= 1, "{request:#}");
    assert!(request["lookup_stages"]["wait_us"].as_u64().unwrap() <= us("lookup_us"));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_an_answer_are_kept_too() {
    let mut site = Site::with_node(FakeNode::start(false).await).await;
    let request =
        |id: &str, deadline_us| v1::RankRequest { request_id: id.into(), deadline_us, ..films_request() };
    site.ranker.rank(request("late", 50_000)).await.unwrap_err();
    let late = &told(&site, "id=late").await["requests"][0];
    assert_eq!((&late["outcome"], &late["error"]["code"]), (&json!("failed"), &json!("deadline_exceeded")));
    assert_eq!((&late["calls"][0]["end"], &late["left_us"]), (&json!("failed"), &json!(0)), "{late:#}");
    assert!(late["calls"][0]["problem"].as_str().unwrap().contains("no answer within"), "{late:#}");
    assert_eq!((&late["dense_us"], &late["release"]), (&json!(null), &json!("r1")));

    // Its caller goes away.
    let mut client = site.ranker.client.clone();
    let gone =
        tokio::time::timeout(Duration::from_millis(50), client.rank(request("gone", 20_000_000))).await;
    assert!(gone.is_err(), "nobody answers");
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let gone = loop {
        let found = told(&site, "id=gone").await;
        if let Some(gone) = found["requests"].get(0) {
            break gone.clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "{found:#}");
    };
    assert_eq!((&gone["outcome"], &gone["calls"][0]["end"]), (&json!("abandoned"), &json!("unanswered")));
    assert_eq!(gone["calls"][0]["took_us"], json!(null));

    // Refused: another model, an id that is too long, a body that is none.
    let refused = v1::RankRequest { request_id: "books".into(), model: "books".into(), ..films_request() };
    let status = site.ranker.rank(refused).await.unwrap_err();
    assert_eq!(status.metadata().get(REQUEST_ID_HEADER).unwrap(), "books");
    let books = &told(&site, "id=books").await["requests"][0];
    assert_eq!((&books["error"]["code"], &books["release"]), (&json!("not_found"), &json!(null)));
    let long = "ü".repeat(10_000);
    let status = site.ranker.rank(request(&long, 1)).await.unwrap_err();
    assert!(status.message().contains("request_id: 20000 bytes, it may have 256"), "{status:?}");
    let cut = told(&site, &format!("id={}", "%C3%BC".repeat(200))).await;
    assert_eq!(cut["requests"][0]["request_id"], json!("ü".repeat(128)), "{cut:#}");
    let (_, unanswered) = site.ranker.http("POST", "/v1/rank", "{").await;
    let unanswered: Value = serde_json::from_str(&unanswered).unwrap();
    let failed = told(&site, "failed=2").await;
    let last = &failed["requests"][0];
    assert_eq!(
        (&last["request_id_given"], &last["error"]["code"]),
        (&json!(false), &json!("invalid_request"))
    );
    assert!(last["request_id"].as_str().unwrap().starts_with("auto-"), "{last:#}");
    assert_eq!(unanswered["error"]["request_id"], last["request_id"]);
    let status = site.ranker.rank(request("", 1)).await.unwrap_err();
    let given = status.metadata().get(REQUEST_ID_HEADER).unwrap().to_str().unwrap();
    let known = told(&site, &format!("id={given}")).await;
    assert_eq!(known["requests"].as_array().map(Vec::len), Some(1), "{known:#}");
    assert_eq!(failed["requests"].as_array().map(Vec::len), Some(2));
    let slowest = told(&site, "slowest=1").await;
    assert!(
        ["late", "gone"].map(|id| json!(id)).contains(&slowest["requests"][0]["request_id"]),
        "{slowest:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_has_so_many_places_and_may_have_none() {
    let mut site = Site::with(FakeNode::start(true).await, |raw| raw.recent_requests = 2).await;
    for id in ["a", "b", "", "a"] {
        let answer =
            site.ranker.rank(v1::RankRequest { request_id: id.into(), ..films_request() }).await.unwrap();
        assert!(!answer.request_id.is_empty());
    }
    assert_eq!(told(&site, "id=a").await["requests"].as_array().map(Vec::len), Some(1), "one is forgotten");
    assert_eq!(told(&site, "id=b").await["requests"], json!([]));
    assert_eq!(told(&site, "last=100").await["kept"], json!(2));
    let (status, refused) = site.ranker.http("GET", "/v1/requests?id=", "").await;
    assert!(status == 400 && refused.contains("it is empty"), "{refused}");

    let mut site = Site::with(FakeNode::start(true).await, |raw| raw.recent_requests = 0).await;
    let answer =
        site.ranker.rank(v1::RankRequest { request_id: String::new(), ..films_request() }).await.unwrap();
    assert!(answer.request_id.starts_with("auto-"), "{answer:?}");
    let none = told(&site, "last=1").await;
    assert_eq!((&none["recent_requests"], &none["requests"]), (&json!(0), &json!([])));
}
