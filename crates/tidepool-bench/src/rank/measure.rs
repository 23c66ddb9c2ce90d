//! Rounds of load on every way of answering.

use std::{sync::Arc, time::Duration};

use tidepool_proto::{
    inference::grpc_inference_service_client::GrpcInferenceServiceClient, v1::ranker_client::RankerClient,
};
use tidepool_ranker::batch::BatchModel;
use tonic::transport::Channel;

use super::{
    Params, Progress, Ratio, Report, TIMER, Way,
    ask::{Ask, Floor, Inference, Own, Remote},
    interval::P99,
    loaded::{Loaded, load},
    ours::OwnTables,
    requests::Requests,
    site::Site,
    stages::Spent,
    truth::Truth,
};
use crate::{BenchError, Machine, Spread, load::Rate};

/// How long a round's load takes at most, for each way.
const ROUND: Duration = Duration::from_secs(2);
/// How long each way answers before anything is measured.
const WARM_UP: Duration = Duration::from_millis(500);
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
    // The client is one thread: a request goes out on the thread that saw its moment come.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the bench's threads"))?;
    runtime.block_on(measure(params, progress))
}

/// Microseconds of one thread for the lookup of a request.
fn kernel_us(
    own: &OwnTables,
    model: &BatchModel,
    requests: &Requests,
    first: u64,
) -> Result<f64, BenchError> {
    let mut spent = Duration::ZERO;
    for number in first..first + KERNEL_REQUESTS {
        spent += own.time(model, requests.rows(number))?;
    }
    Ok(spent.as_secs_f64() * 1e6 / KERNEL_REQUESTS as f64)
}

/// All that can be asked.
struct Ways {
    hybrid: Arc<Remote>,
    own: Arc<Own>,
    timed: Arc<Remote>,
    floor: Arc<Floor>,
    inference: Option<Arc<Inference>>,
    /// The ranker that is a process, asked for tensors: only to compare what it answers, for a timer's scores say nothing.
    hybrid_inference: Option<Inference>,
}

/// How many ways there are; the last is asked where the Open Inference Protocol is measured.
const WAYS: usize = 5;

impl Ways {
    fn new(params: &Params, site: &Site, requests: &Requests) -> Self {
        let deadline = params.deadline;
        let remote = |ranker: &RankerClient<Channel>| {
            Arc::new(Remote { ranker: ranker.clone(), requests: requests.clone(), deadline })
        };
        let own = Own {
            batcher: site.batcher.clone(),
            model: site.batch_model.clone(),
            requests: requests.clone(),
            deadline,
        };
        let floor =
            Floor { ranker: site.timed.clone(), nodes: site.nodes.clone(), requests: requests.clone() };
        let tensors = |ranker: &GrpcInferenceServiceClient<Channel>| {
            let ranker = ranker.clone();
            params.inference.then(|| Inference { ranker, requests: requests.clone(), deadline })
        };
        Self {
            hybrid: remote(&site.hybrid),
            own: Arc::new(own),
            timed: remote(&site.timed),
            floor: Arc::new(floor),
            inference: tensors(&site.inference).map(Arc::new),
            hybrid_inference: tensors(&site.hybrid_inference),
        }
    }

    /// What the same requests are answered over the Open Inference Protocol, where that is measured.
    async fn over_inference(&self, kept: &[(u64, Vec<f32>)]) -> Result<Vec<(u64, Vec<f32>)>, BenchError> {
        let Some(inference) = &self.hybrid_inference else { return Ok(Vec::new()) };
        let mut answers = Vec::with_capacity(kept.len());
        for (number, _) in kept {
            let failed = |problem| BenchError::Process {
                process: "the ranker, asked over the Open Inference Protocol,".into(),
                problem,
            };
            answers.push((*number, inference.ask(inference.prepare(*number)).await.map_err(failed)?.scores));
        }
        Ok(answers)
    }

    async fn load(
        &self,
        way: usize,
        rate: Rate,
        time: Duration,
        part: (u64, u64),
    ) -> Result<Loaded, BenchError> {
        match (way, &self.inference) {
            (0, _) => load(&self.hybrid, rate, time, part).await,
            (1, _) => load(&self.own, rate, time, part).await,
            (2, _) => load(&self.timed, rate, time, part).await,
            (3, _) => load(&self.floor, rate, time, part).await,
            (_, Some(inference)) => load(inference, rate, time, part).await,
            (_, None) => Loaded::new(),
        }
    }
}

/// What comparing answers has shown.
#[derive(Debug, Default)]
struct Checked {
    answers: u64,
    wrong: u64,
}

