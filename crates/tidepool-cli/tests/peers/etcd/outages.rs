//! Controllers as processes on one etcd: killed, stopped in mid-work, and left without etcd.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;
use tidepool_client::{Client, ClientConfig};
use tidepool_proto::{
    code_of, leader_of,
    v1::{self, control_client::ControlClient, controllers_client::ControllersClient},
};
use tidepool_types::{ErrorCode, Name, TableVersion};
use tonic::{Status, transport::Endpoint};

use super::server::Etcd;
use crate::command::{DEADLINE, Role, failure, json, keys, node_keys};

/// A lease of 2 seconds, which etcd ends within another, and the campaign.
const TAKEN_OVER: Duration = Duration::from_secs(8);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

struct Site {
    dir: TempDir,
    etcd: Etcd,
    controllers: Vec<Role>,
}

impl Site {
    fn start(controllers: usize) -> Self {
        let dir = TempDir::new().unwrap();
        let etcd = Etcd::start(dir.path());
        let mut site = Self { dir, etcd, controllers: Vec::new() };
        for number in 0..controllers {
            let at = site.dir.path().join(format!("c-{number}"));
            fs::create_dir_all(&at).unwrap();
            let more = [
                ("metastore", "etcd".to_owned()),
                ("etcd_endpoints", format!("[{:?}]", site.etcd.endpoint())),
                ("etcd_timeout_ms", "500".to_owned()),
                ("leader_lease_seconds", "2".to_owned()),
                ("reconnect_grace_ms", "2000".to_owned()),
                ("group_settle_ms", "0".to_owned()),
            ];
            let keys = [keys(&at, &site.dir.path().join("store"), "controller"), more.to_vec()].concat();
            site.controllers.push(Role::start(&at, "controller", &keys));
        }
        site
    }

    fn addresses(&self) -> Vec<String> {
        self.controllers.iter().map(|c| c.grpc_address.clone()).collect()
    }

