//! Many at once: what callers send and do not end, what they ask for and do not read, and names that nobody
//! has heard of. The node's memory has a bound that does not depend on how many do it.

use prost::Message;
use tidepool_types::ErrorCode;

use super::{
    Seeded,
    victim::{MAX_REQUEST_BYTES, Victim, gather, pool, request},
    wire::{Reply, framed, unfinished, whole},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_messages_that_do_not_end_share_one_budget() {
    let mut victim = Victim::start(&[("max_held_bytes", "100000000")]);
    let mut wire = victim.connect().await;
    let mut random = Seeded::new(5);
    victim.is_right(&mut wire, &mut random, "nothing").await;
    let before = victim.reset_peak();
    // All but the last byte of 400 MiB, over two connections.
    let body = framed(0, MAX_REQUEST_BYTES - 100, &vec![0; MAX_REQUEST_BYTES - 101]);
    let mut wires = [victim.connect().await, victim.connect().await];
    let mut open = tokio::task::JoinSet::new();
    for n in 0..100 {
        open.spawn(wires[n % 2].begin(unfinished(body.clone())));
    }
    let mut refused = 0;
    while refused < 60 {
        let next = tokio::time::timeout(crate::command::DEADLINE, open.join_next()).await;
        let reply = next.unwrap_or_else(|_| panic!("{refused} refused")).unwrap().unwrap();
        let (code, text) = reply.refusal("a long message");
        assert!(code == ErrorCode::Overloaded && text.contains("max_held_bytes"), "{code}: {text}");
        refused += 1;
    }
    // Buffers that grow have up to twice the bytes that have come into them, and old ones stay for a while.
    let grown = victim.peak().saturating_sub(before);
    assert!(grown < 300 << 20, "the node grew by {} MiB", grown >> 20);
    // What they held is given back with them.
    open.shutdown().await;
    drop(wires);
    victim.is_right(&mut wire, &mut random, "long messages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_answers_that_nobody_takes_share_it_too() {
    let mut victim = Victim::start(&[("max_held_bytes", "100000000")]);
    let mut wire = victim.connect().await;
    let mut random = Seeded::new(7);
    victim.is_right(&mut wire, &mut random, "nothing").await;
    let before = victim.reset_peak();
    // 2 MB that ask for 36 MB of empty sums, twenty times over.
    let message = request(vec![pool(&[], &[], &[0; 500_000], &[])]).encode_to_vec();
    let mut greedy = victim.connect().await;
    let mut unread = Vec::new();
    for _ in 0..20 {
        match greedy.begin_unread(whole(framed(0, message.len(), &message))).await {
            Ok(answer) => unread.push(answer),
            Err(refused) => {
                let (code, text) = refused.refusal("a long answer");
                assert!(code == ErrorCode::Overloaded && text.contains("max_held_bytes"), "{code}: {text}");
            }
        }
    }
    assert!((1..=2).contains(&unread.len()), "{} answers fit", unread.len());
    let grown = victim.peak().saturating_sub(before);
    assert!(grown < 300 << 20, "the node grew by {} MiB", grown >> 20);
    // Their room is free again once they are gone.
    drop((unread, greedy));
    let until = tokio::time::Instant::now() + crate::command::DEADLINE;
    while !crate::command::http_get(&victim.node.http_address, "/metrics")
        .contains("tidepool_node_held_bytes 0\n")
    {
        assert!(tokio::time::Instant::now() < until, "the room is not given back");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    victim.is_right(&mut wire, &mut random, "answers that nobody took").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_by_the_thousand_leave_nothing_behind() {
    let mut victim = Victim::start(&[]);
    let mut wire = victim.connect().await;
    let mut random = Seeded::new(6);
    victim.is_right(&mut wire, &mut random, "nothing").await;
    let metrics = || crate::command::http_get(&victim.node.http_address, "/metrics").len();
    let (page, before) = (metrics(), victim.reset_peak());
    for n in 0..5000 {
        let mut asked = request(vec![gather(&[7])]);
        asked.tenant = format!("{n}-{}", "t".repeat(1000));
        asked.request_id = "r".repeat(1000);
        asked.traceparent = "p".repeat(1000);
        match wire.call(&asked.encode_to_vec()).await {
            Reply::Grpc(Ok(_)) => {}
            other => {
                let (code, text) = other.refusal("an unknown tenant");
                let known = [ErrorCode::InvalidRequest];
                assert!(known.contains(&code), "{code}: {text}");
            }
        }
    }
    let grown = victim.peak().saturating_sub(before);
    assert!(grown < 4 << 20, "the node grew by {} KiB", grown >> 10);
    assert!(metrics() < page + 4096, "the metrics grew from {page} bytes to {}", metrics());
    victim.is_right(&mut wire, &mut random, "thousands of tenants").await;
}
