//! Peers that do not speak HTTP/2, or speak it to do harm: frames written by hand on connections of their
//! own. Each may be closed on; honest requests beside it are answered, and the node's memory is bounded.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Seeded, seeds, victim::Victim};
use crate::command::DEADLINE;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// What the node may grow by under any one of these.
const MAX_GROWTH: u64 = 64 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// The headers of a lookup, as literals.
fn headers() -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/tidepool.v1.Embedding/Lookup"),
        (":authority", "node"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            out.push(text.len() as u8);
            out.extend(text.as_bytes());
        }
    }
    out
}

fn opened() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A connection on which everything that comes is read and thrown away, or nothing is.
struct Peer {
    stream: tokio::net::tcp::OwnedWriteHalf,
    reader: tokio::task::JoinHandle<u64>,
}

impl Peer {
    async fn connect(victim: &Victim, reads: bool) -> Self {
        let stream = TcpStream::connect(&victim.node.grpc_address).await.unwrap();
        let (mut read, stream) = stream.into_split();
        let reader = tokio::spawn(async move {
            if !reads {
                return std::future::pending().await;
            }
            let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
            while let Ok(len @ 1..) = read.read(&mut buffer).await {
                total += len as u64;
            }
            total
        });
        Self { stream, reader }
    }

    /// Writes until the node closes, stops reading for a while, or `bytes` are written.
    async fn write(&mut self, bytes: &[u8]) {
        let written: Result<io::Result<()>, _> =
            timeout(Duration::from_millis(300), self.stream.write_all(bytes)).await;
        // A closed connection and one that is not read any more are both defences.
        drop(written);
    }

    /// Waits until the node closes the connection.
    async fn closed(&mut self, what: &str) {
        assert!(timeout(DEADLINE, &mut self.reader).await.is_ok(), "{what}: the connection stays open");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// What is written on a connection, and whether the node must close it.
fn floods() -> Vec<(&'static str, Vec<u8>, bool)> {
    let opened = opened();
    let of = |frames: Vec<u8>| [&opened[..], &frames].concat();
    let streams = |count: u32| (0..count).map(|n| 2 * n + 1);
    let headers = headers();
    let left_open = streams(50_000).flat_map(|id| frame(HEADERS, END_HEADERS, id, &headers)).collect();
    let endless_headers = {
        let mut frames = frame(HEADERS, 0, 1, &headers);
        let more: Vec<u8> = [&[0u8, 1, b'x', 100][..], &[b'y'; 100]].concat().repeat(150);
        for _ in 0..500 {
            frames.extend(frame(CONTINUATION, 0, 1, &more));
        }
        frames
    };
    let resets = streams(50_000)
        .flat_map(|id| [frame(HEADERS, END_HEADERS, id, &headers), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])])
        .flatten()
        .collect();
    let empty_data = {
        let mut frames = frame(HEADERS, END_HEADERS, 1, &headers);
        frames.extend(frame(DATA, 0, 1, &[]).repeat(200_000));
        frames
    };
    let windows = frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes());
    vec![
        ("an HTTP/1 request", b"GET /metrics HTTP/1.1\r\nhost: node\r\n\r\n".to_vec(), true),
        ("half a preface", PREFACE[..10].to_vec(), false),
        ("headers without an end", of(endless_headers), true),
        ("a data frame of 16 MiB", of(vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]), true),
        ("windows beyond 2^31", of(windows.repeat(2)), true),
        ("a stream that nobody opened", of(frame(DATA, 0, 7, b"data")), true),
        ("a SETTINGS frame of five bytes", of(frame(SETTINGS, 0, 0, &[0; 5])), true),
        ("streams opened and left", of(left_open), true),
        ("streams opened and reset", of(resets), true),
        ("empty data frames", of(empty_data), false),
        ("settings", of(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(100_000)), false),
        ("pings", of(frame(PING, 0, 0, &[7; 8]).repeat(100_000)), false),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_neither_stop_others_nor_fill_the_memory() {
    let mut victim = Victim::start(&[]);
    let mut wire = victim.connect().await;
    let mut random = Seeded::new(3);
    victim.is_right(&mut wire, &mut random, "nothing").await;
    for (what, bytes, must_close) in floods() {
        for reads in [true, false] {
            let before = victim.reset_peak();
            let mut peer = Peer::connect(&victim, reads).await;
            peer.write(&bytes).await;
            victim.is_right(&mut wire, &mut random, what).await;
            if must_close && reads {
                peer.closed(what).await;
            }
            let grown = victim.peak().saturating_sub(before);
            assert!(grown < MAX_GROWTH, "{what}: the node grew by {} KiB", grown >> 10);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_and_frames_are_survived() {
    let mut victim = Victim::start(&[]);
    let mut wire = victim.connect().await;
    victim.is_right(&mut wire, &mut Seeded::new(4), "nothing").await;
    let before = victim.reset_peak();
    for seed in seeds(150) {
        let mut random = Seeded::new(seed);
        let mut bytes = match random.below(3) {
            0 => Vec::new(),
            1 => PREFACE.to_vec(),
            _ => opened(),
        };
        let noise = random.below(400);
        bytes.extend(random.bytes(noise));
        for _ in 0..random.below(30) {
            let len = random.below(64);
            let payload = random.bytes(len);
            // Frames of kinds that are, on streams that may be.
            let (kind, flags) = (random.below(11) as u8, random.next() as u8);
            bytes.extend(frame(kind, flags, random.below(4) as u32, &payload));
        }
        let mut peer = Peer::connect(&victim, true).await;
        peer.write(&bytes).await;
        victim.is_right(&mut wire, &mut random, &format!("seed {seed}")).await;
    }
    let grown = victim.peak().saturating_sub(before);
    assert!(grown < MAX_GROWTH, "the node grew by {} KiB", grown >> 10);
}
