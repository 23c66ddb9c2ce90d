//! The doors of a process, and their locks: TLS on its ports, rules about who may do what, and both read again
//! while it runs.
//!
//! A role has the sections `[tls]` ([`RawTls`]) and `[auth]` ([`RawAuth`]) in its configuration, validates them with
//! [`SecurityOptions::check`], and opens them once with [`Security::open`]. What listens and what connects goes
//! through that.

use std::{
    future::pending,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus::{GaugeVec, IntCounter, IntCounterVec, Opts, Registry};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, codegen::http::Response};

use crate::{
    auth::{Access, Gate, Refused, RulesError, Table},
    config::Problems,
    expiry::Notices,
    listen::{Failures, Incoming, Lock},
    tls::{ClientAuth, Dial, H2, HTTP_1_1, Material, Reloaded, Tls, TlsError, TlsFiles},
    utc,
};

/// Between two looks at the files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// The `[tls]` section of a role's configuration. An empty string means "not given".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTls {
    /// The process' certificate, PEM; empty: plaintext.
    pub cert: String,
    /// Its private key, PEM.
    pub key: String,
    /// The authorities that callers and peers are checked against, PEM.
    pub ca: String,
    /// Whether callers show a certificate.
    pub client_auth: ClientAuth,
    /// Plaintext may leave this machine.
    pub insecure_plaintext: bool,
}

/// The `[auth]` section of a role's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawAuth {
    /// The file of rules; empty: none.
    pub rules: String,
    /// Where nobody is known, changes are taken from other machines too.
    pub insecure_remote_changes: bool,
}

/// Both sections, validated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// The files of TLS; none for plaintext.
    pub tls: Option<TlsFiles>,
    /// The file of rules.
    pub rules: Option<PathBuf>,
    /// Where nobody is known, changes are taken from other machines too.
    pub remote_changes: bool,
}

impl SecurityOptions {
    /// Validates both sections. `listens` are the addresses of the role, by their keys; `connects`, whether it
    /// connects to others. Problems are noted in `problems`, and files are not looked at.
    pub fn check(
        problems: &mut Problems,
        (tls, auth): (RawTls, RawAuth),
        listens: &[(&str, Option<SocketAddr>)],
        connects: bool,
    ) -> Self {
        let given = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let (rules, remote_changes) = (given(auth.rules), auth.insecure_remote_changes);
        problems.check(
            rules.is_none() || !remote_changes,
            "auth.insecure_remote_changes: with auth.rules they say who may change what; leave one of them out",
        );
        let RawTls { cert, key, ca, client_auth, insecure_plaintext } = tls;
        let (cert, key, ca) = (given(cert), given(key), given(ca));
        let (Some(cert), Some(key)) = (cert.clone(), key.clone()) else {
            let whole = cert.is_none() && key.is_none();
            problems.check(whole, "tls.cert and tls.key: both or neither must be given");
            problems.check(!whole || ca.is_none(), "tls.ca: without tls.cert nothing is checked against it");
            for (name, address) in open_to_others(listens) {
                let problem = format!(
                    "{name}: {address} can be reached from other machines, and without tls.cert and tls.key all of \
                     it would be plaintext: give them (`tidepool certs` makes some), or say \
                     tls.insecure_plaintext = true"
                );
                problems.check(insecure_plaintext || !whole, problem);
            }
            return Self { tls: None, rules, remote_changes };
        };
        problems.check(
            !insecure_plaintext,
            "tls.insecure_plaintext: with tls.cert nothing is plaintext; leave one of them out",
        );
        if ca.is_none() {
            problems.check(
                client_auth == ClientAuth::None,
                "tls.ca: must be given to check the certificates of callers, or tls.client_auth = \"none\"",
            );
            problems.check(!connects, "tls.ca: must be given to check whom this role connects to");
        }
        if rules.is_none() && client_auth != ClientAuth::Require {
            for (name, address) in open_to_others(listens) {
                problems.add(format!(
                    "{name}: {address} can be reached from other machines, and whoever connects may do anything: give \
                     auth.rules, or tls.client_auth = \"require\""
                ));
            }
        }
        Self { tls: Some(TlsFiles { cert, key, ca, client_auth }), rules, remote_changes }
    }
}

