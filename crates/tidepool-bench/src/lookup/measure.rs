//! Rounds and steps of load on a site.

use std::{sync::Arc, time::Duration};

use tidepool_client::LookupRequest;

use super::{
    BareTcp, Break, Kernel, Params, Progress, ROUND, Report, STEP_FACTOR, Steps,
    echo::EchoServers,
    figures::{Cpu, Figures, node_cpu_ns_per_row},
    kernel::InProcess,
    site::{Site, client_cpu},
    traced::Traced,
};
use crate::{
    BenchError, BenchTable, Machine, Spread,
    load::{self, Asked, CheckRows, Keep, LoadReport, LoadSpec, Lookups, Rate},
};

/// Puts load on a site.
pub(super) struct Bench<'a> {
    pub(super) params: &'a Params,
    /// With the table of the site.
    pub(super) asked: Asked,
    /// What is asked instead of what `asked` draws.
    pub(super) traced: Option<Traced>,
    pub(super) site: &'a Site,
}

/// Which requests a load sends.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// The seed of arrivals, and of what is drawn.
    seed: u64,
    /// Requests of the trace that were sent before.
    first: u64,
}

/// A load and what both sides spent on it.
struct Loaded {
    report: LoadReport,
    cpu: Cpu,
}

impl Loaded {
    fn none() -> Result<Self, BenchError> {
        Ok(Self { report: LoadReport::new()?, cpu: Cpu::default() })
    }

    fn merge(&mut self, other: &Self) {
        self.report.merge(&other.report);
        self.cpu.merge(other.cpu);
    }

    fn node_ns_per_row(&self) -> Option<f64> {
        node_cpu_ns_per_row(&self.report, self.cpu)
    }
}

