//! Messages that are none, or that ask for what cannot be: thousands of them, seeded.

use bytes::Bytes;
use prost::Message;
use tidepool_proto::{pack::pack, v1};
use tidepool_types::ErrorCode;

use super::{
    Seeded, seeds,
    victim::{MAX_IDS, MAX_REQUEST_BYTES, Victim, any_id, gather, pool, request},
    wire::{Reply, Wire, framed, unfinished, whole},
};

/// Seeds of random messages; each makes one of each kind.
const SEEDS: u64 = 1500;
/// The longest text that may come back with a refusal, however long what was sent.
const LONGEST_TEXT: usize = 1000;

/// A request that is right.
fn good(random: &mut Seeded) -> v1::LookupRequest {
    let ids: Vec<u64> = (0..1 + random.below(60)).map(|_| any_id(random)).collect();
    let lengths: Vec<u32> = (0..1 + random.below(20)).map(|_| random.below(40) as u32).collect();
    let members: Vec<u32> =
        (0..lengths.iter().sum::<u32>()).map(|_| random.below(ids.len()) as u32).collect();
    let weights: Vec<f32> = members.iter().map(|_| random.below(9) as f32).collect();
    request(vec![pool(&ids, &members, &lengths, &weights), gather(&ids)])
}

/// The bytes of a request with some of them changed, moved, left out or written twice.
fn mutated(random: &mut Seeded) -> Vec<u8> {
    let mut bytes = good(random).encode_to_vec();
    for _ in 0..1 + random.below(4) {
        // Most of a message is ids and members; what says how long they are stands at its beginning.
        let reach = if random.below(2) == 0 { bytes.len().min(40) } else { bytes.len() };
        let at = random.below(reach.max(1)).min(bytes.len().saturating_sub(1));
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at.max(1)),
            3 => drop(bytes.splice(at..at, [0xff; 10])),
            4 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            _ => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                drop(bytes.drain(at..end));
                if bytes.is_empty() {
                    bytes.push(0);
                }
            }
        }
    }
    bytes
}

fn odd_bytes(random: &mut Seeded) -> Bytes {
    let len = *random.pick(&[0, 1, 3, 4, 7, 8, 12, 16, 4000]);
    random.bytes(len).into()
}

/// A request some of whose fields are not what they should be, though it is a message.
fn implausible(random: &mut Seeded) -> v1::LookupRequest {
    let mut from = good(random);
    let numbers = [0, 1, 2, 3, 4, 5, 1 << 31, u32::MAX];
    let weights = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, -0.0];
    for _ in 0..1 + random.below(3) {
        let feature = random.below(2);
        let f = &mut from.features[feature];
        match random.below(12) {
            0 => f.ids = odd_bytes(random),
            1 => f.members = odd_bytes(random),
            2 => f.bag_lengths = odd_bytes(random),
            3 => f.weights = odd_bytes(random),
            4 => f.bag_lengths = pack(&[*random.pick(&numbers), *random.pick(&numbers)]),
            5 => f.members = pack(&[*random.pick(&numbers), *random.pick(&numbers)]),
            6 => f.weights = pack(&[*random.pick(&weights); 3]),
            7 => f.partitions = *random.pick(&numbers),
            8 => f.wire_form = *random.pick(&numbers) as i32,
            9 => {
                let table = String::from_utf8_lossy(&random.bytes(20)).into_owned();
                f.table_version = Some(v1::TableVersion { table, version: "v1".into() });
            }
            10 => f.table_version = None,
            _ => from.deadline_us = *random.pick(&[1, 2, u64::MAX, 1 << 63]),
        }
    }
    from
}

