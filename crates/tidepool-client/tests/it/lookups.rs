//! Lookups against nodes that serve, die, refuse, hang and lie.

use std::{error::Error, sync::Arc, time::Duration};

use prometheus::Registry;
use tidepool_client::{
    BadAnswer, BreakerConfig, Client, ClientConfig, ClientError, HedgeConfig, LookupOptions, LookupOutcome,
    NodeFailure, TraceParent, Warmed, WireForm,
};
use tidepool_cluster::ClusterMap;
use tidepool_proto::{pack, status_of, v1};
use tidepool_types::{Combine, Composite, Epoch, ErrorCode, PartitionIndex};
use tokio::sync::watch;

use crate::fake::{Cluster, FakeNode, ROWS, assert_right, map, name, request, version};

const PLENTY: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

fn client(map: ClusterMap) -> (Client, watch::Sender<Arc<ClusterMap>>) {
    let (sender, maps) = watch::channel(Arc::new(map));
    let config = ClientConfig {
        preferred_group: Some(name("a")),
        tenant: "ads".into(),
        // A test that counts calls must not depend on the machine's speed: a node that fails is sick for
        // long, no group is too slow, no call is late.
        breaker: BreakerConfig { failures: 1, backoff: HOUR, max_backoff: HOUR, ..Default::default() },
        spill_factor: f64::INFINITY,
        hedge: HedgeConfig { budget: 0.0, ..Default::default() },
        ..Default::default()
    };
    (Client::with_map(config, maps).unwrap(), sender)
}

async fn look_up(client: &Client, timeout: Duration) -> Result<LookupOutcome, ClientError> {
    let options = LookupOptions { timeout, ..Default::default() };
    client.lookup(&request().0, &options).await
}

fn bad_answer(error: &ClientError) -> &BadAnswer {
    let ClientError::Unavailable { last: Some(node), .. } = error else { panic!("{error}") };
    let NodeFailure::BadAnswer(bad) = &node.failure else { panic!("{node}: {:?}", node.source()) };
    bad
}

#[tokio::test]
async fn one_call_per_node_of_one_group() {
    let cluster = Cluster::start();
    let (sender, maps) = watch::channel(Arc::new(cluster.map(5)));
    let registry = Registry::new();
    let config =
        ClientConfig { tenant: "ads".into(), registry: Some(registry.clone()), ..Default::default() };
    let client = Client::with_map(config, maps).unwrap();
    for (wire_form, exact) in [(None, false), (Some(WireForm::Pool), false), (None, true)] {
        let options = LookupOptions { timeout: PLENTY, exact, wire_form, ..Default::default() };
        let outcome = client.lookup(&request().0, &options).await.unwrap();
        assert_right(&outcome);
        assert_eq!((outcome.nodes_touched, outcome.fallbacks, outcome.epoch), (2, 0, Epoch(5)));
        let pooled = wire_form == Some(WireForm::Pool);
        assert_eq!(outcome.wire_bytes.pool > 0, pooled, "{outcome:?}");
        // Eight unique ids; id 3 is in both features, so it is sent twice when one of them is pooled.
        assert_eq!(outcome.rows_requested, 8 + u64::from(pooled), "{outcome:?}");
    }
    let [a0, a1, b0, b1] = cluster.calls();
    assert_eq!((a0, b0, a0 + b0), (a1, b1, 3), "a whole group each time");
    let seen = [&cluster.a[0], &cluster.b[0]].iter().flat_map(|node| node.calls()).next().unwrap();
    assert_eq!((seen.request_id.as_str(), seen.tenant.as_str()), ("request-1", "ads"));
    assert!(seen.deadline_us > 0 && seen.deadline_us <= PLENTY.as_micros() as u64, "{}", seen.deadline_us);
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text.contains("tidepool_client_lookups_total{code=\"ok\"} 3"), "{text}");
    drop(sender);
}

#[tokio::test]
async fn nodes_are_told_whose_trace_a_lookup_is_part_of() {
    let node = FakeNode::start();
    let (client, _sender) = client(map(1, &[("a", &[node.address])]));
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for traceparent in [TraceParent::parse(parent.as_bytes()), None] {
        let options = LookupOptions { timeout: PLENTY, traceparent, ..Default::default() };
        client.lookup(&request().0, &options).await.unwrap();
    }
    let told: Vec<String> = node.calls().into_iter().map(|call| call.traceparent).collect();
    assert_eq!(told, [parent, ""]);
}

