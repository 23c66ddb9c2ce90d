//! `tidepool rank`: a ranking request from a JSON file, posted to a ranker.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::{Request, body::Bytes, header};
use serde_json::Value;
use tokio::time::timeout;

use super::ranker_http;
use crate::{
    columns::harmless,
    output::{Outcome, Output},
    remote::Remote,
};

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

pub(crate) async fn run(args: Args, remote: &Remote, output: Output) -> Result<Outcome> {
    let mut text = Vec::new();
    if args.file.as_os_str() == "-" {
        io::stdin().read_to_end(&mut text).context("reading stdin")?;
    } else {
        text = fs::read(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    }
    let address = ranker_http::address(args.ranker, remote).await?;
    let answered = timeout(CALL_TIMEOUT, post(remote, &address, text)).await;
    let answer =
        answered.with_context(|| format!("no answer from {address} in {} s", CALL_TIMEOUT.as_secs()))??;
    show(&answer, output);
    output.object(answer);
    Ok(Outcome::Done)
}

/// Posts the request and gives the answer.
async fn post(remote: &Remote, address: &str, request: Vec<u8>) -> Result<Value> {
    let request = Request::post("/v1/rank")
        .header(header::HOST, address)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(request)))?;
    let response = ranker_http::send(remote, address, request).await?;
    let body = ranker_http::collect(address, response).await?;
    serde_json::from_slice(&body).with_context(|| format!("the answer of {address}"))
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
    output.line(format!("request {}: `tidepool why` with it tells more", harmless(&word("request_id"))));
    let ignored: Vec<_> = list("ignored_features").iter().filter_map(Value::as_str).map(harmless).collect();
    if !ignored.is_empty() {
        output.line(format!("features that the model does not take, and ignores: {}", ignored.join(", ")));
    }
    if answer["partial"].as_bool() == Some(true) {
        output.line(format!("made without {} ids that no node answered for", answer["unavailable_ids"]));
    }
    let results = list("results");
    for (rank, result) in (1..).zip(results.iter().take(SHOWN)) {
        let score = result["score"].as_f64().unwrap_or(f64::NAN);
        let index = result["index"].to_string();
        output.line(format!("{rank:>4}. candidate {index:>6}  {score:.6}{}", outputs(result)));
    }
    if results.len() > SHOWN {
        output.line(format!("... {} in all, --json has them", results.len()));
    }
}

/// The outputs that were asked for, beside the score.
fn outputs(result: &Value) -> String {
    let outputs = result["outputs"].as_object().into_iter().flatten();
    let shown = |(name, value): (&String, &Value)| {
        format!("  {} {:.6}", harmless(name), value.as_f64().unwrap_or(f64::NAN))
    };
    outputs.map(shown).collect()
}
