//! The engines beside which the plan is timed: tract in this process, ONNX Runtime in a Python process, which times
//! itself and answers a line per turn.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tract_onnx::{prelude::*, tract_hir::infer::InferenceFact};

/// tract, optimised for inputs of just these shapes.
pub(crate) struct Tract {
    model: Arc<TypedRunnableModel>,
    inputs: TVec<TValue>,
}

impl Tract {
    pub(crate) fn load(path: &Path, values: &[Vec<f32>], rows: usize) -> Self {
        let mut graph = tract_onnx::onnx().model_for_path(path).unwrap();
        let mut inputs = TVec::new();
        for (at, values) in values.iter().enumerate() {
            let shape = [rows, values.len() / rows];
            graph.set_input_fact(at, InferenceFact::dt_shape(f32::datum_type(), shape)).unwrap();
            inputs.push(Tensor::from_shape(&shape, values).unwrap().into_tvalue());
        }
        let model = graph.into_optimized().unwrap().into_runnable().unwrap();
        Self { model, inputs }
    }

    pub(crate) fn run(&mut self) {
        self.model.run(self.inputs.clone()).unwrap();
    }
}

/// What the Python process does: one thread, inputs and outputs bound, so that nothing is copied.
const SCRIPT: &str = r#"
import sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rows = int(sys.argv[2])
binding = session.io_binding()
kept = []
for given in session.get_inputs():
    values = numpy.random.default_rng(1).uniform(-1, 1, (rows, given.shape[1])).astype(numpy.float32)
    kept.append(onnxruntime.OrtValue.ortvalue_from_numpy(values))
    binding.bind_ortvalue_input(given.name, kept[-1])
for made in session.get_outputs():
    kept.append(onnxruntime.OrtValue.ortvalue_from_shape_and_type((rows, 1), numpy.float32))
    binding.bind_ortvalue_output(made.name, kept[-1])
print("ready", flush=True)
for line in sys.stdin:
    wanted, runs = int(line), 0
    began = time.perf_counter_ns()
    while True:
        session.run_with_iobinding(binding)
        runs += 1
        taken = time.perf_counter_ns() - began
        if taken >= wanted:
            break
    print(taken / runs / 1000, flush=True)
"#;

/// A Python process with ONNX Runtime; it ends with this value.
pub(crate) struct OnnxRuntime {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl OnnxRuntime {
    /// `None`, with a word about it, when there is no Python that has it.
    pub(crate) fn start(path: &Path, rows: usize) -> Option<Self> {
        let Ok(python) = std::env::var("TIDEPOOL_ORT_PYTHON") else {
            eprintln!("TIDEPOOL_ORT_PYTHON names no Python: ONNX Runtime is left out");
            return None;
        };
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]).arg(path).arg(rows.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let asks = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "onnxruntime did not start; its words are above");
        Some(Self { child, asks, answers })
    }

    /// Microseconds per run, over about this time.
    pub(crate) fn turn(&mut self, time: Duration) -> f64 {
        writeln!(self.asks, "{}", time.as_nanos()).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `c = a b`, row-major, by the gemm crate on this thread.
#[expect(unsafe_code, reason = "the library takes pointers")]
pub(crate) fn multiply((m, k, n): (usize, usize, usize), a: &[f32], b: &[f32], c: &mut [f32]) {
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n);
    let (wide_k, wide_n) = (k as isize, n as isize);
    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    // SAFETY: the lengths are those of the shapes, as was checked above, and `c` is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            wide_n,
            false,
            a,
            1,
            wide_k,
            b,
            1,
            wide_n,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
