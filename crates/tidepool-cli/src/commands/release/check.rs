//! Is this a release? Everything that is wrong with its files and tables, at once, before anything is written.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use tidepool_dense::{DenseError, DenseModel};
use tidepool_runtime::error::chain;
use tidepool_store::{Store, StoreError, StoreLocation};
use tidepool_types::{Golden, ModelError, ModelSpec, Name, TableVersion};

use super::super::control;

/// The files and tables of a release.
#[derive(Args)]
pub(crate) struct Files {
    /// The model.toml.
    #[arg(long, value_name = "FILE", requires = "onnx", requires = "store")]
    pub(super) model_toml: Option<PathBuf>,
    /// The dense model.
    #[arg(long, value_name = "FILE", requires = "model_toml")]
    pub(super) onnx: Option<PathBuf>,
    /// Golden vectors: what training says that features become. Without it, `golden.json` beside the model.toml, if
    /// it is there.
    #[arg(long, value_name = "FILE", requires = "model_toml")]
    pub(super) golden: Option<PathBuf>,
    /// A table version that the model was trained with; once per table.
    #[arg(long = "table", value_name = "TABLE@VERSION", value_parser = control::table_version)]
    pub(super) tables: Vec<TableVersion>,
    /// The artifact store.
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX", requires = "model_toml")]
    pub(super) store: Option<StoreLocation>,
}

/// What was checked and found good.
pub(super) struct Checked {
    pub(super) store: Store,
    pub(super) model: Name,
    pub(super) model_toml: String,
    pub(super) onnx: Vec<u8>,
    /// The content of `golden.json`.
    pub(super) golden: Option<String>,
    /// How many golden vectors there are.
    pub(super) golden_cases: usize,
    /// Inputs that a transform makes ids for, and that no golden vector speaks of.
    pub(super) not_golden: Vec<String>,
}

/// Holds model.toml, golden vectors, graph and tables against each other, and a release name against the store.
///
/// # Errors
/// One that lists every problem.
pub(super) async fn check(files: &Files, release: Option<&Name>) -> Result<Checked> {
    let (Some(model_toml), Some(onnx), Some(store)) = (&files.model_toml, &files.onnx, &files.store) else {
        bail!("give --model-toml, --onnx and --store");
    };
    let store = Store::open_existing(store)?;
    let text = fs::read_to_string(model_toml).with_context(|| format!("reading {}", model_toml.display()))?;
    let bytes = fs::read(onnx).with_context(|| format!("reading {}", onnx.display()))?;
    let golden = golden_text(files, model_toml)?;
    let mut problems = Vec::new();
    let (mut golden_cases, mut not_golden) = (0, Vec::new());
    let dims = tables(&store, &files.tables, &mut problems).await?;
    let model = match ModelSpec::from_toml(&text) {
        Ok(spec) => {
            let pinned = |table: &Name| files.tables.iter().any(|version| version.table == *table);
            for table in spec.tables().filter(|table| !pinned(table)) {
                problems.push(format!("model.toml pools from table {table}: add --table {table}@VERSION"));
            }
            graph(onnx, &spec, &dims, &mut problems);
            (golden_cases, not_golden) = vectors(golden.as_deref(), &spec, &mut problems);
            if let Some(release) = release
                && store.has_release(&spec.model, release).await?
            {
                problems.push(format!(
                    "release {}@{release} is in the store already: choose another name, or publish that one with \
                     --model {} and no files",
                    spec.model, spec.model
                ));
            }
            Some(spec.model)
        }
        Err(ModelError::Problems(found)) => {
            problems.extend(found.into_iter().map(|problem| format!("model.toml: {problem}")));
            None
        }
        Err(error @ ModelError::Syntax(_)) => {
            problems.push(error.to_string());
            None
        }
    };
    match model {
        Some(model) if problems.is_empty() => {
            let (model_toml, onnx) = (text, bytes);
            Ok(Checked { store, model, model_toml, onnx, golden, golden_cases, not_golden })
        }
        _ => {
            let list: Vec<_> = problems.iter().map(|problem| format!("\n  - {problem}")).collect();
            bail!("this is no release, {} things are wrong with it:{}", list.len(), list.concat());
        }
    }
}

