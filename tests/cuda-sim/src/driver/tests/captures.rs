//! Capture, by the book: what becomes a graph, and which error each mistake gets.

use super::*;
use crate::{Code, capture::CaptureMode, driver::CaptureStatus};

fn captured(driver: &Driver, stream: u64, work: impl FnOnce()) -> Result<u64, Code> {
    driver.begin_capture(stream, CaptureMode::ThreadLocal).unwrap();
    work();
    driver.end_capture(stream)
}

#[test]
fn a_graph_reads_pinned_memory_when_it_is_launched() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let (at, function) = (driver.allocate(64).unwrap(), add_one(&driver));
    let (staging, back) = (pinned(&driver, &[1; 16]), pinned(&driver, &[0; 16]));
    let graph = captured(&driver, stream, || {
        driver.copy_in(at, staging.clone(), stream).unwrap();
        driver.launch(function, shape(16), params(at, 16), stream).unwrap();
        driver.copy_out(back.clone(), at, stream).unwrap();
        let status = driver.capture_status(stream).unwrap();
        assert!(matches!(status, CaptureStatus::Active(_)), "{status:?}");
    })
    .unwrap();
    assert_eq!(words(&back), [0; 16], "a capture runs nothing");
    assert_eq!(driver.graph_nodes(graph), Ok(3));
    let executable = driver.instantiate(graph).unwrap();
    driver.upload(executable, stream).unwrap();
    for round in 10..13 {
        write(&staging, &[round; 16]);
        driver.launch_graph(executable, stream).unwrap();
        driver.synchronize_stream(stream).unwrap();
        assert_eq!(words(&back), [round + 1; 16]);
    }
    let counters = driver.counters();
    assert_eq!((counters.graph_launches, counters.graph_nodes, counters.launches), (3, 9, 0));
    assert_eq!((counters.copies_in, counters.copies_out, counters.kernels_run), (3, 3, 3));
    // Rewritten before the launch is done.
    driver.launch_graph(executable, stream).unwrap();
    write(&staging, &[0; 16]);
    assert_eq!(driver.synchronize_stream(stream), Err(Code::LAUNCH_FAILED));
    assert!(driver.last_fault().contains("stale pinned buffer"), "{}", driver.last_fault());
}

#[test]
fn a_fork_must_be_joined_and_its_branches_must_not_meet() {
    let driver = device(Settings::default());
    let (a, b) = (driver.create_stream(true, 0).unwrap(), driver.create_stream(true, 0).unwrap());
    let at = driver.allocate(64).unwrap();
    let fork = |join: bool, other: u64| {
        let (forked, joined) = (driver.create_event(false).unwrap(), driver.create_event(false).unwrap());
        let graph = captured(&driver, a, || {
            driver.record(forked, a).unwrap();
            driver.wait_for(b, forked).unwrap();
            driver.fill(at, &[1], 32, a).unwrap();
            driver.fill(other, &[2], 32, b).unwrap();
            driver.record(joined, b).unwrap();
            if join {
                driver.wait_for(a, joined).unwrap();
            }
        });
        driver.destroy_event(forked).unwrap();
        driver.destroy_event(joined).unwrap();
        graph
    };
    assert_eq!(fork(false, at + 32), Err(Code::STREAM_CAPTURE_UNJOINED));
    let apart = driver.instantiate(fork(true, at + 32).unwrap()).unwrap();
    driver.launch_graph(apart, a).unwrap();
    assert_eq!(driver.synchronize_stream(a), Ok(()));
    let meeting = driver.instantiate(fork(true, at + 28).unwrap()).unwrap();
    driver.launch_graph(meeting, a).unwrap();
    assert_eq!(driver.synchronize_stream(a), Err(Code::LAUNCH_FAILED));
    assert!(driver.last_fault().contains("nodes that the graph does not order"), "{}", driver.last_fault());
}

/// Begins a capture, does something wrong, and gives its error and that of the end.
fn wrong(
    mode: CaptureMode,
    mistake: impl FnOnce(&Driver, u64) -> Result<(), Code>,
) -> (Result<(), Code>, Result<(), Code>) {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    driver.begin_capture(stream, mode).unwrap();
    let result = mistake(&driver, stream);
    let ended = driver.end_capture(stream).map(drop);
    let after = driver.capture_status(stream);
    assert!(ended.is_err() || after == Ok(CaptureStatus::None), "{after:?}");
    (result, ended)
}

