//! The cluster of these tests: one node, a ranker on the CPU, and one on the simulated device.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tidepool_proto::v1::{self, ranker_client::RankerClient};
use tidepool_ranker::RawConfig;
use tidepool_tests::{DEADLINE, Sandbox, Shape};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Status, transport::Channel};

use crate::{models, sim::Sim};

/// In what form the inputs of a batch come to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inputs {
    /// As vectors that the client has made.
    Vectors,
    /// As stored rows.
    Rows,
    /// As stored rows, some of which are resident there.
    Residents,
}

/// Tests are of all of them.
pub(crate) const INPUTS: [Inputs; 3] = [Inputs::Vectors, Inputs::Rows, Inputs::Residents];

/// Bytes of resident rows that each release may have.
const BUDGET: u64 = 1 << 17;

/// Candidates of the largest batch that graphs are captured for.
pub(crate) const LARGEST: usize = 32;

/// What is live on the device, or pinned for it.
pub(crate) const LIVE: [&str; 4] = ["allocations_live", "bytes_live", "pinned_live", "pinned_bytes_live"];

/// A cluster, and the device, which nobody else has meanwhile.
pub(crate) struct Site {
    pub(crate) sandbox: Sandbox,
    /// Numbers of the rankers.
    cpu: usize,
    gpu: usize,
    // Last, so that it is free for the next test when the cluster is gone.
    pub(crate) sim: Sim,
}

impl Site {
    /// With inputs in this form.
    pub(crate) async fn start(inputs: Inputs) -> Result<Self> {
        Self::start_with(inputs, |_| ()).await
    }

    /// The same, with the configuration of the ranker on the device changed so.
    pub(crate) async fn start_with(inputs: Inputs, change: impl FnOnce(&mut RawConfig)) -> Result<Self> {
        let sim = Sim::alone();
        write_lists(models::FILMS)?;
        let mut sandbox = Sandbox::start(Shape { groups: 1, nodes_per_group: 1 }).await?;
        // The same bits go into both models: stored rows, pooled in the order of the request.
        let cpu = sandbox.start_ranker_with(|raw| (raw.exact, raw.pool_threads) = (true, 2)).await?;
        let gpu = sandbox
            .start_ranker_with(|raw| {
                on_the_device(raw, inputs);
                change(raw);
            })
            .await?;
        Ok(Self { sandbox, cpu, gpu, sim })
    }

    pub(crate) async fn cpu(&self) -> Result<RankerClient<Channel>> {
        self.sandbox.ranker(self.cpu).await
    }

    pub(crate) async fn gpu(&self) -> Result<RankerClient<Channel>> {
        self.sandbox.ranker(self.gpu).await
    }

    /// What the ranker on the device answers under this path: status and body.
    pub(crate) async fn http(&self, path: &str) -> Result<(u16, String)> {
        http("GET", self.sandbox.ranker_http(self.gpu), path, "").await
    }

    /// What it is asked to change: status and body.
    pub(crate) async fn post(&self, path: &str, body: &str) -> Result<(u16, String)> {
        http("POST", self.sandbox.ranker_http(self.gpu), path, body).await
    }

    /// `/status` of the ranker on the device.
    pub(crate) async fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.http("/status").await?.1)?)
    }

    /// A release in its `/status`.
    pub(crate) async fn release(&self, model: &str, release: &str) -> Result<Value> {
        let status = self.status().await?;
        let all = status["releases"].as_array().context("no releases")?;
        let found = all.iter().find(|r| r["model"] == model && r["release"] == release);
        Ok(found.cloned().unwrap_or_default())
    }

    /// Waits until a release in its `/status` is as `ok` wants it.
    pub(crate) async fn until_release(
        &self,
        model: &str,
        release: &str,
        ok: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        until(&format!("release {release} of {model}"), async || {
            let found = self.release(model, release).await?;
            Ok(if ok(&found) { Ok(found) } else { Err(found) })
        })
        .await
    }

    /// Waits until what is live on the device is so much: models are let go by threads that nobody waits for.
    pub(crate) async fn until_live(&self, live: [u64; LIVE.len()]) -> Result<()> {
        until(&format!("{LIVE:?} to be {live:?}"), async || {
            let now = self.sim.counters(LIVE);
            Ok(if now == live { Ok(()) } else { Err(now) })
        })
        .await
    }

    /// Ends everything in good order, and then nothing may be left on the device.
    pub(crate) async fn stop(self) -> Result<()> {
        let Self { sandbox, sim, .. } = self;
        sandbox.stop().await?;
        until("the device to be given back", async || {
            let names =
                ["bytes_live", "pinned_live", "streams_live", "events_live", "graphs_live", "modules_live"];
            let live = sim.counters(names);
            Ok(if live == [0; 6] { Ok(()) } else { Err(live) })
        })
        .await
    }
}

/// A folder for what is the same in all tests and all their runs.
fn shared(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu-ranker").join(folder)
}

/// Asks for the device: two buckets, so that batches fit their rows in one and not in the other, and two streams.
pub(crate) fn on_the_device(raw: &mut RawConfig, inputs: Inputs) {
    raw.exact = true;
    raw.pool_threads = 2;
    raw.load_retry_ms = 100;
    raw.device = "cuda:0".into();
    raw.cuda.rows = if inputs == Inputs::Vectors { "host" } else { "device" }.into();
    raw.cuda.buckets = vec![[8, 4], [LARGEST as u32, 8]];
    raw.cuda.streams = 2;
    // Kernels are compiled once; files have the names of what they are made of.
    raw.cuda.cache_dir = shared("kernels").display().to_string();
    if inputs == Inputs::Residents {
        raw.cuda.resident.bytes = BUDGET;
        raw.cuda.resident.hot_ids = shared("lists").display().to_string();
    }
}

/// Writes the list of the films that are resident where some are, of so many. A ranker reads it with each release that it loads.
pub(crate) fn write_lists(films: u64) -> Result<()> {
    fs::create_dir_all(shared("lists"))?;
    Ok(fs::write(shared("lists").join("film.ids"), models::hot_films(films).to_string())?)
}

/// Asks until there is an answer, for at most [`DEADLINE`].
pub(crate) async fn until<T, E: std::fmt::Debug>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Result<T, E>>,
) -> Result<T> {
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        match ask().await? {
            Ok(found) => return Ok(found),
            Err(now) if tokio::time::Instant::now() > until => bail!("waiting for {what}: {now:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// One answer, within the deadline of these tests: nothing may hang.
pub(crate) async fn rank(
    ranker: &mut RankerClient<Channel>,
    message: &v1::RankRequest,
) -> Result<Result<v1::RankResponse, Status>> {
    let answer = tokio::time::timeout(DEADLINE, ranker.rank(message.clone())).await;
    Ok(answer.context("no answer")?.map(tonic::Response::into_inner))
}

async fn http(method: &str, address: SocketAddr, path: &str, body: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}
