//! One call per node, all at once. What a node fails to answer is asked elsewhere, partition by partition, as
//! long as budgets last and nodes are left; what it is late to answer is asked of another group as well, and
//! the first answer wins.
//!
//! A call whose partitions could all be asked of another node that is up gets half of what is left of the
//! time, so that a node which hangs does not spend it all. Otherwise it gets all of it. Every partition is
//! asked of each node at most once, which bounds the calls. Dropping the future cancels every call.

mod races;

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use futures::{
    StreamExt,
    future::{AbortHandle, Abortable, Aborted},
};
use tidepool_proto::v1;
use tidepool_types::{Epoch, ErrorCode};
use tokio::time::{Sleep, sleep_until};
use tracing::debug;

use self::races::{Call, Done, Hedge, Race, Running, State};
use crate::{
    account::{CallKind, LookupAccount},
    answer::{self, Answered},
    asks::{self, Ask, NodeAsk},
    breaker::Status,
    config::ClientConfig,
    error::{ClientError, NodeError, NodeFailure},
    metrics::Metrics,
    pacing::Pacing,
    peer::{Ending, Ticket},
    request::{LookupOptions, OnUnavailable, WireBytes},
    route::{Piece, Route, Router},
    split::{Split, as_u32},
    topology::{NodeAt, Topology},
    transport::Wire,
};

/// How soon a hedge that could not be made is thought of again, at the earliest.
const AGAIN: Duration = Duration::from_millis(1);

/// What a lookup needs of its client.
#[derive(Debug)]
pub(crate) struct Fanout<'a> {
    pub(crate) config: &'a ClientConfig,
    pub(crate) pacing: &'a Pacing,
    pub(crate) metrics: Option<&'a Metrics>,
    pub(crate) topology: &'a Topology,
    pub(crate) split: &'a Split<'a>,
    pub(crate) options: &'a LookupOptions,
    pub(crate) request_id: &'a str,
    /// Which lookups nodes turn away first, the same at all of them; never 0.
    pub(crate) lot: u64,
    /// When the time is up.
    pub(crate) deadline: Instant,
    /// Whether this is the lookup's first attempt.
    pub(crate) first: bool,
    /// Where calls are noted, if somebody wants to know.
    pub(crate) account: Option<&'a LookupAccount>,
}

/// Every needed partition, answered once or given up.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// In the order of the questions.
    pub(crate) answers: Vec<Answered>,
    /// Which node gave each of them.
    pub(crate) answered_by: Vec<NodeAt>,
    /// Pieces that nobody answered for; none of them unless the options take defaults.
    pub(crate) unavailable: Vec<Piece>,
    /// The newest epoch that a node told of when it did not serve what it was asked.
    pub(crate) told: Option<Epoch>,
    pub(crate) nodes_touched: u32,
    pub(crate) fallbacks: u32,
    pub(crate) retries: u32,
    pub(crate) hedges: u32,
    pub(crate) hedges_won: u32,
    pub(crate) rows_requested: u64,
    pub(crate) wire_bytes: WireBytes,
    /// What the slowest node says that its answer took.
    pub(crate) slowest: Duration,
}

impl Gathered {
    /// Counts an answer that is used.
    fn count(&mut self, answer: &Answered) {
        self.rows_requested += answer.ask.ids().len() as u64;
        let bytes = match answer.ask {
            Ask::Gather { .. } => &mut self.wire_bytes.gather,
            Ask::Pool(_) => &mut self.wire_bytes.pool,
        };
        *bytes += (answer.ask.sent_bytes() + answer.received_bytes()) as u64;
    }
}

