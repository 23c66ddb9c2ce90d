//! A trained model as it is served: tables by id, and a dense model over pooled rows.

use std::collections::HashMap;

use ndarray::{Array2, ArrayViewMut1, s};
use tidepool_kernels::RowKernel;
use tidepool_types::{
    InputSource, InputSpec, Keying, ModelSpec, Name, NameError, OutputSpec, Pooling, RowFormat, Side,
};

use crate::{
    data::{Dataset, Event, Item, User},
    error::TrainError,
    graph::ranker_graph,
    net::RankerNet,
};

/// Feature and graph input: the user's id; pooled from table `user`.
pub const FEATURE_USER: &str = "user";
/// Feature and graph input: the item's id; pooled from table `item`.
pub const FEATURE_ITEM: &str = "item";
/// Feature and graph input: the item's genres; the mean of rows of table `genre`.
pub const FEATURE_GENRES: &str = "genres";
/// Feature and graph input: the user's occupation; pooled from table `occupation`.
pub const FEATURE_OCCUPATION: &str = "occupation";
/// Feature and graph input: the user's age in years.
pub const FEATURE_AGE: &str = "age";
/// Feature and graph input: 1 for female, 0 for male.
pub const FEATURE_GENDER: &str = "gender";
/// The graph's output: the probability that the user likes the item.
pub const OUTPUT_PROBABILITY: &str = "probability";

/// Dimension of user and item rows.
pub(crate) const ENTITY_DIM: usize = 32;
/// Dimension of genre rows.
pub(crate) const GENRE_DIM: usize = 16;
/// Dimension of occupation rows.
pub(crate) const OCCUPATION_DIM: usize = 8;

/// Where each input stands in the dense model's input row; also the order of inputs in `model.toml`.
pub(crate) mod columns {
    use std::ops::Range;

    use super::{ENTITY_DIM, GENRE_DIM, OCCUPATION_DIM};

    pub(crate) const USER: Range<usize> = 0..ENTITY_DIM;
    pub(crate) const ITEM: Range<usize> = USER.end..USER.end + ENTITY_DIM;
    pub(crate) const GENRES: Range<usize> = ITEM.end..ITEM.end + GENRE_DIM;
    pub(crate) const OCCUPATION: Range<usize> = GENRES.end..GENRES.end + OCCUPATION_DIM;
    pub(crate) const AGE: usize = OCCUPATION.end;
    pub(crate) const GENDER: usize = AGE + 1;
    pub(crate) const WIDTH: usize = GENDER + 1;
}

/// How ages become numbers around zero: `(age - mean) * inverse_deviation`. It is part of the graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AgeScale {
    pub(crate) mean: f32,
    pub(crate) inverse_deviation: f32,
}

impl AgeScale {
    /// Of the users of a data set.
    pub(crate) fn of(data: &Dataset) -> Self {
        let ages = || data.users.iter().map(|user| user.age);
        let n = data.users.len().max(1) as f32;
        let mean = ages().sum::<f32>() / n;
        let variance = ages().map(|age| (age - mean).powi(2)).sum::<f32>() / n;
        Self { mean, inverse_deviation: 1.0 / variance.sqrt().max(1.0) }
    }

    pub(crate) fn apply(self, age: f32) -> f32 {
        (age - self.mean) * self.inverse_deviation
    }
}

/// The rows of one table.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedTable {
    /// Its name: `user`, `item`, `genre`, `occupation`, or `item_tower`.
    pub name: String,
    /// Which ids it may have.
    pub keying: Keying,
    /// Elements of a row.
    pub dim: usize,
    /// Ids that have a row; the others get the default row.
    pub ids: Vec<u64>,
    /// `[ids, dim]`, row-major, in the order of `ids`.
    pub rows: Vec<f32>,
    /// The mean of the trained rows.
    pub default_row: Vec<f32>,
}

impl TrainedTable {
    /// Ids and rows.
    pub fn entries(&self) -> impl Iterator<Item = (u64, &[f32])> {
        self.ids.iter().copied().zip(self.rows.chunks_exact(self.dim))
    }

    /// The table as it comes back after being stored in `format`.
    pub(crate) fn stored_as(&self, format: RowFormat) -> Result<Self, TrainError> {
        let kernel = RowKernel::new(format, self.dim as u32);
        let mut stored = vec![0; kernel.row_bytes()];
        let mut rows = vec![0.0; self.rows.len()];
        for ((id, values), back) in self.entries().zip(rows.chunks_exact_mut(self.dim)) {
            kernel.quantize(values, &mut stored).map_err(|source| TrainError::Quantize {
                table: self.name.clone(),
                id,
                source,
            })?;
            kernel.dequantize(&stored, back);
        }
        Ok(Self { rows, ..self.clone() })
    }
}

/// Tables and dense model.
#[derive(Clone, Debug)]
pub struct TrainedModel {
    /// `user`, `item`, `genre`, `occupation`.
    pub tables: [TrainedTable; 4],
    pub(crate) net: RankerNet,
    pub(crate) age: AgeScale,
}

/// A table with its ids indexed, for one run of predictions.
pub(crate) struct Lookup<'a> {
    table: &'a TrainedTable,
    places: HashMap<u64, usize>,
}

