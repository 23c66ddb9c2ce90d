//! What a ranking answers.

use std::time::{Duration, Instant};

use tidepool_proto::{code_of, pack::unpack, v1};
use tidepool_types::ErrorCode;

use crate::{FILMS_SCORES, Site, films_request, ids, ranked, site::FakeNode, values};

#[tokio::test(flavor = "multi_thread")]
async fn scores_are_those_computed_by_hand() {
    let mut site = Site::start().await;
    let answer = site.ranker.rank(films_request()).await.unwrap();
    assert_eq!(ranked(&answer), [(1, FILMS_SCORES[1]), (0, FILMS_SCORES[0]), (2, FILMS_SCORES[2])]);
    assert_eq!((answer.model.as_str(), answer.release.as_str(), answer.epoch), ("films", "r1", 1));
    let versions: Vec<_> = answer.table_versions.iter().map(|t| (&*t.table, &*t.version)).collect();
    assert_eq!(versions, [("user", "v1"), ("item", "v1"), ("genre", "v1")]);
    assert_eq!((answer.missing_ids, answer.defaulted_bags), (0, 1), "the empty bag of genres");
    assert_eq!((answer.rows_looked_up, answer.nodes_touched), (1 + 3 + 3, 1));
    assert!(answer.lookup_us > 0 && answer.dense_us > 0, "{answer:?}");
    // Stages follow each other or lie within each other, and each is rounded down.
    let told = answer.stages.unwrap();
    let outer = told.check_us + answer.batch_wait_us + answer.lookup_us + answer.queue_us + answer.dense_us;
    assert!(told.took_us > 0 && outer <= told.took_us, "{answer:?}");
    assert!(told.split_us + told.wait_us + told.merge_us <= answer.lookup_us, "{answer:?}");
    assert!(told.wait_us > 0 && told.finish_us <= answer.dense_us, "{answer:?}");

    let calls = site.node.calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 1, "one lookup for all features");
    assert_eq!((&*calls[0].request_id, &*calls[0].tenant), ("request-1", "ads"));
    let user = calls[0].features.iter().find(|f| f.table_version.as_ref().unwrap().table == "user").unwrap();
    assert_eq!(unpack::<u64>(&user.ids).unwrap().collect::<Vec<_>>(), [4], "the user is asked for once");
    site.ranker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_the_caller_goes_on_to_the_nodes() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let site = Site::start().await;
    let mut client = site.ranker.client.clone();
    let mut rank = async |values: &[&'static str]| {
        let mut request = tonic::Request::new(films_request());
        values
            .iter()
            .for_each(|value| _ = request.metadata_mut().append("traceparent", value.parse().unwrap()));
        client.rank(request).await.unwrap();
        site.node.calls.lock().unwrap().last().unwrap().traceparent.clone()
    };
    assert_eq!(rank(&[PARENT]).await, PARENT);
    // What is malformed is passed over, and the ranking answered all the same.
    for values in [&[][..], &["00-zz"], &[PARENT, PARENT]] {
        assert_eq!(rank(values).await, "", "{values:?}");
    }
    let body = serde_json::json!({
        "model": "films", "user": { "user": [4], "age": 0.5 },
        "candidates": { "item": [10], "genres": [[1]] },
    });
    let header = format!("traceparent: {PARENT}\r\n");
    for (headers, told) in [(header.as_str(), PARENT), ("", "")] {
        let (status, answer) = site.ranker.http_with("POST", "/v1/rank", headers, &body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(site.node.calls.lock().unwrap().last().unwrap().traceparent, told);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_k_takes_the_best_and_ties_keep_their_order() {
    let mut site = Site::start().await;
    let mut request = films_request();
    request.candidates = 5;
    request.candidate = vec![ids("item", &[7, 9, 7, 1, 9], &[]), ids("genres", &[1; 5], &[1; 5])];
    for (top_k, expected) in
        [(0, vec![1, 4, 0, 2, 3]), (3, vec![1, 4, 0]), (1, vec![1]), (9, vec![1, 4, 0, 2, 3])]
    {
        request.top_k = top_k;
        let answer = site.ranker.rank(request.clone()).await.unwrap();
        let order: Vec<u32> = ranked(&answer).into_iter().map(|(at, _)| at).collect();
        assert_eq!(order, expected, "top_k {top_k}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_missing_ids_and_empty_requests() {
    let mut site = Site::start().await;
    let mut request = films_request();
    // A weighted mean of genres: (3 * 1 + 1 * 5) / 4 = 2; the user and one item are in no table.
    request.user[0] = ids("user", &[u64::MAX], &[]);
    request.candidates = 2;
    request.candidate = vec![ids("item", &[10, 5_000], &[]), ids("genres", &[1, 5, 2], &[2, 1])];
    request.candidate[1].weights = tidepool_proto::pack::pack(&[3.0f32, 1.0, 8.0]);
    let answer = site.ranker.rank(request.clone()).await.unwrap();
    let scores = [3.0 * 10.0 + 5.0 * 2.0 + 100.0 + 3.5, 5.0 * 2.0 + 100.0 + 3.5];
    assert_eq!(ranked(&answer), [(0, scores[0]), (1, scores[1])]);
    assert_eq!((answer.missing_ids, answer.defaulted_bags), (2, 2));

    request.candidates = 0;
    request.candidate = vec![ids("item", &[], &[]), ids("genres", &[], &[])];
    let answer = site.ranker.rank(request).await.unwrap();
    assert_eq!((ranked(&answer), answer.release.as_str(), answer.nodes_touched), (vec![], "r1", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_tables_asks_no_node() {
    let mut site = Site::start().await;
    let request = v1::RankRequest {
        model: "prices".into(),
        candidates: 2,
        candidate: vec![values("price", &[1.0, std::f32::consts::E])],
        ..v1::RankRequest::default()
    };
    let answer = site.ranker.rank(request).await.unwrap();
    let ranked = ranked(&answer);
    assert_eq!((ranked[0].0, ranked[1]), (1, (0, 0.0)));
    assert!((ranked[0].1 - 1.0).abs() < 1e-6);
    assert_eq!((answer.nodes_touched, answer.epoch), (0, 1));
    assert!(site.node.calls.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_score_that_is_not_finite_is_an_error_that_names_it() {
    let mut site = Site::start().await;
    for (price, shown) in [(-1.0, "NaN"), (0.0, "-inf")] {
        let request = v1::RankRequest {
            model: "prices".into(),
            candidates: 2,
            candidate: vec![values("price", &[1.0, price])],
            ..v1::RankRequest::default()
        };
        let status = site.ranker.rank(request).await.unwrap_err();
        assert_eq!(code_of(&status), ErrorCode::Internal);
        let expected = format!("output \"score\" of release p1 of model prices is {shown} for candidate 1");
        assert_eq!(status.message(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_ends_a_request_whose_node_is_silent() {
    let mut site = Site::with_node(FakeNode::start(false).await).await;
    let begun = Instant::now();
    let request = v1::RankRequest { deadline_us: 100_000, ..films_request() };
    let status = site.ranker.rank(request).await.unwrap_err();
    assert_eq!(code_of(&status), ErrorCode::DeadlineExceeded, "{status:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "the default budget is 20 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_nodes_a_ranking_fails_or_says_what_is_lacking() {
    for on_unavailable in ["fail", "default"] {
        let mut node = FakeNode::start(true).await;
        // Where nobody listens.
        node.address = "127.0.0.1:1".parse().unwrap();
        let mut site = Site::with(node, |raw| raw.on_unavailable = on_unavailable.into()).await;
        let request = films_request();
        let asked = request.user.iter().chain(&request.candidate).map(|f| f.ids.len() / 8).sum::<usize>();
        let result = site.ranker.rank(request).await;
        if on_unavailable == "fail" {
            assert_eq!(code_of(&result.unwrap_err()), ErrorCode::Unavailable);
            continue;
        }
        let answer = result.unwrap();
        assert!(answer.partial, "{answer:?}");
        assert_eq!((answer.unavailable_ids as usize, answer.missing_ids), (asked, 0));
        assert_eq!(ranked(&answer).len(), 3, "some score is better than none");
        let (_, metrics) = site.ranker.http("GET", "/metrics", "").await;
        assert!(metrics.contains("tidepool_ranker_partial_answers_total 1"), "{metrics}");
        assert!(metrics.contains(&format!("tidepool_ranker_unavailable_ids_total {asked}")), "{metrics}");
    }
}
