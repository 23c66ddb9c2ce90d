//! Lookups that hand on stored rows, and rows by their ids, against nodes that serve, die, lie and hang.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use prometheus::Registry;
use tidepool_client::{
    BreakerConfig, Client, ClientConfig, ClientError, Counted, FeatureRows, HedgeConfig, Held, Holding,
    LookupAccount, LookupOptions, LookupOutcome, OnUnavailable, UniqueRow, WireForm,
};
use tidepool_cluster::ClusterMap;
use tidepool_proto::{pack, status_of, v1};
use tidepool_types::{Combine, Composite, Epoch, ErrorCode, TableVersion};
use tokio::sync::watch;

use crate::fake::{Cluster, FakeNode, ROWS, map, name, request, version};

const PLENTY: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

fn client_with(
    map: ClusterMap,
    change: impl Fn(&mut ClientConfig),
) -> (Client, watch::Sender<Arc<ClusterMap>>) {
    let (sender, maps) = watch::channel(Arc::new(map));
    let mut config = ClientConfig {
        preferred_group: Some(name("a")),
        // A test that counts calls must not depend on the machine's speed.
        breaker: BreakerConfig { failures: 1, backoff: HOUR, max_backoff: HOUR, ..Default::default() },
        spill_factor: f64::INFINITY,
        hedge: HedgeConfig { budget: 0.0, ..Default::default() },
        ..Default::default()
    };
    change(&mut config);
    (Client::with_map(config, maps).unwrap(), sender)
}

fn client(map: ClusterMap) -> (Client, watch::Sender<Arc<ClusterMap>>) {
    client_with(map, |_| {})
}

/// Has the rows of ids 1 to 3, and knows that there is none of id 5000; counts how often it is asked.
#[derive(Debug, Default)]
struct Few {
    asked: Mutex<Vec<Vec<u64>>>,
}

impl Held for Few {
    fn hold(&self, table: &TableVersion, ids: &[u64], into: &mut Vec<Holding>) -> bool {
        assert_eq!(table, &version());
        self.asked.lock().unwrap().push(ids.to_vec());
        into.extend(ids.iter().map(|id| match id {
            1..=3 => Holding::Held,
            5000 => Holding::Missing,
            _ => Holding::Ask,
        }));
        true
    }
}

fn options() -> LookupOptions {
    LookupOptions { timeout: PLENTY, ..Default::default() }
}

async fn look_up(client: &Client, held: Option<&dyn Held>) -> LookupOutcome<FeatureRows> {
    // Only rows can be handed on, whatever form is asked for.
    let options = LookupOptions { wire_form: Some(WireForm::Pool), ..options() };
    client.lookup_rows(&request().0, &options, held, None).await.unwrap()
}

/// What there is of each id of a feature, in its order.
fn rows_of(feature: &FeatureRows) -> Vec<(u64, UniqueRow<'_>)> {
    let members = feature.members.iter().map(|member| *member as usize);
    members.map(|at| (feature.table.ids[at], feature.table.row(at))).collect()
}

/// That each id of the request has its row, but those that are `held` are left out, and those from [`ROWS`] on are missing.
fn assert_right(outcome: &LookupOutcome<FeatureRows>, held: bool) {
    let (request, _) = request();
    for (asked, feature) in request.features.iter().zip(&outcome.features) {
        let rows = rows_of(feature);
        assert_eq!(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>(), asked.ids);
        for (id, row) in rows {
            let stored = [id as f32, 1.0].map(f32::to_le_bytes).concat();
            match id {
                1..=3 if held => assert_eq!(row, UniqueRow::Held),
                ROWS.. => assert_eq!(row, UniqueRow::Missing),
                _ => assert_eq!(row, UniqueRow::Stored(&stored)),
            }
        }
    }
    assert!(Arc::ptr_eq(&outcome.features[0].table, &outcome.features[1].table), "one list of rows");
    let counts = outcome.features.iter().map(Counted::counts);
    let counts: Vec<_> = counts.map(|c| (c.missing_ids, c.unavailable_ids, c.defaulted_bags)).collect();
    assert_eq!(counts, [(2, 0, 2), (1, 0, 1)], "as of the vectors of this request");
    assert_eq!((outcome.missing_ids(), outcome.defaulted_bags(), outcome.partial()), (3, 3, false));
    let bags = [0..6, 6..7, 7..7].map(|bag| outcome.features[0].bag_counts(bag).found);
    assert_eq!(bags, [5, 0, 0]);
}

