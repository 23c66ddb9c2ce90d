//! Rows, resident rows and a selection are in the graph: a batch with all of them is still one copy in, one launch and
//! one copy back, and only the winners are in that.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tidepool_dense::{
    Answered, Around, CudaDevice, CudaModel, CudaOptions, DenseBatch, DenseError, RowFeed,
    resident::{ResidentOptions, ResidentSet, Segment},
    rows::RowCounts,
    select::SelectRequest,
};
use tidepool_types::{Combine, Name, RowFormat, TableVersion};

use crate::{models, open, options, oracle::Case, sim::Sim};

/// Rows of 16 elements as f32: the item's. Ids 0 to 9 are resident.
fn row(id: u64) -> Vec<u8> {
    (0..16).flat_map(|at| ((id * 16 + at) as f32 / 500.0 - 0.2).to_le_bytes()).collect()
}

pub(crate) fn resident(device: &Arc<CudaDevice>) -> Arc<ResidentSet> {
    let table = TableVersion { table: Name::new("item").unwrap(), version: Name::new("v1").unwrap() };
    let ids: Vec<u64> = (0..10).collect();
    let rows: Vec<u8> = ids.iter().flat_map(|id| row(*id)).collect();
    let (format, dim, whole) = (RowFormat::F32, 16, false);
    let segment = Segment { table: &table, format, dim, whole, ids: &ids, rows: &rows };
    ResidentSet::build(device, &[segment], &ResidentOptions::new(1 << 20, 3)).unwrap().into()
}

fn load(device: &Arc<CudaDevice>, case: &Case) -> CudaModel {
    load_with(device, case, &options())
}

pub(crate) fn load_with(device: &Arc<CudaDevice>, case: &Case, options: &CudaOptions) -> CudaModel {
    let feed = RowFeed {
        input: 1,
        table: 0,
        mean: true,
        weighted: false,
        hashes: 1,
        combine: Combine::Concat,
        default_row: Vec::new(),
        ids: 3,
    };
    let around = Around {
        tables: vec![(RowFormat::F32, 16)],
        feeds: vec![feed],
        resident: true,
        select: Some((case.spec.clone(), 16)),
    };
    CudaModel::load_around(device, &case.model, options, Some(&around)).unwrap()
}

/// So many bags of a resident item and a fetched one.
fn counts(bags: usize) -> RowCounts {
    RowCounts { rows: vec![bags], ids: vec![2 * bags], keys: bags }
}

/// A request of `rows` candidates, each a bag of a resident item and a fetched one; the best two come back.
pub(crate) fn answer(model: &CudaModel, set: &Arc<ResidentSet>, rows: u32) -> Result<Answered, DenseError> {
    let (user, context) = (vec![0.25; 8], vec![0.5; 3 * rows as usize]);
    let inputs: [&[f32]; 3] = [&user, &[], &context];
    let request_of = vec![0; rows as usize];
    let batch = DenseBatch { rows: rows as usize, requests: 1, request_of: &request_of, inputs: &inputs };
    let request = SelectRequest { rows, surface: "", outputs: &[1], utility_inputs: &[], top_k: 2 };
    model.answer(&batch, &counts(rows as usize), &[request], |writer| {
        writer.resident(set.clone(), &[Some(0)])?;
        for candidate in 0..u64::from(rows) {
            let key = writer.key(0, candidate % 10)?;
            let fetched = writer.row(0, &row(20 + candidate))?;
            writer.bag(0, &[key, fetched], &[])?;
        }
        Ok(())
    })
}

#[test]
fn a_batch_with_rows_and_a_selection_is_one_copy_in_one_graph_and_one_copy_out() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let model = load(&device, &case);
    let set = resident(&device);
    let live = sim.counters(["allocations_live", "bytes_live", "pinned_live", "events_live"]);
    for rows in [1, 8, 9, 32] {
        sim.reset();
        let answered = answer(&model, &set, rows).unwrap();
        assert_eq!(answered.selected[0].ranked.len(), rows.min(2) as usize);
        let names = ["copies_in", "graph_launches", "copies_out", "launches", "matmuls", "fills"];
        assert_eq!(sim.counters(names), [1, 1, 1, 0, 0, 0], "{rows} rows");
        // A count, what is bad of two outputs and the score, the samples, and the winners with an output.
        let winners = rows.min(2) as usize;
        assert_eq!(answered.bytes, 8 + 8 * 3 + 4 * 16 + winners * 4 * 3);
    }
    assert_eq!(sim.counters(["allocations_live", "bytes_live", "pinned_live", "events_live"]), live);
    assert_eq!(sim.fault(), "");
}

#[test]
fn memory_of_rows_and_selections_is_told_and_given_back() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let before = sim.counter("bytes_live");
    let model = load(&device, &case);
    let told: u64 = model.memory().iter().filter(|used| !used.pinned).map(|used| used.bytes).sum();
    let counted = sim.counter("bytes_live") - before;
    assert!(counted >= told && counted < told + 512 * 100, "{counted} of {told}");
    let set = resident(&device);
    // The driver rounds each allocation, by less than 512 bytes; a set has three.
    let of_set = sim.counter("bytes_live") - before - counted;
    assert!(of_set >= set.bytes() && of_set < set.bytes() + 3 * 512, "{of_set} of {}", set.bytes());
    answer(&model, &set, 5).unwrap();
    drop((model, set));
    assert_eq!(sim.counter("bytes_live"), before);
    drop(device);
    assert_eq!(sim.counter("leaks"), 0, "{}", sim.fault());
    let live = ["pinned_live", "streams_live", "events_live", "graphs_live", "modules_live"];
    assert_eq!(sim.counters(live), [0; 5]);
    assert_eq!(sim.fault(), "");
}

