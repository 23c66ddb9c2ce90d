//! Models on a GPU: every bucket, with a graph and step by step, beside the floor that the device's data sheet sets.
//! `cargo bench -p tidepool-dense --bench gpu -- [MODEL]`; the last line of its output is one JSON object.
//!
//! Times are of whole batches on the host's clock, copies included, one batch at a time; medians with the 5th and 95th
//! percentile. Shares are of what the data sheet of the device allows, where it is one of those known here. A line of JSON
//! per case goes to stderr as soon as it is there, and no case begins after `--seconds=N`. On the simulated driver the numbers say nothing, and `"simulated"` says so.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench may panic, and prints"
)]

#[path = "../engines/models.rs"]
#[expect(dead_code, reason = "the bench of engines times releases too")]
mod models;
#[path = "../../tests/it/onnx.rs"]
#[expect(dead_code, reason = "it is made for the tests, which use all of it")]
mod onnx;

use std::time::{Duration, Instant};

use onnx::numbers;
use tidepool_dense::{
    Bucket, Cost, CudaDevice, CudaModel, CudaOptions, DenseBatch, DenseModel, Precision, Rates,
};
use tidepool_types::{ModelSpec, Side};

/// Buckets that are gone through: rows and requests.
const BUCKETS: [(u32, u32); 6] = [(1, 1), (64, 8), (256, 16), (1024, 32), (4096, 64), (16384, 64)];
/// Batches of each, after as many that are not counted.
const BATCHES: usize = 200;

/// Data sheets: bytes per second of memory; operations per second in f32, TF32 and bf16; PCIe.
const DEVICES: [(&str, f64, [f64; 3], f64); 3] = [
    ("A100 SXM 80 GB", 2.039e12, [19.5e12, 156e12, 312e12], 25e9),
    ("H100 SXM 80 GB", 3.35e12, [66.9e12, 494.7e12, 989.4e12], 50e9),
    ("H200 SXM 141 GB", 4.8e12, [66.9e12, 494.7e12, 989.4e12], 50e9),
];

fn rates(device: usize, precision: Precision) -> Rates {
    let (_, memory, products, host) = DEVICES[device];
    let at = match precision {
        Precision::F32 => 0,
        Precision::Tf32 => 1,
        Precision::Bf16 => 2,
    };
    Rates { memory, products: products[at], host }
}

/// The data sheet of a device by the first word of its name there, such as `H100`.
fn own_rates(name: &str, precision: Precision) -> Option<Rates> {
    let word = |sheet: &str| sheet.split(' ').next().is_some_and(|word| name.contains(word));
    DEVICES.iter().position(|(sheet, ..)| word(sheet)).map(|at| rates(at, precision))
}

/// What is reached of a data sheet: of memory's rate, of the rate of products, and of the floor; `null` where none is
/// known.
fn shares(word: &str, cost: &Cost, own: Option<Rates>, micros: f64) -> String {
    let share = |floor: &dyn Fn(&Rates) -> f64| {
        own.as_ref().map_or("null".to_owned(), |rates| format!("{:.4}", floor(rates) / micros))
    };
    format!(
        ",\"{word}_share_of_memory\":{},\"{word}_share_of_products\":{},\"{word}_share_of_floor\":{}",
        share(&|rates| cost.moved as f64 / rates.memory * 1e6),
        share(&|rates| cost.operations as f64 / rates.products * 1e6),
        share(&|rates| cost.floor_micros(rates)),
    )
}

/// When no case may begin any more: `--seconds=N`.
fn last_begin() -> Option<Instant> {
    let seconds = std::env::args().find_map(|argument| Some(argument.strip_prefix("--seconds=")?.parse()));
    seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds.unwrap()))
}

