//! How connections to nodes and controllers are set up.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::config::ClientConfig;

/// HTTP/2 frames of up to 1 MiB: of the default 16 KiB, a lookup's answer would take many, each with its own
/// turn through the library and the kernel.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// What a node may send before it must wait for us to read, on one call or stream, and on all of them. It
/// bounds what we hold for a caller who does not read.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How every connection is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dial {
    pub(crate) connect_timeout: Duration,
    keep_alive_interval: Duration,
    keep_alive_timeout: Duration,
}

impl Dial {
    pub(crate) const fn new(config: &ClientConfig) -> Self {
        Self {
            connect_timeout: config.connect_timeout,
            keep_alive_interval: config.keep_alive_interval,
            keep_alive_timeout: config.keep_alive_timeout,
        }
    }

    /// A channel that connects when it is first used, and again after a failure. Keep-alive finds peers
    /// that went silent; without it a healed partition would never be noticed.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, String> {
        let endpoint = Endpoint::from(uri(address)?)
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .max_frame_size(MAX_FRAME_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout)
            .keep_alive_while_idle(true);
        Ok(endpoint.connect_lazy())
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
    fn only_host_and_port_make_an_address() {
        for good in ["127.0.0.1:7400", "[::1]:7400", "controller.local:1"] {
            assert!(uri(good).is_ok(), "{good}");
        }
        for bad in ["", "host", "http://host:1", "host:1/path", "host:1?q", "host:99999", "a b:1"] {
            assert!(uri(bad).is_err(), "{bad}");
        }
    }
}
