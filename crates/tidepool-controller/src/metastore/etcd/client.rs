//! Calls to etcd: each goes to one member, and to the next when that one cannot help.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tidepool_runtime::tls::Dial;
use tokio::time::timeout;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use super::EtcdOptions;
use super::pb::{
    etcdserverpb::{
        CompactionRequest, Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest,
        RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
        WatchResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        kv_client::KvClient,
        lease_client::LeaseClient,
        request_op::Request,
        watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    mvccpb::KeyValue,
};
use crate::metastore::MetastoreError;

/// The largest answer: one chunk fits many times.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A client. Clones share its connections.
#[derive(Clone)]
pub(super) struct Etcd(Arc<Inner>);

struct Inner {
    members: Vec<(String, Channel)>,
    /// The member that is asked first.
    at: AtomicUsize,
    timeout: Duration,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.members.iter().map(|(name, _)| name).collect();
        f.debug_struct("Etcd").field("members", &names).finish_non_exhaustive()
    }
}

/// A lease that etcd has granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) id: i64,
    pub(super) ttl: Duration,
}

impl Etcd {
    /// A client of the members. Nobody is asked yet.
    ///
    /// # Errors
    /// [`MetastoreError::Endpoint`]; [`MetastoreError::Tls`].
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, MetastoreError> {
        let timeout = options.timeout;
        let dial = match &options.tls {
            Some(files) => Dial::with_files_of_now(files.clone())?,
            None => Dial::default(),
        };
        let members = options.endpoints.iter().map(|name| {
            // What is spoken is up to `dial`.
            let plain = name.strip_prefix("https://").map(|address| format!("http://{address}"));
            let endpoint = Endpoint::from_shared(plain.unwrap_or_else(|| name.clone())).map_err(|error| {
                let (endpoint, problem) = (name.clone(), error.to_string());
                MetastoreError::Endpoint { endpoint, problem }
            })?;
            let endpoint = endpoint
                .connect_timeout(timeout)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(timeout)
                .keep_alive_timeout(timeout)
                .keep_alive_while_idle(true);
            Ok((name.clone(), dial.channel(endpoint)))
        });
        let members = members.collect::<Result<Vec<_>, MetastoreError>>()?;
        if members.is_empty() {
            let problem = "there is none".to_owned();
            return Err(MetastoreError::Endpoint { endpoint: String::new(), problem });
        }
        Ok(Self(Arc::new(Inner { members, at: AtomicUsize::new(0), timeout })))
    }

    /// Asks each member at most once until one answers. What is asked may have been done although no answer came.
    async fn call<T, F>(&self, tried: &'static str, call: impl Fn(Channel) -> F) -> Result<T, MetastoreError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let Inner { members, at, timeout: patience } = &*self.0;
        let mut asked = 1;
        loop {
            let first = at.load(Ordering::Relaxed);
            let (name, channel) = &members[first % members.len()];
            let late = || Status::deadline_exceeded(format!("no answer within {} ms", patience.as_millis()));
            let answer = timeout(*patience, call(channel.clone())).await.unwrap_or_else(|_| Err(late()));
            let status = match answer {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            // Somebody else may have gone on to the next already.
            let next = (first + 1) % members.len();
            let _ = at.compare_exchange(first, next, Ordering::Relaxed, Ordering::Relaxed);
            if asked >= members.len() || !another_may_help(&status) {
                return Err(MetastoreError::Etcd { tried, endpoint: name.clone(), source: Box::new(status) });
            }
            asked += 1;
        }
    }

    /// A key as it is now, and the revision of the whole store.
    pub(super) async fn get(
        &self,
        tried: &'static str,
        key: Vec<u8>,
    ) -> Result<(Option<KeyValue>, i64), MetastoreError> {
        let mut answer =
            self.range(tried, RangeRequest { key: key.into(), ..RangeRequest::default() }).await?;
        let header = answer.header.take().ok_or(MetastoreError::Answer("a read without a header"))?;
        Ok((answer.kvs.pop(), header.revision))
    }

    /// A key as it was at a revision.
    pub(super) async fn get_at(
        &self,
        tried: &'static str,
        key: Vec<u8>,
        revision: i64,
    ) -> Result<Option<KeyValue>, MetastoreError> {
        let request = RangeRequest { key: key.into(), revision, ..RangeRequest::default() };
        Ok(self.range(tried, request).await?.kvs.pop())
    }

    async fn range(
        &self,
        tried: &'static str,
        request: RangeRequest,
    ) -> Result<RangeResponse, MetastoreError> {
        self.call(tried, |channel| {
            let request = request.clone();
            async move { kv(channel).range(request).await }
        })
        .await
    }

    /// A transaction. It must do no harm when it is done twice.
    pub(super) async fn txn(
        &self,
        tried: &'static str,
        request: TxnRequest,
    ) -> Result<TxnResponse, MetastoreError> {
        self.call(tried, |channel| {
            let request = request.clone();
            async move { kv(channel).txn(request).await }
        })
        .await
    }

    /// Has etcd forget what was before a revision; that it has done so already is as good.
    pub(super) async fn compact(&self, revision: i64) -> Result<(), MetastoreError> {
        let request = CompactionRequest { revision };
        let compacted =
            self.call("compact the history", |channel| async move { kv(channel).compact(request).await });
        match compacted.await {
            Err(MetastoreError::Etcd { source, .. }) if source.code() == Code::OutOfRange => Ok(()),
            other => other.map(drop),
        }
    }

    pub(super) async fn grant(&self, ttl: Duration) -> Result<Granted, MetastoreError> {
        let request = LeaseGrantRequest { ttl: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX), id: 0 };
        let answer = self
            .call("be granted a lease", |channel| async move {
                LeaseClient::new(channel).lease_grant(request).await
            })
            .await?;
        let ttl = u64::try_from(answer.ttl).ok().filter(|ttl| *ttl > 0);
        let ttl = ttl.ok_or(MetastoreError::Answer("a lease that has no duration"))?;
        Ok(Granted { id: answer.id, ttl: Duration::from_secs(ttl) })
    }