/// A table is offered whole, of which the budget's part becomes resident; rows that are not travel with the batch. So
/// the device has the same bytes however large tables are.
#[test]
fn the_device_s_memory_does_not_grow_with_the_tables() {
    let sim = Sim::alone();
    let case = Case::new(models::dcn_mmoe());
    let table = TableVersion { table: Name::new("item").unwrap(), version: Name::new("v1").unwrap() };
    let counted = [1000, 10_000].map(|count: u64| {
        let device = open();
        let ids: Vec<u64> = (0..count).collect();
        let rows: Vec<u8> = ids.iter().flat_map(|id| row(*id)).collect();
        let (format, dim, whole) = (RowFormat::F32, 16, false);
        let segment = Segment { table: &table, format, dim, whole, ids: &ids, rows: &rows };
        let budget = 50_000;
        let set = ResidentSet::build(&device, &[segment], &ResidentOptions::new(budget, 3)).unwrap();
        let kept = set.told()[0].kept;
        assert!(set.bytes() <= budget && set.bytes() > budget * 9 / 10 && kept < 1000, "{set:?}");
        let set = Arc::new(set);
        let model = load(&device, &case);
        // Of the most wanted ids and of the least wanted: these are fetched, and travel.
        let context = [0.5; 6];
        let inputs: [&[f32]; 3] = [&[0.25; 8], &[], &context];
        let batch = DenseBatch { rows: 2, requests: 1, request_of: &[0, 0], inputs: &inputs };
        let request = SelectRequest { rows: 2, surface: "", outputs: &[1], utility_inputs: &[], top_k: 2 };
        let answered = model.answer(&batch, &counts(1), &[request], |writer| {
            writer.resident(set.clone(), &[Some(0)])?;
            let resident = writer.key(0, kept - 1)?;
            writer.bag(0, &[resident], &[])?;
            let fetched = writer.row(0, &row(count - 1))?;
            writer.bag(0, &[fetched], &[])
        });
        assert_eq!(answered.unwrap().selected[0].ranked.len(), 2);
        let found = sim.counters(["bytes_live", "allocations_live", "pinned_live"]);
        assert_eq!(sim.fault(), "");
        (found, kept)
    });
    assert_eq!(counted[0], counted[1]);
}

/// The device reads the set by an address: it must not be freed because whoever named it lets it go.
#[test]
fn a_set_that_is_let_go_while_its_batch_is_staged_lives_until_the_answer_is_back() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let model = load(&device, &case);
    let set = resident(&device);
    let expected = answer(&model, &set, 1).unwrap();
    let before = sim.counter("bytes_live");
    let mut named = Some(set);
    let context = [0.5; 3];
    let inputs: [&[f32]; 3] = [&[0.25; 8], &[], &context];
    let batch = DenseBatch { rows: 1, requests: 1, request_of: &[0], inputs: &inputs };
    let request = SelectRequest { rows: 1, surface: "", outputs: &[1], utility_inputs: &[], top_k: 2 };
    let answered = model.answer(&batch, &counts(1), &[request], |writer| {
        writer.resident(named.take().unwrap(), &[Some(0)])?;
        let key = writer.key(0, 0)?;
        let fetched = writer.row(0, &row(20))?;
        writer.bag(0, &[key, fetched], &[])
    });
    assert_eq!(answered.unwrap(), expected);
    assert_eq!(sim.fault(), "");
    assert!(sim.counter("bytes_live") < before, "it goes with its batch");
}

#[test]
fn a_set_may_be_replaced_between_batches_of_a_captured_graph() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let model = load(&device, &case);
    let first = resident(&device);
    let expected = answer(&model, &first, 7).unwrap();
    let second = resident(&device);
    drop(first);
    assert_eq!(answer(&model, &second, 7).unwrap(), expected);
    assert_eq!(sim.fault(), "", "nothing reads the set that is gone");
}

#[test]
fn a_caller_that_panics_leaves_its_lane_to_others() {
    let _sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let (model, set) = (load(&device, &case), resident(&device));
    let before = answer(&model, &set, 3).unwrap();
    // More often than there are lanes of the bucket.
    for _ in 0..5 {
        let (user, context) = ([0.5; 8], [0.25; 3]);
        let inputs: [&[f32]; 3] = [&user, &[], &context];
        let batch = DenseBatch { rows: 1, requests: 1, request_of: &[0], inputs: &inputs };
        let request = SelectRequest { rows: 1, surface: "", outputs: &[1], utility_inputs: &[], top_k: 2 };
        let answered = catch_unwind(AssertUnwindSafe(|| {
            model.answer(&batch, &counts(1), &[request], |_| panic!("a row is missing"))
        }));
        assert!(answered.is_err());
    }
    assert_eq!(answer(&model, &set, 3).unwrap(), before);
}
