//! The stream of lookups: refusals do not end it, garbage ends it alone, draining ends it in order.

use futures::{FutureExt, StreamExt};
use tidepool_proto::v1;
use tidepool_types::{Keying, RowFormat, TableSchema};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    control::FakeController,
    site::{Site, TestNode, all, assignment, gather, request, version},
};

struct Stream {
    send: mpsc::Sender<v1::LookupRequest>,
    answers: Streaming<v1::LookupResponse>,
}

async fn open(node: &TestNode) -> Stream {
    let (send, requests) = mpsc::channel(64);
    let answers = node.client().await.lookup_stream(ReceiverStream::new(requests)).await.unwrap();
    Stream { send, answers: answers.into_inner() }
}

impl Stream {
    async fn send(&self, call: u64, features: Vec<v1::FeatureRequest>) {
        self.send.send(v1::LookupRequest { call, ..request(features) }).await.unwrap();
    }

    async fn answer(&mut self) -> v1::LookupResponse {
        self.answers.next().await.unwrap().unwrap()
    }
}

async fn serving(inline_max_rows: u64) -> (Site, FakeController, TestNode, TableSchema) {
    let site = Site::new();
    let users = site.table(version("user", "v1"), (RowFormat::F16, 6), Keying::Dense, 2, 0..500);
    let mut controller = FakeController::start(&assignment(3, &[(&users, &all(&users))])).await;
    let mut raw = site.following(&controller);
    (raw.inline_max_rows, raw.max_request_bytes) = (inline_max_rows, 1 << 20);
    let node = TestNode::start(raw).await;
    controller.ready(3).await;
    (site, controller, node, users)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_single_calls_and_refusals_go_by() {
    // With 8 the larger lookups go to the CPU pool, and may come later than those behind them.
    for inline_max_rows in [1 << 20, 8] {
        let (_site, _controller, node, users) = serving(inline_max_rows).await;
        let mut stream = open(&node).await;
        let ids = |call: u64| (0..1 + call * 7 % 40).collect::<Vec<u64>>();
        for call in 1..=30 {
            let mut feature = gather(&users, &ids(call));
            if call % 5 == 0 {
                feature.ids = vec![0; 9].into();
            }
            stream.send(call, vec![feature]).await;
        }
        let mut client = node.client().await;
        let mut seen = Vec::new();
        for _ in 1..=30 {
            let mut answer = stream.answer().await;
            let call = std::mem::take(&mut answer.call);
            seen.push(call);
            if call % 5 == 0 {
                let failure = answer.failure.unwrap();
                assert_eq!(failure.code, "invalid_request");
                assert!(failure.message.contains("ids"), "{}", failure.message);
                continue;
            }
            let single = client.lookup(request(vec![gather(&users, &ids(call))])).await.unwrap();
            let took_us = answer.took_us;
            assert_eq!(answer, v1::LookupResponse { took_us, ..single.into_inner() });
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=30).collect::<Vec<u64>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_has_no_answer_and_the_stream_goes_on() {
    let (_site, _controller, node, users) = serving(1 << 20).await;
    let mut stream = open(&node).await;
    let cancel = v1::LookupRequest { call: 7, cancel: true, ..Default::default() };
    stream.send.send(cancel).await.unwrap();
    stream.send(8, vec![gather(&users, &[1])]).await;
    assert_eq!(stream.answer().await.call, 8);
    assert!(stream.answers.next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_before_a_message_that_is_none_is_answered_still() {
    // All go to the CPU pool, so the message that is too long comes before they are answered.
    let (_site, _controller, node, users) = serving(0).await;
    let mut stream = open(&node).await;
    for call in 1..=30 {
        stream.send(call, vec![gather(&users, &[call, 7, 400])]).await;
    }
    stream.send(31, vec![gather(&users, &vec![1; 1 << 18])]).await;
    let mut seen = Vec::new();
    let status = loop {
        match stream.answers.next().await.unwrap() {
            Ok(answer) => seen.push(answer.call),
            Err(status) => break status,
        }
    };
    seen.sort_unstable();
    assert_eq!(seen, (1..=30).collect::<Vec<u64>>());
    assert!(status.message().contains("1048576"), "{status}");
    assert!(stream.answers.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_the_node_drains_and_when_the_caller_has_no_more() {
    let (_site, _controller, node, users) = serving(1 << 20).await;
    let mut stream = open(&node).await;
    stream.send(1, vec![gather(&users, &[1])]).await;
    assert_eq!(stream.answer().await.call, 1);
    let Stream { send, mut answers } = open(&node).await;
    send.send(v1::LookupRequest { call: 2, ..request(vec![gather(&users, &[1])]) }).await.unwrap();
    drop(send);
    assert_eq!(answers.next().await.unwrap().unwrap().call, 2);
    assert!(answers.next().await.is_none());
    // This one is idle and open: it must not hold the node up.
    node.stop().await;
    assert!(!matches!(stream.answers.next().await, Some(Ok(_))));
}
