//! The node that is attacked: a real process, its tables made of rows that the oracle knows.

use std::{fs, path::Path};

use tempfile::TempDir;
use tidepool_bench::{Oracle, id_of, stored_row};
use tidepool_proto::{
    pack::{pack, unpack},
    v1,
};
use tidepool_store::ArtifactStore;
use tidepool_table::{BuildOptions, TableBuilder, TableSpec};
use tidepool_types::{Keying, Name, PartitionCount, RowFormat, TableVersion};

use super::{Seeded, wire::Wire};
use crate::command::{Role, json, node_keys};

pub(crate) const DIM: u32 = 16;
pub(crate) const ROWS: u64 = 4000;
pub(crate) const PARTITIONS: u32 = 4;
const FORMAT: RowFormat = RowFormat::Int4;
const ROWS_VERSION: u64 = 1;

/// What the node accepts at most: small, so that the tests reach it.
pub(crate) const MAX_REQUEST_BYTES: usize = 4 << 20;
pub(crate) const MAX_IDS: usize = 100_000;

/// A controller and a node that serves one hashed table.
pub(crate) struct Victim {
    pub(crate) node: Role,
    _controller: Role,
    _dir: TempDir,
    oracle: Oracle,
}

impl Victim {
    /// Starts it; `more` keys are set for the node.
    pub(crate) fn start(more: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        build(dir.path());
        let store = dir.path().join("store");
        let controller = Role::controller(dir.path(), &store);
        let mut of_node = node_keys(dir.path(), &store, &[&controller.grpc_address]);
        of_node.extend([
            ("max_request_bytes", MAX_REQUEST_BYTES.to_string()),
            ("max_ids_per_request", MAX_IDS.to_string()),
            // Both ways of working are attacked.
            ("inline_max_rows", "300".into()),
        ]);
        let more = more.iter().map(|(key, value)| (*key, (*value).to_owned()));
        let of_node: Vec<(&str, String)> = of_node.into_iter().chain(more).collect();
        let node = Role::start(dir.path(), "node", &of_node);
        let (code, _) = json(&["--controller", &controller.grpc_address, "table", "serve", "user@v1"]);
        assert_eq!(code, 0);
        Self { node, _controller: controller, _dir: dir, oracle: Oracle::new(FORMAT, DIM, ROWS_VERSION) }
    }

    pub(crate) async fn connect(&self) -> Wire {
        Wire::connect(&self.node.grpc_address).await
    }

    /// Sends an honest request and holds the answer against the oracle.
    pub(crate) async fn is_right(&mut self, wire: &mut Wire, random: &mut Seeded, after: &str) {
        let ids: Vec<u64> = (0..1 + random.below(40)).map(|_| any_id(random)).collect();
        let lengths: Vec<u32> = (0..random.below(6)).map(|_| random.below(5) as u32).collect();
        let members: Vec<u32> =
            (0..lengths.iter().sum::<u32>()).map(|_| random.below(ids.len()) as u32).collect();
        let weights: Vec<f32> = members.iter().map(|_| random.below(9) as f32 - 3.5).collect();
        // Without members each id would be one.
        let pool_ids = if members.is_empty() { &[] } else { &ids[..] };
        let request = request(vec![gather(&ids), pool(pool_ids, &members, &lengths, &weights)]);
        let answer = wire.lookup(&request).await.unwrap_or_else(|e| panic!("after {after}: {e:?}"));
        let [gathered, pooled] = &answer.features[..] else { panic!("after {after}: two features") };
        let mut row = vec![0; FORMAT.row_bytes(DIM)];
        for (at, (id, answered)) in ids.iter().zip(gathered.rows.chunks_exact(row.len())).enumerate() {
            let missing = gathered.missing.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
            assert_eq!(missing, !has(*id), "after {after}: id {id}");
            row.fill(0);
            if has(*id) {
                stored_row(FORMAT, *id, ROWS_VERSION, &mut row);
            }
            assert_eq!(answered, row, "after {after}: the row of {id}");
        }
        let sums: Vec<f32> = unpack(&pooled.sums).unwrap().collect();
        let mut at = 0;
        for (length, sum) in lengths.iter().zip(sums.chunks_exact(DIM as usize)) {
            let bag = at..at + *length as usize;
            at = bag.end;
            let found = bag.map(|m| (ids[members[m] as usize], weights[m])).filter(|(id, _)| has(*id));
            assert!(self.oracle.is_sum(found, sum), "after {after}: a wrong sum");
        }
        assert_eq!(at, members.len(), "after {after}: a sum for each bag");
    }

    /// Resident bytes of the node now, after its peak has been set back to it.
    pub(crate) fn reset_peak(&self) -> u64 {
        fs::write(format!("/proc/{}/clear_refs", self.node.pid()), "5").unwrap();
        self.status_bytes("VmRSS:")
    }

    /// The most resident bytes since.
    pub(crate) fn peak(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.node.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

fn build(dir: &Path) {
    let table_version = TableVersion { table: Name::new("user").unwrap(), version: Name::new("v1").unwrap() };
    let spec = TableSpec {
        table_version: table_version.clone(),
        dim: DIM,
        format: FORMAT,
        keying: Keying::Hashed,
        partitions: PartitionCount::new(PARTITIONS).unwrap(),
        default_row: Vec::new(),
        composite: None,
        full_keys: false,
        seed: 1,
    };
    let dir = ArtifactStore::open(dir.join("store")).unwrap().table_dir(&table_version);
    let mut builder = TableBuilder::staged(spec, BuildOptions::default(), &dir).unwrap();
    let mut row = vec![0; FORMAT.row_bytes(DIM)];
    for n in 0..ROWS {
        let id = id_of(Keying::Hashed, n);
        stored_row(FORMAT, id, ROWS_VERSION, &mut row);
        builder.push_stored(id, &row).unwrap();
    }
    builder.publish(&dir, &mut |_, _| {}).unwrap();
}

/// Ids that the table has, but for one in eight.
pub(crate) fn any_id(random: &mut Seeded) -> u64 {
    if random.below(8) == 0 {
        return random.next() | 1;
    }
    id_of(Keying::Hashed, random.next() % ROWS)
}

fn has(id: u64) -> bool {
    use std::{collections::HashSet, sync::LazyLock};
    static IDS: LazyLock<HashSet<u64>> =
        LazyLock::new(|| (0..ROWS).map(|n| id_of(Keying::Hashed, n)).collect());
    IDS.contains(&id)
}

pub(crate) fn request(features: Vec<v1::FeatureRequest>) -> v1::LookupRequest {
    v1::LookupRequest { request_id: "test".into(), features, ..v1::LookupRequest::default() }
}

pub(crate) fn gather(ids: &[u64]) -> v1::FeatureRequest {
    v1::FeatureRequest {
        table_version: Some(v1::TableVersion { table: "user".into(), version: "v1".into() }),
        partitions: PARTITIONS,
        wire_form: v1::WireForm::Gather.into(),
        ids: pack(ids),
        ..v1::FeatureRequest::default()
    }
}

pub(crate) fn pool(ids: &[u64], members: &[u32], lengths: &[u32], weights: &[f32]) -> v1::FeatureRequest {
    v1::FeatureRequest {
        wire_form: v1::WireForm::Pool.into(),
        members: pack(members),
        bag_lengths: pack(lengths),
        weights: pack(weights),
        ..gather(ids)
    }
}
