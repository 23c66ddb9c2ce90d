//! Traces come back as they were written, cut ones as far as they go, damaged ones not at all; taps drop
//! rather than wait.

use std::{num::NonZeroU64, sync::Arc, time::Instant};

use proptest::prelude::*;
use tidepool_types::{Name, Pooling, TableVersion};

use super::*;
use crate::{LookupRequest, request::FeatureLookup};

fn start() -> TraceStart {
    let began = SystemTime::UNIX_EPOCH + Duration::from_micros(1_800_000_000_123_456);
    TraceStart { began, every: 3, source: "ranker-1".into() }
}

fn feature(table: &str, ids: Vec<u64>) -> FeatureLookup {
    let name = |text: &str| Name::new(text).unwrap();
    FeatureLookup {
        table_version: TableVersion { table: name(table), version: name("v1") },
        pooling: Pooling::Mean,
        ids,
        lengths: None,
        weights: None,
    }
}

fn lookups() -> Vec<TracedLookup> {
    let weighted = FeatureLookup {
        pooling: Pooling::Sum,
        lengths: Some(vec![2, 0, 1]),
        weights: Some(vec![0.5, -1.0, f32::MAX]),
        ..feature("item", vec![u64::MAX, 0, 7])
    };
    let plain = FeatureLookup { pooling: Pooling::None, ..feature("user", vec![42]) };
    let lookup = |number, tenant: Option<&str>, features| TracedLookup {
        arrival: Duration::from_micros(1_000 * number),
        number,
        tenant: tenant.map(Into::into),
        features,
    };
    vec![
        lookup(0, None, vec![weighted, plain]),
        lookup(1, Some("ads"), Vec::new()),
        lookup(5, Some("ads"), vec![feature("item", Vec::new())]),
    ]
}

const END: TraceEnd = TraceEnd { lasted: Duration::from_secs(2), lookups: 18, dropped: 3 };

/// A trace and where its records begin.
fn written(lookups: &[TracedLookup]) -> (Vec<u8>, Vec<usize>) {
    let mut writer = TraceWriter::new(Vec::new(), &start()).unwrap();
    let mut records = vec![16, writer.get_mut().len()];
    for lookup in lookups {
        writer.lookup(lookup).unwrap();
        records.push(writer.get_mut().len());
    }
    (writer.finish(&END).unwrap(), records)
}

fn read(bytes: &[u8]) -> Result<(Vec<TracedLookup>, Ending), TraceError> {
    let mut reader = TraceReader::new(bytes)?;
    assert_eq!(reader.start(), &start());
    let mut lookups = Vec::new();
    while let Some(lookup) = reader.next_lookup()? {
        lookups.push(lookup);
    }
    assert!(matches!(reader.next_lookup(), Ok(None)), "the end is the end");
    Ok((lookups, reader.ending().unwrap()))
}

#[test]
fn a_trace_comes_back_as_it_was_written() {
    let (bytes, _) = written(&lookups());
    assert_eq!(read(&bytes).unwrap(), (lookups(), Ending::Whole(END)));
    assert_eq!(read(&written(&[]).0).unwrap(), (Vec::new(), Ending::Whole(END)));
}

#[test]
fn a_trace_that_was_cut_off_is_read_to_its_last_whole_record() {
    let (bytes, records) = written(&lookups());
    for length in 0..bytes.len() {
        let found = read(&bytes[..length]);
        let whole = records.iter().filter(|begin| **begin <= length).count();
        if whole < 2 {
            let Err(TraceError::CutAtStart { bytes }) = found else { panic!("{length}: {found:?}") };
            assert_eq!(bytes, length as u64);
            continue;
        }
        let at = records[whole - 1];
        let ending = Ending::Cut { read_bytes: at as u64, lost_bytes: (length - at) as u64 };
        assert_eq!(found.unwrap(), (lookups()[..whole - 2].to_vec(), ending), "{length}");
    }
}

