//! The long-lived stream to a node: lookups go out with a number, and come back in any order.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tidepool_proto::{
    code_of, code_of_failure,
    v1::{self, embedding_client::EmbeddingClient},
};
use tidepool_types::ErrorCode;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

use crate::{error::NodeFailure, transport::failure};

/// Lookups that wait to be sent; whoever comes then waits for room, as long as its budget lasts.
const QUEUE_LEN: usize = 64;

type Answer = Result<v1::LookupResponse, NodeFailure>;

/// One stream. It ends for good when the connection does; then another is opened.
#[derive(Debug)]
pub(crate) struct LookupStream {
    send: mpsc::Sender<v1::LookupRequest>,
    calls: Arc<Calls>,
    next: AtomicU64,
    /// Ends with the stream's last user.
    _reader: AbortOnDropHandle<()>,
}

/// Who waits for which answer; None once the stream has ended.
#[derive(Debug)]
struct Calls(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

/// The stream had ended before the lookup was sent: it may be sent over another.
#[derive(Debug)]
pub(crate) struct NotSent(pub(crate) Box<v1::LookupRequest>);

impl LookupStream {
    /// Opens a stream over `channel`, in the background: lookups may be sent at once.
    pub(crate) fn open(channel: Channel, max_message_bytes: usize) -> Self {
        let (send, outgoing) = mpsc::channel(QUEUE_LEN);
        let calls = Arc::new(Calls(Mutex::new(Some(HashMap::new()))));
        let reader = tokio::spawn(read(channel, outgoing, calls.clone(), max_message_bytes));
        Self { send, calls, next: AtomicU64::new(1), _reader: AbortOnDropHandle::new(reader) }
    }

    /// Sends `message` and waits for its answer. Dropping the future tells the node that nobody waits.
    pub(crate) async fn call(&self, mut message: v1::LookupRequest) -> Result<Answer, NotSent> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        message.call = call;
        let Ok(room) = self.send.reserve().await else {
            return Err(NotSent(Box::new(message)));
        };
        let (sender, answer) = oneshot::channel();
        match self.calls.lock().as_mut() {
            Some(waiting) => waiting.insert(call, sender),
            None => return Err(NotSent(Box::new(message))),
        };
        let mut waiting = Waiting { stream: self, call, answered: false };
        room.send(message);
        let answer = answer.await;
        waiting.answered = true;
        Ok(answer.unwrap_or_else(|_| Err(ended())))
    }

    /// Whether another must be opened for the next lookup.
    pub(crate) fn has_ended(&self) -> bool {
        self.send.is_closed() || self.calls.lock().is_none()
    }
}

/// A call that is under way.
struct Waiting<'a> {
    stream: &'a LookupStream,
    call: u64,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if let Some(waiting) = self.stream.calls.lock().as_mut() {
            waiting.remove(&self.call);
        }
        // Without room the node does its work in vain; its deadline bounds that.
        let _ = self.stream.send.try_send(v1::LookupRequest {
            call: self.call,
            cancel: true,
            ..Default::default()
        });
    }
}

impl Calls {
    /// Nothing panics while it is held.
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut response: v1::LookupResponse) {
        // Whoever has given up meanwhile is not there any more.
        let waiting = self.lock().as_mut().and_then(|waiting| waiting.remove(&response.call));
        let Some(waiting) = waiting else { return };
        let answer = match response.failure.take() {
            None => Ok(response),
            Some(failure) => {
                let (code, epoch) = code_of_failure(&failure);
                Err(NodeFailure::Status { code, message: failure.message, epoch })
            }
        };
        let _ = waiting.send(answer);
    }
}

fn ended() -> NodeFailure {
    let message = "the stream of lookups has ended".to_owned();
    NodeFailure::Status { code: ErrorCode::Unavailable, message, epoch: None }
}

/// The life of a stream: hands out answers until it ends, then fails whoever still waits.
async fn read(
    channel: Channel,
    outgoing: mpsc::Receiver<v1::LookupRequest>,
    calls: Arc<Calls>,
    max_message_bytes: usize,
) {
    let mut client = EmbeddingClient::new(channel)
        .max_decoding_message_size(max_message_bytes)
        .max_encoding_message_size(max_message_bytes);
    let refused = match client.lookup_stream(ReceiverStream::new(outgoing)).await {
        Err(status) => Some(status),
        Ok(answers) => {
            let mut answers = answers.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(response)) => calls.answer(response),
                    Ok(None) => break None,
                    // A node that is full says so to all. Otherwise how a stream ends says nothing of any one lookup.
                    Err(status) => break Some(status).filter(|s| code_of(s) == ErrorCode::Overloaded),
                }
            }
        }
    };
    let waiting = calls.lock().take();
    for waiting in waiting.into_iter().flat_map(HashMap::into_values) {
        let why = refused.as_ref().map_or_else(ended, failure);
        let _ = waiting.send(Err(why));
    }
}