/// The addresses that other machines can reach, by their keys.
fn open_to_others<'a>(
    listens: &'a [(&'a str, Option<SocketAddr>)],
) -> impl Iterator<Item = (&'a str, SocketAddr)> {
    let known = listens.iter().filter_map(|(name, address)| Some((*name, (*address)?)));
    known.filter(|(_, address)| !address.ip().is_loopback())
}

/// Why a process cannot lock its doors.
#[derive(Debug, Error)]
pub enum SecurityError {
    /// Certificate, key or authorities do not do.
    #[error("TLS cannot be had")]
    Tls(#[from] TlsError),
    /// The rules do not do.
    #[error("it cannot be told who may do what")]
    Rules(#[from] RulesError),
    /// A metric could not be registered: a defect.
    #[error("could not register the metrics")]
    Metrics(#[from] prometheus::Error),
}

/// The doors of a process. Clones share them.
#[derive(Clone, Debug)]
pub struct Security {
    tls: Option<Tls>,
    access: Access,
    metrics: Metrics,
}

#[derive(Clone, Debug)]
struct Metrics {
    /// Connections with which there was no TLS.
    handshake_failures: Failures,
    /// Looks at the files of TLS that brought nothing usable.
    tls_reload_failures: IntCounter,
    /// The same for the rules.
    auth_reload_failures: IntCounter,
    /// Calls that were refused, by code.
    refused_calls: IntCounterVec,
    /// The last moment of a certificate, in Unix time.
    expires: GaugeVec,
    /// What was told of certificates that end.
    notices: Arc<Mutex<Notices>>,
}

impl Metrics {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let handshakes = IntCounter::new(
            "tidepool_tls_handshake_failures_total",
            "Connections that were refused because there was no TLS with them",
        )?;
        let tls_reload_failures = IntCounter::new(
            "tidepool_tls_reload_failures_total",
            "Changed certificates or keys that were refused; the old ones stay",
        )?;
        let auth_reload_failures = IntCounter::new(
            "tidepool_auth_reload_failures_total",
            "Changed rules that were refused; the old ones stay",
        )?;
        let opts = Opts::new(
            "tidepool_auth_refused_calls_total",
            "Calls that were refused because of who made them",
        );
        let refused_calls = IntCounterVec::new(opts, &["code"])?;
        for known in [true, false] {
            // Shown from the beginning, so that the first refusal is an increase.
            refused_calls.with_label_values(&[code(known)]);
        }
        let opts = Opts::new(
            "tidepool_tls_certificate_expires_seconds",
            "Last moment of a certificate, in Unix time",
        );
        let expires = GaugeVec::new(opts, &["certificate"])?;
        registry.register(Box::new(handshakes.clone()))?;
        registry.register(Box::new(tls_reload_failures.clone()))?;
        registry.register(Box::new(auth_reload_failures.clone()))?;
        registry.register(Box::new(refused_calls.clone()))?;
        registry.register(Box::new(expires.clone()))?;
        let handshake_failures = Failures::new(handshakes);
        let notices = Arc::default();
        Ok(Self {
            handshake_failures,
            tls_reload_failures,
            auth_reload_failures,
            refused_calls,
            expires,
            notices,
        })
    }

    /// Shows until when certificates hold, and says so in the log, once a day, when that is soon.
    fn show(&self, material: &Material) {
        self.expires.with_label_values(&["own"]).set(material.own.not_after as f64);
        if let Some(authority) = material.authority {
            self.expires.with_label_values(&["authority"]).set(authority.not_after as f64);
        }
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        for (certificate, validity) in [("own", Some(material.own)), ("authority", material.authority)] {
            let notice = validity.and_then(|validity| notices.due(certificate, validity, utc::now()));
            if let (Some(notice), Some(validity)) = (notice, validity) {
                notice.tell(certificate, validity);
            }
        }
    }
}

/// The word of the code of a refusal.
const fn code(known: bool) -> &'static str {
    if known { "forbidden" } else { "unauthenticated" }
}

impl Security {
    /// Reads certificates and rules, and shows how they fare in `registry`.
    ///
    /// # Errors
    /// [`SecurityError`] names the file, and what to do about it.
    pub fn open(options: &SecurityOptions, registry: &Registry) -> Result<Self, SecurityError> {
        let metrics = Metrics::new(registry)?;
        let tls = options.tls.clone().map(Tls::load).transpose()?;
        if let Some(tls) = &tls {
            metrics.show(&tls.material());
        }
        let access = match (&options.rules, &options.tls) {
            (Some(rules), _) => Access::by_rules(rules.clone())?,
            // Nobody is known by a token then.
            (None, Some(TlsFiles { client_auth: ClientAuth::Require | ClientAuth::Optional, .. })) => {
                Access::certified()
            }
            (None, _) => Access::open(options.remote_changes),
        };
        Ok(Self { tls, access, metrics })
    }

