//! A plain gRPC server over redb, as one would write it in an afternoon: a unary call with the ids, one read
//! transaction, the rows one by one into `repeated bytes`. It is this program, started with [`MODE`].

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io::{self, Read, Write},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::Arc,
    task::{self, Poll},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use redb::{Database, ReadableDatabase, TableDefinition};
use tidepool_bench::{
    BenchTable, ROWS_VERSION, id_of,
    load::{Failure, Target},
    proc, stored_row,
};
use tidepool_client::{LookupOutcome, LookupRequest};
use tidepool_kernels::RowKernel;
use tidepool_types::ErrorCode;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    sync::oneshot,
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, http, http::uri::PathAndQuery},
    server::{NamedService, UnaryService},
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;

use crate::pooled::pooled;

/// The first argument of the server; the second is the file.
pub(crate) const MODE: &str = "--redb-server";
const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
const PATH: &str = "/peers.Rows/Get";
/// The same windows on both sides: whole answers fit.
const WINDOW_BYTES: u32 = 4 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct GetRows {
    #[prost(fixed64, repeated, tag = "1")]
    ids: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Rows {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    rows: Vec<Bytes>,
}

/// Serves the file until stdin closes, which it does when the bench ends, however that is.
pub(crate) async fn serve(path: &Path) -> Result<()> {
    let rows = RowsServer { database: Arc::new(Database::open(path)?) };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    io::stdout().flush()?;
    let (close, closed) = oneshot::channel::<()>();
    // Nothing is ever written to it: reading ends when it closes, and with it `close`.
    thread::spawn(move || (io::stdin().read_to_end(&mut Vec::new()), close).0);
    let server = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(rows)
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    tokio::select! {
        ended = server => Ok(ended?),
        _ = closed => Ok(()),
    }
}

#[derive(Clone)]
struct RowsServer {
    database: Arc<Database>,
}

impl RowsServer {
    fn get(&self, ids: &[u64]) -> Result<Rows, Box<redb::Error>> {
        let error = |error: redb::Error| Box::new(error);
        let transaction = self.database.begin_read().map_err(|e| error(e.into()))?;
        let table = transaction.open_table(TABLE).map_err(|e| error(e.into()))?;
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            let row = table.get(id).map_err(|e| error(e.into()))?;
            rows.push(row.map(|row| Bytes::copy_from_slice(row.value())).unwrap_or_default());
        }
        Ok(Rows { rows })
    }
}

impl UnaryService<GetRows> for RowsServer {
    type Response = Rows;
    type Future = Ready<Result<Response<Rows>, Status>>;

    fn call(&mut self, request: Request<GetRows>) -> Self::Future {
        let rows = self.get(&request.into_inner().ids);
        ready(rows.map(Response::new).map_err(|error| Status::internal(error.to_string())))
    }
}

impl Service<http::Request<Body>> for RowsServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Rows, GetRows>::default());
            Ok(grpc.unary(server, request).await)
        })
    }
}

impl NamedService for RowsServer {
    const NAME: &'static str = "peers.Rows";
}

/// The server as a process, and a channel to it.
pub(crate) struct RedbServer {
    child: Child,
    channel: Channel,
    kernel: RowKernel,
}

impl RedbServer {
    /// Writes the rows of `table` into a file in `dir` and starts a server over it.
    pub(crate) async fn start(dir: &Path, table: &BenchTable) -> Result<Arc<Self>> {
        let path = dir.join("rows.redb");
        fill(&path, table).context("writing the redb file")?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg(MODE)
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("the server has no stdout")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        let address: SocketAddr = line.context("the server over redb says nothing")?.parse()?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let channel = endpoint.connect().await?;
        Ok(Arc::new(Self { child, channel, kernel: RowKernel::new(table.format, table.dim) }))
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        proc::cpu_time(self.pid()?, "")
    }

    async fn get(&self, request: &LookupRequest) -> Result<LookupOutcome> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await?;
        let question = GetRows { ids: request.features[0].ids.clone() };
        let codec = ProstCodec::<GetRows, Rows>::default();
        let answer = grpc.unary(Request::new(question), PathAndQuery::from_static(PATH), codec).await?;
        let rows = answer.into_inner().rows;
        let rows: Vec<&[u8]> = rows.iter().map(AsRef::as_ref).collect();
        anyhow::ensure!(rows.len() == request.features[0].ids.len(), "rows are missing");
        anyhow::ensure!(rows.iter().all(|row| !row.is_empty()), "a row is not there");
        Ok(pooled(&self.kernel, request, &rows))
    }
}

impl Target for RedbServer {
    async fn ask(&self, request: &LookupRequest) -> Result<LookupOutcome, Failure> {
        self.get(request)
            .await
            .map_err(|error| Failure { code: ErrorCode::Internal, text: format!("redb: {error:#}") })
    }
}

fn fill(path: &Path, table: &BenchTable) -> Result<()> {
    let database = Database::create(path)?;
    let transaction = database.begin_write()?;
    {
        let mut rows = transaction.open_table(TABLE)?;
        let mut row = vec![0; table.format.row_bytes(table.dim)];
        for n in 0..table.rows {
            let id = id_of(table.keying, n);
            stored_row(table.format, id, ROWS_VERSION, &mut row);
            rows.insert(id, &row[..])?;
        }
    }
    Ok(transaction.commit()?)
}
