//! What stands between HTTP/2 and the service: whoever connects can send long messages without an end, or
//! ask for long answers and never read them. Their bytes come out of one budget, and every refusal has a
//! code that a caller can act on, also those that the transport makes by itself.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use prometheus::{IntCounterVec, IntGauge};
use tidepool_proto::{CODE_HEADER, code_of};
use tidepool_types::ErrorCode;
use tokio::time::{Sleep, sleep};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{
        Service,
        http::{HeaderMap, HeaderValue, Request, Response},
    },
    server::NamedService,
};

use crate::{error::LookupError, lookup::Answer};

const GRPC_STATUS: &str = "grpc-status";

/// What a node holds for its callers at one time: messages that have not come whole, and answers that have
/// not been taken. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Guard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held_bytes: IntGauge,
    max_held_bytes: i64,
    receive_timeout: Duration,
    lookups: IntCounterVec,
}

impl Guard {
    /// A guard that holds `max_held_bytes`, shows in `held_bytes` how many they are, gives up a message that
    /// has not come whole after `receive_timeout`, and counts what it refuses in `lookups` by code.
    pub(crate) fn new(
        max_held_bytes: u64,
        receive_timeout: Duration,
        held_bytes: IntGauge,
        lookups: IntCounterVec,
    ) -> Self {
        let max_held_bytes = i64::try_from(max_held_bytes).unwrap_or(i64::MAX);
        Self(Arc::new(Inner { held_bytes, max_held_bytes, receive_timeout, lookups }))
    }

    fn nothing(&self) -> Held {
        Held { guard: self.clone(), bytes: 0 }
    }

    /// Room for the rows and sums of an answer, taken before there are any.
    ///
    /// # Errors
    /// [`LookupError::TooMuchHeld`] when there is none.
    pub(crate) fn hold(&self, bytes: u64) -> Result<Held, LookupError> {
        let mut held = self.nothing();
        held.set(bytes)?;
        Ok(held)
    }

    /// Puts the guard before a service.
    pub(crate) const fn before<S>(self, inner: S) -> Guarded<S> {
        Guarded { guard: self, inner }
    }

    /// Refusals that tonic makes before the service is asked have no code of ours, and say `internal` of bytes
    /// that are no message: the caller would ask the next replica with them.
    fn give_code(&self, headers: &mut HeaderMap) {
        let Some(status) = headers.get(GRPC_STATUS) else { return };
        let code = match Code::from_bytes(status.as_bytes()) {
            _ if headers.contains_key(CODE_HEADER) => return,
            Code::Ok => return,
            Code::Internal | Code::Unknown | Code::Unimplemented => ErrorCode::InvalidRequest,
            other => code_of(&Status::new(other, "")),
        };
        if code == ErrorCode::InvalidRequest {
            headers.insert(GRPC_STATUS, HeaderValue::from(Code::InvalidArgument as i32));
        }
        headers.insert(CODE_HEADER, HeaderValue::from_static(code.as_str()));
        self.count(code);
    }

    fn count(&self, refused: ErrorCode) {
        self.0.lookups.with_label_values(&[refused.as_str()]).inc();
    }
}

/// Bytes that a node holds for a caller.
#[derive(Debug)]
pub(crate) struct Held {
    guard: Guard,
    bytes: i64,
}

impl Held {
    /// From now on it is so many bytes.
    fn set(&mut self, bytes: u64) -> Result<(), LookupError> {
        let Inner { held_bytes, max_held_bytes, .. } = &*self.guard.0;
        let more = i64::try_from(bytes).unwrap_or(i64::MAX).saturating_sub(self.bytes);
        // Two that come at once may both be refused where one would have fitted; never are both let in.
        held_bytes.add(more);
        let held = held_bytes.get();
        if more > 0 && held > *max_held_bytes {
            held_bytes.sub(more);
            return Err(LookupError::TooMuchHeld { held: held - more, more, limit: *max_held_bytes });
        }
        self.bytes += more;
        Ok(())
    }

    /// Counts bytes that are there already: to refuse them would free nothing.
    fn add(&mut self, bytes: u64) {
        let more = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.guard.0.held_bytes.add(more);
        self.bytes = self.bytes.saturating_add(more);
    }

    /// Goes with an answer's rows and sums as long as they are in memory: until they have been written, or nobody
    /// waits for them any more.
    pub(crate) fn until_taken(self, mut answer: Answer) -> Answer {
        let held = Arc::new(self);
        for feature in &mut answer.response.features {
            for bytes in [&mut feature.rows, &mut feature.sums] {
                if !bytes.is_empty() {
                    *bytes = held.keep(std::mem::take(bytes));
                }
            }
        }
        answer
    }

    /// These bytes, held as long as anybody has them.
    fn keep(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Kept { bytes, _held: Arc::clone(self) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.guard.0.held_bytes.sub(self.bytes);
    }
}

/// A gRPC service behind a [`Guard`].
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let held = self.guard.nothing();
        let incoming = |body| Body::new(Incoming { body, message: Message::default(), held, patience: None });
        let request = request.map(incoming);
        Call { guard: self.guard.clone(), inner: self.inner.call(request) }
    }
}

