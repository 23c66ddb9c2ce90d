//! Connections to nodes and controllers, made when they are first used.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tidepool_cluster::ClusterMap;
use tidepool_types::Epoch;
use tonic::transport::{Channel, Endpoint};

use crate::{config::ClientConfig, transport::Connection};

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
    connect_timeout: Duration,
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

/// One connection per node address. Its size is bounded by the cluster map: whoever left it is dropped.
#[derive(Debug)]
pub(crate) struct Channels {
    dial: Dial,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    epoch: Epoch,
    channels: HashMap<String, Connection>,
}

impl Channels {
    pub(crate) fn new(dial: Dial) -> Self {
        Self { dial, open: Mutex::default() }
    }

    /// The connection to `address`.
    pub(crate) fn get(&self, address: &str) -> Result<Connection, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = open.channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = Connection::new(self.dial.channel(address)?);
        open.channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Drops the channels to addresses that are not in `map`, once per map.
    pub(crate) fn follow(&self, map: &ClusterMap) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.epoch < map.epoch {
            open.epoch = map.epoch;
            let known: BTreeSet<_> = map.nodes.values().map(|n| n.grpc_address.as_str()).collect();
            open.channels.retain(|address, _| known.contains(address.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tidepool_cluster::NodeEntry;
    use tidepool_types::{Name, NodeId};

    use super::*;

    #[tokio::test]
    async fn a_node_that_left_the_map_loses_its_channel() {
        let channels = Channels::new(Dial::new(&ClientConfig::default()));
        channels.get("127.0.0.1:1").unwrap();
        channels.get("127.0.0.1:2").unwrap();
        channels.get("127.0.0.1:2").unwrap();
        assert_eq!(channels.open.lock().unwrap().channels.len(), 2);
        let name = Name::new("a").unwrap();
        let entry = NodeEntry {
            group: name.clone(),
            grpc_address: "127.0.0.1:2".into(),
            http_address: String::new(),
            up: false,
        };
        let nodes = [(NodeId(name), entry)].into();
        channels.follow(&ClusterMap { epoch: Epoch(1), nodes, ..Default::default() });
        let open = channels.open.lock().unwrap();
        assert_eq!(open.channels.keys().collect::<Vec<_>>(), ["127.0.0.1:2"]);
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
