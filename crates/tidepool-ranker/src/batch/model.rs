//! What a batch is made with: where vectors come from, what turns them into scores, and the release whose inputs say
//! how the one goes into the other. The first two are traits, so that the same batcher can be run without a network
//! and without a model.

use std::{fmt, pin::Pin, sync::Arc};

use tidepool_client::{Client, ClientError, LookupAccount, LookupOptions, LookupOutcome, LookupRequest};
use tidepool_dense::{DenseBatch, DenseError, DenseModel};
use tidepool_types::{Name, Pooling, Side, TableVersion};

use super::queue;

/// The most numbers that the inputs of one dense run may have together (256 MiB as f32). However wide a model is, a
/// batch of it has no more.
pub const MAX_ELEMENTS: u64 = 1 << 26;

/// What comes of a lookup.
pub type Looking<'a> = Pin<Box<dyn Future<Output = Result<LookupOutcome, ClientError>> + Send + 'a>>;

/// Where the vectors of a batch come from.
pub trait VectorSource: fmt::Debug + Send + Sync + 'static {
    /// The options that a lookup has where a batch has no say.
    fn default_options(&self) -> LookupOptions;

    /// Looks up every feature of `request`, within `options.timeout`. What becomes of it is noted in `account`. Dropped,
    /// it asks nobody any more.
    fn look_up<'a>(
        &'a self,
        request: &'a LookupRequest,
        options: &'a LookupOptions,
        account: Option<&'a LookupAccount>,
    ) -> Looking<'a>;
}

impl VectorSource for Client {
    fn default_options(&self) -> LookupOptions {
        Self::default_options(self)
    }

    fn look_up<'a>(
        &'a self,
        request: &'a LookupRequest,
        options: &'a LookupOptions,
        account: Option<&'a LookupAccount>,
    ) -> Looking<'a> {
        Box::pin(self.lookup_noting(request, options, account))
    }
}

/// What turns the inputs of a batch into its outputs. It runs on the CPU pool.
pub trait Scorer: fmt::Debug + Send + Sync + 'static {
    /// Runs the model: outputs of `[rows]` each.
    ///
    /// # Errors
    /// [`DenseError`], of the batch as a whole.
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError>;

    /// Why it will run no batch any more, if it will not: it must be loaded anew. Nothing ends a model on the CPU.
    fn lost(&self) -> Option<String> {
        None
    }
}

impl Scorer for DenseModel {
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        Self::run(self, batch)
    }
}

/// What stands in for the scorer of each release that is loaded; a bench has a timer in its place.
#[derive(Clone)]
pub struct InPlaceOf(pub Arc<Replace>);

/// Makes what stands in, of what it stands in for.
pub type Replace = dyn Fn(Arc<dyn Scorer>) -> Arc<dyn Scorer> + Send + Sync;

impl fmt::Debug for InPlaceOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InPlaceOf")
    }
}

/// One input of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchInput {
    /// Its name in the contract.
    pub name: String,
    /// Whether it has a row per request, or one per candidate.
    pub side: Side,
    /// Numbers per row; of a sequence, those of all its places.
    pub width: usize,
    /// Where they come from.
    pub from: InputFrom,
}

/// Where the numbers of an input come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputFrom {
    /// The request brings them.
    Request,
    /// One pooled vector per row.
    Bags(TableVersion, Pooling),
    /// The vectors of so many ids at most, one after the other, and zeros after their end.
    Sequence {
        /// What is looked up.
        table_version: TableVersion,
        /// Places.
        max_len: usize,
        /// Whether the graph is told which places are taken: an input `[rows, max_len]` of ones and zeros, behind those
        /// of the contract.
        mask: bool,
    },
}

impl BatchInput {
    /// What it is looked up in, and how; None: it is not.
    pub(super) fn looked_up(&self) -> Option<(&TableVersion, Pooling)> {
        match &self.from {
            InputFrom::Request => None,
            InputFrom::Bags(table_version, pooling) => Some((table_version, *pooling)),
            InputFrom::Sequence { table_version, .. } => Some((table_version, Pooling::None)),
        }
    }

    /// Numbers per row that the graph is given, those of the mask included.
    const fn elements(&self) -> usize {
        match &self.from {
            InputFrom::Sequence { max_len, mask: true, .. } => self.width.saturating_add(*max_len),
            _ => self.width,
        }
    }
}

/// A release, as batches see it.
#[derive(Debug)]
pub struct BatchModel {
    /// The model.
    pub model: Name,
    /// The release.
    pub release: Name,
    /// In the order of the contract.
    pub inputs: Vec<BatchInput>,
    /// What runs it.
    pub scorer: Arc<dyn Scorer>,
}

impl BatchModel {
    /// Numbers that the graph is given per request, and per candidate.
    #[must_use]
    pub fn elements(&self) -> (u64, u64) {
        let of = |side: Side| {
            let inputs = self.inputs.iter().filter(|input| input.side == side);
            inputs.fold(0u64, |sum, input| sum.saturating_add(input.elements() as u64))
        };
        (of(Side::User), of(Side::Candidate))
    }

    /// Whether something of the user is looked up.
    pub(super) fn looks_users_up(&self) -> bool {
        self.inputs.iter().any(|input| input.side == Side::User && input.looked_up().is_some())
    }

    /// What a batch may have: `most`, unless the model is so wide that its inputs would be more than [`MAX_ELEMENTS`].
    /// The inputs of users count once per candidate: a graph may have them repeated.
    pub(super) fn limits(&self, most: queue::Limits) -> queue::Limits {
        let (user, candidate) = self.elements();
        let fit = |width: u64| (MAX_ELEMENTS / width.max(1)).max(1);
        let requests = usize::try_from(fit(user)).unwrap_or(usize::MAX);
        queue::Limits {
            rows: most.rows.min(fit(user.saturating_add(candidate))),
            requests: most.requests.min(requests),
            ..most
        }
    }
}
