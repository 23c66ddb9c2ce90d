//! Messages to and from the types of tidepool-types and tidepool-cluster.

use thiserror::Error;
use tidepool_cluster::{
    Assignment, ClusterMap, HostMemory, MapError, NodeEntry, PartitionState, PartitionStatus, Placement,
    Quota, Quotas, ReleaseEntry, ReleaseState, TableAssignment, TableLayout,
};
use tidepool_types::{
    Combine, Composite, Epoch, Keying, ManifestError, Name, NameError, NodeId, PartitionCount,
    PartitionIndex, RowFormat, TableSchema, TableVersion,
};

use crate::{MAX_FIELDS, pack, traffic, v1};

/// A message that does not say what its type promises.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Bytes that are no such message.
    #[error("the message cannot be decoded")]
    Malformed(#[from] prost::DecodeError),
    /// A message that would be too large in memory.
    #[error("the message has more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// A field that must be set is not.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// A name that is none.
    #[error("field {field}")]
    Name {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        source: NameError,
    },
    /// A number out of its range.
    #[error("field {field} cannot be {value}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it was.
        value: u64,
    },
    /// Packed numbers that are cut off.
    #[error("field {field}: {bytes} bytes are no whole count of numbers")]
    Packed {
        /// Which field.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A schema that contradicts itself.
    #[error("table schema")]
    Schema(#[from] ManifestError),
    /// A cluster map that contradicts itself.
    #[error("cluster map")]
    Map(#[from] MapError),
}

pub(crate) fn name(field: &'static str, text: String) -> Result<Name, WireError> {
    Name::new(text).map_err(|source| WireError::Name { field, source })
}

pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing(field))
}

fn partition_count(value: u32) -> Result<PartitionCount, WireError> {
    PartitionCount::new(value).ok_or(WireError::Value { field: "partitions", value: value.into() })
}

impl From<&TableVersion> for v1::TableVersion {
    fn from(from: &TableVersion) -> Self {
        Self { table: from.table.to_string(), version: from.version.to_string() }
    }
}

impl TryFrom<v1::TableVersion> for TableVersion {
    type Error = WireError;

    fn try_from(from: v1::TableVersion) -> Result<Self, WireError> {
        Ok(Self { table: name("table", from.table)?, version: name("version", from.version)? })
    }
}

impl From<&HostMemory> for v1::HostMemory {
    fn from(from: &HostMemory) -> Self {
        let HostMemory { budget_bytes, locked_bytes, copied_bytes, mapped_bytes, charged_bytes } = *from;
        Self { budget_bytes, locked_bytes, copied_bytes, mapped_bytes, charged_bytes }
    }
}

impl From<v1::HostMemory> for HostMemory {
    fn from(from: v1::HostMemory) -> Self {
        let v1::HostMemory { budget_bytes, locked_bytes, copied_bytes, mapped_bytes, charged_bytes } = from;
        Self { budget_bytes, locked_bytes, copied_bytes, mapped_bytes, charged_bytes }
    }
}

