//! A ranker that keeps hot rows: what is known is not asked again, and a release that comes is warmed.

use tidepool_client::HotIds;
use tidepool_proto::{pack::unpack, v1};

use crate::{
    FILMS_SCORES, Site, entry, films_request, map, ranked,
    site::{TestRanker, raw_config, version},
    tables,
};

#[tokio::test(flavor = "multi_thread")]
async fn hot_rows_are_asked_for_once_and_warm_the_next_version() {
    let site = Site::start().await;
    site.ranker.stop().await;
    let only_r1 = vec![entry("films", "r1", &tables("v1"), v1::ReleaseState::Current)];
    site.controller.send(map(2, site.node.address, only_r1));
    let mut raw = raw_config(&site.store, site.controller.address, site.data.path().join("cached"));
    raw.cache_bytes = 1 << 20;
    let mut ranker = TestRanker::start(raw).await;
    let calls = || site.node.calls.lock().unwrap().len();
    let first = ranker.rank(films_request()).await.unwrap();
    assert_eq!((first.nodes_touched, calls()), (1, 1));
    let again = ranker.rank(films_request()).await.unwrap();
    assert_eq!((again.nodes_touched, again.rows_looked_up, calls()), (0, 0, 1), "all of it is known");
    for answer in [first, again] {
        assert_eq!(ranked(&answer), [(1, FILMS_SCORES[1]), (0, FILMS_SCORES[0]), (2, FILMS_SCORES[2])]);
    }

    let (status, text) = ranker.http("GET", "/v1/hot-ids?table=item&version=v1", "").await;
    let hot = HotIds::parse(&text).unwrap();
    assert_eq!((status, hot.ids, hot.table_version), (200, vec![5, 10, 20], version("item", "v1")));
    let (status, text) = ranker.http("GET", "/v1/hot-ids?table=item&version=v1&limit=no", "").await;
    assert!(status == 400 && text.contains("invalid_request") && text.contains("limit=no"), "{text}");

    // The next release has other versions of the tables. Once it is ready its rows are there.
    let both = vec![
        entry("films", "r1", &tables("v1"), v1::ReleaseState::Previous),
        entry("films", "r2", &tables("v2"), v1::ReleaseState::Current),
    ];
    site.controller.send(map(3, site.node.address, both));
    site.controller
        .report(|r| r.epoch == 3 && r.releases.len() == 2 && r.releases.iter().all(|r| r.ready))
        .await;
    let warming = site.node.calls.lock().unwrap()[1..].to_vec();
    let of_items = warming.iter().flat_map(|call| &call.features).find(|feature| {
        feature.table_version.as_ref().is_some_and(|v| v.table == "item" && v.version == "v2")
    });
    assert_eq!(unpack::<u64>(&of_items.unwrap().ids).unwrap().collect::<Vec<_>>(), [5, 10, 20]);
    let asked = calls();
    let next = ranker.rank(films_request()).await.unwrap();
    assert_eq!((next.release.as_str(), next.nodes_touched, calls()), ("r2", 0, asked));
    assert_eq!(ranked(&next)[0], (1, 80.0 + 3.5 + 600.0 + 150.0 + 100.0));
    ranker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cache_there_are_no_hot_ids() {
    let site = Site::start().await;
    let (status, text) = site.ranker.http("GET", "/v1/hot-ids?table=item&version=v1", "").await;
    assert!(status == 404 && text.contains("cache_bytes is 0"), "{text}");
    site.ranker.stop().await;
}