impl Bench<'_> {
    /// What is sent of `part`.
    fn requests(&self, part: Part) -> Result<Box<dyn Iterator<Item = LookupRequest> + Send>, BenchError> {
        Ok(match &self.traced {
            Some(traced) => Box::new(traced.requests(part.first)?),
            None => Box::new(Asked { seed: part.seed, ..self.asked }.requests()?),
        })
    }

    /// Ids of a request, on average.
    fn mean_ids(&self) -> usize {
        self.traced.as_ref().map_or_else(|| self.asked.ids(), |traced| traced.survey.mean_ids())
    }

    /// Whether nothing is left of the trace once so many requests were sent.
    fn is_over(&self, sent: u64) -> bool {
        self.traced.as_ref().is_some_and(|traced| traced.is_over(sent))
    }

    /// Lookups of the cluster for `time`.
    async fn lookups(&self, rate: Rate, time: Duration, part: Part) -> Result<Loaded, BenchError> {
        let (ids, most) = (self.mean_ids(), LoadSpec::MAX_IN_FLIGHT);
        let (plan, pace) = rate.plan(self.requests(part)?, ids, time, part.seed, most)?;
        let (client, options) = (self.site.client.clone(), self.params.options.clone());
        let check = (Arc::new(CheckRows(self.asked.table)) as _, Keep::default());
        let before = self.site.cpu();
        let report = load::drive(Arc::new(Lookups { client, options }), plan, pace, Some(check)).await?;
        let cpu = self.site.cpu().since(before);
        self.traced.as_ref().map_or(Ok(()), Traced::check)?;
        Ok(Loaded { report, cpu })
    }

    /// Lookups that nobody measures, so that connections are open and pages are where they belong. They are drawn,
    /// whatever is asked later.
    pub(super) async fn warm_up(&self, time: Duration, in_flight: usize) -> Result<(), BenchError> {
        let asked = Asked { seed: self.asked.seed ^ 0x7761_726d, ..self.asked };
        let spec = LoadSpec {
            options: self.params.options.clone(),
            ..LoadSpec::new(asked, Rate::Max { in_flight }, time)
        };
        load::run(&self.site.client, &spec).await.map(|_| ())
    }

    /// The same arrivals and sizes as [`lookups`](Self::lookups) of that part, as bare bytes.
    async fn bytes(
        &self,
        servers: &EchoServers,
        bytes: Bytes,
        rate: Rate,
        time: Duration,
        part: Part,
    ) -> Result<Loaded, BenchError> {
        let (ids, most) = (self.mean_ids(), LoadSpec::MAX_IN_FLIGHT);
        let (plan, pace) = rate.plan(self.requests(part)?, ids, time, part.seed, most)?;
        let target = servers.target(bytes.sent_per_id, bytes.received_per_id);
        let cpu = || Cpu { nodes: Some(servers.cpu_time()), client: Some(client_cpu()) };
        let before = cpu();
        let report = load::drive(Arc::new(target), plan, pace, None).await?;
        Ok(Loaded { report, cpu: cpu().since(before) })
    }

    /// Rounds until the time is over: lookups, bare bytes and the kernel in turns.
    pub(super) async fn rounds(
        &self,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Report, BenchError> {
        let Params { rate, time, baseline, kernel, .. } = *self.params;
        let rounds = time.as_secs_f64() / ROUND.as_secs_f64();
        let rounds = (rounds.ceil() as u32).max(1);
        let time = time / rounds;
        let servers = if baseline { self.site.echo_servers().await? } else { None };
        let mut in_process = match &self.site.local {
            Some(local) if kernel => {
                Some(InProcess::open(&self.asked, &local.store, &mut |step, done, of| {
                    progress(Progress::Table(step, done, of));
                })?)
            }
            _ => None,
        };
        let (mut total, mut bare) = (Loaded::none()?, Loaded::none()?);
        let mut ratios: [Vec<f64>; 3] = Default::default();
        let (mut kernel_ns, mut kernel_ratios) = (Vec::new(), Vec::new());
        let mut measured = 0;
        for round in 0..rounds {
            if self.is_over(total.report.requests) {
                break;
            }
            let seed = self.asked.seed.wrapping_add(u64::from(round) << 32);
            let part = Part { seed, first: total.report.requests };
            let mut ours = None;
            // Bare bytes need to know how many there are: in the first round lookups go first.
            if round % 2 == 0 {
                ours = Some(self.lookups(rate, time, part).await?);
            }
            let known = ours.as_ref().map_or(&total, |ours| ours);
            let bytes = Bytes::of(&known.report, &self.asked);
            let theirs = match &servers {
                Some(servers) => Some(self.bytes(servers, bytes, rate, time, part).await?),
                None => None,
            };
            let kernel = in_process.as_mut().map(InProcess::ns_per_row).transpose()?;
            let ours = match ours {
                Some(ours) => ours,
                None => self.lookups(rate, time, part).await?,
            };
            if let Some(theirs) = theirs {
                let of = |loaded: &Loaded| {
                    let times = &loaded.report.latency;
                    [times.mean_us(), times.quantile_us(0.5), times.quantile_us(0.99)]
                };
                for ((ratios, ours), theirs) in ratios.iter_mut().zip(of(&ours)).zip(of(&theirs)) {
                    ratios.push(ours / theirs.max(f64::MIN_POSITIVE));
                }
                bare.merge(&theirs);
            }
            if let Some(ns) = kernel {
                kernel_ns.push(ns);
                kernel_ratios.extend(ours.node_ns_per_row().map(|nodes| nodes / ns));
            }
            total.merge(&ours);
            measured += 1;
            progress(Progress::Measuring(u64::from(round) + 1, u64::from(rounds)));
        }
        let offered = offered(rate);
        let bytes = Bytes::of(&total.report, &self.asked);
        let ids = total.report.per_request(total.report.ids);
        let [mean_ratio, p50_ratio, p99_ratio] = ratios.map(Spread::of);
        Ok(Report {
            rounds: measured,
            trace: self.traced.as_ref().map(|traced| traced.of(total.report.requests)),
            bare_tcp: servers.map(|_| BareTcp {
                figures: Figures::new(&bare.report, offered, bare.cpu),
                sent_bytes_per_request: bytes.sent_per_id * ids,
                received_bytes_per_request: bytes.received_per_id * ids,
                mean_ratio,
                p50_ratio,
                p99_ratio,
            }),
            kernel: in_process.map(|_| Kernel {
                ns_per_row: Spread::of(kernel_ns),
                node_cpu_ratio: Spread::of(kernel_ratios),
            }),
            ..self.report(Figures::new(&total.report, offered, total.cpu))
        })
    }

    /// Grows the rate until a step breaks.
    pub(super) async fn steps(
        &self,
        first: f64,
        steps: Steps,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Report, BenchError> {
        let (mut found, mut broken_by, mut sent) = (Vec::new(), None, 0);
        for step in 0..steps.most.max(1) {
            let rate = first * STEP_FACTOR.powi(step as i32);
            let seed = self.asked.seed.wrapping_add((step as u64) << 32);
            let part = Part { seed, first: sent };
            let loaded = self.lookups(Rate::PerSecond(rate), self.params.time, part).await?;
            sent += loaded.report.requests;
            let figures = Figures::new(&loaded.report, Some(rate), loaded.cpu);
            progress(Progress::Measuring(step as u64 + 1, steps.most as u64));
            broken_by = Break::of(&figures, self.params.time, steps.slo_p99_us);
            found.push(figures);
            if broken_by.is_some() || self.is_over(sent) {
                break;
            }
        }
        let held = found.len() - usize::from(broken_by.is_some());
        // A step that broke is at the head only where there is no other; `steps_held` says so then.
        let head = found.get(held.saturating_sub(1)).cloned();
        let head = head.ok_or(BenchError::Parameters("there is at least one step"))?;
        Ok(Report {
            trace: self.traced.as_ref().map(|traced| traced.of(sent)),
            steps_held: Some(held),
            steps_ended_by: broken_by,
            steps: found,
            slo_p99_us: steps.slo_p99_us,
            ..self.report(head)
        })
    }

    /// What was asked for, and `figures`.
    fn report(&self, figures: Figures) -> Report {
        let Params { options, client_threads, rate, .. } = self.params;
        let Asked { table, mut batch, shape, mut bag, pooling, weighted, skew, seed } = self.asked;
        let (mut shape, mut skew) = (shape.to_string(), skew.to_string());
        if let Some(Traced { survey, .. }) = &self.traced {
            batch = whole(survey.bags, survey.requests);
            bag = whole(survey.ids, survey.bags);
            (shape, skew) = ("trace".to_owned(), "trace".to_owned());
        }
        Report {
            nodes: self.site.nodes,
            groups: self.site.groups,
            table_version: self.site.table_version.clone(),
            table_rows: table.rows,
            partitions: table.partitions.get(),
            dim: table.dim,
            format: table.format,
            keys: table.keying,
            built: self.site.built,
            batch,
            batch_shape: shape,
            bag,
            pooling: self.traced.is_none().then_some(pooling),
            weighted: self.traced.is_none().then_some(weighted),
            skew,
            exact: options.exact,
            wire_form: options.wire_form.map(|form| format!("{form:?}").to_lowercase()),
            seed,
            timeout_ms: u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX),
            client_threads: client_threads.get(),
            in_flight: match rate {
                Rate::Max { in_flight } => Some(*in_flight),
                Rate::PerSecond(_) => None,
            },
            figures,
            rounds: 0,
            bare_tcp: None,
            kernel: None,
            trace: None,
            steps: Vec::new(),
            steps_held: None,
            steps_ended_by: None,
            slo_p99_us: None,
            machine: Machine::here(),
        }
    }
}

