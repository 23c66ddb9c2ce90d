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
    /// The values are in the order of the contract, as `names` are; the graph may have another.
    pub(crate) fn load(path: &Path, names: &[&str], values: &[Vec<f32>], rows: usize) -> Self {
        let mut graph = tract_onnx::onnx().model_for_path(path).unwrap();
        let mut inputs = TVec::new();
        let given: Vec<String> = graph.inputs.iter().map(|o| graph.node(o.node).name.clone()).collect();
        for (at, name) in given.iter().enumerate() {
            let values = &values[names.iter().position(|n| n == name).unwrap()];
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
    shape = [rows] + [1] * (len(made.shape) - 1)
    kept.append(onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, numpy.float32))
    binding.bind_ortvalue_output(made.name, kept[-1])
print("ready", flush=True)
for line in sys.stdin:
    wanted, runs = int(line), 0
    began = time.thread_time_ns()
    while True:
        session.run_with_iobinding(binding)
        runs += 1
        taken = time.thread_time_ns() - began
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

/// Nanoseconds for which this thread has had a processor: what a wait for others, or for the machine, does not count in.
#[expect(unsafe_code, reason = "the C library is asked for the time of a thread")]
pub(crate) fn thread_time() -> u64 {
    #[repr(C)]
    struct Time {
        seconds: i64,
        nanoseconds: i64,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Time) -> i32;
    }
    /// Linux's number of the clock.
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    let mut time = Time { seconds: 0, nanoseconds: 0 };
    // SAFETY: `time` is laid out as `timespec` is on 64-bit Linux, and lives through the call.
    let failed = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "the clock of a thread cannot be read");
    (time.seconds * 1_000_000_000 + time.nanoseconds) as u64
}

/// Sums that do not wait for each other: more than a processor has under way.
const CHAINS: usize = 12;
const PEAK_ROUNDS: usize = 100_000;

/// Nothing but fused products and sums in registers: what the processor reaches when no memory is in its way. Gives the
/// floating point operations that it did.
#[expect(unsafe_code, reason = "a function for one instruction set is called after the CPU was asked for it")]
pub(crate) fn peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m256, __m512, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps,
        };

        #[target_feature(enable = "avx512f")]
        fn avx512() {
            let mut sums: [__m512; CHAINS] = [_mm512_set1_ps(1.0); CHAINS];
            let (by, plus) = std::hint::black_box((_mm512_set1_ps(0.999), _mm512_set1_ps(1e-3)));
            for _ in 0..PEAK_ROUNDS {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, by, plus);
                }
            }
            std::hint::black_box(sums);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2() {
            let mut sums: [__m256; CHAINS] = [_mm256_set1_ps(1.0); CHAINS];
            let (by, plus) = std::hint::black_box((_mm256_set1_ps(0.999), _mm256_set1_ps(1e-3)));
            for _ in 0..PEAK_ROUNDS {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, by, plus);
                }
            }
            std::hint::black_box(sums);
        }
        let sums = (2 * PEAK_ROUNDS * CHAINS) as f64;
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU was asked for it above.
            unsafe { avx512() };
            return sums * 16.0;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            unsafe { avx2() };
            return sums * 8.0;
        }
    }
    f64::NAN
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
