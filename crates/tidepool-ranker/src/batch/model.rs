//! What a batch is made with: where vectors come from, what turns them into scores, and the release whose inputs say
//! how the one goes into the other. The first two are traits, so that the same batcher can be run without a network
//! and without a model.

use std::{fmt, ops::Range, pin::Pin, sync::Arc};

use tidepool_client::{
    Client, ClientError, FeatureRows, FeatureVectors, Held, LookupAccount, LookupOptions, LookupOutcome,
    LookupRequest,
};
use tidepool_dense::{
    DenseBatch, DenseError, DenseModel, Usage,
    select::{SelectRequest, Selected},
};
use tidepool_types::{Name, Pooling, Side, TableVersion};

use super::queue;

/// The most numbers that the inputs of one dense run may have together (256 MiB as f32). However wide a model is, a
/// batch of it has no more.
pub const MAX_ELEMENTS: u64 = 1 << 26;

/// What comes of a lookup: vectors, or the stored rows that they are made of.
pub type Looking<'a, T = FeatureVectors> =
    Pin<Box<dyn Future<Output = Result<LookupOutcome<T>, ClientError>> + Send + 'a>>;

/// Where the vectors of a batch come from, or the stored rows that they are made of: which of them a batch asks for its model's
/// scorer says ([`Scorer::by_rows`]).
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

    /// As [`look_up`](Self::look_up), of the rows as they are stored; nobody is asked for those that are `held`.
    fn look_up_rows<'a>(
        &'a self,
        request: &'a LookupRequest,
        options: &'a LookupOptions,
        held: Option<&'a dyn Held>,
        account: Option<&'a LookupAccount>,
    ) -> Looking<'a, FeatureRows>;
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

    fn look_up_rows<'a>(
        &'a self,
        request: &'a LookupRequest,
        options: &'a LookupOptions,
        held: Option<&'a dyn Held>,
        account: Option<&'a LookupAccount>,
    ) -> Looking<'a, FeatureRows> {
        Box::pin(self.lookup_rows(request, options, held, account))
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

    /// What was asked of a GPU so far, if it runs on one.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// What runs the model on stored rows and takes the best candidates, where the scorer does that: then batches are run by it,
    /// and never by [`run`](Self::run).
    fn by_rows(&self) -> Option<&dyn RowScorer> {
        None
    }
}

/// A batch whose inputs come as stored rows.
#[derive(Clone, Copy, Debug)]
pub struct RowBatch<'a> {
    /// The batch; inputs that are made of rows are empty, and so are all masks.
    pub dense: DenseBatch<'a>,
    /// Per input of the contract: the bags that it is made of, one per request or row; None: it is a number of the request.
    pub bags: &'a [Option<RowBags<'a>>],
    /// What each request wants of the outputs; the rows of each follow those of the one before.
    pub requests: &'a [SelectRequest<'a>],
}

/// The bags of one input of a batch.
#[derive(Clone, Debug)]
pub struct RowBags<'a> {
    /// The rows, and who has which.
    pub rows: &'a FeatureRows,
    /// Of each bag, in order: its ids, as places among those of the feature. Of a sequence at most as many as it has places.
    pub ids: Vec<Range<usize>>,
    /// One per id of the feature.
    pub weights: Option<&'a [f32]>,
}

/// What a batch of rows may have, and what it takes here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowLimits {
    /// Candidates of all requests.
    pub rows: u64,
    /// Requests.
    pub requests: usize,
    /// Per input of the contract: ids of all its bags; of inputs that are numbers, and of those beyond the last, any.
    pub ids: Vec<u64>,
    /// Bytes of the stored rows of one id, at most.
    pub id_bytes: u64,
}

/// What makes inputs of stored rows, runs the model, and takes the best candidates: a GPU. It runs on the CPU pool.
pub trait RowScorer: fmt::Debug + Send + Sync {
    /// Rows that it has, which no node need be asked for.
    fn held(&self) -> Option<&dyn Held>;

    /// What a batch may have. A request with more is cut.
    fn limits(&self) -> RowLimits;

    /// Runs the model: what each request gets.
    ///
    /// # Errors
    /// [`DenseError`], of the batch as a whole; [`DenseError::Device`] is nobody's fault, and what the batch brought is not run
    /// again. [`DenseError::Rows`] when it has more ids than there is room for.
    fn select(&self, batch: &RowBatch<'_>) -> Result<Vec<Selected>, DenseError>;
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
    /// Numbers that the graph is given per request, and per candidate, as far as they lie here: where rows go to the scorer,
    /// vectors are made there, and only the numbers that requests bring are here.
    #[must_use]
    pub fn elements(&self) -> (u64, u64) {
        let by_rows = self.scorer.by_rows().is_some();
        let of = |side: Side| {
            let is_here = |input: &&BatchInput| !by_rows || input.from == InputFrom::Request;
            let inputs = self.inputs.iter().filter(|input| input.side == side).filter(is_here);
            inputs.fold(0u64, |sum, input| sum.saturating_add(input.elements() as u64))
        };
        (of(Side::User), of(Side::Candidate))
    }

    /// Whether the pieces of a request wait for the first of them, which looks their user up for all. Where rows go to the
    /// scorer there is nothing to wait for: the vectors of the user are made there, and each piece brings the user's rows.
    pub(super) fn pieces_wait_for_users(&self) -> bool {
        self.scorer.by_rows().is_none() && self.looks_users_up()
    }

    /// Whether something of the user is looked up.
    fn looks_users_up(&self) -> bool {
        self.inputs.iter().any(|input| input.side == Side::User && input.looked_up().is_some())
    }

    /// What a batch may have: `most`, unless the model is so wide that its inputs would be more than [`MAX_ELEMENTS`], or
    /// what takes rows has less room. The inputs of users count once per candidate: a graph may have them repeated.
    pub(super) fn limits(&self, most: queue::Limits) -> queue::Limits {
        let (user, candidate) = self.elements();
        let fit = |width: u64| (MAX_ELEMENTS / width.max(1)).max(1);
        let requests = usize::try_from(fit(user)).unwrap_or(usize::MAX);
        let by_rows = self.scorer.by_rows().map(RowScorer::limits);
        let mut limits = queue::Limits {
            rows: most.rows.min(fit(user.saturating_add(candidate))),
            requests: most.requests.min(requests),
            ..most
        };
        if let Some(RowLimits { rows, requests, ids, .. }) = by_rows {
            limits.rows = limits.rows.min(rows.max(1));
            limits.requests = limits.requests.min(requests.max(1));
            limits.room = ids;
        }
        limits
    }
}
