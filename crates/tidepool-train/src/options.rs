//! What can be chosen about a training run. The defaults are those that the demo's promises are kept with.

/// A whole run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Decides every random number.
    pub seed: u64,
    /// Contrastive pretraining of user and item tables.
    pub pretrain: PretrainOptions,
    /// Training of tables and ranker together.
    pub ranker: RankerOptions,
    /// Resamples of the paired bootstrap.
    pub resamples: u32,
}

/// Contrastive pretraining.
#[derive(Clone, Debug, PartialEq)]
pub struct PretrainOptions {
    /// Passes over the liked events.
    pub epochs: usize,
    /// Pairs per batch; every pair's item is a candidate for all others.
    pub batch: usize,
    /// Cosines are divided by it.
    pub temperature: f32,
    /// At the start; it falls to a twentieth.
    pub learning_rate: f32,
    /// Share of a weight lost per step and unit of learning rate.
    pub weight_decay: f32,
    /// Length that the mean row of each table gets before the ranker starts on it.
    pub row_length: f32,
}

/// Training of tables and ranker.
#[derive(Clone, Debug, PartialEq)]
pub struct RankerOptions {
    /// The most passes over the train slice.
    pub max_epochs: usize,
    /// Passes without a better validation log loss, after which training stops.
    pub patience: usize,
    /// Examples per batch.
    pub batch: usize,
    /// Of the dense model.
    pub learning_rate: f32,
    /// Of tables that start at random.
    pub table_learning_rate: f32,
    /// Of tables that were pretrained.
    pub pretrained_learning_rate: f32,
    /// Of the dense model: share of a weight lost per step and unit of learning rate.
    pub weight_decay: f32,
    /// The same of table rows.
    pub table_weight_decay: f32,
    /// Share of hidden outputs that are zeroed in training.
    pub dropout: f32,
    /// Share of user and item ids that are replaced by the default row in training, so that the model knows what to
    /// do with ids it has never seen.
    pub missing_ids: f32,
    /// Share of user and item rows that a training example sees rounded to 4 bits, as they will be stored; the gradient
    /// goes to the row itself.
    pub rounded_rows: f32,
    /// Cross layers.
    pub cross_layers: usize,
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            pretrain: PretrainOptions {
                epochs: 15,
                batch: 512,
                temperature: 0.2,
                learning_rate: 0.01,
                weight_decay: 0.01,
                row_length: 0.25,
            },
            ranker: RankerOptions {
                max_epochs: 20,
                patience: 3,
                batch: 256,
                learning_rate: 1e-3,
                table_learning_rate: 1e-3,
                pretrained_learning_rate: 3e-4,
                weight_decay: 0.5,
                table_weight_decay: 0.05,
                dropout: 0.5,
                missing_ids: 0.05,
                rounded_rows: 1.0,
                cross_layers: 2,
                hidden: vec![64, 32],
            },
            resamples: 400,
        }
    }
}
