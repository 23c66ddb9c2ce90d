//! Peers that stand in for a node, which have one way to answer a lookup, however it comes: proxies, and the
//! nodes of tests.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    code_of, epoch_of, failure_of,
    v1::{self, embedding_server::Embedding},
};

/// Lookups of one stream that are worked on at the same time.
const MAX_IN_FLIGHT: usize = 256;

/// Answers every lookup of `requests` by `answer`, in the order in which the answers are ready; a status
/// becomes the failure of its lookup. Cancellations are passed over.
pub fn answer_stream<A, F>(
    requests: Streaming<v1::LookupRequest>,
    answer: A,
) -> impl Stream<Item = Result<v1::LookupResponse, Status>> + Send + 'static
where
    A: Fn(v1::LookupRequest) -> F + Send + Sync + 'static,
    F: Future<Output = Result<v1::LookupResponse, Status>> + Send,
{
    let answer = Arc::new(answer);
    let answers = requests.map(move |request| {
        let answer = answer.clone();
        async move {
            let request = request?;
            if request.cancel {
                return Ok(None);
            }
            let call = request.call;
            let mut response = answer(request).await.unwrap_or_else(|status| v1::LookupResponse {
                failure: Some(failure_of(code_of(&status), status.message(), epoch_of(&status))),
                ..Default::default()
            });
            response.call = call;
            Ok(Some(response))
        }
    });
    answers.buffer_unordered(MAX_IN_FLIGHT).filter_map(async |answered| answered.transpose())
}

/// An Embedding service that answers every lookup by a function, over the stream and by itself.
#[derive(Clone, Debug)]
pub struct StandIn<A>(pub A);

#[tonic::async_trait]
impl<A, F> Embedding for StandIn<A>
where
    A: Fn(v1::LookupRequest) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<v1::LookupResponse, Status>> + Send + 'static,
{
    type LookupStreamStream = Pin<Box<dyn Stream<Item = Result<v1::LookupResponse, Status>> + Send>>;

    async fn lookup_stream(
        &self,
        requests: Request<Streaming<v1::LookupRequest>>,
    ) -> Result<Response<Self::LookupStreamStream>, Status> {
        Ok(Response::new(Box::pin(answer_stream(requests.into_inner(), self.0.clone()))))
    }

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        (self.0)(request.into_inner()).await.map(Response::new)
    }
}
