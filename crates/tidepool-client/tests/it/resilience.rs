//! Lookups against clusters that are late, sick or half gone: hedges, breakers, budgets, defaults.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::Registry;
use tidepool_client::{
    BreakerConfig, Client, ClientConfig, ClientError, HedgeConfig, LookupOptions, LookupOutcome,
    OnUnavailable, RetryConfig,
};
use tidepool_cluster::ClusterMap;
use tidepool_proto::status_of;
use tidepool_types::{Epoch, ErrorCode};
use tokio::sync::watch;

use crate::fake::{Cluster, FakeNode, assert_right, map, name, request, wait_until};

const PLENTY: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

/// Group a comes first; what is late is hedged soon, nobody is ever sick.
fn config() -> ClientConfig {
    ClientConfig {
        preferred_group: Some(name("a")),
        spill_factor: f64::INFINITY,
        hedge: HedgeConfig { max_delay: 50 * MS, ..Default::default() },
        breaker: BreakerConfig { failures: u32::MAX, failure_rate: 1.0, ..Default::default() },
        ..Default::default()
    }
}

fn client(config: ClientConfig, map: ClusterMap) -> (Client, watch::Sender<Arc<ClusterMap>>) {
    let (sender, maps) = watch::channel(Arc::new(map));
    (Client::with_map(config, maps).unwrap(), sender)
}

async fn look_up(
    client: &Client,
    timeout: Duration,
    on_unavailable: OnUnavailable,
) -> Result<LookupOutcome, ClientError> {
    let options = LookupOptions { timeout, on_unavailable, ..Default::default() };
    client.lookup(&request().0, &options).await
}

fn text(registry: &Registry) -> String {
    prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
}

#[tokio::test]
async fn a_call_that_hangs_is_answered_by_another_group() {
    let cluster = Cluster::start();
    // Calls of their own: on a stream the fake node passes cancellations over.
    let (client, _sender) = client(ClientConfig { stream_max_bytes: 0, ..config() }, cluster.map(1));
    cluster.a[0].behave(|_| None);
    let outcome = look_up(&client, PLENTY, OnUnavailable::Fail).await.unwrap();
    assert_right(&outcome);
    assert_eq!((outcome.fallbacks, outcome.retries), (0, 0), "{outcome:?}");
    assert!(outcome.hedges_won >= 1 && outcome.nodes_touched >= 3, "{outcome:?}");
    wait_until("the call that lost is cancelled", || cluster.a[0].cancelled() == 1).await;
}

#[tokio::test]
async fn hedges_stop_at_their_budget() {
    let cluster = Cluster::start();
    let registry = Registry::new();
    let hedge = HedgeConfig { budget: 0.001, burst: 1, ..config().hedge };
    let config = ClientConfig { hedge, registry: Some(registry.clone()), ..config() };
    let (client, _sender) = client(config, cluster.map(1));
    cluster.a.iter().for_each(|node| node.behave(|_| None));
    let outcome = look_up(&client, Duration::from_secs(1), OnUnavailable::Fail).await.unwrap();
    assert_right(&outcome);
    assert_eq!((outcome.hedges, outcome.hedges_won), (1, 1), "{outcome:?}");
    assert_eq!(outcome.fallbacks, 2, "the other call had to time out");
    let outcome = look_up(&client, Duration::from_millis(200), OnUnavailable::Fail).await.unwrap();
    assert_eq!((outcome.hedges, outcome.fallbacks), (0, 4), "{outcome:?}");
    assert!(text(&registry).contains("tidepool_client_hedges_total{outcome=\"suppressed\"} 3"));
}

