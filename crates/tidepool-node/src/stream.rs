//! Lookups that come over one long-lived stream: small ones are answered as they are read, large ones as they
//! are ready.
//!
//! **Invariant:** what is in flight is bounded, and a lookup that fails does not end the stream.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures::{
    FutureExt, Stream, StreamExt,
    future::{AbortHandle, Abortable, Aborted, BoxFuture},
    stream::FuturesUnordered,
};
use tidepool_proto::{refusal, v1};
use tidepool_runtime::auth::Standing;
use tidepool_table::PartitionRows;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use crate::service::EmbeddingService;

/// Lookups of one stream that may be worked on at the same time; further ones are not read until one is
/// answered. The rows in flight, of all streams together, are bounded besides.
const MAX_IN_FLIGHT: usize = 1024;

/// The answers to a stream of lookups.
pub(crate) struct Answers<P> {
    service: Arc<EmbeddingService<P>>,
    /// The caller, who may be taken out of the rules while the stream is open.
    standing: Standing,
    requests: Streaming<v1::LookupRequest>,
    /// Resolves when the node shuts down: what has been read is still answered.
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
    working: FuturesUnordered<Abortable<BoxFuture<'static, v1::LookupResponse>>>,
    /// Of the lookups that are worked on, by call.
    abort: HashMap<u64, AbortHandle>,
    /// No further lookup is read.
    ended: bool,
    /// Why, when what came was no message: said once all that was read before it has been answered.
    failed: Option<Status>,
}

impl<P: PartitionRows> Answers<P> {
    pub(crate) fn new(
        service: Arc<EmbeddingService<P>>,
        standing: Standing,
        requests: Streaming<v1::LookupRequest>,
    ) -> Self {
        let draining = Box::pin(service.draining.clone().cancelled_owned());
        Self {
            service,
            standing,
            requests,
            draining,
            working: FuturesUnordered::new(),
            abort: HashMap::new(),
            ended: false,
            failed: None,
        }
    }

    /// Takes in a message; an answer that needs no waiting is given at once.
    fn start(&mut self, request: v1::LookupRequest, cx: &mut Context<'_>) -> Option<v1::LookupResponse> {
        let call = request.call;
        if request.cancel {
            if let Some(work) = self.abort.remove(&call) {
                work.abort();
            }
            return None;
        }
        let (service, caller) = (self.service.clone(), self.standing.caller().clone());
        let received = Instant::now();
        let mut work = async move {
            let mut response = match service.respond_to(&caller, request, received).await {
                Ok(response) => response,
                Err(error) => v1::LookupResponse { failure: Some(error.failure()), ..Default::default() },
            };
            response.call = call;
            response
        }
        .boxed();
        match work.poll_unpin(cx) {
            Poll::Ready(response) => Some(response),
            Poll::Pending => {
                let (handle, registration) = AbortHandle::new_pair();
                self.working.push(Abortable::new(work, registration));
                self.abort.insert(call, handle);
                None
            }
        }
    }
}

impl<P: PartitionRows> Stream for Answers<P> {
    type Item = Result<v1::LookupResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match this.working.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(response))) => {
                    this.abort.remove(&response.call);
                    return Poll::Ready(Some(Ok(response)));
                }
                Poll::Ready(Some(Err(Aborted))) => continue,
                Poll::Ready(None) if this.ended => return Poll::Ready(this.failed.take().map(Err)),
                Poll::Ready(None) | Poll::Pending => {}
            }
            if this.ended || this.working.len() >= MAX_IN_FLIGHT {
                return Poll::Pending;
            }
            if this.draining.as_mut().poll(cx).is_ready() {
                this.ended = true;
                continue;
            }
            if let Poll::Ready(lost) = this.standing.poll_lost(cx) {
                (this.ended, this.failed) = (true, Some(refusal(true, lost.message)));
                continue;
            }
            match this.requests.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(request))) => {
                    if let Some(response) = this.start(request, cx) {
                        return Poll::Ready(Some(Ok(response)));
                    }
                }
                Poll::Ready(Some(Err(status))) => {
                    // Where the next message begins is not known any more.
                    (this.ended, this.failed) = (true, Some(status));
                }
                Poll::Ready(None) => this.ended = true,
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
