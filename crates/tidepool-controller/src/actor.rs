//! The task that owns the state: it takes events one by one, and carries their effects out in order.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidepool_cluster::{ClusterMap, ClusterState, Durable, Effect, Event, Quotas, SessionId, step};
use tidepool_runtime::error::chain;
use tidepool_types::Name;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, spawn_blocking},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    durable::document,
    error::RequestError,
    metastore::{Lease, Metastore, MetastoreError},
    metrics::Metrics,
};

/// After a state could not be written down, until what is owed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Events to the actor, and snapshots from it. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    states: watch::Receiver<ClusterState>,
    maps: watch::Receiver<Arc<ClusterMap>>,
    quotas: watch::Receiver<Arc<Quotas>>,
    sessions: Arc<AtomicU64>,
    ended: CancellationToken,
}

#[derive(Debug)]
struct Command {
    event: Event,
    done: oneshot::Sender<Result<(), RequestError>>,
}

/// Owns the state and the metastore.
pub(crate) struct Actor {
    state: ClusterState,
    /// Of the document that is written down.
    revision: u64,
    metastore: Arc<Mutex<Box<dyn Metastore>>>,
    lease: Lease,
    ended: CancellationToken,
    started: Instant,
    /// Ends of sessions, and the last reports of rankers, whose outcome could not be written down yet. They have
    /// happened, so they are not given up.
    owed: Vec<Event>,
    /// Until then nothing is done unasked, after a failure.
    pause_until: Option<Instant>,
    commands: mpsc::Receiver<Command>,
    states: watch::Sender<ClusterState>,
    maps: watch::Sender<Arc<ClusterMap>>,
    quotas: watch::Sender<Arc<Quotas>>,
    metrics: Metrics,
}

impl Handle {
    /// Gives an event to the state machine, waiting for a place in the queue; returns when it has been
    /// applied, written down and published.
    pub(crate) async fn report(&self, event: Event) -> Result<(), RequestError> {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(Command { event, done }).await;
        sent.map_err(|_| self.over())?;
        answer.await.map_err(|_| self.over())?
    }

    /// The same for a request, which is turned away when the queue is full.
    pub(crate) async fn request(&self, event: Event) -> Result<(), RequestError> {
        let (done, answer) = oneshot::channel();
        self.commands.try_send(Command { event, done }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                RequestError::Overloaded { waiting: self.commands.max_capacity() }
            }
            mpsc::error::TrySendError::Closed(_) => self.over(),
        })?;
        answer.await.map_err(|_| self.over())?
    }

    /// Ends the state machine: this controller leads no more.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    /// Whether this controller leads no more.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Resolves when this controller leads no more.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Why nothing is answered any more.
    fn over(&self) -> RequestError {
        if self.is_ended() { RequestError::deposed() } else { RequestError::ShuttingDown }
    }

    /// The state as it is now.
    pub(crate) fn state(&self) -> ClusterState {
        self.states.borrow().clone()
    }

    /// The published map, and those to come.
    pub(crate) fn maps(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.maps.clone()
    }

    /// The published quotas, and those to come.
    pub(crate) fn quotas(&self) -> watch::Receiver<Arc<Quotas>> {
        self.quotas.clone()
    }

    /// A number for a new session.
    pub(crate) fn new_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed))
    }
}

/// Spawns the task, for a term. It ends with the term, or when the last handle is gone.
pub(crate) fn spawn(
    state: ClusterState,
    (revision, metastore, lease): (u64, Box<dyn Metastore>, Lease),
    started: Instant,
    queue_len: usize,
    metrics: Metrics,
) -> (Handle, JoinHandle<()>) {
    let (sender, commands) = mpsc::channel(queue_len);
    let (states, state_snapshots) = watch::channel(state.clone());
    let (maps, map_snapshots) = watch::channel(Arc::new(state.map().clone()));
    let (quotas, quota_snapshots) = watch::channel(Arc::new(state.durable.quotas.clone()));
    metrics.show(&state);
    let handle = Handle {
        commands: sender,
        states: state_snapshots,
        maps: map_snapshots,
        quotas: quota_snapshots,
        sessions: Arc::new(AtomicU64::new(1)),
        ended: CancellationToken::new(),
    };
    let actor = Actor {
        state,
        revision,
        metastore: Arc::new(Mutex::new(metastore)),
        lease,
        ended: handle.ended.clone(),
        started,
        owed: Vec::new(),
        pause_until: None,
        commands,
        states,
        maps,
        quotas,
        metrics,
    };
    (handle, tokio::spawn(actor.run()))
}

