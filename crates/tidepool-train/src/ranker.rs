//! Training of tables and ranker together, from random tables or from pretrained ones, until the validation slice says
//! stop.

use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut1, s};
use tidepool_types::Keying;

use crate::{
    data::{Dataset, Event, Item},
    embedding::Embedding,
    error::TrainError,
    metrics::Quality,
    model::{AgeScale, ENTITY_DIM, GENRE_DIM, OCCUPATION_DIM, TrainedModel, TrainedTable, columns},
    net::{Adam, RankerNet, Shape, log_loss_of_logits},
    options::RankerOptions,
    rng::Rng,
};

/// The scale of random rows at the start.
pub(crate) const START_SCALE: f32 = 0.05;

/// Everything that is trained.
#[derive(Clone, Debug)]
pub(crate) struct Parameters {
    pub(crate) user: Embedding,
    pub(crate) item: Embedding,
    genre: Embedding,
    occupation: Embedding,
    net: RankerNet,
}

/// Which rows the train slice has: only they are trained, served, and counted in a default row.
pub(crate) struct Seen {
    pub(crate) user: Vec<bool>,
    pub(crate) item: Vec<bool>,
    pub(crate) genre: Vec<bool>,
    pub(crate) occupation: Vec<bool>,
}

impl Seen {
    pub(crate) fn of(data: &Dataset) -> Self {
        let mut seen = Self {
            user: vec![false; data.users.len()],
            item: vec![false; data.items.len()],
            genre: vec![false; data.genres.len()],
            occupation: vec![false; data.occupations.len()],
        };
        for event in &data.train {
            let (user, item) = (event.user as usize, event.item as usize);
            seen.user[user] = true;
            seen.item[item] = true;
            seen.occupation[data.users[user].occupation as usize] = true;
            data.items[item].genres.iter().for_each(|&genre| seen.genre[genre as usize] = true);
        }
        seen
    }
}

impl Parameters {
    /// Random tables and weights.
    pub(crate) fn random(data: &Dataset, options: &RankerOptions, seed: u64) -> Self {
        let mut rng = Rng::fork(seed, 10);
        let mut table = |rows, dim| Embedding::new(rows, dim, START_SCALE, &mut rng);
        let (user, item) = (table(data.users.len(), ENTITY_DIM), table(data.items.len(), ENTITY_DIM));
        let (genre, occupation) =
            (table(data.genres.len(), GENRE_DIM), table(data.occupations.len(), OCCUPATION_DIM));
        let shape = Shape {
            width: columns::WIDTH,
            paired: ENTITY_DIM,
            cross_layers: options.cross_layers,
            hidden: options.hidden.clone(),
        };
        Self { user, item, genre, occupation, net: RankerNet::new(&shape, &mut rng) }
    }
}

/// Where the vectors of one example come from; `None` is the default row.
struct Example<'a> {
    user: Option<u32>,
    item: Option<u32>,
    occupation: u32,
    genres: &'a [u32],
}

/// What stands for ids that are left out, for rows that were never seen, and for bags that are empty.
pub(crate) struct Defaults {
    pub(crate) user: Array1<f32>,
    pub(crate) item: Array1<f32>,
    pub(crate) genre: Array1<f32>,
}

/// A run over the train slice.
pub(crate) struct Trainer<'a> {
    data: &'a Dataset,
    options: &'a RankerOptions,
    seen: Seen,
    age: AgeScale,
    params: Parameters,
    rng: Rng,
    step: u32,
    entity_rate: f32,
}

impl<'a> Trainer<'a> {
    /// Starts from `params`; `entity_rate` is the learning rate of the user and item tables.
    pub(crate) fn new(
        data: &'a Dataset,
        options: &'a RankerOptions,
        params: Parameters,
        entity_rate: f32,
        seed: u64,
    ) -> Self {
        Self {
            data,
            options,
            seen: Seen::of(data),
            age: AgeScale::of(data),
            params,
            rng: Rng::fork(seed, 30),
            step: 0,
            entity_rate,
        }
    }

    /// Trains until the validation log loss has not fallen for `patience` epochs, and gives the model of the best
    /// epoch. Calls `done` after each epoch with its number and the validation quality.
    pub(crate) fn run(mut self, done: &mut dyn FnMut(usize, Quality)) -> Result<TrainedModel, TrainError> {
        let labels: Vec<bool> = self.data.validation.iter().map(|e| e.label).collect();
        let mut best: Option<(f64, usize, TrainedModel)> = None;
        let mut order = self.data.train.clone();
        for epoch in 1..=self.options.max_epochs {
            self.rng.shuffle(&mut order);
            let defaults = Defaults {
                user: self.params.user.mean_row(&self.seen.user),
                item: self.params.item.mean_row(&self.seen.item),
                genre: self.params.genre.mean_row(&self.seen.genre),
            };
            for batch in order.chunks(self.options.batch) {
                self.add_gradients(batch, &defaults);
                self.step();
            }
            let model = self.model();
            let quality = Quality::of(&model.predict(self.data, &self.data.validation), &labels);
            if !quality.log_loss.is_finite() {
                return Err(TrainError::Diverged { phase: "ranker", epoch });
            }
            done(epoch, quality);
            match &best {
                Some((loss, at, _)) if quality.log_loss >= *loss => {
                    if epoch - at >= self.options.patience {
                        break;
                    }
                }
                _ => best = Some((quality.log_loss, epoch, model)),
            }
        }
        Ok(best.map_or_else(|| self.model(), |(_, _, model)| model))
    }

