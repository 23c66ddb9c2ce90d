//! Batches by rows, held against the same batches by vectors on the same device, and against the CPU.

use std::{collections::BTreeSet, sync::Arc};

use tidepool_client::{Held, Holding};
use tidepool_dense::{
    Bound, CudaModel, DenseBatch, DenseError, DenseModel, GraphWriter, Precision,
    resident::{ResidentOptions, ResidentSet, Segment},
    rows::RowsError,
    select::{SelectRequest, Selected, select},
};
use tidepool_ranker::{
    LoadError, RawCuda, RawResident,
    batch::{RowBatch, Scorer},
    device::Placed,
};
use tidepool_types::{ModelSpec, TableVersion};

use crate::case::{Batch, Case, Random, engine};

/// Small buckets, with so much room for ids.
fn cuda(rows: &str, ids_per_bag: u32) -> RawCuda {
    let buckets = vec![[4, 4], [16, 8], [40, 8]];
    RawCuda {
        buckets,
        streams: 1,
        rows: rows.into(),
        ids_per_bag,
        // Room for the keys of rows that are.
        resident: RawResident { bytes: if rows == "device" { 1 << 20 } else { 0 }, ..RawResident::default() },
        cache_dir: concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels").into(),
        ..RawCuda::default()
    }
}

/// What the device makes of the rows of these requests of a batch.
fn by_rows(
    case: &Case,
    placed: &Placed,
    batch: &Batch,
    requests: &[usize],
) -> Result<Vec<Selected>, DenseError> {
    let scorer = placed.scorer.by_rows().unwrap();
    let rows = case.look_up_rows(batch, scorer.held());
    let bags = batch.row_bags(&case.spec, &rows, requests);
    let prices = batch.prices(requests);
    let mut inputs: Vec<&[f32]> = vec![&[]; 8];
    inputs[1] = &prices;
    let request_of: Vec<u32> = (0u32..)
        .zip(requests)
        .flat_map(|(at, request)| batch.rows_of_request(*request).map(move |_| at))
        .collect();
    let dense = DenseBatch {
        rows: request_of.len(),
        requests: requests.len(),
        request_of: &request_of,
        inputs: &inputs,
    };
    scorer.select(&RowBatch { dense, bags: &bags, requests: &batch.wants(requests) })
}

/// What `scorer` makes of the vectors of a batch, taken by the CPU.
fn by_vectors(case: &Case, scorer: &dyn Scorer, batch: &Batch) -> Vec<Selected> {
    let inputs = case.inputs(batch);
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    let (rows, requests) = (batch.request_of.len(), batch.rows_of.len());
    let dense = DenseBatch { rows, requests, request_of: &batch.request_of, inputs: &inputs };
    taken(&case.spec, batch, &scorer.run(&dense).unwrap_or_else(|e| panic!("{e}")))
}

fn taken(spec: &ModelSpec, batch: &Batch, outputs: &[Vec<f32>]) -> Vec<Selected> {
    let all: Vec<usize> = (0..batch.rows_of.len()).collect();
    let one = |(request, wants)| {
        let own = |values: &Vec<f32>| values[batch.rows_of_request(request)].to_vec();
        select(spec, wants, &outputs.iter().map(own).collect::<Vec<_>>(), 16)
    };
    all.iter().copied().zip(&batch.wants(&all)).map(one).collect()
}

fn all(batch: &Batch) -> Vec<usize> {
    (0..batch.rows_of.len()).collect()
}

