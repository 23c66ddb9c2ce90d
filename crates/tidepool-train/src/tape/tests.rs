//! Every operation's gradient against finite differences, and every operation's nodes against its value.

use ndarray::Array2;
use tidepool_dense::DenseModel;
use tidepool_types::ModelSpec;

use super::*;
use crate::check::assert_gradient;

const ROWS: usize = 6;

/// A tape, the value that it is about, and inputs for it.
struct Case {
    tape: Tape,
    output: Value,
    inputs: Vec<Array2<f32>>,
}

/// `build` makes the value from inputs of these widths. What it makes is summed up by fixed random weights, so that no
/// element's gradient is like another's.
fn case(widths: &[usize], build: impl FnOnce(&mut Tape, &[Value], &mut Rng) -> Value) -> Case {
    let mut rng = Rng::new(widths.len() as u64);
    let mut tape = Tape::default();
    let inputs: Vec<Value> =
        widths.iter().enumerate().map(|(at, &width)| tape.input(&format!("in{at}"), width)).collect();
    let output = build(&mut tape, &inputs, &mut rng);
    for param in &mut tape.params {
        // Biases too, which start at zero.
        param.value.mapv_inplace(|v| v + 0.3 * rng.normal());
    }
    let inputs = widths.iter().map(|&w| Array2::from_shape_simple_fn((ROWS, w), || rng.normal())).collect();
    Case { tape, output, inputs }
}

impl Case {
    fn weights(&self) -> Array2<f32> {
        let mut rng = Rng::new(99);
        Array2::from_shape_simple_fn((ROWS, self.tape.width(self.output)), || rng.normal())
    }

    fn loss(&self, tape: &Tape, inputs: &[Array2<f32>]) -> f64 {
        // The same numbers are dropped each time.
        let pass = tape.forward(inputs.to_vec(), Some(&mut Rng::new(7)));
        let weighed = pass.value(self.output) * &self.weights();
        weighed.iter().map(|&v| f64::from(v)).sum()
    }

    fn check_gradients(mut self, what: &str) {
        let pass = self.tape.forward(self.inputs.clone(), Some(&mut Rng::new(7)));
        let weights = self.weights();
        let gradients = self.tape.backward(&pass, vec![(self.output, weights)]);
        for (at, gradient) in gradients.iter().enumerate() {
            let mut inputs = self.inputs.clone();
            assert_gradient(&format!("{what}, input {at}"), &self.inputs[at], gradient, |value| {
                inputs[at] = value.clone();
                self.loss(&self.tape, &inputs)
            });
        }
        for (at, param) in self.tape.params.iter().enumerate() {
            let mut tape = self.tape.clone();
            assert_gradient(&format!("{what}, parameter {at}"), &param.value, &param.grad, |value| {
                tape.params[at].value = value.clone();
                self.loss(&tape, &self.inputs)
            });
        }
    }

    /// The graph's outputs are one wide for the engine, so each column of the value is looked at by itself.
    fn check_graph(self, what: &str) {
        let pass = self.tape.forward(self.inputs.clone(), None);
        for column in 0..self.tape.width(self.output) {
            let mut tape = self.tape.clone();
            // A gate of ones, to bring one column out by operations that are tested here too.
            let one = tape.dot(self.output, self.output);
            let zeros = tape.normalise(one, 0.0, 0.0);
            let ones = tape.normalise(zeros, -1.0, 1.0);
            let picked = tape.weigh(ones, self.output, column);
            let picked = tape.name(picked, "out");
            let given = self.inputs.iter().map(|input| input.iter().copied().collect()).collect::<Vec<_>>();
            let graph = run(&tape, picked, &given);
            for (row, &got) in graph.iter().enumerate() {
                let expected = pass.value(self.output)[(row, column)];
                assert!((got - expected).abs() < 1e-5, "{what}, row {row}: {got} for {expected}");
            }
        }
    }
}