#[test]
fn no_bit_flips_unnoticed() {
    let (bytes, records) = written(&lookups());
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = read(&bytes).unwrap_err();
        if bit < 64 {
            assert!(matches!(error, TraceError::NotATrace), "{bit}: {error}");
            continue;
        }
        let TraceError::Damaged { offset, record, .. } = error else { panic!("{bit}: {error}") };
        let begins = records.iter().filter(|begin| **begin <= bit / 8).count();
        let expected = if begins == 0 { (0, 0) } else { (records[begins - 1], begins - 1) };
        assert_eq!((offset, record), (expected.0 as u64, expected.1 as u64), "{bit}");
    }
}

#[test]
fn what_no_trace_says_is_refused() {
    let (bytes, records) = written(&lookups());
    let refused = |bytes: &[u8], what: &str| {
        let error = read(bytes).unwrap_err();
        assert!(error.to_string().contains(what), "{error} does not say {what:?}");
    };
    refused(&[&bytes[..], &bytes[16..]].concat(), "damaged");
    refused(&[&bytes[..records[1]], &bytes[16..]].concat(), "one start");
    refused(&[&bytes[..16], &bytes[records[1]..]].concat(), "one start");
    refused(&[&bytes[..], &[0]].concat(), "damaged");
    refused(b"PK\x03\x04, a file of some other kind", "no trace");
    let mut later = bytes.clone();
    later[8] = 2;
    let checksum = crc32c::crc32c(&later[..12]);
    later[12..16].copy_from_slice(&checksum.to_le_bytes());
    refused(&later, "version 2");
    // Whole by its checksums, and a length that no record has.
    let mut huge = bytes[..records[1]].to_vec();
    huge.extend_from_slice(&u32::MAX.to_le_bytes());
    huge.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0]);
    let checksum = crc32c::crc32c(&huge[records[1]..]);
    huge.extend_from_slice(&checksum.to_le_bytes());
    refused(&huge, "longer than any");
    // A kind that there is not.
    let mut unknown = bytes.clone();
    let header = records[1]..records[1] + 12;
    unknown[header.start + 4] = 9;
    let checksum = crc32c::crc32c(&unknown[header.clone()]);
    unknown[header.end..header.end + 4].copy_from_slice(&checksum.to_le_bytes());
    let TraceError::Record { record: 1, source, .. } = read(&unknown).unwrap_err() else { panic!() };
    assert!(source.to_string().contains("kind"), "{source}");
}

proptest! {
    #[test]
    fn any_lookup_comes_back(
        arrival in 0u64..1 << 50,
        number: u64,
        tenant in "[a-z]{0,9}",
        features in prop::collection::vec((any::<Vec<u64>>(), any::<Vec<u32>>(), any::<Vec<u32>>()), 0..4),
        cuts in 1usize..400,
    ) {
        let some = |list: Vec<u32>| Some(list).filter(|list| !list.is_empty());
        let features = features.into_iter().map(|(ids, lengths, weights)| FeatureLookup {
            lengths: some(lengths),
            weights: some(weights).map(|w| w.into_iter().map(|w| w as f32).collect()),
            ..feature("user", ids)
        });
        let lookup = TracedLookup {
            arrival: Duration::from_micros(arrival),
            number,
            tenant: Some(tenant).filter(|tenant| !tenant.is_empty()),
            features: features.collect(),
        };
        let (bytes, _) = written(std::slice::from_ref(&lookup));
        // However the bytes come.
        let (mut decoder, mut entries) = (TraceDecoder::new(), Vec::new());
        for piece in bytes.chunks(cuts) {
            decoder.push(piece);
            while let Some(entry) = decoder.next_entry().unwrap() {
                entries.push(entry);
            }
        }
        let expected = [TraceEntry::Start(start()), TraceEntry::Lookup(lookup), TraceEntry::End(END)];
        prop_assert_eq!(entries, expected);
        prop_assert_eq!((decoder.pending_bytes(), decoder.read_bytes()), (0, bytes.len() as u64));
    }

    #[test]
    fn garbage_never_panics(bytes: Vec<u8>, at in 0usize..300) {
        let (mut trace, _) = written(&lookups());
        let at = at.min(trace.len());
        trace.splice(at.., bytes);
        // Whole records before it are read; the rest is cut or refused.
        let _ = TraceReader::new(&trace[..]).and_then(|mut reader| {
            while reader.next_lookup()?.is_some() {}
            Ok(())
        });
    }
}

