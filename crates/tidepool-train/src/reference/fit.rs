//! Training of tables and tape together, until the validation slice says stop.

use ndarray::{Array2, s};

use super::{
    Built, ReferenceOptions, RowDims, build,
    features::{Feature, Inputs},
    heads,
    model::{ReferenceModel, Served},
    run::log_loss_of_heads,
};
use crate::{
    data::{Dataset, Event},
    embedding::Embedding,
    error::TrainError,
    model::{AgeScale, TrainedTable},
    net::Adam,
    ranker::{Defaults, START_SCALE, Seen, dense, hashed, round_to_codes, row_or},
    rng::Rng,
    tape::{Tape, Value},
};

/// The table that the item tower's vectors become.
pub(super) const ITEM_TOWER: &str = "item_tower";

/// Everything that is trained.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub(super) user: Embedding,
    pub(super) item: Embedding,
    pub(super) genre: Embedding,
    pub(super) occupation: Embedding,
}

impl Tables {
    /// Random rows.
    pub(super) fn random(data: &Dataset, options: &ReferenceOptions) -> Self {
        let mut rng = Rng::fork(options.training.seed, 10);
        let dims = RowDims::of(options.architecture, options.size);
        let mut table = |rows, dim| Embedding::new(rows, dim, START_SCALE, &mut rng);
        Self {
            user: table(data.users.len(), dims.entity),
            item: table(data.items.len(), dims.entity),
            genre: table(data.genres.len(), dims.genre),
            occupation: table(data.occupations.len(), dims.occupation),
        }
    }
}

/// A run over the train slice.
pub(super) struct Fit<'a> {
    data: &'a Dataset,
    options: &'a ReferenceOptions,
    seen: Seen,
    tables: Tables,
    tape: Tape,
    built: Built,
    rng: Rng,
    step: u32,
}

impl<'a> Fit<'a> {
    /// Starts from these tables and a random dense model.
    pub(super) fn new(data: &'a Dataset, options: &'a ReferenceOptions, tables: Tables) -> Self {
        let seed = options.training.seed;
        let mut tape = Tape::default();
        let dims = RowDims::of(options.architecture, options.size);
        let inputs = Inputs::of(&mut tape, dims, AgeScale::of(data));
        let built = build(options, &mut tape, &inputs, &mut Rng::fork(seed, 40));
        let rng = Rng::fork(seed, 41);
        Self { data, options, seen: Seen::of(data), tables, tape, built, rng, step: 0 }
    }

