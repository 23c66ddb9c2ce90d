//! A model whose inputs come as stored rows, and whose best candidates are taken on the device: what comes back is what
//! the same model makes of the same vectors, taken by the CPU.

use std::sync::Arc;

use tidepool_dense::{
    Answered, Around, CudaError, CudaModel, CudaOptions, DenseBatch, DenseError, Precision, RowFeed,
    resident::{Key, Place, ResidentOptions, ResidentSet, Segment},
    rows::{Position, RowCounts, RowsError, RowsWriter},
    select::{SelectRequest, Selected, select},
};
use tidepool_kernels::RowKernel;
use tidepool_types::{Combine, ModelSpec, RowFormat, TableVersion};

use crate::{
    device, load, models,
    oracle::Case,
    random::{Random, version},
    small_buckets,
};

/// Bags over the rows of a table, and the vectors that the reference makes of them.
struct Side {
    table: usize,
    bags: Vec<Vec<usize>>,
    vectors: Vec<f32>,
}

/// The tables of the two inputs, `user` and `item`.
struct Tables {
    kernels: [RowKernel; 2],
    rows: [Vec<Vec<u8>>; 2],
}

impl Tables {
    fn new(random: &mut Random) -> Self {
        let kernels = [RowKernel::new(RowFormat::Int4, 8), RowKernel::new(RowFormat::Int8, 16)];
        let rows = kernels.each_ref().map(|kernel| (0..30).map(|_| random.row(kernel)).collect());
        Self { kernels, rows }
    }

    /// Bags of up to three rows, pooled: sums of the user's, means of the item's.
    fn side(&self, random: &mut Random, table: usize, bags: usize) -> Side {
        let bags = (0..bags).map(|_| (0..random.below(4)).map(|_| random.below(30) as usize).collect());
        self.pooled(table, bags.collect())
    }

    /// These bags.
    fn pooled(&self, table: usize, bags: Vec<Vec<usize>>) -> Side {
        let kernel = &self.kernels[table];
        let mut vectors = Vec::new();
        for bag in &bags {
            let mut vector = vec![0.0; kernel.dim() as usize];
            let rows: Vec<&[u8]> = bag.iter().map(|row| self.rows[table][*row].as_slice()).collect();
            kernel.accumulate(&rows, &[], &mut vector);
            if table == 1 && !bag.is_empty() {
                vector.iter_mut().for_each(|value| *value /= bag.len() as f32);
            }
            vectors.extend(vector);
        }
        Side { table, bags, vectors }
    }
}

impl Side {
    /// Stages the bags; rows that `resident` has as keys.
    fn write(
        &self,
        tables: &Tables,
        resident: Option<(&Arc<ResidentSet>, u32)>,
        writer: &mut RowsWriter<'_>,
    ) -> Result<(), RowsError> {
        let ids: Vec<u64> = (0..30).collect();
        let mut places = Vec::new();
        match resident {
            Some((set, number)) => set.place(number, &ids, &mut places),
            None => places.resize(30, Place::Fetch),
        }
        let mut positions = Vec::new();
        for (row, place) in places.iter().enumerate() {
            positions.push(match place {
                Place::Resident => writer.key(self.table, row as u64)?,
                _ => writer.row(self.table, &tables.rows[self.table][row])?,
            });
        }
        for bag in &self.bags {
            let members: Vec<Position> = bag.iter().map(|row| positions[*row]).collect();
            writer.bag(self.table, &members, &[])?;
        }
        Ok(())
    }
}

fn around(spec: Option<&ModelSpec>, resident: bool) -> Around {
    let feed = |input: usize| RowFeed {
        input,
        table: input,
        mean: input == 1,
        weighted: false,
        hashes: 1,
        combine: Combine::Concat,
        default_row: Vec::new(),
        ids: 30,
    };
    Around {
        tables: vec![(RowFormat::Int4, 8), (RowFormat::Int8, 16)],
        feeds: vec![feed(0), feed(1)],
        resident,
        select: spec.map(|spec| (spec.clone(), 16)),
    }
}

struct Batch {
    rows_of: Vec<u32>,
    request_of: Vec<u32>,
    user: Side,
    item: Side,
    context: Vec<f32>,
}

impl Batch {
    fn new(random: &mut Random, tables: &Tables, rows_of: &[u32]) -> Self {
        let request_of: Vec<u32> =
            (0u32..).zip(rows_of).flat_map(|(at, rows)| vec![at; *rows as usize]).collect();
        let user = tables.side(random, 0, rows_of.len());
        let item = tables.side(random, 1, request_of.len());
        let context = (0..3 * request_of.len()).map(|_| random.number()).collect();
        Self { rows_of: rows_of.to_vec(), request_of, user, item, context }
    }

