//! Two controllers on hosts of their own, cut off from etcd, from everybody, and from each other.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tidepool_client::{Client, ClientConfig};
use tidepool_proto::{
    code_of,
    v1::{self, control_client::ControlClient},
};
use tidepool_types::{ErrorCode, Name, TableVersion};

use super::{
    alone,
    hosts::{Host, SERVICE, STORE, make_room_for_names},
};
use crate::{
    command::{DEADLINE, Role, json, keys, node_keys},
    etcd::{
        outages::{endpoint, set, set_anywhere, standing, tenants},
        server::Etcd,
    },
};

/// A lease of 2 seconds, which etcd ends within another, and the campaign.
const TAKEN_OVER: Duration = Duration::from_secs(10);

struct Site {
    hosts: Vec<Host>,
    controllers: Vec<Role>,
    client: Client,
    _node: Role,
    _etcd: Etcd,
    _dir: TempDir,
}

fn version(number: usize) -> TableVersion {
    TableVersion { table: Name::new("user").unwrap(), version: Name::new(format!("v{number}")).unwrap() }
}

impl Site {
    /// Two controllers, a node, and a client that looks rows of `user@v0` up.
    async fn start() -> Self {
        make_room_for_names();
        SERVICE.make();
        STORE.make();
        let dir = TempDir::new().unwrap();
        let etcd = Etcd::start_at(dir.path(), &STORE.address(1));
        let store = dir.path().join("store");
        let csv = dir.path().join("users.csv");
        fs::write(&csv, "id,a,b,c,d,e,f,g,h\n42,-1,-0.5,0,0.25,0.5,1,2,3\n7,0,0,0,0,0,0,0,0\n").unwrap();
        for number in 0..4 {
            let (table, csv) = (version(number).to_string(), csv.to_str().unwrap());
            let store = store.to_str().unwrap();
            assert_eq!(json(&["table", "build", &table, "--from", csv, "--store", store]).0, 0);
        }
        let mut hosts: Vec<Host> = [("c-0", 10), ("c-1", 11)]
            .map(|(name, number)| Host::add(name, number, &[SERVICE, STORE]))
            .into();
        let controllers: Vec<Role> = hosts
            .iter()
            .map(|host| {
                let at: PathBuf = dir.path().join(host.number.to_string());
                fs::create_dir_all(&at).unwrap();
                let more = [
                    ("metastore", "etcd".to_owned()),
                    ("etcd_endpoints", format!("[{:?}]", etcd.endpoint())),
                    ("etcd_timeout_ms", "500".to_owned()),
                    ("leader_lease_seconds", "2".to_owned()),
                    ("reconnect_grace_ms", "2000".to_owned()),
                    ("group_settle_ms", "0".to_owned()),
                    ("keepalive_interval_ms", "500".to_owned()),
                    ("keepalive_timeout_ms", "500".to_owned()),
                    ("tls.insecure_plaintext", "true".to_owned()),
                    ("auth.insecure_remote_changes", "true".to_owned()),
                ];
                host.start(&at, "controller", &[keys(&at, &store, "controller"), more.to_vec()].concat())
            })
            .collect();
        let addresses: Vec<&str> = controllers.iter().map(|c| c.grpc_address.as_str()).collect();
        hosts.push(Host::add("n-0", 20, &[SERVICE]));
        let more = [
            ("tls.insecure_plaintext", "true".to_owned()),
            ("keepalive_interval_ms", "500".to_owned()),
            ("keepalive_timeout_ms", "500".to_owned()),
        ];
        let of_node = [node_keys(dir.path(), &store, &addresses), more.to_vec()].concat();
        let node = hosts[2].start(dir.path(), "node", &of_node);
        let all = addresses.join(",");
        let begun = Instant::now();
        while json(&["--controller", &all, "table", "serve", "user@v0"]).0 != 0 {
            assert!(begun.elapsed() < DEADLINE, "nobody serves it");
        }
        let config = ClientConfig {
            controllers: addresses.iter().map(|&address| address.to_owned()).collect(),
            ..ClientConfig::default()
        };
        let client = Client::start(config).await.unwrap();
        client.wait_for_map(|map| map.layout(&version(0)).is_some(), DEADLINE).await.unwrap();
        Self { hosts, controllers, client, _node: node, _etcd: etcd, _dir: dir }
    }

    fn address(&self, at: usize) -> &str {
        &self.controllers[at].grpc_address
    }

    /// Looks up, which must go on whatever becomes of the controllers.
    async fn look_up(&self) {
        let rows = self.client.stored_rows(&version(0), &[42, 99], Duration::from_secs(1)).await.unwrap();
        assert!(rows[0].row.is_some() && rows[1].row.is_none());
    }

