//! Which release answers a request: the one that it names, or the one that has the bucket of its key.

use std::fmt::Write;

use tidepool_cluster::bucket_of;
use tidepool_proto::v1;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::request::{RankFeature, RankRequest};

/// How a request came to its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It is the current one.
    Current,
    /// It has the bucket of the request.
    Arm,
    /// The request names it.
    Named,
    /// The release that has the bucket is not loaded here, so the current one answers.
    Fallback,
    /// The model was rolled back here, and not by the cluster map.
    RolledBack,
}

impl Choice {
    /// Every choice.
    pub const ALL: [Self; 5] = [Self::Current, Self::Arm, Self::Named, Self::Fallback, Self::RolledBack];

    /// The word for JSON and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Arm => "arm",
            Self::Named => "named",
            Self::Fallback => "fallback",
            Self::RolledBack => "rolled_back",
        }
    }

    /// The word of a message's choice; empty when it has none.
    pub(crate) const fn word(from: v1::Choice) -> &'static str {
        match from {
            v1::Choice::Unspecified => "",
            v1::Choice::Current => Self::Current.as_str(),
            v1::Choice::Arm => Self::Arm.as_str(),
            v1::Choice::Named => Self::Named.as_str(),
            v1::Choice::Fallback => Self::Fallback.as_str(),
            v1::Choice::RolledBack => Self::RolledBack.as_str(),
        }
    }
}

impl From<Choice> for v1::Choice {
    fn from(from: Choice) -> Self {
        match from {
            Choice::Current => Self::Current,
            Choice::Arm => Self::Arm,
            Choice::Named => Self::Named,
            Choice::Fallback => Self::Fallback,
            Choice::RolledBack => Self::RolledBack,
        }
    }
}

impl RankRequest {
    /// The bucket of the request: that of its key, or of what stands for one.
    #[must_use]
    pub fn bucket(&self) -> u32 {
        if self.routing_key.is_empty() {
            bucket_of(&self.model, &self.implied_key())
        } else {
            bucket_of(&self.model, &self.routing_key)
        }
    }

    /// A hash of the same key that says nothing of the bucket: requests of an arm are told apart by it.
    pub(crate) fn key_hash(&self) -> u64 {
        if self.routing_key.is_empty() {
            xxh3_64(self.implied_key().as_bytes())
        } else {
            xxh3_64(self.routing_key.as_bytes())
        }
    }

    /// What stands for the key of a request that has none: a hash of the ids of its user features. A request
    /// without any is hashed whole, so that such requests spread too.
    #[must_use]
    pub fn implied_key(&self) -> String {
        let mut user: Vec<_> = self.user.iter().filter(|feature| feature.names_someone()).collect();
        if user.is_empty() {
            user = self.user.iter().chain(&self.candidate).collect();
        }
        // The order in which features come says nothing of the user.
        user.sort_by(|a, b| a.name.cmp(&b.name));
        let mut hash = Xxh3::new();
        user.into_iter().for_each(|feature| add(&mut hash, feature));
        let mut key = String::new();
        // Writing to a string cannot fail.
        let _ = write!(key, "{:016x}", hash.digest());
        key
    }
}

impl RankFeature {
    /// Whether it says who or what, and not only how much.
    fn names_someone(&self) -> bool {
        !self.ids.is_empty() || !self.texts.is_empty()
    }
}

fn add(hash: &mut Xxh3, feature: &RankFeature) {
    hash.update(feature.name.as_bytes());
    hash.update(&[0]);
    hash.update(&(feature.ids.len() as u64).to_le_bytes());
    feature.ids.iter().for_each(|id| hash.update(&id.to_le_bytes()));
    for text in &feature.texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    if !feature.names_someone() {
        feature.values.iter().for_each(|value| hash.update(&value.to_le_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(name: &str, ids: &[u64]) -> RankFeature {
        RankFeature { name: name.into(), ids: ids.to_vec(), ..RankFeature::default() }
    }

    fn values(name: &str, values: &[f32]) -> RankFeature {
        RankFeature { name: name.into(), values: values.to_vec(), ..RankFeature::default() }
    }

    fn of(user: Vec<RankFeature>) -> RankRequest {
        RankRequest { model: "m".into(), user, candidate: vec![ids("item", &[1])], ..RankRequest::default() }
    }

    #[test]
    fn a_key_decides_alone_and_ids_of_the_user_stand_for_one() {
        let user = of(vec![ids("user", &[7]), ids("seen", &[1, 2]), values("hour", &[0.5])]);
        let keyed = |request: &RankRequest| RankRequest { routing_key: "u-7".into(), ..request.clone() };
        assert_eq!(keyed(&user).bucket(), bucket_of("m", "u-7"));
        assert_eq!(keyed(&user).key_hash(), keyed(&of(Vec::new())).key_hash());
        assert_ne!(keyed(&user).key_hash(), user.key_hash());
        assert_eq!(keyed(&of(Vec::new())).bucket(), keyed(&user).bucket());

        let key = user.implied_key();
        assert_eq!(user.bucket(), bucket_of("m", &key));
        let same = [
            of(vec![ids("seen", &[1, 2]), values("hour", &[9.0]), ids("user", &[7])]),
            RankRequest { candidate: vec![ids("item", &[2, 3])], ..user.clone() },
        ];
        assert!(same.iter().all(|other| other.implied_key() == key), "neither order, hour nor candidates");
        let others = [
            of(vec![ids("user", &[8]), ids("seen", &[1, 2])]),
            of(vec![ids("user", &[7, 1]), ids("seen", &[2])]),
            of(vec![ids("user", &[7])]),
        ];
        assert!(others.iter().all(|other| other.implied_key() != key));
    }

    #[test]
    fn requests_without_ids_of_a_user_spread_too() {
        let hour = |hour| of(vec![values("hour", &[hour])]).implied_key();
        assert_ne!(hour(1.0), hour(2.0));
        let nobody = of(Vec::new());
        let other = RankRequest { candidate: vec![ids("item", &[2])], ..nobody.clone() };
        assert_ne!(nobody.implied_key(), other.implied_key());
    }
}