    /// Ends a lease, and with it the keys that live by it. That there is no such lease any more is as good.
    pub(super) async fn revoke(&self, id: i64) -> Result<(), MetastoreError> {
        let revoked = self.call("give a lease back", |channel| async move {
            LeaseClient::new(channel).lease_revoke(LeaseRevokeRequest { id }).await
        });
        match revoked.await {
            Err(MetastoreError::Etcd { source, .. }) if source.code() == Code::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Renews a lease; gives how long it lives from now, `None` when there is no such lease any more.
    pub(super) async fn renew(&self, id: i64) -> Result<Option<Duration>, MetastoreError> {
        let answer = self
            .call("renew the lease", |channel| async move {
                let one = futures::stream::iter([LeaseKeepAliveRequest { id }]);
                let mut answers = LeaseClient::new(channel).lease_keep_alive(one).await?.into_inner();
                let answer = answers.message().await?;
                answer.map(Response::new).ok_or_else(|| Status::unavailable("the stream ended"))
            })
            .await?;
        Ok(u64::try_from(answer.ttl).ok().filter(|ttl| *ttl > 0).map(Duration::from_secs))
    }

    /// Waits for the first change of a key from `revision` on, at most `patience`. It may return before that.
    pub(super) async fn changed(&self, key: Vec<u8>, revision: i64, patience: Duration) {
        let create = WatchCreateRequest { key: key.into(), start_revision: revision, ..Default::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let watch = self.call("watch who leads", |channel| {
            // The stream of requests stays open: its end would be the end of the watch.
            let requests = futures::StreamExt::chain(
                futures::stream::iter([create.clone()]),
                futures::stream::pending(),
            );
            async move { WatchClient::new(channel).watch(requests).await }
        });
        let change = async {
            let Ok(mut answers) = watch.await else { return std::future::pending().await };
            while let Ok(Some(WatchResponse { events, canceled, .. })) = answers.message().await {
                if canceled || !events.is_empty() {
                    return;
                }
            }
        };
        let _ = timeout(patience, change).await;
    }
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// Whether another member may do what this one has not done.
fn another_may_help(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::Unimplemented
    )
}

/// The condition that a key came into being at this revision; 0: that there is none.
pub(super) fn created_at(key: Vec<u8>, revision: i64) -> Compare {
    let is = TargetUnion::CreateRevision(revision);
    compare(key, CompareTarget::Create, is)
}

/// The condition that a key was written last at this revision; 0: that there is none.
pub(super) fn written_at(key: Vec<u8>, revision: i64) -> Compare {
    compare(key, CompareTarget::Mod, TargetUnion::ModRevision(revision))
}

fn compare(key: Vec<u8>, target: CompareTarget, is: TargetUnion) -> Compare {
    let result = CompareResult::Equal.into();
    Compare { result, target: target.into(), key: key.into(), target_union: Some(is) }
}

pub(super) fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> RequestOp {
    let put = PutRequest { key: key.into(), value: value.into(), lease };
    RequestOp { request: Some(Request::RequestPut(put)) }
}

pub(super) fn read(key: Vec<u8>) -> RequestOp {
    let range = RangeRequest { key: key.into(), ..RangeRequest::default() };
    RequestOp { request: Some(Request::RequestRange(range)) }
}

/// Deletes every key from `key` to before `end`.
pub(super) fn delete(key: Vec<u8>, end: Vec<u8>) -> RequestOp {
    let delete = super::pb::etcdserverpb::DeleteRangeRequest { key: key.into(), range_end: end.into() };
    RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}
