//! `tidepool rank`: a ranking request from a JSON file, sent to a ranker over gRPC.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
};

use anyhow::{Context, Result};
use serde_json::Value;
use tidepool_proto::v1::{self, ranker_client::RankerClient};
use tidepool_ranker::json::{JsonRequest, answer};

use super::control;
use crate::output::{Outcome, Output};

/// Candidates that people are shown.
const SHOWN: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The request, as `POST /v1/rank` takes it; `-` reads stdin. Write numbers that are not ids with a
    /// point, 1.0 and not 1: which is which is not known here, and whole numbers are sent as ids.
    file: PathBuf,
    /// The ranker's gRPC address; without it the controller is asked for one.
    #[arg(long, value_name = "HOST:PORT")]
    ranker: Option<String>,
}

pub(crate) async fn run(args: Args, controller: &str, output: Output) -> Result<Outcome> {
    let mut text = Vec::new();
    if args.file.as_os_str() == "-" {
        io::stdin().read_to_end(&mut text).context("reading stdin")?;
    } else {
        text = fs::read(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    }
    let request = JsonRequest::parse(&text)?.to_message(None)?;
    let address = match args.ranker {
        Some(address) => address,
        None => any_ranker(controller).await?,
    };
    let mut ranker = RankerClient::new(control::channel("ranker", &address).await?);
    let response = ranker.rank(request).await.map_err(|s| control::refusal(&s))?.into_inner();
    show(&response, output);
    output.object(answer(&response));
    Ok(Outcome::Done)
}

/// The gRPC address of a ranker that the controller knows.
async fn any_ranker(controller: &str) -> Result<String> {
    let mut control = control::connect(controller).await?;
    let cluster = control.get_cluster(v1::GetClusterRequest {}).await.map_err(|s| control::refusal(&s))?;
    let ranker = cluster.into_inner().rankers.into_iter().next();
    Ok(ranker.context("the controller knows no ranker; start one, or name it with --ranker")?.grpc_address)
}

fn show(response: &v1::RankResponse, output: Output) {
    let versions: Vec<_> =
        response.table_versions.iter().map(|t| format!("{}@{}", t.table, t.version)).collect();
    output.line(format!(
        "{} {} with {} (epoch {}): {} rows from {} nodes, {} ids missing; lookup {} us, dense {} us",
        response.model,
        response.release,
        versions.join(", "),
        response.epoch,
        response.rows_looked_up,
        response.nodes_touched,
        response.missing_ids,
        response.lookup_us,
        response.dense_us,
    ));
    let document = answer(response);
    let results = document["results"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (rank, result) in (1..).zip(results.iter().take(SHOWN)) {
        let score = result["score"].as_f64().unwrap_or(f64::NAN);
        output.line(format!("{rank:>4}. candidate {:>6}  {score:.6}", Value::to_string(&result["index"])));
    }
    if results.len() > SHOWN {
        output.line(format!("... {} in all, --json has them", results.len()));
    }
}
