//! The conventions of the workspace, read from `cargo metadata` and the sources: edges between crates,
//! licences, sources of dependencies, where unsafe code may stand, how files open and how long
//! they are, and that no test is ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The edges that the architecture allows: a crate, and which of ours it may use (docs/ARCHITECTURE.md).
const EDGES: &[(&str, &[&str])] = &[
    ("tidepool-types", &[]),
    ("tidepool-kernels", &["types"]),
    ("tidepool-table", &["types", "kernels"]),
    ("tidepool-import", &["types", "kernels", "table"]),
    ("tidepool-store", &["types"]),
    ("tidepool-cluster", &["types"]),
    ("tidepool-proto", &["types", "cluster"]),
    ("tidepool-runtime", &[]),
    ("tidepool-client", &["types", "kernels", "cluster", "proto"]),
    ("tidepool-node", &["types", "kernels", "table", "store", "cluster", "proto", "runtime"]),
    ("tidepool-controller", &["types", "store", "cluster", "proto", "runtime"]),
    ("tidepool-dense", &["types", "kernels"]),
    ("tidepool-ranker", &["types", "cluster", "client", "dense", "store", "proto", "runtime"]),
    ("tidepool-train", &["types", "kernels", "table", "dense", "store"]),
    (
        "tidepool-bench",
        &["types", "kernels", "table", "store", "client", "dense", "ranker", "cluster", "proto", "runtime"],
    ),
    (
        "tidepool-skew",
        &["types", "kernels", "table", "store", "client", "dense", "ranker", "runtime", "train"],
    ),
    ("tidepool-cuda-sim", &[]),
];

/// Crates that may use any of ours.
const FREE: &[&str] = &["tidepool-cli", "tidepool-tests"];

/// What must not be reached from a crate, however indirectly.
const UNREACHABLE: &[(&str, &[&str])] = &[
    ("tidepool-types", &["tokio", "tonic", "memmap2"]),
    ("tidepool-kernels", &["tokio", "tonic", "memmap2"]),
    ("tidepool-table", &["tokio", "tonic"]),
    ("tidepool-store", &["tidepool-table", "tidepool-kernels"]),
    ("tidepool-cluster", &["tokio", "tonic", "rand"]),
    ("tidepool-dense", &["tokio", "tonic", "hyper"]),
    // What it writes may lie in an object store, whose client brings tokio and hyper; servers it must not know.
    ("tidepool-train", &["tonic", "axum", "tidepool-runtime"]),
    ("tidepool-client", &["tidepool-table", "tidepool-dense", "tidepool-runtime", "tract-onnx"]),
    ("tidepool-node", &["tidepool-client", "tidepool-dense", "tidepool-ranker", "tract-onnx"]),
    ("tidepool-controller", &["tidepool-table", "tidepool-kernels", "tidepool-client"]),
    ("tidepool-ranker", &["tidepool-table", "tidepool-node"]),
];

/// Licences under which a dependency may come.
const LICENCES: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "0BSD",
];

/// The rooms made for unsafe code.
const UNSAFE_ROOMS: &[&str] = &[
    "crates/tidepool-dense/benches/engines/peers.rs",
    "crates/tidepool-dense/src/cpu/matmul.rs",
    "crates/tidepool-dense/src/cpu/matmul_avx2.rs",
    "crates/tidepool-dense/src/cpu/matmul_avx512.rs",
    "crates/tidepool-dense/src/cpu/mod.rs",
    "crates/tidepool-dense/src/cuda/blas.rs",
    "crates/tidepool-dense/src/cuda/compile.rs",
    "crates/tidepool-dense/src/cuda/device.rs",
    "crates/tidepool-dense/src/cuda/library.rs",
    "crates/tidepool-dense/src/cuda/memory.rs",
    "crates/tidepool-dense/src/cuda/module.rs",
    "crates/tidepool-dense/src/cuda/resident/set.rs",
    "crates/tidepool-dense/src/cuda/rows/expander.rs",
    "crates/tidepool-dense/src/cuda/select/selector.rs",
    "crates/tidepool-dense/src/cuda/step.rs",
    "crates/tidepool-dense/src/cuda/stream.rs",
    "crates/tidepool-dense/src/cuda/worker.rs",
    "crates/tidepool-dense/tests/gpu_sim/sim.rs",
    "crates/tidepool-kernels/src/pool/avx2.rs",
    "crates/tidepool-kernels/src/pool/avx512.rs",
    "crates/tidepool-kernels/src/prefetch.rs",
    "crates/tidepool-kernels/src/quantize/avx2.rs",
    "crates/tidepool-kernels/src/quantize/avx512.rs",
    "crates/tidepool-runtime/src/idle.rs",
    "crates/tidepool-table/src/mmap.rs",
    "tests/cuda-sim/src/ffi/",
    "tests/cuda-sim/src/host.rs",
    "tests/cuda-sim/tests/",
];