impl Checked {
    /// Holds answers against the same model and tables within this process, and against the oracle.
    async fn check(
        &mut self,
        kept: &[(u64, Vec<f32>)],
        own: &Own,
        truth: &mut Truth,
    ) -> Result<(), BenchError> {
        for (number, scores) in kept {
            let failed =
                |problem| BenchError::Process { process: "the batcher of this process".into(), problem };
            let ours = own.ask(own.prepare(*number)).await.map_err(failed)?;
            // Written so that NaN is wrong.
            let same = |(a, b): (&f32, &f32)| (a - b).abs() <= TOLERANCE;
            let alike = scores.len() == ours.scores.len() && scores.iter().zip(&ours.scores).all(same);
            let right = truth.is_right(*number, &own.requests.rows(*number), scores)?;
            self.answers += 1;
            self.wrong += u64::from(!(alike && right));
        }
        Ok(())
    }
}

async fn measure(params: &Params, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Report, BenchError> {
    let site = Site::open(params, progress).await?;
    let requests = Requests {
        spec: params.model.spec.clone(),
        tables: site.tables.clone(),
        candidates: params.candidates,
        seed: params.seed,
    };
    let ways = Ways::new(params, &site, &requests);
    let mut truth = Truth::new(&params.model, &site.tables)?;
    for way in 0..WAYS {
        ways.load(way, Rate::Max { in_flight: 2 }, WARM_UP, (1 << 40, 0)).await?;
    }
    let rounds = (params.time.as_secs_f64() / ROUND.as_secs_f64()).ceil().max(1.0) as u32;
    let time = params.time / rounds;
    let mut totals = Vec::new();
    for _ in 0..WAYS {
        totals.push(Loaded::new()?);
    }
    let (mut kernel, mut checked, mut spent) = (Vec::new(), Checked::default(), Spent::default());
    for round in 0..rounds {
        // The same numbers for every way: the same requests at the same moments.
        let part = (u64::from(round) << 32, params.seed.wrapping_add(u64::from(round)));
        let mut order: Vec<usize> = (0..WAYS).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for way in order {
            let before = (way == 2).then(|| site.spent());
            let loaded = ways.load(way, params.rate, time, part).await?;
            if let Some(before) = before {
                spent.add(site.spent().since(before, loaded.spun));
            }
            if way == 0 {
                checked.check(&loaded.kept, &ways.own, &mut truth).await?;
                let tensors = ways.over_inference(&loaded.kept).await?;
                checked.check(&tensors, &ways.own, &mut truth).await?;
            }
            totals[way].merge(&loaded);
        }
        kernel.push(kernel_us(&site.own, &site.batch_model, &requests, part.0)?);
        progress(Progress::Measuring(u64::from(round) + 1, u64::from(rounds)));
    }
    let built = site.built;
    site.close().await?;
    Ok(report(params, &totals, (Spread::of(kernel).median, rounds as usize, built), (checked, truth, spent)))
}

fn report(
    params: &Params,
    totals: &[Loaded],
    (kernel_us, rounds, built): (f64, usize, bool),
    (checked, truth, spent): (Checked, Truth, Spent),
) -> Report {
    let way = |at: usize| totals.get(at).map(Loaded::way).unwrap_or_default();
    let [hybrid, in_process, timed, floor] = [0, 1, 2, 3].map(way);
    let beyond = |us: f64| us - TIMER.as_secs_f64() * 1e6;
    let (offered_per_second, in_flight) = match params.rate {
        Rate::PerSecond(rate) => (Some(rate), None),
        Rate::Max { in_flight } => (None, Some(in_flight)),
    };
    let added_p99 = timed.p99.map(|p99| P99 {
        us: beyond(p99.us),
        low_us: beyond(p99.low_us),
        high_us: p99.high_us.map(beyond),
        ..p99
    });
    let inference = params.inference.then(|| way(4));
    let ratio = |a: &Way, b: &Way| {
        let (a, b) = (a.p99?, b.p99?);
        let high = a.high_us.map(|high| high / b.low_us.max(f64::MIN_POSITIVE));
        let low = a.low_us / b.high_us.unwrap_or(b.us.max(in_process.max_us)).max(f64::MIN_POSITIVE);
        Some(Ratio { value: a.us / b.us.max(f64::MIN_POSITIVE), low, high })
    };
    Report {
        candidates: params.candidates,
        offered_per_second,
        in_flight,
        batched: !params.unbatched,
        in_process_p99_us: in_process.p99_us,
        p99_ratio: ratio(&hybrid, &in_process),
        kernel_us,
        in_process_ratio: in_process.mean_us / (kernel_us + in_process.dense_us).max(f64::MIN_POSITIVE),
        added_p99_us: added_p99.map(|p99| p99.us),
        added_p99,
        added_p50_us: beyond(timed.p50_us),
        added_us: totals.get(2).map(|loaded| loaded.stages.times()).unwrap_or_default().into_iter().collect(),
        costs: spent.each(timed.requests),
        inference_added_p50_us: inference.as_ref().map(|way| way.p50_us - timed.p50_us),
        inference,
        hybrid,
        in_process,
        timed,
        floor,
        checked_answers: checked.answers,
        wrong_answers: checked.wrong,
        oracle: truth.found(),
        rounds,
        nodes: params.nodes,
        groups: params.groups,
        parameters: params.model.parameters,
        table_rows: params.rows,
        built,
        seed: params.seed,
        machine: Machine::here(),
    }
}