    /// Which controller leads, once one does.
    async fn leader(&self) -> usize {
        let until = Instant::now() + DEADLINE;
        loop {
            for (at, address) in self.addresses().iter().enumerate() {
                if standing(address).await.is_some_and(|s| s.leading) {
                    return at;
                }
            }
            assert!(Instant::now() < until, "nobody leads");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) async fn endpoint(address: &str) -> Option<tonic::transport::Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_timeout(CALL_TIMEOUT).timeout(CALL_TIMEOUT).connect().await.ok()
}

pub(crate) async fn standing(address: &str) -> Option<v1::Standing> {
    let mut client = ControllersClient::new(endpoint(address).await?);
    Some(client.get_standing(v1::GetStandingRequest {}).await.ok()?.into_inner())
}

/// Gives a tenant a quota at one controller.
pub(crate) async fn set(address: &str, tenant: &str) -> Result<v1::Quotas, Status> {
    let channel = endpoint(address).await.ok_or_else(|| Status::unavailable("nobody is there"))?;
    let quota = Some(v1::Quota { rows_per_second: 7, bytes_per_second: 0 });
    let rule = v1::QuotaRule { tenant: tenant.to_owned(), quota };
    Ok(ControlClient::new(channel).set_quota(rule).await?.into_inner())
}

/// Gives a tenant a quota at whichever controller takes it. How long that took.
pub(crate) async fn set_anywhere(addresses: &[String], tenant: &str) -> Duration {
    let began = Instant::now();
    loop {
        for address in addresses {
            match set(address, tenant).await {
                Ok(_) => return began.elapsed(),
                Err(status) => {
                    let code = code_of(&status);
                    let passing = [ErrorCode::NotLeader, ErrorCode::Unavailable, ErrorCode::DeadlineExceeded];
                    assert!(passing.contains(&code), "{address}: {status}");
                }
            }
        }
        assert!(began.elapsed() < DEADLINE, "nobody takes it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn tenants(address: &str) -> BTreeSet<String> {
    let mut client = ControlClient::new(endpoint(address).await.unwrap());
    let quotas = client.list_quotas(v1::ListQuotasRequest {}).await.unwrap().into_inner();
    quotas.rules.into_iter().map(|rule| rule.tenant).collect()
}

fn signal(role: &Role, signal: &str) {
    assert!(Command::new("kill").args([signal, &role.pid().to_string()]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_controllers_are_killed_in_mid_write_and_nothing_acknowledged_is_lost() {
    let mut site = Site::start(3);
    let first = site.leader().await;
    // Whoever is asked says who leads, and the command goes there.
    let follower = site.addresses()[(first + 1) % 3].clone();
    let until = Instant::now() + DEADLINE;
    loop {
        let refused = set(&follower, "x").await.unwrap_err();
        assert_eq!(code_of(&refused), ErrorCode::NotLeader);
        // It may not have been told yet who was elected.
        if let Some(leader) = leader_of(&refused) {
            assert_eq!(leader, site.addresses()[first]);
            break;
        }
        assert!(Instant::now() < until, "the follower is never told who leads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (code, said) =
        json(&["--controller", &follower, "quota", "set", "by-command", "--rows-per-second", "5"]);
    assert_eq!((code, &said["quotas"][0]["tenant"]), (0, &json!("by-command")));

    let mut acknowledged = BTreeSet::from(["by-command".to_owned()]);
    let mut terms = BTreeMap::<u64, BTreeSet<String>>::new();
    let mut number = 0;
    while site.controllers.len() > 1 {
        let addresses = site.addresses();
        let leader = site.leader().await;
        let says = standing(&addresses[leader]).await.unwrap();
        terms.entry(says.term).or_default().insert(addresses[leader].clone());
        // The leader is killed while requests are on their way to it.
        let killed = site.controllers.remove(leader);
        let writers = (0..4u32).map(|writer| {
            let addresses = addresses.clone();
            tokio::spawn(async move {
                let (mut done, mut longest) = (Vec::new(), Duration::ZERO);
                for at in 0..25 {
                    let tenant = format!("t{number}-{writer}-{at}");
                    longest = longest.max(set_anywhere(&addresses, &tenant).await);
                    done.push(tenant);
                }
                (done, longest)
            })
        });
        let writers: Vec<_> = writers.collect();
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(killed);
        for writer in writers {
            let (done, longest) = writer.await.unwrap();
            assert!(longest < TAKEN_OVER, "nobody took a change for {longest:?}");
            acknowledged.extend(done);
        }
        number += 1;
    }
    let last = site.leader().await;
    let address = &site.addresses()[last];
    terms.entry(standing(address).await.unwrap().term).or_default().insert(address.clone());
    assert_eq!(terms.len(), 3, "{terms:?}");
    assert!(terms.values().all(|leaders| leaders.len() == 1), "{terms:?}");
    let kept = tenants(address).await;
    let lost: Vec<_> = acknowledged.difference(&kept).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(acknowledged.len(), 201);
    // A stop in good order gives the lead back.
    assert_eq!(site.controllers.remove(last).terminate(), 0);
    assert_eq!(site.etcd.keys("/tidepool/leader"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_a_leader_that_was_stopped_past_its_lease_writes_nothing_when_it_goes_on() {
    let site = Site::start(2);
    let first = site.leader().await;
    let [stopped, other] = [first, 1 - first].map(|at| site.addresses()[at].clone());
    set(&stopped, "before").await.unwrap();
    let quota = Some(v1::Quota { rows_per_second: 9, bytes_per_second: 0 });
    let channel = Endpoint::from_shared(format!("http://{stopped}")).unwrap().connect().await.unwrap();
    signal(&site.controllers[first], "-STOP");
    // It lies in its socket, and is read when the process goes on.
    let pending = tokio::spawn(async move {
        let rule = v1::QuotaRule { tenant: "too-late".into(), quota };
        ControlClient::new(channel).set_quota(rule).await
    });
    let began = Instant::now();
    while standing(&other).await.is_none_or(|s| !s.leading) {
        assert!(began.elapsed() < TAKEN_OVER, "nobody takes over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    set(&other, "meanwhile").await.unwrap();
    signal(&site.controllers[first], "-CONT");
    let refused = pending.await.unwrap().unwrap_err();
    assert_eq!(code_of(&refused), ErrorCode::NotLeader, "{refused}");
    let kept = tenants(&other).await;
    assert_eq!(kept, BTreeSet::from(["before".to_owned(), "meanwhile".to_owned()]));
    // It follows now, and can lead again.
    let until = Instant::now() + DEADLINE;
    while standing(&stopped).await.is_none_or(|s| s.leader != other) {
        assert!(Instant::now() < until, "it does not know who leads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_is_gone_for_ten_seconds_and_lookups_go_on() {
    let mut site = Site::start(2);
    let (dir, store) = (site.dir.path().to_owned(), site.dir.path().join("store"));
    let csv = dir.join("users.csv");
    fs::write(&csv, "id,a,b,c,d,e,f,g,h\n42,-1,-0.5,0,0.25,0.5,1,2,3\n7,0,0,0,0,0,0,0,0\n").unwrap();
    let (csv, of_store) = (csv.to_str().unwrap().to_owned(), store.to_str().unwrap().to_owned());
    assert_eq!(json(&["table", "build", "user@v1", "--from", &csv, "--store", &of_store]).0, 0);
    let addresses = site.addresses();
    // The node is told of one that does not lead only: it finds the other.
    let leader = site.leader().await;
    let node = Role::start(&dir, "node", &node_keys(&dir, &store, &[&addresses[1 - leader]]));
    let all = addresses.join(",");
    assert_eq!(json(&["--controller", &all, "table", "serve", "user@v1"]).0, 0);
    let config = ClientConfig { controllers: addresses.clone(), ..ClientConfig::default() };
    let client = Client::start(config).await.unwrap();
    let users = TableVersion { table: Name::new("user").unwrap(), version: Name::new("v1").unwrap() };
    client.wait_for_map(|map| map.layout(&users).is_some(), DEADLINE).await.unwrap();
    let epoch = client.stored_rows(&users, &[42], CALL_TIMEOUT).await.unwrap().len();
    assert_eq!(epoch, 1);

    site.etcd.kill();
    let (began, mut lookups, mut leaderless) = (Instant::now(), 0, false);
    while began.elapsed() < Duration::from_secs(10) {
        let rows = client.stored_rows(&users, &[42, 7, 99], CALL_TIMEOUT).await.unwrap();
        assert!(rows[0].row.is_some() && rows[2].row.is_none());
        lookups += 1;
        if began.elapsed() > Duration::from_secs(4) && !leaderless {
            // It has given the lead up by itself, and says why nobody leads.
            for address in &addresses {
                let refused = set(address, "nobody").await.unwrap_err();
                assert_eq!(code_of(&refused), ErrorCode::NotLeader, "{refused}");
                assert!(refused.message().contains("etcd"), "{refused}");
            }
            leaderless = true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(lookups > 50 && leaderless);
    let (code, text) = failure(&["--controller", "127.0.0.1:1", "quota", "list"]);
    assert!(code == 1 && text.contains("127.0.0.1:1"), "{text}");
    site.etcd.run();
    assert!(set_anywhere(&addresses, "after").await < TAKEN_OVER);
    // The node is back with whoever leads, and nothing has moved.
    let (code, served) = json(&["--controller", &all, "table", "serve", "user@v1"]);
    assert_eq!((code, &served["serving"]), (0, &json!(true)));
    assert_eq!(node.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_a_backup_is_put_back_when_no_controller_leads() {
    let mut site = Site::start(1);
    let leader = site.leader().await;
    let address = site.addresses()[leader].clone();
    set(&address, "early").await.unwrap();
    let file = site.dir.path().join("backup");
    let file = file.to_str().unwrap();
    let endpoints = format!("etcd_endpoints=[{:?}]", site.etcd.endpoint());
    let place = ["--set", "metastore=etcd", "--set", &endpoints];
    let of = |args: &[&str]| json(&[&["metastore"], args, &place].concat());
    assert_eq!(of(&["backup", file]).0, 0);
    set(&address, "late").await.unwrap();
    let (code, text) = failure(&[&["metastore", "restore", file, "--yes"], &place[..]].concat());
    assert!(code == 1 && text.contains(&address) && text.contains("stop every controller"), "{text}");
    let again = failure(&[&["metastore", "backup", file], &place[..]].concat());
    assert!(again.0 == 1 && again.1.contains("never overwritten"), "{again:?}");
    assert_eq!(site.controllers.remove(leader).terminate(), 0);
    let unsure = failure(&[&["metastore", "restore", file], &place[..]].concat());
    assert!(unsure.0 == 1 && unsure.1.contains("--yes"), "{unsure:?}");
    let (code, restored) = of(&["restore", file, "--yes"]);
    assert_eq!((code, &restored["contents"]["incarnation"]), (0, &json!(1)));
    assert_eq!(site.etcd.keys("/tidepool/leader"), Vec::<String>::new());
}