#[test]
fn rows_give_the_bits_that_vectors_give_on_the_device_and_what_the_cpu_gives() {
    let case = Case::new();
    let (rows, vectors) = (case.placed(cuda("device", 6)), case.placed(cuda("host", 6)));
    assert!(rows.resident.is_some() && vectors.resident.is_none());
    assert!(vectors.scorer.by_rows().is_none());
    let limits = rows.scorer.by_rows().unwrap().limits();
    assert_eq!((limits.rows, limits.requests), (40, 8));
    let mut random = Random(5);
    for rows_of in [&[1][..], &[4], &[3, 2, 0, 7], &[16], &[40], &[1, 1, 1, 1, 1], &[5, 5, 5, 5, 5, 5, 5, 5]]
    {
        let batch = case.batch(&mut random, rows_of, 6);
        let found =
            by_rows(&case, &rows, &batch, &all(&batch)).unwrap_or_else(|e| panic!("{rows_of:?}: {e}"));
        assert_eq!(found, by_vectors(&case, &*vectors.scorer, &batch), "{rows_of:?}");
        let expected = by_vectors(&case, &*case.model, &batch);
        close(&found, &expected, off_by(&case, &batch, Precision::F32));
    }
    // What takes rows takes no vectors, and says so.
    let batch = case.batch(&mut random, &[1], 2);
    let inputs = case.inputs(&batch);
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    let dense = DenseBatch { rows: 1, requests: 1, request_of: &[0], inputs: &inputs };
    assert!(rows.scorer.run(&dense).is_err());
}

#[test]
fn who_has_left_has_no_part_in_it() {
    let case = Case::new();
    let rows = case.placed(cuda("device", 6));
    let mut random = Random(6);
    let batch = case.batch(&mut random, &[3, 2, 5, 4], 6);
    let whole = by_rows(&case, &rows, &batch, &[0, 1, 2, 3]).unwrap();
    for left in [&[0, 1, 2][..], &[1, 3], &[2], &[3]] {
        let found = by_rows(&case, &rows, &batch, left).unwrap();
        for (found, request) in found.iter().zip(left) {
            // In another bucket, perhaps, so perhaps with other last bits.
            let expected = &whole[*request..=*request];
            close(std::slice::from_ref(found), expected, off_by(&case, &batch, Precision::F32));
        }
    }
}

/// Less exact products, with rows that travel and a selection: within what the model's own bounds say, and not f32 after all.
#[test]
fn less_exact_products_are_ranked_by_within_their_bounds() {
    let case = Case::new();
    let exact = case.placed(cuda("device", 6));
    for (name, precision) in [("bf16", Precision::Bf16), ("tf32", Precision::Tf32)] {
        let placed = case.placed(RawCuda { precision: name.into(), ..cuda("device", 6) });
        let mut random = Random(9);
        for rows_of in [&[4][..], &[3, 2, 0, 7], &[40]] {
            let batch = case.batch(&mut random, rows_of, 6);
            let found = by_rows(&case, &placed, &batch, &all(&batch)).unwrap_or_else(|e| panic!("{e}"));
            let expected = by_vectors(&case, &*case.model, &batch);
            let off_by = off_by(&case, &batch, precision);
            assert!(off_by < 0.2, "{off_by} says nothing");
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!((found.not_finite, found.ranked.len()), (None, expected.ranked.len()));
                // Who is first may differ where two are as near to each other: what the places are worth may not.
                for ((_, found), (_, expected)) in found.ranked.iter().zip(&expected.ranked) {
                    let apart = (f64::from(*found) - f64::from(*expected)).abs();
                    assert!(apart <= off_by, "{name}: {found}, the CPU says {expected}, within {off_by}");
                }
            }
            assert_ne!(found, by_rows(&case, &exact, &batch, &all(&batch)).unwrap(), "{name} is used");
        }
    }
}

/// How far what the device ranks by may be from what the CPU does, which runs in f32. Of the click rate the calibration
/// takes half and a bid at most as much again; the purchase rate is added; and both formulas are rounded to f32 in the end.
fn off_by(case: &Case, batch: &Batch, precision: Precision) -> f64 {
    let inputs = case.inputs(batch);
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    let (rows, requests) = (batch.request_of.len(), batch.rows_of.len());
    let dense = DenseBatch { rows, requests, request_of: &batch.request_of, inputs: &inputs };
    let most = |precision| {
        let bounds = CudaModel::bounds(&case.model, precision, &dense).unwrap();
        let of = |output: &Vec<Bound>| output.iter().map(|bound| bound.off).fold(0.0, f64::max);
        bounds.iter().map(of).sum::<f64>()
    };
    most(precision) + most(Precision::F32) + 2.0 * f64::from(f32::EPSILON)
}