/// The longest file, in lines: past this it is two rooms.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

struct Workspace {
    packages: BTreeMap<String, Value>,
    /// Package name to the names of its direct dependencies; ours with dev and build, others without dev.
    normal: BTreeMap<String, BTreeSet<String>>,
    ours: BTreeMap<String, BTreeSet<String>>,
}

impl Workspace {
    fn read() -> Self {
        let rustc = Command::new("rustc").arg("-vV").output().unwrap();
        let rustc = String::from_utf8(rustc.stdout).unwrap();
        let host = rustc.lines().find_map(|l| l.strip_prefix("host: ")).unwrap();
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", host])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self::parse(&serde_json::from_slice(&output.stdout).unwrap())
    }

    fn parse(metadata: &Value) -> Self {
        let list = |v: &Value| v.as_array().unwrap().clone();
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let packages: BTreeMap<_, _> =
            list(&metadata["packages"]).into_iter().map(|p| (text(&p["id"]), p)).collect();
        let name = |id: &Value| text(&packages[id.as_str().unwrap()]["name"]);
        let (mut normal, mut ours) = (BTreeMap::new(), BTreeMap::new());
        for node in list(&metadata["resolve"]["nodes"]) {
            let (mut of_normal, mut of_ours) = (BTreeSet::new(), BTreeSet::new());
            for dep in list(&node["deps"]) {
                let to = name(&dep["pkg"]);
                let shipped = list(&dep["dep_kinds"]).iter().any(|k| k["kind"].is_null());
                if shipped {
                    of_normal.insert(to.clone());
                }
                if to.starts_with("tidepool-") {
                    of_ours.insert(to);
                }
            }
            let from = name(&node["id"]);
            normal.entry(from.clone()).or_insert_with(BTreeSet::new).extend(of_normal);
            ours.entry(from).or_insert_with(BTreeSet::new).extend(of_ours);
        }
        Self { packages, normal, ours }
    }

    fn members(&self) -> impl Iterator<Item = &Value> {
        self.packages.values().filter(|p| p["source"].is_null())
    }

    fn reached_from(&self, start: &str) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut todo = vec![start];
        while let Some(at) = todo.pop() {
            for next in self.normal.get(at).into_iter().flatten() {
                if reached.insert(next.as_str()) {
                    todo.push(next);
                }
            }
        }
        reached
    }

    fn forbidden_edges(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for member in self.members() {
            let from = member["name"].as_str().unwrap();
            let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == from) else {
                if !FREE.contains(&from) {
                    wrong.push(format!("{from} is not in the table of edges"));
                }
                continue;
            };
            for to in &self.ours[from] {
                let short = to.strip_prefix("tidepool-").unwrap();
                if to != from && !allowed.contains(&short) {
                    wrong.push(format!("{from} must not use {to}"));
                }
            }
        }
        for (from, never) in UNREACHABLE {
            let reached = self.reached_from(from);
            let hits = never.iter().filter(|to| reached.contains(**to));
            wrong.extend(hits.map(|to| format!("{from} must not reach {to}")));
        }
        wrong
    }
}

#[test]
fn crates_use_only_what_the_architecture_allows() {
    let workspace = Workspace::read();
    assert!(workspace.members().count() > EDGES.len(), "cargo metadata lists the workspace");
    assert_eq!(workspace.forbidden_edges(), Vec::<String>::new());
}

#[test]
fn a_forbidden_edge_is_found() {
    let mut workspace = Workspace::read();
    workspace.ours.get_mut("tidepool-table").unwrap().insert("tidepool-client".into());
    workspace.normal.get_mut("tidepool-kernels").unwrap().insert("tokio".into());
    let wrong = workspace.forbidden_edges();
    assert!(wrong.contains(&"tidepool-table must not use tidepool-client".into()), "{wrong:?}");
    assert!(wrong.contains(&"tidepool-table must not reach tokio".into()), "{wrong:?}");
}

/// Whether an SPDX expression can be met by [`LICENCES`].
fn licence_allowed(expression: &str) -> bool {
    // Old manifests write `MIT/Apache-2.0`. `X WITH Y` is one licence.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    any_of(&mut rest) == Some(true) && rest.is_empty()
}