/// Whether a reply to what may be any request is one that a caller can act on.
fn check(reply: Reply, what: &str) -> bool {
    match reply {
        Reply::Grpc(Ok(answer)) => {
            v1::LookupResponse::decode(answer).unwrap_or_else(|e| panic!("{what}: {e}"));
            true
        }
        other => {
            let (code, text) = other.refusal(what);
            let expected = [ErrorCode::InvalidRequest, ErrorCode::NotServed, ErrorCode::DeadlineExceeded];
            assert!(expected.contains(&code), "{what}: {code}: {text}");
            assert!(!text.is_empty() && text.len() < LONGEST_TEXT, "{what}: {text}");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_and_mutated_messages_are_refused_and_the_connection_goes_on() {
    let mut victim = Victim::start(&[]);
    let mut wire = victim.connect().await;
    victim.is_right(&mut wire, &mut Seeded::new(0), "nothing").await;
    let before = victim.reset_peak();
    let (mut answered, mut refused) = (0u32, 0u32);
    for seed in seeds(SEEDS) {
        let mut random = Seeded::new(seed);
        let noise = random.below(300);
        let messages = [
            ("random bytes", random.bytes(noise)),
            ("a mutated message", mutated(&mut random)),
            ("an implausible message", implausible(&mut random).encode_to_vec()),
        ];
        for (kind, message) in messages {
            let what = format!("seed {seed}, {kind}");
            let reply = wire.call(&message).await;
            *(if check(reply, &what) { &mut answered } else { &mut refused }) += 1;
            victim.is_right(&mut wire, &mut random, &what).await;
        }
    }
    let grown = victim.peak().saturating_sub(before);
    assert!(grown < 32 << 20, "the node grew by {} KiB", grown >> 10);
    let both = answered > 0 && refused > answered;
    assert!(
        both || std::env::var_os("TIDEPOOL_TEST_SEED").is_some(),
        "{answered} answered, {refused} refused"
    );
}

/// A message that says its first feature has `declared` bytes, and stops there.
fn claims(tag: u8, declared: u64) -> Vec<u8> {
    let mut message = vec![tag];
    prost::encoding::encode_varint(declared, &mut message);
    message.extend([0x22, 1, 2, 3]);
    message
}

/// The same inside a feature: ids that are said to be `declared` bytes.
fn claims_ids(declared: u64) -> Vec<u8> {
    let inner = claims(0x22, declared);
    let mut message = vec![0x2a, inner.len() as u8];
    message.extend(inner);
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_sizes_are_refused_by_name_and_cost_no_memory() {
    let mut victim = Victim::start(&[]);
    let mut wire = victim.connect().await;
    let mut random = Seeded::new(1);
    let ids: Vec<u64> = (0..8).map(|_| any_id(&mut random)).collect();
    let long = |len: usize| "x".repeat(len);
    let named = |table: String| {
        let mut feature = gather(&ids);
        feature.table_version = Some(v1::TableVersion { table, version: "v1".into() });
        request(vec![feature])
    };
    let many_members = vec![0u32; MAX_REQUEST_BYTES / 8];
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("2^32 ids, said", claims_ids(8 << 32), "decode"),
        ("2^61 bytes of ids, said", claims_ids(u64::MAX / 8), "decode"),
        ("a feature of 1 GiB, said", claims(0x2a, 1 << 30), "decode"),
        ("more ids than allowed", request(vec![gather(&vec![7; MAX_IDS + 1])]).encode_to_vec(), "ids"),
        (
            "bags of 2^31",
            request(vec![pool(&ids, &[0, 1], &[1 << 31, 1 << 31], &[])]).encode_to_vec(),
            "bag_lengths",
        ),
        ("a bag of 2^31", request(vec![pool(&ids, &[0], &[1 << 31], &[])]).encode_to_vec(), "bag_lengths"),
        ("a member far off", request(vec![pool(&ids, &[u32::MAX], &[1], &[])]).encode_to_vec(), "members"),
        ("a NaN weight", request(vec![pool(&ids, &[0], &[1], &[f32::NAN])]).encode_to_vec(), "weights"),
        ("a table name of 1 MiB", named(long(1 << 20)).encode_to_vec(), "too long"),
        ("a table of control characters", named("\u{1}\n\u{7f}".repeat(80)).encode_to_vec(), "table"),
        (
            "10^6 empty features",
            request(vec![v1::FeatureRequest::default(); 1_000_000]).encode_to_vec(),
            "fields",
        ),
        (
            "250,000 empty features",
            request(vec![v1::FeatureRequest::default(); 250_000]).encode_to_vec(),
            "table_version is missing",
        ),
        (
            "a message beyond the limit",
            request(vec![pool(&ids, &many_members, &many_members, &[])]).encode_to_vec(),
            "",
        ),
        ("an endless message of groups", vec![0x0b; 100_000], "decode"),
    ];
    victim.is_right(&mut wire, &mut random, "nothing").await;
    for (what, message, words) in cases {
        let before = victim.reset_peak();
        let (code, text) = wire.call(&message).await.refusal(what);
        assert_eq!(code, ErrorCode::InvalidRequest, "{what}: {text}");
        assert!(text.contains(words) && text.len() < LONGEST_TEXT, "{what}: {text}");
        let grown = victim.peak().saturating_sub(before);
        // Features take 46 MiB while a request is decoded, and twice that while their list grows.
        assert!(grown < 144 << 20, "{what}: the node grew by {} KiB", grown >> 10);
        victim.is_right(&mut wire, &mut random, what).await;
    }

    // One row, asked for by the million: an answer of more bytes than allowed is refused before it is made.
    let before = victim.reset_peak();
    let feature = pool(&[], &[], &vec![0; MAX_REQUEST_BYTES / 4 - 100], &[]);
    let reply = wire.call(&request(vec![feature]).encode_to_vec()).await;
    let (code, text) = reply.refusal("a million empty bags");
    assert!(code == ErrorCode::InvalidRequest && text.contains("an answer may have"), "{code}: {text}");
    let grown = victim.peak().saturating_sub(before);
    assert!(grown < 32 << 20, "a million empty bags: the node grew by {} KiB", grown >> 10);
    victim.is_right(&mut wire, &mut random, "a million empty bags").await;
}

/// A refusal, or a broken stream: both are an end that the caller sees.
fn ended(reply: &Reply, what: &str) {
    assert!(!matches!(reply, Reply::Grpc(Ok(_))), "{what} was answered: {reply:?}");
}

async fn in_time(call: impl Future<Output = Reply>, what: &str) -> Reply {
    tokio::time::timeout(crate::command::DEADLINE, call).await.unwrap_or_else(|_| panic!("{what}: no end"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_lie_are_refused_and_the_connection_goes_on() {
    let mut victim = Victim::start(&[]);
    let mut wire: Wire = victim.connect().await;
    let mut random = Seeded::new(2);
    victim.is_right(&mut wire, &mut random, "nothing").await;
    let before = victim.reset_peak();
    let message = good(&mut random).encode_to_vec();
    let len = message.len();
    let mut twice = framed(0, len, &message).to_vec();
    twice.extend_from_slice(&framed(0, len, &message));
    let bodies = [
        ("1 GiB declared, nothing sent", framed(0, 1 << 30, &[]), "too large"),
        ("1 GiB declared, a little sent", framed(0, 1 << 30, &message), "too large"),
        ("4 GiB declared", framed(0, u32::MAX as usize, &message), "too large"),
        ("a compressed flag", framed(1, len, &message), "compress"),
        ("an unknown flag", framed(0xff, len, &message), "flag"),
        ("more declared than sent", framed(0, len + 1, &message), ""),
        ("half a frame", framed(0, len, &[]).slice(..3), ""),
        ("no frame", Bytes::new(), ""),
    ];
    for (what, body, words) in bodies {
        let (code, text) = in_time(wire.begin(whole(body.clone())), what).await.refusal(what);
        assert!(code != ErrorCode::Unavailable && text.contains(words), "{what}: {code}: {text}");
        victim.is_right(&mut wire, &mut random, what).await;
        // The same, by someone who never ends what he sends: he may wait, but nobody else does.
        let open = wire.begin(unfinished(body));
        let open = tokio::spawn(open);
        victim.is_right(&mut wire, &mut random, &format!("{what}, unfinished")).await;
        open.abort();
    }
    in_time(wire.begin(whole(twice.into())), "two messages").await;
    victim.is_right(&mut wire, &mut random, "two messages").await;

    let good_body = || whole(framed(0, len, &message));
    let changed = [
        ("a gzip encoding", "grpc-encoding", "gzip".to_owned()),
        ("an unknown encoding", "grpc-encoding", "nonsense".to_owned()),
        ("a bad timeout", "grpc-timeout", "soon".to_owned()),
        ("a content type of JSON", "content-type", "application/json".to_owned()),
        ("a header of 12 KiB", "x-long", "y".repeat(12 << 10)),
    ];
    for (what, header, value) in changed {
        let change = |request: &mut hyper::Request<_>| {
            let name = hyper::header::HeaderName::from_static(header);
            request.headers_mut().insert(name, value.parse().unwrap());
        };
        // Whatever the answer, it comes.
        in_time(wire.call_with(change, good_body()), what).await;
        victim.is_right(&mut wire, &mut random, what).await;
    }
    // Headers beyond what the node has announced may cost a caller his connection, and nobody else's.
    let long = |request: &mut hyper::Request<_>| {
        request.headers_mut().insert("x-long", "y".repeat(200 << 10).parse().unwrap());
    };
    let reply = in_time(victim.connect().await.call_with(long, good_body()), "a header of 200 KiB").await;
    ended(&reply, "a header of 200 KiB");
    victim.is_right(&mut wire, &mut random, "a header of 200 KiB").await;

    let nowhere =
        |request: &mut hyper::Request<_>| *request.uri_mut() = "http://x/no.Such/Method".parse().unwrap();
    ended(&in_time(wire.call_with(nowhere, good_body()), "no method").await, "no such method");
    victim.is_right(&mut wire, &mut random, "no such method").await;
    let grown = victim.peak().saturating_sub(before);
    assert!(grown < 32 << 20, "the node grew by {} KiB", grown >> 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_survives_bad_lookups_and_ends_with_a_code_where_messages_cannot_be_told_apart() {
    let mut victim = Victim::start(&[]);
    let mut wire = victim.connect().await;
    let mut random = Seeded::new(8);
    let numbered = |call: u64, features| v1::LookupRequest { call, ..request(features) }.encode_to_vec();
    let frame = |message: Vec<u8>| framed(0, message.len(), &message).to_vec();
    let ids: Vec<u64> = (0..9).map(|_| any_id(&mut random)).collect();
    let good = |call| frame(numbered(call, vec![gather(&ids)]));

    let bad = frame(numbered(2, vec![pool(&ids, &[9], &[1], &[])]));
    let (answers, end) = wire.stream(whole([good(1), bad, good(3)].concat().into())).await;
    assert!(end.is_none(), "{end:?}");
    let failed: Vec<_> =
        answers.iter().filter_map(|a| Some((a.call, a.failure.as_ref()?.code.clone()))).collect();
    assert_eq!((answers.len(), failed), (3, vec![(2, "invalid_request".to_owned())]));
    let rows: Vec<_> = answers.iter().filter(|a| a.call != 2).map(|a| &a.features[0].rows).collect();
    assert!(rows[0] == rows[1] && !rows[0].is_empty());

    for (what, broken, words) in [
        ("no message", frame(vec![0xff; 12]), "decode"),
        ("1 GiB declared", framed(0, 1 << 30, &[]).to_vec(), "too large"),
        ("a cut message", good(5)[..20].to_vec(), ""),
    ] {
        let (answers, end) = wire.stream(whole([good(4), broken].concat().into())).await;
        assert_eq!(answers.iter().map(|a| a.call).collect::<Vec<_>>(), [4], "{what}");
        let end = end.unwrap_or_else(|| panic!("{what}: a stream that ends well"));
        assert_eq!(tidepool_proto::code_of(&end), ErrorCode::InvalidRequest, "{what}: {end:?}");
        assert!(end.message().contains(words), "{what}: {end:?}");
        victim.is_right(&mut wire, &mut random, what).await;
    }
}
