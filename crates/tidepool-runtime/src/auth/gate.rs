//! What stands before a service: a call passes when its caller may make it.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::Either;
use tonic::{
    body::Body,
    codegen::http::{HeaderMap, Request, Response},
};
use tower::{Layer, Service};

use super::{Access, Caller, KnownBy, Refusal, Table, standing::Passed};
use crate::listen::Peer;

/// Asked by clients to see whether a connection is there; that there is no such service is answer enough.
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A call that was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its path: `/tidepool.v1.Control/PromoteRelease`.
    pub call: String,
    /// Who made it. With a token that is not known: nobody.
    pub caller: Caller,
    /// Why it was refused.
    pub refusal: Refusal,
}

/// Makes an answer of a refusal: which code it is, the protocol says.
type Answer = Arc<dyn Fn(Refused) -> Response<Body> + Send + Sync>;

/// Decides who passes to the services of a gRPC server.
#[derive(Clone)]
pub struct Gate {
    access: Access,
    table: Table,
    answer: Answer,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("access", &self.access)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate for the calls of `table`; what it refuses is answered with what `answer` makes of it.
    pub(crate) fn new(
        access: Access,
        table: Table,
        answer: impl Fn(Refused) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        Self { access, table, answer: Arc::new(answer) }
    }
}

/// It goes before all services of a server at once, so that none can be left out.
impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// The caller of a request with these parts, unless it is refused.
pub(crate) fn pass(
    access: &Access,
    table: Table,
    path: &str,
    peer: Option<&Peer>,
    headers: &HeaderMap,
) -> Result<Caller, Box<Refused>> {
    let refused = |caller, refusal| Box::new(Refused { call: path.to_owned(), caller, refusal });
    let (caller, shown) = access
        .caller_and_shown(peer, headers)
        .map_err(|refusal| refused(Caller::with_none("anonymous", KnownBy::Nothing, peer), refusal))?;
    let Some((call, needs)) = table.iter().find(|(call, _)| is_of(call, path)) else {
        if access.is_open() || path == HEALTH {
            // The server says that it knows no such call.
            return Ok(caller);
        }
        let message = format!("{path} is a call that nobody may make here");
        return Err(refused(caller, Refusal { known: true, message }));
    };
    match caller.check(call, needs) {
        Ok(()) => Ok(Passed::note(access, shown, (call, needs), caller)),
        // By the call of the table: names in paths are not told apart.
        Err(refusal) => Err(Box::new(Refused { call: (*call).to_owned(), caller, refusal })),
    }
}

/// Whether `path` is this call of a table, in which `{name}` stands for a piece of a path that is not empty. A route of
/// axum is written the same, and pieces are told apart as axum does: before anything in them is decoded.
fn is_of(call: &str, path: &str) -> bool {
    let (mut wanted, mut found) = (call.split('/'), path.split('/'));
    loop {
        match (wanted.next(), found.next()) {
            (None, None) => return true,
            (Some(wanted), Some(found)) if wanted == found => {}
            (Some(wanted), Some(found)) if wanted.starts_with('{') && !found.is_empty() => {}
            _ => return false,
        }
    }
}

/// A service with a [`Gate`] before it.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S, B> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Gate { access, table, answer } = &self.gate;
        let peer = request.extensions().get::<Peer>();
        match pass(access, table, request.uri().path(), peer, request.headers()) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Right(self.inner.call(request))
            }
            Err(refused) => Either::Left(ready(Ok(answer(*refused)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn a_name_in_a_path_stands_for_one_piece() {
        let call = "/v2/models/{model}/versions/{version}/infer";
        assert!(is_of(call, "/v2/models/m/versions/r%2F1/infer"));
        for other in [
            "/v2/models/m/versions//infer",
            "/v2/models/m/versions/r/1/infer",
            "/v2/models/m/versions/r/infer/",
            "/v2/models/m/versions/r",
            "/v2/models/m/versions/r/ready",
            "",
        ] {
            assert!(!is_of(call, other), "{other}");
        }
        assert!(is_of("/v2", "/v2") && !is_of("/v2", "/v2/") && !is_of("/v2", "/"));
    }
}
