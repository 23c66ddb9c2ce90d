//! What runs when, and what an order that is missing looks like.

use super::*;
use crate::{Code, Schedule, host::HOST_POISON};

#[test]
fn nothing_runs_before_it_is_waited_for() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let function = add_one(&driver);
    let at = driver.allocate(400).unwrap();
    let staging = pinned(&driver, &[1; 100]);
    let back = pinned(&driver, &[0; 100]);
    driver.copy_in(at, staging.clone(), stream).unwrap();
    driver.launch(function, shape(100), params(at, 100), stream).unwrap();
    driver.copy_out(back.clone(), at, stream).unwrap();
    assert_eq!(driver.query_stream(stream), Err(Code::NOT_READY));
    assert_eq!(back.read(), [HOST_POISON; 400], "who reads before waiting reads poison");
    driver.synchronize_stream(stream).unwrap();
    assert_eq!(words(&back), [2; 100]);
    assert_eq!(driver.query_stream(stream), Ok(()));
    let counters = driver.counters();
    assert_eq!(
        (counters.copies_in, counters.bytes_in, counters.copies_out, counters.launches),
        (1, 400, 1, 1)
    );
    assert!(counters.instructions > 1000, "{}", counters.instructions);
}

#[test]
fn pageable_memory_is_taken_at_the_call_and_pinned_memory_when_the_copy_runs() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let at = driver.allocate(4).unwrap();
    let pageable = Bytes::words(&[5]);
    driver.copy_in(at, pageable.range(), stream).unwrap();
    pageable.0[0].store(6, Relaxed);
    let back = Bytes::words(&[0]);
    driver.copy_out(back.range(), at, stream).unwrap();
    assert_eq!(back.get_words(), [5]);

    let staging = pinned(&driver, &[7]);
    driver.copy_in(at, staging.clone(), stream).unwrap();
    write(&staging, &[8]);
    assert_eq!(driver.synchronize_stream(stream), Err(Code::LAUNCH_FAILED));
    assert!(driver.last_fault().contains("stale pinned buffer"), "{}", driver.last_fault());
}

#[test]
fn a_result_that_the_host_overwrites_is_found() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let at = driver.allocate(4).unwrap();
    driver.fill(at, &[1], 4, stream).unwrap();
    let back = pinned(&driver, &[0]);
    driver.copy_out(back.clone(), at, stream).unwrap();
    write(&back, &[9]);
    assert_eq!(driver.synchronize_stream(stream), Err(Code::LAUNCH_FAILED));
    assert!(driver.last_fault().contains("while a copy to them was under way"), "{}", driver.last_fault());
}

#[test]
fn a_buffer_may_be_sent_back_from_where_it_came() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let (at, function) = (driver.allocate(4).unwrap(), add_one(&driver));
    let both = pinned(&driver, &[1]);
    for _ in 0..3 {
        driver.copy_in(at, both.clone(), stream).unwrap();
        driver.launch(function, shape(1), params(at, 1), stream).unwrap();
        driver.copy_out(both.clone(), at, stream).unwrap();
    }
    driver.synchronize_stream(stream).unwrap();
    assert_eq!(words(&both), [4]);
}

/// Two streams that touch one allocation, with or without an event between.
fn two_streams(ordered: bool, schedule: Schedule) -> (Result<(), Code>, String) {
    let driver = device(Settings { schedule, ..Settings::default() });
    let (a, b) = (driver.create_stream(true, 0).unwrap(), driver.create_stream(true, 0).unwrap());
    let at = driver.allocate(128).unwrap();
    driver.fill(at, &[1], 128, a).unwrap();
    driver.synchronize_stream(a).unwrap();
    driver.fill(at + 60, &[2], 8, a).unwrap();
    if ordered {
        let event = driver.create_event(false).unwrap();
        driver.record(event, a).unwrap();
        driver.wait_for(b, event).unwrap();
    }
    let back = pinned(&driver, &[0; 16]);
    driver.copy_out(back.clone(), at, b).unwrap();
    let result = driver.synchronize_stream(b).and_then(|()| driver.synchronize_stream(a));
    if result.is_ok() {
        assert_eq!(back.read()[59..61], [1, 2], "the event orders the copy after the memory set");
    }
    (result, driver.last_fault())
}

#[test]
fn what_no_event_orders_is_a_race_in_every_order() {
    for schedule in (0..8).map(Schedule::Random).chain([Schedule::Lazy]) {
        assert_eq!(two_streams(true, schedule).0, Ok(()), "{schedule:?}");
        let (result, fault) = two_streams(false, schedule);
        assert_eq!(result, Err(Code::LAUNCH_FAILED), "{schedule:?}");
        assert!(fault.contains("race: ") && fault.contains("bytes 60..64"), "{fault}");
    }
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_only() {
    let driver = device(Settings::default());
    let blocking = driver.create_stream(false, 0).unwrap();
    let at = driver.allocate(4).unwrap();
    driver.fill(at, &[3], 4, blocking).unwrap();
    let back = Bytes::words(&[0]);
    driver.copy_out(back.range(), at, 0).unwrap();
    assert_eq!(back.get(), [3; 4]);

    let other = driver.create_stream(true, 0).unwrap();
    driver.fill(at, &[4], 4, other).unwrap();
    assert_eq!(driver.copy_out(back.range(), at, 0), Ok(()), "nothing has run that it could race with");
    assert_eq!(back.get(), [3; 4]);
    assert_eq!(driver.synchronize_stream(other), Err(Code::LAUNCH_FAILED), "{}", driver.last_fault());
}

#[test]
fn the_pool_is_ordered_by_streams() {
    let driver = device(Settings::default());
    let (a, b) = (driver.create_stream(true, 0).unwrap(), driver.create_stream(true, 0).unwrap());
    let at = driver.allocate_async(64, a).unwrap();
    driver.fill(at, &[0], 64, a).unwrap();
    driver.free_async(at, a).unwrap();
    assert_eq!(driver.synchronize_stream(a), Ok(()));
    assert_eq!(driver.counters().bytes_live, 0);
    let at = driver.allocate_async(64, a).unwrap();
    driver.fill(at, &[0], 64, b).unwrap();
    let waited = driver.synchronize_stream(b).and_then(|()| driver.synchronize_stream(a));
    assert_eq!(waited, Err(Code::LAUNCH_FAILED), "allocated in one stream, used in another");
}

#[test]
fn host_functions_are_called_without_being_waited_for() {
    let driver = std::sync::Arc::new(device(Settings::default()));
    let stream = driver.create_stream(true, 0).unwrap();
    let at = driver.allocate(4).unwrap();
    let back = pinned(&driver, &[0]);
    driver.fill(at, &[5], 4, stream).unwrap();
    driver.copy_out(back.clone(), at, stream).unwrap();
    let (told, hears) = std::sync::mpsc::sync_channel(1);
    let call = move || told.send(words(&back)).unwrap();
    driver.host_call(stream, std::sync::Arc::new(call)).unwrap();
    let pump = std::sync::Arc::clone(&driver);
    std::thread::spawn(move || pump.pump());
    assert_eq!(hears.recv_timeout(std::time::Duration::from_secs(30)).unwrap(), [0x0505_0505]);
}
