//! Small lookups go over one long-lived stream; what becomes of them when it ends.

use std::{sync::Arc, time::Duration};

use tidepool_client::{Client, ClientConfig, LookupOptions, LookupOutcome};
use tokio::sync::watch;

use crate::fake::{FakeNode, honest, map, request};

const DEADLINE: Duration = Duration::from_secs(20);

/// A client of one node.
fn client(node: &FakeNode, stream_max_bytes: usize) -> Client {
    let (_, maps) = watch::channel(Arc::new(map(1, &[("a", &[node.address])])));
    Client::with_map(ClientConfig { stream_max_bytes, ..Default::default() }, maps).unwrap()
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
