//! Faults: found, injected, and what comes after them.

use super::*;
use crate::{Code, Schedule};

#[test]
fn an_id_out_of_bounds_is_told_with_kernel_thread_and_line() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let (at, function) = (driver.allocate(400).unwrap(), add_one(&driver));
    driver.fill(at, &[0], 400, stream).unwrap();
    driver.launch(function, shape(101), params(at, 101), stream).unwrap();
    assert_eq!(driver.synchronize_stream(stream), Err(Code::ILLEGAL_ADDRESS));
    let fault = driver.last_fault();
    for part in ["kernel add_one", "block [3, 0, 0]", "thread [4, 0, 0]", "line 20", "ld.global.u32"] {
        assert!(fault.contains(part), "{part} is not in {fault}");
    }
    // Every later call says so, until the context is gone.
    assert_eq!(driver.allocate(4), Err(Code::ILLEGAL_ADDRESS));
    assert_eq!(driver.free(at), Err(Code::ILLEGAL_ADDRESS));
    driver.release(0).unwrap();
    driver.set_current(driver.retain(0).unwrap()).unwrap();
    assert!(driver.allocate(4).is_ok());
}

#[test]
fn a_graph_that_outlives_its_memory_is_found() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let (at, function) = (driver.allocate(64).unwrap(), add_one(&driver));
    driver.fill(at, &[0], 64, stream).unwrap();
    driver.begin_capture(stream, crate::capture::CaptureMode::ThreadLocal).unwrap();
    driver.launch(function, shape(16), params(at, 16), stream).unwrap();
    let executable = driver.instantiate(driver.end_capture(stream).unwrap()).unwrap();
    driver.launch_graph(executable, stream).unwrap();
    driver.free(at).unwrap();
    assert_eq!(driver.counters().kernels_run, 1, "a free waits for the device");
    driver.launch_graph(executable, stream).unwrap();
    assert_eq!(driver.synchronize_stream(stream), Err(Code::ILLEGAL_ADDRESS));
    assert!(driver.last_fault().contains("freed"), "{}", driver.last_fault());
}

#[test]
fn memory_that_nobody_wrote_is_found_where_a_kernel_reads_it() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let (at, function) = (driver.allocate(64).unwrap(), add_one(&driver));
    driver.launch(function, shape(16), params(at, 16), stream).unwrap();
    assert_eq!(driver.synchronize_stream(stream), Err(Code::LAUNCH_FAILED));
    assert!(driver.last_fault().contains("before anything was written"), "{}", driver.last_fault());
}

#[test]
fn memory_runs_out_at_its_capacity_and_on_demand() {
    let driver = device(Settings { memory_bytes: 4096, ..Settings::default() });
    let first = driver.allocate(3000).unwrap();
    assert_eq!(driver.memory_info(), Ok((4096 - 3072, 4096)));
    assert_eq!(driver.allocate(2000), Err(Code::OUT_OF_MEMORY));
    driver.free(first).unwrap();
    driver.change(|settings| settings.fail_allocation = Some(2));
    let second = driver.allocate(64).unwrap();
    assert_eq!(driver.allocate(64), Err(Code::OUT_OF_MEMORY));
    assert!(driver.allocate(64).is_ok(), "only the one that was asked for fails");
    assert_eq!(driver.free(second + 1), Err(Code::INVALID_VALUE));
    let counters = driver.counters();
    assert_eq!((counters.allocations_refused, counters.bytes_peak), (2, 3072));
}

#[test]
fn launches_fail_and_devices_are_lost_on_demand() {
    let driver = device(Settings { fail_launch: Some(2), ..Settings::default() });
    let stream = driver.create_stream(true, 0).unwrap();
    let (at, function) = (driver.allocate(4).unwrap(), add_one(&driver));
    driver.fill(at, &[0], 4, stream).unwrap();
    driver.launch(function, shape(1), params(at, 1), stream).unwrap();
    driver.synchronize_stream(stream).unwrap();
    driver.launch(function, shape(1), params(at, 1), stream).unwrap();
    assert_eq!(driver.synchronize_stream(stream), Err(Code::LAUNCH_FAILED));

    driver.reset();
    driver.change(|settings| settings.lose_device = Some(2));
    driver.launch(function, shape(1), params(at, 1), stream).unwrap();
    let lost = Err(Code::DEVICE_UNAVAILABLE);
    assert_eq!(driver.launch(function, shape(1), params(at, 1), stream), lost);
    assert_eq!(driver.synchronize_stream(stream), lost);
    assert_eq!(driver.retain(0), Err(Code::DEVICE_UNAVAILABLE));
    driver.reset();
    assert_eq!(driver.synchronize_stream(stream), Ok(()));
}