impl Fanout<'_> {
    /// Asks until everything is answered, or given up where the options allow it.
    ///
    /// # Errors
    /// [`ClientError`]: a refusal, the deadline, nobody left to ask, or no retries left.
    pub(crate) async fn run<'c>(&'c self, router: &mut Router<'c>) -> Result<Gathered, ClientError> {
        let mut state = State::new(self.account);
        let ended = self.ask_all(router, &mut state).await;
        self.part(&mut state);
        if let Some(account) = self.account {
            account.part();
        }
        ended?;
        let mut answers = std::mem::take(&mut state.answers);
        answers.sort_unstable_by_key(|(number, ..)| *number);
        let mut out = state.out;
        for (_, node, of_call) in answers {
            out.answered_by.resize(out.answered_by.len() + of_call.len(), node);
            of_call.iter().for_each(|answer| out.count(answer));
            out.answers.extend(of_call);
        }
        out.nodes_touched = as_u32(state.nodes.len());
        Ok(out)
    }

    /// The same; the answers are left in `state`.
    async fn ask_all<'c>(
        &'c self,
        router: &mut Router<'c>,
        state: &mut State<'c>,
    ) -> Result<(), ClientError> {
        let (route, nobody) = router.first();
        self.give_up(nobody, None, state)?;
        if self.first {
            self.pacing.earn(route.nodes.len());
        }
        self.ask(router, route, None, state);
        let mut due = state.next_due(self.deadline);
        let timer = sleep_until(due.into());
        tokio::pin!(timer);
        while state.open > 0 {
            tokio::select! {
                biased;
                done = state.running.next() => match done {
                    Some(Ok(done)) => self.done(done, router, state)?,
                    Some(Err(Aborted)) => continue,
                    // Every open race has a call under way.
                    None => break,
                },
                () = &mut timer => self.overdue(router, state)?,
            }
            reset(timer.as_mut(), &mut due, state.next_due(self.deadline));
        }
        Ok(())
    }

    /// The lookup ends, and with it the calls that nobody waits for any more. Those that it has waited for
    /// until its deadline are timed out, whichever of the timers was first: a node that never answers must not
    /// be taken for one that nobody has asked.
    fn part(&self, state: &mut State<'_>) {
        if Instant::now() < self.deadline {
            return;
        }
        for call in &mut state.calls {
            if let Some(ticket) = call.ticket.take() {
                let waited = self.deadline.saturating_duration_since(ticket.started);
                self.note(ticket, call.ids, Some(&NodeFailure::TimedOut(waited)));
            }
        }
    }

    /// Begins the calls of a route: races of their own, or the hedge of one.
    fn ask<'c>(
        &'c self,
        router: &mut Router<'c>,
        mut route: Route<'c>,
        hedge_of: Option<usize>,
        state: &mut State<'c>,
    ) {
        let now = Instant::now();
        let kind = match (hedge_of, state.calls.is_empty()) {
            (Some(_), _) => CallKind::Hedge,
            (None, true) if self.first => CallKind::First,
            (None, true) => CallKind::NewerMap,
            (None, false) => CallKind::Retry,
        };
        let tickets = std::mem::take(&mut route.tickets);
        for (ask, ticket) in asks::build(self.split, &route, self.options).into_iter().zip(tickets) {
            let NodeAsk { node, pieces, asks } = ask;
            if !state.nodes.contains(&node) {
                state.nodes.push(node);
            }
            let (number, ids) = (state.calls.len(), asks.iter().map(|ask| ask.ids().len()).sum());
            let alternative = hedge_of.is_none()
                && (route.alternative || router.has_alternative(&pieces, node, &state.tried));
            let race = hedge_of.unwrap_or_else(|| {
                let late_at = alternative.then(|| now + self.pacing.hedge_delay(ids));
                state.races.push(Race {
                    first: number,
                    hedge: None,
                    late_at,
                    suppressed: false,
                    over: false,
                });
                state.open += 1;
                state.races.len() - 1
            });
            let noted = self.account.and_then(|account| {
                account.begin(self.topology.id(node), &self.topology.peer(node).address, kind, ids)
            });
            let (cancel, registration) = AbortHandle::new_pair();
            let running: Running<'c> = Box::pin(self.call(number, node, asks, alternative));
            state.running.push(Abortable::new(running, registration));
            state.calls.push(Call { race, node, pieces, ids, ticket: Some(ticket), cancel, noted });
        }
    }

    /// One call to one node.
    async fn call(&self, number: usize, node: NodeAt, asks: Vec<Ask>, alternative: bool) -> Done {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let share = if alternative { left / 2 } else { left };
        let result = match &self.topology.peer(node).connection {
            Err(problem) => Err(NodeFailure::Address(problem.clone())),
            Ok(_) if left.is_zero() => Err(NodeFailure::TimedOut(Duration::ZERO)),
            Ok(connection) => {
                let wire = Wire {
                    max_message_bytes: self.config.max_message_bytes,
                    stream_max_bytes: self.config.stream_max_bytes,
                };
                let answer_bytes = asks.iter().map(|a| a.answer_bytes(self.split)).sum();
                connection.call(|| self.message(&asks), answer_bytes, share, wire).await
            }
        };
        Done { number, asks, result }
    }

    /// The message of a call.
    fn message(&self, asks: &[Ask]) -> v1::LookupRequest {
        let left = self.deadline.saturating_duration_since(Instant::now());
        v1::LookupRequest {
            request_id: self.request_id.to_owned(),
            lot: self.lot,
            tenant: self.options.tenant.as_ref().unwrap_or(&self.config.tenant).clone(),
            // 0 means none, so the last microsecond stays one.
            deadline_us: u64::try_from(left.as_micros()).unwrap_or(u64::MAX).max(1),
            traceparent: self.options.traceparent.as_ref().map(ToString::to_string).unwrap_or_default(),
            features: asks.iter().map(|a| a.encode(self.split)).collect(),
            ..v1::LookupRequest::default()
        }
    }

    /// A call has ended.
    fn done<'c>(
        &'c self,
        done: Done,
        router: &mut Router<'c>,
        state: &mut State<'c>,
    ) -> Result<(), ClientError> {
        let number = done.number;
        let (race, node) = (state.calls[number].race, state.calls[number].node);
        // It ended while it was cancelled.
        let Some(ticket) = state.calls[number].ticket.take() else { return Ok(()) };
        let ids = state.calls[number].ids;
        let took = done.result.as_ref().map_or(Duration::ZERO, |reply| Duration::from_micros(reply.took_us));
        let checked =
            done.result.and_then(|reply| answer::check(self.split, done.asks, reply).map_err(Into::into));
        if checked.is_ok() {
            state.out.slowest = state.out.slowest.max(took);
        }
        self.note(ticket, ids, checked.as_ref().err());
        if let (Some(account), Some(noted)) = (self.account, state.calls[number].noted) {
            match &checked {
                Ok(_) => account.answered(noted),
                Err(failure) => account.failed(noted, failure),
            }
        }
        let first = state.races[race].first == number;
        match checked {
            Ok(checked) if first => {
                state.answers.push((number, node, checked));
                state.drop_hedge(race);
                state.finish_race(race);
            }
            Ok(checked) => self.hedge_answered(race, number, checked, state),
            Err(failure) if first => {
                debug!(node = %self.topology.id(node), %failure, "a call failed");
                let pieces = std::mem::take(&mut state.calls[number].pieces);
                state.tried.add(self.split, &pieces, node);
                if state.hedge_takes_over(race) {
                    return Ok(());
                }
                state.finish_race(race);
                self.failed(node, pieces, failure, router, state)?;
            }
            // The first call goes on alone.
            Err(failure) => {
                debug!(node = %self.topology.id(node), %failure, "a hedge failed");
                state.drop_hedge(race);
                state.races[race].late_at = Some(Instant::now() + self.pacing.hedge_delay(ids).max(AGAIN));
            }
        }
        Ok(())
    }

    /// One call of a hedge has answered; when all have, the first call has lost.
    fn hedge_answered<'c>(
        &'c self,
        race: usize,
        number: usize,
        checked: Vec<Answered>,
        state: &mut State<'c>,
    ) {
        let Some(hedge) = &mut state.races[race].hedge else { return };
        hedge.answers.push((number, checked));
        if hedge.answers.len() < hedge.calls.len() {
            return;
        }
        let answers = std::mem::take(&mut hedge.answers);
        let nodes = &state.calls;
        state
            .answers
            .extend(answers.into_iter().map(|(number, answer)| (number, nodes[number].node, answer)));
        let first = state.races[race].first;
        let (now, ids) = (Instant::now(), state.calls[first].ids);
        if let Some(ticket) = state.cancel(first) {
            self.pacing.measured(ids, now.saturating_duration_since(ticket.started));
            ticket.lose(now, self.pacing.patience(ids), self.pacing.jitter());
        }
        state.out.hedges_won += 1;
        state.finish_race(race);
    }

    /// Calls that are late are hedged, and at the deadline everything ends.
    fn overdue<'c>(&'c self, router: &mut Router<'c>, state: &mut State<'c>) -> Result<(), ClientError> {
        let now = Instant::now();
        for race in 0..state.races.len() {
            if state.races[race].over {
                continue;
            }
            let first = state.races[race].first;
            if self.deadline <= now {
                let node = state.calls[first].node;
                if self.options.on_unavailable == OnUnavailable::Fail {
                    return Err(self.too_late(node));
                }
                let mut lost = std::mem::take(&mut state.calls[first].pieces);
                // What a hedge has answered so far is used.
                if let Some(hedge) = state.races[race].hedge.take() {
                    lost.clear();
                    for number in hedge.calls {
                        if !hedge.answers.iter().any(|(answered, _)| *answered == number) {
                            lost.append(&mut state.calls[number].pieces);
                        }
                    }
                    for (number, answered) in hedge.answers {
                        state.answers.push((number, state.calls[number].node, answered));
                    }
                }
                state.out.unavailable.extend(lost);
                state.finish_race(race);
            } else if state.races[race].late_at.is_some_and(|late| late <= now) {
                self.hedge(race, now, router, state);
            }
        }
        Ok(())
    }

    /// Asks the pieces of a late call of another group as well, when there is one and it can be paid for.
    fn hedge<'c>(&'c self, race: usize, now: Instant, router: &mut Router<'c>, state: &mut State<'c>) {
        let first = &state.calls[state.races[race].first];
        let (node, ids) = (first.node, first.ids);
        state.races[race].late_at = None;
        state.tried.add(self.split, &first.pieces, node);
        router.refresh(now);
        let Some(route) = router.hedge(&first.pieces, &state.tried) else { return };
        // Of a node that has been found to be sick meanwhile nothing is to be expected: that is a retry.
        let sick = self.topology.peer(node).look(now).status != Status::Closed;
        let calls = route.nodes.len();
        if !(self.pacing.spend_hedge(now, calls) || sick && self.pacing.spend_retry(now, calls)) {
            if !std::mem::replace(&mut state.races[race].suppressed, true)
                && let Some(metrics) = self.metrics
            {
                metrics.hedge_suppressed();
            }
            state.races[race].late_at = Some(now + self.pacing.hedge_delay(ids).max(AGAIN));
            return;
        }
        state.out.hedges += 1;
        let before = state.calls.len();
        self.ask(router, route, Some(race), state);
        let calls: Vec<usize> = (before..state.calls.len()).collect();
        for number in &calls {
            let call = &state.calls[*number];
            state.tried.add(self.split, &call.pieces, call.node);
        }
        state.races[race].hedge = Some(Hedge { calls, answers: Vec::new() });
    }

    /// Asks elsewhere what a node has failed to answer, or gives up.
    fn failed<'c>(
        &'c self,
        node: NodeAt,
        pieces: Vec<Piece>,
        failure: NodeFailure,
        router: &mut Router<'c>,
        state: &mut State<'c>,
    ) -> Result<(), ClientError> {
        let defaults = self.options.on_unavailable == OnUnavailable::Default;
        let (now, code) = (Instant::now(), failure.code());
        if self.deadline <= now || code == ErrorCode::DeadlineExceeded {
            if defaults {
                state.out.unavailable.extend(pieces);
                return Ok(());
            }
            return Err(self.too_late(node));
        }
        let moved = match &failure {
            NodeFailure::Status { code: ErrorCode::NotServed, epoch, .. } => {
                state.out.told = state.out.told.max(*epoch);
                epoch.is_some_and(|epoch| epoch > self.topology.map.epoch)
            }
            _ => false,
        };
        let error = Box::new(NodeError {
            node: self.topology.id(node).clone(),
            address: self.topology.peer(node).address.clone(),
            failure,
        });
        if !code.retry_elsewhere() {
            return Err(ClientError::Refused(error));
        }
        router.refresh(now);
        let (route, nobody) = router.elsewhere(&pieces, &state.tried);
        // A map that is out of date is not the node's failure, and costs nothing.
        if !route.nodes.is_empty() && !moved && !self.pacing.spend_retry(now, route.nodes.len()) {
            if let Some(metrics) = self.metrics {
                metrics.retry_suppressed();
            }
            if defaults {
                state.out.unavailable.extend(pieces);
                return Ok(());
            }
            return Err(ClientError::RetriesSpent(error));
        }
        state.out.fallbacks += as_u32(pieces.len());
        state.out.retries += as_u32(route.nodes.len());
        self.give_up(nobody, Some(error), state)?;
        self.ask(router, route, None, state);
        Ok(())
    }

    /// Nobody is left to ask for `pieces`.
    fn give_up(
        &self,
        pieces: Vec<Piece>,
        last: Option<Box<NodeError>>,
        state: &mut State<'_>,
    ) -> Result<(), ClientError> {
        let Some(piece) = pieces.first().copied() else { return Ok(()) };
        if self.options.on_unavailable == OnUnavailable::Default {
            state.out.unavailable.extend(pieces);
            return Ok(());
        }
        let table = &self.split.tables[piece.0];
        Err(ClientError::Unavailable {
            table: table.layout.schema.table_version.clone(),
            partition: table.partitions[piece.1 as usize],
            tried: state.tried.of(piece).len(),
            last,
        })
    }

    /// Remembers how a call for `ids` ids ended. Only what concerns the whole node counts against it: not a
    /// partition that it does not serve, nor a queue that was full, nor a wait that was too short to tell.
    fn note(&self, ticket: Ticket<'_>, ids: usize, failure: Option<&NodeFailure>) {
        let now = Instant::now();
        let latency = now.saturating_duration_since(ticket.started);
        if let Some(metrics) = self.metrics {
            metrics.rpc(failure.map(NodeFailure::code), latency);
        }
        let ending = match failure {
            None => {
                self.pacing.measured(ids, latency);
                Ending::Answered
            }
            Some(NodeFailure::TooLong { .. }) => Ending::Untold,
            // By itself it says nothing; that nobody is answered does.
            Some(NodeFailure::TimedOut(waited)) if *waited < self.pacing.patience(ids) => {
                if self.pacing.may_be_late(*waited) {
                    return ticket.lose(now, self.pacing.patience(ids), self.pacing.jitter());
                }
                Ending::Untold
            }
            Some(failure) => match failure.code() {
                ErrorCode::Unavailable | ErrorCode::Internal => Ending::Failed,
                ErrorCode::Overloaded => Ending::Overloaded,
                ErrorCode::DeadlineExceeded => Ending::Untold,
                _ => Ending::Refused,
            },
        };
        ticket.end(ending, now, self.pacing.jitter());
    }

    fn too_late(&self, node: NodeAt) -> ClientError {
        let node = Some(self.topology.id(node).clone());
        ClientError::DeadlineExceeded { timeout: self.options.timeout, node }
    }
}

/// Sets the timer when what it waits for has changed.
fn reset(timer: Pin<&mut Sleep>, due: &mut Instant, next: Instant) {
    if *due != next {
        *due = next;
        timer.reset(next.into());
    }
}
