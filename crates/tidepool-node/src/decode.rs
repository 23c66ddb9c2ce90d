//! A lookup request as it came, checked whole before any work is done, and read in place after that.
//!
//! Nothing is copied per id: a [`Feature`] keeps the bytes of the message and decodes numbers as they are
//! asked for. Whoever holds one may rely on what was checked: every member is the position of an id, or there
//! are none and each id is one; bag lengths add up, weights are finite and one per member.

use bytes::Bytes;
use tidepool_proto::{
    pack::{Packed, unpack},
    v1,
};
use tidepool_types::{Name, PartitionCount, TableVersion};

use crate::error::{LookupError, Problem};

/// One feature of a request.
#[derive(Debug)]
pub(crate) struct Feature {
    /// Its position in the request.
    pub(crate) index: usize,
    pub(crate) table_version: TableVersion,
    /// The layout that the caller split its ids by.
    pub(crate) partitions: PartitionCount,
    ids: Bytes,
    pub(crate) form: Form,
}

/// What is asked of the ids of a feature.
#[derive(Debug)]
pub(crate) enum Form {
    /// One stored row per id.
    Gather,
    /// One sum per bag.
    Pool(Bags),
}

/// Which ids are summed into which vector.
#[derive(Debug)]
pub(crate) struct Bags {
    members: Bytes,
    lengths: Bytes,
    weights: Bytes,
}

impl Feature {
    pub(crate) const fn id_count(&self) -> usize {
        self.ids.len() / u64::BYTES
    }

    /// How much work it is, in rows.
    pub(crate) fn rows(&self) -> u64 {
        let (members, bags) = match &self.form {
            Form::Gather => (0, 0),
            Form::Pool(bags) => (bags.members.len() / u32::BYTES, bags.bag_count()),
        };
        rows_of(self.id_count(), members, bags)
    }

    /// Packed, as they came.
    pub(crate) fn ids(&self) -> &[[u8; u64::BYTES]] {
        self.ids.as_chunks().0
    }
}

impl Bags {
    /// Packed, as they came.
    pub(crate) fn packed(&self) -> tidepool_table::Bags<'_> {
        tidepool_table::Bags {
            members: (!self.members.is_empty()).then(|| self.members.as_chunks().0),
            lengths: self.lengths.as_chunks().0,
            weights: self.weighted().then(|| self.weights.as_chunks().0),
        }
    }

    pub(crate) const fn bag_count(&self) -> usize {
        self.lengths.len() / u32::BYTES
    }

    pub(crate) const fn weighted(&self) -> bool {
        !self.weights.is_empty()
    }
}

/// How much work a request is, in rows, seen from the lengths of its fields alone. A feature counts as one row
/// too.
pub(crate) fn rows_asked(request: &v1::LookupRequest) -> u64 {
    let count = |bytes: &Bytes, width| bytes.len() / width;
    let rows = |f: &v1::FeatureRequest| {
        let (ids, members) = (count(&f.ids, u64::BYTES), count(&f.members, u32::BYTES));
        1 + rows_of(ids, members, count(&f.bag_lengths, u32::BYTES))
    };
    request.features.iter().map(rows).sum()
}

/// How much work so many ids, members and bags are: one row for each id that is looked up and added, one for each
/// time that an id is added again, and one for each bag.
fn rows_of(ids: usize, members: usize, bags: usize) -> u64 {
    (ids.max(members) + bags) as u64
}

/// Checks every feature, in the order of the request.
///
/// # Errors
/// [`LookupError::TooManyIds`], or [`LookupError::Invalid`] for the first field that cannot be.
pub(crate) fn decode(features: Vec<v1::FeatureRequest>, max_ids: u64) -> Result<Vec<Feature>, LookupError> {
    let ids = features.iter().map(|f| (f.ids.len() / u64::BYTES) as u64).sum();
    if ids > max_ids {
        return Err(LookupError::TooManyIds { ids, limit: max_ids });
    }
    features.into_iter().enumerate().map(|(index, feature)| decode_feature(index, feature)).collect()
}

