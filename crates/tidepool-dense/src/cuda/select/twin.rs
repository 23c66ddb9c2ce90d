//! The same selection on the CPU, by the contract's own functions: what the kernels are held against.

use std::cmp::Ordering;

use tidepool_types::{ModelSpec, Score, rounded};

use super::{
    answer::{NotFinite, Selected, sampled},
    layout::SelectRequest,
};

/// What a request gets of the graph's `outputs`, its own rows of each; `samples` of its values are returned whatever
/// they are.
#[must_use]
pub fn select(spec: &ModelSpec, request: &SelectRequest<'_>, outputs: &[Vec<f32>], samples: u32) -> Selected {
    let rows = request.rows as usize;
    let calibrated = |output: usize| {
        rounded(spec.calibrated(output, request.surface, outputs.get(output).map_or(&[][..], Vec::as_slice)))
    };
    let check = |output: Option<usize>, values: &[f32], of_ranking: bool| {
        let candidate = values.iter().position(|value| !value.is_finite())?;
        #[expect(clippy::cast_possible_truncation, reason = "a request's rows are counted in 32 bits")]
        Some(NotFinite { output, candidate: candidate as u32, value: values[candidate], of_ranking })
    };
    let scores = spec.scores(request.surface, rows, outputs, request.utility_inputs);
    let of_formula = || {
        let utility = spec.utility.iter().filter(|_| spec.score == Score::Utility);
        utility.flat_map(|utility| utility.names()).filter_map(|name| spec.output(name))
    };
    let not_finite = check(None, &scores, true).map(|score| {
        of_formula().find_map(|output| check(Some(output), &calibrated(output), true)).unwrap_or(score)
    });
    let not_finite = not_finite.or_else(|| {
        request.outputs.iter().find_map(|output| check(Some(*output), &calibrated(*output), false))
    });
    let mut ranked: Vec<(u32, f32)> = (0u32..).zip(scores.iter().copied()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal);
    if not_finite.is_none() {
        // A sort that leaves equal ones as they are.
        ranked.sort_by(order);
    }
    if request.top_k > 0 {
        ranked.truncate(request.top_k as usize);
    }
    let chosen = |output: &usize| {
        let values = calibrated(*output);
        ranked.iter().map(|(row, _)| values.get(*row as usize).copied().unwrap_or(f32::NAN)).collect()
    };
    let outputs = request.outputs.iter().map(chosen).collect();
    let values = of_formula().next().map_or_else(|| scores.clone(), calibrated);
    let samples = sampled(request.rows, samples).map(|row| values[row as usize]).collect();
    Selected { not_finite, ranked, outputs, samples }
}
