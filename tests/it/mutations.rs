//! A load generator that finds nothing wrong proves nothing, unless it would have. Between a client and a
//! real node stands somebody who changes one thing at a time in what passes: each must be seen in the count
//! of wrong answers, and nothing may be when nothing is changed.

use std::{
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use futures::Stream;
use tidepool_bench::{
    BenchTable, Skew,
    load::{Asked, BatchShape, LoadSpec, Rate, run},
};
use tidepool_client::{Client, ClientConfig, WireForm};
use tidepool_proto::{
    answer_stream,
    pack::{pack, unpack},
    v1::{
        self,
        embedding_client::EmbeddingClient,
        embedding_server::{Embedding, EmbeddingServer},
    },
};
use tidepool_tests::{DEADLINE, Sandbox, Shape};
use tidepool_types::{Keying, PartitionCount, Pooling, RowFormat};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, server::TcpIncoming},
};

/// Changes one thing, and says whether there was something to change.
#[derive(Clone, Copy)]
enum Mutation {
    None,
    Asked(fn(&mut v1::FeatureRequest) -> bool),
    Answered(fn(&mut v1::FeatureResponse) -> bool),
}

#[derive(Clone)]
struct Meddler {
    node: EmbeddingClient<Channel>,
    mutation: Mutation,
    applied: Arc<AtomicU64>,
}

impl Meddler {
    async fn answer(&self, mut request: v1::LookupRequest) -> Result<v1::LookupResponse, Status> {
        let mut applied = match self.mutation {
            Mutation::Asked(change) => request.features.iter_mut().any(change),
            _ => false,
        };
        let mut response = self.node.clone().lookup(request).await?.into_inner();
        if let Mutation::Answered(change) = self.mutation {
            applied = response.features.iter_mut().any(change);
        }
        self.applied.fetch_add(u64::from(applied), Ordering::Relaxed);
        Ok(response)
    }
}

#[tonic::async_trait]
impl Embedding for Meddler {
    type LookupStreamStream = Pin<Box<dyn Stream<Item = Result<v1::LookupResponse, Status>> + Send>>;

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        self.answer(request.into_inner()).await.map(Response::new)
    }

    async fn lookup_stream(
        &self,
        request: Request<Streaming<v1::LookupRequest>>,
    ) -> Result<Response<Self::LookupStreamStream>, Status> {
        let meddler = self.clone();
        let answer = move |request| {
            let meddler = meddler.clone();
            async move { meddler.answer(request).await }
        };
        Ok(Response::new(Box::pin(answer_stream(request.into_inner(), answer))))
    }
}

/// Swaps the first two of these packed numbers that differ.
fn swap<T: tidepool_proto::pack::Packed + PartialEq>(packed: &mut Bytes) -> bool {
    let mut numbers: Vec<T> = unpack(packed).unwrap().collect();
    let other = numbers.iter().position(|number| *number != numbers[0]);
    if let Some(other) = other {
        numbers.swap(0, other);
        *packed = pack(&numbers);
    }
    other.is_some()
}

/// Swaps the first two records of `width` bytes.
fn swap_records(bytes: &mut Bytes, width: usize) -> bool {
    let mut copy = bytes.to_vec();
    if copy.len() < 2 * width || copy[..width] == copy[width..2 * width] {
        return false;
    }
    let (first, rest) = copy.split_at_mut(width);
    first.swap_with_slice(&mut rest[..width]);
    *bytes = copy.into();
    true
}

const DIM: u32 = 16;

fn swap_ids(feature: &mut v1::FeatureRequest) -> bool {
    swap::<u64>(&mut feature.ids)
}

/// Swaps the first member with one of another bag: within a bag their order is rounding only.
fn swap_members(feature: &mut v1::FeatureRequest) -> bool {
    let first_bag = unpack::<u32>(&feature.bag_lengths).unwrap().next().unwrap_or(0) as usize;
    let mut members: Vec<u32> = unpack(&feature.members).unwrap().collect();
    let other = members.iter().skip(first_bag).position(|member| *member != members[0]);
    if let Some(other) = other {
        members.swap(0, first_bag + other);
        feature.members = pack(&members);
    }
    other.is_some()
}

fn swap_weights(feature: &mut v1::FeatureRequest) -> bool {
    swap::<f32>(&mut feature.weights)
}

/// Swaps the members of two bags that have as many, but not the same ones: of other lengths the client would
/// see it in the counts, and refuse the answer.
fn swap_bags(feature: &mut v1::FeatureRequest) -> bool {
    let mut members: Vec<u32> = unpack(&feature.members).unwrap().collect();
    if members.is_empty() {
        return false;
    }
    let mut end = 0;
    let bags: Vec<_> = unpack::<u32>(&feature.bag_lengths)
        .unwrap()
        .map(|length| {
            let start = end;
            end += length as usize;
            start..end
        })
        .collect();
    let alike = bags.iter().enumerate().find_map(|(at, one)| {
        let differs = |other: &&Range<usize>| {
            other.len() == one.len() && members[(*other).clone()] != members[one.clone()]
        };
        bags[at + 1..].iter().find(differs).map(|other| (one.clone(), other.clone()))
    });
    let Some((one, other)) = alike else { return false };
    for (a, b) in one.zip(other) {
        members.swap(a, b);
    }
    feature.members = pack(&members);
    true
}