/// What the engine makes of the tape's graph; `out` is `[rows]`.
fn run(tape: &Tape, output: Value, inputs: &[Vec<f32>]) -> Vec<f32> {
    let mut toml = String::from("schema_version = 1\nmodel = \"m\"\nscore = \"out\"\n");
    for (name, width) in tape.inputs() {
        toml += &format!("[[inputs]]\nname = \"{name}\"\nside = \"candidate\"\nwidth = {width}\n");
    }
    toml += "[[outputs]]\nname = \"out\"\n";
    let spec = ModelSpec::from_toml(&toml).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, tape.onnx("case", &[output], &[])).unwrap();
    let model = DenseModel::load(&path, &spec, &|_| None).unwrap();
    crate::check::run_rows(&model, ROWS, inputs).remove(0)
}

/// Every operation, called by its name.
fn cases() -> Vec<(&'static str, Case)> {
    vec![
        ("affine", case(&[4], |t, x, rng| t.affine(x[0], 3, 0.5, rng))),
        ("product", case(&[4], |t, x, rng| t.product(x[0], 3, 0.5, rng))),
        ("normalise", case(&[1], |t, x, _| t.normalise(x[0], 0.4, 1.7))),
        ("add", case(&[3, 3], |t, x, _| t.add(x[0], x[1]))),
        ("mul", case(&[3, 3], |t, x, _| t.mul(x[0], x[1]))),
        ("square", case(&[3], |t, x, _| t.mul(x[0], x[0]))),
        ("relu", case(&[5], |t, x, _| t.relu(x[0]))),
        ("sigmoid", case(&[3], |t, x, _| t.sigmoid(x[0]))),
        ("softmax", case(&[4], |t, x, _| t.softmax(x[0]))),
        ("dropout", case(&[6], |t, x, _| t.dropout(x[0], 0.4))),
        ("concat", case(&[2, 1, 3], |t, x, _| t.concat(x))),
        ("weigh", case(&[3, 2], |t, x, _| t.weigh(x[0], x[1], 1))),
        ("dot", case(&[4, 4], |t, x, _| t.dot(x[0], x[1]))),
        ("pairs", case(&[3, 3, 3, 3], |t, x, _| t.pairs(x))),
    ]
}

#[test]
fn gradients_of_all_operations_are_those_of_finite_differences() {
    for (what, case) in cases() {
        case.check_gradients(what);
    }
}

#[test]
fn nodes_of_all_operations_say_what_the_forward_pass_says() {
    for (what, case) in cases() {
        // The graph of dropout is that of its operand.
        let case = match what {
            "dropout" => self::case(&[6], |t, x, _| {
                let dropped = t.dropout(x[0], 0.4);
                t.relu(dropped)
            }),
            _ => case,
        };
        case.check_graph(what);
    }
}

#[test]
fn a_part_is_what_its_outputs_need_and_what_is_given_becomes_an_input() {
    let mut rng = Rng::new(5);
    let mut tape = Tape::default();
    let (a, b) = (tape.input("a", 3), tape.input("b", 4));
    let of_a = tape.affine(a, 5, 0.5, &mut rng);
    let of_a = tape.dropout(of_a, 0.5);
    let of_b = tape.affine(b, 5, 0.5, &mut rng);
    let score = tape.dot(of_a, of_b);

    let (tower, out) = tape.part(&[of_b], &[]);
    assert_eq!(tower.inputs().collect::<Vec<_>>(), [("b", 4)]);
    assert_eq!((tower.parameters(), tape.parameters()), (4 * 5 + 5, 4 * 5 + 5 + 3 * 5 + 5));
    let (rest, scores) = tape.part(&[score], &[(of_b, "vector")]);
    assert_eq!(rest.inputs().collect::<Vec<_>>(), [("a", 3), ("vector", 5)]);

    let mut rows = |width| Array2::from_shape_simple_fn((ROWS, width), || rng.normal());
    let (a, b) = (rows(3), rows(4));
    let whole = tape.forward(vec![a.clone(), b.clone()], None);
    let vectors = tower.forward(vec![b], None).value(out[0]).clone();
    let split = rest.forward(vec![a, vectors], None);
    assert_eq!(split.value(scores[0]), whole.value(score), "to the bit");
}
