//! A cluster behind locks: who is let in, who is not, and what each is told; certificates and rules that change
//! while lookups go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use serde_json::Value;
use tidepool_client::{BearerToken, Client, ClientConfig, ClientError, Connector};
use tidepool_proto::{
    code_of,
    v1::{self, control_client::ControlClient, embedding_client::EmbeddingClient},
};
use tidepool_runtime::{error::chain, tls::Dial};
use tidepool_tests::{DEADLINE, Sandbox, Shape, locks::Locks};
use tidepool_types::{ErrorCode, TableVersion};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

use crate::fixture::{self, MODEL, name};

const SMALL: Shape = Shape { groups: 1, nodes_per_group: 2 };
const TOKEN: &str = "a token that nobody must see";
/// printf %s 'a token that nobody must see' | sha256sum
const TOKEN_HASH: &str = "e9b8e3c29523435a4dcbb5ce925eb13fa620bf383b85ab8d84ed734b036ed27a";

async fn control(dial: &Dial, address: &str) -> Result<ControlClient<Channel>> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(Duration::from_secs(5));
    Ok(ControlClient::new(dial.connect(endpoint).await?))
}

/// Why the cluster cannot be looked at over `dial`: however the connection ends, all that is told.
async fn refusal(dial: &Dial, address: &str) -> String {
    let mut control = match control(dial, address).await {
        Ok(control) => control,
        Err(error) => return format!("{error:#}"),
    };
    let asked = timeout(DEADLINE, control.get_cluster(v1::GetClusterRequest {})).await.unwrap();
    chain(&asked.unwrap_err())
}

/// Why there is no connection; nothing when there is one.
async fn refusal_to_connect(dial: &Dial, address: &str) -> String {
    control(dial, address).await.err().map(|error| format!("{error:#}")).unwrap_or_default()
}

/// Asks over HTTP/1.1; gives the status and the body.
async fn http(dial: &Dial, address: &str, path: &str, token: Option<&str>) -> Result<(u16, String)> {
    let mut stream = dial.http(address).await?;
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{token}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
}