#[tokio::test]
async fn a_node_that_loses_too_often_is_left_alone_and_comes_back_when_it_answers() {
    let cluster = Cluster::start();
    let breaker = BreakerConfig { failures: 3, backoff: 50 * MS, max_backoff: 50 * MS, failure_rate: 1.0 };
    let hedge = HedgeConfig { budget: 1.0, ..config().hedge };
    let registry = Registry::new();
    let config = ClientConfig { breaker, hedge, registry: Some(registry.clone()), ..config() };
    let (client, _sender) = client(config, cluster.map(1));
    cluster.a[0].behave(|_| None);
    let is_open = || text(&registry).contains("tidepool_client_nodes{state=\"open\"} 1");
    for _ in 0..100 {
        let outcome = look_up(&client, PLENTY, OnUnavailable::Fail).await.unwrap();
        assert_right(&outcome);
        assert_eq!(outcome.fallbacks, 0, "{outcome:?}");
        if is_open() {
            break;
        }
    }
    assert!(is_open() || !cluster.b[0].calls().is_empty(), "{}", text(&registry));
    let before = cluster.a[0].calls().len();
    assert!((3..100).contains(&before), "{before} calls hung");
    cluster.a[0].behave(|request| Some(Ok(crate::fake::honest(request))));
    let healed = async {
        // Once its breaker is closed it is asked each time, as before.
        loop {
            let calls = cluster.a[0].calls().len();
            let outcome = look_up(&client, PLENTY, OnUnavailable::Fail).await.unwrap();
            assert_right(&outcome);
            if cluster.a[0].calls().len() > calls && outcome.hedges == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(PLENTY, healed).await.unwrap();
    assert!(text(&registry).contains("tidepool_client_nodes{state=\"closed\"} 4"), "{}", text(&registry));
}

#[tokio::test]
async fn nodes_that_never_answer_are_left_alone_though_each_lookup_ends_by_its_own_deadline() {
    for on_unavailable in [OnUnavailable::Fail, OnUnavailable::Default] {
        let nodes = [FakeNode::start(), FakeNode::start()];
        let registry = Registry::new();
        let breaker = BreakerConfig { failures: 3, failure_rate: 1.0, backoff: HOUR, max_backoff: HOUR };
        let config = ClientConfig { breaker, registry: Some(registry.clone()), ..config() };
        let addresses = [nodes[0].address, nodes[1].address];
        let (client, _sender) = client(config, map(1, &[("a", &addresses)]));
        nodes.iter().for_each(|node| node.behave(|_| None));
        let are_open = || text(&registry).contains("tidepool_client_nodes{state=\"open\"} 2");
        // A lookup that had no time to ask has learned nothing of the nodes, however often.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            let _ = look_up(&client, Duration::ZERO, on_unavailable).await;
        }
        assert!(text(&registry).contains("tidepool_client_nodes{state=\"closed\"} 2"), "{}", text(&registry));
        // Late is what takes 50 ms, and nobody is silent for long before four times that.
        let mut asked = 0;
        while !are_open() {
            let _ = look_up(&client, 20 * MS, on_unavailable).await;
            asked += 1;
            assert!(asked < 200, "{}", text(&registry));
        }
        assert!(asked > 3, "three lookups of 20 ms are no reason");
    }
}

#[tokio::test]
async fn what_a_hedge_answered_in_vain_is_not_counted() {
    let (first, others) = (FakeNode::start(), [FakeNode::start(), FakeNode::start()]);
    let registry = Registry::new();
    let config = ClientConfig { registry: Some(registry.clone()), ..config() };
    let addresses = [others[0].address, others[1].address];
    let (client, _sender) = client(config, map(1, &[("a", &[first.address]), ("b", &addresses)]));
    let plain = look_up(&client, PLENTY, OnUnavailable::Fail).await.unwrap();
    assert_eq!(plain.hedges, 0, "{plain:?}");
    // One half of the hedge answers, the other never does, and then the first node is back.
    let (go_on, wait) = std::sync::mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    first.behave(move |request| {
        wait.lock().unwrap().recv().unwrap();
        Some(Ok(crate::fake::honest(request)))
    });
    others[1].behave(|_| None);
    let asking = tokio::spawn({
        let client = client.clone();
        async move { look_up(&client, PLENTY, OnUnavailable::Fail).await }
    });
    let two_answers = "tidepool_client_rpcs_total{code=\"ok\"} 2";
    wait_until("half of the hedge has answered", || text(&registry).contains(two_answers)).await;
    go_on.send(()).unwrap();
    let outcome = asking.await.unwrap().unwrap();
    assert_right(&outcome);
    assert_eq!((outcome.hedges, outcome.hedges_won, outcome.nodes_touched), (1, 0, 3));
    assert_eq!(
        (outcome.rows_requested, outcome.wire_bytes),
        (plain.rows_requested, plain.wire_bytes),
        "the answer is made from one node's"
    );
}

/// Node 1 of each group holds the partitions of odd ids.
fn assert_flagged(outcome: &LookupOutcome) {
    let [bags, rows] = outcome.features.as_slice() else { panic!("{outcome:?}") };
    assert!(outcome.partial());
    assert_eq!(bags.values, [10.0, 3.0, -1.0, 0.5, -1.0, 0.5]);
    assert_eq!((bags.found.as_slice(), bags.unavailable.as_slice()), (&[3, 0, 0][..], &[2, 0, 0][..]));
    assert_eq!((bags.missing_ids, bags.unavailable_ids, bags.defaulted_bags), (2, 2, 2));
    assert_eq!(rows.values, [-1.0, 0.5].repeat(3));
    assert_eq!((rows.found.as_slice(), rows.unavailable.as_slice()), (&[0, 0, 0][..], &[1, 0, 1][..]));
    assert_eq!((rows.missing_ids, rows.unavailable_ids, rows.defaulted_bags), (1, 2, 3));
    assert_eq!((outcome.unavailable_ids(), outcome.missing_ids()), (4, 3));
}

#[tokio::test]
async fn both_copies_gone_is_an_error_or_a_flag() {
    let mut cluster = Cluster::start();
    let registry = Registry::new();
    let config = ClientConfig {
        breaker: BreakerConfig { failures: 1, backoff: HOUR, max_backoff: HOUR, failure_rate: 1.0 },
        registry: Some(registry.clone()),
        ..config()
    };
    let (client, _sender) = client(config, cluster.map(1));
    cluster.a[1].kill();
    cluster.b[1].kill();
    assert_flagged(&look_up(&client, PLENTY, OnUnavailable::Default).await.unwrap());
    let error = look_up(&client, PLENTY, OnUnavailable::Fail).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable { tried: 2, .. }), "asked all the same: {error:?}");
    assert_eq!(error.code(), ErrorCode::Unavailable);
    // Both are known to be sick now, and with defaults nobody waits for them.
    let outcome = look_up(&client, PLENTY, OnUnavailable::Default).await.unwrap();
    assert_flagged(&outcome);
    assert_eq!((outcome.nodes_touched, outcome.fallbacks), (1, 0), "{outcome:?}");
    let text = text(&registry);
    for line in [
        "tidepool_client_lookups_total{code=\"partial\"} 2",
        "tidepool_client_unavailable_ids_total{table=\"film\"} 8",
        "tidepool_client_missing_ids_total{table=\"film\"} 6",
        "tidepool_client_ids_total{table=\"film\"} 20",
        "tidepool_client_nodes{state=\"open\"} 2",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn at_the_deadline_what_has_come_is_used() {
    let cluster = Cluster::start();
    let (client, _sender) = client(config(), cluster.map(1));
    for node in [&cluster.a[1], &cluster.b[1]] {
        node.behave(|_| None);
    }
    let outcome = look_up(&client, Duration::from_millis(300), OnUnavailable::Default).await.unwrap();
    assert_flagged(&outcome);
    let error = look_up(&client, Duration::from_millis(100), OnUnavailable::Fail).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeadlineExceeded);
}

