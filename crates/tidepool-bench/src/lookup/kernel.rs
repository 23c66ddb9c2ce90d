//! The same lookups within this process: what the kernel alone takes for a row of the table that the nodes
//! serve.

use std::{
    hint::black_box,
    sync::Barrier,
    time::{Duration, Instant},
};

use tidepool_kernels::RowKernel;
use tidepool_store::ArtifactStore;
use tidepool_table::{Bags, LayoutView, LookupScratch, Pooled, Residency};

use crate::{
    BenchError, Step,
    kernel::timer::Timer,
    load::{Asked, Requests},
};

/// How long one measurement takes, about.
const TIME: Duration = Duration::from_millis(300);

/// The table of the nodes, open here, and requests that the nodes were not asked.
#[derive(Debug)]
pub(super) struct InProcess {
    view: LayoutView,
    requests: Requests,
    scratch: LookupScratch,
    out: Pooled,
}

impl InProcess {
    /// Opens the table of `asked`, as a node does.
    pub(super) fn open(
        asked: &Asked,
        store: &ArtifactStore,
        progress: &mut dyn FnMut(Step, u64, u64),
    ) -> Result<Self, BenchError> {
        let kernel = RowKernel::new(asked.table.format, asked.table.dim);
        let view = asked.table.open(store, kernel, Residency::Auto, progress)?.view;
        let requests = Asked { seed: asked.seed ^ 0x6b65_726e_656c, ..*asked }.requests()?;
        let mut opened = Self { view, requests, scratch: LookupScratch::default(), out: Pooled::default() };
        // Once, so that no scratch grows while the clock runs.
        opened.pool_one()?;
        Ok(opened)
    }

    /// Nanoseconds of CPU that a row takes on one thread.
    pub(super) fn ns_per_row(&mut self) -> Result<f64, BenchError> {
        let (began, mut rows, mut on_cpu) = (Instant::now(), 0usize, Duration::ZERO);
        while began.elapsed() < TIME {
            let (ids, took) = self.pool_one()?;
            rows += ids;
            on_cpu += took;
        }
        Ok(on_cpu.as_nanos() as f64 / rows.max(1) as f64)
    }

    /// Pools one request; its ids are drawn and packed before the clock runs.
    fn pool_one(&mut self) -> Result<(usize, Duration), BenchError> {
        let request = self.requests.next();
        let feature = request.and_then(|mut request| request.features.pop());
        let Some(feature) = feature else { return Ok((0, Duration::ZERO)) };
        let ids: Vec<[u8; 8]> = feature.ids.iter().map(|id| id.to_le_bytes()).collect();
        let lengths = feature.lengths.unwrap_or_else(|| vec![1; ids.len()]);
        let lengths: Vec<[u8; 4]> = lengths.iter().map(|length| length.to_le_bytes()).collect();
        let weights: Option<Vec<[u8; 4]>> =
            feature.weights.map(|weights| weights.iter().map(|weight| weight.to_le_bytes()).collect());
        let bags = Bags { members: None, lengths: &lengths, weights: weights.as_deref() };
        let timer = Timer::start(&Barrier::new(1));
        self.view.pool(&ids, bags, &mut self.scratch, &mut self.out)?;
        black_box(&self.out);
        Ok((ids.len(), timer.stop().on_cpu))
    }
}