#[test]
fn a_device_hangs_until_it_is_told_otherwise_or_lost() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let context = driver.current().unwrap();
    let at = driver.allocate(4).unwrap();
    for lost in [false, true] {
        driver.hang(true);
        driver.fill(at, &[0], 4, stream).unwrap();
        assert_eq!(driver.query_stream(stream), Err(Code::NOT_READY));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                driver.set_current(context).unwrap();
                driver.synchronize_stream(stream)
            });
            // It counts the wait before it waits.
            while driver.counters().synchronizations < 1 + u64::from(lost) {
                std::thread::yield_now();
            }
            assert!(!waits.is_finished());
            if lost {
                driver.lose(Code::UNKNOWN)
            } else {
                driver.hang(false)
            }
            let expected = if lost { Err(Code::UNKNOWN) } else { Ok(()) };
            assert_eq!(waits.join().unwrap(), expected);
        });
    }
}

#[test]
fn what_is_live_at_the_end_is_counted() {
    let driver = device(Settings::default());
    let stream = driver.create_stream(true, 0).unwrap();
    let at = driver.allocate(64).unwrap();
    driver.allocate(100).unwrap();
    driver.allocate_pinned(10).unwrap();
    driver.free(at).unwrap();
    driver.create_event(false).unwrap();
    assert_eq!(driver.release(0), Ok(()));
    let words = driver.last_fault();
    assert_eq!(driver.counters().leaks, 4, "{words}");
    assert!(words.contains("allocation 2 of 100 bytes") && words.contains("an event"), "{words}");
    assert_eq!(driver.synchronize_stream(stream), Err(Code::INVALID_CONTEXT));
}

#[test]
fn wrong_pointers_handles_and_texts_are_refused() {
    let driver = Driver::new(Settings::default());
    assert_eq!(driver.device_count(), Err(Code::NOT_INITIALIZED));
    let driver = device(Settings { driver_version: 12000, ..Settings::default() });
    let event = driver.create_event(false).unwrap();
    assert_eq!(driver.synchronize_stream(event), Err(Code::INVALID_HANDLE));
    assert_eq!(driver.load_module(b"\x7fELF"), Err(Code::INVALID_IMAGE));
    let newer = PTX.replace(".version 8.0", ".version 8.4");
    assert_eq!(driver.load_module(newer.as_bytes()), Err(Code::UNSUPPORTED_PTX_VERSION));
    let other = PTX.replace("sm_80", "sm_90");
    assert_eq!(driver.load_module(other.as_bytes()), Err(Code::NO_BINARY_FOR_GPU));
    let unknown = PTX.replace("add.s64", "bdd.s64");
    assert_eq!(driver.load_module(unknown.as_bytes()), Err(Code::INVALID_PTX));
    let module = driver.load_module(PTX.as_bytes()).unwrap();
    assert_eq!(driver.get_function(module, "add_two"), Err(Code::NOT_FOUND));
    let function = driver.get_function(module, "add_one").unwrap();
    let large = LaunchShape { grid: [1; 3], block: [1025, 1, 1], dynamic_shared: 0 };
    assert_eq!(driver.launch(function, large, params(0, 0), 0), Err(Code::INVALID_VALUE));
    // A pointer of the host.
    let host = Bytes::words(&[1]);
    driver.launch(function, shape(1), params(host.range().address() as u64, 1), 0).unwrap();
    assert_eq!(driver.synchronize(), Err(Code::ILLEGAL_ADDRESS));
    assert!(driver.last_fault().contains("out of bounds"), "{}", driver.last_fault());
}

#[test]
fn a_seed_plays_the_same_again() {
    let run = |seed| {
        let driver = device(Settings { schedule: Schedule::Random(seed), ..Settings::default() });
        let streams = [(); 3].map(|()| driver.create_stream(true, 0).unwrap());
        let at = streams.map(|_| driver.allocate(64).unwrap());
        let mut done = Vec::new();
        for round in 0..20_u8 {
            for (stream, at) in streams.iter().zip(at) {
                driver.fill(at, &[round], 64, *stream).unwrap();
                done.push(driver.query_stream(*stream).is_ok());
            }
        }
        done
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}
