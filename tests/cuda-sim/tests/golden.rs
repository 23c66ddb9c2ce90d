//! The golden PTX files are what NVRTC makes of their sources today. Needs the pinned NVRTC on
//! `LD_LIBRARY_PATH` (data/README.md), so it is no default target.

use std::{fs, path::Path};

use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

/// NVRTC numbers the calls of a process in comments: what else it compiled before shows there.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or(line).trim_end()).collect::<Vec<_>>().join("\n")
}

#[test]
fn golden_files_are_what_nvrtc_makes_of_their_sources() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let write = std::env::var_os("TIDEPOOL_WRITE_GOLDEN").is_some();
    let (mut seen, mut differ) = (0, Vec::new());
    for entry in fs::read_dir(&folder).unwrap() {
        let source = entry.unwrap().path();
        if source.extension().is_none_or(|e| e != "cu") {
            continue;
        }
        seen += 1;
        let text = fs::read_to_string(&source).unwrap();
        let options = CompileOptions { arch: Some("compute_80"), ..CompileOptions::default() };
        let made =
            compile_ptx_with_opts(text, options).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
        let made = made.to_src();
        let made = made.trim_end_matches('\0');
        let golden = source.with_extension("ptx");
        if write {
            fs::write(&golden, made).unwrap();
        } else if without_comments(&fs::read_to_string(&golden).unwrap()) != without_comments(made) {
            differ.push(golden);
        }
        tidepool_cuda_sim::ptx::Module::parse(made).unwrap();
    }
    assert!(seen >= 11, "{seen} sources");
    assert!(differ.is_empty(), "made anew, these differ (is it NVRTC 12.4.127?): {differ:?}");
}
