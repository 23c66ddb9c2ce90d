//! What is asked of a client, and what it gives back.

use std::{str::FromStr, time::Duration};

use bytes::Bytes;
use tidepool_types::{Epoch, NodeId, PartitionIndex, Pooling, TableVersion};

use crate::traceparent::TraceParent;

/// Every feature that one caller wants looked up together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LookupRequest {
    /// Echoed in logs and traces of every node.
    pub request_id: String,
    /// What is looked up; features of one table share its unique ids.
    pub features: Vec<FeatureLookup>,
}

/// One feature: bags of ids of one table version.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureLookup {
    /// Where the ids are looked up: that very version, or an error.
    pub table_version: TableVersion,
    /// How the rows of a bag become one vector. [`Pooling::None`]: one vector per id.
    pub pooling: Pooling,
    /// The ids of all bags, one bag after the other.
    pub ids: Vec<u64>,
    /// Ids per bag, adding up to `ids`. None: one id per bag. With [`Pooling::None`] they are checked and
    /// otherwise without effect.
    pub lengths: Option<Vec<u32>>,
    /// One finite weight per id, with sum or mean pooling. None: ones.
    pub weights: Option<Vec<f32>>,
}

/// How one lookup is done.
#[derive(Clone, Debug, PartialEq)]
pub struct LookupOptions {
    /// The whole budget, fallbacks included.
    pub timeout: Duration,
    /// The answer is the same to the bit on any layout: stored rows travel and are pooled here, in request
    /// order. Wins over `wire_form`.
    pub exact: bool,
    /// Forces a wire form, for tests and benches. None: the cheaper one, per feature and node.
    pub wire_form: Option<WireForm>,
    /// Who asks. None: the client's own, as configured.
    pub tenant: Option<String>,
    /// What becomes of ids whose partition nobody answers for.
    pub on_unavailable: OnUnavailable,
    /// The caller's place in a trace, which nodes are told. None: there is no trace.
    pub traceparent: Option<TraceParent>,
}

impl Default for LookupOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_millis(500),
            exact: false,
            wire_form: None,
            tenant: None,
            on_unavailable: OnUnavailable::Fail,
            traceparent: None,
        }
    }
}

/// What becomes of ids whose partition no node answers for, or not in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnavailable {
    /// The lookup fails: a wrong score is worse than none.
    #[default]
    Fail,
    /// They add nothing, as missing ids do, and are flagged: some score is better than none. Nodes that have
    /// failed over and over are not waited for.
    Default,
}

impl FromStr for OnUnavailable {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "fail" => Ok(Self::Fail),
            "default" => Ok(Self::Default),
            other => Err(format!("{other:?} is neither \"fail\" nor \"default\"")),
        }
    }
}

/// How a node answers for a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireForm {
    /// One stored row per id, pooled by the client.
    Gather,
    /// One partial sum per bag, pooled by the node. Unpooled features are gathered all the same.
    Pool,
}

/// An id as its table has it; of a composite table, one of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// The id that was asked for.
    pub id: u64,
    /// The id under which the row lies in the table: `id`, or the number of the row that a hash gives it.
    pub row_id: u64,
    /// Where it lives, or would live.
    pub partition: PartitionIndex,
    /// The node that answered.
    pub node: NodeId,
    /// The row as stored, without fingerprint; None: the table has no such row.
    pub row: Option<Bytes>,
}

/// The answer to a [`LookupRequest`]: vectors, or the rows that they would be made of.
#[derive(Clone, Debug, PartialEq)]
pub struct LookupOutcome<T = FeatureVectors> {
    /// One per feature of the request, in its order.
    pub features: Vec<T>,
    /// The epoch of the map that it was routed by.
    pub epoch: Epoch,
    /// Nodes that were asked.
    pub nodes_touched: u32,
    /// Partitions that were asked elsewhere after a failure.
    pub fallbacks: u32,
    /// Calls that were made after a failure.
    pub retries: u32,
    /// Calls that were late and asked of another group as well.
    pub hedges: u32,
    /// Those of them that the other group answered first.
    pub hedges_won: u32,
    /// Ids sent and answered, after deduplication.
    pub rows_requested: u64,
    /// Ids that needed no asking, after deduplication: the cache knew them.
    pub cache_hits: u64,
    /// Ids that neither a node nor the cache was asked for, after deduplication: whoever asks holds their rows, or knows that
    /// there are none.
    pub held_ids: u64,
    /// Bytes that the answered questions and their answers took.
    pub wire_bytes: WireBytes,
    /// Where the time went.
    pub stages: Stages,
}

