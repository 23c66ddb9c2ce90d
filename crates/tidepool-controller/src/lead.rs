//! Who leads: this controller, for a term, or another. Whoever serves asks here for the state machine.
//!
//! **Invariant:** there is a state machine only while this controller leads, and it is handed out only while that
//! is certain. A term begins with a state that was read after the others could no longer write, and with the
//! number of the term being written down.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tidepool_cluster::{ClusterState, Durable, Settings};
use tidepool_runtime::{error::chain, health::Health, shutdown::Shutdown};
use tokio::{sync::watch, task::spawn_blocking, time};
use tokio_util::sync::CancellationToken;

use crate::{
    actor::{self, Handle},
    durable::{document, recover},
    error::RequestError,
    metastore::{Elected, Election, Lease, Metastore, MetastoreError},
    metrics::Metrics,
};

/// After a campaign or a take-over failed, until the next.
const RETRY: Duration = Duration::from_millis(500);

/// What is known of who leads. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Lead(watch::Receiver<Standing>);

/// Who leads, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// Set while this controller leads.
    pub(crate) term: Option<Term>,
    /// `host:port` of the one that leads.
    pub(crate) leader: Option<String>,
    /// Why it is not known who leads; empty when it is, or nobody does for a moment.
    pub(crate) problem: String,
}

/// A time during which this controller leads.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    /// Larger than that of every term before.
    pub(crate) number: u64,
    pub(crate) handle: Handle,
    /// Until then nodes have time to open their sessions.
    pub(crate) grace_ends: Instant,
    lease: Lease,
}

impl Lead {
    /// The state machine.
    pub(crate) fn handle(&self) -> Result<Handle, RequestError> {
        let standing = self.0.borrow();
        match standing.led() {
            Some(term) => Ok(term.handle.clone()),
            // The lease has just ended, and nobody else is known.
            None if standing.term.is_some() => Err(RequestError::deposed()),
            None => Err(RequestError::NotLeader {
                leader: standing.leader.clone(),
                problem: standing.problem.clone(),
            }),
        }
    }

    /// Waits until this controller leads; false when it never will again.
    pub(crate) async fn begun(&self) -> bool {
        self.0.clone().wait_for(|standing| standing.led().is_some()).await.is_ok()
    }

    /// Who leads now.
    pub(crate) fn standing(&self) -> Standing {
        self.0.borrow().clone()
    }

    /// The state of the cluster, if this controller leads.
    pub(crate) fn state(&self) -> Option<ClusterState> {
        Some(self.0.borrow().led()?.handle.state())
    }
}

impl Standing {
    /// The term, if it certainly goes on.
    pub(crate) fn led(&self) -> Option<&Term> {
        self.term.as_ref().filter(|term| term.lease.is_held())
    }
}

/// Campaigns, leads, and campaigns again.
pub(crate) struct Candidate {
    pub(crate) election: Box<dyn Election>,
    /// `host:port` by which others find this controller.
    pub(crate) address: String,
    pub(crate) settings: Settings,
    pub(crate) event_queue_len: usize,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) lifecycle: Shutdown,
    /// Resigns when it is cancelled.
    pub(crate) stop: CancellationToken,
    pub(crate) standing: Arc<watch::Sender<Standing>>,
}

/// What a controller has when its term begins.
pub(crate) struct Won {
    metastore: Box<dyn Metastore>,
    lease: Lease,
    revision: u64,
    state: ClusterState,
    started: Instant,
}

/// A channel for what is known of who leads.
pub(crate) fn standing() -> (Arc<watch::Sender<Standing>>, Lead) {
    let (sender, receiver) = watch::channel(Standing::default());
    (Arc::new(sender), Lead(receiver))
}

impl Candidate {
    /// Waits until this controller leads, and reads the state.
    ///
    /// # Errors
    /// What the metastore says; this controller does not lead then.
    pub(crate) async fn win(&mut self) -> Result<Won, MetastoreError> {
        let (standing, health, lifecycle) =
            (self.standing.clone(), self.health.clone(), self.lifecycle.clone());
        let seen = move |leader: Option<String>| {
            // A follower can do its work: it is there to take over.
            show_ready(&health, &lifecycle, Ok(()));
            if let Some(leader) = &leader {
                let news = standing.borrow().leader.as_deref() != Some(leader.as_str());
                if news {
                    tracing::info!(%leader, "another controller leads");
                }
            }
            standing.send_replace(Standing { leader, ..Standing::default() });
        };
        let Elected { metastore, lease } = self.election.campaign(&seen).await?;
        let settings = self.settings;
        let taken = spawn_blocking(move || take_over(metastore, settings)).await;
        let taken = taken.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        match taken {
            Ok((metastore, revision, state, started)) => {
                Ok(Won { metastore, lease, revision, state, started })
            }
            Err(error) => {
                self.election.resign().await;
                Err(error)
            }
        }
    }

