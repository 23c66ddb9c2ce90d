//! Contrastive pretraining of user and item tables: which items did a user like, among the items that others liked?
//! In-batch sampled softmax over cosine similarity, corrected for popularity (logQ); a candidate of the same user or
//! of the same item is not a negative.

use ndarray::{Array1, Array2, Axis, Zip, linalg::general_mat_mul};

use crate::{
    data::Dataset, embedding::Embedding, error::TrainError, net::Adam, options::PretrainOptions, rng::Rng,
};

/// Normalised rows of a batch, and the lengths they had.
struct Normalised {
    units: Array2<f32>,
    lengths: Array1<f32>,
}

impl Normalised {
    fn of(rows: &Array2<f32>) -> Self {
        let lengths = rows.map_axis(Axis(1), |row| row.dot(&row).sqrt().max(1e-6));
        let units = rows / &lengths.view().insert_axis(Axis(1));
        Self { units, lengths }
    }

    /// The gradient of the rows, from that of the unit vectors: what points along a row only changes its length.
    fn backward(&self, mut d_units: Array2<f32>) -> Array2<f32> {
        Zip::from(d_units.rows_mut()).and(self.units.rows()).and(&self.lengths).for_each(
            |mut d, unit, &length| {
                let along = d.dot(&unit);
                d.scaled_add(-along, &unit);
                d /= length;
            },
        );
        d_units
    }
}

/// One batch of liked pairs.
struct Batch<'a> {
    users: &'a [u32],
    items: &'a [u32],
    /// ln of each pair's item's share of all liked events.
    log_share: &'a [f32],
}

/// The loss of a batch and the gradients of its user rows and item rows, `[pairs, dim]` each.
///
/// Pair i's loss is `-ln(e^l_ii / sum_k e^l_ik)` with `l_ik = cos(u_i, v_k) / temperature - ln p(item k)`, over k = i
/// and every k of another user and another item. The mean over pairs is taken.
fn loss(
    batch: &Batch<'_>,
    users: &Array2<f32>,
    items: &Array2<f32>,
    temperature: f32,
) -> (f64, Array2<f32>, Array2<f32>) {
    let n = batch.users.len();
    let (users, items) = (Normalised::of(users), Normalised::of(items));
    let mut logits = Array2::zeros((n, n));
    general_mat_mul(1.0 / temperature, &users.units, &items.units.t(), 0.0, &mut logits);
    let mut sum = 0.0f64;
    let share = 1.0 / n as f32;
    for (i, mut row) in logits.rows_mut().into_iter().enumerate() {
        let (user, item) = (batch.users[i], batch.items[i]);
        let mut largest = f32::NEG_INFINITY;
        Zip::indexed(&mut row).for_each(|k, logit| {
            let is_negative = batch.users[k] != user && batch.items[k] != item;
            *logit = if is_negative || k == i { *logit - batch.log_share[k] } else { f32::NEG_INFINITY };
            largest = largest.max(*logit);
        });
        let own = row[i];
        row.mapv_inplace(|logit| (logit - largest).exp());
        let total = row.sum();
        sum += f64::from(largest - own) + f64::from(total).ln();
        // From here on the row is the gradient of its logits: softmax less one at its own pair.
        row *= share / total;
        row[i] -= share;
    }
    let d_logits = logits;
    let mut d_users = Array2::zeros(users.units.dim());
    general_mat_mul(1.0 / temperature, &d_logits, &items.units, 0.0, &mut d_users);
    let mut d_items = Array2::zeros(items.units.dim());
    general_mat_mul(1.0 / temperature, &d_logits.t(), &users.units, 0.0, &mut d_items);
    (sum / n as f64, users.backward(d_users), items.backward(d_items))
}