    /// Trains until the validation log loss of all heads together has not fallen for `patience` epochs, and gives the
    /// model of the best epoch. Calls `done` after each epoch with its number and that loss.
    pub(super) fn run(mut self, done: &mut dyn FnMut(usize, f64)) -> Result<ReferenceModel, TrainError> {
        let options = &self.options.training.ranker;
        let mut best: Option<(f64, usize, ReferenceModel)> = None;
        let mut order = self.data.train.clone();
        for epoch in 1..=options.max_epochs {
            self.rng.shuffle(&mut order);
            let defaults = self.defaults();
            for batch in order.chunks(options.batch) {
                self.add_gradients(batch, &defaults);
                self.step();
            }
            let model = self.model();
            let scores = model.predict(self.data, &self.data.validation);
            let loss = log_loss_of_heads(&scores, &self.data.validation);
            if !loss.is_finite() {
                return Err(TrainError::Diverged { phase: "reference model", epoch });
            }
            done(epoch, loss);
            match &best {
                Some((lowest, at, _)) if loss >= *lowest => {
                    if epoch - at >= options.patience {
                        break;
                    }
                }
                _ => best = Some((loss, epoch, model)),
            }
        }
        Ok(best.map_or_else(|| self.model(), |(_, _, model)| model))
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            user: self.tables.user.mean_row(&self.seen.user),
            item: self.tables.item.mean_row(&self.seen.item),
            genre: self.tables.genre.mean_row(&self.seen.genre),
        }
    }

    /// Adds the gradients of a batch to all parameters and rows, and gives its mean loss.
    fn add_gradients(&mut self, events: &[Event], defaults: &Defaults) -> f64 {
        let options = &self.options.training.ranker;
        let (missing, rounded) = (f64::from(options.missing_ids), f64::from(options.rounded_rows));
        let mut keep = |place: u32| if self.rng.uniform() < missing { None } else { Some(place as usize) };
        let kept: Vec<[Option<usize>; 2]> =
            events.iter().map(|event| [keep(event.user), keep(event.item)]).collect();
        let mut inputs = self.inputs(events, &kept, defaults);
        for entity in [Feature::User, Feature::Item] {
            for mut row in inputs[entity as usize].rows_mut() {
                if self.rng.uniform() < rounded {
                    round_to_codes(row.slice_mut(s![..]));
                }
            }
        }
        let pass = self.tape.forward(inputs, Some(&mut self.rng));
        let logits: Vec<&Array2<f32>> = self.built.logits.iter().map(|&head| pass.value(head)).collect();
        let (loss, gradients) = heads::loss(&logits, events);
        let of_heads = self.built.logits.iter().copied().zip(gradients).collect();
        let gradients = self.tape.backward(&pass, of_heads);
        self.scatter(events, &kept, &gradients);
        loss
    }

    /// What the tape takes, `[events, width]` of each feature, where these user and item rows are kept.
    fn inputs(&self, events: &[Event], kept: &[[Option<usize>; 2]], defaults: &Defaults) -> Vec<Array2<f32>> {
        let dims = RowDims::of(self.options.architecture, self.options.size);
        let mut inputs =
            Feature::ALL.map(|feature| Array2::<f32>::zeros((events.len(), feature.width(dims))));
        let [users, items, genres, occupations, ages, genders] = &mut inputs;
        for (at, (event, [user, item])) in events.iter().zip(kept).enumerate() {
            let place = |place: &Option<usize>| place.map(|place| place as u32);
            users.row_mut(at).assign(&row_or(&self.tables.user, place(user), &defaults.user));
            items.row_mut(at).assign(&row_or(&self.tables.item, place(item), &defaults.item));
            let bag = &self.data.items[event.item as usize].genres;
            if bag.is_empty() {
                genres.row_mut(at).assign(&defaults.genre);
            }
            let share = 1.0 / bag.len().max(1) as f32;
            for &genre in bag {
                let seen = Some(genre).filter(|&genre| self.seen.genre[genre as usize]);
                let row = row_or(&self.tables.genre, seen, &defaults.genre);
                genres.row_mut(at).scaled_add(share, &row);
            }
            let user = &self.data.users[event.user as usize];
            occupations.row_mut(at).assign(&self.tables.occupation.rows.row(user.occupation as usize));
            ages[(at, 0)] = Feature::Age.number(self.data, event);
            genders[(at, 0)] = Feature::Gender.number(self.data, event);
        }
        inputs.into()
    }

    /// Hands the gradients of the inputs to the rows that they were made from.
    fn scatter(&mut self, events: &[Event], kept: &[[Option<usize>; 2]], gradients: &[Array2<f32>]) {
        for (at, (event, [user, item])) in events.iter().zip(kept).enumerate() {
            let of = |feature: Feature| gradients[feature as usize].row(at);
            if let Some(user) = user {
                self.tables.user.add_gradient(*user as u32, 1.0, of(Feature::User));
            }
            if let Some(item) = item {
                self.tables.item.add_gradient(*item as u32, 1.0, of(Feature::Item));
            }
            let bag = &self.data.items[event.item as usize].genres;
            let share = 1.0 / bag.len().max(1) as f32;
            for &genre in bag {
                self.tables.genre.add_gradient(genre, share, of(Feature::Genres));
            }
            let occupation = self.data.users[event.user as usize].occupation;
            self.tables.occupation.add_gradient(occupation, 1.0, of(Feature::Occupation));
        }
    }

    /// One step of the optimiser on everything that has a gradient.
    fn step(&mut self) {
        self.step += 1;
        let options = &self.options.training.ranker;
        self.tape.step(&Adam::at(self.step, options.learning_rate, options.weight_decay));
        let decay = options.table_weight_decay;
        let entity = Adam::at(self.step, options.pretrained_learning_rate, decay);
        self.tables.user.step(&entity);
        self.tables.item.step(&entity);
        let small = Adam::at(self.step, options.table_learning_rate, decay);
        self.tables.genre.step(&small);
        self.tables.occupation.step(&small);
    }

    /// The model as it stands, with the rows that were seen.
    pub(super) fn model(&self) -> ReferenceModel {
        let (data, seen, tables) = (self.data, &self.seen, &self.tables);
        let user_ids: Vec<u64> = data.users.iter().map(|user| user.id).collect();
        let item_ids: Vec<u64> = data.items.iter().map(|item| item.id).collect();
        let user = hashed("user", &tables.user, &user_ids, &seen.user);
        let occupation = dense("occupation", &tables.occupation, &seen.occupation);
        let given: Vec<(Value, &str)> =
            self.built.item_vector.map(|vector| (vector, Feature::Item.name())).into_iter().collect();
        let (tape, outputs) = self.tape.part(&self.built.outputs, &given);
        let tables = match self.built.item_vector {
            Some(vector) => vec![user, self.item_tower(vector, &item_ids), occupation],
            None => {
                let item = hashed("item", &tables.item, &item_ids, &seen.item);
                vec![user, item, dense("genre", &tables.genre, &seen.genre), occupation]
            }
        };
        let inputs = tape.inputs().filter_map(|(name, _)| {
            let feature = Feature::ALL.into_iter().find(|feature| feature.name() == name)?;
            let table = match feature {
                Feature::User => Some("user"),
                Feature::Item => Some(if given.is_empty() { "item" } else { ITEM_TOWER }),
                Feature::Genres => Some("genre"),
                Feature::Occupation => Some("occupation"),
                Feature::Age | Feature::Gender => None,
            };
            Some(Served { feature, table: tables.iter().position(|t| Some(t.name.as_str()) == table) })
        });
        let inputs = inputs.collect();
        let names = [super::OUTPUT_CTR, super::OUTPUT_CVR];
        ReferenceModel {
            inputs,
            output_names: names[..outputs.len()].to_vec(),
            title: self.options.architecture.as_str(),
            per_request: false,
            tables,
            tape,
            outputs,
        }
    }

    /// The vectors of all items, also of those that were never seen: their genres are known.
    fn item_tower(&self, vector: Value, ids: &[u64]) -> TrainedTable {
        let defaults = self.defaults();
        let event = |item: u32| Event {
            user: 0,
            item,
            time: 0,
            label: false,
            true_probability: None,
            conversion: false,
            true_conversion: None,
        };
        let events: Vec<Event> = (0..ids.len() as u32).map(event).collect();
        let kept: Vec<[Option<usize>; 2]> =
            (0..ids.len()).map(|item| [Some(0), Some(item).filter(|&item| self.seen.item[item])]).collect();
        let pass = self.tape.forward(self.inputs(&events, &kept, &defaults), None);
        let table = Embedding::from_rows(pass.value(vector).clone());
        hashed(ITEM_TOWER, &table, ids, &vec![true; ids.len()])
    }
}