#[tokio::test]
async fn a_killed_node_is_stood_in_for_and_then_asked_last() {
    let mut cluster = Cluster::start();
    let (client, _sender) = client(cluster.map(1));
    assert_right(&look_up(&client, PLENTY).await.unwrap());
    cluster.a[1].kill();
    let outcome = look_up(&client, PLENTY).await.unwrap();
    assert_right(&outcome);
    assert_eq!((outcome.fallbacks, outcome.nodes_touched), (2, 3), "the two partitions of the dead node");
    assert_eq!(cluster.calls(), [2, 1, 0, 1], "the living node of its group kept its share");
    let outcome = look_up(&client, PLENTY).await.unwrap();
    assert_right(&outcome);
    assert_eq!(
        (outcome.fallbacks, outcome.nodes_touched),
        (0, 2),
        "the whole group is passed over for a while"
    );
    assert_eq!(cluster.calls(), [2, 1, 1, 2]);
}

#[tokio::test]
async fn a_refusal_is_asked_elsewhere_when_another_node_may_know_better() {
    for code in ErrorCode::ALL {
        let cluster = Cluster::start();
        let (client, _sender) = client(cluster.map(1));
        cluster.a[0].behave(move |_| Some(Err(status_of(code, "no", Some(Epoch(1))))));
        let result = look_up(&client, PLENTY).await;
        if code.retry_elsewhere() {
            let outcome = result.unwrap();
            assert_right(&outcome);
            assert_eq!(outcome.fallbacks, 2, "{code}");
        } else {
            let error = result.unwrap_err();
            assert_eq!(error.code(), code);
            assert_eq!(cluster.calls()[2..], [0, 0], "{code} is no reason to ask another group");
        }
    }
}

#[tokio::test]
async fn a_node_that_hangs_costs_half_the_budget_and_all_hanging_is_the_deadline() {
    let cluster = Cluster::start();
    let (client, _sender) = client(cluster.map(1));
    cluster.a[0].behave(|_| None);
    let outcome = look_up(&client, Duration::from_secs(2)).await.unwrap();
    assert_right(&outcome);
    assert_eq!(outcome.fallbacks, 2);
    for node in cluster.a.iter().chain(&cluster.b) {
        node.behave(|_| None);
    }
    let error = look_up(&client, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, ClientError::DeadlineExceeded { node: Some(_), .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::DeadlineExceeded);
    let error = look_up(&client, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeadlineExceeded);
}

#[tokio::test]
async fn a_lie_is_never_an_answer() {
    type Lie = (fn(&mut v1::LookupResponse), fn(&BadAnswer) -> bool);
    let lies: [Lie; 5] = [
        (|r| r.features[0].rows.truncate(5), |b| matches!(b, BadAnswer::Length { field: "rows", .. })),
        (
            |r| r.features[0].table_version.as_mut().unwrap().version = "v2".into(),
            |b| matches!(b, BadAnswer::Version { .. }),
        ),
        (|r| r.features[0].missing_ids += 1, |b| matches!(b, BadAnswer::Missing { .. })),
        (|r| r.features.clear(), |b| matches!(b, BadAnswer::Features { got: 0, .. })),
        (
            |r| r.features[0].missing = vec![0; 99].into(),
            |b| matches!(b, BadAnswer::Length { field: "missing", .. }),
        ),
    ];
    for (lie, is_seen) in lies {
        let cluster = Cluster::start();
        let (client, _sender) = client(cluster.map(1));
        cluster.a.iter().for_each(|node| node.lie(lie));
        let outcome = look_up(&client, PLENTY).await.unwrap();
        assert_right(&outcome);
        assert_eq!(outcome.fallbacks, 4, "the honest group stood in");
        cluster.b.iter().for_each(|node| node.lie(lie));
        let error = look_up(&client, PLENTY).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal);
        assert!(is_seen(bad_answer(&error)), "{error:?}");
    }
}

