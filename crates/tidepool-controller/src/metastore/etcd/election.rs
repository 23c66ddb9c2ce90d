//! Who leads, by a key in etcd that lives by a lease.

use std::time::{Duration, Instant};

use tidepool_runtime::error::chain;
use tokio::{runtime::Handle, task::JoinHandle, time};

use super::{
    EtcdOptions, Keys,
    client::{Etcd, Granted, created_at, put, read},
    pb::etcdserverpb::{TxnRequest, response_op::Response},
    store::{EtcdMetastore, History, Known, load},
};
use crate::metastore::{Elected, Election, Lease, MetastoreError, Seen, Versioned};

/// A lease is renewed so many times while it lasts.
const BEATS_PER_LEASE: u32 = 4;
/// Between two looks at who leads, when the first has brought nothing: it doubles up to the second.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The end of a lease is reckoned earlier by one part in so many: clocks do not run alike.
const MARGIN: u32 = 5;

/// Candidate for the leadership in one etcd cluster under one prefix.
#[derive(Debug)]
pub struct EtcdElection {
    etcd: Etcd,
    keys: Keys,
    ttl: Duration,
    compact_every: u64,
    /// `host:port` by which others find this controller.
    address: String,
    /// The leases that may still hold a key of ours.
    owed: Vec<i64>,
    beats: Option<JoinHandle<()>>,
    held: Option<Lease>,
}

impl EtcdElection {
    /// A candidate that is found at `address`.
    ///
    /// # Errors
    /// [`MetastoreError::Endpoint`]; [`MetastoreError::Tls`].
    pub fn new(options: &EtcdOptions, address: String) -> Result<Self, MetastoreError> {
        let etcd = Etcd::new(options)?;
        let keys = Keys { prefix: options.prefix.clone() };
        let (ttl, compact_every) = (options.lease, options.compact_every);
        Ok(Self { etcd, keys, ttl, compact_every, address, owed: Vec::new(), beats: None, held: None })
    }

    /// The document, whoever leads; `None` when there is none.
    ///
    /// # Errors
    /// [`MetastoreError::Corrupt`] when it is damaged; [`MetastoreError::Etcd`].
    pub async fn peek(&self) -> Result<Option<Versioned>, MetastoreError> {
        load(&self.etcd, &self.keys).await?.0
    }

    /// `host:port` of the controller that leads.
    ///
    /// # Errors
    /// [`MetastoreError::Etcd`].
    pub async fn leader(&self) -> Result<Option<String>, MetastoreError> {
        let (leader, _) = self.etcd.get("read who leads", self.keys.leader()).await?;
        Ok(leader.map(|leader| String::from_utf8_lossy(&leader.value).into_owned()))
    }

    /// Takes the leader's key if there is none.
    async fn take(&mut self) -> Result<Option<Elected>, MetastoreError> {
        let asked = Instant::now();
        let granted = self.etcd.grant(self.ttl).await?;
        self.owed.push(granted.id);
        let request = TxnRequest {
            compare: vec![created_at(self.keys.leader(), 0)],
            success: vec![put(self.keys.leader(), self.address.clone().into_bytes(), granted.id)],
            failure: vec![read(self.keys.leader())],
        };
        let answer = self.etcd.txn("take the lead", request).await?;
        let leads_since = if answer.succeeded {
            answer.header.ok_or(MetastoreError::Answer("a write without a header"))?.revision
        } else {
            let found = answer.responses.into_iter().find_map(|read| match read.response {
                Some(Response::ResponseRange(mut range)) => range.kvs.pop(),
                _ => None,
            });
            // Its lease is ours when an earlier try, of which we have not heard, has succeeded.
            match found {
                Some(leader) if leader.lease == granted.id => leader.create_revision,
                _ => {
                    self.give_back().await;
                    return Ok(None);
                }
            }
        };
        let lease = Lease::until(asked + certain(granted.ttl));
        self.held = Some(lease.clone());
        self.beats = Some(tokio::spawn(renew(
            self.etcd.clone(),
            self.keys.clone(),
            granted,
            leads_since,
            lease.clone(),
        )));
        let metastore = Box::new(EtcdMetastore {
            etcd: self.etcd.clone(),
            keys: self.keys.clone(),
            leads_since,
            lease: lease.clone(),
            runtime: Handle::current(),
            known: Known::default(),
            history: History { every: self.compact_every, begins: leads_since },
        });
        Ok(Some(Elected { metastore, lease }))
    }

