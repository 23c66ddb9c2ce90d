//! The tables while they are trained: only the rows that a batch touched are moved.

use ndarray::{Array1, Array2, ArrayView1, Axis, Zip};

use crate::{net::Adam, rng::Rng};

/// Rows, their gradients, and the optimiser's moments.
#[derive(Clone, Debug)]
pub(crate) struct Embedding {
    /// `[rows, dim]`.
    pub(crate) rows: Array2<f32>,
    grad: Array2<f32>,
    first: Array2<f32>,
    second: Array2<f32>,
    /// Rows with a gradient, in order of first touch.
    touched: Vec<u32>,
    is_touched: Vec<bool>,
}

impl Embedding {
    /// Normal rows of standard deviation `scale`.
    pub(crate) fn new(rows: usize, dim: usize, scale: f32, rng: &mut Rng) -> Self {
        Self::from_rows(Array2::from_shape_simple_fn((rows, dim), || rng.normal() * scale))
    }

    /// Starts from these rows.
    pub(crate) fn from_rows(rows: Array2<f32>) -> Self {
        let zeros = Array2::zeros(rows.dim());
        let is_touched = vec![false; rows.nrows()];
        Self {
            rows,
            grad: zeros.clone(),
            first: zeros.clone(),
            second: zeros,
            touched: Vec::new(),
            is_touched,
        }
    }

    /// Scales the rows to `length`, their root mean square, and forgets the optimiser's moments: another loss begins.
    pub(crate) fn restart(&mut self, length: f32) {
        let squares: f32 = self.rows.iter().map(|v| v * v).sum();
        let mean = (squares / self.rows.nrows().max(1) as f32).sqrt().max(1e-6);
        *self = Self::from_rows(&self.rows * (length / mean));
    }

    /// Adds `share * gradient` to the gradient of `row`.
    pub(crate) fn add_gradient(&mut self, row: u32, share: f32, gradient: ArrayView1<'_, f32>) {
        let at = row as usize;
        if !std::mem::replace(&mut self.is_touched[at], true) {
            self.touched.push(row);
        }
        self.grad.row_mut(at).scaled_add(share, &gradient);
    }

    /// The gradients as they stand, `[rows, dim]`.
    #[cfg(test)]
    pub(crate) fn gradient(&self) -> &Array2<f32> {
        &self.grad
    }

    /// One step of the optimiser on the touched rows; clears their gradients.
    pub(crate) fn step(&mut self, adam: &Adam) {
        for row in self.touched.drain(..) {
            let at = row as usize;
            self.is_touched[at] = false;
            Zip::from(self.rows.row_mut(at))
                .and(self.grad.row_mut(at))
                .and(self.first.row_mut(at))
                .and(self.second.row_mut(at))
                .for_each(|value, grad, first, second| adam.apply(value, grad, first, second));
        }
    }

    /// The mean of the rows that `seen` marks; zeros when it marks none.
    pub(crate) fn mean_row(&self, seen: &[bool]) -> Array1<f32> {
        let mut sum = Array1::<f32>::zeros(self.rows.ncols());
        let mut count = 0.0f32;
        for (row, _) in self.rows.axis_iter(Axis(0)).zip(seen).filter(|&(_, &seen)| seen) {
            sum += &row;
            count += 1.0;
        }
        sum / count.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn only_touched_rows_move_and_a_repeated_id_adds_up() {
        let mut table = Embedding::new(4, 2, 1.0, &mut Rng::new(1));
        let before = table.rows.clone();
        table.add_gradient(2, 1.0, array![1.0, 0.0].view());
        table.add_gradient(2, 0.5, array![2.0, -4.0].view());
        assert_eq!(table.grad.row(2), array![2.0, -2.0]);
        table.step(&Adam::at(1, 0.1, 0.0));
        assert_eq!(table.grad, Array2::<f32>::zeros((4, 2)), "gradients are cleared");
        for row in [0, 1, 3] {
            assert_eq!(table.rows.row(row), before.row(row));
        }
        // The first step of Adam has the length of the learning rate, against the gradient.
        let moved = &table.rows.row(2) - &before.row(2);
        assert!((moved[0] + 0.1).abs() < 1e-5 && (moved[1] - 0.1).abs() < 1e-5, "{moved}");
        table.step(&Adam::at(2, 0.1, 0.0));
        assert_eq!(table.rows.row(0), before.row(0), "nothing is touched any more");
    }

    #[test]
    fn the_mean_row_counts_seen_rows_only() {
        let table = Embedding::from_rows(array![[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]);
        assert_eq!(table.mean_row(&[true, true, false]), array![2.0, 4.0]);
        assert_eq!(table.mean_row(&[false; 3]), array![0.0, 0.0]);
    }
}