    /// What connections to other roles are made with.
    #[must_use]
    pub fn dial(&self) -> Dial {
        self.tls.as_ref().map_or_else(Dial::default, Tls::dial)
    }

    /// Who may do what.
    #[must_use]
    pub const fn access(&self) -> &Access {
        &self.access
    }

    /// gRPC connections that come to `tcp`.
    #[must_use]
    pub fn grpc(&self, tcp: TcpListener) -> Incoming {
        self.incoming(tcp, H2)
    }

    /// HTTP connections that come to `tcp`.
    pub(crate) fn http(&self, tcp: TcpListener) -> Incoming {
        self.incoming(tcp, HTTP_1_1)
    }

    fn incoming(&self, tcp: TcpListener, protocol: &'static [u8]) -> Incoming {
        let failures = self.metrics.handshake_failures.clone();
        Incoming::new(tcp, self.tls.clone().map(|tls| Lock { tls, protocol, failures }))
    }

    /// What stands before the services of a gRPC server: calls are those of `table`, refusals are counted and
    /// answered with what `answer` makes of them.
    #[must_use]
    pub fn gate(
        &self,
        table: Table,
        answer: impl Fn(Refused) -> Response<Body> + Send + Sync + 'static,
    ) -> Gate {
        let this = self.clone();
        Gate::new(self.access.clone(), table, move |refused| {
            this.count(&refused);
            answer(refused)
        })
    }

    /// Counts and logs a call that is refused.
    pub(crate) fn count(&self, Refused { call, caller, refusal }: &Refused) {
        self.metrics.refused_calls.with_label_values(&[code(refusal.known)]).inc();
        tracing::debug!(call, caller = %caller.name, from = ?caller.from, problem = refusal.message, "a call was refused");
    }

    /// Reads certificates and rules again, now. What is new is used from the next connection and the next call on;
    /// what does not do is told in the log, counted, and what was there stays. When somebody has `told` that the rules
    /// are whole, that is not doubted.
    pub fn reload(&self, told: bool) {
        if let Some(tls) = &self.tls {
            match tls.reload() {
                Reloaded::Unchanged => {}
                Reloaded::New => {
                    let material = tls.material();
                    tracing::info!(
                        expires = utc::format(material.own.not_after),
                        "new certificates are used"
                    );
                }
                Reloaded::Refused(problem) => {
                    self.metrics.tls_reload_failures.inc();
                    let path = tls.files().cert.display();
                    tracing::error!(%path, problem, "new certificates cannot be used; the old ones stay");
                }
            }
            self.metrics.show(&tls.material());
        }
        match self.access.reload(told) {
            Reloaded::Unchanged => {}
            Reloaded::New => tracing::info!("new rules about who may do what are used"),
            Reloaded::Refused(problem) => {
                self.metrics.auth_reload_failures.inc();
                tracing::error!(problem, "new rules about who may do what cannot be used; the old ones stay");
            }
        }
    }