fn decode_feature(index: usize, from: v1::FeatureRequest) -> Result<Feature, LookupError> {
    let nameless = |problem| LookupError::Invalid { feature: index, table: "no table".into(), problem };
    let table_version = from.table_version.ok_or_else(|| nameless(Problem::NoTableVersion))?;
    let name = |field, text| Name::new(text).map_err(|e| nameless(Problem::name(field, e)));
    let table_version = TableVersion {
        table: name("table", table_version.table)?,
        version: name("version", table_version.version)?,
    };
    let form = from.wire_form;
    let bags = Bags { members: from.members, lengths: from.bag_lengths, weights: from.weights };
    match check_fields(&from.ids, from.partitions, form, &bags) {
        Ok(partitions) => {
            let form = match v1::WireForm::try_from(form) {
                Ok(v1::WireForm::Pool) => Form::Pool(bags),
                _ => Form::Gather,
            };
            Ok(Feature { index, table_version, partitions, ids: from.ids, form })
        }
        Err(problem) => {
            Err(LookupError::Invalid { feature: index, table: table_version.to_string(), problem })
        }
    }
}

fn check_fields(ids: &[u8], partitions: u32, form: i32, bags: &Bags) -> Result<PartitionCount, Problem> {
    let partitions = PartitionCount::new(partitions).ok_or(Problem::Partitions(partitions))?;
    let ids = checked::<u64>("ids", ids)?.len();
    match v1::WireForm::try_from(form) {
        Ok(v1::WireForm::Gather) => {
            let fields =
                [("members", &bags.members), ("bag_lengths", &bags.lengths), ("weights", &bags.weights)];
            match fields.iter().find(|(_, bytes)| !bytes.is_empty()) {
                Some((field, _)) => Err(Problem::PoolOnly { field }),
                None => Ok(partitions),
            }
        }
        Ok(v1::WireForm::Pool) => check_bags(ids, bags).map(|()| partitions),
        _ => Err(Problem::WireForm(form)),
    }
}

fn check_bags(ids: usize, bags: &Bags) -> Result<(), Problem> {
    let members = checked::<u32>("members", &bags.members)?;
    // Empty stands for each id once.
    let count = if members.len() == 0 { ids } else { members.len() };
    let sum = checked::<u32>("bag_lengths", &bags.lengths)?.map(u64::from).sum();
    if sum != count as u64 {
        return Err(Problem::BagLengths { sum, members: count });
    }
    let outside = |&(_, member): &(usize, u32)| member as usize >= ids;
    if let Some((at, member)) = members.enumerate().find(outside) {
        return Err(Problem::Member { at, member, ids });
    }
    let mut weights = checked::<f32>("weights", &bags.weights)?;
    if weights.len() != 0 && weights.len() != count {
        return Err(Problem::WeightCount { weights: weights.len(), members: count });
    }
    match weights.clone().position(|w| !w.is_finite()) {
        Some(at) => Err(Problem::Weight { at, value: weights.nth(at).unwrap_or(f32::NAN) }),
        None => Ok(()),
    }
}

fn checked<'a, T: Packed + 'a>(
    field: &'static str,
    bytes: &'a [u8],
) -> Result<impl ExactSizeIterator<Item = T> + Clone + 'a, Problem> {
    unpack(bytes).ok_or(Problem::Packed { field, bytes: bytes.len(), width: T::BYTES })
}

#[cfg(test)]
mod tests {
    use tidepool_proto::pack::pack;

    use super::*;

    fn good() -> v1::FeatureRequest {
        v1::FeatureRequest {
            table_version: Some(v1::TableVersion { table: "user".into(), version: "v1".into() }),
            partitions: 4,
            wire_form: v1::WireForm::Pool.into(),
            ids: pack(&[7u64, 8, 9]),
            members: pack(&[0u32, 2, 2, 1]),
            bag_lengths: pack(&[3u32, 0, 1]),
            weights: pack(&[1.0f32, 0.5, -2.0, 0.0]),
        }
    }

