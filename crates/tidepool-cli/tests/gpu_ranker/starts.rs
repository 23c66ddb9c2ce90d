//! A ranker that cannot have the device that it was asked to take ends at once, with an error that says what is missing.

use tempfile::TempDir;
use tidepool_store::ArtifactStore;

use crate::{
    command::tidepool,
    machine::{bare_keys, folders, path_of},
};

/// Starts a ranker on `device` where these variables are set; it must end with 1, and say all of `words`.
fn refused(device: &str, environment: &[(&str, &str)], words: &[&str]) {
    let dir = TempDir::new().unwrap();
    ArtifactStore::open(dir.path().join("store")).unwrap();
    let mut command = tidepool();
    command.arg("ranker").args(bare_keys(dir.path(), device)).envs(environment.iter().copied());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    assert!(!said.contains("listening"), "it never listened: {said}");
}

#[test]
fn without_a_driver_it_says_what_to_install() {
    let (_, without) = folders();
    refused("cuda:0", &[("LD_LIBRARY_PATH", &path_of(&without))], &["libcuda", "install an NVIDIA driver"]);
}

#[test]
fn an_old_driver_is_told_by_its_version_beside_what_is_needed() {
    folders();
    refused("cuda:0", &[("TIDEPOOL_SIM_DRIVER_VERSION", "11080")], &["too old", "11.8", "12.0"]);
    // It would do, but not for what this NVRTC writes.
    refused("cuda:0", &[("TIDEPOOL_SIM_DRIVER_VERSION", "12010")], &["too old", "12.1"]);
}

#[test]
fn a_device_that_is_not_there_is_told() {
    folders();
    refused("cuda:3", &[], &["there is no cuda:3", "shows 1 devices"]);
    refused("cuda:0", &[("TIDEPOOL_SIM_DEVICES", "0")], &["NO_DEVICE"]);
}
