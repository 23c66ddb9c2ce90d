//! What a client does that has fetched rows: it pools them.

use tidepool_client::{FeatureVectors, LookupOutcome, LookupRequest};
use tidepool_kernels::RowKernel;

/// The answer to `request`, which has one feature, from the stored rows of all its ids.
pub(crate) fn pooled(kernel: &RowKernel, request: &LookupRequest, rows: &[&[u8]]) -> LookupOutcome {
    let feature = &request.features[0];
    let lengths = feature.lengths.clone().unwrap_or_else(|| vec![1; feature.ids.len()]);
    let dim = kernel.dim() as usize;
    let mut values = vec![0.0; lengths.len() * dim];
    let mut rest = rows;
    for (length, sum) in lengths.iter().zip(values.chunks_exact_mut(dim)) {
        let (bag, later) = rest.split_at(*length as usize);
        kernel.accumulate(bag, later, sum);
        rest = later;
    }
    let vectors = FeatureVectors {
        table_version: feature.table_version.clone(),
        sequence: 0,
        dim: kernel.dim(),
        values,
        found: lengths,
        missing_ids: 0,
        defaulted_bags: 0,
        defaulted: Vec::new(),
        unavailable_ids: 0,
        unavailable: Vec::new(),
    };
    LookupOutcome { features: vec![vectors], nodes_touched: 1, ..LookupOutcome::default() }
}
