//! One call per node, all at once; what a node fails to answer is asked elsewhere, partition by partition,
//! as long as the budget lasts and nodes are left.
//!
//! A call whose partitions could all be asked of another node that is up gets half of what is left of the
//! budget, so that a node which hangs does not spend it all. Otherwise it gets all of it. Every partition
//! is asked of each node at most once, which bounds the calls.

use std::{
    future::Future,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use tidepool_cluster::ClusterMap;
use tidepool_proto::v1;
use tidepool_types::{ErrorCode, NodeId};
use tracing::debug;

use crate::{
    answer::{self, Answered},
    asks::{self, Ask, NodeAsk},
    channels::Channels,
    config::ClientConfig,
    error::{ClientError, NodeError, NodeFailure},
    metrics::Metrics,
    request::{LookupOptions, WireBytes},
    route::{NobodyLeft, Penalties, Route, Router, Tried, penalty_end},
    split::{Split, TableSplit, as_u32},
    transport::Wire,
};

/// What a lookup needs of its client.
#[derive(Debug)]
pub(crate) struct Fanout<'a> {
    pub(crate) config: &'a ClientConfig,
    pub(crate) channels: &'a Channels,
    pub(crate) penalties: &'a Mutex<Penalties>,
    pub(crate) metrics: Option<&'a Metrics>,
    pub(crate) map: &'a ClusterMap,
    pub(crate) split: &'a Split<'a>,
    pub(crate) options: &'a LookupOptions,
    pub(crate) request_id: &'a str,
    /// When the budget is spent.
    pub(crate) deadline: Instant,
}

/// Every needed partition, answered once.
#[derive(Debug, Default)]
pub(crate) struct Gathered<'m> {
    /// In the order of the questions.
    pub(crate) answers: Vec<Answered>,
    /// Which node gave each of them.
    pub(crate) answered_by: Vec<&'m NodeId>,
    pub(crate) nodes_touched: u32,
    pub(crate) fallbacks: u32,
    pub(crate) rows_requested: u64,
    pub(crate) wire_bytes: WireBytes,
}

/// A call that has ended.
struct Done<'a> {
    /// Its number, in the order of asking.
    number: usize,
    ask: NodeAsk<'a>,
    result: Result<Reply, Box<NodeError>>,
}

struct Reply {
    response: v1::LookupResponse,
    /// Bytes sent per feature.
    sent: Vec<usize>,
}

/// What has been asked so far.
struct State<'c> {
    tried: Tried<'c>,
    calls: FuturesUnordered<Call<'c>>,
    /// Every node asked, once.
    nodes: Vec<&'c NodeId>,
    /// Calls begun.
    asked: usize,
}

type Call<'a> = Pin<Box<dyn Future<Output = Done<'a>> + Send + 'a>>;