    /// Adds the gradients of a batch to all parameters, and gives its mean loss.
    fn add_gradients(&mut self, events: &[Event], defaults: &Defaults) -> f64 {
        let data = self.data;
        let mut x = Array2::zeros((events.len(), columns::WIDTH));
        let mut examples = Vec::with_capacity(events.len());
        let missing = f64::from(self.options.missing_ids);
        let rounded = f64::from(self.options.rounded_rows);
        for (mut row, event) in x.rows_mut().into_iter().zip(events) {
            let user = &data.users[event.user as usize];
            let Item { genres, .. } = &data.items[event.item as usize];
            let mut keep = |place| if self.rng.uniform() < missing { None } else { Some(place) };
            let example = Example {
                user: keep(event.user),
                item: keep(event.item),
                occupation: user.occupation,
                genres,
            };
            row.slice_mut(s![columns::USER]).assign(&row_or(&self.params.user, example.user, &defaults.user));
            row.slice_mut(s![columns::ITEM]).assign(&row_or(&self.params.item, example.item, &defaults.item));
            let mut bag = row.slice_mut(s![columns::GENRES]);
            if genres.is_empty() {
                bag.assign(&defaults.genre);
            }
            let share = 1.0 / genres.len().max(1) as f32;
            genres.iter().for_each(|&g| bag.scaled_add(share, &self.params.genre.rows.row(g as usize)));
            for entity in [columns::USER, columns::ITEM] {
                if self.rng.uniform() < rounded {
                    round_to_codes(row.slice_mut(s![entity]));
                }
            }
            row.slice_mut(s![columns::OCCUPATION])
                .assign(&self.params.occupation.rows.row(user.occupation as usize));
            row[columns::AGE] = self.age.apply(user.age);
            row[columns::GENDER] = user.gender;
            examples.push(example);
        }
        let labels: Vec<f32> = events.iter().map(|e| f32::from(u8::from(e.label))).collect();
        let pass = self.params.net.forward(x, Some((self.options.dropout, &mut self.rng)));
        let (loss, d_logits) = log_loss_of_logits(&pass.logits, &labels);
        let d_x = self.params.net.backward(&pass, d_logits);
        for (d, example) in d_x.rows().into_iter().zip(&examples) {
            self.scatter(d, example);
        }
        loss
    }

    /// One step of the optimiser on everything that has a gradient.
    fn step(&mut self) {
        self.step += 1;
        let RankerOptions { learning_rate, table_learning_rate, weight_decay, table_weight_decay, .. } =
            *self.options;
        self.params.net.step(&Adam::at(self.step, learning_rate, weight_decay));
        let entity = Adam::at(self.step, self.entity_rate, table_weight_decay);
        self.params.user.step(&entity);
        self.params.item.step(&entity);
        let small = Adam::at(self.step, table_learning_rate, table_weight_decay);
        self.params.genre.step(&small);
        self.params.occupation.step(&small);
    }

    /// Hands the gradient of one input row to the table rows that it was made from.
    fn scatter(&mut self, d: ArrayView1<'_, f32>, example: &Example<'_>) {
        if let Some(user) = example.user {
            self.params.user.add_gradient(user, 1.0, d.slice(s![columns::USER]));
        }
        if let Some(item) = example.item {
            self.params.item.add_gradient(item, 1.0, d.slice(s![columns::ITEM]));
        }
        let share = 1.0 / example.genres.len().max(1) as f32;
        for &genre in example.genres {
            self.params.genre.add_gradient(genre, share, d.slice(s![columns::GENRES]));
        }
        self.params.occupation.add_gradient(example.occupation, 1.0, d.slice(s![columns::OCCUPATION]));
    }

    /// The model as it stands: rows that were never seen are left out of hashed tables, and are the default row in
    /// dense ones.
    fn model(&self) -> TrainedModel {
        let (data, seen, params) = (self.data, &self.seen, &self.params);
        let user_ids: Vec<u64> = data.users.iter().map(|user| user.id).collect();
        let item_ids: Vec<u64> = data.items.iter().map(|item| item.id).collect();
        TrainedModel {
            tables: [
                hashed("user", &params.user, &user_ids, &seen.user),
                hashed("item", &params.item, &item_ids, &seen.item),
                dense("genre", &params.genre, &seen.genre),
                dense("occupation", &params.occupation, &seen.occupation),
            ],
            net: params.net.clone(),
            age: self.age,
        }
    }
}