/// Alternatives, up to a closing bracket or the end; `None` when it is no expression.
fn any_of(rest: &mut &[&str]) -> Option<bool> {
    let mut allowed = all_of(rest)?;
    while let Some(("OR", after)) = rest.split_first().map(|(word, after)| (*word, after)) {
        *rest = after;
        allowed |= all_of(rest)?;
    }
    Some(allowed)
}

fn all_of(rest: &mut &[&str]) -> Option<bool> {
    let mut allowed = term(rest)?;
    while let Some(("AND", after)) = rest.split_first().map(|(word, after)| (*word, after)) {
        *rest = after;
        allowed &= term(rest)?;
    }
    Some(allowed)
}

fn term(rest: &mut &[&str]) -> Option<bool> {
    let (first, mut after) = rest.split_first()?;
    let allowed = match *first {
        "(" => {
            let inner = any_of(&mut after)?;
            after = after.strip_prefix(&[")"])?;
            inner
        }
        ")" | "OR" | "AND" | "WITH" => return None,
        name => match after {
            ["WITH", exception, end @ ..] => {
                after = end;
                LICENCES.contains(&format!("{name} WITH {exception}").as_str())
            }
            _ => LICENCES.contains(&name),
        },
    };
    *rest = after;
    Some(allowed)
}

#[test]
fn licences_are_read_as_spdx_has_them() {
    let allowed = [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-3.0-only OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
        "MIT OR (GPL-3.0-only AND (ISC))",
    ];
    for expression in allowed {
        assert!(licence_allowed(expression), "{expression}");
    }
    let refused = [
        "",
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        // The brackets decide: MIT does not make up for the GPL beside it.
        "(MIT OR Apache-2.0) AND GPL-3.0-only",
        "GPL-3.0-only AND (MIT OR Apache-2.0)",
        "GPL-2.0-only WITH LLVM-exception",
        "(MIT",
        "MIT MIT",
        "MIT OR",
    ];
    for expression in refused {
        assert!(!licence_allowed(expression), "{expression}");
    }
}

#[test]
fn dependencies_come_from_the_registry_under_an_allowed_licence() {
    let workspace = Workspace::read();
    for package in workspace.packages.values() {
        let name = &package["name"];
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(licence_allowed(licence), "{name}: licence {licence:?}");
        let registry = package["source"].as_str().is_none_or(|s| s.starts_with("registry+"));
        assert!(registry, "{name} comes from {}", package["source"]);
    }
}

#[test]
fn every_member_keeps_the_lints_and_takes_versions_from_the_workspace() {
    let workspace = Workspace::read();
    for member in workspace.members() {
        let path = member["manifest_path"].as_str().unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{path} does not take the workspace's lints");
        let mut in_dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies]");
            } else if in_dependencies && line.contains('=') {
                assert!(line.contains("workspace = true"), "{path}: {line:?} names a version of its own");
            }
        }
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn files_say_what_they_are_for_and_are_one_room() {
    let mut found = Vec::new();
    sources(&root().join("crates"), &mut found);
    sources(&root().join("tests"), &mut found);
    assert!(found.len() > 20, "sources are found");
    let mut with_unsafe = Vec::new();
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        assert!(text.starts_with("//!"), "{shown} does not open with //!");
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{shown} has {lines} lines, more than {MAX_LINES}");
        // The second keeps anyone from allowing it where this reading of the text does not see it.
        let has_unsafe = has_code(&text, "unsafe ") || has_code(&text, "(unsafe_code");
        let quoted = shown == "tests/it/conventions.rs";
        // A suite that needs a peer is a target of its own: what is ignored is forgotten.
        assert!(quoted || !has_code(&text, "#[ignore"), "{shown} has a test that nobody runs");
        if has_unsafe && !quoted {
            with_unsafe.push(shown);
        }
    }
    let is_room = |file: &&String| UNSAFE_ROOMS.iter().any(|room| file.starts_with(room));
    let elsewhere: Vec<_> = with_unsafe.iter().filter(|file| !is_room(file)).collect();
    assert!(elsewhere.is_empty(), "unsafe code has its own rooms: {elsewhere:?}");
    let unused: Vec<_> =
        UNSAFE_ROOMS.iter().filter(|room| !with_unsafe.iter().any(|f| f.starts_with(**room))).collect();
    assert!(unused.is_empty(), "rooms without unsafe code: {unused:?}");
}

/// Whether a line that is no comment has `code`.
fn has_code(text: &str, code: &str) -> bool {
    text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(code))
}
