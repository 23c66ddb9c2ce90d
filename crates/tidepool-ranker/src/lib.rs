//! The ranker: it follows the cluster map, loads every release that the map lists, and answers rankings: one
//! lookup for all features of the requests that share a batch, the dense model, the best candidates of each.
//!
//! **Invariant:** it must not open a table nor know where a partition lives: vectors come from the lookup
//! client. A request is answered by one release, pinned when it begins; nothing that computes runs on the
//! threads that move bytes; a release that cannot be loaded never disturbs those that serve.
//!
//! Read first: [`Config`], [`start`], `rank::Ranker`, [`batch`].

mod access;
mod admin;
mod asking;
mod audit_sample;
pub mod batch;
mod by_contract;
mod choice;
mod config;
mod counters;
pub mod device;
mod error;
mod features;
mod finish;
mod gpu_metrics;
mod hot_ids;
mod http;
mod json;
mod loaded;
mod loads;
mod lost;
mod metrics;
mod models;
pub mod offline;
mod oip;
#[cfg(test)]
mod overload_tests;
mod rank;
mod recent;
mod releases;
mod request;
mod resident;
mod rollback;
mod running;
pub mod samples;
mod scenario;
mod selected;
mod service;
mod session;
mod shadow;
mod status;
mod topk;
mod trace;
mod warm_up;
mod wire;

pub use asking::{Asking, RawBreaker, RawHedge, RawRetry};
pub use audit_sample::{AuditSampleOptions, RawAuditSample};
pub use choice::Choice;
pub use config::{Config, RawConfig};
pub use device::{DeviceOptions, RawCuda};
pub use error::{LoadError, RankError, StartError};
pub use finish::Finishing;
pub use rank::{RankAnswer, RankStages};
pub use request::{Checked, InputRows, Limits, RankFeature, RankRequest, check};
pub use resident::{RawResident, ResidenceOptions};
pub use running::{start, start_with};
pub use tidepool_runtime::{
    error::{ServeError, chain},
    serve::Running,
};
