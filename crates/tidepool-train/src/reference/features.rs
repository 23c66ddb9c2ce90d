//! The six features that every reference model is trained on, and what a request says of each.

use tidepool_types::{Pooling, Side};

use super::RowDims;
use crate::{
    data::{Dataset, Event},
    model::{
        AgeScale, FEATURE_AGE, FEATURE_GENDER, FEATURE_GENRES, FEATURE_ITEM, FEATURE_OCCUPATION, FEATURE_USER,
    },
    tape::{Tape, Value},
};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    User,
    Item,
    Genres,
    Occupation,
    Age,
    Gender,
}

impl Feature {
    /// In the order in which a training tape takes them.
    pub(super) const ALL: [Self; 6] =
        [Self::User, Self::Item, Self::Genres, Self::Occupation, Self::Age, Self::Gender];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::User => FEATURE_USER,
            Self::Item => FEATURE_ITEM,
            Self::Genres => FEATURE_GENRES,
            Self::Occupation => FEATURE_OCCUPATION,
            Self::Age => FEATURE_AGE,
            Self::Gender => FEATURE_GENDER,
        }
    }

    pub(super) const fn side(self) -> Side {
        match self {
            Self::Item | Self::Genres => Side::Candidate,
            Self::User | Self::Occupation | Self::Age | Self::Gender => Side::User,
        }
    }

    pub(super) const fn pooling(self) -> Pooling {
        match self {
            Self::Genres => Pooling::Mean,
            _ => Pooling::Sum,
        }
    }

    pub(super) const fn width(self, dims: RowDims) -> usize {
        match self {
            Self::User | Self::Item => dims.entity,
            Self::Genres => dims.genre,
            Self::Occupation => dims.occupation,
            Self::Age | Self::Gender => 1,
        }
    }

    /// The ids that a request for this event has; none of a number.
    pub(super) fn ids(self, data: &Dataset, event: &Event) -> Vec<u64> {
        let (user, item) = (&data.users[event.user as usize], &data.items[event.item as usize]);
        match self {
            Self::User => vec![user.id],
            Self::Item => vec![item.id],
            Self::Genres => item.genres.iter().map(|&genre| u64::from(genre)).collect(),
            Self::Occupation => vec![u64::from(user.occupation)],
            Self::Age | Self::Gender => Vec::new(),
        }
    }

    /// The number that a request for this event has; 0 of what has ids.
    pub(super) fn number(self, data: &Dataset, event: &Event) -> f32 {
        let user = &data.users[event.user as usize];
        match self {
            Self::Age => user.age,
            Self::Gender => user.gender,
            _ => 0.0,
        }
    }
}

/// Something of each feature.
#[derive(Clone, Debug)]
pub(super) struct Inputs<T> {
    pub(super) user: T,
    pub(super) item: T,
    pub(super) genres: T,
    pub(super) occupation: T,
    pub(super) age: T,
    pub(super) gender: T,
}

impl Inputs<Value> {
    /// The inputs of a training tape, in the order of [`Feature::ALL`]; ages are brought around zero.
    pub(super) fn of(tape: &mut Tape, dims: RowDims, age: AgeScale) -> Self {
        let mut input = |feature: Feature| tape.input(feature.name(), feature.width(dims));
        let [user, item, genres, occupation, years, gender] = Feature::ALL.map(&mut input);
        let age = tape.normalise(years, age.mean, age.inverse_deviation);
        Self { user, item, genres, occupation, age, gender }
    }
}
