//! Where rankings are sent: a cluster of real processes with a release of the model, a ranker in this process whose dense
//! runs are a timer, and the batcher of this process over tables that are open here.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tidepool_dense::{DenseBatch, DenseError, DenseModel};
use tidepool_proto::{
    code_of,
    inference::grpc_inference_service_client::GrpcInferenceServiceClient,
    v1::{self, embedding_client::EmbeddingClient, ranker_client::RankerClient},
};
use tidepool_ranker::{
    Config, RawConfig,
    batch::{BatchInput, BatchMetrics, BatchModel, Batcher, Batchers, InPlaceOf, InputFrom, Scorer},
    start_with,
};
use tidepool_runtime::pool::CpuPool;
use tidepool_store::ArtifactStore;
use tidepool_types::{InputSource, Name, TableVersion};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{
    Params, Progress, TIMER,
    ours::OwnTables,
    stages::{RANKER_THREADS, Spent},
    tables::RankTable,
    unfit,
};
use crate::{
    BenchError,
    cluster::{ClusterSpec, LocalCluster},
    process::Process,
};

/// How long anything that is waited for may take.
const WAIT: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What sleeping may be late by: the rest of a timer is spent looking at the clock.
const SLEEP_SLACK: Duration = Duration::from_micros(150);
/// Of HTTP/2: an answer comes in one.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// Rows that may wait: a bench offers more than is answered, and no request is to fail for it.
const MAX_WAITING_ROWS: u64 = 1 << 40;
/// Nor their bytes.
const MAX_WAITING_BYTES: u64 = 1 << 40;

/// All ways of answering.
pub(super) struct Site {
    pub(super) cluster: LocalCluster,
    pub(super) tables: Vec<RankTable>,
    pub(super) built: bool,
    /// The ranker that is a process.
    pub(super) hybrid: RankerClient<Channel>,
    /// The same one, as clients of Triton ask it.
    pub(super) hybrid_inference: GrpcInferenceServiceClient<Channel>,
    /// The one in this process.
    pub(super) timed: RankerClient<Channel>,
    /// The same one, as clients of Triton ask it.
    pub(super) inference: GrpcInferenceServiceClient<Channel>,
    /// Every node.
    pub(super) nodes: Vec<EmbeddingClient<Channel>>,
    pub(super) batcher: Batcher,
    pub(super) batch_model: Arc<BatchModel>,
    pub(super) own: Arc<OwnTables>,
    timed_ranker: TimedRanker,
    _data: TempDir,
}

/// Takes as long as a timer, and says the same of every row.
#[derive(Debug)]
struct TimedScorer {
    outputs: usize,
}

impl Scorer for TimedScorer {
    fn run(&self, batch: &DenseBatch<'_>) -> Result<Vec<Vec<f32>>, DenseError> {
        let until = Instant::now() + TIMER;
        std::thread::sleep(TIMER.saturating_sub(SLEEP_SLACK));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        Ok(vec![vec![0.5; batch.rows]; self.outputs])
    }
}