/// The dimension of each table's vectors; 0 where that is not known for a problem that was told.
///
/// # Errors
/// A store that does not answer: that is no mistake of the release.
async fn tables(
    store: &Store,
    versions: &[TableVersion],
    problems: &mut Vec<String>,
) -> Result<BTreeMap<Name, u32>> {
    let mut dims = BTreeMap::new();
    for version in versions {
        if dims.contains_key(&version.table) {
            problems.push(format!("table {} is given twice: a release pins one version", version.table));
            continue;
        }
        let dim = match store.look_at_table(version).await {
            Ok((manifest, missing)) => {
                problems.extend(missing.iter().map(|error| chain(error)));
                manifest.schema.vector_dim()
            }
            Err(error @ StoreError::Unreachable { .. }) => return Err(error.into()),
            Err(error) => {
                problems.push(chain(&error));
                0
            }
        };
        dims.insert(version.table.clone(), dim);
    }
    Ok(dims)
}

/// The text of the golden vectors: of the file that is named, or of the one beside the contract, if it is there.
fn golden_text(files: &Files, model_toml: &Path) -> Result<Option<String>> {
    let beside = model_toml.with_file_name("golden.json");
    let path = match &files.golden {
        Some(path) => path,
        None if beside.exists() => &beside,
        None => return Ok(None),
    };
    fs::read_to_string(path).map(Some).with_context(|| format!("reading {}", path.display()))
}

/// Computes the golden vectors again. Gives how many there are, and the inputs with a transform that have none.
fn vectors(text: Option<&str>, spec: &ModelSpec, problems: &mut Vec<String>) -> (usize, Vec<String>) {
    let golden = match text.map(serde_json::from_str::<Golden>).transpose() {
        Ok(golden) => golden,
        Err(error) => {
            problems.push(format!("golden.json: {error}"));
            None
        }
    };
    if let Some(golden) = &golden {
        problems.extend(golden.check(spec).into_iter().map(|problem| format!("golden.json: {problem}")));
    }
    let spoken_of = |name: &str| golden.as_ref().is_some_and(|golden| golden.inputs.contains_key(name));
    let transformed = spec.inputs.iter().filter(|input| !input.transform.is_identity());
    let without = transformed.map(|input| input.name.clone()).filter(|name| !spoken_of(name)).collect();
    (golden.map_or(0, |golden| golden.cases()), without)
}