impl<'a> Lookup<'a> {
    pub(crate) fn new(table: &'a TrainedTable) -> Self {
        let places = table.ids.iter().enumerate().map(|(at, &id)| (id, at)).collect();
        Self { table, places }
    }

    /// Pools a bag as serving does: a missing id adds nothing, a mean is over what was found, and a bag with
    /// nothing found is the default row.
    pub(crate) fn pool(
        &self,
        ids: impl Iterator<Item = u64>,
        pooling: Pooling,
        mut out: ArrayViewMut1<'_, f32>,
    ) {
        let dim = self.table.dim;
        let mut found = 0.0;
        out.fill(0.0);
        for at in ids.filter_map(|id| self.places.get(&id)) {
            out.iter_mut().zip(&self.table.rows[at * dim..][..dim]).for_each(|(sum, value)| *sum += value);
            found += 1.0;
        }
        if found == 0.0 {
            out.iter_mut().zip(&self.table.default_row).for_each(|(out, value)| *out = *value);
        } else if pooling == Pooling::Mean {
            out /= found;
        }
    }
}

impl TrainedModel {
    /// The tables that every such model has, in their order.
    pub const TABLES: &'static [&'static str] = &["user", "item", "genre", "occupation"];

    /// The contract of this model, called `model`.
    ///
    /// # Errors
    /// [`NameError`] when a table's name is not a name; those that training gives are.
    pub fn spec(&self, model: Name) -> Result<ModelSpec, NameError> {
        let pooled = |name: &str, side, table: usize, pooling| {
            let table = Name::new(self.tables[table].name.as_str())?;
            Ok(InputSpec::new(name, side, InputSource::Pooled { table, pooling }))
        };
        let number = |name: &str| InputSpec::new(name, Side::User, InputSource::Dense { width: 1 });
        Ok(ModelSpec::new(
            model,
            vec![
                pooled(FEATURE_USER, Side::User, 0, Pooling::Sum)?,
                pooled(FEATURE_ITEM, Side::Candidate, 1, Pooling::Sum)?,
                pooled(FEATURE_GENRES, Side::Candidate, 2, Pooling::Mean)?,
                pooled(FEATURE_OCCUPATION, Side::User, 3, Pooling::Sum)?,
                number(FEATURE_AGE),
                number(FEATURE_GENDER),
            ],
            vec![OutputSpec { name: OUTPUT_PROBABILITY.into() }],
        ))
    }

    /// The dense model as the bytes of an ONNX file: graph inputs `[batch, width]` by the names in `model.toml`,
    /// output [`OUTPUT_PROBABILITY`] `[batch, 1]`.
    #[must_use]
    pub fn onnx(&self) -> Vec<u8> {
        ranker_graph(self)
    }

    /// The model whose rows went through `format` and back; default rows are not quantized, they travel as f32.
    ///
    /// # Errors
    /// [`TrainError::Quantize`] names the row that the format cannot hold.
    pub fn stored_as(&self, format: RowFormat) -> Result<Self, TrainError> {
        let [user, item, genre, occupation] = &self.tables;
        let tables = [
            user.stored_as(format)?,
            item.stored_as(format)?,
            genre.stored_as(format)?,
            occupation.stored_as(format)?,
        ];
        Ok(Self { tables, ..self.clone() })
    }

    /// The model when every id is missing from its table.
    #[must_use]
    pub fn without_rows(&self) -> Self {
        let mut bare = self.clone();
        for table in &mut bare.tables {
            table.ids.clear();
            table.rows.clear();
        }
        bare
    }

    /// The probability that each event's user likes its item.
    #[must_use]
    pub fn predict(&self, data: &Dataset, events: &[Event]) -> Vec<f32> {
        let lookups = self.tables.each_ref().map(Lookup::new);
        events
            .chunks(1024)
            .flat_map(|chunk| {
                let mut x = Array2::zeros((chunk.len(), columns::WIDTH));
                for (row, event) in x.rows_mut().into_iter().zip(chunk) {
                    let (user, item) = (&data.users[event.user as usize], &data.items[event.item as usize]);
                    self.fill_row(&lookups, user, item, row);
                }
                self.net.probabilities(x)
            })
            .collect()
    }

    fn fill_row(&self, lookups: &[Lookup<'_>; 4], user: &User, item: &Item, mut row: ArrayViewMut1<'_, f32>) {
        let [users, items, genres, occupations] = lookups;
        let once = std::iter::once;
        users.pool(once(user.id), Pooling::Sum, row.slice_mut(s![columns::USER]));
        items.pool(once(item.id), Pooling::Sum, row.slice_mut(s![columns::ITEM]));
        let bag = item.genres.iter().map(|&genre| u64::from(genre));
        genres.pool(bag, Pooling::Mean, row.slice_mut(s![columns::GENRES]));
        occupations.pool(
            once(u64::from(user.occupation)),
            Pooling::Sum,
            row.slice_mut(s![columns::OCCUPATION]),
        );
        row[columns::AGE] = self.age.apply(user.age);
        row[columns::GENDER] = user.gender;
    }
}
