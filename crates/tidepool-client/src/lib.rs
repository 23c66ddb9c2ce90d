//! The lookup client: it cuts a request by partition, asks one replica group (few nodes, one call each),
//! asks elsewhere what failed or is late, and puts the answers together in the order of the request.
//!
//! **Invariant:** it never opens a table and never decides where a partition lives: it follows the cluster
//! map. The parts that compute (`split`, `route`, `asks`, `answer`, `merge`) and those that remember
//! (`breaker`, `budget`, `latency`) are pure: no network, no clock. What a peer sends is checked whole before
//! any of it is used. Calls beside the first are paid for by a budget.
//!
//! Read first: [`Client`], [`LookupRequest`], [`ClientError`].

mod account;
mod answer;
mod asks;
#[doc(hidden)]
pub mod bench_cache;
mod breaker;
mod budget;
mod cache;
mod channels;
mod client;
mod compose;
mod config;
mod error;
mod fanout;
mod follow;
mod hand_on;
mod labels;
mod latency;
mod local;
mod map_watch;
mod merge;
mod metrics;
mod pacing;
mod peer;
mod request;
mod route;
mod row_lookup;
mod rows;
mod split;
mod stream;
mod topology;
pub mod trace;
mod traceparent;
mod transport;

#[cfg(test)]
mod layouts_tests;
#[cfg(test)]
mod partial_tests;
#[cfg(test)]
mod rows_tests;

// The map is part of this interface ([`Client::with_map`]): callers need not know where it is made.
pub use tidepool_cluster::{ClusterMap, ReleaseEntry};

pub use account::{CallEnd, CallKind, CallNote, FeatureNote, LookupAccount, LookupNotes};
pub use answer::BadAnswer;
pub use cache::{BadHotIds, HotIds, Warmed};
pub use channels::{BearerToken, Connector};
pub use client::Client;
pub use config::{BreakerConfig, ClientConfig, HedgeConfig, RetryConfig};
pub use error::{ClientError, NodeError, NodeFailure};
pub use local::{LocalTables, PutRow};
pub use request::{
    Counted, FeatureCounts, FeatureLookup, FeatureVectors, LookupOptions, LookupOutcome, LookupRequest,
    OnUnavailable, Stages, StoredRow, WireBytes, WireForm,
};
pub use rows::{BagCounts, FeatureRows, FetchedRows, Held, Holding, TableRows, UniqueRow};
pub use traceparent::TraceParent;
