//! Faults of the device, and what the engine makes of them.

use std::{env, process::Command, sync::mpsc, thread, time::Duration};

use tidepool_dense::{CudaError, CudaModel, CudaOptions, DenseError};

use crate::{load, models, open, options, oracle::Case, run, same, sim::Sim};

fn device_error(error: DenseError) -> CudaError {
    match error {
        DenseError::Device(error) => error,
        other => panic!("{other} is no error of the device"),
    }
}

#[test]
fn a_model_for_which_there_is_no_memory_leaves_the_others_alone() {
    let sim = Sim::alone();
    let device = open();
    let (case, other) = (Case::new(models::dcn_mmoe()), Case::new(models::dlrm()));
    let model = load(&device, &case).unwrap();
    let live = sim.counters(["allocations_live", "pinned_live", "graphs_live", "events_live"]);
    // Whichever allocation it is that fails.
    let mut failed = 0;
    for nth in 1..200 {
        sim.set("fail_allocation", nth);
        match load(&device, &other) {
            Ok(loaded) => {
                sim.set("fail_allocation", 0);
                let batch = other.batch(3, 1, 1);
                same(&other, &batch, &run(&loaded, &batch).unwrap());
                break;
            }
            Err(error) => {
                let error = device_error(error);
                assert!(
                    matches!(error, CudaError::OutOfMemory { .. } | CudaError::OutOfHostMemory { .. }),
                    "allocation {nth}: {error}"
                );
                failed += 1;
            }
        }
        let now = sim.counters(["allocations_live", "pinned_live", "graphs_live", "events_live"]);
        assert_eq!(now, live, "allocation {nth} failed, and something was left behind");
        let batch = case.batch(4, 2, nth);
        same(&case, &batch, &run(&model, &batch).unwrap());
    }
    assert!(failed > 4, "{failed} allocations were made to fail");
    assert_eq!(device.lost(), None);
}

#[test]
fn a_kernel_that_fails_loses_the_device_at_once_and_for_all() {
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::two_tower());
    let (model, other) = (load(&device, &case).unwrap(), load(&device, &case).unwrap());
    sim.set("fail_launch", 2);
    let batch = case.batch(4, 2, 1);
    let error = device_error(run(&model, &batch).unwrap_err());
    assert!(error.to_string().contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    let lost = device_error(run(&other, &batch).unwrap_err());
    assert!(lost.is_lost(), "{lost}");
    assert!(device.lost().is_some());
    drop((model, other, device));
    // A new context starts clean, as a new process would.
    let device = open();
    let model = load(&device, &case).unwrap();
    same(&case, &batch, &run(&model, &batch).unwrap());
}

#[test]
fn a_device_that_goes_away_is_said_to_be_lost() {
    let sim = Sim::alone();
    let case = Case::new(models::two_tower());
    // DEVICE_UNAVAILABLE, CONTEXT_IS_DESTROYED, UNKNOWN, ECC_UNCORRECTABLE.
    for code in [46, 709, 999, 214] {
        let device = open();
        let model = load(&device, &case).unwrap();
        sim.lose(code);
        let error = device_error(run(&model, &case.batch(4, 2, 1)).unwrap_err());
        assert!(error.is_lost() || matches!(error, CudaError::Driver { .. }), "{code}: {error}");
        let again = device_error(run(&model, &case.batch(4, 2, 1)).unwrap_err());
        assert!(again.is_lost() && model.lost().is_some() && device.lost().is_some(), "{code}: {again}");
        sim.reset();
    }
}

#[test]
fn a_launch_that_is_refused_fails_one_model_and_leaves_nothing_behind() {
    const LIVE: [&str; 5] = ["allocations_live", "pinned_live", "graphs_live", "events_live", "streams_live"];
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::dcn_mmoe());
    let without_graphs = CudaOptions { graphs: false, ..options() };
    let other = CudaModel::load(&device, &case.model, &without_graphs).unwrap();
    let live = sim.counters(LIVE);
    // While steps run one by one, and while they are captured.
    for nth in 1..60 {
        sim.set("refuse_launch", nth);
        let Err(error) = load(&device, &case) else { break };
        let error = device_error(error);
        assert!(matches!(error, CudaError::Driver { .. }), "launch {nth}: {error}");
        assert_eq!(sim.counters(LIVE), live, "launch {nth} was refused, and something was left behind");
    }
    let model = CudaModel::load(&device, &case.model, &without_graphs).unwrap();
    sim.set("refuse_launch", 2);
    let batch = case.batch(4, 2, 1);
    device_error(run(&model, &batch).unwrap_err());
    let given_up = device_error(run(&model, &batch).unwrap_err());
    assert!(matches!(given_up, CudaError::GivenUp { .. }) && model.lost() == Some(given_up));
    drop(model);
    assert_eq!((sim.counters(LIVE), device.lost(), device.take_notes()), (live, None, Vec::new()));
    same(&case, &batch, &run(&other, &batch).unwrap());
}

/// Says in the process that the test below starts that it is that one.
const HANGS: &str = "TIDEPOOL_DEVICE_HANGS";

/// In a process of its own, since what is left to a device that hangs stays there.
#[test]
fn a_device_that_hangs_is_given_up_after_the_deadline_and_hangs_nobody() {
    if env::var_os(HANGS).is_none() {
        let mut command = Command::new(env::current_exe().unwrap());
        let name = "faults::a_device_that_hangs_is_given_up_after_the_deadline_and_hangs_nobody";
        let output = command.args(["--exact", name]).env(HANGS, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let sim = Sim::alone();
    let device = open();
    let case = Case::new(models::two_tower());
    let options = CudaOptions { deadline: Duration::from_millis(200), streams: 1, ..options() };
    let model = CudaModel::load(&device, &case.model, &options).unwrap();
    let other = load(&device, &case).unwrap();
    sim.hang(true);
    let error = device_error(run(&model, &case.batch(4, 2, 1)).unwrap_err());
    assert!(error.is_lost(), "{error}");
    assert!(device_error(run(&model, &case.batch(4, 2, 1)).unwrap_err()).is_lost());
    assert!(device.lost().is_some() && other.lost().is_some());
    let (dropped, told) = mpsc::channel();
    thread::spawn(move || {
        drop((model, other, device));
        dropped.send(()).unwrap();
    });
    told.recv_timeout(Duration::from_secs(60)).unwrap();
    sim.hang(false);
    assert!(load(&open(), &case).is_ok());
}