#[test]
fn mistakes_break_a_capture_with_their_own_errors() {
    use CaptureMode::{Global, Relaxed, ThreadLocal};
    let broken = Err(Code::STREAM_CAPTURE_INVALIDATED);
    let unsupported = (Err(Code::STREAM_CAPTURE_UNSUPPORTED), broken);
    assert_eq!(wrong(ThreadLocal, |d, s| d.synchronize_stream(s)), unsupported);
    assert_eq!(wrong(ThreadLocal, |d, s| d.query_stream(s)), unsupported);
    assert_eq!(wrong(ThreadLocal, |d, _| d.synchronize()), unsupported);
    assert_eq!(wrong(Global, |d, _| d.allocate(64).map(drop)), unsupported);
    assert_eq!(wrong(ThreadLocal, |d, _| d.allocate_pinned(64).map(drop)), unsupported);
    assert_eq!(wrong(Relaxed, |d, _| d.allocate(64).map(drop)), (Ok(()), Ok(())));
    assert_eq!(wrong(ThreadLocal, |d, s| d.allocate_async(64, s).map(drop)), unsupported);
    assert_eq!(wrong(ThreadLocal, |d, s| d.copy_in(1, Bytes::words(&[1]).range(), s)), unsupported);
    let captured_event = wrong(ThreadLocal, |d, s| {
        let event = d.create_event(false)?;
        d.record(event, s)?;
        d.synchronize_event(event)
    });
    assert_eq!(captured_event, (Err(Code::CAPTURED_EVENT), broken));
    let isolation = wrong(ThreadLocal, |d, s| {
        let (event, other) = (d.create_event(false)?, d.create_stream(true, 0)?);
        d.record(event, other)?;
        d.wait_for(s, event)
    });
    assert_eq!(isolation, (Err(Code::STREAM_CAPTURE_ISOLATION), broken));
    let again = wrong(ThreadLocal, |d, s| d.begin_capture(s, ThreadLocal));
    assert_eq!(again, (Err(Code::ILLEGAL_STATE), Ok(())));
    let after = wrong(ThreadLocal, |d, s| {
        assert!(d.synchronize_stream(s).is_err());
        d.fill(1, &[0], 1, s)
    });
    assert_eq!(after, (broken, broken));
    let event_of_nobody = wrong(ThreadLocal, |d, s| d.wait_for(s, d.create_event(false)?));
    assert_eq!(event_of_nobody, (Ok(()), Ok(())));
}

#[test]
fn streams_that_must_not_be_captured_or_joined() {
    let driver = device(Settings::default());
    assert_eq!(driver.begin_capture(0, CaptureMode::Relaxed), Err(Code::STREAM_CAPTURE_UNSUPPORTED));
    let (a, b) = (driver.create_stream(false, 0).unwrap(), driver.create_stream(true, 0).unwrap());
    assert_eq!(driver.end_capture(a), Err(Code::ILLEGAL_STATE));
    // The legacy stream would wait for a blocking stream.
    driver.begin_capture(a, CaptureMode::ThreadLocal).unwrap();
    let at = Err(Code::STREAM_CAPTURE_IMPLICIT);
    assert_eq!(driver.fill(1 << 60, &[0], 4, 0), at);
    assert_eq!(driver.end_capture(a), Err(Code::STREAM_CAPTURE_INVALIDATED));
    // Two captures that an event would make one.
    let event = driver.create_event(false).unwrap();
    driver.begin_capture(a, CaptureMode::ThreadLocal).unwrap();
    driver.begin_capture(b, CaptureMode::ThreadLocal).unwrap();
    driver.record(event, a).unwrap();
    assert_eq!(driver.wait_for(b, event), Err(Code::STREAM_CAPTURE_MERGE));
    assert_eq!(driver.end_capture(a), Err(Code::STREAM_CAPTURE_INVALIDATED));
    assert_eq!(driver.end_capture(b), Err(Code::STREAM_CAPTURE_INVALIDATED));
    // Ended in a stream that only joined.
    driver.begin_capture(a, CaptureMode::ThreadLocal).unwrap();
    driver.record(event, a).unwrap();
    driver.wait_for(b, event).unwrap();
    assert_eq!(driver.end_capture(b), Err(Code::STREAM_CAPTURE_UNMATCHED));
    assert_eq!(driver.end_capture(a), Err(Code::STREAM_CAPTURE_INVALIDATED));
}

#[test]
fn other_threads_break_global_captures_only() {
    for (mode, broken) in [(CaptureMode::Global, true), (CaptureMode::ThreadLocal, false)] {
        let driver = device(Settings::default());
        let stream = driver.create_stream(true, 0).unwrap();
        let context = driver.current().unwrap();
        driver.begin_capture(stream, mode).unwrap();
        std::thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                driver.set_current(context).unwrap();
                (driver.end_capture(stream), driver.allocate(64).is_err())
            });
            assert_eq!(elsewhere.join().unwrap(), (Err(Code::STREAM_CAPTURE_WRONG_THREAD), broken));
        });
        assert_eq!(driver.end_capture(stream).is_err(), broken);
    }
}
