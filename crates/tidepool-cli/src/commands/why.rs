//! `tidepool why`: what became of a request, as the ranker that answered it remembers.

mod show;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ArgGroup;
use futures::future::join_all;
use http_body_util::Full;
use hyper::{Request, body::Bytes, header};
use serde_json::{Value, json};
use tidepool_proto::v1;

use super::{control::refusal, ranker_http};
use crate::{
    columns::{harmless, utc},
    output::{Outcome, Output},
    remote::Remote,
};

/// What a ranker may take to answer, connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that a ranker tells of at most.
const MAX_TOLD: u64 = 100;
/// The longest id that a ranker keeps whole, in bytes.
const MAX_ID_BYTES: usize = 256;

#[derive(clap::Args)]
#[command(group(ArgGroup::new("which").required(true).args(["request_id", "slowest", "failed", "last"])))]
pub(crate) struct Args {
    /// The request's id: what the caller gave, or the ranker's answer says.
    request_id: Option<String>,
    /// The slowest requests of those that are remembered.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..=MAX_TOLD))]
    slowest: Option<u64>,
    /// The last requests that were not answered.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..=MAX_TOLD))]
    failed: Option<u64>,
    /// The last requests.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..=MAX_TOLD))]
    last: Option<u64>,
    /// A ranker's HTTP address; once per ranker. Without it every ranker that the controller knows is asked.
    #[arg(long = "ranker", value_name = "HOST:PORT")]
    rankers: Vec<String>,
}

/// What is asked for.
enum Wanted {
    Id(String),
    Slowest(u64),
    Failed(u64),
    Last(u64),
}

impl Wanted {
    fn of(args: &Args) -> Result<Self> {
        if let Some(id) = &args.request_id {
            ensure!(
                !id.is_empty(),
                "the id is empty: a ranker gives requests without an id one, and answers with it (request_id); \
                 --last shows the last ones"
            );
            // Of a longer one, which is refused, so much is kept.
            return Ok(Self::Id(id[..id.floor_char_boundary(MAX_ID_BYTES)].to_owned()));
        }
        let counts =
            [args.slowest.map(Self::Slowest), args.failed.map(Self::Failed), args.last.map(Self::Last)];
        counts.into_iter().flatten().next().context("nothing is asked for")
    }

    fn query(&self) -> String {
        match self {
            Self::Id(id) => format!("id={}", encoded(id)),
            Self::Slowest(n) => format!("slowest={n}"),
            Self::Failed(n) => format!("failed={n}"),
            Self::Last(n) => format!("last={n}"),
        }
    }

    /// The first of what several rankers told, in the order of the question.
    fn sort(&self, requests: &mut Vec<Value>) {
        let number = |request: &Value, key: &str| std::cmp::Reverse(request[key].as_u64().unwrap_or(0));
        match self {
            Self::Slowest(_) => requests.sort_by_key(|request| number(request, "took_us")),
            _ => requests.sort_by_key(|request| number(request, "arrived_unix_ms")),
        }
        if let Self::Slowest(n) | Self::Failed(n) | Self::Last(n) = self {
            requests.truncate(usize::try_from(*n).unwrap_or(usize::MAX));
        }
    }
}

/// What a ranker said, or why it said nothing.
struct Told {
    ranker: String,
    answer: Result<Value>,
}

pub(crate) async fn run(args: Args, remote: &Remote, output: Output) -> Result<Outcome> {
    let wanted = Wanted::of(&args)?;
    let rankers = if args.rankers.is_empty() { known(remote).await? } else { args.rankers };
    let path = format!("/v1/requests?{}", wanted.query());
    let told = join_all(rankers.into_iter().map(|ranker| ask(remote, ranker, &path))).await;
    let mut requests = Vec::new();
    for Told { ranker, answer } in &told {
        match answer {
            Ok(answer) => {
                requests.extend(answer["requests"].as_array().into_iter().flatten().map(|request| {
                    let mut request = request.clone();
                    request["ranker"] = answer["ranker"].clone();
                    request
                }))
            }
            Err(error) => output.line(format!("{ranker}: {}", harmless(&format!("{error:#}")))),
        }
    }
    wanted.sort(&mut requests);
    if requests.is_empty() {
        bail!(nothing_found(&wanted, &told));
    }
    match wanted {
        Wanted::Id(_) => show::whole(&requests, output),
        Wanted::Slowest(_) | Wanted::Failed(_) | Wanted::Last(_) => show::lines(&requests, output),
    }
    let ranker = |told: &Told| {
        let answer = told.answer.as_ref();
        json!({
            "address": told.ranker,
            "ranker": answer.ok().map(|answer| answer["ranker"].clone()),
            "kept": answer.ok().map(|answer| answer["kept"].clone()),
            "oldest_unix_ms": answer.ok().map(|answer| answer["oldest_unix_ms"].clone()),
            "problem": answer.err().map(|error| format!("{error:#}")),
        })
    };
    output.object(json!({ "requests": requests, "rankers": told.iter().map(ranker).collect::<Vec<_>>() }));
    Ok(Outcome::Done)
}

