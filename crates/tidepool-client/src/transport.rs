//! One call to one node over gRPC: a message goes out, an answer or a [`NodeFailure`] comes back.
//!
//! Nothing above this file knows how messages travel, and nothing in it knows what they mean.

use std::time::Duration;

use tidepool_proto::{
    code_of, epoch_of,
    v1::{self, embedding_client::EmbeddingClient},
};
use tonic::transport::Channel;

use crate::error::NodeFailure;

/// Sends `message` and waits for its answer, for at most `timeout`. Dropping the future cancels the call.
///
/// # Errors
/// [`NodeFailure::Status`] of the node or the connection, or [`NodeFailure::TimedOut`].
pub(crate) async fn call(
    channel: Channel,
    message: v1::LookupRequest,
    timeout: Duration,
    max_message_bytes: usize,
) -> Result<v1::LookupResponse, NodeFailure> {
    let mut client = EmbeddingClient::new(channel)
        .max_decoding_message_size(max_message_bytes)
        .max_encoding_message_size(max_message_bytes);
    match tokio::time::timeout(timeout, client.lookup(message)).await {
        Err(_) => Err(NodeFailure::TimedOut(timeout)),
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(NodeFailure::Status {
            code: code_of(&status),
            message: status.message().to_owned(),
            epoch: epoch_of(&status),
        }),
    }
}