impl<T> Default for LookupOutcome<T> {
    fn default() -> Self {
        Self {
            features: Vec::new(),
            epoch: Epoch::default(),
            nodes_touched: 0,
            fallbacks: 0,
            retries: 0,
            hedges: 0,
            hedges_won: 0,
            rows_requested: 0,
            cache_hits: 0,
            held_ids: 0,
            wire_bytes: WireBytes::default(),
            stages: Stages::default(),
        }
    }
}

/// What is counted of one feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureCounts {
    /// Ids that are not in the table, repetitions counted.
    pub missing_ids: u32,
    /// Ids whose partition nobody answered for, repetitions counted.
    pub unavailable_ids: u32,
    /// Vectors that are the table's default row. Of rows that are handed on: as far as that is known before they are pooled.
    pub defaulted_bags: u32,
}

/// What comes of a feature: vectors, or rows.
pub trait Counted {
    /// What is counted of it.
    fn counts(&self) -> FeatureCounts;
}

impl Counted for FeatureVectors {
    fn counts(&self) -> FeatureCounts {
        let Self { missing_ids, unavailable_ids, defaulted_bags, .. } = *self;
        FeatureCounts { missing_ids, unavailable_ids, defaulted_bags }
    }
}

impl<T: Counted> LookupOutcome<T> {
    /// Whether some ids could not be looked up, so that the vectors are not what they should be.
    #[must_use]
    pub fn partial(&self) -> bool {
        self.features.iter().any(|feature| feature.counts().unavailable_ids > 0)
    }

    /// Ids of all features whose partition nobody answered for, repetitions counted.
    #[must_use]
    pub fn unavailable_ids(&self) -> u64 {
        self.features.iter().map(|feature| u64::from(feature.counts().unavailable_ids)).sum()
    }

    /// Ids of all features that are in no table, repetitions counted.
    #[must_use]
    pub fn missing_ids(&self) -> u64 {
        self.features.iter().map(|feature| u64::from(feature.counts().missing_ids)).sum()
    }

    /// Vectors of all features that are a default row.
    #[must_use]
    pub fn defaulted_bags(&self) -> u64 {
        self.features.iter().map(|feature| u64::from(feature.counts().defaulted_bags)).sum()
    }
}

/// How long the parts of a lookup took; of one that was tried again by a newer map, the second time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// To check the request, drop what is double, and choose the nodes.
    pub split: Duration,
    /// From the first question to the last answer, questions and answers being written and read included.
    pub wait: Duration,
    /// Of that, what the slowest of the nodes whose answers were used says that it took.
    pub node: Duration,
    /// To make of the answers vectors, or rows to hand on.
    pub merge: Duration,
}

/// Bytes of packed numbers and rows, both ways, by wire form; framing is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireBytes {
    /// In gather form.
    pub gather: u64,
    /// In pool form.
    pub pool: u64,
}

/// The vectors of one feature.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureVectors {
    /// What they were made from: what was asked for.
    pub table_version: TableVersion,
    /// The smallest number of deltas that any node had applied; 0 when no node had to be asked.
    pub sequence: u64,
    /// Elements of a vector; of a composite table, of what its rows make.
    pub dim: u32,
    /// `[bags, dim]`, row-major; with [`Pooling::None`] `[ids, dim]`. Always finite.
    pub values: Vec<f32>,
    /// Ids found, per bag (per id with [`Pooling::None`]); an id that stands twice in a bag counts twice.
    pub found: Vec<u32>,
    /// Ids not found, repetitions counted: `found`, this and `unavailable_ids` add up to the ids asked for.
    pub missing_ids: u32,
    /// Ids whose partition nobody answered for, repetitions counted: whether they are in the table is not known.
    pub unavailable_ids: u32,
    /// Those of each bag, as `found` has them; empty when there are none. Such a bag's vector is made from
    /// the rest of its ids; of a composite table it is the default row.
    pub unavailable: Vec<u32>,
    /// Vectors that are the table's default row: of bags with nothing found (empty ones too), of ids not
    /// found with [`Pooling::None`], and of bags that have no finite result (a weighted mean whose weights
    /// add up to 0 or beyond f32, a sum beyond f32).
    pub defaulted_bags: u32,
    /// Which of the vectors those are, in order.
    pub defaulted: Vec<u32>,
}