impl Site {
    pub(super) async fn open(
        params: &Params,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Self, BenchError> {
        let spec = &params.model.spec;
        let plain = |source: &InputSource| !matches!(source, InputSource::Sequence { .. });
        if !spec.inputs.iter().all(|input| plain(&input.source) && input.transform.is_identity()) {
            return Err(unfit(spec, "it has sequences or transforms"));
        }
        let store = ArtifactStore::open(params.dir.join("rank"))?;
        let tables = RankTable::of(&params.model, params.rows)?;
        let (mut built, mut before) = (false, 0);
        let total = tables.iter().map(|table| table.rows).sum();
        for table in &tables {
            built |= table.ensure(&store, &mut |rows| progress(Progress::Tables(before + rows, total)))?;
            before += table.rows;
        }
        progress(Progress::Starting);
        let release = publish(params, &store, &tables)?;
        let mut cluster = ClusterSpec::new(&params.dir, store.root(), params.groups, params.nodes);
        cluster.program.clone_from(&params.program);
        cluster.rankers = 1;
        cluster.ranker_config = toml::Table::from_iter([
            ("max_candidates".to_owned(), i64::from(params.candidates.max(1000)).into()),
            ("max_ids".to_owned(), (max_ids(params) as i64).into()),
            ("io_threads".to_owned(), i64::from(params.ranker_io_threads).into()),
            ("batch".to_owned(), batch_keys(params.unbatched).into()),
        ]);
        let cluster = LocalCluster::start(cluster).await?;
        promote(&cluster, spec.model.as_str(), release.as_str()).await?;
        let data = TempDir::new_in(&params.dir).map_err(BenchError::io("making a folder for a ranker"))?;
        let config_of = || config(params, &cluster, &store, &data);
        let timed_ranker = TimedRanker::start(config_of()?, spec.outputs.len()).await?;
        let (hybrid, timed) = (cluster.rankers()[0].grpc_address(), connect(timed_ranker.address).await?);
        let own = Arc::new(OwnTables::open(&tables, &store)?);
        let (batcher, batch_model) =
            in_process(params, &store, &release, (&tables, own.clone()), config_of()?)?;
        cluster.rest().await;
        let mut nodes = Vec::new();
        for node in cluster.nodes() {
            nodes.push(EmbeddingClient::new(connect(node.grpc_address()).await?));
        }
        let of_ranker = RankerClient::new(timed.clone()).max_decoding_message_size(usize::MAX);
        let hybrid = connect(hybrid).await?;
        let tensors = |ranker: &Channel| {
            GrpcInferenceServiceClient::new(ranker.clone()).max_decoding_message_size(usize::MAX)
        };
        Ok(Self {
            cluster,
            tables,
            built,
            hybrid_inference: tensors(&hybrid),
            hybrid: RankerClient::new(hybrid).max_decoding_message_size(usize::MAX),
            timed: of_ranker,
            inference: tensors(&timed),
            nodes,
            batcher,
            batch_model,
            own,
            timed_ranker,
            _data: data,
        })
    }

    /// What the client and the ranker of this process, and the nodes, have spent until now.
    pub(super) fn spent(&self) -> Spent {
        Spent::now(self.cluster.nodes().iter().filter_map(Process::pid))
    }

    /// Ends what was started.
    pub(super) async fn close(self) -> Result<(), BenchError> {
        self.timed_ranker.end().await?;
        self.cluster.stop().await
    }
}

/// Sections `[batch]` of a ranker.
fn batch_keys(unbatched: bool) -> toml::Table {
    let mut keys = toml::Table::from_iter([
        ("max_waiting_rows".to_owned(), (MAX_WAITING_ROWS as i64).into()),
        ("max_waiting_bytes".to_owned(), (MAX_WAITING_BYTES as i64).into()),
    ]);
    if unbatched {
        keys.insert("max_requests".to_owned(), 1.into());
    }
    keys
}

/// Writes the release unless it is there; its name is made of what is in it.
fn publish(params: &Params, store: &ArtifactStore, tables: &[RankTable]) -> Result<Name, BenchError> {
    let text = params.model.spec.to_toml();
    let versions: Vec<TableVersion> = tables.iter().map(|table| table.table_version.clone()).collect();
    let mut hasher = DefaultHasher::new();
    (&text, &params.model.onnx, versions.iter().map(ToString::to_string).collect::<Vec<_>>())
        .hash(&mut hasher);
    let release = Name::new(format!("bench-{:016x}", hasher.finish()))?;
    let model = &params.model.spec.model;
    if store.release(model, &release).is_err() {
        store.write_release(model, &release, &versions, &text, &params.model.onnx)?;
    }
    Ok(release)
}

/// Has the release loaded everywhere and answer.
async fn promote(cluster: &LocalCluster, model: &str, release: &str) -> Result<(), BenchError> {
    let refused =
        |status: tonic::Status| BenchError::Control(format!("{}: {}", code_of(&status), status.message()));
    let mut control = cluster.control().await?;
    let named = v1::PublishReleaseRequest { model: model.into(), release: release.into() };
    control.publish_release(named).await.map_err(refused)?;
    let deadline = Instant::now() + WAIT;
    loop {
        let named = v1::GetReleaseRequest { model: model.into(), release: release.into() };
        let status = control.get_release(named).await.map_err(refused)?.into_inner();
        if status.waiting_for.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            return Err(BenchError::Waited {
                what: "the release is loaded everywhere",
                problem: status.waiting_for.join("; "),
                seconds: WAIT.as_secs(),
            });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let named = v1::PromoteReleaseRequest { model: model.into(), release: release.into(), dry_run: false };
    control.promote_release(named).await.map_err(refused)?;
    Ok(())
}

/// How rankers of this process are set up: as the one that is a process.
fn config(
    params: &Params,
    cluster: &LocalCluster,
    store: &ArtifactStore,
    data: &TempDir,
) -> Result<Config, BenchError> {
    let mut raw = RawConfig {
        ranker: "ranker-timed".into(),
        grpc_address: "127.0.0.1:0".into(),
        http_address: "127.0.0.1:0".into(),
        controllers: vec![cluster.controller_address()],
        store: store.root().display().to_string(),
        data_dir: data.path().display().to_string(),
        max_candidates: params.candidates.max(1000),
        max_ids: max_ids(params),
        io_threads: params.ranker_io_threads,
        ..RawConfig::default()
    };
    raw.batch.max_waiting_rows = MAX_WAITING_ROWS;
    raw.batch.max_waiting_bytes = MAX_WAITING_BYTES;
    if params.unbatched {
        raw.batch.max_requests = 1;
    }
    Config::try_from(raw).map_err(|error| BenchError::Process {
        process: "the ranker of this process".into(),
        problem: error.to_string(),
    })
}

/// Ids of a request: each candidate has a few.
fn max_ids(params: &Params) -> u64 {
    u64::from(params.candidates) * 64 + 1_000_000
}

/// A ranker in this process, of the same cluster, whose dense runs are a timer. It has threads of its own, as one that is
/// a process has.
struct TimedRanker {
    address: SocketAddr,
    token: CancellationToken,
    /// How it has ended.
    ended: oneshot::Receiver<Result<(), String>>,
}

/// What is wrong with it.
fn of_ranker(problem: impl Into<String>) -> BenchError {
    BenchError::Process { process: "the ranker of this process".into(), problem: problem.into() }
}

impl TimedRanker {
    /// Starts it, and waits until it is ready.
    async fn start(config: Config, outputs: usize) -> Result<Self, BenchError> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.thread_name(RANKER_THREADS[0]).worker_threads(config.io_threads).enable_all();
        let runtime = runtime.build().map_err(BenchError::io("starting the threads of a ranker"))?;
        let (token, (listening, address), (end, ended)) =
            (CancellationToken::new(), oneshot::channel(), oneshot::channel());
        let its = token.clone();
        let life = move || {
            let ended = runtime.block_on(async {
                let timer = move |_| Arc::new(TimedScorer { outputs }) as Arc<dyn Scorer>;
                let running = start_with(config, its, Some(InPlaceOf(Arc::new(timer)))).await;
                let running = running.map_err(|error| tidepool_ranker::chain(&error))?;
                let deadline = Instant::now() + WAIT;
                while let Err(problem) = running.health.readiness() {
                    if Instant::now() >= deadline {
                        return Err(format!("is not ready after {} s: {problem}", WAIT.as_secs()));
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                // Nobody waits for it any more if the bench has failed meanwhile.
                let _ = listening.send(running.grpc_address);
                running.wait().await.map_err(|error| tidepool_ranker::chain(&error))
            });
            let _ = end.send(ended);
        };
        let thread = std::thread::Builder::new().name(RANKER_THREADS[0].into());
        thread.spawn(life).map_err(BenchError::io("starting a thread of a ranker"))?;
        match address.await {
            Ok(address) => Ok(Self { address, token, ended }),
            Err(_) => Err(of_ranker(match ended.await {
                Ok(Err(problem)) => problem,
                _ => "has ended".into(),
            })),
        }
    }

    async fn end(self) -> Result<(), BenchError> {
        self.token.cancel();
        match self.ended.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(problem)) => Err(of_ranker(problem)),
            Err(_) => Err(of_ranker("has panicked")),
        }
    }
}

/// The batcher of this process, as a ranker has it.
fn in_process(
    params: &Params,
    store: &ArtifactStore,
    release: &Name,
    (tables, own): (&[RankTable], Arc<OwnTables>),
    config: Config,
) -> Result<(Batcher, Arc<BatchModel>), BenchError> {
    let spec = &params.model.spec;
    let failed =
        |problem: String| BenchError::Process { process: "the batcher of this process".into(), problem };
    let files = store.release(&spec.model, release)?;
    let dim_of =
        |table: &Name| tables.iter().find(|known| known.table_version.table == *table).map(|known| known.dim);
    let dense =
        DenseModel::load(&files.onnx_path, spec, &dim_of).map_err(|error| failed(error.to_string()))?;
    let inputs = spec.inputs.iter().zip(dense.widths()).map(|(input, &width)| {
        let table = RankTable::find(tables, spec, &input.name);
        let from = match (&input.source, table) {
            (InputSource::Pooled { pooling, .. }, Some(table)) => {
                InputFrom::Bags(table.table_version.clone(), *pooling)
            }
            _ => InputFrom::Request,
        };
        BatchInput { name: input.name.clone(), side: input.side, width, from }
    });
    let batch_model = Arc::new(BatchModel {
        model: spec.model.clone(),
        release: release.clone(),
        inputs: inputs.collect(),
        scorer: Arc::new(dense),
    });
    let pool = CpuPool::new(config.pool_threads, config.pool_queue_len);
    let pool = pool.map_err(|error| failed(error.to_string()))?;
    let metrics = BatchMetrics::new().map_err(|error| failed(error.to_string()))?;
    let batchers = Batchers::new(config.batch, config.models, pool, own, metrics);
    Ok((batchers.of(&spec.model), batch_model))
}

async fn connect(address: SocketAddr) -> Result<Channel, BenchError> {
    let failed = |error: tonic::transport::Error| {
        BenchError::io(format!("connecting to {address}"))(std::io::Error::other(error))
    };
    let endpoint = Channel::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| BenchError::io("an address")(std::io::Error::other(error)))?;
    endpoint.tcp_nodelay(true).max_frame_size(MAX_FRAME_BYTES).connect().await.map_err(failed)
}