/// The same candidates in the same places, and all numbers within so much.
fn close(found: &[Selected], expected: &[Selected], off_by: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let candidates =
            |of: &Selected| of.ranked.iter().map(|(candidate, _)| *candidate).collect::<Vec<_>>();
        assert_eq!(candidates(found), candidates(expected));
        assert_eq!((found.not_finite, expected.not_finite), (None, None));
        let lengths = |of: &Selected| of.outputs.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!((lengths(found), found.samples.len()), (lengths(expected), expected.samples.len()));
        let values = |of: &Selected| {
            let ranked = of.ranked.iter().map(|(_, value)| *value);
            ranked.chain(of.outputs.concat()).chain(of.samples.clone()).collect::<Vec<f32>>()
        };
        for (found, expected) in values(found).into_iter().zip(values(expected)) {
            let apart = (f64::from(found) - f64::from(expected)).abs();
            assert!(apart <= off_by, "{found}, it is to be {expected}, within {off_by}");
        }
    }
}

/// Says which ids of `item` are resident.
#[derive(Debug)]
struct Has(TableVersion, BTreeSet<u64>);

impl Held for Has {
    fn hold(&self, table: &TableVersion, ids: &[u64], into: &mut Vec<Holding>) -> bool {
        let holding = |id: &u64| if self.1.contains(id) { Holding::Held } else { Holding::Ask };
        into.extend(ids.iter().filter(|_| *table == self.0).map(holding));
        *table == self.0
    }
}

#[test]
fn rows_that_are_resident_are_not_looked_up_and_change_nothing() {
    let case = Case::new();
    let (without, with) = (case.placed(cuda("device", 6)), case.placed(cuda("device", 6)));
    let place = with.resident.as_ref().unwrap();
    let tables: Vec<&str> = place.tables().iter().map(|table| table.table_version.table.as_str()).collect();
    assert_eq!(tables, ["item", "tag", "cross", "shop"]);
    assert!(with.scorer.by_rows().unwrap().held().is_none());
    let item = &place.tables()[0];
    let ids: Vec<u64> = (0..200u64).filter(|id| id.is_multiple_of(3) && case.row(0, *id).is_some()).collect();
    let rows: Vec<u8> = ids.iter().flat_map(|id| case.row(0, *id).unwrap()).collect();
    let table = &item.table_version;
    let segment = Segment { table, format: item.format, dim: item.dim, whole: false, ids: &ids, rows: &rows };
    let set = ResidentSet::build(place.device(), &[segment], &ResidentOptions::new(1 << 20, 9)).unwrap();
    let (set, held) = (Arc::new(set), Arc::new(Has(table.clone(), ids.into_iter().collect())));
    assert!(place.put(set.clone(), held.clone()));
    assert!(!place.put(set, held), "what is there stays");
    let mut random = Random(7);
    for rows_of in [&[1][..], &[3, 2, 0, 7], &[40]] {
        let batch = case.batch(&mut random, rows_of, 6);
        let looked_up = case.look_up_rows(&batch, with.scorer.by_rows().unwrap().held());
        let is_held = |at| looked_up[1].table.row(at) == tidepool_client::UniqueRow::Held;
        assert!(rows_of == [1] || (0..looked_up[1].table.ids.len()).any(is_held));
        let [found, expected] = [&with, &without].map(|placed| by_rows(&case, placed, &batch, &all(&batch)));
        assert_eq!(found.unwrap(), expected.unwrap(), "{rows_of:?}");
    }
    // Where none are resident, a lookup must not leave any out.
    let batch = case.batch(&mut random, &[9, 9], 6);
    let rows = case.look_up_rows(&batch, with.scorer.by_rows().unwrap().held());
    let bags = batch.row_bags(&case.spec, &rows, &[0, 1]);
    let prices = batch.prices(&[0, 1]);
    let mut inputs: Vec<&[f32]> = vec![&[]; 8];
    inputs[1] = &prices;
    let dense = DenseBatch { rows: 18, requests: 2, request_of: &batch.request_of, inputs: &inputs };
    let wants = batch.wants(&[0, 1]);
    let found = without.scorer.by_rows().unwrap().select(&RowBatch { dense, bags: &bags, requests: &wants });
    assert!(matches!(found, Err(DenseError::Rows(_))), "{found:?}");
}