    fn dense<'a>(&'a self, inputs: &'a [&'a [f32]]) -> DenseBatch<'a> {
        let (rows, requests) = (self.request_of.len(), self.rows_of.len());
        DenseBatch { rows, requests, request_of: &self.request_of, inputs }
    }

    /// What `answer` stages: all rows of both tables, but those that are resident.
    fn counts(&self, resident: Option<(&Arc<ResidentSet>, u32)>) -> RowCounts {
        let keys = resident.map_or(0, |(set, _)| set.keys().keys());
        let ids = |side: &Side| side.bags.iter().map(Vec::len).sum();
        RowCounts { rows: vec![30, 30 - keys], ids: vec![ids(&self.user), ids(&self.item)], keys }
    }

    fn answer(
        &self,
        model: &CudaModel,
        tables: &Tables,
        requests: &[SelectRequest<'_>],
        resident: Option<(&Arc<ResidentSet>, &TableVersion)>,
    ) -> Result<Answered, DenseError> {
        let inputs: [&[f32]; 3] = [&[], &[], &self.context];
        let number = resident.and_then(|(set, name)| Some((set, set.number(name)?)));
        model.answer(&self.dense(&inputs), &self.counts(number), requests, |writer| {
            if let Some((set, number)) = number {
                writer.resident(set.clone(), &[None, Some(number)])?;
            }
            self.user.write(tables, None, writer)?;
            self.item.write(tables, number, writer)
        })
    }
}

fn requests<'a>(batch: &Batch, top_k: u32) -> Vec<SelectRequest<'a>> {
    let one =
        |rows: &u32| SelectRequest { rows: *rows, surface: "", outputs: &[1], utility_inputs: &[], top_k };
    batch.rows_of.iter().map(one).collect()
}

/// The CPU's selection of the device's own outputs.
fn taken(
    spec: &ModelSpec,
    batch: &Batch,
    requests: &[SelectRequest<'_>],
    outputs: &[Vec<f32>],
) -> Vec<Selected> {
    let mut first = 0;
    let one = |(rows, request): (&u32, &SelectRequest<'_>)| {
        let range = first..first + *rows as usize;
        first = range.end;
        let own: Vec<Vec<f32>> = outputs.iter().map(|values| values[range.clone()].to_vec()).collect();
        select(spec, request, &own, 16)
    };
    batch.rows_of.iter().zip(requests).map(one).collect()
}

#[test]
fn rows_and_a_selection_give_what_vectors_and_the_cpu_give() {
    let mut random = Random(11);
    let case = Case::new(models::dcn_mmoe());
    let tables = Tables::new(&mut random);
    let by_vectors = load(&case, &small_buckets());
    let options = small_buckets();
    let loaded =
        |around: Around| CudaModel::load_around(&device(), &case.model, &options, Some(&around)).unwrap();
    let by_rows = loaded(around(None, false));
    let selected = loaded(around(Some(&case.spec), false));
    let resident = loaded(around(Some(&case.spec), true));
    // A third of the item's rows live on the device.
    let name = version("item");
    let ids: Vec<u64> = (0..30).step_by(3).collect();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| tables.rows[1][*id as usize].clone()).collect();
    let (format, dim) = (RowFormat::Int8, 16);
    let segment = Segment { table: &name, format, dim, whole: false, ids: &ids, rows: &bytes };
    let set = ResidentSet::build(&device(), &[segment], &ResidentOptions::new(1 << 20, 9)).unwrap();
    let set = Arc::new(set);
    for rows_of in [&[1][..], &[4], &[3, 2, 0, 7], &[16], &[40], &[1, 1, 1, 1, 1]] {
        let batch = Batch::new(&mut random, &tables, rows_of);
        let inputs: [&[f32]; 3] = [&batch.user.vectors, &batch.item.vectors, &batch.context];
        let outputs = by_vectors.run(&batch.dense(&inputs)).unwrap();
        let answered = batch.answer(&by_rows, &tables, &[], None).unwrap();
        assert_eq!(answered.outputs, outputs, "{rows_of:?}: the same vectors, so the same bits");
        for top_k in [0, 2] {
            let requests = requests(&batch, top_k);
            let expected = taken(&case.spec, &batch, &requests, &outputs);
            let answered = batch.answer(&selected, &tables, &requests, None).unwrap();
            assert_eq!(answered.selected, expected, "{rows_of:?}, top {top_k}");
            let answered = batch.answer(&resident, &tables, &requests, Some((&set, &name))).unwrap();
            assert_eq!(answered.selected, expected, "{rows_of:?}, top {top_k}, with resident rows");
        }
    }
    assert!(set.hits()[0].resident * 3 == set.hits()[0].asked && set.hits()[0].asked > 0);
}

