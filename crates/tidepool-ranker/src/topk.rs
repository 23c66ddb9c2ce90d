//! The best candidates, best first.

use std::cmp::Ordering;

/// Positions and scores of the `k` best (0: all), best first; equal scores in the order of the candidates.
/// The scores must be finite, and fewer than 2^32.
pub(crate) fn best(scores: &[f32], k: u32) -> Vec<(u32, f32)> {
    let mut ranked: Vec<(u32, f32)> = (0u32..).zip(scores.iter().copied()).collect();
    let k = if k == 0 { ranked.len() } else { (k as usize).min(ranked.len()) };
    if k < ranked.len() && k > 0 {
        ranked.select_nth_unstable_by(k - 1, order);
    }
    ranked.truncate(k);
    ranked.sort_unstable_by(order);
    ranked
}

/// Compares as numbers, so that 0 and -0 are equal and stay in order.
fn order(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(scores: &[f32], k: u32) -> Vec<u32> {
        best(scores, k).into_iter().map(|(at, _)| at).collect()
    }

    #[test]
    fn best_first_and_ties_in_order() {
        let scores = [0.5, 0.9, 0.5, -1.0, 0.9, 0.0, -0.0];
        assert_eq!(positions(&scores, 0), [1, 4, 0, 2, 5, 6, 3]);
        for k in 1..=9 {
            assert_eq!(positions(&scores, k), positions(&scores, 0)[..7.min(k as usize)], "k {k}");
        }
        assert_eq!(best(&scores, 1), [(1, 0.9)]);
        assert_eq!(best(&[], 3), []);
    }

    #[test]
    fn a_selection_is_the_head_of_a_full_sort() {
        // A small multiplicative sequence with many ties.
        let scores: Vec<f32> = (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 27) as f32).collect();
        let all = best(&scores, 0);
        for k in [1, 2, 10, 500, 999, 1000, 5000] {
            assert_eq!(best(&scores, k), all[..1000.min(k as usize)]);
        }
    }
}