/// A call that is being answered.
#[derive(Debug)]
pub(crate) struct Call<F> {
    guard: Guard,
    inner: F,
}

impl<F> Future for Call<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut response) = ready!(Pin::new(&mut self.inner).poll(cx));
        self.guard.give_code(response.headers_mut());
        let guard = self.guard.clone();
        Poll::Ready(Ok(response.map(|body| Body::new(Outgoing { body, guard }))))
    }
}

/// Messages on their way in. What is held is the one that has not come whole.
#[derive(Debug)]
struct Incoming {
    body: Body,
    message: Message,
    held: Held,
    /// Runs while the rest of a message is awaited.
    patience: Option<Pin<Box<Sleep>>>,
}

/// How much of a message has come: gRPC has five bytes before it, a flag and its length.
#[derive(Clone, Copy, Debug, Default)]
struct Message {
    head: [u8; 5],
    come: u64,
}

impl Message {
    /// Takes in what comes next; true when a message was completed by it.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        let mut completed = false;
        while !bytes.is_empty() {
            let head = self.head.len() as u64;
            let left = if self.come < head {
                head - self.come
            } else {
                let [_, length @ ..] = self.head;
                head + u64::from(u32::from_be_bytes(length)) - self.come
            };
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            if self.come < head {
                let at = self.come as usize;
                self.head[at..at + now.len()].copy_from_slice(now);
            }
            self.come += now.len() as u64;
            bytes = later;
            let [_, length @ ..] = self.head;
            if self.come >= head && self.come == head + u64::from(u32::from_be_bytes(length)) {
                *self = Self::default();
                completed = true;
            }
        }
        completed
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, message, held, patience } = &mut *self;
        let refused = match Pin::new(body).poll_frame(cx) {
            // Between two messages of a stream nothing is awaited.
            Poll::Pending if message.come == 0 => return Poll::Pending,
            Poll::Pending => {
                let timeout = held.guard.0.receive_timeout;
                ready!(patience.get_or_insert_with(|| Box::pin(sleep(timeout))).as_mut().poll(cx));
                LookupError::SentTooSlowly { timeout }
            }
            Poll::Ready(Some(Ok(frame))) => {
                if frame.data_ref().is_some_and(|data| message.take(data)) {
                    *patience = None;
                }
                match held.set(message.come) {
                    Ok(()) => return Poll::Ready(Some(Ok(frame))),
                    Err(error) => error,
                }
            }
            end => return end,
        };
        held.guard.count(refused.code());
        Poll::Ready(Some(Err(refused.status())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Answers on their way out.
#[derive(Debug)]
struct Outgoing {
    body: Body,
    guard: Guard,
}

/// Bytes, and that they are held.
struct Kept {
    bytes: Bytes,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            end => return Poll::Ready(end),
        };
        let frame = match frame.into_data() {
            // HTTP/2 keeps them until its flow control lets them go, which may be long after the body has ended.
            Ok(bytes) => {
                // Answers have been let in as such; a stream that ended here would fail all others on it.
                let mut held = self.guard.nothing();
                held.add(bytes.len() as u64);
                Frame::data(Arc::new(held).keep(bytes))
            }
            Err(mut trailers) => {
                if let Some(trailers) = trailers.trailers_mut() {
                    self.guard.give_code(trailers);
                }
                trailers
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(len: usize) -> Vec<u8> {
        let mut out = vec![0];
        out.extend((len as u32).to_be_bytes());
        out.extend(vec![7; len]);
        out
    }

    #[test]
    fn what_has_come_of_a_message_is_known_however_it_is_cut() {
        let stream = [framed(0), framed(3), framed(700), framed(1), framed(5)].concat();
        let ends = [5, 13, 718, 724, 734];
        for step in [1, 2, 3, 5, 7, 100, stream.len()] {
            let mut message = Message::default();
            let mut at = 0;
            for piece in stream.chunks(step) {
                let completed = message.take(piece);
                let before = at;
                at += piece.len();
                let last_end = ends.into_iter().rfind(|end| *end <= at).unwrap_or(0);
                assert_eq!(message.come, (at - last_end) as u64, "pieces of {step}, at {at}");
                assert_eq!(completed, ends.iter().any(|end| (before + 1..=at).contains(end)));
            }
        }
    }

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let gauge = IntGauge::new("held_bytes", "x").unwrap();
        let lookups = IntCounterVec::new(prometheus::Opts::new("lookups", "x"), &["code"]).unwrap();
        let guard = Guard::new(100, Duration::from_secs(1), gauge.clone(), lookups);
        let (mut one, mut other) = (guard.nothing(), guard.nothing());
        one.set(70).unwrap();
        let refused = other.set(31).unwrap_err();
        assert_eq!(refused, LookupError::TooMuchHeld { held: 70, more: 31, limit: 100 });
        other.set(30).unwrap();
        one.set(10).unwrap();
        assert_eq!(gauge.get(), 40);
        let kept = Arc::new(other).keep(Bytes::from_static(b"rows"));
        let part = kept.slice(1..2);
        drop(kept);
        assert_eq!((gauge.get(), &part[..]), (40, &b"o"[..]));
        drop((part, one));
        assert_eq!(gauge.get(), 0);
    }
}
