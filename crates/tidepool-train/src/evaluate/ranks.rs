//! How many examples have which score, in bounded memory: counts by the leading bits of the score.
//!
//! A score falls into the bin of its sign, its exponent and the first ten bits of its mantissa, so that scores in one bin
//! are within a thousandth of each other, however small they are. Bins lie on pages, and only pages that something falls
//! on are there: probabilities fall on some eighty of them.

use std::collections::BTreeMap;

/// Bits of a score that are not looked at.
const LOW_BITS: u32 = 13;
/// Bins of a page, as a power of two.
const PAGE_BITS: u32 = 8;
const PAGE: usize = 1 << PAGE_BITS;

/// Counts of examples with and without the label, by score.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranks {
    pages: BTreeMap<u32, Box<[[u32; 2]; PAGE]>>,
}

/// What fell into one bin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bin {
    /// The middle of its scores.
    pub(super) score: f64,
    pub(super) negatives: f64,
    pub(super) positives: f64,
}

impl Ranks {
    /// Counts an example.
    pub(super) fn add(&mut self, score: f32, label: bool) {
        let bin = ordered(score) >> LOW_BITS;
        let page = self.pages.entry(bin >> PAGE_BITS).or_insert_with(|| Box::new([[0; 2]; PAGE]));
        let count = &mut page[bin as usize % PAGE][usize::from(label)];
        *count = count.saturating_add(1);
    }

    /// Adds what `other` has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        for (number, page) in &other.pages {
            let own = self.pages.entry(*number).or_insert_with(|| Box::new([[0; 2]; PAGE]));
            for (own, other) in own.iter_mut().zip(page.iter()) {
                own.iter_mut().zip(other).for_each(|(own, other)| *own = own.saturating_add(*other));
            }
        }
    }

    /// The bins that are not empty, lowest score first, less what `without` has counted, which is a part of this.
    pub(super) fn bins<'a>(&'a self, without: Option<&'a Self>) -> impl Iterator<Item = Bin> + 'a {
        self.pages.iter().flat_map(move |(number, page)| {
            let less = without.and_then(|without| without.pages.get(number));
            page.iter().enumerate().filter_map(move |(at, counts)| {
                let less = less.map_or([0; 2], |less| less[at]);
                let [negatives, positives] =
                    [0, 1].map(|label| f64::from(counts[label].saturating_sub(less[label])));
                let bin = number << PAGE_BITS | at as u32;
                (negatives + positives > 0.0).then(|| Bin { score: middle(bin), negatives, positives })
            })
        })
    }
}

/// Bits that are in the order of the scores. The two zeros are one.
fn ordered(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The middle of the scores of a bin.
fn middle(bin: u32) -> f64 {
    let at = |ordered: u32| {
        let bits = if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered };
        f64::from(f32::from_bits(bits))
    };
    let first = bin << LOW_BITS;
    let (low, high) = (at(first), at(first | ((1 << LOW_BITS) - 1)));
    // 0 and 1 are said by models that are sure: they are the lowest of their bins.
    if low == 0.0 || low == 1.0 { low } else { (low + high) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_keep_their_order_and_their_size() {
        let scores = [-3.5, -1e-30, 0.0, 1e-38, 1e-7, 0.001, 0.25, 0.2503, 0.999, 1.0, 7e9];
        let mut ranks = Ranks::default();
        for (at, score) in scores.into_iter().enumerate() {
            ranks.add(score, at % 2 == 0);
        }
        ranks.add(-0.0, false);
        let bins: Vec<Bin> = ranks.bins(None).collect();
        assert_eq!(bins.len(), scores.len());
        for (bin, score) in bins.iter().zip(scores.map(f64::from)) {
            assert!((bin.score - score).abs() <= 1e-3 * score.abs(), "{bin:?} is not {score}");
        }
        assert_eq!((bins[2].negatives, bins[2].positives), (1.0, 1.0), "the two zeros");
    }

    #[test]
    fn a_part_is_taken_away_again() {
        let (mut all, mut part) = (Ranks::default(), Ranks::default());
        all.add(0.5, true);
        all.add(0.25, false);
        part.add(0.5, true);
        part.add(2.0, false);
        all.merge(&part);
        let left: Vec<_> = all.bins(Some(&part)).map(|bin| (bin.negatives, bin.positives)).collect();
        assert_eq!(left, [(1.0, 0.0), (0.0, 1.0)]);
    }
}
