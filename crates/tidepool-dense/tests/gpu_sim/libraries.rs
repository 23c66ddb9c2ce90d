//! Machines that lack something: each is a process of its own, since libraries are looked for once.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use tidepool_dense::CudaDevice;

use crate::sim::Sim;

/// What the error must say in the processes that the tests below start.
const EXPECTED: &str = "TIDEPOOL_EXPECTED_PROBLEM";

#[test]
fn a_device_opens_or_says_what_is_wrong() {
    match env::var(EXPECTED) {
        Err(_) => {
            let _sim = Sim::alone();
            let device = CudaDevice::open(0).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((device.capability(), device.lost()), ((8, 0), None));
            let error = CudaDevice::open(7).unwrap_err().to_string();
            assert_eq!(error, "there is no cuda:7: the driver shows 1 devices");
        }
        Ok(expected) => {
            let error = CudaDevice::open(0).map(drop).unwrap_err().to_string();
            for part in expected.split('|') {
                assert!(error.contains(part), "{part:?} is not in {error:?}");
            }
        }
    }
}

/// Opens the device in another process, with this environment.
fn elsewhere(variables: &[(&str, &str)], expected: &str) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "libraries::a_device_opens_or_says_what_is_wrong"]).env(EXPECTED, expected);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    // A name that no test has would succeed too.
    assert!(output.status.success() && told.contains("1 passed"), "{variables:?}: {told}");
}

/// The folders of the loader's path that have a file of this name, and the others.
fn folders(name: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
    env::split_paths(&env::var_os("LD_LIBRARY_PATH").unwrap()).partition(|folder| folder.join(name).exists())
}

/// The loader's path with a folder of these links before the other libraries.
fn path_with(folder: &Path, links: &[(&str, &Path)]) -> String {
    for (name, to) in links {
        symlink(to, folder.join(name)).unwrap();
    }
    let (_, mut path) = folders("libcuda.so");
    path.insert(0, folder.to_owned());
    env::join_paths(path).unwrap().into_string().unwrap()
}

#[test]
fn an_old_driver_is_told_by_its_version() {
    elsewhere(&[("TIDEPOOL_SIM_DRIVER_VERSION", "11080")], "too old|11.8|12.0");
    // New enough to start, but not for what this NVRTC writes.
    elsewhere(&[("TIDEPOOL_SIM_DRIVER_VERSION", "12010")], "too old|12.1");
}

#[test]
fn a_machine_without_a_device_or_a_library_is_told_what_to_install() {
    elsewhere(&[("TIDEPOOL_SIM_DEVICES", "0")], "NO_DEVICE");
    let (with, without) = folders("libcuda.so");
    let library = fs::canonicalize(with[0].join("libcuda.so")).unwrap();
    let path = env::join_paths(&without).unwrap().into_string().unwrap();
    elsewhere(&[("LD_LIBRARY_PATH", &path)], "libcuda|install an NVIDIA driver");
    let dir = tempfile::tempdir().unwrap();
    let path = path_with(dir.path(), &[("libcuda.so", &library)]);
    elsewhere(&[("LD_LIBRARY_PATH", &path)], "libcublasLt|install");
    let (_, without) = folders("libnvrtc.so.12");
    let path = env::join_paths(&without).unwrap().into_string().unwrap();
    elsewhere(&[("LD_LIBRARY_PATH", &path)], "libnvrtc|install");
}

#[test]
fn a_driver_that_lacks_a_function_is_told_by_its_name() {
    let library = fs::canonicalize(folders("libcuda.so").0[0].join("libcuda.so")).unwrap();
    let mut bytes = fs::read(library).unwrap();
    let name = b"\0cuGraphUpload\0";
    let places: Vec<usize> =
        bytes.windows(name.len()).enumerate().filter(|(_, w)| w == name).map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    for at in places {
        // Another name of the same length: whoever asks for the old one is told that there is none.
        bytes[at + 3..at + 13].copy_from_slice(b"XraphXploa");
    }
    let dir = tempfile::tempdir().unwrap();
    let changed = dir.path().join("changed.so");
    fs::write(&changed, bytes).unwrap();
    let path = path_with(dir.path(), &[("libcuda.so", &changed), ("libcublasLt.so", &changed)]);
    elsewhere(&[("LD_LIBRARY_PATH", &path)], "cuGraphUpload");
}