/// Holds the graph against the contract, as far as tables are known.
fn graph(onnx: &Path, spec: &ModelSpec, dims: &BTreeMap<Name, u32>, problems: &mut Vec<String>) {
    // A table that is not there has been told of: here it fits whatever the graph says of it.
    let known = |table: &Name| dims.get(table).copied().filter(|dim| *dim > 0);
    match DenseModel::load(onnx, spec, &known) {
        Ok(_) => {}
        Err(DenseError::Contract(found)) => {
            let of_no_table = |problem: &String| {
                spec.tables()
                    .any(|table| known(table).is_none() && problem.ends_with(&format!("no table {table}")))
            };
            problems.extend(found.into_iter().filter(|problem| !of_no_table(problem)));
        }
        Err(error) => problems.push(chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A release with five mistakes is told of all of them at once.
    #[tokio::test]
    async fn every_mistake_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        tidepool_store::ArtifactStore::open(&store).unwrap();
        let (model_toml, onnx) = (dir.path().join("model.toml"), dir.path().join("model.onnx"));
        fs::write(
            &model_toml,
            r#"schema_version = 1
            model = "m"
            score = "p"
            inputs = [
                { name = "user", side = "user", table = "user" },
                { name = "item", side = "candidate", table = "item" },
            ]
            outputs = [{ name = "p" }]"#,
        )
        .unwrap();
        fs::write(&onnx, "no graph").unwrap();
        let version = |text: &str| control::table_version(text).unwrap();
        let files = Files {
            model_toml: Some(model_toml.clone()),
            onnx: Some(onnx),
            golden: None,
            tables: vec![version("user@v1"), version("user@v2"), version("genre@v1")],
            store: Some(StoreLocation::Directory(store)),
        };
        let told =
            async |files: &Files| check(files, None).await.err().map(|error| error.to_string()).unwrap();
        let text = told(&files).await;
        for problem in [
            "there is no table user@v1",
            "table user is given twice",
            "there is no table genre@v1",
            "pools from table item: add --table item@VERSION",
            "model.onnx is not an ONNX model",
        ] {
            assert!(text.contains(problem), "{problem}: {text}");
        }
        assert!(text.starts_with("this is no release, 5 things are wrong with it"), "{text}");
        fs::write(&model_toml, "schema_version = 1\nmodel = \"m\"\nscore = \"p\"\ninputs = []\noutputs = []")
            .unwrap();
        let text = told(&files).await;
        assert!(text.contains("model.toml: line 4: inputs: there are no inputs"), "{text}");
        assert!(text.contains("genre@v1"), "{text}");
    }

    /// So is a contract with five mistakes, and so are golden vectors that the contract does not give.
    #[tokio::test]
    async fn every_mistake_of_a_contract_and_its_golden_vectors_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        tidepool_store::ArtifactStore::open(&store).unwrap();
        let (model_toml, onnx) = (dir.path().join("model.toml"), dir.path().join("model.onnx"));
        fs::write(&onnx, "no graph").unwrap();
        let files = Files {
            model_toml: Some(model_toml.clone()),
            onnx: Some(onnx),
            golden: None,
            tables: Vec::new(),
            store: Some(StoreLocation::Directory(store)),
        };
        let told =
            async |files: &Files| check(files, None).await.err().map(|error| error.to_string()).unwrap();
        let five = r#"schema_version = 1
model = "m"
score = "utility"
utility = "ctr * bdi"
top_n = 3
[[inputs]]
name = "item"
side = "candidates"
width = 1
[[inputs]]
name = "age"
side = "user"
table = "age"
transform = [{ op = "bucketise", boundaries = [18] }]
[[outputs]]
name = "ctr"
[[calibrations]]
output = "cvr"
kind = "platt"
a = 1
b = 0
"#;
        fs::write(&model_toml, five).unwrap();
        let text = told(&files).await;
        assert!(text.starts_with("this is no release, 5 things are wrong with it"), "{text}");
        for problem in [
            "model.toml: line 4: utility: \"bdi\" is neither an output (ctr) nor a utility input ()",
            "model.toml: line 5: unknown key \"top_n\"",
            "model.toml: line 8: inputs[0] \"item\": side: \"candidates\" is none of \"user\", \"candidate\"",
            "model.toml: line 14: inputs[1] \"age\": transform[0]: op: \"bucketise\" is none of \"hash\"",
            "model.toml: line 18: calibrations[0]: output: \"cvr\" is not one of the outputs",
        ] {
            assert!(text.contains(problem), "{problem}: {text}");
        }
        let one = five
            .replace("candidates", "candidate")
            .replace("ctr * bdi", "ctr")
            .replace("top_n", "top_k")
            .replace("bucketise", "bucketize")
            .replace("cvr", "ctr");
        fs::write(&model_toml, one).unwrap();
        let golden = r#"{"schema_version": 1, "inputs": {"age": [{"raw": [17], "ids": [1]}]}}"#;
        fs::write(dir.path().join("golden.json"), golden).unwrap();
        let text = told(&files).await;
        let problem = "golden.json: input \"age\", case 0: [17] gives ids [0], training gave [1]";
        assert!(text.contains(problem) && !text.contains("model.toml: line"), "{text}");
        let elsewhere = dir.path().join("frozen.json");
        fs::write(&elsewhere, golden.replace("[1]", "[0]")).unwrap();
        let text = told(&Files { golden: Some(elsewhere), ..files }).await;
        assert!(!text.contains("golden"), "{text}");
    }
}
