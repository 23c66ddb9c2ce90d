//! The first run of a model, when its release is loaded: what breaks breaks before anybody asks for it.

use tidepool_client::{FeatureLookup, FeatureRows, LocalTables, LookupRequest};
use tidepool_dense::{DenseBatch, select::SelectRequest};
use tidepool_types::{Pooling, Side, TableSchema};

use crate::{
    batch::{BatchInput, BatchModel, InputFrom, RowBags, RowBatch, RowScorer},
    error::LoadError,
};

/// Rows of the run: enough to go through vectorised loops.
const ROWS: usize = 16;

/// Runs the model once, on zeros; where it takes stored rows, on bags of nothing, whose vectors are the default rows.
/// `schemas` are those of the tables of its inputs.
pub(crate) fn warm_up(model: &BatchModel, schemas: &[Option<&TableSchema>]) -> Result<(), LoadError> {
    let by_rows = model.scorer.by_rows();
    let most = by_rows.map_or(u64::MAX, |scorer| scorer.limits().rows);
    let rows = usize::try_from(most).unwrap_or(usize::MAX).min(ROWS);
    let of_side = |side| if side == Side::User { 1 } else { rows };
    // What is made of rows is given by nobody.
    let given = |input: &BatchInput| match (&input.from, by_rows) {
        (InputFrom::Request, _) | (_, None) => of_side(input.side),
        (InputFrom::Bags(..) | InputFrom::Sequence { .. }, Some(_)) => 0,
    };
    let of_contract = model.inputs.iter().map(|input| given(input) * input.width);
    let of_masks = model.inputs.iter().filter_map(|input| match &input.from {
        InputFrom::Sequence { max_len, mask: true, .. } => Some(given(input) * max_len),
        _ => None,
    });
    let zeros: Vec<_> = of_contract.chain(of_masks).map(|numbers| vec![0.0; numbers]).collect();
    let inputs: Vec<&[f32]> = zeros.iter().map(Vec::as_slice).collect();
    let request_of = vec![0; rows];
    let batch = DenseBatch { rows, requests: 1, request_of: &request_of, inputs: &inputs };
    match by_rows {
        None => drop(model.scorer.run(&batch)?),
        Some(scorer) => on_nothing(model, scorer, schemas, batch)?,
    }
    Ok(())
}

/// Runs the model on a lookup of no ids.
fn on_nothing(
    model: &BatchModel,
    scorer: &dyn RowScorer,
    schemas: &[Option<&TableSchema>],
    dense: DenseBatch<'_>,
) -> Result<(), LoadError> {
    let bags_of = |input: &BatchInput| if input.side == Side::User { 1 } else { dense.rows };
    let lookup = |(input, schema): (&BatchInput, &Option<&TableSchema>)| {
        let pooling = match input.from {
            InputFrom::Request => return None,
            InputFrom::Bags(_, pooling) => pooling,
            InputFrom::Sequence { .. } => Pooling::None,
        };
        Some(FeatureLookup {
            table_version: schema.as_ref()?.table_version.clone(),
            pooling,
            ids: Vec::new(),
            lengths: (pooling != Pooling::None).then(|| vec![0; bags_of(input)]),
            weights: None,
        })
    };
    let features: Vec<_> = model.inputs.iter().zip(schemas).map(lookup).collect();
    let mut tables: Vec<TableSchema> = Vec::new();
    for schema in schemas.iter().copied().flatten() {
        if tables.iter().all(|known| known.table_version != schema.table_version) {
            tables.push(schema.clone());
        }
    }
    let asked = features.iter().flatten().cloned().collect();
    let request = LookupRequest { request_id: String::new(), features: asked };
    let outcome = LocalTables::new(tables).look_up_rows(&request, None, |_, _, _| Ok(()));
    let mut came = outcome.map_err(|error| LoadError::Broken(error.to_string()))?.features.into_iter();
    let rows: Vec<Option<FeatureRows>> =
        features.iter().map(|asked| asked.as_ref().and_then(|_| came.next())).collect();
    let bags = model.inputs.iter().zip(&rows).map(|(input, rows)| {
        let rows = rows.as_ref()?;
        Some(RowBags { rows, ids: vec![0..0; bags_of(input)], weights: None })
    });
    let bags: Vec<_> = bags.collect();
    let rows = u32::try_from(dense.rows).unwrap_or(u32::MAX);
    let request = SelectRequest { rows, surface: "", outputs: &[], utility_inputs: &[], top_k: 0 };
    // What is not a number here says nothing of the model: its formula has no numbers of a request.
    scorer.select(&RowBatch { dense, bags: &bags, requests: &[request] })?;
    Ok(())
}
