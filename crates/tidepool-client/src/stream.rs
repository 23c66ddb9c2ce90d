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
use tonic::Status;
use tracing::info;

use crate::{channels::Line, error::NodeFailure, transport::failure};

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
struct Calls(Mutex<Option<HashMap<u64, Caller>>>);

/// Who waits for an answer.
#[derive(Debug)]
struct Caller {
    /// Length of the message.
    bytes: usize,
    tell: oneshot::Sender<Result<Answer, Refused>>,
}

/// The node has ended the stream because of one message. Which, it does not say: the longest that nobody had an
/// answer to had so many bytes.
#[derive(Clone, Copy, Debug)]
struct Refused {
    longest: usize,
}

/// Why a stream brings no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// It had ended before the lookup was sent: it may be sent over another.
    NotSent(Box<v1::LookupRequest>),
    /// The node has ended it because of one message, this one or another: each is to be sent by itself.
    Refused {
        /// Bytes of the longest message that was on the stream.
        longest: usize,
    },
}

impl LookupStream {
    /// Opens a stream over `channel`, in the background: lookups may be sent at once.
    pub(crate) fn open(channel: Line, max_message_bytes: usize) -> Self {
        let (send, outgoing) = mpsc::channel(QUEUE_LEN);
        let calls = Arc::new(Calls(Mutex::new(Some(HashMap::new()))));
        let reader = tokio::spawn(read(channel, outgoing, calls.clone(), max_message_bytes));
        Self { send, calls, next: AtomicU64::new(1), _reader: AbortOnDropHandle::new(reader) }
    }

    /// Sends `message`, which takes `bytes`, and waits for its answer. Dropping the future tells the node that
    /// nobody waits.
    pub(crate) async fn call(
        &self,
        mut message: v1::LookupRequest,
        bytes: usize,
    ) -> Result<Answer, NoAnswer> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        message.call = call;
        let Ok(room) = self.send.reserve().await else {
            return Err(NoAnswer::NotSent(Box::new(message)));
        };
        let (tell, answer) = oneshot::channel();
        match self.calls.lock().as_mut() {
            Some(waiting) => waiting.insert(call, Caller { bytes, tell }),
            None => return Err(NoAnswer::NotSent(Box::new(message))),
        };
        let mut waiting = Waiting { stream: self, call, answered: false };
        room.send(message);
        let answer = answer.await;
        waiting.answered = true;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Refused { longest })) => Err(NoAnswer::Refused { longest }),
            Err(_) => Ok(Err(ended())),
        }
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
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Caller>>> {
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
        let _ = waiting.tell.send(Ok(answer));
    }
}

/// How a stream has ended.
enum End {
    /// With a status that holds for every lookup on it.
    Told(Status),
    /// Because of one of its messages.
    Refused,
    /// In a way that says nothing of any one lookup.
    Untold,
}

fn ended() -> NodeFailure {
    let message = "the stream of lookups has ended".to_owned();
    NodeFailure::Status { code: ErrorCode::Unavailable, message, epoch: None }
}

/// The life of a stream: hands out answers until it ends, then fails whoever still waits.
async fn read(
    channel: Line,
    outgoing: mpsc::Receiver<v1::LookupRequest>,
    calls: Arc<Calls>,
    max_message_bytes: usize,
) {
    let mut client = EmbeddingClient::new(channel)
        .max_decoding_message_size(max_message_bytes)
        .max_encoding_message_size(max_message_bytes);
    let end = match client.lookup_stream(ReceiverStream::new(outgoing)).await {
        Err(status) => End::Told(status),
        Ok(answers) => {
            let mut answers = answers.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(response)) => calls.answer(response),
                    Ok(None) => break End::Untold,
                    Err(status) => match code_of(&status) {
                        // A node that is full says so to all.
                        ErrorCode::Overloaded => break End::Told(status),
                        // A message that is too long, or is none: that of one caller, and no fault of the others.
                        ErrorCode::InvalidRequest => break End::Refused,
                        _ => break End::Untold,
                    },
                }
            }
        }
    };
    let waiting = calls.lock().take().unwrap_or_default();
    let longest = waiting.values().map(|caller| caller.bytes).max().unwrap_or(0);
    if matches!(end, End::Refused) {
        info!(longest_bytes = longest, lookups = waiting.len(), "a node refused a message of its stream");
    }
    for caller in waiting.into_values() {
        let why = match &end {
            End::Told(status) => Ok(Err(failure(status))),
            End::Refused => Err(Refused { longest }),
            End::Untold => Ok(Err(ended())),
        };
        let _ = caller.tell.send(why);
    }
}
