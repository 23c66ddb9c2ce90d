//! Traces through a cluster: recorded at a ranker, asked again of the nodes.

use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use tidepool_bench::{
    BenchError, BenchTable, Skew,
    load::{Asked, BatchShape},
    trace::{ReplaySpec, Replayed, Survey, replay},
};
use tidepool_client::{
    Client, LookupOptions,
    trace::{TraceDecoder, TraceEnd, TraceEntry, TraceReader, TraceStart, TraceWriter, TracedLookup},
};
use tidepool_tests::{DEADLINE, Sandbox, Shape};
use tidepool_types::{Keying, PartitionCount, Pooling, RowFormat};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::fixture::{self, MODEL, name};

const SMALL: Shape = Shape { groups: 1, nodes_per_group: 2 };

async fn ask_again(client: &Client, bytes: &[u8], spec: &ReplaySpec) -> Result<Replayed, BenchError> {
    let survey = Survey::of(&mut TraceReader::new(bytes)?)?;
    let options = LookupOptions { timeout: DEADLINE, ..spec.options.clone() };
    let spec = ReplaySpec { speed: 1000.0, options, ..spec.clone() };
    replay(client, TraceReader::new(std::io::Cursor::new(bytes.to_vec()))?, &survey, &spec).await
}

/// Lookups of the ranker at `address`, until there are `count` of them; then nobody reads any more.
async fn record(
    address: std::net::SocketAddr,
    count: usize,
    work: impl Future<Output = Result<()>>,
) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the body is not cut into chunks.
    stream.write_all(b"GET /v1/trace?seconds=3600 HTTP/1.0\r\nhost: x\r\n\r\n").await?;
    let (mut bytes, mut work) = (Vec::new(), Some(work));
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            bail!("it ended: {}", String::from_utf8_lossy(&bytes));
        }
        let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let body = &bytes[head + 4..];
        let mut decoder = TraceDecoder::new();
        decoder.push(body);
        let mut lookups = 0;
        while let Some(entry) = decoder.next_entry()? {
            match entry {
                TraceEntry::Start(_) => {
                    // Only now is there somebody who records.
                    if let Some(work) = work.take() {
                        work.await?;
                    }
                }
                TraceEntry::Lookup(_) => lookups += 1,
                TraceEntry::End(_) => bail!("nobody asked it to end"),
            }
        }
        if lookups == count {
            return Ok(body.to_vec());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_ranker_looked_up_is_asked_again() -> Result<()> {
    let mut sandbox = Sandbox::start(SMALL).await?;
    let ranker = sandbox.start_ranker(false).await?;
    let release = fixture::export(&sandbox.store, "r1", 4);
    sandbox.promote(&name(MODEL), &release.release).await?;
    let mut rankings = sandbox.ranker(ranker).await?;
    let requests = &fixture::requests()[..5];
    let work = async {
        for request in requests {
            rankings.rank(fixture::message(request)).await?;
        }
        Ok(())
    };
    let recorded = record(sandbox.ranker_http(ranker), requests.len(), work);
    let trace = tokio::time::timeout(DEADLINE, recorded).await??;
    let survey = Survey::of(&mut TraceReader::new(&trace[..])?)?;
    assert_eq!((survey.requests, survey.complete), (5, false), "nobody waited for its end");

    let client = sandbox.client().await?;
    let replayed = ask_again(&client, &trace, &ReplaySpec::default()).await?;
    assert_eq!((replayed.load.answered, replayed.load.ids), (5, survey.ids), "{:?}", replayed.load);
    // One id in each request is in no table.
    assert_eq!(replayed.load.missing_ids, 5);
    assert!(replayed.checked_tables.is_empty() && replayed.load.verdict.checked == 0);
    assert_eq!(replayed.unchecked_tables.len(), release.tables.len());

    // Another release of the same tables; before it is there, it is refused by name.
    let item = release.version_of("item").unwrap().table.clone();
    let spec = ReplaySpec { versions: [(item, name("r2"))].into(), ..ReplaySpec::default() };
    let refused = ask_again(&client, &trace, &spec).await;
    assert!(matches!(&refused, Err(BenchError::NotServed(t)) if t.to_string() == "item@r2"), "{refused:?}");
    let second = fixture::export(&sandbox.store, "r2", 2);
    let item = second.version_of("item").unwrap().clone();
    sandbox.serve(&item).await?;
    client.wait_for_map(|map| map.layout(&item).is_some(), DEADLINE).await?;
    let replayed = ask_again(&client, &trace, &spec).await?;
    assert_eq!((replayed.load.answered, replayed.load.missing_ids), (5, 5));
    assert!(replayed.unchecked_tables.contains(&item), "{:?}", replayed.unchecked_tables);
    sandbox.stop().await
}

/// A trace of requests to a bench table, a millisecond apart.
fn trace_of(asked: &Asked, count: usize) -> Result<Vec<u8>> {
    let start = TraceStart { began: SystemTime::now(), every: 1, source: "test".into() };
    let mut writer = TraceWriter::new(Vec::new(), &start)?;
    for (number, request) in (0..).zip(asked.requests()?.take(count)) {
        let (arrival, tenant) = (Duration::from_millis(number), Some("ads".to_owned()));
        writer.lookup(&TracedLookup { arrival, number, tenant, features: request.features })?;
    }
    Ok(writer.finish(&TraceEnd::default())?)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_about_bench_tables_are_checked_and_failures_are_counted() -> Result<()> {
    let mut sandbox = Sandbox::start(SMALL).await?;
    let table = BenchTable {
        rows: 500,
        dim: 8,
        format: RowFormat::Int4,
        keying: Keying::Hashed,
        partitions: PartitionCount::new(4).unwrap(),
    };
    table.ensure(&sandbox.store, &mut |_, _, _| {})?;
    let table_version = table.table_version()?;
    sandbox.serve(&table_version).await?;
    let client = sandbox.client().await?;
    client.wait_for_map(|map| map.layout(&table_version).is_some(), DEADLINE).await?;
    let asked = Asked {
        table,
        batch: 20,
        shape: BatchShape::HeavyTailed,
        bag: 3,
        pooling: Pooling::Mean,
        weighted: true,
        skew: Skew::Zipf(1.1),
        seed: 4,
    };
    let trace = trace_of(&asked, 30)?;
    let Replayed { load, checked_tables, unchecked_tables } =
        ask_again(&client, &trace, &ReplaySpec::default()).await?;
    assert_eq!((load.answered, load.failed_requests(), load.missing_ids), (30, 0, 0), "{load:?}");
    assert_eq!((checked_tables, unchecked_tables), (vec![table_version], Vec::new()));
    assert_eq!((load.verdict.checked, load.verdict.wrong), (load.ids / 3, 0));

    // With a node gone there is nobody else to ask.
    sandbox.stop_node(1).await?;
    let load = ask_again(&client, &trace, &ReplaySpec::default()).await?.load;
    assert_eq!((load.requests, load.answered + load.failed_requests()), (30, 30));
    assert!(load.failed_requests() > 0 && load.first_failure.is_some(), "{load:?}");
    sandbox.stop().await
}