fn request(ids: usize) -> LookupRequest {
    LookupRequest { request_id: "r".into(), features: vec![feature("user", vec![7; ids])] }
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_full_tap_drops_and_counts_and_never_waits() {
    let slot = Arc::new(TapSlot::default());
    slot.note(Instant::now(), &request(1), None);
    let mut tap = slot.open(TapOptions { time: LONG, queue_len: 2, ..Default::default() }).unwrap();
    for _ in 0..5 {
        slot.note(Instant::now(), &request(1), Some(&"ads".into()));
    }
    let [first, second] = [tap.next().await.unwrap(), tap.next().await.unwrap()];
    assert_eq!((first.number, second.number), (0, 1));
    assert!(first.arrival <= second.arrival && first.features == request(1).features);
    assert_eq!(first.tenant.as_deref(), Some("ads"));
    slot.note(Instant::now(), &request(1), None);
    assert_eq!(tap.next().await.unwrap().number, 5, "three were dropped between");
    assert!(matches!(tap.end(), TraceEnd { lookups: 6, dropped: 3, .. }));

    // Many small ones fit where one large one does not.
    drop(tap);
    let mut tap = slot.open(TapOptions { time: LONG, queue_bytes: 4096, ..Default::default() }).unwrap();
    for ids in [100, 400, 100, 600] {
        slot.note(Instant::now(), &request(ids), None);
    }
    let found = [tap.next().await.unwrap(), tap.next().await.unwrap()];
    assert_eq!(found.map(|lookup| lookup.number), [0, 2]);
    slot.note(Instant::now(), &request(400), None);
    assert_eq!(tap.next().await.unwrap().number, 4, "what was taken out makes room");
    assert_eq!(tap.end().dropped, 2);
}

#[tokio::test]
async fn one_of_every_few_is_recorded() {
    let slot = Arc::new(TapSlot::default());
    let every = NonZeroU64::new(3).unwrap();
    let mut tap = slot.open(TapOptions { every, time: LONG, ..Default::default() }).unwrap();
    for ids in 0..8 {
        slot.note(Instant::now(), &request(ids), None);
    }
    for number in 0..3 {
        let lookup = tap.next().await.unwrap();
        assert_eq!((lookup.number, lookup.features[0].ids.len()), (number, 3 * number as usize));
    }
    assert!(matches!(tap.end(), TraceEnd { lookups: 8, dropped: 0, .. }));

    // One that is stopped gives what it has taken note of, and no more.
    slot.note(Instant::now(), &request(0), None);
    slot.note(Instant::now(), &request(1), None);
    tap.stop();
    (0..3).for_each(|ids| slot.note(Instant::now(), &request(ids), None));
    assert_eq!(tap.next().await.unwrap().number, 3);
    assert_eq!((tap.next().await, tap.end().lookups), (None, 10));
}

#[tokio::test]
async fn a_tap_is_one_at_a_time_and_ends_by_itself() {
    let slot = Arc::new(TapSlot::default());
    let tap = slot.open(TapOptions { time: LONG, ..Default::default() }).unwrap();
    let Err(TapError::Busy { left }) = slot.open(TapOptions::default()) else { panic!("two taps") };
    assert!(left <= LONG && left > LONG - Duration::from_secs(60), "{left:?}");
    drop(tap);
    let none = TapOptions { time: Duration::ZERO, ..Default::default() };
    let mut over = slot.open(none).unwrap();
    slot.note(Instant::now(), &request(1), None);
    // A tap whose time is over is in nobody's way, and does not close the one that came after it.
    let mut tap = slot.open(TapOptions { time: LONG, ..Default::default() }).unwrap();
    assert_eq!(over.next().await, None);
    drop(over);
    slot.note(Instant::now(), &request(1), None);
    assert_eq!(tap.next().await.unwrap().number, 0);
    drop(tap);
    // Nothing comes, and the time passes.
    let mut tap = slot.open(TapOptions { time: Duration::from_millis(5), ..Default::default() }).unwrap();
    assert_eq!(tap.next().await, None);
    assert_eq!(tap.next().await, None);
    assert_eq!(tap.end(), TraceEnd { lasted: Duration::from_millis(5), lookups: 0, dropped: 0 });
}
