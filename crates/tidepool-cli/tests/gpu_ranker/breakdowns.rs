//! A device that breaks down beneath a ranker, and a ranker that is killed while its device works.

use std::{thread, time::Instant};

use crate::{
    command::{DEADLINE, failure},
    machine::{Cluster, Gpu, rank, until},
};

/// How long a request may take that must not end before the device does, in milliseconds.
const PATIENT: &str = "20000";

/// Waits until the ranker tells those who ask whether to send requests that they should not, and gives the reason.
fn not_ready(ranker: &Gpu) -> String {
    until("the ranker to be not ready", || {
        let (status, why) = ranker.get("/readyz");
        (status == 503).then_some(why)
    })
}

/// Waits until a release is in a state.
fn release_is(ranker: &Gpu, release: &str, state: &str) -> String {
    until(&format!("{release} to be {state}"), || {
        let status = ranker.status();
        let found = status["releases"].as_array()?.iter().find(|r| r["release"] == release)?.clone();
        (found["state"] == state).then(|| found["problem"].to_string())
    })
}

#[test]
fn a_lost_device_sends_callers_to_the_next_ranker_and_a_restart_serves_again() {
    let cluster = Cluster::start();
    let (first, second) = (cluster.ranker("r-1", &[]), cluster.ranker("r-2", &[]));
    cluster.trained.serve(&cluster.controller, "r1");
    for ranker in [&first, &second] {
        cluster.trained.ranked_by(&ranker.role, "r1");
        let device = &ranker.status()["device"];
        assert_eq!((&device["name"], device["lost_because"].is_null()), (&"cuda:0".into(), true), "{device}");
    }
    first.order("lose 46");
    for _ in 0..3 {
        let (status, body) = first.rank();
        assert_eq!((status, &body["error"]["code"]), (503, &"unavailable".into()), "{body}");
    }
    assert!(first.obeyed());
    let why = not_ready(&first);
    assert!(why.contains("cuda:0 is lost"), "{why}");
    // A caller with the same request, by the command: told what it may do, and answered next door.
    let request = cluster.trained.path().join("request.json");
    let (code, said) = failure(&["rank", request.to_str().unwrap(), "--ranker", &first.role.http_address]);
    assert!(code == 1 && said.contains("unavailable: "), "{said}");
    cluster.trained.still(&second.role, "r1");

    // The log has it, once.
    let lines = until("the log to have it", || {
        let log = first.log();
        let lines: Vec<String> =
            log.lines().filter(|line| line.contains("cuda:0 is lost: ")).map(str::to_owned).collect();
        (!lines.is_empty()).then_some(lines)
    });
    assert!(lines.len() == 1 && lines[0].contains("the device"), "{lines:?}");
    assert_eq!(first.role.terminate(), 0, "a lost device does not keep the process from its end");
    let again = cluster.ranker("r-1", &[]);
    cluster.trained.ranked_by(&again.role, "r1");
    assert_eq!(again.get("/readyz").0, 200);
}

#[test]
fn a_device_that_hangs_is_given_up_after_its_deadline() {
    let cluster = Cluster::start();
    // The deadline of the batches by which a load tries its streams, too, on whatever machine.
    let keys = [("cuda.deadline_ms", "3000".into()), ("default_deadline_ms", PATIENT.into())];
    let ranker = cluster.ranker("r-1", &keys);
    cluster.trained.serve(&cluster.controller, "r1");
    cluster.trained.ranked_by(&ranker.role, "r1");
    ranker.order("hang 1");
    let (status, body) = ranker.rank();
    assert_eq!((status, &body["error"]["code"]), (503, &"unavailable".into()), "{body}");
    // The next are told at once, long before the deadline that a request has by itself.
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(ranker.rank().0, 503);
    }
    assert!(begun.elapsed() < DEADLINE / 3, "{:?}", begun.elapsed());
    let why = not_ready(&ranker);
    assert!(why.contains("did not finish") && why.contains("3000 ms"), "{why}");
    assert_eq!(ranker.role.terminate(), 0);
}

#[test]
fn a_ranker_that_is_killed_in_a_request_leaves_nothing_to_repair() {
    let cluster = Cluster::start();
    let keys = [("cuda.deadline_ms", "600000".into()), ("default_deadline_ms", PATIENT.into())];
    let ranker = cluster.ranker("r-1", &keys);
    cluster.trained.serve(&cluster.controller, "r1");
    cluster.trained.ranked_by(&ranker.role, "r1");
    let kernels = ranker.kernels();
    assert!(!kernels.is_empty() && kernels.iter().all(|(name, ..)| name.ends_with(".ptx")), "{kernels:?}");
    ranker.order("hang 1");
    let address = ranker.role.http_address.clone();
    let request = thread::spawn(move || rank(&address));
    until("the request to be on the device", || ranker.obeyed().then_some(()));
    assert!(!request.is_finished());
    // SIGKILL.
    drop(ranker);
    let answer = request.join().unwrap();
    assert!(answer.is_err(), "{answer:?}");
    let again = cluster.ranker("r-1", &[]);
    cluster.trained.ranked_by(&again.role, "r1");
    assert_eq!(
        again.kernels(),
        kernels,
        "what was there is taken as it is: a file that is made anew has another inode"
    );
    assert!(!again.log().contains("WARN"), "{}", again.log());
}

#[test]
fn a_release_for_which_there_is_no_memory_is_in_the_log_and_the_other_goes_on() {
    let cluster = Cluster::start();
    // It is not tried again before this is over.
    let ranker = cluster.ranker("r-1", &[("load_retry_ms", "3600000".into())]);
    cluster.trained.serve(&cluster.controller, "r1");
    cluster.trained.ranked_by(&ranker.role, "r1");
    // Nobody ranks meanwhile: the next call of the driver's is the load's.
    ranker.order("fail_allocation 3");
    cluster.trained.publish(&cluster.controller, "r2");
    let problem = release_is(&ranker, "r2", "failed");
    assert!(problem.contains("of GPU memory for"), "{problem}");
    let log = ranker.log();
    let line = log.lines().find(|line| line.contains("a release could not be loaded")).unwrap_or_default();
    assert!(line.contains("of GPU memory for") && line.contains("r2"), "{log}");
    cluster.trained.waits_for(&cluster.controller, "r2", &["of GPU memory for"]);
    cluster.trained.still(&ranker.role, "r1");
    assert_eq!(ranker.get("/readyz").0, 200);
}
