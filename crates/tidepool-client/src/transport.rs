//! One call to one node over gRPC: a message goes out, an answer or a [`NodeFailure`] comes back.
//!
//! Nothing above this file knows how messages travel, and nothing in it knows what they mean. Small lookups
//! share one long-lived stream, which costs less CPU than a call each (the bench `wire` of tidepool-bench); large
//! ones are calls of their own, so that nothing small waits behind their bytes.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prost::Message;
use tidepool_proto::{
    code_of, epoch_of,
    v1::{self, embedding_client::EmbeddingClient},
};
use tidepool_types::ErrorCode;
use tonic::{Status, body::Body, client::GrpcService, codegen::http};

use crate::{
    channels::Line,
    error::NodeFailure,
    stream::{LookupStream, NoAnswer},
};

/// How messages travel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    /// The largest message sent or received.
    pub(crate) max_message_bytes: usize,
    /// Bytes of question and answer up to which a lookup goes over the stream.
    pub(crate) stream_max_bytes: usize,
}

/// Messages up to this length go over the stream, whatever a node has refused.
const STREAM_TAKES_BYTES: usize = 1 << 10;

impl Wire {
    /// Bytes of question and answer, as far as they are known beforehand, up to which a lookup goes over the
    /// stream. There a message that is too long, either way, ends the lookups of all; what an answer has beside
    /// rows and sums is never as long as its question.
    const fn stream_bytes(self) -> usize {
        let safe = self.max_message_bytes / 2;
        if self.stream_max_bytes < safe { self.stream_max_bytes } else { safe }
    }
}

/// The connection to a node. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    channel: Line,
    stream: Arc<Mutex<Option<Arc<LookupStream>>>>,
    /// The largest message that goes over the stream, as far as the node has shown by refusing larger ones.
    stream_takes: Arc<AtomicUsize>,
}

impl Connection {
    pub(crate) fn new(channel: Line) -> Self {
        Self { channel, stream: Arc::default(), stream_takes: Arc::new(AtomicUsize::new(usize::MAX)) }
    }

    /// Makes the connection, within `timeout`. It asks for the peer's health and takes any answer, also that
    /// nothing is known of such a service: a connection is then there.
    ///
    /// # Errors
    /// [`NodeFailure`]: there is no connection.
    pub(crate) async fn connect(&self, timeout: Duration) -> Result<(), NodeFailure> {
        let mut channel = self.channel.clone();
        let unreachable =
            |message: String| NodeFailure::Status { code: ErrorCode::Unavailable, message, epoch: None };
        let ask = async {
            poll_fn(|cx| GrpcService::<Body>::poll_ready(&mut channel, cx)).await?;
            let mut request = http::Request::new(Body::empty());
            *request.method_mut() = http::Method::POST;
            *request.uri_mut() = http::Uri::from_static("/grpc.health.v1.Health/Check");
            let grpc = http::HeaderValue::from_static("application/grpc");
            request.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
            GrpcService::call(&mut channel, request).await
        };
        match tokio::time::timeout(timeout, ask).await {
            Err(_) => Err(NodeFailure::TimedOut(timeout)),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Ok(Ok(_)) => Ok(()),
        }
    }

    /// Sends what `message` gives and waits for its answer, of about `answer_bytes`, for at most `timeout`.
    /// Dropping the future cancels the call.
    ///
    /// # Errors
    /// [`NodeFailure::Status`] of the node or the connection, [`NodeFailure::TimedOut`] or
    /// [`NodeFailure::TooLong`].
    pub(crate) async fn call(
        &self,
        message: impl Fn() -> v1::LookupRequest,
        answer_bytes: usize,
        timeout: Duration,
        wire: Wire,
    ) -> Result<v1::LookupResponse, NodeFailure> {
        let call = async {
            let mut first = message();
            let (bytes, limit) = (first.encoded_len(), wire.max_message_bytes);
            if bytes > limit {
                return Err(NodeFailure::TooLong { bytes, limit });
            }
            if bytes > self.stream_takes.load(Ordering::Relaxed)
                || bytes.saturating_add(answer_bytes) > wire.stream_bytes()
            {
                return self.unary(first, wire).await;
            }
            // A stream that has ended without having taken the message is no failure of the node's yet.
            for _ in 0..2 {
                match self.stream(wire).call(first, bytes).await {
                    Ok(answer) => return answer,
                    Err(NoAnswer::NotSent(back)) => first = *back,
                    Err(NoAnswer::Refused { longest }) => {
                        self.stream_takes.fetch_min((longest / 2).max(STREAM_TAKES_BYTES), Ordering::Relaxed);
                        return self.unary(message(), wire).await;
                    }
                }
            }
            self.unary(first, wire).await
        };
        tokio::time::timeout(timeout, call).await.unwrap_or(Err(NodeFailure::TimedOut(timeout)))
    }

    async fn unary(&self, message: v1::LookupRequest, wire: Wire) -> Result<v1::LookupResponse, NodeFailure> {
        let mut client = EmbeddingClient::new(self.channel.clone())
            .max_decoding_message_size(wire.max_message_bytes)
            .max_encoding_message_size(wire.max_message_bytes);
        let answer = client.lookup(message).await;
        answer.map(tonic::Response::into_inner).map_err(|status| failure(&status))
    }

    /// The stream, opened if there is none that goes on.
    fn stream(&self, wire: Wire) -> Arc<LookupStream> {
        let mut open = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        match &*open {
            Some(stream) if !stream.has_ended() => stream.clone(),
            _ => {
                let stream = Arc::new(LookupStream::open(self.channel.clone(), wire.max_message_bytes));
                open.insert(stream).clone()
            }
        }
    }
}

/// What a status says.
pub(crate) fn failure(status: &Status) -> NodeFailure {
    NodeFailure::Status {
        code: code_of(status),
        message: status.message().to_owned(),
        epoch: epoch_of(status),
    }
}