    /// Ends the leases that may still hold a key of ours. One that cannot be ended now is tried again later, and
    /// ends by itself.
    async fn give_back(&mut self) {
        let mut owed = std::mem::take(&mut self.owed);
        while let Some(id) = owed.pop() {
            if let Err(error) = self.etcd.revoke(id).await {
                tracing::debug!(error = chain(&error), "a lease could not be given back; it ends by itself");
                owed.push(id);
                break;
            }
        }
        // What was owed longest has ended by itself, or will; the last one may hold the key.
        self.owed = owed.pop().into_iter().collect();
    }
}

#[tonic::async_trait]
impl Election for EtcdElection {
    async fn campaign(&mut self, seen: &Seen) -> Result<Elected, MetastoreError> {
        let mut pause = PAUSE;
        loop {
            let began = Instant::now();
            self.give_back().await;
            let (leader, revision) = self.etcd.get("read who leads", self.keys.leader()).await?;
            match leader {
                Some(leader) => {
                    seen(Some(String::from_utf8_lossy(&leader.value).into_owned()));
                    self.etcd.changed(self.keys.leader(), revision + 1, self.ttl).await;
                }
                None => {
                    seen(None);
                    if let Some(elected) = self.take().await? {
                        return Ok(elected);
                    }
                }
            }
            // A watch that etcd ends at once, or a key that others take and lose: etcd is not asked without rest.
            if let Some(rest) = pause.checked_sub(began.elapsed()) {
                time::sleep(rest).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = PAUSE;
            }
        }
    }

    async fn resign(&mut self) {
        if let Some(lease) = self.held.take() {
            lease.lose();
        }
        if let Some(beats) = self.beats.take() {
            beats.abort();
        }
        self.give_back().await;
    }
}

impl Drop for EtcdElection {
    fn drop(&mut self) {
        if let Some(beats) = self.beats.take() {
            beats.abort();
        }
    }
}

/// Of a lease's time, what is certain by a clock of ours.
fn certain(ttl: Duration) -> Duration {
    ttl - ttl / MARGIN
}

/// Keeps the lease until it is lost: because etcd cannot be reached for too long, or the key is not ours any more.
async fn renew(etcd: Etcd, keys: Keys, granted: Granted, leads_since: i64, lease: Lease) {
    let beat = granted.ttl / BEATS_PER_LEASE;
    let mut told = false;
    while lease.is_held() {
        tokio::select! {
            () = time::sleep(beat) => {}
            () = lease.lost() => return,
        }
        let asked = Instant::now();
        let renewed = async {
            let ttl = etcd.renew(granted.id).await?;
            let (leader, _) = etcd.get("read who leads", keys.leader()).await?;
            let ours = leader.is_some_and(|leader| leader.create_revision == leads_since);
            Ok::<_, MetastoreError>(ttl.filter(|_| ours))
        };
        let renewed = tokio::select! {
            renewed = renewed => renewed,
            () = lease.lost() => return,
        };
        match renewed {
            Ok(Some(ttl)) => {
                lease.extend(asked + certain(ttl));
                told = false;
            }
            Ok(None) => return lease.lose(),
            Err(error) if !told => {
                told = true;
                tracing::warn!(error = chain(&error), "the lease could not be renewed");
            }
            Err(error) => tracing::debug!(error = chain(&error), "the lease could not be renewed"),
        }
    }
}
