//! What is done with the graph's outputs: they are calibrated for the request's surface, become what candidates are
//! ranked by, and the best are taken. Where that was done with them before (`selected.rs`), what a request gets is the same.

use tidepool_cluster::ScoreHistogram;
use tidepool_types::{ModelSpec, Name, Score, rounded};

use crate::{
    RankError,
    batch::Results,
    counters::{counted, histogram},
    selected, topk,
};

/// What a request wants of the outputs, held against its contract.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finishing {
    /// Where the candidates are to be shown; empty: nowhere in particular.
    pub surface: String,
    /// The outputs that are returned beside the score.
    pub outputs: Vec<usize>,
    /// In the contract's order: one number of the user side, or one per candidate.
    pub utility_inputs: Vec<Vec<f32>>,
    /// How many of the best are returned; 0: all.
    pub top_k: u32,
}

/// What a request gets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finished {
    /// Position in the request and score, best first; equal scores in request order.
    pub(crate) ranked: Vec<(u32, f32)>,
    /// The outputs that were asked for, by name, in the order of `ranked`.
    pub(crate) outputs: Vec<(String, Vec<f32>)>,
    /// Some of all scores, also of those that are not returned.
    pub(crate) scores: ScoreHistogram,
}

/// Makes of what the `rows` candidates of a request have given what the request gets.
///
/// # Errors
/// [`RankError::NotFinite`] names the candidate, and the score or output that is NaN or infinite.
pub(crate) fn finish(
    of: (&ModelSpec, &Name),
    rows: usize,
    results: Results,
    finishing: &Finishing,
) -> Result<Finished, RankError> {
    match results {
        Results::Outputs(outputs) => rank(of, rows, &outputs, finishing),
        Results::Selected(parts) => selected::finish(of, rows, parts, finishing),
    }
}

/// Ranks `rows` candidates by the graph's `outputs`, `[rows]` each in the contract's order.
///
/// # Errors
/// [`RankError::NotFinite`] names the candidate, and the score or output that is NaN or infinite.
fn rank(
    (spec, release): (&ModelSpec, &Name),
    rows: usize,
    outputs: &[Vec<f32>],
    finishing: &Finishing,
) -> Result<Finished, RankError> {
    let graph = Graph { of: (spec, release), rows, raw: outputs, finishing };
    let scores = graph.scores()?;
    let ranked = topk::best(&scores, finishing.top_k);
    let mut chosen = Vec::with_capacity(finishing.outputs.len());
    for &at in &finishing.outputs {
        let (name, values) = (&spec.outputs[at].name, graph.output(at)?);
        let value = |(row, _): &(u32, f32)| values.get(*row as usize).copied().unwrap_or(f32::NAN);
        chosen.push((name.clone(), ranked.iter().map(value).collect()));
    }
    let scores = match of_formula(spec).next() {
        None => histogram(&scores),
        Some(at) => {
            // What a model drifts in is its own probabilities: prices move a utility without any fault of it.
            let values = outputs.get(at).map_or(&[][..], Vec::as_slice);
            let some: Vec<_> = counted(values.len()).map(|row| values[row]).collect();
            let mut histogram = ScoreHistogram::default();
            rounded(spec.calibrated(at, &finishing.surface, &some))
                .into_iter()
                .for_each(|value| histogram.record(value));
            histogram
        }
    };
    Ok(Finished { ranked, outputs: chosen, scores })
}

/// What the graph gave the candidates of a request, and what becomes of it: the same online and offline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Graph<'a> {
    pub(crate) of: (&'a ModelSpec, &'a Name),
    /// Candidates.
    pub(crate) rows: usize,
    /// `[rows]` each in the contract's order.
    pub(crate) raw: &'a [Vec<f32>],
    pub(crate) finishing: &'a Finishing,
}

impl Graph<'_> {
    /// An output, calibrated.
    ///
    /// # Errors
    /// [`RankError::NotFinite`] names the candidate.
    pub(crate) fn output(&self, at: usize) -> Result<Vec<f32>, RankError> {
        let (spec, _) = self.of;
        let raw = self.raw.get(at).map_or(&[][..], Vec::as_slice);
        let values = rounded(spec.calibrated(at, &self.finishing.surface, raw));
        not_finite(self.of, &spec.outputs[at].name, &values)?;
        Ok(values)
    }

    /// What candidates are ranked by.
    ///
    /// # Errors
    /// [`RankError::NotFinite`] names the candidate.
    pub(crate) fn scores(&self) -> Result<Vec<f32>, RankError> {
        let (spec, _) = self.of;
        let scores =
            spec.scores(&self.finishing.surface, self.rows, self.raw, &self.finishing.utility_inputs);
        if let Err(error) = not_finite(self.of, spec.score_name(), &scores) {
            // The output that the formula has its NaN from says more than the utility does.
            for at in of_formula(spec) {
                self.output(at)?;
            }
            return Err(error);
        }
        Ok(scores)
    }
}

