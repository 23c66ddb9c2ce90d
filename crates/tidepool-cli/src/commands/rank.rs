//! `tidepool rank`: a ranking request from a JSON file, posted to a ranker.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tidepool_proto::v1;
use tokio::{net::TcpStream, time::timeout};

use super::control;
use crate::output::{Outcome, Output};

/// Candidates that people are shown.
const SHOWN: usize = 20;
/// The ranker's own deadline is in the request; this is for a ranker that says nothing at all.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The request, as `POST /v1/rank` takes it; `-` reads stdin.
    file: PathBuf,
    /// The ranker's HTTP address; without it the controller is asked for one.
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
    let address = match args.ranker {
        Some(address) => address,
        None => any_ranker(controller).await?,
    };
    let answered = timeout(CALL_TIMEOUT, post(&address, text)).await;
    let answer =
        answered.with_context(|| format!("no answer from {address} in {} s", CALL_TIMEOUT.as_secs()))??;
    show(&answer, output);
    output.object(answer);
    Ok(Outcome::Done)
}

/// The HTTP address of a ranker that the controller knows.
async fn any_ranker(controller: &str) -> Result<String> {
    let mut control = control::connect(controller).await?;
    let cluster = control.get_cluster(v1::GetClusterRequest {}).await.map_err(|s| control::refusal(&s))?;
    let ranker = cluster.into_inner().rankers.into_iter().next();
    Ok(ranker.context("the controller knows no ranker; start one, or name it with --ranker")?.http_address)
}

/// Posts the request and gives the answer, or the ranker's refusal as an error.
async fn post(address: &str, request: Vec<u8>) -> Result<Value> {
    let stream =
        TcpStream::connect(address).await.with_context(|| format!("no ranker answers at {address}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the sender; what it has to say of the connection, the call says too.
    tokio::spawn(connection);
    let request = Request::post("/v1/rank")
        .header(header::HOST, address)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(request)))?;
    let asking = || format!("asking {address}, a ranker's HTTP address");
    let response = sender.send_request(request).await.with_context(asking)?;
    let status = response.status();
    let body = response.into_body().collect().await.with_context(asking)?.to_bytes();
    let answer: Value = serde_json::from_slice(&body).with_context(|| format!("{status} from {address}"))?;
    if status.is_success() {
        return Ok(answer);
    }
    let word = |key: &str| answer["error"][key].as_str().unwrap_or_default().to_owned();
    bail!("{}: {}", word("code"), word("message"))
}

fn show(answer: &Value, output: Output) {
    let word = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let version = |t: &Value| {
        format!("{}@{}", t["table"].as_str().unwrap_or("?"), t["version"].as_str().unwrap_or("?"))
    };
    output.line(format!(
        "{} {} with {} (epoch {}): {} rows from {} nodes, {} ids missing; lookup {} us, dense {} us",
        word("model"),
        word("release"),
        list("table_versions").iter().map(version).collect::<Vec<_>>().join(", "),
        answer["epoch"],
        answer["rows_looked_up"],
        answer["nodes_touched"],
        answer["missing_ids"],
        answer["lookup_us"],
        answer["dense_us"],
    ));
    let results = list("results");
    for (rank, result) in (1..).zip(results.iter().take(SHOWN)) {
        let score = result["score"].as_f64().unwrap_or(f64::NAN);
        output.line(format!("{rank:>4}. candidate {:>6}  {score:.6}", result["index"].to_string()));
    }
    if results.len() > SHOWN {
        output.line(format!("... {} in all, --json has them", results.len()));
    }
}
