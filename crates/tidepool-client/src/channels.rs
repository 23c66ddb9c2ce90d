//! How connections to nodes and controllers are set up.

use std::{fmt, sync::Arc, time::Duration};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{config::ClientConfig, error::ClientError};

/// HTTP/2 frames of up to 1 MiB: of the default 16 KiB, a lookup's answer would take many, each with its own
/// turn through the library and the kernel.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// What a node may send before it must wait for us to read, on one call or stream, and on all of them. It
/// bounds what we hold for a caller who does not read.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Makes a channel of an endpoint, which connects when it is first used, and again after a failure: with TLS, for
/// one. The endpoint begins with `http://` whatever is spoken.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn(Endpoint) -> Channel + Send + Sync>);

impl Connector {
    /// Connections are made as `connect` makes them.
    #[must_use]
    pub fn new(connect: impl Fn(Endpoint) -> Channel + Send + Sync + 'static) -> Self {
        Self(Arc::new(connect))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

/// What says who asks. It is sent with every call, and shown nowhere.
#[derive(Clone)]
pub struct BearerToken(MetadataValue<Ascii>);

impl BearerToken {
    /// Takes a token.
    ///
    /// # Errors
    /// [`ClientError::Config`]: it has letters that cannot be sent.
    pub fn new(token: &str) -> Result<Self, ClientError> {
        let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
        let mut value = value
            .map_err(|_| ClientError::Config(vec!["the token has letters that cannot be sent".into()]))?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(not shown)")
    }
}

/// Puts the token into calls, if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(Option<BearerToken>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(BearerToken(token)) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A channel on which calls say who asks.
pub(crate) type Line = InterceptedService<Channel, Bearer>;

/// How every connection is set up.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    connector: Option<Connector>,
    bearer: Bearer,
    pub(crate) connect_timeout: Duration,
    keep_alive_interval: Duration,
    keep_alive_timeout: Duration,
}

impl Dial {
    pub(crate) fn new(config: &ClientConfig) -> Self {
        Self {
            connector: config.connector.clone(),
            bearer: Bearer(config.token.clone()),
            connect_timeout: config.connect_timeout,
            keep_alive_interval: config.keep_alive_interval,
            keep_alive_timeout: config.keep_alive_timeout,
        }
    }

    /// A channel that connects when it is first used, and again after a failure. Keep-alive finds peers
    /// that went silent; without it a healed partition would never be noticed.
    pub(crate) fn channel(&self, address: &str) -> Result<Line, String> {
        let endpoint = Endpoint::from(uri(address)?)
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .max_frame_size(MAX_FRAME_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout)
            .keep_alive_while_idle(true);
        let channel = match &self.connector {
            Some(Connector(connect)) => connect(endpoint),
            None => endpoint.connect_lazy(),
        };
        Ok(InterceptedService::new(channel, self.bearer.clone()))
    }
}

/// The URI of a `host:port`.
pub(crate) fn uri(address: &str) -> Result<tonic::transport::Uri, String> {
    let uri: tonic::transport::Uri =
        format!("http://{address}").parse().map_err(|error| format!("{error}"))?;
    let plain = uri.port_u16().is_some() && uri.path() == "/" && uri.query().is_none();
    if plain { Ok(uri) } else { Err("host:port is expected".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_with_calls_and_is_not_shown() {
        let token = BearerToken::new("sesame-sesame-sesame").unwrap();
        let config = ClientConfig { token: Some(token.clone()), ..ClientConfig::default() };
        assert!(!format!("{config:?} {:?}", Dial::new(&config)).contains("sesame"));
        let request = Bearer(Some(token)).call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer sesame-sesame-sesame");
        assert!(!format!("{request:?}").contains("sesame"));
        assert!(Bearer(None).call(Request::new(())).unwrap().metadata().is_empty());
        let error = BearerToken::new("bad\nsesame").unwrap_err();
        assert!(!error.to_string().contains("sesame"), "{error}");
    }

    #[test]
    fn only_host_and_port_make_an_address() {
        for good in ["127.0.0.1:7400", "[::1]:7400", "controller.local:1"] {
            assert!(uri(good).is_ok(), "{good}");
        }
        for bad in ["", "host", "http://host:1", "host:1/path", "host:1?q", "host:99999", "a b:1"] {
            assert!(uri(bad).is_err(), "{bad}");
        }
    }
}
