//! What rows cost on a GPU: keys found per second, rows expanded and pooled beside what the memory allows, and
//! selections. `cargo bench -p tidepool-dense --bench gpu_rows`; the last line of its output is one JSON object.
//!
//! A line of JSON per case goes to stderr as soon as it is there, and no case begins after `--seconds=N`.
//!
//! Times are of launches alone, one behind the other, on the host's clock until the last is done; medians of rounds with
//! the 5th and 95th percentile. On the simulated driver, or with `--test`, sizes are small and the numbers say nothing.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench may panic, and prints"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tidepool_dense::{
    CudaDevice,
    resident::{Key, ResidentOptions, ResidentSet, Segment},
    rows::{Pool, Position, RowExpander, RowInput, RowTable, RowsLayout},
    select::{SelectLayout, SelectRequest, SelectRoom, Selection, Selector},
};
use tidepool_types::{Combine, ModelSpec, Name, RowFormat, TableVersion, mix64};

/// Data sheets: bytes per second of memory, by a part of the device's name.
const MEMORY: [(&str, f64); 5] =
    [("H200", 4.8e12), ("H100", 3.35e12), ("A100", 2.039e12), ("L40S", 8.64e11), ("A10", 6.0e11)];
const DIM: u32 = 64;
const BAG: usize = 20;

/// How large everything is.
struct Sizes {
    resident_rows: u64,
    keys: usize,
    bags: usize,
    candidates: Vec<u32>,
    rounds: usize,
    launches: u32,
}

struct Bench {
    device: Arc<CudaDevice>,
    sizes: Sizes,
    cases: Vec<String>,
    /// When no case may begin any more.
    last: Option<Instant>,
    left_out: u32,
}

fn main() {
    let once = std::env::args().any(|argument| argument == "--test");
    let device = CudaDevice::open(0).unwrap_or_else(|e| panic!("{e}"));
    let simulated = device.name().to_lowercase().contains("simulated");
    let sizes = if once || simulated {
        Sizes { resident_rows: 2000, keys: 500, bags: 50, candidates: vec![100], rounds: 1, launches: 1 }
    } else {
        let candidates = vec![1000, 10_000, 100_000];
        Sizes { resident_rows: 4_000_000, keys: 1 << 20, bags: 16_384, candidates, rounds: 30, launches: 20 }
    };
    let seconds = std::env::args().find_map(|argument| Some(argument.strip_prefix("--seconds=")?.parse()));
    let last = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds.unwrap()));
    let mut bench = Bench { device, sizes, cases: Vec::new(), last, left_out: 0 };
    let name = TableVersion { table: Name::new("t").unwrap(), version: Name::new("v1").unwrap() };
    let ids: Vec<u64> = (0..bench.sizes.resident_rows).map(mix64).collect();
    let rows = stored(ids.len());
    let segment =
        Segment { table: &name, format: RowFormat::Int4, dim: DIM, whole: false, ids: &ids, rows: &rows };
    let options = ResidentOptions::new(u64::MAX, 0x5eed);
    let set = ResidentSet::build(&bench.device, &[segment], &options).unwrap();
    drop(rows);
    bench.find(&set, &ids);
    bench.pool(None, &ids);
    let set = Arc::new(set);
    bench.pool(Some(&set), &ids);
    bench.select();
    println!(
        "{{\"schema_version\":1,\"bench\":\"gpu_rows\",\"machine\":{{\"gpu\":{:?},\"libraries\":{:?},\
         \"simulated\":{simulated}}},\"seed\":1,\"rounds\":{},\"left_out\":{},\"cases\":[{}]}}",
        bench.device.name(),
        bench.device.versions(),
        bench.sizes.rounds,
        bench.left_out,
        bench.cases.join(",")
    );
}

/// Stored rows with random codes, of values from -0.5 to 0.44.
fn stored(rows: usize) -> Vec<u8> {
    let row_bytes = RowFormat::Int4.row_bytes(DIM);
    let mut bytes = vec![0; rows * row_bytes];
    for (number, row) in bytes.chunks_exact_mut(row_bytes).enumerate() {
        let codes = mix64(number as u64).to_le_bytes();
        let (head, tail) = row.split_at_mut(row_bytes - 4);
        head.iter_mut().zip(codes.iter().cycle()).for_each(|(byte, code)| *byte = *code);
        tail.copy_from_slice(&[0x00, 0x2c, 0x00, 0xb8]);
    }
    bytes
}

impl Bench {
    /// Median, 5th and 95th percentile of the seconds of one launch of what `timed` launches so many times.
    fn seconds(&self, mut timed: impl FnMut(u32) -> Duration) -> [f64; 3] {
        let launches = self.sizes.launches;
        let mut seconds: Vec<f64> =
            (0..self.sizes.rounds).map(|_| timed(launches).as_secs_f64() / f64::from(launches)).collect();
        seconds.sort_by(f64::total_cmp);
        let at = |part: usize| seconds[seconds.len() * part / 100];
        [at(50), at(5), at(95)]
    }

    /// Whether there is time for one more case; it is counted as left out if not.
    fn begins(&mut self) -> bool {
        let in_time = self.last.is_none_or(|last| Instant::now() <= last);
        self.left_out += u32::from(!in_time);
        in_time
    }