#[tokio::test]
async fn retries_stop_at_their_budget_and_say_what_the_node_said() {
    let cluster = Cluster::start();
    let registry = Registry::new();
    let config = ClientConfig {
        retry: RetryConfig { budget: 0.0, min_per_second: 0 },
        registry: Some(registry.clone()),
        ..config()
    };
    let (client, sender) = client(config, cluster.map(1));
    cluster.a[0].behave(|_| Some(Err(status_of(ErrorCode::Overloaded, "full", None))));
    let error = look_up(&client, PLENTY, OnUnavailable::Fail).await.unwrap_err();
    assert!(matches!(error, ClientError::RetriesSpent(_)), "{error:?}");
    assert_eq!(error.code(), ErrorCode::Overloaded);
    let outcome = look_up(&client, PLENTY, OnUnavailable::Default).await.unwrap();
    assert!(outcome.partial() && outcome.retries == 0, "{outcome:?}");
    assert!(text(&registry).contains("tidepool_client_retries_total{outcome=\"suppressed\"} 2"));

    // A map that is out of date is nobody's failure: it is not paid for.
    let newer = Arc::new(cluster.map(2));
    let moved = move |_: &_| {
        let told = Some(Epoch(2));
        sender.send_replace(newer.clone());
        Some(Err(status_of(ErrorCode::NotServed, "moved", told)))
    };
    cluster.a[0].behave(moved);
    let outcome = look_up(&client, PLENTY, OnUnavailable::Fail).await.unwrap();
    assert_right(&outcome);
    assert_eq!((outcome.fallbacks, outcome.epoch), (2, Epoch(1)), "the other group had not moved yet");
}

