//! Recording what a ranker looks up.

use std::time::Duration;

use tidepool_client::trace::{Ending, TraceDecoder, TraceEntry, TraceReader};
use tidepool_types::Pooling;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{Site, films_request, site::DEADLINE};

/// A recording that is being read.
struct Recording {
    stream: TcpStream,
    /// What has come, of HTTP and trace.
    bytes: Vec<u8>,
}

impl Recording {
    /// Asks for one; None: it was refused. HTTP/1.0: the body is not cut into chunks.
    async fn ask(site: &Site, query: &str) -> Option<Self> {
        let stream = TcpStream::connect(site.ranker.running.http_address).await.unwrap();
        let mut recording = Self { stream, bytes: Vec::new() };
        let head = format!("GET /v1/trace?{query} HTTP/1.0\r\nhost: x\r\n\r\n");
        recording.stream.write_all(head.as_bytes()).await.unwrap();
        while recording.body().is_empty() {
            recording.read().await;
        }
        recording.bytes.starts_with(b"HTTP/1.0 200").then_some(recording)
    }

    async fn read(&mut self) {
        let count = timeout(DEADLINE, self.stream.read_buf(&mut self.bytes)).await.unwrap().unwrap();
        assert!(count > 0, "it ended: {}", String::from_utf8_lossy(&self.bytes));
    }

    fn body(&self) -> &[u8] {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n");
        end.map_or(&[], |end| &self.bytes[end + 4..])
    }

    fn entries(&self) -> Vec<TraceEntry> {
        let mut decoder = TraceDecoder::new();
        decoder.push(self.body());
        std::iter::from_fn(|| decoder.next_entry().unwrap()).collect()
    }

    /// The body, when the ranker has ended it.
    async fn finish(mut self) -> Vec<u8> {
        timeout(DEADLINE, self.stream.read_to_end(&mut self.bytes)).await.unwrap().unwrap();
        self.body().to_vec()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rankings_are_recorded_while_they_are_answered() {
    let mut site = Site::start().await;
    site.ranker.rank(films_request()).await.unwrap();
    let mut recording = Recording::ask(&site, "seconds=3600&every=2").await.unwrap();
    let (code, refusal) = site.ranker.http("GET", "/v1/trace", "").await;
    assert!(code == 409 && refusal.contains("being recorded already"), "{refusal}");
    let (code, refusal) = site.ranker.http("GET", "/v1/trace?every=0", "").await;
    assert!(code == 400 && refusal.contains("invalid_request"), "{refusal}");
    for _ in 0..5 {
        site.ranker.rank(films_request()).await.unwrap();
    }
    while recording.entries().len() < 4 {
        recording.read().await;
    }
    // What the ranker drains ends in good order.
    site.ranker.stop().await;
    let trace = recording.finish().await;
    let mut reader = TraceReader::new(&trace[..]).unwrap();
    assert_eq!((reader.start().every, reader.start().source.as_str()), (2, "ranker-1"));
    for number in 0..3 {
        let lookup = reader.next_lookup().unwrap().unwrap();
        assert_eq!((lookup.number, lookup.tenant.as_deref()), (number, Some("ads")));
        let tables: Vec<_> = lookup.features.iter().map(|f| f.table_version.to_string()).collect();
        assert_eq!(tables, ["user@v1", "item@v1", "genre@v1"]);
        let genres = &lookup.features[2];
        assert_eq!((genres.pooling, genres.lengths.as_deref()), (Pooling::Mean, Some(&[3, 1, 0][..])));
        assert_eq!(lookup.features[0].ids, [4]);
    }
    assert_eq!(reader.next_lookup().unwrap(), None);
    let Some(Ending::Whole(end)) = reader.ending() else { panic!("{:?}", reader.ending()) };
    assert_eq!((end.lookups, end.dropped), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_nobody_reads_any_more_makes_room() {
    let mut site = Site::start().await;
    drop(Recording::ask(&site, "seconds=3600").await.unwrap());
    // The ranker notices when it has something to send, or before.
    let again = async {
        loop {
            site.ranker.rank(films_request()).await.unwrap();
            if let Some(recording) = Recording::ask(&site, "seconds=1").await {
                return recording;
            }
        }
    };
    let trace = timeout(DEADLINE, again).await.unwrap().finish().await;
    let mut reader = TraceReader::new(&trace[..]).unwrap();
    assert_eq!(reader.next_lookup().unwrap(), None);
    let ending = reader.ending();
    let Some(Ending::Whole(end)) = ending else { panic!("it ends by itself, after a second: {ending:?}") };
    assert_eq!((end.lookups, end.lasted), (0, Duration::from_secs(1)));
}
