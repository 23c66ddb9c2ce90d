//! A model whose inputs come as stored rows, and whose best candidates are taken on the device: what comes back is what
//! the same model makes of the same vectors, taken by the CPU.

use std::sync::Arc;

use tidepool_dense::{
    Answered, Around, CudaError, CudaModel, CudaOptions, DenseBatch, DenseError, RowFeed,
    resident::{Key, Place, ResidentOptions, ResidentSet, Segment},
    rows::{Position, RowsError, RowsWriter},
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
        let bags: Vec<Vec<usize>> =
            (0..bags).map(|_| (0..random.below(4)).map(|_| random.below(30) as usize).collect()).collect();
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

    fn answer(
        &self,
        model: &CudaModel,
        tables: &Tables,
        requests: &[SelectRequest<'_>],
        resident: Option<(&Arc<ResidentSet>, &TableVersion)>,
    ) -> Result<Answered, DenseError> {
        let inputs: [&[f32]; 3] = [&[], &[], &self.context];
        let number = resident.and_then(|(set, name)| Some((set, set.number(name)?)));
        model.answer(&self.dense(&inputs), requests, |writer| {
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
    let staged = |id: u64| {
        model.answer(&batch.dense(&inputs), &requests, |writer| {
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
    let twice = model.answer(&batch.dense(&inputs), &requests, |writer| {
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
        let stage = |writer: &mut RowsWriter<'_>| {
            (0..count).try_for_each(|_| writer.bag(0, &[Position::MISSING], &[]))
        };
        model.answer(&batch.dense(&inputs), requests, stage).unwrap_err()
    };
    let one = requests(&batch, 1);
    assert!(matches!(run(&one, 2), DenseError::Rows(RowsError::Mismatch { .. })));
    assert!(matches!(run(&one, 5), DenseError::Rows(RowsError::TooMany { .. })));
    assert!(matches!(run(&[], 1), DenseError::Input { .. }));
    let unknown = [SelectRequest { outputs: &[7], ..one[0] }];
    let error = model.answer(&batch.dense(&inputs), &unknown, |writer| {
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
