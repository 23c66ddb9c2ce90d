//! For tests: is a gradient the one that finite differences give, and what does the engine make of a graph?

use ndarray::Array2;
use tidepool_dense::{DenseBatch, DenseModel};

/// Compares `gradient` at `start`, element by element, with central differences of `loss`.
pub(crate) fn assert_gradient(
    what: &str,
    start: &Array2<f32>,
    gradient: &Array2<f32>,
    mut loss: impl FnMut(&Array2<f32>) -> f64,
) {
    assert_eq!(start.dim(), gradient.dim(), "{what}");
    let largest = gradient.iter().fold(0.0f32, |max, g| max.max(g.abs()));
    assert!(largest > 1e-4, "{what}: a gradient of zeros shows nothing");
    for (at, &analytic) in gradient.indexed_iter() {
        const STEP: f32 = 2e-3;
        let mut moved = start.clone();
        moved[at] = start[at] + STEP;
        let above = loss(&moved);
        moved[at] = start[at] - STEP;
        let numeric = (above - loss(&moved)) / f64::from(2.0 * STEP);
        let error = (numeric - f64::from(analytic)).abs();
        assert!(
            error < 2e-3 * f64::from(largest) + 2e-4,
            "{what} at {at:?}: {analytic} by hand, {numeric} by differences"
        );
    }
}

/// What the engine makes of `rows` rows of each input, `[rows, width]`, in the order of the contract.
pub(crate) fn run_rows(model: &DenseModel, rows: usize, inputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
    // Each row is a request of its own.
    let request_of: Vec<u32> = (0..rows as u32).collect();
    let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    model.run(&DenseBatch { rows, requests: rows, request_of: &request_of, inputs: &inputs }).unwrap()
}