#[tokio::test]
async fn counts_and_sums_of_partial_answers_are_checked_too() {
    let node = FakeNode::start();
    let (client, _sender) = client(map(1, &[("a", &[node.address])]));
    let options = LookupOptions { timeout: PLENTY, wire_form: Some(WireForm::Pool), ..Default::default() };
    let pooled = |change: fn(&mut v1::FeatureResponse)| {
        node.behave(move |request| {
            let mut response = crate::fake::honest(request);
            response.features.iter_mut().filter(|f| !f.sums.is_empty()).for_each(change);
            Some(Ok(response))
        });
    };
    pooled(|_| {});
    assert_right(&client.lookup(&request().0, &options).await.unwrap());
    pooled(|f| f.counts = pack::pack(&[6u32, 0]));
    let error = client.lookup(&request().0, &options).await.unwrap_err();
    assert!(matches!(bad_answer(&error), BadAnswer::Count { said: 6, marked: 5, .. }), "{error:?}");
    pooled(|f| f.sums = pack::pack(&[1.0f32; 3]));
    let error = client.lookup(&request().0, &options).await.unwrap_err();
    assert!(matches!(bad_answer(&error), BadAnswer::Length { field: "sums", .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_left_to_ask_names_table_and_partition() {
    let mut cluster = Cluster::start();
    let (client, _sender) = client(cluster.map(1));
    cluster.a.iter_mut().chain(&mut cluster.b).for_each(FakeNode::kill);
    let error = look_up(&client, PLENTY).await.unwrap_err();
    let ClientError::Unavailable { table, partition, tried: 2, last: Some(last) } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(table, &version());
    assert!(partition < &PartitionIndex(4) && last.node.0.as_str().starts_with("b-"), "{last}");
    assert_eq!(error.code(), ErrorCode::Unavailable);
}

#[tokio::test]
async fn a_node_that_knows_a_newer_map_is_believed() {
    let (old, new) = (FakeNode::start(), FakeNode::start());
    let (client, sender) = client(map(1, &[("a", &[old.address])]));
    let newer = Arc::new(map(2, &[("a", &[new.address])]));
    old.behave(move |_| {
        // The map comes after the refusal was decided, as it does when a table moves.
        sender.send_replace(newer.clone());
        Some(Err(status_of(ErrorCode::NotServed, "moved", Some(Epoch(2)))))
    });
    let outcome = look_up(&client, PLENTY).await.unwrap();
    assert_right(&outcome);
    assert_eq!(outcome.epoch, Epoch(2));
    assert_eq!((old.calls().len(), new.calls().len()), (1, 1));
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_here() {
    let node = FakeNode::start();
    let (client, sender) = client(ClusterMap::default());
    let error = look_up(&client, PLENTY).await.unwrap_err();
    assert!(matches!(error, ClientError::NoMap), "{error}");
    sender.send_replace(Arc::new(map(1, &[("a", &[node.address])])));
    assert_right(&look_up(&client, PLENTY).await.unwrap());
    let (mut bad, _) = request();
    bad.features[1].table_version.table = name("song");
    let error = client.lookup(&bad, &LookupOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(error.to_string().contains("song@v1"), "{error}");
    let (mut bad, _) = request();
    bad.features[0].lengths = Some(vec![1]);
    let error = client.lookup(&bad, &LookupOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    let nothing = tidepool_client::LookupRequest::default();
    assert_eq!(client.lookup(&nothing, &LookupOptions::default()).await.unwrap().nodes_touched, 0);
    assert_eq!(node.calls().len(), 1, "none of it travelled");
}

#[tokio::test]
async fn rows_that_another_version_had_warm_nothing_and_blame_nobody() {
    let node = FakeNode::start();
    let mut map = map(1, &[("a", &[node.address])]);
    let schema = &mut map.layouts[0].schema;
    schema.composite = Some(Composite { seeds: vec![1, 2], combine: Combine::Concat });
    schema.default_row = Vec::new();
    let (client, _sender) = client(map);
    let rows = [1, ROWS + 1, ROWS - 1, 5000];
    let warmed = client.warm(&version(), &rows, PLENTY).await.unwrap();
    assert_eq!(warmed, Warmed { ids: 4, known: 0, asked: 2 });
    let warmed = client.warm(&version(), &[5000], PLENTY).await.unwrap();
    assert_eq!((warmed.ids, node.calls().len()), (1, 1), "nothing is left to ask");
}
