//! Random graphs of what is covered, beside tract. A failure prints its seed; `ONLY_SEED=7` runs that one alone.

use crate::{
    onnx::{Graph, fixed, int, ints, numbers, open},
    oracle::Case,
};

/// A graph that grows: values `[batch, width]` by name.
struct Growing {
    graph: Graph,
    values: Vec<(String, i64)>,
    draws: std::vec::IntoIter<f32>,
}

impl Growing {
    fn new(seed: u64) -> Self {
        let inputs = [("user", 5), ("item", 9), ("context", 1)];
        let graph = inputs
            .iter()
            .fold(Graph::new(), |graph, (name, width)| graph.input(name, &[open("batch"), fixed(*width)]));
        let graph = graph.integers("one", &[1], &[1]).integers("two", &[1], &[2]);
        let values = inputs.iter().map(|(name, width)| ((*name).to_owned(), *width)).collect();
        let draws: Vec<f32> = numbers(seed.wrapping_mul(77), 400).collect();
        Self { graph, values, draws: draws.into_iter() }
    }

    /// A whole number below `end`.
    fn draw(&mut self, end: usize) -> usize {
        (((self.draws.next().unwrap() + 1.0) / 2.0 * end as f32) as usize).min(end - 1)
    }

    /// Any value, later ones more often than the first.
    fn value(&mut self) -> (String, i64) {
        let at = self.draw(self.values.len());
        self.values[at].clone()
    }

    fn grow(&mut self, step: usize) {
        let out = format!("v{step}");
        let (x, width) = self.value();
        let graph = std::mem::replace(&mut self.graph, Graph::new());
        let (graph, made) = match self.draw(9) {
            0 | 1 => {
                let to = self.draw(40) as i64 + 1;
                let (w, b) = (format!("{out}.w"), format!("{out}.b"));
                let graph = graph.random(&w, &[width, to]).random(&b, &[to]);
                (graph.node("Gemm", &[&x, &w, &b], &out, &[]), to)
            }
            2 => {
                let ops = ["Relu", "Sigmoid", "Tanh", "Abs", "Neg", "HardSwish", "Softplus", "Erf", "Gelu"];
                let op = ops[self.draw(ops.len())];
                (graph.node(op, &[&x], &out, &[]), width)
            }
            3 => {
                let op = ["Add", "Sub", "Mul", "Max", "Min"][self.draw(5)];
                // Another of the same width, or one of a single number per row.
                let others = self.values.iter().filter(|(_, w)| *w == width || *w == 1);
                let others: Vec<String> = others.map(|(name, _)| name.clone()).collect();
                let other = others[self.draw(others.len())].clone();
                (graph.node(op, &[&x, &other], &out, &[]), width)
            }
            4 => {
                let (y, more) = self.value();
                (graph.node("Concat", &[&x, &y], &out, &[int("axis", 1)]), width + more)
            }
            5 => {
                let from = self.draw(width as usize) as i64;
                let to = from + self.draw((width - from) as usize) as i64 + 1;
                let (a, b) = (format!("{out}.a"), format!("{out}.z"));
                let graph = graph.integers(&a, &[1], &[from]).integers(&b, &[1], &[to]);
                (graph.node("Slice", &[&x, &a, &b, "one"], &out, &[]), to - from)
            }
            6 => (graph.node("Softmax", &[&x], &out, &[int("axis", -1)]), width),
            7 => {
                let op = ["ReduceSum", "ReduceMean", "ReduceMax"][self.draw(3)];
                (graph.node(op, &[&x, "one"], &out, &[int("keepdims", 1)]), 1)
            }
            // Its outer product with itself, summed along one axis after a turn.
            _ => {
                let (column, row) = (format!("{out}.c"), format!("{out}.r"));
                let (outer, turned) = (format!("{out}.o"), format!("{out}.t"));
                let graph = graph
                    .node("Unsqueeze", &[&x, "two"], &column, &[])
                    .node("Unsqueeze", &[&x, "one"], &row, &[])
                    .node("MatMul", &[&column, &row], &outer, &[])
                    .node("Transpose", &[&outer], &turned, &[ints("perm", &[0, 2, 1])]);
                (graph.node("ReduceMean", &[&turned, "one"], &out, &[int("keepdims", 0)]), width)
            }
        };
        self.graph = graph;
        if made <= 200 {
            self.values.push((out, made));
        }
    }

    /// All values that were made, under one head.
    fn finish(self) -> Graph {
        let names: Vec<&str> = self.values.iter().map(|(name, _)| name.as_str()).collect();
        let width: i64 = self.values.iter().map(|(_, width)| width).sum();
        self.graph
            .node("Concat", &names, "together", &[int("axis", 1)])
            .node("Tanh", &["together"], "bounded", &[])
            .random("head", &[width, 1])
            .node("MatMul", &["bounded", "head"], "p", &[])
            .output("p", &[open("batch"), fixed(1)])
    }
}

#[test]
fn random_graphs_say_what_tract_says() {
    let only: Option<u64> = std::env::var("ONLY_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in 0..60 {
        if only.is_some_and(|only| only != seed) {
            continue;
        }
        let mut growing = Growing::new(seed);
        for step in 0..12 {
            growing.grow(step);
        }
        let case = Case::new(growing.finish());
        for (rows, requests) in [(1, 1), (37, 4)] {
            case.check(&format!("seed {seed}"), &case.batch(rows, requests, seed));
        }
    }
}
