//! What comes back from the device, read.

use tidepool_types::Score;

use super::layout::{SelectLayout, Wanted};

/// What a request gets back.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    /// The first value that is no finite number; then the rest says nothing.
    pub not_finite: Option<NotFinite>,
    /// Position among the request's rows and what it is ranked by, best first; equal ones in the order of the rows.
    pub ranked: Vec<(u32, f32)>,
    /// The outputs that were asked for, calibrated, each in the order of `ranked`.
    pub outputs: Vec<Vec<f32>>,
    /// Values of the first, the last but few, and some rows between: of the first output that the formula speaks of,
    /// where there is one, else what candidates are ranked by. As many as there are rows, up to the layout's samples.
    pub samples: Vec<f32>,
}

/// A value that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite {
    /// The output; `None`: what candidates are ranked by.
    pub output: Option<usize>,
    /// Which candidate, from 0.
    pub candidate: u32,
    /// The value.
    pub value: f32,
    /// Whether candidates cannot be ranked for it; else it is one of an output that was asked for.
    pub of_ranking: bool,
}

/// The rows of `count` of which samples are taken.
pub(crate) fn sampled(count: u32, samples: u32) -> impl Iterator<Item = u32> {
    let step = count.div_ceil(samples.max(1)).max(1);
    (0..count.min(samples.saturating_mul(step))).step_by(step as usize)
}

impl SelectLayout {
    /// Reads an answer: how many resident rows were lost until then, and what each request gets.
    ///
    /// # Panics
    /// When it has not [`answer_bytes`](Self::answer_bytes).
    #[must_use]
    pub fn read(&self, wanted: &Wanted, answer: &[u8]) -> (u32, Vec<Selected>) {
        assert_eq!(answer.len(), self.answer_bytes(wanted), "bytes of an answer");
        let word = |at: usize| {
            let bytes = &answer[4 * at..4 * at + 4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let float = |at: usize| f32::from_bits(word(at));
        let formula = self.selection().formula();
        let (requests, chosen) = (wanted.rows.len(), wanted.columns.len());
        let watched = formula.len() + chosen + 1;
        let samples = self.room().samples as usize;
        let samples_at = 2 + 2 * requests * watched;
        let winners_at = samples_at + requests * samples;
        let total = wanted.winners() as usize;
        let of_utility = self.selection().spec().score == Score::Utility;
        let mut first = 0;
        let one = |request: usize| {
            let bad = |column: usize, of_ranking: bool| {
                let at = 2 + 2 * (request * watched + column);
                let output = match column {
                    column if column == watched - 1 => None,
                    column if column < formula.len() => Some(formula[column]),
                    column => Some(wanted.columns[column - formula.len()]),
                };
                (word(at) != u32::MAX).then(|| NotFinite {
                    output,
                    candidate: word(at),
                    value: float(at + 1),
                    of_ranking,
                })
            };
            let ranking = bad(watched - 1, true).map(|score| {
                // The output that the formula has its NaN from says more than the formula does.
                let of_formula = (0..if of_utility { formula.len() } else { 0 }).find_map(|at| bad(at, true));
                of_formula.unwrap_or(score)
            });
            let of_chosen =
                || wanted.chosen[request].iter().find_map(|column| bad(formula.len() + column, false));
            let range = first..first + wanted.winners[request] as usize;
            first = range.end;
            let ranked = range.clone().map(|at| (word(winners_at + at), float(winners_at + total + at)));
            let output = |column: &usize| {
                range.clone().map(|at| float(winners_at + (2 + column) * total + at)).collect()
            };
            Selected {
                not_finite: ranking.or_else(of_chosen),
                ranked: ranked.collect(),
                outputs: wanted.chosen[request].iter().map(output).collect(),
                samples: (0..sampled(wanted.rows[request], self.room().samples).count())
                    .map(|at| float(samples_at + request * samples + at))
                    .collect(),
            }
        };
        (word(0), (0..requests).map(one).collect())
    }
}