/// Waits until `ok`.
async fn wait_until(what: &str, mut ok: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !ok().await {
        assert!(Instant::now() < until, "waiting until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn bearer<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    request
}

fn token_rule(roles: &str) -> String {
    format!("\n[[token]]\nname = \"alice\"\nsha256 = \"{TOKEN_HASH}\"\n{roles}\n")
}

/// A client of the sandbox that shows `token` and no certificate.
async fn client(sandbox: &Sandbox, token: &str) -> Result<Client> {
    let dial = sandbox.locks().unwrap().dial("")?;
    let config = ClientConfig {
        controllers: vec![sandbox.controller_address().to_owned()],
        connector: Some(Connector::new(move |endpoint| dial.channel(endpoint))),
        token: Some(BearerToken::new(token)?),
        tenant: "ads".into(),
        default_timeout: DEADLINE,
        ..ClientConfig::default()
    };
    let client = Client::start(config).await?;
    client.wait_for_map(|map| map.epoch.0 > 0, DEADLINE).await?;
    Ok(client)
}

fn value(registry: &prometheus::Registry, metric: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|f| f.name() == metric).unwrap();
    // Of a certificate and its authority: the certificate.
    let is_own = |m: &&prometheus::proto::Metric| m.get_label().iter().all(|label| label.value() == "own");
    let metric = family.get_metric().iter().find(is_own).unwrap();
    metric.get_counter().get_value() + metric.get_gauge().get_value()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_works_behind_locks_and_changes_are_written_down() -> Result<()> {
    let mut sandbox = Sandbox::start_locked(SMALL).await?;
    let ranker = sandbox.start_ranker(false).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    sandbox.promote(&name(MODEL), &release.release).await?;
    let answer = sandbox.ranker(ranker).await?.rank(fixture::message(&fixture::requests()[0])).await?;
    assert_eq!(answer.into_inner().release, "r1");
    let client = sandbox.client().await?;
    let rows = client.stored_rows(&release.tables[0], &[1, 2, 3], DEADLINE).await?;
    assert!(rows.iter().any(|row| row.row.is_some()));

    // What a role's own certificate does not open stays closed to it.
    let locks = sandbox.locks().unwrap().clone();
    let mut as_node = control(&locks.dial("node")?, sandbox.controller_address()).await?;
    let promote = v1::PromoteReleaseRequest { model: MODEL.into(), release: "r1".into(), dry_run: false };
    let refused = as_node.promote_release(promote).await.unwrap_err();
    assert_eq!((refused.code(), code_of(&refused)), (Code::PermissionDenied, ErrorCode::Forbidden));
    assert_eq!(
        refused.message(),
        "/tidepool.v1.Control/PromoteRelease needs the role write; node has only node"
    );

    let mut lines: Vec<Value> = Vec::new();
    wait_until("the refusal is written down", async || {
        lines = sandbox.audit_log().unwrap();
        lines.len() >= 5
    })
    .await;
    let begun = |at: usize| (&lines[at]["outcome"], &lines[at]["change"], &lines[at]["epoch"]);
    for at in [0, 2] {
        let what = &lines[at + 1];
        let same = (&lines[at]["what"], &lines[at]["change"]) == (&what["what"], &what["change"]);
        assert!(begun(at).0 == "begun" && same && begun(at).2.as_u64() < what["epoch"].as_u64(), "{lines:?}");
    }
    lines.retain(|line| line["outcome"] != "begun");
    assert_eq!(lines[2]["what"]["calls"], 1);
    let told: Vec<_> = lines
        .iter()
        .map(|line| ["who", "known_by", "action", "outcome"].map(|key| line[key].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            ["client", "certificate", "publish_release", "ok"],
            ["client", "certificate", "promote_release", "ok"],
            ["node", "certificate", "refused", "forbidden"]
        ]
    );
    assert_eq!(lines[1]["what"], serde_json::json!({ "model": MODEL, "release": "r1", "dry_run": false }));
    assert!(lines[1]["epoch"].as_u64() > lines[0]["epoch"].as_u64());
    assert!(lines[0]["from"].as_str().unwrap().starts_with("127.0.0.1:"));

    // HTTP: whether it lives is for everyone, the rest for those who may read.
    let address = sandbox.ranker_http(ranker).to_string();
    let (stranger, admin) = (locks.dial("")?, locks.dial("client")?);
    assert_eq!(http(&stranger, &address, "/readyz", None).await?.0, 200);
    let (status, body) = http(&stranger, &address, "/metrics", None).await?;
    assert_eq!(status, 401);
    assert!(body.contains("\"unauthenticated\"") && body.contains("needs the role read"), "{body}");
    assert_eq!(http(&locks.dial("node")?, &address, "/status", None).await?.0, 403);
    assert_eq!(http(&admin, &address, "/metrics", None).await?.0, 200);
    let (_, status) = http(&admin, &address, "/status", None).await?;
    assert_eq!(serde_json::from_str::<Value>(&status)?["security"]["rules"], true);
    assert!(http(&Dial::default(), &address, "/readyz", None).await.is_err(), "plaintext");
    sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_strangers_and_expired_certificates_are_refused_and_told_why() -> Result<()> {
    let sandbox = Sandbox::start_locked(SMALL).await?;
    let address = sandbox.controller_address();
    let locks = sandbox.locks().unwrap();
    let said = refusal(&Dial::default(), address).await;
    assert!(!said.is_empty(), "plaintext: {said}");
    let other = tempfile::TempDir::new()?;
    let others = Locks::make(&other.path().join("certs"))?;
    // We do not know who signed theirs.
    let said = refusal(&others.dial("client")?, address).await;
    assert!(said.contains("invalid peer certificate") && said.contains(address), "{said}");
    // They do not know who signed ours.
    std::fs::copy(locks.file("ca.pem"), others.file("ca.pem"))?;
    let said = refusal(&others.dial("client")?, address).await;
    assert!(
        said.contains("received fatal alert") && said.contains("does not accept our certificate"),
        "{said}"
    );
    // Nobody at all.
    let said = refusal(&locks.dial("")?, address).await;
    assert!(said.contains("needs the role read") && said.contains("bearer token"), "{said}");

    // One that ends while the process runs: it does not even knock. It is as good as any until another takes its place.
    let short = tempfile::TempDir::new()?;
    let dir = short.path().join("certs");
    std::fs::create_dir(&dir)?;
    for file in ["ca.pem", "ca.key"] {
        std::fs::copy(locks.file(file), dir.join(file))?;
    }
    let short = Locks::make(&dir)?;
    let dial = short.dial_of_now("client")?;
    control(&dial, address).await?.get_cluster(v1::GetClusterRequest {}).await?;
    // That one holds to the end of this second. In its last moment it may still be shown, and be refused there.
    short.renew(Duration::ZERO)?;
    let mut said = String::new();
    wait_until("the certificate has ended", async || {
        said = refusal_to_connect(&dial, address).await;
        said.contains("client.pem expired on 20")
    })
    .await;
    assert!(said.contains("no connection to") && said.contains("put a new one there"), "{said}");
    // And at the start of a program.
    let said = format!("{:#}", short.dial("client").unwrap_err());
    assert!(said.contains("client.pem expired on 20"), "{said}");
    let registries = sandbox.registries();
    assert!(value(&registries[0], "tidepool_tls_handshake_failures_total") >= 2.0);
    sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_what_its_rule_says_and_rules_change_while_the_cluster_runs() -> Result<()> {
    let mut sandbox = Sandbox::start_locked(SMALL).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    sandbox.serve(&release.tables[0]).await?;
    let locks = sandbox.locks().unwrap().clone();
    let mut control = control(&locks.dial("")?, sandbox.controller_address()).await?;
    let refused = control.get_cluster(bearer(v1::GetClusterRequest {})).await.unwrap_err();
    assert_eq!((refused.code(), code_of(&refused)), (Code::Unauthenticated, ErrorCode::Unauthenticated));
    assert!(!refused.message().contains(TOKEN));

    locks.add_rules(&token_rule("roles = [\"read\"]"))?;
    wait_until("the token is known", async || {
        control.get_cluster(bearer(v1::GetClusterRequest {})).await.is_ok()
    })
    .await;
    let quota = v1::QuotaRule { tenant: "ads".into(), quota: None };
    let refused = control.set_quota(bearer(quota)).await.unwrap_err();
    assert_eq!((refused.code(), code_of(&refused)), (Code::PermissionDenied, ErrorCode::Forbidden));
    assert_eq!(refused.message(), "/tidepool.v1.Control/SetQuota needs the role admin; alice has only read");

    // A tenant may look up, in its own name.
    // The last of them is the token's.
    locks.edit_rules(|rules| {
        let (others, own) = rules.rsplit_once("[[token]]").unwrap();
        let own = own.replace("roles = [\"read\"]\n", "roles = [\"tenant\"]\ntenants = [\"ads\"]\n");
        format!("{others}[[token]]{own}")
    })?;
    wait_until("the token is a tenant's", async || {
        control.get_cluster(bearer(v1::GetClusterRequest {})).await.is_err()
    })
    .await;
    let node = sandbox.nodes().next().unwrap().grpc_address;
    let endpoint = Endpoint::from_shared(format!("http://{node}"))?;
    let mut embedding = EmbeddingClient::new(locks.dial("")?.connect(endpoint).await?);
    let lookup = |tenant: &str| bearer(v1::LookupRequest { tenant: tenant.into(), ..Default::default() });
    wait_until("the node knows the tenant", async || embedding.lookup(lookup("ads")).await.is_ok()).await;
    let refused = embedding.lookup(lookup("search")).await.unwrap_err();
    assert_eq!(code_of(&refused), ErrorCode::Forbidden);
    assert!(
        refused.message().starts_with("alice may not ask in the name of tenant \"search\""),
        "{refused:?}"
    );
    let refused = embedding.lookup(v1::LookupRequest::default()).await.unwrap_err();
    assert_eq!(code_of(&refused), ErrorCode::Unauthenticated);
    // With a certificate beside it, the token decides: it is not added to what an administrator may do.
    let mut both = self::control(&locks.dial("client")?, sandbox.controller_address()).await?;
    both.get_cluster(v1::GetClusterRequest {}).await?;
    let refused = both.get_cluster(bearer(v1::GetClusterRequest {})).await.unwrap_err();
    assert!(refused.message().ends_with("needs the role read; alice has only tenant"), "{refused:?}");

    // A ranker asks nodes in its own right, so it checks the name itself.
    let ranker = sandbox.start_ranker(false).await?;
    let mut ranker = sandbox.ranker(ranker).await?;
    for (tenant, refused) in [("search", true), ("", true), ("ads", false)] {
        let asked = v1::RankRequest { tenant: tenant.into(), ..fixture::message(&fixture::requests()[0]) };
        let answer = ranker.rank(bearer(asked)).await;
        let forbidden = answer.as_ref().is_err_and(|status| code_of(status) == ErrorCode::Forbidden);
        assert_eq!(forbidden, refused, "{tenant:?}: {answer:?}");
    }

    let tenant = client(&sandbox, TOKEN).await?;
    wait_until("both nodes know the tenant", async || {
        tenant.stored_rows(&release.tables[0], &[1, 2, 3, 4, 5], DEADLINE).await.is_ok()
    })
    .await;
    let wrong = client(&sandbox, "another token of some length");
    let error = timeout(Duration::from_secs(1), wrong).await;
    assert!(error.is_err() || error.is_ok_and(|client| client.is_err()), "nobody knows it");
    sandbox.stop().await
}

/// A stream of one message that stays open.
fn and_no_more<T: Send + 'static>(message: T) -> impl futures::Stream<Item = T> + Send + 'static {
    stream::iter([message]).chain(stream::pending())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_taken_out_of_the_rules_loses_what_is_open() -> Result<()> {
    let sandbox = Sandbox::start_locked(SMALL).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    sandbox.serve(&release.tables[0]).await?;
    let locks = sandbox.locks().unwrap().clone();
    let roles = "roles = [\"read\", \"tenant\", \"node\", \"ranker\"]";
    locks.add_rules(&token_rule(roles))?;
    let mut control = control(&locks.dial("")?, sandbox.controller_address()).await?;
    wait_until("the token is known", async || {
        control.get_cluster(bearer(v1::GetClusterRequest {})).await.is_ok()
    })
    .await;
    let node = sandbox.nodes().next().unwrap().grpc_address;
    let endpoint = Endpoint::from_shared(format!("http://{node}"))?;
    let mut embedding = EmbeddingClient::new(locks.dial("")?.connect(endpoint).await?);
    let lookup = v1::LookupRequest::default();
    wait_until("the node knows it too", async || embedding.lookup(bearer(lookup.clone())).await.is_ok())
        .await;

    let mut map = control.watch_map(bearer(v1::WatchMapRequest { have_epoch: 0 })).await?.into_inner();
    map.message().await?.context("a map")?;
    let ranker = v1::RankerReport {
        ranker: "guest".into(),
        grpc_address: "guest:1".into(),
        ..v1::RankerReport::default()
    };
    let mut session = control.ranker_session(bearer(and_no_more(ranker))).await?.into_inner();
    session.message().await?.context("a map")?;
    let node = v1::NodeReport {
        node: "guest".into(),
        group: "guests".into(),
        grpc_address: "guest:1".into(),
        ..v1::NodeReport::default()
    };
    let mut node_session = control.node_session(bearer(and_no_more(node))).await?.into_inner();
    node_session.message().await?.context("an assignment")?;
    let mut answers = embedding.lookup_stream(bearer(and_no_more(lookup))).await?.into_inner();
    answers.message().await?.context("an answer")?;

    // A change of the rules that leaves it what it needs ends nothing.
    locks.add_rules("\n[[certificate]]\nname = \"another\"\nroles = [\"read\"]\n")?;
    locks.edit_rules(|rules| rules.replace(TOKEN_HASH, &"0".repeat(64)))?;
    let lost = |status: tonic::Status| {
        assert_eq!((status.code(), code_of(&status)), (Code::PermissionDenied, ErrorCode::Forbidden));
        assert!(status.message().contains("the rules have changed while this was open"), "{status:?}");
        assert!(!status.message().contains(TOKEN_HASH), "{status:?}");
    };
    // Maps and assignments that came before are read first.
    let end = async {
        loop {
            if let Err(status) = map.message().await {
                break lost(status);
            }
        }
        loop {
            if let Err(status) = session.message().await {
                break lost(status);
            }
        }
        loop {
            if let Err(status) = node_session.message().await {
                break lost(status);
            }
        }
        lost(answers.message().await.unwrap_err());
    };
    timeout(DEADLINE, end).await.context("something goes on")?;
    // The cluster's own go on.
    sandbox.client().await?.stored_rows(&release.tables[0], &[1, 2, 3], DEADLINE).await?;
    sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_rules_is_not_taken_and_the_cluster_goes_on() -> Result<()> {
    let sandbox = Sandbox::start_locked(SMALL).await?;
    let locks = sandbox.locks().unwrap().clone();
    let path = locks.file("rules.toml");
    let rules = std::fs::read_to_string(&path)?;
    // As a copy that a full disk has cut off: it has a rule, and is the controller's only.
    std::fs::write(&path, &rules[..rules.find("[[certificate]]\nname = \"node\"").unwrap()])?;
    let registries = sandbox.registries();
    wait_until("everyone has seen it", async || {
        registries.iter().all(|r| value(r, "tidepool_auth_reload_failures_total") == 1.0)
    })
    .await;
    let mut control = control(&locks.dial("client")?, sandbox.controller_address()).await?;
    let cluster = control.get_cluster(v1::GetClusterRequest {}).await?.into_inner();
    assert!(cluster.map.unwrap().nodes.iter().all(|node| node.up));
    locks.edit_rules(|_| rules)?;
    sandbox.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_end_stop_nothing_that_is_open_and_newcomers_are_told() -> Result<()> {
    let sandbox = Sandbox::start_locked(SMALL).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    let table = release.tables[0].clone();
    sandbox.serve(&table).await?;
    let locks = sandbox.locks().unwrap().clone();
    // Both hold what they had read before: their own certificates go on.
    let (client, dial) = (sandbox.client().await?, locks.dial("client")?);
    client.stored_rows(&table, &[1, 2, 3, 4, 5], DEADLINE).await?;
    let address = sandbox.controller_address();
    let registries = sandbox.registries();
    let expires = || -> Vec<f64> {
        registries.iter().map(|r| value(r, "tidepool_tls_certificate_expires_seconds")).collect()
    };
    let before = expires();
    locks.renew(Duration::from_secs(10))?;
    wait_until("everyone has read the short ones", async || {
        expires().iter().zip(&before).all(|(now, before)| now != before)
    })
    .await;
    let mut said = String::new();
    wait_until("they have ended", async || {
        client.stored_rows(&table, &[1, 2, 3, 4, 5], DEADLINE).await.unwrap();
        said = match control(&dial, address).await {
            Ok(_) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        said.contains("expired")
    })
    .await;
    assert!(said.contains("the certificate there has expired: put a new one in its place"), "{said}");
    for _ in 0..50 {
        client.stored_rows(&table, &[1, 2, 3, 4, 5], DEADLINE).await?;
    }
    locks.renew(Duration::from_secs(400 * 24 * 3600))?;
    wait_until("newcomers are let in again", async || control(&dial, address).await.is_ok()).await;
    sandbox.stop().await
}

/// Looks up, over and over, until it is told to stop; every other lookup over a connection of its own.
async fn look_up(
    client: Client,
    sandbox_client: impl AsyncFn() -> Result<Client>,
    table: TableVersion,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let fresh = sandbox_client().await?;
        for client in [&client, &fresh] {
            let rows = client.stored_rows(&table, &[1, 2, 3, 4, 5, 6, 7], DEADLINE).await;
            rows.map_err(|error: ClientError| anyhow::anyhow!(chain(&error)))?;
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_while_lookups_go_on() -> Result<()> {
    let sandbox = Sandbox::start_locked(SMALL).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    let table = release.tables[0].clone();
    sandbox.serve(&table).await?;
    let locks = sandbox.locks().unwrap().clone();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let controllers = vec![sandbox.controller_address().to_owned()];
    // It reads the files anew for each client, as a new process would.
    let fresh = async move || {
        let dial = locks.dial("client")?;
        let connector = Some(Connector::new(move |endpoint| dial.channel(endpoint)));
        let config = ClientConfig { controllers: controllers.clone(), connector, ..ClientConfig::default() };
        let client = Client::start(config).await?;
        client.wait_for_map(|map| map.epoch.0 > 0, DEADLINE).await?;
        anyhow::Ok(client)
    };
    let first = sandbox.client().await?;
    let looking = look_up(first, fresh, table, stop.clone(), done.clone());
    let changing = async {
        let registries = sandbox.registries();
        let expires = || -> Vec<f64> {
            registries.iter().map(|r| value(r, "tidepool_tls_certificate_expires_seconds")).collect()
        };
        let more = async |count: u64| {
            let from = done.load(Ordering::Relaxed);
            wait_until("lookups go on", async || done.load(Ordering::Relaxed) >= from + count).await;
        };
        more(10).await;
        let before = expires();
        let locks = sandbox.locks().unwrap();
        locks.renew(Duration::from_secs(400 * 24 * 3600))?;
        wait_until("everyone has read the new certificates", async || {
            expires().iter().zip(&before).all(|(now, before)| now != before)
        })
        .await;
        more(10).await;
        // A certificate that is none: the last one stays, and everyone says so.
        let renewed = expires();
        for holder in ["controller", "node"] {
            locks.damage(&format!("{holder}.pem"))?;
        }
        wait_until("everyone has refused the damaged ones", async || {
            registries.iter().all(|r| value(r, "tidepool_tls_reload_failures_total") == 1.0)
        })
        .await;
        more(10).await;
        assert_eq!(expires(), renewed);
        locks.renew(Duration::from_secs(500 * 24 * 3600))?;
        wait_until("everyone has read the good ones", async || {
            expires().iter().zip(&renewed).all(|(now, before)| now != before)
        })
        .await;
        more(10).await;
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (looked, changed) = tokio::join!(looking, changing);
    changed?;
    looked.context("no lookup fails")?;
    sandbox.stop().await
}
