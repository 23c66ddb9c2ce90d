//! The service without a network, for the bench of this crate, which decides from where on lookups are handed to the
//! pool and how large the pieces of large ones are.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use prometheus::Registry;
use tidepool_proto::v1;
use tidepool_runtime::pool::CpuPool;
use tidepool_table::LayoutView;
use tidepool_types::{Name, NodeId};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    admission::Admission, error::StartError, lookup::Limits, metrics::Metrics, partitions::Snapshot,
    quota::TenantQuotas, service::EmbeddingService,
};

/// A node's service over one layout.
pub struct InProcess(EmbeddingService<tidepool_table::PartitionFile>);

impl InProcess {
    /// Takes everything on, and answers on `threads` threads what has more than `inline_max_rows`.
    ///
    /// # Errors
    /// [`StartError`] when there are no threads to be had.
    pub fn new(
        node: Name,
        view: &Arc<LayoutView>,
        threads: usize,
        inline_max_rows: u64,
        piece_rows: u64,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::new(&Registry::new())?;
        let series = metrics.table(&view.schema().table_version.table);
        Ok(Self(EmbeddingService {
            node: Arc::new(NodeId(node)),
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::of(view.clone(), series))),
            pool: CpuPool::new(threads, 1024)?,
            limits: Limits { ids_per_request: u64::from(u32::MAX), response_bytes: u64::MAX },
            quotas: TenantQuotas::new(),
            admission: Admission::new(u64::MAX, None),
            inline_max_rows,
            piece_rows,
            guard: metrics.guard(u64::MAX, Duration::MAX),
            metrics,
            draining: CancellationToken::new(),
        }))
    }

    /// Answers a lookup.
    ///
    /// # Errors
    /// As the node over its network does.
    pub async fn lookup(&self, request: v1::LookupRequest) -> Result<v1::LookupResponse, Status> {
        self.0.respond(request, Instant::now()).await.map_err(|error| error.status())
    }
}