#[tokio::test]
async fn a_map_that_is_out_of_date_is_no_reason_for_defaults() {
    let (old, new) = (FakeNode::start(), FakeNode::start());
    let (client, sender) = client(config(), map(1, &[("a", &[old.address])]));
    let newer = Arc::new(map(2, &[("a", &[new.address])]));
    old.behave(move |_| {
        sender.send_replace(newer.clone());
        Some(Err(status_of(ErrorCode::NotServed, "moved", Some(Epoch(2)))))
    });
    let outcome = look_up(&client, PLENTY, OnUnavailable::Default).await.unwrap();
    assert_right(&outcome);
    assert_eq!(outcome.epoch, Epoch(2));
}

#[tokio::test]
async fn connections_are_made_before_the_first_lookup_and_made_again() {
    // Interfaces of their own: no other test can be given these ports while nobody listens.
    let mut late = FakeNode::start_at("127.0.0.3:0");
    let node = FakeNode::start();
    let addresses = [node.address, late.address];
    late.kill();
    let (client, _sender) = client(config(), map(1, &[("a", &addresses)]));
    wait_until("a connection is made", || node.connections() == 1).await;
    let late = FakeNode::start_at(&late.address.to_string());
    wait_until("it is tried again", || late.connections() == 1).await;
    assert!(node.calls().is_empty() && late.calls().is_empty(), "without a lookup");
    assert_right(&look_up(&client, PLENTY, OnUnavailable::Fail).await.unwrap());
    assert_eq!((node.connections(), late.connections()), (1, 1), "which then needs no other");
}

#[tokio::test]
async fn the_last_map_is_connected_to_when_no_other_will_come() {
    let mut late = FakeNode::start_at("127.0.0.3:0");
    late.kill();
    let (client, sender) = client(config(), map(1, &[("a", &[late.address])]));
    drop(sender);
    let late = FakeNode::start_at(&late.address.to_string());
    wait_until("a connection is made", || late.connections() == 1).await;
    assert_eq!(client.map().epoch, Epoch(1));
}

#[tokio::test]
async fn a_caller_that_leaves_takes_its_calls_along() {
    let cluster = Cluster::start();
    let registry = Registry::new();
    let config = ClientConfig {
        hedge: HedgeConfig { budget: 0.0, ..config().hedge },
        stream_max_bytes: 0,
        registry: Some(registry.clone()),
        ..config()
    };
    let (client, _sender) = client(config, cluster.map(1));
    cluster.a.iter().for_each(|node| node.behave(|_| None));
    let asking = tokio::spawn({
        let client = client.clone();
        async move { look_up(&client, PLENTY, OnUnavailable::Fail).await }
    });
    wait_until("both are asked", || cluster.calls() == [1, 1, 0, 0]).await;
    assert!(text(&registry).contains("tidepool_client_calls_in_flight 2"));
    asking.abort();
    wait_until("both are told", || cluster.a.iter().all(|node| node.cancelled() == 1)).await;
    wait_until("nothing is in flight", || text(&registry).contains("tidepool_client_calls_in_flight 0"))
        .await;
}
