//! The metastore in etcd.
//!
//! | key | holds |
//! |---|---|
//! | `PREFIX/leader` | `host:port` of the controller that leads, as long as its lease lives |
//! | `PREFIX/state` | the document with its header, or, when it is long, which chunks it is cut into |
//! | `PREFIX/chunks/NAME/00000000` ... | the chunks |
//!
//! **Invariant:** a document is written by a transaction that holds only while the leader's key is the one that
//! the writer made, and the document is the one that the writer read. So a controller that was deposed, however
//! late its request arrives, writes nothing. Chunks are written before, under a name of their own; those of other
//! documents go in the same transaction.

mod client;
mod election;
mod store;

use std::time::Duration;

pub use election::EtcdElection;
use tidepool_runtime::tls::ClientFiles;

/// How etcd is reached, and where in it the state is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdOptions {
    /// `http://host:port` of its members, or, with `tls`, `https://host:port`; at least one.
    pub endpoints: Vec<String>,
    /// By which TLS is spoken with them; `None` for plaintext.
    pub tls: Option<ClientFiles>,
    /// In front of every key, without a slash at the end.
    pub prefix: String,
    /// For the answer to a request.
    pub timeout: Duration,
    /// How long a controller that falls silent keeps the others from leading; whole seconds.
    pub lease: Duration,
    /// After so many revisions of the document, etcd is told to forget what was before the last time; 0: never.
    pub compact_every: u64,
}

/// The keys.
#[derive(Clone, Debug)]
struct Keys {
    prefix: String,
}

impl Keys {
    fn leader(&self) -> Vec<u8> {
        format!("{}/leader", self.prefix).into()
    }

    fn state(&self) -> Vec<u8> {
        format!("{}/state", self.prefix).into()
    }

    /// All chunks of the document of this name; of every document, when it is empty.
    fn chunks(&self, name: &str) -> Vec<u8> {
        let end = if name.is_empty() { "" } else { "/" };
        format!("{}/chunks/{name}{end}", self.prefix).into()
    }

    fn chunk(&self, name: &str, number: usize) -> Vec<u8> {
        format!("{}/chunks/{name}/{number:08}", self.prefix).into()
    }
}

/// The first key after all that begin with `prefix`: no key of ours has a byte 0xff.
fn after(mut prefix: Vec<u8>) -> Vec<u8> {
    prefix.push(0xff);
    prefix
}

/// The generated client. Its packages are etcd's.
#[expect(
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::enum_variant_names,
    reason = "generated; proto/etcd is its documentation"
)]
mod pb {
    pub(super) mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub(super) mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
}
