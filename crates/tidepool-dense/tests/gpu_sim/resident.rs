//! What becomes of a resident set when things go wrong: it is built whole or not at all, and it is there as long as the device
//! may read it.

use std::{
    env,
    process::Command,
    sync::{Arc, Weak},
    time::Duration,
};

use tidepool_dense::{
    CudaError, CudaOptions, DenseError,
    resident::{Key, ResidentError, ResidentOptions, ResidentSet, Segment},
};
use tidepool_types::{Name, RowFormat, TableVersion};

use crate::{
    around::{answer, load_with, resident},
    models, open, options,
    oracle::Case,
    sim::Sim,
};

const LIVE: [&str; 6] =
    ["allocations_live", "bytes_live", "pinned_live", "streams_live", "events_live", "modules_live"];

#[test]
fn a_set_for_which_there_is_no_memory_leaves_nothing_behind() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let model = load_with(&device, &case, &options());
    let serving = resident(&device);
    let expected = answer(&model, &serving, 5).unwrap();
    let name = |text: &str| Name::new(text).unwrap();
    let table = TableVersion { table: name("item"), version: name("v2") };
    let (ids, rows) = ((0..100).collect::<Vec<u64>>(), vec![1; 400]);
    let segment =
        Segment { table: &table, format: RowFormat::F32, dim: 1, whole: true, ids: &ids, rows: &rows };
    let build = || ResidentSet::build(&device, &[segment], &ResidentOptions::new(1 << 20, 3));
    let live = sim.counters(LIVE);
    let mut failed = 0;
    for nth in 1..60 {
        sim.set("fail_allocation", nth);
        match build() {
            Ok(set) => {
                sim.set("fail_allocation", 0);
                assert_eq!(set.find(&[Key { table: 0, id: 99 }]).unwrap(), [Some(99)]);
                break;
            }
            Err(ResidentError::Cuda(CudaError::OutOfMemory { .. } | CudaError::OutOfHostMemory { .. })) => {
                failed += 1
            }
            Err(error) => panic!("allocation {nth}: {error}"),
        }
        assert_eq!(sim.counters(LIVE), live, "allocation {nth} failed, and something was left behind");
        assert_eq!(answer(&model, &serving, 5).unwrap(), expected, "the set before goes on");
    }
    assert!(failed > 4, "{failed} allocations were made to fail");
    assert_eq!((sim.counters(LIVE), device.lost()), (live, None));
}

#[test]
fn nothing_is_left_of_the_building_but_the_set() {
    let sim = Sim::alone();
    let device = open();
    drop(resident(&device));
    let before = sim.counters(LIVE);
    let set = resident(&device);
    let [_, _, pinned, streams, events, _] = sim.counters(LIVE);
    assert_eq!((pinned, events), (before[2], before[4]), "of the building nothing is left but the set");
    assert!(streams <= before[3] + 1);
    drop(set);
    assert_eq!(sim.counters(LIVE), before);
    assert_eq!(sim.fault(), "");
}

/// The model is given up, the device goes on: whoever failed cannot know how far the device came.
#[test]
fn a_set_whose_batch_failed_is_kept_as_long_as_the_model() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let before = sim.counters(LIVE);
    let model = load_with(&device, &case, &CudaOptions { graphs: false, ..options() });
    let set = resident(&device);
    answer(&model, &set, 3).unwrap();
    sim.set("refuse_launch", 3);
    let error = answer(&model, &set, 3).unwrap_err();
    assert!(matches!(error, DenseError::Device(CudaError::Driver { .. })), "{error}");
    let (there, bytes) = (Arc::downgrade(&set), sim.counter("bytes_live"));
    drop(set);
    assert!(there.upgrade().is_some() && sim.counter("bytes_live") == bytes, "the device may still read it");
    drop(model);
    assert!(there.upgrade().is_none());
    assert_eq!((sim.counters(LIVE), device.lost(), sim.fault()), (before, None, String::new()));
}

/// Says in the process that the test below starts that it is that one.
const HANGS: &str = "TIDEPOOL_SET_OF_A_BATCH_THAT_HANGS";

/// In a process of its own, since what is left to a device that hangs stays there.
#[test]
fn a_set_outlives_a_batch_that_the_device_did_not_finish_in_time() {
    if env::var_os(HANGS).is_none() {
        let mut command = Command::new(env::current_exe().unwrap());
        let name = "resident::a_set_outlives_a_batch_that_the_device_did_not_finish_in_time";
        let output = command.args(["--exact", name]).env(HANGS, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let options = CudaOptions { deadline: Duration::from_millis(200), streams: 1, ..options() };
    let model = load_with(&device, &case, &options);
    let set = resident(&device);
    answer(&model, &set, 3).unwrap();
    sim.hang(true);
    let error = answer(&model, &set, 3).unwrap_err();
    assert!(matches!(&error, DenseError::Device(error) if error.is_lost()), "{error}");
    let (there, bytes): (Weak<ResidentSet>, _) = (Arc::downgrade(&set), sim.counter("bytes_live"));
    drop(set);
    assert!(there.upgrade().is_some(), "the device may still read it");
    drop(model);
    // Its memory is left to the device: to free it would wait for ever.
    assert_eq!((there.upgrade().is_none(), sim.counter("bytes_live")), (true, bytes));
    drop(device);
    sim.hang(false);
    assert_eq!(sim.fault(), "");
}