    /// The one that leads, once both know it.
    async fn leader(&self) -> (usize, u64) {
        let begun = Instant::now();
        loop {
            let both = [standing(self.address(0)).await, standing(self.address(1)).await];
            for at in [0, 1] {
                if let [Some(this), Some(other)] = [&both[at], &both[1 - at]]
                    && this.leading
                    && !other.leading
                    && other.leader == self.address(at)
                {
                    return (at, this.term);
                }
            }
            assert!(begun.elapsed() < DEADLINE, "they do not agree: {both:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the other one leads while `cut` was cut off, and looks up meanwhile. What could be told of both was
    /// never that both lead. Gives whom the one that is cut off has acknowledged.
    async fn taken_over_from(&self, cut: usize, reachable: bool, round: &str) -> Vec<String> {
        let (begun, mut acknowledged, mut number) = (Instant::now(), Vec::new(), 0);
        loop {
            self.look_up().await;
            if reachable {
                // It is asked to write all the time, and may not once another can.
                let tenant = format!("cut-{round}-{number}");
                number += 1;
                match set(self.address(cut), &tenant).await {
                    Ok(_) => acknowledged.push(tenant),
                    Err(status) => {
                        let code = code_of(&status);
                        let good =
                            [ErrorCode::NotLeader, ErrorCode::Unavailable, ErrorCode::DeadlineExceeded]
                                .contains(&code);
                        assert!(good, "{status}");
                    }
                }
            }
            if standing(self.address(1 - cut)).await.is_some_and(|s| s.leading) {
                if reachable {
                    let old = standing(self.address(cut)).await;
                    assert!(old.is_some_and(|s| !s.leading), "two lead");
                }
                return acknowledged;
            }
            assert!(begun.elapsed() < TAKEN_OVER, "nobody takes over");
        }
    }

    /// Serves another version by this controller, which the node must load and the client must hear of.
    async fn serves(&self, at: usize, number: usize) {
        let table = version(number);
        let request = v1::ServeTableRequest { table_version: Some((&table).into()), serve: true };
        let begun = Instant::now();
        loop {
            let mut control = ControlClient::new(endpoint(self.address(at)).await.unwrap());
            let answer = control.serve_table(request.clone()).await.map(tonic::Response::into_inner);
            if answer.as_ref().is_ok_and(|answer| answer.waiting_for.is_empty()) {
                break;
            }
            assert!(begun.elapsed() < DEADLINE, "{table}: {answer:?}");
            self.look_up().await;
        }
        self.client.wait_for_map(|map| map.layout(&table).is_some(), DEADLINE).await.unwrap();
        let rows = self.client.stored_rows(&table, &[42], Duration::from_secs(1)).await.unwrap();
        assert!(rows[0].row.is_some());
    }
}

async fn controllers_are_cut_off() {
    let site = Site::start().await;
    let all: Vec<String> = (0..2).map(|at| site.address(at).to_owned()).collect();
    set_anywhere(&all, "first").await;
    let mut kept = vec!["first".to_owned()];

    // From etcd, and from nobody else: nodes and operators still reach it.
    let (first, term) = site.leader().await;
    site.hosts[first].cut(STORE);
    kept.extend(site.taken_over_from(first, true, "store").await);
    set(site.address(1 - first), "by-second").await.unwrap();
    kept.push("by-second".to_owned());
    site.serves(1 - first, 1).await;
    // What it has sent lies in its socket, and reaches etcd now.
    site.hosts[first].mend(STORE);
    let (second, second_term) = site.leader().await;
    assert!(second == 1 - first && second_term > term);

    // From everybody.
    site.hosts[second].cut(STORE);
    site.hosts[second].cut(SERVICE);
    kept.extend(site.taken_over_from(second, false, "both").await);
    site.serves(first, 2).await;
    site.hosts[second].mend(STORE);
    site.hosts[second].mend(SERVICE);
    let (third, third_term) = site.leader().await;
    assert!(third == first && third_term > second_term);

    // The controllers from each other, the node and the client, while both reach etcd: nobody has to take over.
    site.hosts[third].cut(SERVICE);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        site.look_up().await;
        let other = standing(site.address(1 - third)).await.unwrap();
        assert!(!other.leading && other.leader == site.address(third), "{other:?}");
    }
    let refused = set(site.address(1 - third), "nobody").await.unwrap_err();
    assert_eq!(code_of(&refused), ErrorCode::NotLeader, "{refused}");
    site.hosts[third].mend(SERVICE);
    assert_eq!(site.leader().await, (third, third_term), "it has led all the time");
    site.serves(third, 3).await;
    set(site.address(third), "last").await.unwrap();
    kept.push("last".to_owned());

    let found = tenants(site.address(third)).await;
    assert_eq!(found, kept.into_iter().collect(), "what was acknowledged, and nothing else");
}

#[test]
fn net_controllers_that_are_cut_off_do_not_lead_and_nothing_is_lost() {
    if !alone(concat!(module_path!(), "::net_controllers_that_are_cut_off_do_not_lead_and_nothing_is_lost")) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(controllers_are_cut_off());
}