    fn problem(change: impl FnOnce(&mut v1::FeatureRequest)) -> Problem {
        let mut bad = good();
        change(&mut bad);
        match decode(vec![good(), bad], 100) {
            Err(LookupError::Invalid { feature: 1, problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_good_feature_is_read_in_place() {
        let features = decode(vec![good()], 3).unwrap();
        let feature = &features[0];
        assert_eq!(feature.ids(), [7u64, 8, 9].map(u64::to_le_bytes));
        let Form::Pool(bags) = &feature.form else { panic!("not pooled") };
        let packed = bags.packed();
        assert_eq!(packed.members.unwrap(), [0u32, 2, 2, 1].map(u32::to_le_bytes));
        assert_eq!(packed.lengths, [3u32, 0, 1].map(u32::to_le_bytes));
        assert_eq!(packed.weights.unwrap(), [1.0f32, 0.5, -2.0, 0.0].map(f32::to_le_bytes));
        assert_eq!((feature.id_count(), bags.bag_count()), (3, 3));
    }

    #[test]
    fn every_field_is_checked_and_named() {
        assert_eq!(problem(|f| f.table_version = None), Problem::NoTableVersion);
        let rename = |f: &mut v1::FeatureRequest, name: String| {
            f.table_version.as_mut().unwrap().version = name;
        };
        assert!(matches!(problem(|f| rename(f, "../up".into())), Problem::Name { field: "version", .. }));
        for partitions in [0, 3, 1 << 17] {
            assert_eq!(problem(|f| f.partitions = partitions), Problem::Partitions(partitions));
        }
        for form in [0, 3, -1] {
            assert_eq!(problem(|f| f.wire_form = form), Problem::WireForm(form));
        }
        let cut = |field, width| Problem::Packed { field, bytes: width * 2 - 1, width };
        assert_eq!(problem(|f| f.ids = vec![0; 15].into()), cut("ids", 8));
        assert_eq!(problem(|f| f.members = vec![0; 7].into()), cut("members", 4));
        assert_eq!(problem(|f| f.bag_lengths = vec![0; 7].into()), cut("bag_lengths", 4));
        assert_eq!(problem(|f| f.weights = vec![0; 7].into()), cut("weights", 4));
        assert_eq!(
            problem(|f| f.members = pack(&[0u32, 3, 0, 0])),
            Problem::Member { at: 1, member: 3, ids: 3 }
        );
        assert_eq!(problem(|f| f.bag_lengths = pack(&[3u32, 2])), Problem::BagLengths { sum: 5, members: 4 });
        assert_eq!(problem(|f| f.weights = pack(&[1.0f32])), Problem::WeightCount { weights: 1, members: 4 });
        assert_eq!(
            problem(|f| f.weights = pack(&[1.0, 2.0, f32::INFINITY, 0.0])),
            Problem::Weight { at: 2, value: f32::INFINITY }
        );
        assert!(matches!(problem(|f| f.weights = pack(&[f32::NAN; 4])), Problem::Weight { at: 0, .. }));
        let gather = |f: &mut v1::FeatureRequest| f.wire_form = v1::WireForm::Gather.into();
        assert_eq!(problem(gather), Problem::PoolOnly { field: "members" });
    }

    #[test]
    fn without_members_each_id_is_one_once() {
        let each_once = |f: &mut v1::FeatureRequest| {
            (f.members, f.bag_lengths, f.weights) = (Bytes::new(), pack(&[1u32, 0, 2]), pack(&[1.0f32; 3]));
        };
        let mut feature = good();
        each_once(&mut feature);
        let features = decode(vec![feature], 3).unwrap();
        let Form::Pool(bags) = &features[0].form else { panic!("not pooled") };
        assert_eq!(bags.packed().members, None);
        let but = |change: fn(&mut v1::FeatureRequest)| {
            problem(|f| {
                each_once(f);
                change(f);
            })
        };
        assert_eq!(but(|f| f.bag_lengths = pack(&[2u32])), Problem::BagLengths { sum: 2, members: 3 });
        assert_eq!(but(|f| f.bag_lengths = Bytes::new()), Problem::BagLengths { sum: 0, members: 3 });
        assert_eq!(but(|f| f.ids = Bytes::new()), Problem::BagLengths { sum: 3, members: 0 });
        assert_eq!(but(|f| f.weights = pack(&[1.0f32])), Problem::WeightCount { weights: 1, members: 3 });
    }

    #[test]
    fn a_bag_of_two_to_the_31_is_refused_by_its_length_alone() {
        let huge = problem(|f| f.bag_lengths = pack(&[1u32 << 31, 1 << 31, 4]));
        assert_eq!(huge, Problem::BagLengths { sum: (1 << 32) + 4, members: 4 });
    }

    #[test]
    fn too_many_ids_in_all_features_together() {
        let error = decode(vec![good(), good()], 5).unwrap_err();
        assert_eq!(error, LookupError::TooManyIds { ids: 6, limit: 5 });
    }

    #[test]
    fn all_that_is_work_is_asked_for() {
        let of = |features| rows_asked(&v1::LookupRequest { features, ..Default::default() });
        // A feature, 3 ids of which one is added twice, and 3 bags.
        assert_eq!(of(vec![good()]), 8);
        assert_eq!(of(vec![v1::FeatureRequest::default(); 3]), 3, "features cost something without ids too");
        assert_eq!(of(Vec::new()), 0);
    }

    #[test]
    fn a_giant_name_makes_a_short_message() {
        let giant = problem(|f| f.table_version.as_mut().unwrap().table = "x".repeat(1 << 20));
        assert!(giant.to_string().len() < 200, "{giant}");
    }
}