/// `total` for each of `count`, rounded; 0 when there is none.
fn whole(total: u64, count: u64) -> usize {
    usize::try_from((total + count / 2).checked_div(count).unwrap_or(0)).unwrap_or(usize::MAX)
}

fn offered(rate: Rate) -> Option<f64> {
    match rate {
        Rate::PerSecond(rate) => Some(rate),
        Rate::Max { .. } => None,
    }
}

/// Bytes that lookups sent and received, for each id that was asked for.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    sent_per_id: f64,
    received_per_id: f64,
}

impl Bytes {
    /// Those of a load. What was sent follows from how many bytes there were in all: a stored row goes with
    /// eight bytes of id; of sums, their size is known, and so how many there were.
    fn of(report: &LoadReport, asked: &Asked) -> Self {
        let BenchTable { format, dim, .. } = asked.table;
        let (gather, pool) = (report.gather_bytes as f64, report.pool_bytes as f64);
        let (ids, rows) = (report.ids as f64, report.rows_requested as f64);
        let gathered = gather / (8 + format.row_bytes(dim)) as f64;
        let pooled = rows - gathered;
        // Members are named when some stand more than once.
        let members = if report.rows_requested < report.ids { 4.0 * (ids - gathered) } else { 0.0 };
        let weight = if asked.weighted { 4.0 } else { 0.0 };
        let questions = 8.0 * pooled + members + weight * (ids - gathered);
        let sums = (pool - questions).max(0.0) / (4.0 + 4.0 * f64::from(dim) + 4.0 + weight);
        let sent = if pool > 0.0 { 8.0 * gathered + questions + 4.0 * sums } else { 8.0 * rows };
        let of_id = |bytes: f64| if ids > 0.0 { bytes / ids } else { 0.0 };
        Self { sent_per_id: of_id(sent), received_per_id: of_id((gather + pool - sent).max(0.0)) }
    }
}

#[cfg(test)]
mod tests {
    use tidepool_types::{Keying, PartitionCount, Pooling, RowFormat};

    use super::*;
    use crate::{Skew, load::BatchShape};

    #[test]
    fn bytes_sent_and_received_are_told_apart() {
        let asked = Asked {
            table: BenchTable {
                rows: 1000,
                dim: 64,
                format: RowFormat::Int4,
                keying: Keying::Hashed,
                partitions: PartitionCount::new(4).unwrap(),
            },
            batch: 100,
            shape: BatchShape::Fixed,
            bag: 20,
            pooling: Pooling::Sum,
            weighted: true,
            skew: Skew::Uniform,
            seed: 1,
        };
        let report = LoadReport { ids: 2000, rows_requested: 2000, ..LoadReport::new().unwrap() };
        let gathered = LoadReport { gather_bytes: 2000 * (8 + 36), ..report.clone() };
        let bytes = Bytes::of(&gathered, &asked);
        assert_eq!((bytes.sent_per_id, bytes.received_per_id), (8.0, 36.0));
        // 130 sums: ids, weights and lengths there; sums, counts and sums of weights back.
        let pool_bytes = 2000 * 12 + 130 * (4 + 64 * 4 + 8);
        let bytes = Bytes::of(&LoadReport { pool_bytes, ..report }, &asked);
        assert!((bytes.sent_per_id * 2000.0 - f64::from(2000 * 12 + 130 * 4)).abs() < 1.0, "{bytes:?}");
        assert!((bytes.received_per_id * 2000.0 - f64::from(130 * (64 * 4 + 8))).abs() < 1.0, "{bytes:?}");
    }
}
