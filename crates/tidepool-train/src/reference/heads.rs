//! What the heads learn. With two, as ESMM does it: the second head is never asked about events without a click alone;
//! the product of both is trained on all events against "clicked and converted", so that conversion is learnt over
//! everything that will be ranked, and not over the clicks that an earlier system happened to bring about.

use ndarray::{Array1, Array2, Axis};

use crate::{
    data::Event,
    net::{log_loss_of_logits, sigmoid},
};

/// The mean loss of a batch in nats, and the gradient of each head's logits, `[examples, 1]`.
pub(super) fn loss(logits: &[&Array2<f32>], events: &[Event]) -> (f64, Vec<Array2<f32>>) {
    let Some((clicks, others)) = logits.split_first() else { return (0.0, Vec::new()) };
    let clicked: Vec<f32> = events.iter().map(|e| f32::from(u8::from(e.label))).collect();
    let (mut sum, gradient) = log_loss_of_logits(&clicks.column(0).to_owned(), &clicked);
    let mut gradients = vec![gradient];
    if let Some(conversions) = others.first() {
        let (loss, d_clicks, d_conversions) = loss_of_product(clicks, conversions, events);
        sum += loss;
        gradients[0] += &d_clicks;
        gradients.push(d_conversions);
    }
    (sum, gradients.into_iter().map(|gradient| gradient.insert_axis(Axis(1))).collect())
}

/// The log loss of `p = sigmoid(a) sigmoid(b)` and its gradients: with `d ln p / da = 1 - sigmoid(a)`, that is
/// `(1 - sigmoid(a)) (p - y) / (1 - p)`.
fn loss_of_product(a: &Array2<f32>, b: &Array2<f32>, events: &[Event]) -> (f64, Array1<f32>, Array1<f32>) {
    let share = 1.0 / events.len() as f32;
    let mut sum = 0.0;
    let (mut d_a, mut d_b) = (Array1::zeros(events.len()), Array1::zeros(events.len()));
    for (at, event) in events.iter().enumerate() {
        let (a, b) = (a[(at, 0)], b[(at, 0)]);
        let (of_a, of_b) = (sigmoid(a), sigmoid(b));
        let p = of_a * of_b;
        // 1 - p without the rounding of a difference between two numbers near one.
        let rest = (sigmoid(-a) + of_a * sigmoid(-b)).max(f32::MIN_POSITIVE);
        let slope = if event.conversion {
            sum += -log_sigmoid(a) - log_sigmoid(b);
            -1.0
        } else {
            sum -= f64::from(rest).ln();
            p / rest
        };
        d_a[at] = share * slope * sigmoid(-a);
        d_b[at] = share * slope * sigmoid(-b);
    }
    (sum * f64::from(share), d_a, d_b)
}

/// `ln sigmoid(z)`, for large negative `z` too.
fn log_sigmoid(z: f32) -> f64 {
    f64::from(z.min(0.0)) - f64::from(-z.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::assert_gradient, rng::Rng};

    fn events() -> Vec<Event> {
        let event = |at: u32| Event {
            user: 0,
            item: 0,
            time: 0,
            label: !at.is_multiple_of(3),
            true_probability: None,
            conversion: at % 3 == 1,
            true_conversion: None,
        };
        (0..9).map(event).collect()
    }

    #[test]
    fn gradients_of_both_heads_are_those_of_finite_differences() {
        let mut rng = Rng::new(8);
        let mut column = || Array2::from_shape_simple_fn((9, 1), || 1.5 * rng.normal());
        let (a, b) = (column(), column());
        let events = events();
        let (_, gradients) = loss(&[&a, &b], &events);
        assert_gradient("click", &a, &gradients[0], |a| loss(&[a, &b], &events).0);
        assert_gradient("conversion", &b, &gradients[1], |b| loss(&[&a, b], &events).0);
        let (one_head, _) = loss(&[&a], &events);
        assert!(one_head < loss(&[&a, &b], &events).0);
    }

    #[test]
    fn the_loss_of_huge_logits_is_finite() {
        for z in [90.0, -90.0] {
            let logits = Array2::from_elem((9, 1), z);
            let (loss, gradients) = loss(&[&logits, &logits], &events());
            assert!(loss.is_finite() && gradients.iter().flatten().all(|d| d.is_finite()), "{loss}");
        }
    }
}