fn swap_rows(answer: &mut v1::FeatureResponse) -> bool {
    swap_records(&mut answer.rows, RowFormat::Int4.row_bytes(DIM))
}

fn swap_sums(answer: &mut v1::FeatureResponse) -> bool {
    swap_records(&mut answer.sums, 4 * DIM as usize)
}

/// Doubles the scale of the first row: an f16, behind the codes.
fn change_scale(answer: &mut v1::FeatureResponse) -> bool {
    let mut rows = answer.rows.to_vec();
    let Some(high) = rows.get_mut(DIM as usize / 2 + 1) else { return false };
    *high += 4;
    answer.rows = rows.into();
    true
}

fn change_a_bit_of_a_sum(answer: &mut v1::FeatureResponse) -> bool {
    let mut sums = answer.sums.to_vec();
    let Some(byte) = sums.get_mut(2) else { return false };
    *byte ^= 0x40;
    answer.sums = sums.into();
    true
}

const CASES: &[(&str, WireForm, Mutation)] = &[
    ("nothing, gathered", WireForm::Gather, Mutation::None),
    ("nothing, pooled", WireForm::Pool, Mutation::None),
    ("two ids, gathered", WireForm::Gather, Mutation::Asked(swap_ids)),
    ("two ids, pooled", WireForm::Pool, Mutation::Asked(swap_ids)),
    ("two members", WireForm::Pool, Mutation::Asked(swap_members)),
    ("two weights", WireForm::Pool, Mutation::Asked(swap_weights)),
    ("two bags", WireForm::Pool, Mutation::Asked(swap_bags)),
    ("two rows", WireForm::Gather, Mutation::Answered(swap_rows)),
    ("the sums of two bags", WireForm::Pool, Mutation::Answered(swap_sums)),
    ("one scale", WireForm::Gather, Mutation::Answered(change_scale)),
    ("one bit of a sum", WireForm::Pool, Mutation::Answered(change_a_bit_of_a_sum)),
];

/// A client for which a meddler stands in the place of every node.
async fn meddled_with(
    honest: &Client,
    mutation: Mutation,
) -> Result<(Client, Arc<AtomicU64>, Vec<AbortOnDropHandle<()>>)> {
    let applied = Arc::new(AtomicU64::new(0));
    let mut map = (*honest.map()).clone();
    let mut servers = Vec::new();
    for node in map.nodes.values_mut() {
        let meddler = Meddler {
            node: EmbeddingClient::connect(format!("http://{}", node.grpc_address)).await?,
            mutation,
            applied: Arc::clone(&applied),
        };
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
        node.grpc_address = incoming.local_addr()?.to_string();
        let server = tonic::transport::Server::builder().add_service(EmbeddingServer::new(meddler));
        servers.push(AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = server.serve_with_incoming(incoming).await;
        })));
    }
    // The map never changes: its sender may go.
    let (_, maps) = watch::channel(Arc::new(map));
    Ok((Client::with_map(ClientConfig::default(), maps)?, applied, servers))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_swapped_the_load_generator_counts_wrong_answers() -> Result<()> {
    let sandbox = Sandbox::start(Shape { groups: 1, nodes_per_group: 2 }).await?;
    let table = BenchTable {
        rows: 300,
        dim: DIM,
        format: RowFormat::Int4,
        keying: Keying::Hashed,
        partitions: PartitionCount::new(8).unwrap(),
    };
    table.ensure(&sandbox.store, &mut |_, _, _| {})?;
    let version = table.table_version()?;
    sandbox.serve(&version).await?;
    let honest = sandbox.client().await?;
    honest.wait_for_map(|map| map.layout(&version).is_some(), DEADLINE).await?;
    for (what, wire_form, mutation) in CASES {
        let (client, applied, servers) = meddled_with(&honest, *mutation).await?;
        for pooling in [Pooling::Sum, Pooling::Mean] {
            // Of a table so small that ids come twice, so that members differ from ids.
            let asked = Asked {
                table,
                batch: 12,
                shape: BatchShape::HeavyTailed,
                bag: 7,
                pooling,
                weighted: true,
                skew: Skew::Zipf(1.05),
                seed: 11,
            };
            let rate = Rate::PerSecond(400.0);
            let mut spec = LoadSpec::new(asked, rate, Duration::from_millis(150));
            spec.options.wire_form = Some(*wire_form);
            spec.options.timeout = DEADLINE;
            let before = applied.load(Ordering::Relaxed);
            let report = run(&client, &spec).await?;
            let changed = applied.load(Ordering::Relaxed) - before;
            assert_eq!((report.failed_requests(), report.unchecked), (0, 0), "{what}: {report:?}");
            assert!(report.answered > 20 && report.verdict.checked > 100, "{what}: {report:?}");
            if matches!(mutation, Mutation::None) {
                assert_eq!(report.verdict.wrong, 0, "{what}, {pooling:?}");
            } else {
                assert!(changed > 20, "{what}: changed in {changed} answers");
                assert!(report.verdict.wrong > 20, "{what}, {pooling:?}: {:?}", report.verdict);
            }
        }
        drop(servers);
    }
    sandbox.stop().await
}
