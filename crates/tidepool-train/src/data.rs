//! The data set that training sees: users, items, and labelled events split by time.

use std::collections::BTreeMap;

use crate::model::{
    FEATURE_AGE, FEATURE_GENDER, FEATURE_GENRES, FEATURE_ITEM, FEATURE_OCCUPATION, FEATURE_USER,
};

/// Users, items and their events, cut into what is learnt from and what is measured with.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// `movielens` or `synthetic`.
    pub name: String,
    /// Every user.
    pub users: Vec<User>,
    /// Every item.
    pub items: Vec<Item>,
    /// Genres; the id of a genre is its place here.
    pub genres: Vec<String>,
    /// Occupations; the id of an occupation is its place here.
    pub occupations: Vec<String>,
    /// What is learnt from.
    pub train: Vec<Event>,
    /// What decides when to stop.
    pub validation: Vec<Event>,
    /// What is measured with, once.
    pub test: Vec<Event>,
}

/// A user as the model knows them.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// The id in the `user` table.
    pub id: u64,
    /// In years.
    pub age: f32,
    /// 1 for female, 0 for male: the two that the data knows.
    pub gender: f32,
    /// Place in [`Dataset::occupations`].
    pub occupation: u32,
}

/// An item as the model knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The id in the `item` table.
    pub id: u64,
    /// For people.
    pub title: String,
    /// When it came out, if the data says.
    pub year: Option<u16>,
    /// Places in [`Dataset::genres`].
    pub genres: Vec<u32>,
}

/// A user saw an item, and liked it or not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Place in [`Dataset::users`].
    pub user: u32,
    /// Place in [`Dataset::items`].
    pub item: u32,
    /// Seconds since 1970.
    pub time: i64,
    /// Whether they liked it.
    pub label: bool,
    /// The probability that the label was drawn with, where the data was made with a known one.
    pub true_probability: Option<f32>,
    /// What a second head learns: whether they liked it best of all. Only what was liked can be.
    pub conversion: bool,
    /// The probability that it was, given that it was liked, where the data was made with a known one.
    pub true_conversion: Option<f32>,
}

/// What a request says of one feature.
#[derive(Clone, Debug, PartialEq)]
pub enum FeatureValue {
    /// A bag of ids.
    Ids(Vec<u64>),
    /// Numbers, as many as the input is wide.
    Numbers(Vec<f32>),
}

/// The held-out events of one user, as a rank request: their features once, one candidate per event.
#[derive(Clone, Debug, PartialEq)]
pub struct TestRequest {
    /// Who.
    pub user_id: u64,
    /// The user-side features, by the names in `model.toml`.
    pub user_features: Vec<(&'static str, FeatureValue)>,
    /// One per held-out event, in order of time.
    pub candidates: Vec<TestCandidate>,
}

/// One held-out event.
#[derive(Clone, Debug, PartialEq)]
pub struct TestCandidate {
    /// Which item.
    pub item_id: u64,
    /// Its title.
    pub title: String,
    /// The candidate-side features, by the names in `model.toml`.
    pub features: Vec<(&'static str, FeatureValue)>,
    /// Whether the user liked it: what the ranker must not be told.
    pub label: bool,
    /// Whether they liked it best of all.
    pub conversion: bool,
}

impl Dataset {
    /// Cuts each user's events by time: the last fifth (rounded down) is test, the tenth before it validation, the
    /// rest train. Events of one second are ordered by item id, so the cut does not depend on the file's order.
    pub(crate) fn split(&mut self, mut events: Vec<Event>) {
        events.sort_by_key(|e| (e.user, e.time, self.items[e.item as usize].id));
        for of_user in events.chunk_by(|a, b| a.user == b.user) {
            let (test, validation) = (of_user.len() / 5, of_user.len() / 10);
            let (rest, test) = of_user.split_at(of_user.len() - test);
            let (train, validation) = rest.split_at(rest.len() - validation);
            self.train.extend_from_slice(train);
            self.validation.extend_from_slice(validation);
            self.test.extend_from_slice(test);
        }
    }

    /// The features of a user, by the names in `model.toml`.
    #[must_use]
    pub fn user_features(&self, user: &User) -> Vec<(&'static str, FeatureValue)> {
        vec![
            (FEATURE_USER, FeatureValue::Ids(vec![user.id])),
            (FEATURE_OCCUPATION, FeatureValue::Ids(vec![u64::from(user.occupation)])),
            (FEATURE_AGE, FeatureValue::Numbers(vec![user.age])),
            (FEATURE_GENDER, FeatureValue::Numbers(vec![user.gender])),
        ]
    }

    /// The features of an item, by the names in `model.toml`.
    #[must_use]
    pub fn item_features(&self, item: &Item) -> Vec<(&'static str, FeatureValue)> {
        vec![
            (FEATURE_ITEM, FeatureValue::Ids(vec![item.id])),
            (FEATURE_GENRES, FeatureValue::Ids(item.genres.iter().map(|&g| u64::from(g)).collect())),
        ]
    }

    /// The test slice as rank requests: one per user who has held-out events, in order of user.
    #[must_use]
    pub fn test_requests(&self) -> Vec<TestRequest> {
        let mut by_user: BTreeMap<u32, Vec<&Event>> = BTreeMap::new();
        for event in &self.test {
            by_user.entry(event.user).or_default().push(event);
        }
        by_user
            .into_iter()
            .map(|(user, events)| {
                let user = &self.users[user as usize];
                let candidates = events.into_iter().map(|event| {
                    let item = &self.items[event.item as usize];
                    TestCandidate {
                        item_id: item.id,
                        title: item.title.clone(),
                        features: self.item_features(item),
                        label: event.label,
                        conversion: event.conversion,
                    }
                });
                TestRequest {
                    user_id: user.id,
                    user_features: self.user_features(user),
                    candidates: candidates.collect(),
                }
            })
            .collect()
    }
}