    fn case(&mut self, what: &str, of: &str, seconds: [f64; 3], items: f64, bytes: f64) {
        let memory = MEMORY.iter().find(|(name, _)| self.device.name().contains(name)).map(|(_, rate)| rate);
        let share = memory.map_or("null".into(), |rate| format!("{:.4}", bytes / seconds[0] / rate));
        let line = format!(
            "{{\"case\":{what:?},\"of\":{of:?},\"us\":{:.2},\"us_p5_p95\":[{:.2},{:.2}],\"millions_per_second\":{:.2},\
             \"bytes\":{bytes},\"bytes_per_second\":{:.4e},\"share_of_memory\":{share}}}",
            seconds[0] * 1e6,
            seconds[1] * 1e6,
            seconds[2] * 1e6,
            items / seconds[0] / 1e6,
            bytes / seconds[0],
        );
        eprintln!("{line}");
        self.cases.push(line);
    }

    /// Keys of which none, half and all are there.
    fn find(&mut self, set: &ResidentSet, ids: &[u64]) {
        let count = self.sizes.keys;
        for absent in [0, 50, 100] {
            if !self.begins() {
                continue;
            }
            let key = |at: usize| {
                let there = mix64(at as u64) % 100 >= absent;
                let id = ids[(mix64(!(at as u64)) % ids.len() as u64) as usize];
                Key { table: 0, id: if there { id } else { !id } }
            };
            let keys: Vec<Key> = (0..count).map(key).collect();
            let seconds = self.seconds(|times| set.find_timed(&keys, times).unwrap());
            // An id and a table's number in, a sector of 32 bytes around the slot, a row out.
            let bytes = count as f64 * (12.0 + 32.0 + 4.0);
            self.case("find", &format!("{absent}% absent, {count} keys"), seconds, count as f64, bytes);
        }
    }

    /// Sums of bags over rows that were staged, or that are resident and spread over memory.
    fn pool(&mut self, set: Option<&Arc<ResidentSet>>, ids: &[u64]) {
        if !self.begins() {
            return;
        }
        let bags = self.sizes.bags;
        let members = bags * BAG;
        let unique = members.min(65_536);
        let input = RowInput {
            table: 0,
            bags: bags as u32,
            ids: members as u32,
            pool: Pool::Sum,
            weighted: false,
            hashes: 1,
            combine: Combine::Concat,
            default_row: Vec::new(),
        };
        let table = RowTable { format: RowFormat::Int4, dim: DIM, rows: unique as u32 };
        let layout = RowsLayout::new(vec![table], vec![input], members as u32).unwrap();
        let counts = layout.room().clone();
        let mut expander = RowExpander::new(&self.device, layout, None).unwrap();
        let rows = stored(unique);
        let seconds = self.seconds(|times| {
            let staged = |writer: &mut tidepool_dense::rows::RowsWriter<'_>| {
                let positions: Vec<Position> = match set {
                    Some(set) => {
                        writer.resident(set.clone(), &[Some(0)])?;
                        let id = |at: usize| ids[(mix64(at as u64) % ids.len() as u64) as usize];
                        (0..members).map(|at| writer.key(0, id(at))).collect::<Result<_, _>>()?
                    }
                    None => {
                        let first = writer.rows(0, &rows)?;
                        let place = |at: usize| (mix64(at as u64) % unique as u64) as u32;
                        (0..members)
                            .map(|at| tidepool_dense::rows::RowsWriter::behind(first, place(at)))
                            .collect()
                    }
                };
                positions.chunks(BAG).try_for_each(|bag| writer.bag(0, bag, &[]))
            };
            expander.timed(&counts, &[bags as u32], staged, times).unwrap()
        });
        let row = RowFormat::Int4.row_bytes(DIM) as f64;
        let mut bytes = members as f64 * (row + 4.0) + bags as f64 * f64::from(DIM * 4);
        let what = match set {
            Some(_) => {
                bytes += members as f64 * (12.0 + 32.0 + 8.0);
                "find and pool"
            }
            None => "pool",
        };
        let of = format!("{bags} bags of {BAG} rows of INT4 x {DIM}");
        self.case(what, &of, seconds, members as f64, bytes);
    }

    /// The best 500 of a request, by a formula.
    fn select(&mut self) {
        let text = r#"schema_version = 1
            model = "ads"
            score = "utility"
            utility = "ctr * bid"
            utility_inputs = [{ name = "bid", side = "candidate" }]
            inputs = [{ name = "x", side = "candidate", width = 1 }]
            outputs = [{ name = "ctr" }]
            calibrations = [{ output = "ctr", kind = "platt", a = 1.1, b = -0.2 }]"#;
        let spec = ModelSpec::from_toml(text).unwrap();
        for rows in self.sizes.candidates.clone() {
            if !self.begins() {
                continue;
            }
            let room = SelectRoom { rows, requests: 1, samples: 16 };
            let layout = SelectLayout::new(Selection::new(&spec), room).unwrap();
            let mut selector = Selector::new(&self.device, layout, None).unwrap();
            let unit = |at: u32| (mix64(u64::from(at)) >> 40) as f32 / (1u64 << 24) as f32;
            let outputs = vec![(0..rows).map(unit).collect::<Vec<f32>>()];
            let bids = vec![(0..rows).map(|at| unit(!at)).collect::<Vec<f32>>()];
            let request =
                SelectRequest { rows, surface: "", outputs: &[0], utility_inputs: &bids, top_k: 500 };
            let seconds = self.seconds(|times| selector.timed(&[request], &outputs, times).unwrap());
            // Outputs and bids in, keys out and through every merge.
            let merges = f64::from(rows.div_ceil(1024).next_power_of_two().ilog2());
            let bytes = f64::from(rows) * (12.0 + 8.0 + 16.0 + 16.0 * merges);
            self.case("select", &format!("500 of {rows}"), seconds, f64::from(rows), bytes);
        }
    }
}