impl Fanout<'_> {
    /// Asks until everything is answered.
    ///
    /// # Errors
    /// [`ClientError`]: a refusal, the deadline, or nobody left to ask.
    pub(crate) async fn run<'c>(&'c self, router: &Router<'c>) -> Result<Gathered<'c>, ClientError> {
        let blank = |t: &TableSplit<'_>| vec![Vec::new(); t.partitions.len()];
        let mut state = State {
            tried: self.split.tables.iter().map(blank).collect(),
            calls: FuturesUnordered::new(),
            nodes: Vec::new(),
            asked: 0,
        };
        let mut out = Gathered::default();
        let mut answers: Vec<(usize, &NodeId, Vec<Answered>)> = Vec::new();
        let route = router.first().map_err(|nobody| self.nobody_left(nobody, &state.tried, None))?;
        self.ask(router, &route, &mut state);
        while let Some(Done { number, ask, result }) = state.calls.next().await {
            let (node, pieces) = (ask.node, ask.pieces);
            let checked = result.and_then(|reply| self.accept(node, ask.asks, reply, &mut out));
            self.note(node, checked.as_ref().err().map(|error| error.code()));
            match checked {
                Ok(checked) => answers.push((number, node, checked)),
                Err(error) if self.deadline <= Instant::now() => {
                    debug!(%error, "lookup deadline");
                    return Err(self.too_late(node));
                }
                Err(error) if error.code().retry_elsewhere() => {
                    debug!(%error, partitions = pieces.len(), "asking elsewhere");
                    out.fallbacks += as_u32(pieces.len());
                    let route = router
                        .elsewhere(&pieces, &state.tried)
                        .map_err(|nobody| self.nobody_left(nobody, &state.tried, Some(error)))?;
                    self.ask(router, &route, &mut state);
                }
                Err(error) if error.code() == ErrorCode::DeadlineExceeded => {
                    return Err(self.too_late(node));
                }
                Err(error) => return Err(ClientError::Refused(error)),
            }
        }
        answers.sort_by_key(|(number, ..)| *number);
        for (_, node, of_call) in answers {
            out.answered_by.resize(out.answered_by.len() + of_call.len(), node);
            out.answers.extend(of_call);
        }
        out.nodes_touched = as_u32(state.nodes.len());
        Ok(out)
    }

    /// Begins the calls of a route.
    fn ask<'c>(&'c self, router: &Router<'c>, route: &Route<'c>, state: &mut State<'c>) {
        for ask in asks::build(self.split, route, self.options) {
            for (table, slot) in &ask.pieces {
                state.tried[*table][*slot as usize].push(ask.node);
            }
            if !state.nodes.contains(&ask.node) {
                state.nodes.push(ask.node);
            }
            let alternative = router.has_alternative(&ask.pieces, &state.tried);
            state.calls.push(Box::pin(self.call(state.asked, ask, alternative)));
            state.asked += 1;
        }
    }

    /// One call to one node.
    async fn call<'c>(&'c self, number: usize, ask: NodeAsk<'c>, alternative: bool) -> Done<'c> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let share = if alternative { left / 2 } else { left };
        let message = v1::LookupRequest {
            request_id: self.request_id.to_owned(),
            tenant: self.options.tenant.as_ref().unwrap_or(&self.config.tenant).clone(),
            // 0 means none, so the last microsecond stays one.
            deadline_us: u64::try_from(left.as_micros()).unwrap_or(u64::MAX).max(1),
            traceparent: String::new(),
            features: ask.asks.iter().map(|a| a.encode(self.split)).collect(),
            ..v1::LookupRequest::default()
        };
        let sent = message.features.iter().map(sent_bytes).collect();
        let result = match self.channels.get(self.address(ask.node)) {
            Err(problem) => Err(NodeFailure::Address(problem)),
            Ok(_) if left.is_zero() => Err(NodeFailure::TimedOut(Duration::ZERO)),
            Ok(channel) => {
                let wire = Wire {
                    max_message_bytes: self.config.max_message_bytes,
                    stream_max_bytes: self.config.stream_max_bytes,
                };
                let answer_bytes = ask.asks.iter().map(|a| a.answer_bytes(self.split)).sum();
                let answer = channel.call(message, answer_bytes, share, wire).await;
                answer.map(|response| Reply { response, sent })
            }
        };
        let result = result.map_err(|failure| self.failed(ask.node, failure));
        Done { number, ask, result }
    }

    /// Checks a reply and counts it.
    fn accept(
        &self,
        node: &NodeId,
        asked: Vec<Ask>,
        reply: Reply,
        out: &mut Gathered<'_>,
    ) -> Result<Vec<Answered>, Box<NodeError>> {
        let answered: Vec<usize> = reply.response.features.iter().map(answer_bytes).collect();
        let checked = answer::check(self.split, asked, reply.response)
            .map_err(|bad| self.failed(node, NodeFailure::BadAnswer(bad)))?;
        for ((answer, sent), received) in checked.iter().zip(reply.sent).zip(answered) {
            out.rows_requested += answer.ask.ids().len() as u64;
            let bytes = match answer.ask {
                Ask::Gather { .. } => &mut out.wire_bytes.gather,
                Ask::Pool(_) => &mut out.wire_bytes.pool,
            };
            *bytes += (sent + received) as u64;
        }
        Ok(checked)
    }

    /// Remembers how a call to a node ended; None: well. Only what concerns the whole node makes it asked last: not a partition
    /// that it does not serve, nor a queue that was full for a moment.
    fn note(&self, node: &NodeId, code: Option<ErrorCode>) {
        if let Some(metrics) = self.metrics {
            metrics.rpc(code);
        }
        let mut penalties = self.penalties.lock().unwrap_or_else(PoisonError::into_inner);
        match code {
            None => penalties.clear(node),
            Some(ErrorCode::Unavailable | ErrorCode::Internal) => {
                penalties.add(node, penalty_end(Instant::now(), self.config.failure_penalty));
            }
            Some(_) => {}
        }
    }

    fn address(&self, node: &NodeId) -> &str {
        self.map.nodes.get(node).map_or("", |entry| entry.grpc_address.as_str())
    }

    fn failed(&self, node: &NodeId, failure: NodeFailure) -> Box<NodeError> {
        Box::new(NodeError { node: node.clone(), address: self.address(node).to_owned(), failure })
    }

    fn too_late(&self, node: &NodeId) -> ClientError {
        ClientError::DeadlineExceeded { timeout: self.options.timeout, node: Some(node.clone()) }
    }

    fn nobody_left(
        &self,
        NobodyLeft((table, slot)): NobodyLeft,
        tried: &Tried<'_>,
        last: Option<Box<NodeError>>,
    ) -> ClientError {
        let split = &self.split.tables[table];
        ClientError::Unavailable {
            table: split.layout.schema.table_version.clone(),
            partition: split.partitions[slot as usize],
            tried: tried[table][slot as usize].len(),
            last,
        }
    }
}

fn sent_bytes(feature: &v1::FeatureRequest) -> usize {
    feature.ids.len() + feature.members.len() + feature.bag_lengths.len() + feature.weights.len()
}

fn answer_bytes(feature: &v1::FeatureResponse) -> usize {
    feature.missing.len()
        + feature.rows.len()
        + feature.sums.len()
        + feature.counts.len()
        + feature.weight_sums.len()
}