    /// Leads as often as it is elected, until it is told to stop. `won` is the first term, if it has begun.
    pub(crate) async fn run(mut self, mut won: Option<Won>) {
        let stop = self.stop.clone();
        let mut told = String::new();
        loop {
            let next = match won.take() {
                Some(won) => Ok(won),
                None => tokio::select! {
                    () = stop.cancelled() => break,
                    next = self.win() => next,
                },
            };
            match next {
                Ok(won) => {
                    told.clear();
                    self.lead(won).await;
                }
                Err(error) => {
                    let problem = chain(&error);
                    self.metrics.election_failures.inc();
                    if problem != told {
                        tracing::error!(error = problem, "it cannot be decided who leads; trying again");
                    }
                    show_ready(&self.health, &self.lifecycle, Err(problem.clone()));
                    self.standing.send_replace(Standing { problem: problem.clone(), ..Standing::default() });
                    told = problem;
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = time::sleep(RETRY) => {}
                    }
                }
            }
            if stop.is_cancelled() {
                break;
            }
        }
        self.election.resign().await;
    }

    /// One term, from its beginning to its end.
    async fn lead(&mut self, won: Won) {
        let Won { metastore, lease, revision, state, started } = won;
        let (number, epoch) = (state.durable.term, state.map().epoch);
        let metastore = (revision, metastore, lease.clone());
        let (handle, mut actor) =
            actor::spawn(state, metastore, started, self.event_queue_len, self.metrics.clone());
        tracing::info!(term = number, revision, %epoch, "this controller leads");
        self.metrics.begin_term(number);
        let grace_ends = started + self.settings.reconnect_grace;
        let term = Term { number, handle: handle.clone(), grace_ends, lease: lease.clone() };
        let leader = Some(self.address.clone());
        self.standing.send_replace(Standing { term: Some(term), leader, problem: String::new() });
        show_ready(&self.health, &self.lifecycle, Ok(()));
        let mut failed = false;
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = lease.lost() => tracing::warn!(term = number, "this controller leads no more"),
            ended = &mut actor => {
                // Only a defect ends it before its term. Another controller takes over, or this one tries again.
                tracing::error!(term = number, ?ended, "the state machine of the term ended");
                failed = true;
            }
        }
        self.standing.send_replace(Standing::default());
        self.metrics.end_term();
        handle.end();
        drop(handle);
        // It finishes what it has begun: a write of it is refused or known before anyone else can lead by our hand.
        if failed {
            self.election.resign().await;
            time::sleep(RETRY).await;
            return;
        }
        if let Err(error) = actor.await {
            tracing::error!(%error, "the state machine of the term failed");
        }
        self.election.resign().await;
    }
}

/// The draining has the last word.
fn show_ready(health: &Health, lifecycle: &Shutdown, ready: Result<(), String>) {
    if !lifecycle.is_draining() {
        health.set_ready(ready.is_ok(), ready.err().unwrap_or_default());
    }
}

/// Reads the state and writes the number of the new term down. It blocks.
fn take_over(
    mut metastore: Box<dyn Metastore>,
    settings: Settings,
) -> Result<(Box<dyn Metastore>, u64, ClusterState, Instant), MetastoreError> {
    let (found, before) = recover(&mut *metastore)?;
    let mut durable = before.clone().unwrap_or_default();
    durable.term += 1;
    let revision = metastore.store(found, &document(&durable)?)?;
    let started = Instant::now();
    let state = match before {
        Some(_) => ClusterState::recover(durable, settings, started.elapsed()),
        None => {
            let mut state = ClusterState::new(settings);
            state.durable = Arc::new(Durable { term: durable.term, ..Durable::default() });
            state
        }
    };
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((metastore, revision, state.begun_at(unix.as_secs()), started))
}
