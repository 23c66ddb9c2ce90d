//! What a client is told when it is made.

use std::{path::PathBuf, time::Duration};

use prometheus::Registry;
use tidepool_types::Name;

use crate::{channels, error::ClientError};

/// How a [`Client`](crate::Client) finds its cluster and how it asks.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of each controller; the map is watched at one of them at a time. Not used by
    /// [`Client::with_map`](crate::Client::with_map).
    pub controllers: Vec<String>,
    /// The replica group that is asked first, usually the one in the caller's zone. None: by turns.
    pub preferred_group: Option<Name>,
    /// Where the last cluster map is kept, so that a restart needs no controller.
    pub map_file: Option<PathBuf>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// The budget of a lookup that [`Client::default_options`](crate::Client::default_options) gives.
    pub default_timeout: Duration,
    /// Every lookup is answered to the bit: stored rows travel and are pooled here, in request order.
    pub exact: bool,
    /// Who asks; quotas at the nodes go by it.
    pub tenant: String,
    /// The largest message sent or received, in bytes.
    pub max_message_bytes: usize,
    /// Bytes of question and answer together up to which a lookup goes over the long-lived stream to its node;
    /// larger ones are calls of their own. 0: all are.
    pub stream_max_bytes: usize,
    /// How often an idle or silent connection is probed.
    pub keep_alive_interval: Duration,
    /// How long a probe may stay unanswered before the connection counts as dead.
    pub keep_alive_timeout: Duration,
    /// How long a node that could not be reached is asked last.
    pub failure_penalty: Duration,
    /// Where the metrics are registered; None: they are counted and shown nowhere.
    pub registry: Option<Registry>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            controllers: Vec::new(),
            preferred_group: None,
            map_file: None,
            connect_timeout: Duration::from_millis(500),
            default_timeout: Duration::from_millis(500),
            exact: false,
            tenant: String::new(),
            max_message_bytes: 64 << 20,
            stream_max_bytes: 1 << 20,
            keep_alive_interval: Duration::from_secs(1),
            keep_alive_timeout: Duration::from_secs(1),
            failure_penalty: Duration::from_secs(1),
            registry: None,
        }
    }
}

impl ClientConfig {
    /// Checks what [`Client::start`](crate::Client::start) needs, all problems at once.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let mut problems = Vec::new();
        if self.controllers.is_empty() {
            problems.push("no controller is named".to_owned());
        }
        for controller in &self.controllers {
            if let Err(problem) = channels::uri(controller) {
                problems.push(format!("controller {controller:?} is no host:port: {problem}"));
            }
        }
        if self.max_message_bytes == 0 {
            problems.push("max_message_bytes is 0".to_owned());
        }
        if problems.is_empty() { Ok(()) } else { Err(ClientError::Config(problems)) }
    }
}