impl From<&TableSchema> for v1::TableSchema {
    fn from(from: &TableSchema) -> Self {
        Self {
            table_version: Some((&from.table_version).into()),
            dim: from.dim,
            row_format: from.format.code(),
            keying: from.keying.code(),
            partitions: from.partitions.get(),
            rows: from.rows,
            default_row: pack::pack(&from.default_row),
            composite: from.composite.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::TableSchema> for TableSchema {
    type Error = WireError;

    fn try_from(from: v1::TableSchema) -> Result<Self, WireError> {
        let code = |field, value: u32| WireError::Value { field, value: value.into() };
        let default_row = pack::unpack(&from.default_row)
            .ok_or(WireError::Packed { field: "default_row", bytes: from.default_row.len() })?
            .collect();
        let schema = Self {
            table_version: required("table_version", from.table_version)?.try_into()?,
            dim: from.dim,
            format: RowFormat::from_code(from.row_format).ok_or(code("row_format", from.row_format))?,
            keying: Keying::from_code(from.keying).ok_or(code("keying", from.keying))?,
            partitions: partition_count(from.partitions)?,
            rows: from.rows,
            default_row,
            composite: from.composite.map(TryInto::try_into).transpose()?,
        };
        schema.validate()?;
        Ok(schema)
    }
}

impl From<&Composite> for v1::Composite {
    fn from(from: &Composite) -> Self {
        Self { seeds: pack::pack(&from.seeds), combine: from.combine.code() }
    }
}

impl TryFrom<v1::Composite> for Composite {
    type Error = WireError;

    fn try_from(from: v1::Composite) -> Result<Self, WireError> {
        let bytes = from.seeds.len();
        let combine = u64::from(from.combine);
        Ok(Self {
            seeds: pack::unpack(&from.seeds).ok_or(WireError::Packed { field: "seeds", bytes })?.collect(),
            combine: Combine::from_code(from.combine)
                .ok_or(WireError::Value { field: "combine", value: combine })?,
        })
    }
}

impl From<&Assignment> for v1::Assignment {
    fn from(from: &Assignment) -> Self {
        let table = |t: &TableAssignment| v1::TableAssignment {
            schema: Some((&t.schema).into()),
            partitions: t.partitions.iter().map(|p| p.0).collect(),
        };
        let quotas = quota_rules(&from.quotas);
        let tables = from.tables.iter().map(table).collect();
        Self { epoch: from.epoch.0, tables, quotas, term: from.term }
    }
}

impl TryFrom<v1::Assignment> for Assignment {
    type Error = WireError;

    fn try_from(from: v1::Assignment) -> Result<Self, WireError> {
        let table = |t: v1::TableAssignment| {
            let schema: TableSchema = required("schema", t.schema)?.try_into()?;
            if let Some(p) = t.partitions.iter().find(|p| **p >= schema.partitions.get()) {
                return Err(WireError::Value { field: "partition", value: u64::from(*p) });
            }
            Ok(TableAssignment { schema, partitions: t.partitions.into_iter().map(PartitionIndex).collect() })
        };
        let tables = from.tables.into_iter().map(table).collect::<Result<_, WireError>>()?;
        Ok(Self { epoch: Epoch(from.epoch), term: from.term, tables, quotas: quotas(from.quotas)? })
    }
}

impl From<Quota> for v1::Quota {
    fn from(from: Quota) -> Self {
        Self {
            rows_per_second: from.rows_per_second.unwrap_or(0),
            bytes_per_second: from.bytes_per_second.unwrap_or(0),
        }
    }
}

impl From<v1::Quota> for Quota {
    fn from(from: v1::Quota) -> Self {
        let limit = |limit| (limit > 0).then_some(limit);
        Self { rows_per_second: limit(from.rows_per_second), bytes_per_second: limit(from.bytes_per_second) }
    }
}

/// The tenant of a rule; `None` for all without a rule of their own.
///
/// # Errors
/// [`WireError::Name`] when it is neither empty nor a name.
pub fn quota_tenant(tenant: String) -> Result<Option<Name>, WireError> {
    if tenant.is_empty() { Ok(None) } else { name("tenant", tenant).map(Some) }
}

/// The rules, the default one first.
#[must_use]
pub fn quota_rules(quotas: &Quotas) -> Vec<v1::QuotaRule> {
    let rule = |tenant: String, quota: Quota| v1::QuotaRule { tenant, quota: Some(quota.into()) };
    let default = quotas.default.map(|quota| rule(String::new(), quota));
    default.into_iter().chain(quotas.tenants.iter().map(|(t, q)| rule(t.to_string(), *q))).collect()
}

/// The rules of a message.
///
/// # Errors
/// [`WireError`] names the field that is not as it should be.
pub fn quotas(rules: Vec<v1::QuotaRule>) -> Result<Quotas, WireError> {
    let mut quotas = Quotas::default();
    for rule in rules {
        let quota = required("quota", rule.quota)?.into();
        match quota_tenant(rule.tenant)? {
            None => quotas.default = Some(quota),
            Some(tenant) => _ = quotas.tenants.insert(tenant, quota),
        }
    }
    Ok(quotas)
}

impl From<&PartitionStatus> for v1::PartitionStatus {
    fn from(from: &PartitionStatus) -> Self {
        let (state, problem) = match &from.state {
            PartitionState::Loading => (v1::PartitionState::Loading, String::new()),
            PartitionState::Ready => (v1::PartitionState::Ready, String::new()),
            PartitionState::Failed(problem) => (v1::PartitionState::Failed, problem.clone()),
        };
        Self {
            table_version: Some((&from.table_version).into()),
            partitions: from.partitions,
            partition: from.partition.0,
            state: state.into(),
            problem,
            file_bytes: from.file_bytes,
        }
    }
}

impl TryFrom<v1::PartitionStatus> for PartitionStatus {
    type Error = WireError;

    fn try_from(from: v1::PartitionStatus) -> Result<Self, WireError> {
        let state = match from.state() {
            v1::PartitionState::Loading => PartitionState::Loading,
            v1::PartitionState::Ready => PartitionState::Ready,
            v1::PartitionState::Failed => PartitionState::Failed(from.problem),
            v1::PartitionState::Unspecified => return Err(WireError::Missing("state")),
        };
        Ok(Self {
            table_version: required("table_version", from.table_version)?.try_into()?,
            partitions: from.partitions,
            partition: PartitionIndex(from.partition),
            state,
            file_bytes: from.file_bytes,
        })
    }
}

impl From<ReleaseState> for v1::ReleaseState {
    fn from(from: ReleaseState) -> Self {
        match from {
            ReleaseState::Loading => Self::Loading,
            ReleaseState::Ready => Self::Ready,
            ReleaseState::Current => Self::Current,
            ReleaseState::Previous => Self::Previous,
            ReleaseState::Retiring => Self::Retiring,
        }
    }
}

/// The state of a release; `None` when the message does not say.
#[must_use]
pub const fn release_state(from: v1::ReleaseState) -> Option<ReleaseState> {
    match from {
        v1::ReleaseState::Loading => Some(ReleaseState::Loading),
        v1::ReleaseState::Ready => Some(ReleaseState::Ready),
        v1::ReleaseState::Current => Some(ReleaseState::Current),
        v1::ReleaseState::Previous => Some(ReleaseState::Previous),
        v1::ReleaseState::Retiring => Some(ReleaseState::Retiring),
        v1::ReleaseState::Unspecified => None,
    }
}

impl From<&ReleaseEntry> for v1::ReleaseEntry {
    fn from(from: &ReleaseEntry) -> Self {
        let state = v1::ReleaseState::from(from.state);
        Self {
            model: from.model.to_string(),
            release: from.release.to_string(),
            tables: from.tables.iter().map(Into::into).collect(),
            state: state.into(),
            pinned: from.pinned,
        }
    }
}

impl TryFrom<v1::ReleaseEntry> for ReleaseEntry {
    type Error = WireError;

    fn try_from(from: v1::ReleaseEntry) -> Result<Self, WireError> {
        let state = release_state(from.state()).ok_or(WireError::Missing("state"))?;
        Ok(Self {
            model: name("model", from.model)?,
            release: name("release", from.release)?,
            tables: from.tables.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            state,
            pinned: from.pinned,
        })
    }
}

/// A node of the map as a message.
#[must_use]
pub fn node_to_wire((id, from): (&NodeId, &NodeEntry)) -> v1::NodeEntry {
    v1::NodeEntry {
        node: id.to_string(),
        group: from.group.to_string(),
        grpc_address: from.grpc_address.clone(),
        http_address: from.http_address.clone(),
        up: from.up,
        draining: from.draining,
    }
}

impl From<&ClusterMap> for v1::ClusterMap {
    fn from(from: &ClusterMap) -> Self {
        let group = |(group, nodes): (&Name, &Vec<NodeId>)| v1::GroupPlacement {
            group: group.to_string(),
            nodes: nodes.iter().map(ToString::to_string).collect(),
        };
        let layout = |l: &TableLayout| v1::TableLayout {
            schema: Some((&l.schema).into()),
            placement: l.placement.groups.iter().map(group).collect(),
        };
        Self {
            epoch: from.epoch.0,
            nodes: from.nodes.iter().map(node_to_wire).collect(),
            layouts: from.layouts.iter().map(layout).collect(),
            releases: from.releases.iter().map(Into::into).collect(),
            traffic: from.traffic.iter().map(traffic::traffic_to_wire).collect(),
        }
    }
}

impl TryFrom<v1::ClusterMap> for ClusterMap {
    type Error = WireError;

    fn try_from(from: v1::ClusterMap) -> Result<Self, WireError> {
        let node_id = |text| Ok(NodeId(name("node", text)?));
        let node = |n: v1::NodeEntry| {
            let entry = NodeEntry {
                group: name("group", n.group)?,
                grpc_address: n.grpc_address,
                http_address: n.http_address,
                up: n.up,
                draining: n.draining,
            };
            Ok((node_id(n.node)?, entry))
        };
        let group = |g: v1::GroupPlacement| {
            let nodes = g.nodes.into_iter().map(node_id).collect::<Result<_, WireError>>()?;
            Ok((name("group", g.group)?, nodes))
        };
        let layout = |l: v1::TableLayout| {
            let groups = l.placement.into_iter().map(group).collect::<Result<_, WireError>>()?;
            let schema = required("schema", l.schema)?.try_into()?;
            Ok(TableLayout { schema, placement: Placement { groups } })
        };
        let map = Self {
            epoch: Epoch(from.epoch),
            nodes: from.nodes.into_iter().map(node).collect::<Result<_, WireError>>()?,
            layouts: from.layouts.into_iter().map(layout).collect::<Result<_, WireError>>()?,
            releases: from.releases.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            traffic: from.traffic.into_iter().map(traffic::traffic).collect::<Result<_, _>>()?,
        };
        map.validate()?;
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use tidepool_cluster::{Arm, BucketRange, Shadow, Traffic};

    use super::*;

    fn map() -> ClusterMap {
        let n = |text: &str| Name::new(text).unwrap();
        let table_version = TableVersion { table: n("user"), version: n("v1") };
        let entry = |group: &str, up| NodeEntry {
            group: n(group),
            grpc_address: "127.0.0.1:7410".into(),
            http_address: "127.0.0.1:7411".into(),
            up,
            draining: !up,
        };
        let nodes = [(NodeId(n("a-1")), entry("a", true)), (NodeId(n("b-1")), entry("b", false))];
        let schema = TableSchema {
            table_version: table_version.clone(),
            dim: 4,
            format: RowFormat::Int4,
            keying: Keying::Hashed,
            partitions: PartitionCount::new(2).unwrap(),
            rows: 10,
            default_row: vec![0.5, -1.0, 0.0, 2.0],
            composite: None,
        };
        let on = |node: &str| vec![NodeId(n(node)); 2];
        let placement = Placement { groups: [(n("a"), on("a-1")), (n("b"), on("b-1"))].into() };
        let entry_of = |release: &str, state| ReleaseEntry {
            model: n("m"),
            release: n(release),
            tables: vec![table_version.clone()],
            state,
            pinned: state == ReleaseState::Ready,
        };
        let buckets = vec![BucketRange { start: 700, end: 900 }, BucketRange { start: 3, end: 7 }];
        let traffic = Traffic {
            arms: vec![Arm { release: n("r2"), buckets }],
            shadows: vec![Shadow { release: n("r2"), sample: 10 }],
        };
        ClusterMap {
            epoch: Epoch(9),
            nodes: nodes.into(),
            layouts: vec![TableLayout { schema, placement }],
            releases: vec![entry_of("r1", ReleaseState::Current), entry_of("r2", ReleaseState::Ready)],
            traffic: [(n("m"), traffic)].into(),
        }
    }

    #[test]
    fn a_map_and_its_assignments_come_back_whole() {
        let map = map();
        assert_eq!(ClusterMap::try_from(v1::ClusterMap::from(&map)), Ok(map.clone()));
        let mut assignment = map.assignment(&NodeId(Name::new("a-1").unwrap()));
        let rows = Quota { rows_per_second: Some(7), bytes_per_second: None };
        let bytes = Quota { rows_per_second: None, bytes_per_second: Some(9) };
        assignment.term = 3;
        assignment.quotas.default = Some(rows);
        assignment.quotas.tenants.insert(Name::new("ads").unwrap(), bytes);
        assert_eq!(assignment.tables[0].partitions, [PartitionIndex(0), PartitionIndex(1)]);
        assert_eq!(Assignment::try_from(v1::Assignment::from(&assignment)), Ok(assignment));
    }

    #[test]
    fn a_composite_schema_comes_back_and_a_broken_one_is_refused() {
        let composite = Composite { seeds: vec![u64::MAX, 0, 7], combine: Combine::Concat };
        let schema = TableSchema {
            keying: Keying::Dense,
            default_row: vec![0.5; 12],
            composite: Some(composite),
            ..map().layouts[0].schema.clone()
        };
        let whole = v1::TableSchema::from(&schema);
        assert_eq!(TableSchema::try_from(whole.clone()), Ok(schema));
        let broken = |change: fn(&mut v1::Composite)| {
            let mut schema = whole.clone();
            change(schema.composite.as_mut().unwrap());
            TableSchema::try_from(schema).unwrap_err()
        };
        assert_eq!(broken(|c| c.combine = 3), WireError::Value { field: "combine", value: 3 });
        let cut = |c: &mut v1::Composite| c.seeds = c.seeds.slice(..23);
        assert_eq!(broken(cut), WireError::Packed { field: "seeds", bytes: 23 });
        let none = |c: &mut v1::Composite| c.seeds.clear();
        let WireError::Schema(ManifestError::Schema { problems, .. }) = broken(none) else {
            panic!("another error")
        };
        assert!(problems[0].contains("0 hashes") && problems[1].contains("default row"), "{problems:?}");
        let hashed = v1::TableSchema { keying: Keying::Hashed.code(), ..whole };
        assert!(matches!(TableSchema::try_from(hashed), Err(WireError::Schema(_))));
    }

    #[test]
    fn a_broken_map_is_refused_and_the_field_named() {
        let whole = v1::ClusterMap::from(&map());
        let broken = |change: fn(&mut v1::ClusterMap)| {
            let mut map = whole.clone();
            change(&mut map);
            ClusterMap::try_from(map).unwrap_err()
        };
        assert_eq!(broken(|m| m.layouts[0].schema = None), WireError::Missing("schema"));
        assert!(matches!(broken(|m| m.nodes[0].node = "a/b".into()), WireError::Name { field: "node", .. }));
        assert!(matches!(broken(|m| m.releases[0].state = 0), WireError::Missing("state")));
        assert!(matches!(
            broken(|m| {
                m.layouts[0].placement[0].nodes.pop();
            }),
            WireError::Map(_)
        ));
        assert!(matches!(broken(|m| m.layouts[0].placement[0].nodes[1] = "c".into()), WireError::Map(_)));
        assert!(matches!(broken(|m| m.traffic[0].shadows[0].sample = 0), WireError::Map(_)));
        assert!(matches!(broken(|m| m.traffic[0].arms[0].release = "r1".into()), WireError::Map(_)));
        assert!(matches!(broken(|m| m.traffic[0].arms[0].release = "r3".into()), WireError::Map(_)));
        let schema =
            |m: &mut v1::ClusterMap, f: fn(&mut v1::TableSchema)| f(m.layouts[0].schema.as_mut().unwrap());
        let mut bad = whole.clone();
        schema(&mut bad, |s| s.partitions = 3);
        assert!(matches!(ClusterMap::try_from(bad), Err(WireError::Value { field: "partitions", value: 3 })));
        let mut bad = whole;
        schema(&mut bad, |s| s.row_format = 99);
        assert!(matches!(ClusterMap::try_from(bad), Err(WireError::Value { field: "row_format", .. })));
    }
}
