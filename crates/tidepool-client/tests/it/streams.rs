//! Small lookups go over one long-lived stream; what becomes of them when it ends.

use std::{sync::Arc, time::Duration};

use prometheus::Registry;
use tidepool_client::{
    BreakerConfig, Client, ClientConfig, ClientError, LookupOptions, LookupOutcome, LookupRequest,
    NodeFailure,
};
use tidepool_types::ErrorCode;
use tokio::{sync::watch, task::JoinHandle};

use crate::fake::{FakeNode, honest, map, request};

const DEADLINE: Duration = Duration::from_secs(20);

/// A client of one node.
fn client(node: &FakeNode, stream_max_bytes: usize) -> Client {
    client_with(node, ClientConfig { stream_max_bytes, ..Default::default() })
}

fn client_with(node: &FakeNode, config: ClientConfig) -> Client {
    let (_, maps) = watch::channel(Arc::new(map(1, &[("a", &[node.address])])));
    Client::with_map(config, maps).unwrap()
}

/// A lookup whose message takes more than 16,000 bytes.
fn long_request() -> LookupRequest {
    let (mut request, _) = request();
    request.features[0].ids = (0..2000).collect();
    request.features[0].lengths = Some(vec![2000]);
    request
}

/// A small lookup on its way over the stream to a node that answers over calls of their own only.
async fn waiting(client: &Client, node: &FakeNode) -> JoinHandle<LookupOutcome> {
    let before = node.calls().len();
    node.behave(|request| (request.call == 0).then(|| Ok(honest(request))));
    let client = client.clone();
    let waiting = tokio::spawn(async move { look_up(&client).await });
    until(|| node.calls().len() == before + 1).await;
    waiting
}

async fn look_up(client: &Client) -> LookupOutcome {
    let options = LookupOptions { timeout: DEADLINE, ..Default::default() };
    let (request, [sums, rows]) = request();
    let outcome = client.lookup(&request, &options).await.unwrap();
    assert_eq!((&outcome.features[0].values, &outcome.features[1].values), (&sums, &rows));
    outcome
}

async fn until(what: impl Fn() -> bool) {
    let waited = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waited).await.unwrap();
}

#[tokio::test]
async fn small_lookups_have_numbers_and_large_ones_are_calls() {
    let node = FakeNode::start();
    let streamed = client(&node, 1 << 20);
    let called = client(&node, 0);
    for client in [&streamed, &called, &streamed] {
        look_up(client).await;
    }
    let calls: Vec<u64> = node.calls().iter().map(|request| request.call).collect();
    assert_eq!(calls, [1, 0, 2]);
}

#[tokio::test]
async fn answers_find_their_lookups_in_any_order() {
    let node = FakeNode::start();
    let client = client(&node, 1 << 20);
    // The first lookup is never answered; those behind it are.
    node.behave(|request| (request.call > 1).then(|| Ok(honest(request))));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { look_up(&client).await }
    });
    until(|| node.calls().len() == 1).await;
    for _ in 0..50 {
        look_up(&client).await;
    }
    assert!(!waiting.is_finished());
    // Nobody waits for it any more: the node is told, on the same stream.
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    look_up(&client).await;
    assert_eq!(node.calls().last().unwrap().call, 52);
}

#[tokio::test]
async fn a_node_that_came_back_is_asked_over_a_new_stream() {
    let mut node = FakeNode::start();
    let client = client(&node, 1 << 20);
    look_up(&client).await;
    let address = node.address;
    node.kill();
    let options = LookupOptions { timeout: DEADLINE, ..Default::default() };
    client.lookup(&request().0, &options).await.unwrap_err();
    let again = FakeNode::start_at(&address.to_string());
    let back = async {
        while client.lookup(&request().0, &options).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, back).await.unwrap();
    look_up(&client).await;
    assert!(again.calls().iter().all(|request| request.call > 0));
}

#[tokio::test]
async fn a_message_that_the_node_refuses_harms_no_other_on_its_stream() {
    let node = FakeNode::start_with("127.0.0.1:0", 4096);
    // One failure of the node, and it would not be asked for an hour.
    let hour = Duration::from_secs(3600);
    let breaker = BreakerConfig { failures: 1, backoff: hour, max_backoff: hour, ..Default::default() };
    let registry = Registry::new();
    let client =
        client_with(&node, ClientConfig { breaker, registry: Some(registry.clone()), ..Default::default() });
    let options = LookupOptions { timeout: DEADLINE, ..Default::default() };
    for turn in 0..2 {
        let small = waiting(&client, &node).await;
        let error = client.lookup(&long_request(), &options).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
        assert_eq!(error.code(), ErrorCode::InvalidRequest);
        if turn == 0 {
            // The node has ended the stream: what was on it is asked again, of the same node.
            assert_eq!(small.await.unwrap().retries, 0);
        } else {
            // By now it is known how much is too much: the stream goes on, and the other lookup waits on it.
            assert!(!small.is_finished());
            small.abort();
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("tidepool_client_nodes{state=\"closed\"} 1"), "{text}");
    }
    node.behave(|request| Some(Ok(honest(request))));
    look_up(&client).await;
    assert!(node.calls().last().unwrap().call > 0, "small ones go over a stream again");
}

#[tokio::test]
async fn a_message_that_this_client_may_not_send_harms_no_other() {
    let node = FakeNode::start();
    let client = client_with(&node, ClientConfig { max_message_bytes: 4096, ..Default::default() });
    let small = waiting(&client, &node).await;
    let options = LookupOptions { timeout: DEADLINE, ..Default::default() };
    let error = client.lookup(&long_request(), &options).await.unwrap_err();
    let ClientError::Refused(refused) = &error else { panic!("{error:?}") };
    assert!(matches!(refused.failure, NodeFailure::TooLong { bytes: 16_000.., limit: 4096 }), "{error:?}");
    assert_eq!((error.code(), node.calls().len()), (ErrorCode::InvalidRequest, 1));
    assert!(!small.is_finished(), "{:?}", small.await);
}