/// Every id that the nodes were asked for.
fn asked(nodes: &[&FakeNode]) -> Vec<u64> {
    let calls = nodes.iter().flat_map(|node| node.calls());
    let features = calls.flat_map(|call| call.features);
    let mut ids: Vec<u64> =
        features.flat_map(|f| pack::unpack(&f.ids).unwrap().collect::<Vec<_>>()).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn what_is_held_travels_to_no_node_and_is_counted() {
    let cluster = Cluster::start();
    let registry = Registry::new();
    let (client, _sender) = client_with(cluster.map(5), |config| config.registry = Some(registry.clone()));
    let outcome = look_up(&client, None).await;
    assert_right(&outcome, false);
    assert_eq!((outcome.rows_requested, outcome.held_ids, outcome.epoch), (8, 0, Epoch(5)));
    assert_eq!((outcome.wire_bytes.pool, outcome.nodes_touched), (0, 2));
    let before = cluster.a.iter().map(|node| node.calls().len()).sum::<usize>();
    let few = Few::default();
    let account = LookupAccount::default();
    let held: Option<&dyn Held> = Some(&few);
    let outcome = client.lookup_rows(&request().0, &options(), held, Some(&account)).await.unwrap();
    assert_right(&outcome, true);
    assert_eq!((outcome.rows_requested, outcome.held_ids), (4, 4));
    assert_eq!(*few.asked.lock().unwrap(), [[1, 2, 3, 4, 5000, 6000, 7, 9000]], "once, with each id once");
    let second: Vec<_> = cluster.a.iter().flat_map(|node| node.calls().split_off(1)).collect();
    assert_eq!(before + second.len(), cluster.a.iter().map(|node| node.calls().len()).sum::<usize>());
    let features = second.iter().flat_map(|call| &call.features);
    let mut ids: Vec<u64> = features.flat_map(|f| pack::unpack::<u64>(&f.ids).unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [4, 7, 6000, 9000]);
    let notes = account.take();
    assert_eq!((notes.epoch, notes.calls.len()), (Some(Epoch(5)), second.len()));
    assert!(notes.stages.is_some());
    let missing: Vec<_> = notes.features.iter().map(|of| (of.missing, of.missing_ids.clone())).collect();
    assert_eq!(missing, [(2, vec![5000, 6000]), (1, vec![9000])], "what is held is found");
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in [
        "tidepool_client_lookups_total{code=\"ok\"} 2",
        "tidepool_client_requested_rows_total 12",
        "tidepool_client_held_ids_total{table=\"film\"} 4",
        "tidepool_client_ids_total{table=\"film\"} 20",
        "tidepool_client_missing_ids_total{table=\"film\"} 6",
        "tidepool_client_defaulted_bags_total{table=\"film\"} 6",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn where_all_is_held_or_known_nobody_is_asked() {
    let node = FakeNode::start();
    let registry = Registry::new();
    let (client, _sender) = client_with(map(1, &[("a", &[node.address])]), |config| {
        config.cache_bytes = 1 << 20;
        config.registry = Some(registry.clone());
    });
    let few = Few::default();
    let first = look_up(&client, Some(&few)).await;
    assert_eq!((first.rows_requested, first.cache_hits, first.held_ids), (4, 0, 4));
    let again = look_up(&client, Some(&few)).await;
    assert_right(&again, true);
    assert_eq!((again.rows_requested, again.cache_hits, again.held_ids, again.nodes_touched), (0, 4, 4, 0));
    assert_eq!(asked(&[&node]), [4, 7, 6000, 9000]);
    // Nothing was looked for in the cache but what is not held, and what is held was not put into it.
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in [
        "tidepool_client_cache_hits_total{table=\"film\"} 4",
        "tidepool_client_cache_misses_total{table=\"film\"} 4",
        "tidepool_client_cache_held_rows 4",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let whole = look_up(&client, None).await;
    assert_right(&whole, false);
    assert_eq!((whole.rows_requested, whole.cache_hits), (4, 4), "1, 2, 3 and 5000 are new to it");
}

#[tokio::test]
async fn fallbacks_and_newer_maps_are_as_of_any_lookup() {
    let mut cluster = Cluster::start();
    let (client, sender) = client(cluster.map(1));
    cluster.a[1].kill();
    let outcome = look_up(&client, None).await;
    assert_right(&outcome, false);
    assert_eq!((outcome.fallbacks, outcome.nodes_touched), (2, 3));
    let (old, new) = (FakeNode::start(), FakeNode::start());
    sender.send_replace(Arc::new(map(2, &[("a", &[old.address])])));
    let newer = Arc::new(map(3, &[("a", &[new.address])]));
    old.behave(move |_| {
        sender.send_replace(newer.clone());
        Some(Err(status_of(ErrorCode::NotServed, "moved", Some(Epoch(3)))))
    });
    let few = Few::default();
    let outcome = look_up(&client, Some(&few)).await;
    assert_right(&outcome, true);
    assert_eq!((outcome.epoch, outcome.held_ids), (Epoch(3), 4));
    assert_eq!(few.asked.lock().unwrap().len(), 2, "once per attempt");
    assert_eq!(asked(&[&old, &new]), [4, 4, 7, 7, 6000, 6000, 9000, 9000]);
}

#[tokio::test]
async fn a_lie_is_never_handed_on() {
    let lies: [fn(&mut v1::LookupResponse); 4] = [
        |r| r.features[0].rows.truncate(5),
        |r| r.features[0].table_version.as_mut().unwrap().version = "v2".into(),
        |r| r.features[0].missing_ids += 1,
        |r| r.features.clear(),
    ];
    for lie in lies {
        let cluster = Cluster::start();
        let (client, _sender) = client(cluster.map(1));
        cluster.a.iter().for_each(|node| node.lie(lie));
        let outcome = look_up(&client, None).await;
        assert_right(&outcome, false);
        assert_eq!(outcome.fallbacks, 4, "the honest group stood in");
        cluster.b.iter().for_each(|node| node.lie(lie));
        let few = Few::default();
        let error = client.lookup_rows(&request().0, &options(), Some(&few), None).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal);
        let error = client.fetch_rows(&version(), &[4], PLENTY).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal);
    }
}

#[tokio::test]
async fn what_nobody_answers_for_is_unavailable_where_that_is_allowed() {
    let mut nodes = [FakeNode::start(), FakeNode::start()];
    let addresses = [nodes[0].address, nodes[1].address];
    let registry = Registry::new();
    let (client, _sender) = client_with(map(1, &[("a", &addresses)]), |config| {
        config.registry = Some(registry.clone());
    });
    // Odd ids: partitions 1 and 3.
    nodes[1].kill();
    let error = client.lookup_rows(&request().0, &options(), None, None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    let few = Few::default();
    let options = LookupOptions { on_unavailable: OnUnavailable::Default, ..options() };
    let account = LookupAccount::default();
    let outcome = client.lookup_rows(&request().0, &options, Some(&few), Some(&account)).await.unwrap();
    // Of the odd ids 1 and 3 are held.
    assert!(outcome.partial());
    assert_eq!((outcome.unavailable_ids(), outcome.missing_ids(), outcome.defaulted_bags()), (1, 3, 4));
    let [bag, single] = &outcome.features[..] else { panic!("{outcome:?}") };
    assert_eq!((bag.counts.unavailable_ids, single.counts.unavailable_ids), (0, 1));
    assert_eq!(rows_of(single)[0], (7, UniqueRow::Unavailable));
    let counts = single.bag_counts(0..3);
    assert_eq!((counts.found, counts.missing, counts.unavailable, counts.torn), (1, 1, 1, false));
    let notes = account.take();
    assert_eq!(notes.features[1].unavailable_ids, [7]);
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text.contains("tidepool_client_lookups_total{code=\"partial\"} 1"), "{text}");
    assert!(text.contains("tidepool_client_unavailable_ids_total{table=\"film\"} 1"), "{text}");
}

#[tokio::test]
async fn rows_come_by_their_ids_in_pieces() {
    let cluster = Cluster::start();
    let registry = Registry::new();
    let (client, _sender) = client_with(cluster.map(1), |config| {
        config.cache_bytes = 1 << 20;
        config.registry = Some(registry.clone());
    });
    // Backwards, half of them missing, each of the first thousand named twice.
    let mut ids: Vec<u64> = (0..2 * ROWS).rev().collect();
    ids.extend(0..ROWS);
    ids.extend(100_000..110_000);
    let fetched = client.fetch_rows(&version(), &ids, PLENTY).await.unwrap();
    assert_eq!(fetched.ids, (0..ROWS).rev().collect::<Vec<_>>());
    let rows = fetched.rows.chunks_exact(4).map(|v| f32::from_le_bytes(v.try_into().unwrap()));
    let want: Vec<f32> = (0..ROWS).rev().flat_map(|id| [id as f32, 1.0]).collect();
    assert_eq!(rows.collect::<Vec<_>>(), want);
    let nodes: Vec<&FakeNode> = cluster.a.iter().collect();
    assert_eq!(asked(&nodes).len(), 12_000, "each once");
    assert_eq!(cluster.calls(), [4, 4, 0, 0], "4096 at a time");
    // They are not kept; but what is in the cache is not asked for.
    client.warm(&version(), &[5, 6], PLENTY).await.unwrap();
    let before = asked(&nodes).len();
    let fetched = client.fetch_rows(&version(), &[7, 6, 5000, 5], PLENTY).await.unwrap();
    assert_eq!((fetched.ids, fetched.rows.len()), (vec![7, 6, 5], 24));
    assert_eq!(asked(&nodes).len(), before + 2);
    let nothing = client.fetch_rows(&version(), &[], PLENTY).await.unwrap();
    assert!(nothing.ids.is_empty() && nothing.rows.is_empty());
    // Neither was a lookup.
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for of in ["hits", "misses"] {
        let line = format!("tidepool_client_cache_{of}_total{{table=\"film\"}} 0\n");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    let mut one = request().0;
    one.features.truncate(1);
    (one.features[0].ids, one.features[0].lengths) = (vec![6], Some(vec![1]));
    client.lookup(&one, &options()).await.unwrap();
    for _ in 0..3 {
        client.fetch_rows(&version(), &[5], PLENTY).await.unwrap();
        client.warm(&version(), &[5], PLENTY).await.unwrap();
    }
    assert_eq!(client.hot_ids(&version(), 2).ids, [6, 5], "6 was wanted once, and 5 never");
}

#[tokio::test]
async fn rows_are_as_of_the_smallest_sequence_of_those_that_were_asked() {
    let node = FakeNode::start();
    let (client, _sender) =
        client_with(map(1, &[("a", &[node.address])]), |config| config.cache_bytes = 8 << 20);
    node.behave(|request| {
        let mut answer = crate::fake::honest(request);
        for (of, asked) in answer.features.iter_mut().zip(&request.features) {
            let first = pack::unpack::<u64>(&asked.ids).unwrap().min();
            of.sequence = if first < Some(4096) { 9 } else { 7 };
        }
        Some(Ok(answer))
    });
    let ids: Vec<u64> = (0..10_000).collect();
    let fetch = |ids: Vec<u64>| {
        let client = client.clone();
        async move { client.fetch_rows(&version(), &ids, PLENTY).await.unwrap().sequence }
    };
    assert_eq!(fetch(ids[..4096].to_vec()).await, 9);
    assert_eq!(fetch(ids.clone()).await, 7, "of the pieces 9, 7 and 7");
    client.warm(&version(), &ids[..4096], PLENTY).await.unwrap();
    assert_eq!(fetch(ids.clone()).await, 7, "the first piece is asked of nobody, which is not 0");
    assert_eq!(fetch(ids[..4096].to_vec()).await, 0, "nobody is asked");
    assert_eq!(fetch(Vec::new()).await, 0);
}

#[tokio::test]
async fn rows_come_whole_or_not_at_all_and_within_the_time() {
    let node = FakeNode::start();
    let (client, _sender) = client(map(1, &[("a", &[node.address])]));
    let ids: Vec<u64> = (0..10_000).collect();
    let first = |request: &v1::LookupRequest| {
        let mut ids = pack::unpack::<u64>(&request.features[0].ids).unwrap();
        ids.any(|id| id == 0).then(|| Ok(crate::fake::honest(request)))
    };
    node.behave(move |request| {
        first(request).or_else(|| Some(Err(status_of(ErrorCode::InvalidRequest, "no", None))))
    });
    let error = client.fetch_rows(&version(), &ids, PLENTY).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    assert_eq!(node.calls().len(), 2, "the first piece came in vain, and no third was asked for");
    node.behave(first);
    let time = Duration::from_millis(200);
    let error = client.fetch_rows(&version(), &ids, time).await.unwrap_err();
    let ClientError::DeadlineExceeded { timeout, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*timeout, time, "the time for all of them");
    let error = client.fetch_rows(&version(), &ids, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeadlineExceeded);
    let mut other = version();
    other.version = name("v2");
    let error = client.fetch_rows(&other, &ids, PLENTY).await.unwrap_err();
    assert!(matches!(error, ClientError::UnknownTable { .. }), "{error}");
}

#[tokio::test]
async fn numbers_of_rows_of_a_composite_table_are_no_ids() {
    let node = FakeNode::start();
    let mut map = map(1, &[("a", &[node.address])]);
    let schema = &mut map.layouts[0].schema;
    schema.composite = Some(Composite { seeds: vec![1, 2], combine: Combine::Concat });
    schema.default_row = Vec::new();
    let (client, _sender) = client(map);
    let fetched = client.fetch_rows(&version(), &[3, ROWS + 1, 2], PLENTY).await.unwrap();
    assert_eq!(fetched.ids, [3, 2], "row 1001 is not there, and is asked of nobody");
    assert_eq!(fetched.rows[..4], 3f32.to_le_bytes());
    assert_eq!(asked(&[&node]), [2, 3]);
}