#[test]
fn a_set_that_lacks_what_it_was_to_have_is_an_error_and_the_next_batch_is_fine() {
    let mut random = Random(12);
    let case = Case::new(models::dcn_mmoe());
    let tables = Tables::new(&mut random);
    let options = CudaOptions { streams: 1, ..small_buckets() };
    let model =
        CudaModel::load_around(&device(), &case.model, &options, Some(&around(Some(&case.spec), true)))
            .unwrap();
    let (name, ids) = (version("item"), [5u64]);
    let segment = Segment {
        table: &name,
        format: RowFormat::Int8,
        dim: 16,
        whole: false,
        ids: &ids,
        rows: &tables.rows[1][5],
    };
    let set = ResidentSet::build(&device(), &[segment], &ResidentOptions::new(1 << 20, 9)).unwrap();
    let set = Arc::new(set);
    assert_eq!(set.keys().find(Key { table: 0, id: 6 }), None);
    let batch = Batch::new(&mut random, &tables, &[2]);
    let inputs: [&[f32]; 3] = [&[], &[], &batch.context];
    let requests = requests(&batch, 0);
    let mut counts = RowCounts { keys: 1, ..batch.counts(None) };
    counts.ids[1] = 3;
    let staged = |id: u64| {
        model.answer(&batch.dense(&inputs), &counts, &requests, |writer| {
            writer.resident(set.clone(), &[None, Some(0)])?;
            batch.user.write(&tables, None, writer)?;
            let key = writer.key(1, id)?;
            writer.bag(1, &[key], &[])?;
            writer.bag(1, &[key, key], &[])
        })
    };
    let error = staged(6).unwrap_err();
    assert!(matches!(error, DenseError::Device(CudaError::NotResident { rows: 3 })), "{error}");
    assert_eq!(staged(5).unwrap().selected[0].ranked.len(), 2);
    let twice = model.answer(&batch.dense(&inputs), &counts, &requests, |writer| {
        writer.resident(set.clone(), &[None, Some(0)])?;
        writer.resident(set.clone(), &[None, Some(0)])
    });
    assert!(matches!(twice.unwrap_err(), DenseError::Rows(RowsError::Mismatch { .. })));
    assert_eq!(Arc::strong_count(&set), 1, "batches that are done keep nothing");
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_model_as_it_was() {
    let mut random = Random(13);
    let case = Case::new(models::dcn_mmoe());
    let tables = Tables::new(&mut random);
    let options = CudaOptions { streams: 1, ..small_buckets() };
    let load = |around: &Around| CudaModel::load_around(&device(), &case.model, &options, Some(around));
    let model = load(&around(Some(&case.spec), false)).unwrap();
    let batch = Batch::new(&mut random, &tables, &[3]);
    let fits = || batch.answer(&model, &tables, &requests(&batch, 1), None).unwrap();
    let before = fits();
    let inputs: [&[f32]; 3] = [&[], &[], &batch.context];
    let run = |requests: &[SelectRequest<'_>], count: usize| {
        let stage = |writer: &mut RowsWriter<'_>| (0..count).try_for_each(|_| writer.bag(0, &[], &[]));
        model.answer(&batch.dense(&inputs), &batch.counts(None), requests, stage).unwrap_err()
    };
    let one = requests(&batch, 1);
    assert!(matches!(run(&one, 1), DenseError::Rows(RowsError::Mismatch { .. })), "of one input alone");
    assert!(matches!(run(&one, 2), DenseError::Rows(RowsError::TooMany { .. })));
    assert!(matches!(run(&[], 1), DenseError::Input { .. }));
    let unknown = [SelectRequest { outputs: &[7], ..one[0] }];
    let error = model.answer(&batch.dense(&inputs), &batch.counts(None), &unknown, |writer| {
        batch.user.write(&tables, None, writer)?;
        batch.item.write(&tables, None, writer)
    });
    assert!(matches!(error.unwrap_err(), DenseError::Select(_)));
    assert!(matches!(model.run(&batch.dense(&inputs)), Err(DenseError::Device(CudaError::Options(_)))));
    assert_eq!(fits(), before);
    for wrong in [
        Around { resident: true, ..around(None, false) },
        Around { tables: vec![(RowFormat::Int4, 6), (RowFormat::Int8, 16)], ..around(None, false) },
        Around {
            feeds: vec![RowFeed { input: 9, ..around(None, false).feeds[0].clone() }],
            ..around(None, false)
        },
    ] {
        assert!(matches!(load(&wrong), Err(DenseError::Device(CudaError::Options(_)))), "{wrong:?}");
    }
}

#[test]
fn a_batch_with_many_ids_takes_a_larger_bucket_and_one_with_too_many_none() {
    let mut random = Random(14);
    let case = Case::new(models::dcn_mmoe());
    let tables = Tables::new(&mut random);
    let by_vectors = load(&case, &small_buckets());
    let mut narrow = around(Some(&case.spec), false);
    narrow.feeds.iter_mut().for_each(|feed| feed.ids = 2);
    let model = CudaModel::load_around(&device(), &case.model, &small_buckets(), Some(&narrow)).unwrap();
    let mut batch = Batch::new(&mut random, &tables, &[1, 1]);
    let inputs: [&[f32]; 3] = [&[], &[], &[0.25; 6]];
    let one = |top_k| SelectRequest { rows: 1, surface: "", outputs: &[1], utility_inputs: &[], top_k };
    let requests = [one(0), one(0)];
    // Candidates have room for 8 ids in the smallest bucket and for 80 in the largest, users for 8 and for 40.
    for (of_user, of_item) in [(0, 8), (0, 9), (0, 80), (8, 0), (9, 0), (17, 0), (40, 80)] {
        let bag = |ids: usize| (0..ids).map(|at| at % 30).collect::<Vec<_>>();
        let (users, items) = (vec![bag(of_user), vec![]], vec![vec![], bag(of_item)]);
        (batch.user, batch.item) = (tables.pooled(0, users), tables.pooled(1, items));
        let staged: Vec<usize> = [of_user, of_item].iter().map(|ids| *ids.min(&30)).collect();
        let counts = RowCounts { rows: staged.clone(), ids: vec![of_user, of_item], keys: 0 };
        let answered = model.answer(&batch.dense(&inputs), &counts, &requests, |writer| {
            for (table, side) in [&batch.user, &batch.item].into_iter().enumerate() {
                let rows = &tables.rows[table][..staged[table]];
                let positions = rows.iter().map(|row| writer.row(table, row));
                let positions = positions.collect::<Result<Vec<_>, _>>()?;
                for bag in &side.bags {
                    let members: Vec<Position> = bag.iter().map(|row| positions[*row]).collect();
                    writer.bag(table, &members, &[])?;
                }
            }
            Ok(())
        });
        let vectors: [&[f32]; 3] = [&batch.user.vectors, &batch.item.vectors, &[0.25; 6]];
        let outputs = by_vectors.run(&batch.dense(&vectors)).unwrap();
        let expected = taken(&case.spec, &batch, &requests, &outputs);
        let found = answered.unwrap_or_else(|e| panic!("{of_user} and {of_item} ids: {e}")).selected;
        close(&found, &expected, off_by(&case, &batch.dense(&vectors)));
    }
    let refused = |counts: &RowCounts| {
        let stage = |_: &mut RowsWriter<'_>| -> Result<(), RowsError> { panic!("nothing is to be staged") };
        model.answer(&batch.dense(&inputs), counts, &requests, stage).unwrap_err().to_string()
    };
    let counts = |ids: [usize; 2]| RowCounts { rows: vec![1, 1], ids: ids.to_vec(), keys: 0 };
    let said = refused(&counts([0, 81]));
    assert_eq!(said, "the rows of a batch: input \"item\" with 81 ids: there is room for 80 ids");
    let said = refused(&counts([41, 80]));
    assert_eq!(said, "the rows of a batch: input \"user\" with 41 ids: there is room for 40 ids");
    let said = refused(&RowCounts { keys: 1, ..counts([1, 1]) });
    assert!(said.contains("the resident set with 1 keys: there is room for 0 keys"), "{said}");
    let said = refused(&RowCounts::default());
    assert!(said.contains("the counts of a batch"), "{said}");
}

/// How far two runs in f32 may be from each other in any score of the batch.
fn off_by(case: &Case, batch: &DenseBatch<'_>) -> f64 {
    let bounds = CudaModel::bounds(&case.model, Precision::F32, batch).unwrap();
    2.0 * bounds.iter().flatten().map(|bound| bound.off).fold(0.0, f64::max)
}

/// A larger bucket may have products in another order: the same but for the last bits.
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
