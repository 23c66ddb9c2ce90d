//! One HTTP/2 connection to a node, over which any bytes can be sent as a call of `Lookup`.

use std::convert::Infallible;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request,
    body::{Frame, Incoming},
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tidepool_proto::{code_of, v1};
use tidepool_types::ErrorCode;
use tokio::net::TcpStream;
use tonic::Status;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// A connection. Clones send on the same one.
#[derive(Clone)]
pub(crate) struct Wire {
    send: SendRequest<Body>,
    authority: String,
}

/// What came back of a call.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A gRPC answer: the message, or a status.
    Grpc(Result<Bytes, Box<Status>>),
    /// An answer of another kind: its HTTP status.
    Http(u16),
    /// The stream was reset, or the connection closed.
    Broken(String),
}

/// A gRPC frame that says it is `declared` bytes long and has the flag `flag`.
pub(crate) fn framed(flag: u8, declared: usize, message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(flag);
    out.put_u32(u32::try_from(declared).unwrap());
    out.put_slice(message);
    out.freeze()
}

/// A body that ends.
pub(crate) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).boxed()
}

/// A body that never ends.
pub(crate) fn unfinished(bytes: Bytes) -> Body {
    let first = stream::iter([Ok(Frame::data(bytes))]);
    BodyExt::boxed(StreamBody::new(first.chain(stream::pending())))
}

impl Wire {
    pub(crate) async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { send, authority: address.to_owned() }
    }

    fn request(&self, body: Body) -> Request<Body> {
        Request::post(format!("http://{}/tidepool.v1.Embedding/Lookup", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap()
    }

    /// Begins a call; dropping what comes back resets its stream.
    pub(crate) fn begin(&mut self, body: Body) -> impl Future<Output = Reply> + use<> {
        let request = self.request(body);
        self.send(request)
    }

    /// Sends any request.
    pub(crate) fn send(&mut self, request: Request<Body>) -> impl Future<Output = Reply> + use<> {
        let mut send = self.send.clone();
        async move {
            let answer = match send.ready().await {
                Ok(()) => send.send_request(request).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => reply(answer).await,
                Err(error) => Reply::Broken(error.to_string()),
            }
        }
    }

    /// Sends a call with these headers changed.
    pub(crate) async fn call_with(&mut self, change: impl FnOnce(&mut Request<Body>), body: Body) -> Reply {
        let mut request = self.request(body);
        change(&mut request);
        self.send(request).await
    }

    /// Sends these bytes as the message of a call.
    pub(crate) async fn call(&mut self, message: &[u8]) -> Reply {
        self.begin(whole(framed(0, message.len(), message))).await
    }

    /// A lookup.
    pub(crate) async fn lookup(&mut self, request: &v1::LookupRequest) -> Result<v1::LookupResponse, Reply> {
        match self.call(&request.encode_to_vec()).await {
            Reply::Grpc(Ok(answer)) => Ok(v1::LookupResponse::decode(answer).unwrap()),
            other => Err(other),
        }
    }
}

impl Wire {
    /// Begins a call and reads only the head of its answer; the rest waits as long as what comes back is kept.
    pub(crate) async fn begin_unread(&mut self, body: Body) -> Result<hyper::Response<Incoming>, Reply> {
        let request = self.request(body);
        let answer = self.send.send_request(request).await.map_err(|e| Reply::Broken(e.to_string()))?;
        match Status::from_header_map(answer.headers()) {
            Some(status) => Err(Reply::Grpc(Err(Box::new(status)))),
            None => Ok(answer),
        }
    }
}

impl Wire {
    /// Sends these bytes as the messages of a `LookupStream`, and gives the answers and how it ended.
    pub(crate) async fn stream(&mut self, body: Body) -> (Vec<v1::LookupResponse>, Option<Status>) {
        let mut request = self.request(body);
        *request.uri_mut() =
            format!("http://{}/tidepool.v1.Embedding/LookupStream", self.authority).parse().unwrap();
        let answer = self.send.send_request(request).await.unwrap();
        if let Some(status) = Status::from_header_map(answer.headers()) {
            return (Vec::new(), Some(status));
        }
        let body = answer.into_body().collect().await.unwrap();
        let status = body.trailers().and_then(Status::from_header_map);
        let mut bytes = body.to_bytes();
        let mut answers = Vec::new();
        while bytes.len() >= 5 {
            let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            answers.push(v1::LookupResponse::decode(&bytes[5..5 + len]).unwrap());
            bytes = bytes.slice(5 + len..);
        }
        (answers, status.filter(|status| status.code() != tonic::Code::Ok))
    }
}

async fn reply(answer: hyper::Response<Incoming>) -> Reply {
    let (head, body) = answer.into_parts();
    if head.status != 200 {
        return Reply::Http(head.status.as_u16());
    }
    if let Some(status) = Status::from_header_map(&head.headers) {
        return Reply::Grpc(Err(Box::new(status)));
    }
    let body = match body.collect().await {
        Ok(body) => body,
        Err(error) => return Reply::Broken(error.to_string()),
    };
    match body.trailers().and_then(Status::from_header_map) {
        Some(status) if status.code() != tonic::Code::Ok => Reply::Grpc(Err(Box::new(status))),
        _ => {
            let bytes = body.to_bytes();
            assert!(bytes.len() >= 5, "a gRPC frame, not {bytes:?}");
            Reply::Grpc(Ok(bytes.slice(5..)))
        }
    }
}

impl Reply {
    /// The code and the text of a refusal. `what` says of what.
    pub(crate) fn refusal(self, what: &str) -> (ErrorCode, String) {
        match self {
            Self::Grpc(Err(status)) => (code_of(&status), status.message().to_owned()),
            Self::Grpc(Ok(answer)) => panic!("{what}: answered with {} bytes", answer.len()),
            Self::Http(status) => panic!("{what}: HTTP status {status}"),
            Self::Broken(how) => panic!("{what}: broken: {how}"),
        }
    }
}
