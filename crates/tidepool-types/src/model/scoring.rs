//! From what a graph gives to what candidates are ranked by.

use super::{Column, ModelSpec, Score, Side};

impl ModelSpec {
    /// The values of an output, calibrated for a surface.
    #[must_use]
    pub fn calibrated(&self, output: usize, surface: &str, values: &[f32]) -> Vec<f64> {
        let curve = self.curve(output, surface);
        let one = |value: &f32| curve.map_or(f64::from(*value), |curve| curve.at(f64::from(*value)));
        values.iter().map(one).collect()
    }

    /// What each of `rows` candidates is ranked by. `outputs` are those of the contract, `[rows]` each;
    /// `utility_inputs` as well, one number each for the user side and `[rows]` for the candidates'. What is missing in
    /// them is NaN, and so is what a formula has no number for.
    #[must_use]
    pub fn scores(
        &self,
        surface: &str,
        rows: usize,
        outputs: &[Vec<f32>],
        utility_inputs: &[Vec<f32>],
    ) -> Vec<f32> {
        let calibrated = |output: usize| {
            self.calibrated(output, surface, outputs.get(output).map_or(&[][..], Vec::as_slice))
        };
        let utility = match (self.score, &self.utility) {
            (Score::Output(output), _) => return rounded(calibrated(output)),
            // A contract is only ever read whole, with its formula.
            (Score::Utility, None) => return vec![f32::NAN; rows],
            (Score::Utility, Some(utility)) => utility,
        };
        let of_request = |name: &str| {
            let at = self.utility_inputs.iter().position(|input| input.name == name)?;
            let values = utility_inputs.get(at)?.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
            Some((self.utility_inputs[at].side, values))
        };
        let columns: Vec<(Side, Vec<f64>)> = utility
            .names()
            .iter()
            .map(|name| match self.output(name) {
                Some(output) => (Side::Candidate, calibrated(output)),
                None => of_request(name).unwrap_or((Side::User, Vec::new())),
            })
            .collect();
        let columns: Vec<_> = columns
            .iter()
            .map(|(side, values)| match side {
                Side::Candidate => Column::Each(values),
                Side::User => Column::One(values.first().copied().unwrap_or(f64::NAN)),
            })
            .collect();
        rounded(utility.eval(rows, &columns))
    }
}

/// To the nearest f32, which is what an answer carries; what is too large for one is infinite.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "to the nearest f32 is what is wanted")]
pub fn rounded(values: Vec<f64>) -> Vec<f32> {
    values.into_iter().map(|value| value as f32).collect()
}