/// Refuses values of an output of which one is NaN or infinite.
///
/// # Errors
/// [`RankError::NotFinite`] names the candidate.
fn not_finite((spec, release): (&ModelSpec, &Name), name: &str, values: &[f32]) -> Result<(), RankError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(candidate) => Err(RankError::NotFinite {
            model: spec.model.clone(),
            release: release.clone(),
            output: name.to_owned(),
            candidate,
            value: values[candidate],
        }),
    }
}

/// The outputs that the formula speaks of, if candidates are ranked by one.
pub(crate) fn of_formula(spec: &ModelSpec) -> impl Iterator<Item = usize> {
    let utility = spec.utility.iter().filter(|_| spec.score == Score::Utility);
    utility.flat_map(|utility| utility.names()).filter_map(|name| spec.output(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(score: &str) -> ModelSpec {
        ModelSpec::from_toml(&format!(
            r#"schema_version = 1
            model = "ads"
            {score}
            inputs = [{{ name = "x", side = "candidate", width = 1 }}]
            outputs = [{{ name = "ctr" }}, {{ name = "cvr" }}]
            [[calibrations]]
            output = "ctr"
            surface = "home"
            kind = "linear"
            a = 0.5
            b = 0
            "#
        ))
        .unwrap()
    }

    fn ads() -> ModelSpec {
        spec(
            r#"score = "utility"
            utility = "ctr * bid * rate"
            utility_inputs = [{ name = "bid", side = "candidate" }, { name = "rate", side = "user" }]"#,
        )
    }

    fn outputs() -> Vec<Vec<f32>> {
        vec![vec![0.5, 0.25, 0.5], vec![0.1, 0.2, 0.3]]
    }

    fn run(spec: &ModelSpec, outputs: &[Vec<f32>], finishing: &Finishing) -> Result<Finished, RankError> {
        finish((spec, &Name::new("r1").unwrap()), 3, Results::Outputs(outputs.to_vec()), finishing)
    }

    #[test]
    fn an_output_ranks_calibrated_for_its_surface() {
        let spec = spec("score = \"ctr\"");
        let finished = run(&spec, &outputs(), &Finishing::default()).unwrap();
        assert_eq!(finished.ranked, [(0, 0.5), (2, 0.5), (1, 0.25)]);
        assert_eq!((finished.outputs.len(), finished.scores.total()), (0, 3));
        let home =
            Finishing { surface: "home".into(), outputs: vec![1, 0], top_k: 2, ..Finishing::default() };
        let finished = run(&spec, &outputs(), &home).unwrap();
        assert_eq!(finished.ranked, [(0, 0.25), (2, 0.25)]);
        assert_eq!(
            finished.outputs,
            [("cvr".to_owned(), vec![0.1, 0.3]), ("ctr".to_owned(), vec![0.25, 0.25])]
        );
    }

    #[test]
    fn a_utility_ranks_and_the_model_is_judged_by_its_probabilities() {
        let finishing = Finishing {
            outputs: vec![0],
            utility_inputs: vec![vec![1.0, 8.0, 2.0], vec![10.0]],
            ..Finishing::default()
        };
        let finished = run(&ads(), &outputs(), &finishing).unwrap();
        assert_eq!(finished.ranked, [(1, 20.0), (2, 10.0), (0, 5.0)]);
        assert_eq!(finished.outputs, [("ctr".to_owned(), vec![0.25, 0.5, 0.5])]);
        let bins = [0.5, 0.25, 0.5].map(|score| (ScoreHistogram::bin(score), 1));
        assert_eq!(finished.scores, ScoreHistogram::from_bins(bins));
    }

    #[test]
    fn what_is_no_number_is_named_where_it_comes_from() {
        let said = |outputs: &[Vec<f32>], bid: f32, chosen: Vec<usize>| {
            let utility_inputs = vec![vec![1.0, bid, 1.0], vec![1.0]];
            let finishing = Finishing { outputs: chosen, utility_inputs, ..Finishing::default() };
            run(&ads(), outputs, &finishing).unwrap_err().to_string()
        };
        let said_of = |name: &str| format!("output {name:?} of release r1 of model ads is");
        let mut broken = outputs();
        broken[0][2] = f32::NAN;
        assert_eq!(said(&broken, 1.0, vec![]), format!("{} NaN for candidate 2", said_of("ctr")));
        let mut large = outputs();
        large[0][1] = 4.0;
        assert_eq!(said(&large, f32::MAX, vec![]), format!("{} inf for candidate 1", said_of("utility")));
        let mut unused = outputs();
        unused[1][0] = f32::INFINITY;
        assert_eq!(said(&unused, 1.0, vec![1]), format!("{} inf for candidate 0", said_of("cvr")));
    }
}