fn main() {
    let last = last_begin();
    let mut left_out = 0;
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let floors_alone = arguments.iter().any(|a| a == "floors");
    let wanted = arguments.iter().find(|a| *a != "floors");
    let once = std::env::args().any(|argument| argument == "--test");
    let device =
        if floors_alone { None } else { Some(CudaDevice::open(0).unwrap_or_else(|e| panic!("{e}"))) };
    let dir = tempfile::tempdir().unwrap();
    let mut lines = Vec::new();
    for drawn in models::drawn(dir.path()) {
        let (name, spec) = (&*drawn.name, &drawn.spec);
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let model = drawn.load();
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            for (rows, requests) in BUCKETS.into_iter().take(if once { 2 } else { BUCKETS.len() }) {
                if last.is_some_and(|last| Instant::now() > last) {
                    left_out += 1;
                    continue;
                }
                let bucket = Bucket { rows, requests };
                let mut line = floors(name, &model, precision, bucket);
                if let Some(device) = &device {
                    for graphs in [true, false] {
                        let options = CudaOptions {
                            buckets: vec![bucket],
                            streams: 1,
                            precision,
                            graphs,
                            // So that both ways, and all buckets, compile once.
                            cache: Some(dir.path().join("kernels")),
                            ..CudaOptions::default()
                        };
                        let loaded = CudaModel::load(device, &model, &options).unwrap();
                        let times = times(&loaded, spec, &model, bucket, if once { 1 } else { BATCHES });
                        let cost = CudaModel::cost(&model, precision, bucket);
                        let word = if graphs { "graph" } else { "eager" };
                        let micros = times[times.len() / 2];
                        line.push_str(&format!(
                            ",\"{word}_us\":{micros:.1},\"{word}_us_p5_p95\":[{:.1},{:.1}],\
                             \"{word}_bytes_per_second\":{:.3e},\"{word}_operations_per_second\":{:.3e}",
                            times[times.len() / 20],
                            times[times.len() * 19 / 20],
                            cost.moved as f64 / micros * 1e6,
                            cost.operations as f64 / micros * 1e6,
                        ));
                        let own = own_rates(device.name(), precision);
                        line.push_str(&shares(word, &cost, own, micros));
                    }
                }
                eprintln!("{line}}}");
                lines.push(format!("{line}}}"));
            }
        }
    }
    let (gpu, libraries) =
        device.as_ref().map_or((String::new(), String::new()), |d| (d.name().to_owned(), d.versions()));
    let simulated = gpu.to_lowercase().contains("simulated");
    println!(
        "{{\"schema_version\":1,\"bench\":\"gpu\",\"machine\":{{\"gpu\":{gpu:?},\"libraries\":{libraries:?},\
         \"simulated\":{simulated}}},\"seed\":1,\"batches\":{BATCHES},\"left_out\":{left_out},\"cases\":[{}]}}",
        lines.join(",")
    );
}

/// The case, what it costs, and the floors of both data sheets; an object that is not closed yet.
fn floors(name: &str, model: &DenseModel, precision: Precision, bucket: Bucket) -> String {
    let cost = CudaModel::cost(model, precision, bucket);
    let floor = |device: usize| cost.floor_micros(&rates(device, precision));
    format!(
        "{{\"model\":{name:?},\"precision\":\"{precision:?}\",\"rows\":{},\"requests\":{},\"launches\":{},\"copied_in\":{},\
         \"copied_out\":{},\"moved\":{},\"weights\":{},\"operations\":{},\"floor_us_a100\":{:.2},\"floor_us_h100\":{:.2}",
        bucket.rows,
        bucket.requests,
        cost.launches,
        cost.copied_in,
        cost.copied_out,
        cost.moved,
        cost.weights,
        cost.operations,
        floor(0),
        floor(1),
    )
}

/// Microseconds of full batches, sorted.
fn times(
    loaded: &CudaModel,
    spec: &ModelSpec,
    model: &DenseModel,
    bucket: Bucket,
    batches: usize,
) -> Vec<f64> {
    let (rows, requests) = (bucket.rows as usize, bucket.requests as usize);
    let values: Vec<Vec<f32>> = spec
        .inputs
        .iter()
        .zip(model.widths())
        .map(|(input, &width)| {
            numbers(1, if input.side == Side::User { requests } else { rows } * width).collect()
        })
        .collect();
    let inputs: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
    let request_of: Vec<u32> = (0..rows).map(|row| (row * requests / rows) as u32).collect();
    let batch = DenseBatch { rows, requests, request_of: &request_of, inputs: &inputs };
    let mut times = Vec::with_capacity(batches);
    for at in 0..2 * batches {
        let begun = Instant::now();
        loaded.run(&batch).unwrap();
        if at >= batches {
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }
    times.sort_by(f64::total_cmp);
    times
}
