//! Rounds of load on every way of answering.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tidepool_proto::{code_of, pack::unpack, v1, v1::ranker_client::RankerClient};
use tidepool_ranker::{
    batch::{BatchModel, Batcher, Job},
    chain,
};
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use super::{Params, Progress, Report, TIMER, Way, ours::OwnTables, requests::Requests, site::Site};
use crate::{
    BenchError, Machine, Spread,
    load::{Arrivals, Pacer, Rate, Times},
};

/// How long a round's load takes at most, for each way.
const ROUND: Duration = Duration::from_secs(2);
/// How long each way answers before anything is measured.
const WARM_UP: Duration = Duration::from_millis(500);
/// Requests in flight at most, of those that arrive when they arrive.
const MAX_IN_FLIGHT: usize = 4096;
/// Answers of a round that are compared.
const CHECKED: usize = 16;
/// What rounding may move a score by, wherever rows are added up.
const TOLERANCE: f32 = 1e-5;
/// Requests whose lookup the kernel is timed on, in each round.
const KERNEL_REQUESTS: u64 = 50;

/// Measures. It takes threads of its own, and must not be called on one of a tokio runtime.
///
/// # Errors
/// [`BenchError`]: tables or a cluster that cannot be had. Requests that fail are counted.
pub fn run(params: &Params, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Report, BenchError> {
    if params.candidates == 0 || params.rows == 0 {
        return Err(BenchError::Parameters("a request has candidates, and a table has rows"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the bench's threads"))?;
    runtime.block_on(measure(params, progress))
}

/// What of a request is known when it is answered.
#[derive(Debug, Default)]
struct Took {
    lookup: Duration,
    dense: Duration,
    queue: Duration,
    batch_requests: u32,
    rows: u64,
    /// The first output, by candidate.
    scores: Vec<f32>,
}

/// Somebody who answers.
trait Ask: Send + Sync + 'static {
    fn ask(&self, number: u64) -> impl Future<Output = Result<Took, String>> + Send;
}

/// A ranker, over gRPC.
struct Remote {
    ranker: RankerClient<Channel>,
    requests: Requests,
    deadline: Duration,
}

impl Ask for Remote {
    async fn ask(&self, number: u64) -> Result<Took, String> {
        let mut message = self.requests.message(number);
        message.deadline_us = self.deadline.as_micros() as u64;
        message.outputs = vec![self.requests.spec.outputs[0].name.clone()];
        let answer = self.ranker.clone().rank(message).await;
        let answer: v1::RankResponse =
            answer.map_err(|status| format!("{}: {}", code_of(&status), status.message()))?.into_inner();
        let numbers = |bytes: &[u8]| unpack::<f32>(bytes).map(Iterator::collect::<Vec<_>>);
        let places = unpack::<u32>(&answer.indexes).ok_or("indexes that are no numbers")?;
        let values = answer.outputs.first().and_then(|output| numbers(&output.values));
        let mut scores = vec![f32::NAN; self.requests.candidates as usize];
        for (place, value) in places.zip(values.ok_or("no output was answered")?) {
            *scores.get_mut(place as usize).ok_or("a candidate that nobody asked for")? = value;
        }
        let micros = Duration::from_micros;
        Ok(Took {
            lookup: micros(answer.lookup_us),
            dense: micros(answer.dense_us),
            queue: micros(answer.queue_us + answer.batch_wait_us),
            batch_requests: answer.batch_requests,
            rows: answer.rows_looked_up.into(),
            scores,
        })
    }
}

/// The batcher of this process.
struct Own {
    batcher: Batcher,
    model: Arc<BatchModel>,
    requests: Requests,
    deadline: Duration,
}

impl Ask for Own {
    async fn ask(&self, number: u64) -> Result<Took, String> {
        let job = Job {
            model: self.model.clone(),
            rows: self.requests.candidates,
            inputs: self.requests.rows(number),
            tenant: None,
            deadline: Instant::now() + self.deadline,
            budget: self.deadline,
            request_id: String::new(),
            traceparent: None,
            background: false,
            noted: false,
        };
        let ticket = self.batcher.submit(job, Ok).map_err(|error| chain(&error))?;
        let progress = ticket.progress().clone();
        let outputs = ticket.wait().await.map_err(|error| chain(&error))?;
        let share = progress.share();
        Ok(Took {
            lookup: share.lookup.unwrap_or_default(),
            dense: share.dense.unwrap_or_default(),
            queue: share.queued.unwrap_or_default() + share.waited.unwrap_or_default(),
            batch_requests: share.batch_requests,
            rows: share.counts.rows,
            scores: outputs.into_iter().next().unwrap_or_default(),
        })
    }
}

/// What a load gave.
struct Loaded {
    latency: Times,
    sent: u64,
    failed: u64,
    first_failure: Option<String>,
    took: Took,
    elapsed: Duration,
    /// Answers that are to be compared.
    kept: Vec<(u64, Vec<f32>)>,
}

impl Loaded {
    fn new() -> Result<Self, BenchError> {
        Ok(Self {
            latency: Times::new()?,
            sent: 0,
            failed: 0,
            first_failure: None,
            took: Took::default(),
            elapsed: Duration::ZERO,
            kept: Vec::new(),
        })
    }

    fn record(&mut self, number: u64, latency: Duration, answer: Result<Took, String>) {
        self.sent += 1;
        match answer {
            Ok(took) => {
                self.latency.record(latency);
                self.took.lookup += took.lookup;
                self.took.dense += took.dense;
                self.took.queue += took.queue;
                self.took.batch_requests += took.batch_requests;
                self.took.rows += took.rows;
                if self.kept.len() < CHECKED {
                    self.kept.push((number, took.scores));
                }
            }
            Err(problem) => {
                self.failed += 1;
                self.first_failure.get_or_insert(problem);
            }
        }
    }

    fn merge(&mut self, more: &Self) {
        self.latency.merge(&more.latency);
        self.sent += more.sent;
        self.failed += more.failed;
        self.first_failure = self.first_failure.take().or_else(|| more.first_failure.clone());
        self.took.lookup += more.took.lookup;
        self.took.dense += more.took.dense;
        self.took.queue += more.took.queue;
        self.took.batch_requests += more.took.batch_requests;
        self.took.rows += more.took.rows;
        self.elapsed += more.elapsed;
    }

    fn way(&self) -> Way {
        let answered = self.latency.count();
        let each = |sum: f64| sum / (answered.max(1) as f64);
        let micros = |sum: Duration| each(sum.as_secs_f64() * 1e6);
        Way {
            requests: self.sent,
            failed_requests: self.failed,
            first_failure: self.first_failure.clone(),
            requests_per_second: answered as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            mean_us: self.latency.mean_us(),
            p50_us: self.latency.quantile_us(0.5),
            p99_us: self.latency.quantile_us(0.99),
            p999_us: self.latency.quantile_us(0.999),
            lookup_us: micros(self.took.lookup),
            dense_us: micros(self.took.dense),
            queue_us: micros(self.took.queue),
            batch_requests: each(self.took.batch_requests.into()),
            rows_looked_up: each(self.took.rows as f64),
        }
    }
}

/// Puts load on somebody for `time`; requests are numbered from `first` on.
async fn load<A: Ask>(
    who: &Arc<A>,
    rate: Rate,
    time: Duration,
    (first, seed): (u64, u64),
) -> Result<Loaded, BenchError> {
    let report = Arc::new(Mutex::new(Loaded::new()?));
    let most = match rate {
        Rate::PerSecond(_) => MAX_IN_FLIGHT,
        Rate::Max { in_flight } => in_flight.clamp(1, MAX_IN_FLIGHT),
    };
    let in_flight = Arc::new(Semaphore::new(most));
    let mut pacer = Pacer::new()?;
    let mut arrivals = match rate {
        Rate::PerSecond(per_second) => Some(Arrivals::new(per_second, seed)),
        Rate::Max { .. } => None,
    };
    let begin = Instant::now();
    for number in first.. {
        let moment = match arrivals.as_mut().and_then(Iterator::next) {
            Some(at) if at >= time => break,
            Some(at) => {
                pacer.until(begin + at, || in_flight.available_permits() < most).await?;
                Some(begin + at)
            }
            None if begin.elapsed() >= time => break,
            None => None,
        };
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { break };
        let moment = moment.unwrap_or_else(Instant::now);
        let (who, report) = (Arc::clone(who), Arc::clone(&report));
        tokio::spawn(async move {
            let answer = who.ask(number).await;
            let latency = moment.elapsed();
            report.lock().unwrap_or_else(PoisonError::into_inner).record(number, latency, answer);
            drop(report);
            drop(permit);
        });
    }
    // When all permits are back, so are the answers.
    let _: Result<_, _> = in_flight.acquire_many(most as u32).await;
    let report = Arc::into_inner(report).ok_or(BenchError::Parameters("a request outlived its load"))?;
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.elapsed = begin.elapsed();
    Ok(report)
}

/// Microseconds of one thread for the lookup of a request.
fn kernel_us(own: &OwnTables, model: &BatchModel, requests: &Requests, first: u64) -> f64 {
    let mut spent = Duration::ZERO;
    for number in first..first + KERNEL_REQUESTS {
        spent += own.time(model, requests.rows(number));
    }
    spent.as_secs_f64() * 1e6 / KERNEL_REQUESTS as f64
}

async fn measure(params: &Params, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Report, BenchError> {
    let site = Site::open(params, progress).await?;
    let requests = Requests {
        spec: params.model.spec.clone(),
        tables: site.tables.clone(),
        candidates: params.candidates,
        seed: params.seed,
    };
    let deadline = params.deadline;
    let remote = |ranker: &RankerClient<Channel>| {
        Arc::new(Remote { ranker: ranker.clone(), requests: requests.clone(), deadline })
    };
    let (hybrid, timed) = (remote(&site.hybrid), remote(&site.timed));
    let own = Arc::new(Own {
        batcher: site.batcher.clone(),
        model: site.batch_model.clone(),
        requests: requests.clone(),
        deadline,
    });
    let warm = Rate::Max { in_flight: 2 };
    load(&hybrid, warm, WARM_UP, (1 << 40, 0)).await?;
    load(&own, warm, WARM_UP, (1 << 40, 0)).await?;
    load(&timed, warm, WARM_UP, (1 << 40, 0)).await?;

    let rounds = (params.time.as_secs_f64() / ROUND.as_secs_f64()).ceil().max(1.0) as u32;
    let time = params.time / rounds;
    let mut totals = [Loaded::new()?, Loaded::new()?, Loaded::new()?];
    let (mut ratios, mut kernel) = (Vec::new(), Vec::new());
    let (mut checked, mut wrong) = (0, 0);
    for round in 0..rounds {
        // The same numbers for every way: the same requests at the same moments.
        let part = (u64::from(round) << 32, params.seed.wrapping_add(u64::from(round)));
        let mut loads = [None, None, None];
        let order = if round % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] };
        for way in order {
            loads[way] = Some(match way {
                0 => load(&hybrid, params.rate, time, part).await?,
                1 => load(&own, params.rate, time, part).await?,
                _ => load(&timed, params.rate, time, part).await?,
            });
        }
        let loads: Vec<Loaded> = loads.into_iter().flatten().collect();
        for (number, scores) in &loads[0].kept {
            let ours = own.ask(*number).await.map_err(|problem| BenchError::Process {
                process: "the batcher of this process".into(),
                problem,
            })?;
            let same = |(a, b): (&f32, &f32)| (a - b).abs() <= TOLERANCE;
            checked += 1;
            wrong +=
                u64::from(!(scores.len() == ours.scores.len() && scores.iter().zip(&ours.scores).all(same)));
        }
        kernel.push(kernel_us(&site.own, &site.batch_model, &requests, part.0));
        ratios.push(
            loads[0].latency.quantile_us(0.99) / loads[1].latency.quantile_us(0.99).max(f64::MIN_POSITIVE),
        );
        for (total, load) in totals.iter_mut().zip(&loads) {
            total.merge(load);
        }
        progress(Progress::Measuring(u64::from(round) + 1, u64::from(rounds)));
    }
    let built = site.built;
    site.close().await?;
    let [hybrid, in_process, timed] = totals.each_ref().map(Loaded::way);
    let kernel_us = Spread::of(kernel).median;
    let beyond = |us: f64| us - TIMER.as_secs_f64() * 1e6;
    let (offered_per_second, in_flight) = match params.rate {
        Rate::PerSecond(rate) => (Some(rate), None),
        Rate::Max { in_flight } => (None, Some(in_flight)),
    };
    Ok(Report {
        candidates: params.candidates,
        offered_per_second,
        in_flight,
        batched: !params.unbatched,
        in_process_p99_us: in_process.p99_us,
        p99_ratio: Spread::of(ratios),
        kernel_us,
        in_process_ratio: in_process.mean_us / (kernel_us + in_process.dense_us).max(f64::MIN_POSITIVE),
        added_p99_us: beyond(timed.p99_us),
        added_p50_us: beyond(timed.p50_us),
        hybrid,
        in_process,
        timed,
        checked_answers: checked,
        wrong_answers: wrong,
        rounds: rounds as usize,
        nodes: params.nodes,
        groups: params.groups,
        parameters: params.model.parameters,
        table_rows: params.rows,
        built,
        seed: params.seed,
        machine: Machine::here(),
    })
}