    /// Looks at the files every two seconds, and on SIGHUP, until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        if self.tls.is_none() && !self.access.has_rules() {
            return;
        }
        let mut hangup = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!(%error, "SIGHUP is not handled; files are looked at by time"))
            .ok();
        let mut beat = time::interval(RELOAD_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => pending().await,
                }
            };
            let told = tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => false,
                _ = hung_up => true,
            };
            let this = self.clone();
            // Files may lie on a disk that hangs.
            if let Err(error) = tokio::task::spawn_blocking(move || this.reload(told)).await {
                tracing::error!(%error, "the look at certificates and rules failed");
            }
        }
    }

    /// For `/status`: what is locked, and until when. Nothing of it is secret.
    #[must_use]
    pub fn status(&self) -> Value {
        let tls = self.tls.as_ref().map(|tls| {
            let material = tls.material();
            json!({
                "expires": utc::format(material.own.not_after),
                "authority_expires": material.authority.map(|a| utc::format(a.not_after)),
                "client_auth": tls.files().client_auth,
                "problem": tls.problem(),
            })
        });
        json!({ "tls": tls, "rules": self.access.has_rules(), "rules_problem": self.access.problem() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(tls: RawTls, listens: &[(&str, Option<SocketAddr>)], connects: bool) -> Vec<String> {
        let mut problems = Problems::default();
        SecurityOptions::check(&mut problems, (tls, RawAuth::default()), listens, connects);
        problems.into_result().err().map(|invalid| invalid.problems).unwrap_or_default()
    }

    fn address(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    fn tls() -> RawTls {
        RawTls { cert: "c.pem".into(), key: "c.key".into(), ca: "ca.pem".into(), ..RawTls::default() }
    }

    #[test]
    fn plaintext_listens_on_loopback_unless_it_is_told_otherwise() {
        let here = [("grpc_address", address("127.0.0.1:1")), ("http_address", address("[::1]:1"))];
        assert_eq!(problems(RawTls::default(), &here, true), Vec::<String>::new());
        let both = [("grpc_address", address("10.0.0.1:1")), ("http_address", address("[::]:1"))];
        let found = problems(RawTls::default(), &both, false);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("grpc_address: 10.0.0.1:1 can be reached")
                && found[1].starts_with("http_address")
        );
        let told = RawTls { insecure_plaintext: true, ..RawTls::default() };
        assert_eq!(problems(told.clone(), &both, true), Vec::<String>::new());
        assert_eq!(problems(tls(), &both, true), Vec::<String>::new());
        let found = problems(RawTls { insecure_plaintext: true, ..tls() }, &both, true);
        assert!(found.len() == 1 && found[0].starts_with("tls.insecure_plaintext"), "{found:?}");
    }

    #[test]
    fn certificate_key_and_authority_go_together() {
        let found = problems(RawTls { key: String::new(), ..tls() }, &[], true);
        assert_eq!(found, ["tls.cert and tls.key: both or neither must be given"]);
        let found = problems(RawTls { ca: "ca.pem".into(), ..RawTls::default() }, &[], true);
        assert_eq!(found, ["tls.ca: without tls.cert nothing is checked against it"]);
        let without = |client_auth| RawTls { ca: String::new(), client_auth, ..tls() };
        assert_eq!(problems(without(ClientAuth::None), &[], false), Vec::<String>::new());
        assert_eq!(problems(without(ClientAuth::None), &[], true).len(), 1, "whom it connects to");
        assert_eq!(problems(without(ClientAuth::Require), &[], true).len(), 2);
    }
}