impl Actor {
    async fn run(mut self) {
        loop {
            let wake = self.next_wake();
            let idle = async {
                match wake {
                    Some(at) => time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.ended.cancelled() => return,
                command = self.commands.recv() => {
                    let Some(Command { event, done }) = command else { return };
                    let waiting = self.commands.len();
                    self.metrics.queued_events.set(i64::try_from(waiting).unwrap_or(i64::MAX));
                    let applied = self.take(event).await;
                    // Whoever asked may have left.
                    let _ = done.send(applied);
                }
                () = idle => self.catch_up().await,
            }
        }
    }

    /// Applies an event that somebody has sent. What a ranker says is taken also when its outcome (a release that is
    /// halted, say) cannot be written down now: it is tried again, and the ranker keeps its session.
    async fn take(&mut self, event: Event) -> Result<(), RequestError> {
        if let Event::RankerReported { session, report } = &event {
            self.forget_owed(&report.ranker, *session);
        } else if let Event::RankerGone { session, ranker } = &event {
            self.forget_owed(ranker, *session);
        }
        let gone = matches!(event, Event::NodeGone { .. } | Event::RankerGone { .. });
        let reported = matches!(event, Event::RankerReported { .. });
        if reported && self.pause_until.is_some_and(|until| Instant::now() < until) {
            // All rankers say the same thing again and again, and each try may take long.
            self.owed.push(event);
            return Ok(());
        }
        let owed = (gone || reported).then(|| event.clone());
        let applied = self.apply(event).await;
        match (owed, applied) {
            (Some(event), Err(error @ RequestError::Metastore(_))) => {
                self.owed.push(event);
                if reported && self.lease.is_held() { Ok(()) } else { Err(error) }
            }
            (_, applied) => applied,
        }
    }

    /// What a ranker says now, or its end, is newer than what is owed of it.
    fn forget_owed(&mut self, ranker: &Name, session: SessionId) {
        self.owed.retain(|owed| match owed {
            Event::RankerReported { session: of, report } => report.ranker != *ranker || *of > session,
            _ => true,
        });
    }

    fn next_wake(&self) -> Option<Instant> {
        let due =
            if self.owed.is_empty() { self.started + self.state.next_deadline()? } else { self.started };
        Some(self.pause_until.map_or(due, |pause| due.max(pause)))
    }

    /// Does what is due by itself.
    async fn catch_up(&mut self) {
        let mut owed = std::mem::take(&mut self.owed).into_iter();
        for event in owed.by_ref() {
            if let Err(RequestError::Metastore(_)) = self.apply(event.clone()).await {
                self.owed.push(event);
                self.owed.extend(owed);
                return;
            }
        }
        // A failure is logged, and it is due again after a pause.
        let _ = self.apply(Event::Tick).await;
    }

    async fn apply(&mut self, event: Event) -> Result<(), RequestError> {
        self.metrics.events.inc();
        let (next, effects) = step(&self.state, event, self.started.elapsed())?;
        if effects.contains(&Effect::Persist) {
            if let Err(error) = self.persist(next.durable.clone()).await {
                self.metrics.persist_failures.inc();
                self.pause_until = Some(Instant::now() + RETRY);
                tracing::error!(error = chain(&error), "the state of the cluster could not be written down");
                return Err(match error {
                    RequestError::Metastore(MetastoreError::Deposed { leader }) => {
                        self.lease.lose();
                        RequestError::NotLeader { leader, problem: String::new() }
                    }
                    // The document is not the one of this term any more: the next term reads what there is.
                    RequestError::Metastore(
                        MetastoreError::Conflict { .. } | MetastoreError::Corrupt { .. },
                    ) => {
                        self.lease.lose();
                        error
                    }
                    error => error,
                });
            }
            self.pause_until = None;
        }
        self.log_changes(&next);
        self.state = next;
        self.metrics.show(&self.state);
        self.states.send_replace(self.state.clone());
        if effects.contains(&Effect::PublishMap) {
            self.maps.send_replace(Arc::new(self.state.map().clone()));
        }
        if effects.contains(&Effect::PublishQuotas) {
            self.quotas.send_replace(Arc::new(self.state.durable.quotas.clone()));
        }
        Ok(())
    }

    async fn persist(&mut self, durable: Arc<Durable>) -> Result<(), RequestError> {
        let timer = self.metrics.persist_seconds.start_timer();
        let (metastore, expected) = (self.metastore.clone(), self.revision);
        let stored = spawn_blocking(move || -> Result<u64, RequestError> {
            let document = document(&durable)?;
            let mut metastore = metastore.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(metastore.store(expected, &document)?)
        });
        let stored = stored.await.map_err(|e| RequestError::Internal(e.to_string()))?;
        timer.observe_duration();
        self.revision = stored?;
        Ok(())
    }

    fn log_changes(&self, next: &ClusterState) {
        let (old, new) = (self.state.map(), next.map());
        if old.epoch == new.epoch {
            return;
        }
        tracing::debug!(epoch = %new.epoch, "new cluster map");
        for (node, entry) in &new.nodes {
            if old.nodes.get(node) != Some(entry) {
                let (group, address) = (&entry.group, &entry.grpc_address);
                tracing::info!(%node, %group, %address, up = entry.up, epoch = %new.epoch, "node");
            }
        }
        for release in &new.releases {
            if old.release(&release.model, &release.release) != Some(release) {
                let (model, state) = (&release.model, release.state);
                tracing::info!(%model, release = %release.release, ?state, epoch = %new.epoch, "release");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tidepool_cluster::{Guards, NodeReport, RankerRelease, RankerReport, Serving, Settings, Tally};
    use tidepool_types::{Epoch, ErrorCode, NodeId, ReleaseManifest};

    use super::*;
    use crate::metastore::Versioned;

    /// Fails as often as it is told.
    struct Flaky {
        failures: Arc<AtomicU64>,
        revision: u64,
    }

    impl Metastore for Flaky {
        fn load(&mut self) -> Result<Option<Versioned>, MetastoreError> {
            Ok(None)
        }

        fn store(&mut self, expected: u64, _: &[u8]) -> Result<u64, MetastoreError> {
            assert_eq!(expected, self.revision);
            let fails = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if fails.is_ok() {
                let source = std::io::ErrorKind::StorageFull.into();
                return Err(MetastoreError::Io { tried: "write", path: "state".into(), source });
            }
            self.revision += 1;
            Ok(self.revision)
        }
    }

    /// An actor that waits for nobody, on a metastore that fails so often.
    fn on_flaky(failures: &Arc<AtomicU64>) -> (Handle, JoinHandle<()>, Metrics) {
        let metastore = Box::new(Flaky { failures: failures.clone(), revision: 0 });
        let settings = Settings {
            reconnect_grace: Duration::ZERO,
            group_settle: Duration::ZERO,
            retire_grace: Duration::ZERO,
        };
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let parts = (0, metastore as Box<dyn Metastore>, Lease::for_ever());
        let (handle, task) = spawn(ClusterState::new(settings), parts, Instant::now(), 4, metrics.clone());
        (handle, task, metrics)
    }

    #[tokio::test]
    async fn nothing_is_published_that_was_not_written_down_and_no_end_is_forgotten() {
        let failures = Arc::new(AtomicU64::new(1));
        let (handle, task, metrics) = on_flaky(&failures);
        let node = NodeId(Name::new("a-1").unwrap());
        let session = handle.new_session();
        let report = NodeReport {
            node: node.clone(),
            group: Name::new("a").unwrap(),
            grpc_address: "a-1:1".into(),
            http_address: String::new(),
            capacity_bytes: 0,
            epoch: Epoch(0),
            partitions: Vec::new(),
            memory: None,
        };
        let event = Event::NodeReported { session, report };
        let refused = handle.report(event.clone()).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Unavailable);
        assert_eq!(handle.state().map(), &ClusterMap::default());
        assert_eq!(metrics.persist_failures.get(), 1);

        handle.report(event).await.unwrap();
        assert!(handle.state().map().nodes[&node].up);
        failures.store(1, Ordering::SeqCst);
        let gone = Event::NodeGone { node: node.clone(), session };
        assert_eq!(handle.report(gone).await.unwrap_err().code(), ErrorCode::Unavailable);
        let mut maps = handle.maps();
        assert!(maps.borrow_and_update().nodes[&node].up);
        let down = maps.wait_for(|map| !map.nodes[&node].up);
        assert!(time::timeout(Duration::from_secs(30), down).await.is_ok(), "it is tried again unasked");
        drop(handle);
        task.await.unwrap();
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// What a ranker has counted of r1, and of r2, of which so many requests failed.
    fn counted(session: SessionId, requests: u64, failed: u64) -> Event {
        let release = |release: &str, errors| RankerRelease {
            model: name("m"),
            release: name(release),
            ready: true,
            problem: String::new(),
            state: None,
            serving: Some(Serving {
                chosen: Tally { requests, errors, ..Tally::default() },
                ..Serving::default()
            }),
        };
        let report = RankerReport {
            ranker: name("r"),
            grpc_address: "r:1".into(),
            http_address: String::new(),
            epoch: Epoch(0),
            releases: vec![release("r1", 0), release("r2", failed)],
            rolled_back: Vec::new(),
            rolled_back_to: Vec::new(),
        };
        Event::RankerReported { session, report }
    }

    #[tokio::test]
    async fn a_halt_that_cannot_be_written_down_is_tried_again_and_ends_no_session() {
        let failures = Arc::new(AtomicU64::new(0));
        let (handle, task, _) = on_flaky(&failures);
        for release in ["r1", "r2"] {
            let manifest = ReleaseManifest {
                schema_version: 1,
                model: name("m"),
                release: name(release),
                tables: Vec::new(),
                table_manifest_hashes: Vec::new(),
                model_toml_hash: "toml".into(),
                model_onnx_hash: "onnx".into(),
                golden_json_hash: None,
            };
            let event = Event::PublishRelease { manifest, tables: Vec::new(), by: "a test".into() };
            handle.request(event).await.unwrap();
        }
        let (model, by) = (name("m"), "a test".to_owned());
        let promote = Event::PromoteRelease { model: model.clone(), release: name("r1"), by: by.clone() };
        handle.request(promote).await.unwrap();
        let shares = vec![(name("r2"), 500)];
        handle.request(Event::SetShares { model, shares, guards: Guards::default(), by }).await.unwrap();
        let session = handle.new_session();
        handle.report(counted(session, 0, 0)).await.unwrap();
        failures.store(1, Ordering::SeqCst);
        handle.report(counted(session, 400, 400)).await.expect("the session goes on");
        assert!(!handle.state().map().traffic.is_empty(), "nothing is published that was not written down");
        let mut maps = handle.maps();
        let halted = maps.wait_for(|map| map.traffic.is_empty());
        assert!(time::timeout(Duration::from_secs(30), halted).await.is_ok(), "it is tried again unasked");
        assert!(handle.state().durable.ramp("m", "r2").unwrap().halted.is_some());
        drop(handle);
        task.await.unwrap();
    }
}