/// The HTTP addresses of every ranker that the controller knows.
async fn known(remote: &Remote) -> Result<Vec<String>> {
    let cluster = remote.control().await?.get_cluster(v1::GetClusterRequest {}).await;
    let rankers = cluster.map_err(|status| refusal(&status))?.into_inner().rankers;
    ensure!(!rankers.is_empty(), "the controller knows no ranker; name one with --ranker HOST:PORT");
    Ok(rankers.into_iter().map(|ranker| ranker.http_address).collect())
}

async fn ask(remote: &Remote, ranker: String, path: &str) -> Told {
    let asking = async {
        let request = Request::get(path).header(header::HOST, &ranker).body(Full::new(Bytes::new()))?;
        let response = ranker_http::send(remote, &ranker, request).await?;
        let body = ranker_http::collect(&ranker, response).await?;
        serde_json::from_slice(&body).with_context(|| format!("the answer of {ranker}"))
    };
    let answer = match tokio::time::timeout(CALL_TIMEOUT, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(anyhow::anyhow!("no answer in {} s", CALL_TIMEOUT.as_secs())),
    };
    Told { ranker, answer }
}

/// Why nothing was found: how far back each ranker remembers.
fn nothing_found(wanted: &Wanted, told: &[Told]) -> String {
    let what = match wanted {
        Wanted::Id(id) => format!("no request with the id {id:?} is remembered"),
        Wanted::Failed(_) => "no request that was not answered is remembered".into(),
        Wanted::Slowest(_) | Wanted::Last(_) => "no request is remembered".into(),
    };
    let of_ranker = |Told { ranker, answer }: &Told| match answer {
        Err(error) => format!("{ranker} could not be asked ({error:#})"),
        Ok(answer) if answer["recent_requests"] == 0 => {
            format!("{ranker} remembers none: its recent_requests is 0")
        }
        Ok(answer) => match answer["oldest_unix_ms"].as_u64() {
            None => format!("{ranker} has had no request since it started"),
            Some(oldest) => {
                format!("{ranker} remembers {} requests, since {} UTC", answer["kept"], utc(oldest / 1000))
            }
        },
    };
    format!("{what}: {}", told.iter().map(of_ranker).collect::<Vec<_>>().join("; "))
}

/// The id as a query may have it.
fn encoded(id: &str) -> String {
    let mut out = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_encoded_for_a_query() {
        assert_eq!(encoded("a-b_c.d~9"), "a-b_c.d~9");
        assert_eq!(encoded("a/b ü&=%\n"), "a%2Fb%20%C3%BC%26%3D%25%0A");
    }

    #[test]
    fn the_first_of_all_rankers_are_shown() {
        let request = |took: u64, arrived: u64| json!({ "took_us": took, "arrived_unix_ms": arrived });
        let all = vec![request(1, 30), request(3, 10), request(2, 20)];
        let order = |wanted: Wanted| {
            let mut requests = all.clone();
            wanted.sort(&mut requests);
            requests.iter().map(|r| r["took_us"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(order(Wanted::Slowest(2)), [3, 2]);
        assert_eq!(order(Wanted::Last(2)), [1, 2]);
        assert_eq!(order(Wanted::Id("x".into())), [1, 2, 3]);
    }

    #[test]
    fn where_nothing_is_found_it_is_said_how_far_back_was_looked() {
        let told = |ranker: &str, answer| Told { ranker: ranker.into(), answer };
        let all = [
            told("a:1", Ok(json!({ "recent_requests": 4, "kept": 2, "oldest_unix_ms": 1_000 }))),
            told("b:1", Ok(json!({ "recent_requests": 4, "kept": 0, "oldest_unix_ms": null }))),
            told("c:1", Ok(json!({ "recent_requests": 0 }))),
            told("d:1", Err(anyhow::anyhow!("gone"))),
        ];
        let said = nothing_found(&Wanted::Id("\u{1b}x".into()), &all);
        for part in [
            "id \"\\u{1b}x\"",
            "a:1 remembers 2 requests, since 1970-01-01 00:00:01 UTC",
            "b:1 has had no request",
            "c:1 remembers none",
            "d:1 could not be asked (gone)",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
}