/// Trains the rows of users and items on the liked events of the train slice, and calls `done` after each epoch with
/// its number and mean loss.
pub(crate) fn pretrain(
    data: &Dataset,
    options: &PretrainOptions,
    seed: u64,
    users: &mut Embedding,
    items: &mut Embedding,
    done: &mut dyn FnMut(usize, f64),
) -> Result<(), TrainError> {
    let mut liked: Vec<(u32, u32)> =
        data.train.iter().filter(|e| e.label).map(|e| (e.user, e.item)).collect();
    let mut counts = vec![0.0f32; data.items.len()];
    liked.iter().for_each(|&(_, item)| counts[item as usize] += 1.0);
    let total = liked.len() as f32;
    let mut rng = Rng::fork(seed, 20);
    let mut step = 0;
    let steps = options.epochs * liked.len().div_ceil(options.batch);
    for epoch in 1..=options.epochs {
        rng.shuffle(&mut liked);
        let (mut sum, mut batches) = (0.0, 0.0);
        for pairs in liked.chunks(options.batch).filter(|pairs| pairs.len() > 1) {
            let (of_users, of_items): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
            let log_share: Vec<f32> =
                of_items.iter().map(|&item| (counts[item as usize] / total).ln()).collect();
            let places = |of: &[u32]| of.iter().map(|&row| row as usize).collect::<Vec<_>>();
            let user_rows = users.rows.select(Axis(0), &places(&of_users));
            let item_rows = items.rows.select(Axis(0), &places(&of_items));
            let batch = Batch { users: &of_users, items: &of_items, log_share: &log_share };
            let (loss, d_users, d_items) = loss(&batch, &user_rows, &item_rows, options.temperature);
            for (at, &(user, item)) in pairs.iter().enumerate() {
                users.add_gradient(user, 1.0, d_users.row(at));
                items.add_gradient(item, 1.0, d_items.row(at));
            }
            step += 1;
            let left = 1.0 - step as f32 / steps as f32;
            let adam = Adam::at(step as u32, options.learning_rate * left.max(0.05), options.weight_decay);
            users.step(&adam);
            items.step(&adam);
            sum += loss;
            batches += 1.0;
        }
        if !sum.is_finite() {
            return Err(TrainError::Diverged { phase: "pretrain", epoch });
        }
        done(epoch, sum / batches);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::assert_gradient;

    /// The formula, one pair at a time, in f64.
    fn oracle(batch: &Batch<'_>, users: &Array2<f32>, items: &Array2<f32>, temperature: f64) -> f64 {
        let (users, items) = (users.mapv(f64::from), items.mapv(f64::from));
        let n = batch.users.len();
        let logit = |i: usize, k: usize| {
            let (u, v) = (users.row(i), items.row(k));
            u.dot(&v) / (u.dot(&u) * v.dot(&v)).sqrt() / temperature - f64::from(batch.log_share[k])
        };
        let of_pair = |i: usize| {
            let negatives = (0..n)
                .filter(|&k| batch.users[k] != batch.users[i] && batch.items[k] != batch.items[i])
                .map(|k| logit(i, k).exp())
                .sum::<f64>();
            -(logit(i, i).exp() / (logit(i, i).exp() + negatives)).ln()
        };
        (0..n).map(of_pair).sum::<f64>() / n as f64
    }

    #[test]
    fn the_loss_is_the_formula_and_its_gradients_those_of_finite_differences() {
        let mut rng = Rng::new(2);
        let n = 8;
        let (of_users, of_items) = ([0, 1, 2, 3, 0, 4, 5, 1], [0, 1, 2, 2, 3, 4, 0, 5]);
        let log_share: Vec<f32> = of_items.iter().map(|&i| (0.05 + 0.03 * i as f32).ln()).collect();
        let batch = Batch { users: &of_users, items: &of_items, log_share: &log_share };
        let users = Array2::from_shape_simple_fn((n, 5), || rng.normal());
        let items = Array2::from_shape_simple_fn((n, 5), || rng.normal());
        let (value, d_users, d_items) = loss(&batch, &users, &items, 0.4);
        let expected = oracle(&batch, &users, &items, f64::from(0.4f32));
        assert!((value - expected).abs() < 1e-5, "{value} {expected}");
        assert_gradient("users", &users, &d_users, |u| loss(&batch, u, &items, 0.4).0);
        assert_gradient("items", &items, &d_items, |v| loss(&batch, &users, v, 0.4).0);
    }

    #[test]
    fn a_pair_of_the_same_user_or_item_is_not_a_negative() {
        // All pairs are of one user: nothing is left to be told apart, whatever the vectors.
        let mut rng = Rng::new(3);
        let users = Array2::from_shape_simple_fn((4, 3), || rng.normal());
        let items = Array2::from_shape_simple_fn((4, 3), || rng.normal());
        let log_share = [0.1f32.ln(); 4];
        for (of_users, of_items) in [([7; 4], [0, 1, 2, 3]), ([0, 1, 2, 3], [7; 4])] {
            let batch = Batch { users: &of_users, items: &of_items, log_share: &log_share };
            let (value, d_users, _) = loss(&batch, &users, &items, 0.1);
            assert!(value.abs() < 1e-6 && d_users.iter().all(|d| d.abs() < 1e-6), "{value}");
        }
    }
}
