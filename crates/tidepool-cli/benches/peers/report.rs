//! What came of it: a table for people, a JSON object for machines.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use serde_json::{Value, json};
use tidepool_bench::{BenchTable, Machine, Spread, load::LoadReport};

use crate::{IN_FLIGHT, SEED};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Node,
    Redis,
    Redb,
}

impl Side {
    const ALL: [Self; 3] = [Self::Node, Self::Redis, Self::Redb];

    const fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Redis => "redis",
            Self::Redb => "grpc_redb",
        }
    }
}

/// One side, one round, so many requests at once.
pub(crate) struct Slice {
    pub(crate) report: LoadReport,
    pub(crate) server_cpu: Duration,
    pub(crate) client_cpu: Duration,
}

impl Slice {
    /// The figures by [`FIGURES`].
    fn figures(&self) -> [f64; FIGURES.len()] {
        let report = &self.report;
        let per_row = |time: Duration| time.as_nanos() as f64 / report.ids.max(1) as f64;
        [
            per_row(self.server_cpu),
            per_row(self.client_cpu),
            report.rows_per_second(),
            report.latency.mean_us(),
            report.latency.quantile_us(0.5),
            report.latency.quantile_us(0.99),
        ]
    }
}

const FIGURES: [&str; 6] =
    ["server_cpu_ns_per_row", "client_cpu_ns_per_row", "rows_per_second", "mean_us", "p50_us", "p99_us"];
/// Of these more is better; ratios are always of the better to the worse when we are better.
const RATE: usize = 2;

/// Everything that was measured.
pub(crate) struct Report {
    table: BenchTable,
    batch: usize,
    rounds: u64,
    machine: Machine,
    pub(crate) keys_per_mget: Option<usize>,
    pub(crate) resident_bytes: Vec<(Side, u64)>,
    /// The figures of each round.
    figures: BTreeMap<(usize, Side), Vec<[f64; FIGURES.len()]>>,
    failed_requests: u64,
    checked_answers: u64,
    wrong_answers: u64,
}

impl Report {
    pub(crate) fn new(table: &BenchTable, batch: usize, rounds: u64, machine: Machine) -> Self {
        Self {
            table: *table,
            batch,
            rounds,
            machine,
            keys_per_mget: None,
            resident_bytes: Vec::new(),
            figures: BTreeMap::new(),
            failed_requests: 0,
            checked_answers: 0,
            wrong_answers: 0,
        }
    }

    /// Adds a slice; round 0 warms up, and only its answers count.
    pub(crate) fn add(&mut self, side: Side, in_flight: usize, round: u64, slice: Slice) {
        self.failed_requests += slice.report.failed_requests();
        self.checked_answers += slice.report.verdict.checked;
        self.wrong_answers += slice.report.verdict.wrong;
        if round > 0 {
            self.figures.entry((in_flight, side)).or_default().push(slice.figures());
        }
    }

    /// Whether every request was answered, and every answer that was looked at is right.
    pub(crate) const fn is_right(&self) -> bool {
        self.failed_requests == 0 && self.wrong_answers == 0 && self.checked_answers > 0
    }

    fn spread(&self, in_flight: usize, side: Side, figure: usize) -> Option<Spread> {
        let rounds = self.figures.get(&(in_flight, side))?;
        Some(Spread::of(rounds.iter().map(|figures| figures[figure])))
    }

    /// How many times better than `side` we are, round by round.
    fn ratio(&self, in_flight: usize, side: Side, figure: usize) -> Option<Spread> {
        let (ours, theirs) =
            (self.figures.get(&(in_flight, Side::Node))?, self.figures.get(&(in_flight, side))?);
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| {
            if figure == RATE { ours[figure] / theirs[figure] } else { theirs[figure] / ours[figure] }
        });
        Some(Spread::of(ratios))
    }

    /// The table, then the object on the last line.
    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let BenchTable { rows, dim, format, .. } = self.table;
        writeln!(
            out,
            "{rows} rows of dim {dim}, {format}; {} bags of 20 a request; {} rounds; on {}, {} cores",
            self.batch, self.rounds, self.machine.cpu, self.machine.cores
        )?;
        for in_flight in IN_FLIGHT {
            writeln!(
                out,
                "{in_flight} in flight; median (5 % to 95 %), ratio to the node in the same round"
            )?;
            for side in Side::ALL {
                for (figure, name) in FIGURES.iter().enumerate() {
                    let Some(Spread { median, low, high }) = self.spread(in_flight, side, figure) else {
                        continue;
                    };
                    write!(out, "  {:<10} {name:<22} {median:>12.1} ({low:.1} to {high:.1})", side.word())?;
                    if side != Side::Node
                        && let Some(Spread { median, low, high }) = self.ratio(in_flight, side, figure)
                    {
                        write!(out, "  x {median:.2} ({low:.2} to {high:.2})")?;
                    }
                    writeln!(out)?;
                }
            }
        }
        for (side, bytes) in &self.resident_bytes {
            writeln!(out, "{:<12} {:.1} bytes of memory a row", side.word(), *bytes as f64 / rows as f64)?;
        }
        writeln!(
            out,
            "{} failed requests, {} wrong of {} answers that were looked at",
            self.failed_requests, self.wrong_answers, self.checked_answers
        )?;
        writeln!(out, "{}", self.object())?;
        out.flush()
    }

    fn object(&self) -> Value {
        let BenchTable { rows, dim, format, .. } = self.table;
        let named = |of: &dyn Fn(usize) -> Option<Spread>| -> Value {
            FIGURES.iter().enumerate().map(|(figure, name)| ((*name).to_owned(), json!(of(figure)))).collect()
        };
        let loads = IN_FLIGHT.iter().map(|&in_flight| {
            let sides = Side::ALL.into_iter().filter(|side| self.figures.contains_key(&(in_flight, *side)));
            let sides = sides.map(|side| {
                json!({
                    "side": side.word(),
                    "figures": named(&|figure| self.spread(in_flight, side, figure)),
                    "times_better_than_it": named(&|figure| self.ratio(in_flight, side, figure)),
                })
            });
            json!({ "in_flight": in_flight, "sides": sides.collect::<Vec<_>>() })
        });
        let resident = self.resident_bytes.iter();
        json!({
            "schema_version": 1, "bench": "peers", "machine": self.machine, "seed": SEED,
            "rows": rows, "dim": dim, "format": format, "batch": self.batch, "bag": 20,
            "rounds": self.rounds, "keys_per_mget": self.keys_per_mget, "loads": loads.collect::<Vec<_>>(),
            "resident_bytes":
                resident.map(|(side, bytes)| (side.word().to_owned(), json!(bytes))).collect::<Value>(),
            "failed_requests": self.failed_requests, "checked_answers": self.checked_answers,
            "wrong_answers": self.wrong_answers,
        })
    }
}
