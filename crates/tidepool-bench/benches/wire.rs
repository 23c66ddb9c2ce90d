//! What carrying a lookup costs, without the lookup: the same bytes as unary calls, as messages of one
//! `LookupStream`, and over bare TCP with a length before each. Server and caller are processes of their own
//! with one thread of I/O each; the ways take turns, and every figure is a ratio to the unary calls of its turn.
//!
//! `cargo bench -p tidepool-bench --bench wire`; in test mode every way is tried once.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on says where")]
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::join_all;
use tidepool_bench::{Machine, Spread, proc::cpu_time};
use tidepool_proto::{
    answer_stream,
    v1::{
        self,
        embedding_client::EmbeddingClient,
        embedding_server::{Embedding, EmbeddingServer},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bytes of ids, and bytes of rows: a tenth of a small request, such a request, and a large one.
const SIZES: [(usize, usize); 3] = [(100, 450), (8_000, 45_000), (80_000, 130_000)];
/// Callers at a time.
const CALLERS: [usize; 2] = [1, 16];
const FRAME_BYTES: u32 = 1 << 20;
const WINDOW_BYTES: u32 = 16 << 20;
const MAX_MESSAGE_BYTES: usize = 64 << 20;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--serve") {
        return serve();
    }
    // `cargo test` and `cargo bench` tell a bench without a harness apart by this alone.
    let once = !args.iter().any(|arg| arg == "--bench");
    let peer = Peer::start();
    let runtime = runtime();
    runtime.block_on(compare(&peer, once));
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A request with so many bytes of ids, that is answered with `answer` bytes of rows.
fn request(ids: usize, answer: usize) -> v1::LookupRequest {
    let feature = v1::FeatureRequest {
        table_version: Some(v1::TableVersion { table: "table".into(), version: "version".into() }),
        partitions: u32::try_from(answer).unwrap(),
        ids: vec![7; ids].into(),
        ..Default::default()
    };
    v1::LookupRequest { request_id: "request".into(), features: vec![feature], ..Default::default() }
}

fn answer(request: &v1::LookupRequest) -> v1::LookupResponse {
    let features = request.features.iter().map(|feature| v1::FeatureResponse {
        table_version: feature.table_version.clone(),
        rows: vec![9; feature.partitions as usize].into(),
        ..Default::default()
    });
    v1::LookupResponse { features: features.collect(), node: "node".into(), ..Default::default() }
}

#[derive(Clone)]
struct Node;

#[tonic::async_trait]
impl Embedding for Node {
    type LookupStreamStream = futures::stream::BoxStream<'static, Result<v1::LookupResponse, Status>>;

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        Ok(Response::new(answer(request.get_ref())))
    }

    async fn lookup_stream(
        &self,
        request: Request<Streaming<v1::LookupRequest>>,
    ) -> Result<Response<Self::LookupStreamStream>, Status> {
        let answers = answer_stream(request.into_inner(), |request| async move { Ok(answer(&request)) });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// The serving process: says where it listens, and ends when its stdin does.
fn serve() {
    runtime().block_on(async {
        let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bare = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{} {}", grpc.local_addr().unwrap(), bare.local_addr().unwrap());
        std::thread::spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            std::process::exit(0);
        });
        tokio::spawn(async move {
            loop {
                let (stream, _) = bare.accept().await.unwrap();
                tokio::spawn(serve_bare(stream));
            }
        });
        Server::builder()
            .max_frame_size(FRAME_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(EmbeddingServer::new(Node).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .serve_with_incoming(TcpIncoming::from(grpc).with_nodelay(Some(true)))
            .await
            .unwrap();
    });
}

/// Two lengths, the question's bytes; a length, the answer's bytes.
async fn serve_bare(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let (mut question, mut answer) = (Vec::new(), Vec::new());
    while let Ok(length) = stream.read_u32_le().await {
        question.resize(length as usize, 0);
        let answer_bytes = stream.read_u32_le().await.unwrap();
        stream.read_exact(&mut question).await.unwrap();
        answer.clear();
        answer.extend_from_slice(&answer_bytes.to_le_bytes());
        answer.resize(4 + answer_bytes as usize, 9);
        stream.write_all(&answer).await.unwrap();
    }
}

struct Peer {
    process: Child,
    grpc: SocketAddr,
    bare: SocketAddr,
}

impl Peer {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process =
            command.arg("--serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addresses: Vec<SocketAddr> = line.split_whitespace().map(|a| a.parse().unwrap()).collect();
        Self { process, grpc: addresses[0], bare: addresses[1] }
    }

    fn cpu(&self) -> Duration {
        cpu_time(std::process::id(), "").unwrap() + cpu_time(self.process.id(), "").unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// One caller's way to the peer.
enum Way {
    Unary(EmbeddingClient<Channel>),
    Stream(mpsc::Sender<v1::LookupRequest>, Arc<Mutex<Waiting>>),
    Bare(TcpStream),
}

/// Who waits for which answer, and the last number given out.
#[derive(Default)]
struct Waiting {
    answers: HashMap<u64, oneshot::Sender<v1::LookupResponse>>,
    last: u64,
}

/// The ways in the order in which they take turns; the first is what the others are compared with.
const WAYS: [&str; 3] = ["unary calls", "one stream", "bare TCP"];

async fn ways(peer: &Peer, way: usize, callers: usize) -> Vec<Way> {
    let channel = Endpoint::from_shared(format!("http://{}", peer.grpc))
        .unwrap()
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .tcp_nodelay(true)
        .connect()
        .await
        .unwrap();
    let mut client = EmbeddingClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    match way {
        0 => (0..callers).map(|_| Way::Unary(client.clone())).collect(),
        1 => {
            let (send, outgoing) = mpsc::channel(64);
            let mut answers = client.lookup_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
            let waiting = Arc::<Mutex<Waiting>>::default();
            tokio::spawn({
                let waiting = waiting.clone();
                async move {
                    while let Ok(Some(answer)) = answers.message().await {
                        let caller = waiting.lock().unwrap().answers.remove(&answer.call).unwrap();
                        let _ = caller.send(answer);
                    }
                }
            });
            (0..callers).map(|_| Way::Stream(send.clone(), waiting.clone())).collect()
        }
        _ => {
            let connect = async || {
                let stream = TcpStream::connect(peer.bare).await.unwrap();
                stream.set_nodelay(true).unwrap();
                Way::Bare(stream)
            };
            join_all((0..callers).map(|_| connect())).await
        }
    }
}

impl Way {
    /// One round trip; how many bytes of rows came back.
    async fn call(&mut self, ids: usize, answer: usize) -> usize {
        match self {
            Self::Unary(client) => {
                client.lookup(request(ids, answer)).await.unwrap().get_ref().features[0].rows.len()
            }
            Self::Stream(send, waiting) => {
                let (sender, receiver) = oneshot::channel();
                let call = {
                    let mut waiting = waiting.lock().unwrap();
                    waiting.last += 1;
                    let call = waiting.last;
                    waiting.answers.insert(call, sender);
                    call
                };
                send.send(v1::LookupRequest { call, ..request(ids, answer) }).await.unwrap();
                receiver.await.unwrap().features[0].rows.len()
            }
            Self::Bare(stream) => {
                let mut question = Vec::with_capacity(8 + ids);
                question.extend_from_slice(&u32::try_from(ids).unwrap().to_le_bytes());
                question.extend_from_slice(&u32::try_from(answer).unwrap().to_le_bytes());
                question.resize(8 + ids, 7);
                stream.write_all(&question).await.unwrap();
                let mut rows = vec![0; stream.read_u32_le().await.unwrap() as usize];
                stream.read_exact(&mut rows).await.unwrap();
                rows.len()
            }
        }
    }
}

/// Microseconds a call: by the clock, and of CPU in both processes.
async fn turn(peer: &Peer, ways: &mut [Way], (ids, answer): (usize, usize), calls: usize) -> [f64; 2] {
    let callers = ways.len();
    let (began, cpu) = (Instant::now(), peer.cpu());
    join_all(ways.iter_mut().map(|way| async move {
        for _ in 0..calls.div_ceil(callers) {
            assert_eq!(way.call(ids, answer).await, answer);
        }
    }))
    .await;
    let done = (calls.div_ceil(callers) * callers) as f64;
    [began.elapsed(), peer.cpu() - cpu].map(|time| time.as_secs_f64() * 1e6 / done)
}

async fn compare(peer: &Peer, once: bool) {
    let turns = if once { 1 } else { 7 };
    let mut cases = Vec::new();
    println!("on {}; us a call by the clock, us of CPU (both processes), unary over it", Machine::here().cpu);
    for (size, callers) in SIZES.into_iter().flat_map(|size| CALLERS.map(|callers| (size, callers))) {
        let calls = if once { callers } else { 80_000_000 / (size.0 + size.1 + 25_000) };
        let mut of =
            [ways(peer, 0, callers).await, ways(peer, 1, callers).await, ways(peer, 2, callers).await];
        let mut seen = [const { Vec::new() }; 3];
        for _ in 0..turns {
            for (ways, seen) in of.iter_mut().zip(&mut seen) {
                seen.push(turn(peer, ways, size, calls).await);
            }
        }
        println!("{} bytes of ids, {} of rows, {callers} callers", size.0, size.1);
        for (name, of_way) in WAYS.iter().zip(&seen) {
            let figure = |kind: usize| Spread::of(of_way.iter().map(|figures| figures[kind]));
            let ratio = |kind: usize| {
                Spread::of(seen[0].iter().zip(of_way).map(|(unary, way)| unary[kind] / way[kind]))
            };
            let [wall, cpu, faster, cheaper] = [figure(0), figure(1), ratio(0), ratio(1)];
            println!(
                "  {name:<12} {:>7.1} us  {:>7.1} us  {:>5.2} ({:.2} to {:.2})  {:>5.2} ({:.2} to {:.2})",
                wall.median,
                cpu.median,
                faster.median,
                faster.low,
                faster.high,
                cheaper.median,
                cheaper.low,
                cheaper.high
            );
            cases.push(serde_json::json!({
                "way": name, "id_bytes": size.0, "row_bytes": size.1, "callers": callers, "us_per_call": wall,
                "cpu_us_per_call": cpu, "unary_over_it": faster, "unary_cpu_over_it": cheaper,
            }));
        }
    }
    println!("{}", serde_json::json!({ "schema_version": 1, "machine": Machine::here(), "cases": cases }));
    std::io::stdout().flush().unwrap();
}