#[test]
fn a_batch_with_too_many_ids_is_refused_by_name_and_the_next_is_not() {
    let case = Case::new();
    let rows = case.placed(cuda("device", 1));
    let mut random = Random(8);
    // Few rows with many ids go into the largest bucket, which has room for 40 of each input.
    let batch = case.batch(&mut random, &[2, 1], 12);
    by_rows(&case, &rows, &batch, &[0, 1]).unwrap_or_else(|e| panic!("{e}"));
    let batch = case.batch(&mut random, &[20, 20], 8);
    let error = by_rows(&case, &rows, &batch, &[0, 1]).unwrap_err();
    assert!(matches!(&error, DenseError::Rows(RowsError::TooMany { room: 40, .. })), "{error}");
    assert!(error.to_string().contains("input \"item\" with"), "{error}");
    let batch = case.batch(&mut random, &[20, 20], 1);
    assert_eq!(by_rows(&case, &rows, &batch, &[0, 1]).unwrap().len(), 2);
}

#[test]
fn a_model_whose_rows_the_device_cannot_take_is_not_loaded_and_the_error_says_what_would_do() {
    let case = Case::new();
    let large = RawCuda { buckets: vec![[1 << 17, 1]], ..cuda("device", 4096) };
    let mut spec = case.spec.clone();
    // 2^17 rows with 2^15 places are more vectors than the kernels count.
    let tidepool_types::InputSource::Sequence { max_len, .. } = &mut spec.inputs[6].source else { panic!() };
    *max_len = 1 << 15;
    let placed = engine(large).place(case.model.clone(), &spec, &case.schemas());
    let error = placed.unwrap_err();
    assert!(matches!(error, LoadError::Rows(_)), "{error}");
    assert!(error.to_string().contains("cuda.rows = \"host\""), "{error}");
}

#[test]
fn a_model_without_tables_is_ranked_on_the_device_all_the_same() {
    let spec = ModelSpec::from_toml(
        r#"schema_version = 1
        model = "prices"
        score = "score"
        inputs = [{ name = "price", side = "candidate", width = 1 }]
        outputs = [{ name = "score" }]"#,
    )
    .unwrap();
    let mut graph = GraphWriter::new("prices");
    graph.input("price", 1);
    graph.node("Relu", &["price"], "score");
    graph.output("score", 1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, graph.into_file()).unwrap();
    let model = DenseModel::load(&path, &spec, &|_| None).unwrap();
    let placed = engine(cuda("device", 6)).place(Arc::new(model), &spec, &[None]).unwrap();
    let prices = [0.5, 2.0, -1.0, 1.0, 4.0];
    let dense = DenseBatch { rows: 5, requests: 2, request_of: &[0, 0, 0, 0, 1], inputs: &[&prices] };
    let one = |rows| SelectRequest { rows, surface: "", outputs: &[], utility_inputs: &[], top_k: 3 };
    let scorer = placed.scorer.by_rows().unwrap();
    let found = scorer.select(&RowBatch { dense, bags: &[None], requests: &[one(4), one(1)] }).unwrap();
    assert_eq!(found[0].ranked, [(1, 2.0), (3, 1.0), (0, 0.5)]);
    assert_eq!(found[1].ranked, [(0, 4.0)]);
}
