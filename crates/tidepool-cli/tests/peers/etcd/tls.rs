//! An etcd that speaks TLS, and only with whoever shows a certificate.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;
use tidepool_controller::metastore::{Election, EtcdElection, EtcdOptions, MetastoreError};
use tidepool_runtime::tls::ClientFiles;

use super::{
    server::Etcd,
    stores::{candidate, options, with},
};
use crate::command::{DEADLINE, Role, failure, http_get, json, keys};

fn certs(dir: &Path) -> String {
    let certs = dir.join("certs").to_str().unwrap().to_owned();
    assert_eq!(json(&["certs", "--dir", &certs]).0, 0);
    certs
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_over_tls_knows_whom_it_speaks_with() {
    let dir = TempDir::new().unwrap();
    let certs = certs(dir.path());
    let etcd = Etcd::start_with_tls(dir.path(), Path::new(&certs));
    let mut election = candidate(&etcd, "c-1:7400");
    let elected = election.campaign(&|_| {}).await.unwrap();
    let (elected, revision) = with(elected, |store| store.store(0, &vec![7; 3 << 20]).unwrap()).await;
    // Renewed over TLS, and by files that are read again: a new certificate needs no restart.
    assert_eq!(json(&["certs", "--dir", &certs, "--force"]).0, 0);
    let long = Instant::now() + Duration::from_secs(3);
    while Instant::now() < long {
        assert!(elected.lease.is_held());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, found) = with(elected, |store| store.load().unwrap().unwrap()).await;
    assert_eq!((found.revision, found.document.len()), (revision, 3 << 20));
    election.resign().await;

    // Without a certificate etcd does not speak, and to somebody else's etcd we do not.
    let elsewhere = TempDir::new().unwrap();
    let other = crate::etcd::tls::certs(elsewhere.path());
    let files = |ca: &str, own| ClientFiles { ca: Path::new(ca).join("ca.pem"), own };
    for (tls, problem) in [
        (files(&certs, None), "does not accept our certificate, or wants one"),
        (files(&other, None), "no TLS"),
    ] {
        let options = EtcdOptions { tls: Some(tls), ..options(&etcd) };
        let error = EtcdElection::new(&options, "c-2:7400".to_owned()).unwrap().leader().await.unwrap_err();
        assert!(matches!(error, MetastoreError::Etcd { .. }));
        let text = tidepool_runtime::error::chain(&error);
        assert!(text.contains(problem) && text.contains(&etcd.endpoint()), "{text}");
    }
    let missing = EtcdOptions { tls: Some(files("/nowhere", None)), ..options(&etcd) };
    let error = EtcdElection::new(&missing, "c-2:7400".to_owned()).unwrap_err();
    assert!(tidepool_runtime::error::chain(&error).contains("/nowhere/ca.pem"), "{error}");
}

#[test]
fn etcd_over_tls_a_controller_leads_and_no_key_is_in_its_log() {
    let dir = TempDir::new().unwrap();
    let certs = certs(dir.path());
    let etcd = Etcd::start_with_tls(dir.path(), Path::new(&certs));
    let of_etcd = [
        ("metastore", "etcd".to_owned()),
        ("etcd_endpoints", format!("[{:?}]", etcd.endpoint())),
        ("etcd_ca", format!("{certs}/ca.pem")),
        ("etcd_certificate", format!("{certs}/controller.pem")),
        ("etcd_key", format!("{certs}/controller.key")),
        ("leader_lease_seconds", "4".to_owned()),
    ];
    let keys = [keys(dir.path(), &dir.path().join("store"), "controller"), of_etcd.to_vec()].concat();
    let controller = Role::start(dir.path(), "controller", &keys);
    let until = Instant::now() + DEADLINE;
    let set = ["--controller", &controller.grpc_address, "quota", "set", "ads", "--rows-per-second", "5"];
    while json(&set).0 != 0 {
        assert!(Instant::now() < until, "it does not lead: {}", fs::read_to_string(&controller.log).unwrap());
    }
    let key = fs::read_to_string(format!("{certs}/controller.key")).unwrap();
    let secret = key.lines().find(|line| !line.starts_with("-----")).unwrap();
    for said in [fs::read_to_string(&controller.log).unwrap(), http_get(&controller.http_address, "/status")]
    {
        assert!(!said.contains(secret));
    }

    // A restore that is refused leaves nothing behind.
    let place: Vec<String> =
        of_etcd.iter().flat_map(|(key, value)| ["--set".into(), format!("{key}={value}")]).collect();
    let place: Vec<&str> = place.iter().map(String::as_str).collect();
    let file = dir.path().join("backup").to_str().unwrap().to_owned();
    assert_eq!(json(&[&["metastore", "backup", &file], &place[..]].concat()).0, 0);
    assert_eq!(controller.terminate(), 0);
    let restore = |incarnation: &str| {
        [&["metastore", "restore", file.as_str(), "--yes", "--incarnation", incarnation], &place[..]]
            .concat()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let args = restore("0");
    let (code, text) = failure(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(code == 1 && text.contains("at least 1"), "{text}");
    assert_eq!(etcd.keys("/tidepool/leader"), Vec::<String>::new());
    let args = restore("4");
    let (code, restored) = json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((code, &restored["contents"]["incarnation"]), (0, &json!(4)));
    assert_eq!(etcd.keys("/tidepool/leader"), Vec::<String>::new());
}