/// Rounds a row to sixteen even steps between its extremes: what 4-bit storage leaves of it, but for the last digits.
pub(crate) fn round_to_codes(mut row: ArrayViewMut1<'_, f32>) {
    let extremes = (f32::INFINITY, f32::NEG_INFINITY);
    let (low, high) = row.iter().fold(extremes, |(low, high), &v| (low.min(v), high.max(v)));
    let step = (high - low) / 15.0;
    if step > 0.0 {
        row.mapv_inplace(|v| low + ((v - low) / step).round() * step);
    }
}

/// The row at `place`, or the default row.
pub(crate) fn row_or<'a>(
    table: &'a Embedding,
    place: Option<u32>,
    default: &'a Array1<f32>,
) -> ArrayView1<'a, f32> {
    place.map_or_else(|| default.view(), |place| table.rows.row(place as usize))
}

/// The rows that were seen, by the ids of their places; the others have none.
pub(crate) fn hashed(name: &str, table: &Embedding, ids: &[u64], seen: &[bool]) -> TrainedTable {
    let kept = || (0..ids.len()).filter(|&at| seen[at]);
    TrainedTable {
        name: name.into(),
        keying: Keying::Hashed,
        dim: table.rows.ncols(),
        ids: kept().map(|at| ids[at]).collect(),
        rows: kept().flat_map(|at| table.rows.row(at)).copied().collect(),
        default_row: table.mean_row(seen).to_vec(),
    }
}

/// All rows, by their places; the default row for those that were not seen.
pub(crate) fn dense(name: &str, table: &Embedding, seen: &[bool]) -> TrainedTable {
    let default = table.mean_row(seen);
    let rows = seen
        .iter()
        .zip(table.rows.rows())
        .flat_map(|(&seen, row)| if seen { row.to_vec() } else { default.to_vec() });
    TrainedTable {
        name: name.into(),
        keying: Keying::Dense,
        dim: table.rows.ncols(),
        ids: (0..seen.len() as u64).collect(),
        rows: rows.collect(),
        default_row: default.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::assert_gradient,
        options::TrainOptions,
        synthetic::{SyntheticSize, synthetic},
    };

    #[test]
    fn gradients_of_all_tables_are_those_of_finite_differences() {
        let data = synthetic(1, SyntheticSize { users: 6, items: 30, events: 60 });
        let options = RankerOptions {
            dropout: 0.0,
            missing_ids: 0.0,
            rounded_rows: 0.0,
            ..TrainOptions::default().ranker
        };
        let mut params = Parameters::random(&data, &options, 5);
        // Rows of ordinary size, so that gradients stand clear of rounding.
        for table in [&mut params.user, &mut params.item, &mut params.genre, &mut params.occupation] {
            table.rows *= 8.0;
        }
        let none = Defaults {
            user: Array1::zeros(ENTITY_DIM),
            item: Array1::zeros(ENTITY_DIM),
            genre: Array1::zeros(GENRE_DIM),
        };
        let batch = &data.train[..12];
        let run = |params: &Parameters| {
            let mut trainer = Trainer::new(&data, &options, params.clone(), 0.0, 1);
            let loss = trainer.add_gradients(batch, &none);
            (loss, trainer.params)
        };
        let (_, after) = run(&params);
        type Pick = fn(&mut Parameters) -> &mut Embedding;
        let tables: [(&str, Pick, &Embedding); 4] = [
            ("user", |p| &mut p.user, &after.user),
            ("item", |p| &mut p.item, &after.item),
            ("genre", |p| &mut p.genre, &after.genre),
            ("occupation", |p| &mut p.occupation, &after.occupation),
        ];
        for (name, pick, with_gradient) in tables {
            let start = pick(&mut params).rows.clone();
            let mut moved = params.clone();
            assert_gradient(name, &start, with_gradient.gradient(), |rows| {
                pick(&mut moved).rows = rows.clone();
                run(&moved).0
            });
        }
    }

    #[test]
    fn rounding_leaves_sixteen_values_and_keeps_the_extremes() {
        let mut rng = Rng::new(4);
        let row = Array1::from_shape_simple_fn(200, || rng.normal());
        let mut rounded = row.clone();
        round_to_codes(rounded.view_mut());
        let mut values: Vec<f32> = rounded.to_vec();
        values.sort_by(f32::total_cmp);
        values.dedup_by(|a, b| (*a - *b).abs() < 1e-4);
        assert_eq!(values.len(), 16);
        let step = (values[15] - values[0]) / 15.0;
        for (before, after) in row.iter().zip(&rounded) {
            assert!((before - after).abs() <= step / 2.0 + 1e-5, "{before} {after}");
        }
        let mut flat = Array1::from_elem(4, 0.25);
        round_to_codes(flat.view_mut());
        assert_eq!(flat, Array1::from_elem(4, 0.25));
    }
}
