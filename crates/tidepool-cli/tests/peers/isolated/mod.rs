//! Bad days that need namespaces of their own: full disks, and hosts that are cut off from each other. Making them
//! needs root, so these tests are run by `scripts/check.sh peers`. What a test makes (disks, links, processes) goes with
//! its namespaces, whatever becomes of the test.

mod disks;
mod hosts;
mod nets;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// Set in the process that has the namespaces: the file by which it shows that it has begun.
const ALONE: &str = "TIDEPOOL_TEST_ALONE";

/// Runs the test of this path (`module_path!()` and its name) in mount, network and process namespaces of its own.
/// True in the process that has them; false where the test was begun, after it has passed there.
fn alone(test: &str) -> bool {
    if let Some(begun) = env::var_os(ALONE) {
        fs::write(begun, "").unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        return true;
    }
    let (_, test) = test.split_once("::").unwrap();
    let dir = TempDir::new().unwrap();
    let begun = dir.path().join("begun");
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(ALONE, &begun)
        .output()
        .expect("unshare is installed (util-linux)");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "in namespaces of its own, which root may make: {said}");
    assert!(begun.exists(), "there is no test {test}: {said}");
    false
}

/// Runs a program of the system, which must succeed.
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; scripts/check.sh peers installs it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A disk of so many bytes, at a folder that is made for it.
struct Disk(PathBuf);

impl Disk {
    fn of(bytes: u64, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tidepool-test", at.to_str().unwrap()]);
        Self(at.to_owned())
    }

    /// Makes it larger.
    fn grow(&self, bytes: u64) {
        run("mount", &["-o", &format!("remount,size={bytes}"), self.0.to_str().unwrap()]);
    }

    /// Takes all room that there is.
    fn fill(&self) {
        let ballast = self.0.join("ballast");
        let mut file = fs::File::create(ballast).unwrap();
        let error = std::io::copy(&mut std::io::repeat(7), &mut file).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }

    /// Gives it back.
    fn empty(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}
