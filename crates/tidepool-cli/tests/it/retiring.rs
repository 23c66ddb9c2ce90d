//! Releases that leave while requests go on: nobody who began with one finds it gone.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    command::{Role, failure, http_get, json as run, keys},
    models::{REQUEST, trained, until},
};

/// Asks a ranker over HTTP, for a release if one is named; gives the status and the answer.
fn rank(address: &str, release: Option<&str>) -> (u16, Value) {
    let mut request: Value = serde_json::from_str(REQUEST).unwrap();
    if let Some(release) = release {
        request["release"] = json!(release);
    }
    let body = request.to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /v1/rank HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}")))
}

#[test]
fn requests_survive_promotions_and_what_is_let_go_leaves_later() {
    let dir = TempDir::new().unwrap();
    let store = trained(dir.path(), &["r1", "r2", "r3"]);
    let mut of_controller = keys(dir.path(), store.root(), "controller");
    of_controller.extend([("group_settle_ms", "0".into()), ("retire_grace_ms", "4000".into())]);
    let controller = Role::start(dir.path(), "controller", &of_controller);
    let node = Role::node(dir.path(), store.root(), &controller);
    let mut of_ranker = keys(dir.path(), store.root(), "ranker");
    of_ranker.push(("controllers", format!("{:?}", [&controller.grpc_address])));
    of_ranker.push(("ranker", "r-1".into()));
    let ranker = Role::start(dir.path(), "ranker", &of_ranker);
    let address = controller.grpc_address.as_str();
    let release = |args: &[&'static str]| run(&[&["--controller", address, "release"], args].concat());
    let list = ["--controller", address, "release", "list"];
    let states = |listed: &Value| -> BTreeMap<String, String> {
        let word = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
        let releases = listed["releases"].as_array().unwrap().iter();
        releases.map(|entry| (word(entry, "release"), word(entry, "state"))).collect()
    };
    for of in ["r1", "r2", "r3"] {
        let publish = ["--controller", address, "release", "publish", of, "--model", "m"];
        assert_eq!(run(&publish).0, 0);
    }
    assert_eq!(release(&["promote", "m", "r1"]).0, 0);
    until(&list, |listed| ["r2", "r3"].iter().all(|of| states(listed)[*of] == "ready"));

    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let ask = || {
            let mut answered = BTreeMap::<String, u32>::new();
            while !over.load(Ordering::Relaxed) {
                let (status, answer) = rank(&ranker.http_address, None);
                assert_eq!(status, 200, "{answer}");
                *answered.entry(answer["release"].as_str().unwrap().to_owned()).or_default() += 1;
            }
            answered
        };
        // The ranker takes the map a moment after the promotion was answered.
        while rank(&ranker.http_address, None).0 != 200 {}
        let asking = scope.spawn(ask);
        for of in ["r2", "r3"] {
            assert_eq!(release(&["promote", "m", of]).0, 0);
        }
        // It was the release before the previous one: it answers still, and nothing new comes of it.
        assert_eq!(states(&run(&list).1)["r1"], "retiring");
        let (status, answer) = rank(&ranker.http_address, Some("r1"));
        assert_eq!((status, &answer["choice"]), (200, &json!("named")));
        for refused in [&["publish", "r1", "--model", "m"][..], &["ramp", "m", "r1", "5%"]] {
            let (code, said) = failure(&[&["--controller", address, "release"], refused].concat());
            assert!(code == 1 && said.contains("m@r1 is being let go"), "{said}");
        }
        assert_eq!(release(&["retire", "m", "r2", "--yes"]).0, 0);
        let (_, listed) = run(&list);
        assert_eq!(states(&listed)["r2"], "retiring");
        assert_eq!(rank(&ranker.http_address, Some("r2")).0, 200);

        let left = until(&list, |listed| listed["releases"].as_array().unwrap().len() == 1);
        assert_eq!(states(&left)["r3"], "current");
        while rank(&ranker.http_address, Some("r1")).0 == 200 {}
        let (status, answer) = rank(&ranker.http_address, Some("r1"));
        assert_eq!((status, &answer["error"]["code"]), (404, &json!("not_found")), "{answer}");
        while http_get(&node.http_address, "/status").contains("\"r1\"") {}
        over.store(true, Ordering::Relaxed);
        let answered = asking.join().unwrap();
        assert!(answered.keys().all(|of| ["r1", "r2", "r3"].contains(&of.as_str())), "{answered:?}");
        assert!(answered["r3"] > 10, "{answered:?}");
    });
}
