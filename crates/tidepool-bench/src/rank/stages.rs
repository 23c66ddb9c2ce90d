//! What the time between sending a request and its answer went into, stage by stage; and what it cost the processes.

use std::{collections::BTreeMap, process, time::Duration};

use serde::Serialize;

use crate::{BenchError, load::Times, proc};

/// A stage of a request, in the order in which they pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// From the moment at which it was meant to be sent until it was.
    Start,
    /// What the ranker does not see: the client writes the request and reads the answer, both travel, the ranker reads
    /// the one and writes the other.
    ClientAndWire,
    /// The release is chosen, and the request held against its contract.
    Check,
    /// Until its batch leaves.
    BatchWait,
    /// Duplicates are dropped, and nodes chosen.
    Split,
    /// Questions are written, travel and are read, and so are the answers.
    NodesWire,
    /// The slowest node works.
    Nodes,
    /// Vectors are made of the answers.
    Merge,
    /// The wait for a thread.
    HandOver,
    /// By how much the timer in the place of the dense run, and what stands around it, was late.
    Late,
    /// Calibration, ranking, top-k.
    Finish,
    /// Everything else within the ranker: the batch is formed, tasks are woken, the answer comes back from its thread.
    HandBack,
}

impl Stage {
    pub(super) const ALL: [Self; 12] = [
        Self::Start,
        Self::ClientAndWire,
        Self::Check,
        Self::BatchWait,
        Self::Split,
        Self::NodesWire,
        Self::Nodes,
        Self::Merge,
        Self::HandOver,
        Self::Late,
        Self::Finish,
        Self::HandBack,
    ];

    /// The word for JSON.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::ClientAndWire => "client_and_wire",
            Self::Check => "check",
            Self::BatchWait => "batch_wait",
            Self::Split => "split",
            Self::NodesWire => "nodes_wire",
            Self::Nodes => "nodes",
            Self::Merge => "merge",
            Self::HandOver => "hand_over",
            Self::Late => "timer_late",
            Self::Finish => "finish",
            Self::HandBack => "rest",
        }
    }
}

/// Times of a stage, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageTimes {
    /// Of all requests.
    pub mean_us: f64,
    /// Half of them took less.
    pub p50_us: f64,
    /// 99 of 100 took less.
    pub p99_us: f64,
}

/// The stages of many requests.
#[derive(Clone, Debug, Default)]
pub(super) struct StageCounts(BTreeMap<Stage, Times>);

impl StageCounts {
    pub(super) fn record(&mut self, stage: Stage, time: Duration) -> Result<(), BenchError> {
        if let Some(times) = self.0.get_mut(&stage) {
            times.record(time);
            return Ok(());
        }
        let mut times = Times::new()?;
        times.record(time);
        self.0.insert(stage, times);
        Ok(())
    }

    pub(super) fn merge(&mut self, more: &Self) {
        for (stage, times) in &more.0 {
            match self.0.get_mut(stage) {
                Some(all) => all.merge(times),
                None => drop(self.0.insert(*stage, times.clone())),
            }
        }
    }

    /// Stage by stage, those that there are.
    pub(super) fn times(&self) -> Vec<(&'static str, StageTimes)> {
        let times = Stage::ALL.iter().filter_map(|stage| Some((stage, self.0.get(stage)?)));
        let shown = times.map(|(stage, times)| {
            let (p50_us, p99_us) = (times.quantile_us(0.5), times.quantile_us(0.99));
            (stage.as_str(), StageTimes { mean_us: times.mean_us(), p50_us, p99_us })
        });
        shown.collect()
    }
}

/// What a request costs processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Time of threads, in microseconds, by the scheduler's own count.
    pub cpu_us: f64,
    /// How often a thread went to sleep, and had to be woken.
    pub wakeups: f64,
}

/// What a request costs all who have to do with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Costs {
    /// Whoever sends requests, without what it spends looking at the clock.
    pub client: Cost,
    /// The ranker.
    pub ranker: Cost,
    /// All nodes.
    pub nodes: Cost,
}

/// Threads of the ranker in this process begin with these.
pub(super) const RANKER_THREADS: [&str; 2] = ["ranker-io", "cpu-"];

/// What has been spent until now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    client: (Duration, u64),
    ranker: (Duration, u64),
    nodes: (Duration, u64),
}

impl Spent {
    /// By this process, in which the client and the ranker are, and by the nodes.
    pub(super) fn now(nodes: impl Iterator<Item = u32>) -> Self {
        let of = |pid: u32, prefix: &str| {
            (proc::cpu_time(pid, prefix).unwrap_or_default(), proc::wakeups(pid, prefix).unwrap_or_default())
        };
        let sum = |a: (Duration, u64), b: (Duration, u64)| (a.0 + b.0, a.1 + b.1);
        let here = process::id();
        let (all, ranker) = (of(here, ""), RANKER_THREADS.map(|prefix| of(here, prefix)));
        let ranker = sum(ranker[0], ranker[1]);
        let client = (all.0.saturating_sub(ranker.0), all.1.saturating_sub(ranker.1));
        let nodes = nodes.map(|pid| of(pid, "")).fold((Duration::ZERO, 0), sum);
        Self { client, ranker, nodes }
    }

    /// What was spent since `before`; the client `spun` so long.
    pub(super) fn since(self, before: Self, spun: Duration) -> Self {
        let less =
            |a: (Duration, u64), b: (Duration, u64)| (a.0.saturating_sub(b.0), a.1.saturating_sub(b.1));
        let mut client = less(self.client, before.client);
        client.0 = client.0.saturating_sub(spun);
        Self { client, ranker: less(self.ranker, before.ranker), nodes: less(self.nodes, before.nodes) }
    }

    pub(super) fn add(&mut self, more: Self) {
        for (sum, more) in
            [(&mut self.client, more.client), (&mut self.ranker, more.ranker), (&mut self.nodes, more.nodes)]
        {
            sum.0 += more.0;
            sum.1 += more.1;
        }
    }

    /// Each of `requests`.
    pub(super) fn each(self, requests: u64) -> Costs {
        let each = |(time, wakeups): (Duration, u64)| Cost {
            cpu_us: time.as_secs_f64() * 1e6 / requests.max(1) as f64,
            wakeups: wakeups as f64 / requests.max(1) as f64,
        };
        Costs { client: each(self.client), ranker: each(self.ranker), nodes: each(self.nodes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_shown_in_their_order_and_those_of_several_rounds_together() {
        let (mut all, mut more) = (StageCounts::default(), StageCounts::default());
        all.record(Stage::Finish, Duration::from_micros(10)).unwrap();
        more.record(Stage::Check, Duration::from_micros(5)).unwrap();
        more.record(Stage::Finish, Duration::from_micros(30)).unwrap();
        all.merge(&more);
        let times = all.times();
        assert_eq!(times.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["check", "finish"]);
        assert!((times[1].1.mean_us - 20.0).abs() < 0.1, "{times:?}");
        let names: std::collections::BTreeSet<_> = Stage::ALL.iter().map(|stage| stage.as_str()).collect();
        assert_eq!(names.len(), Stage::ALL.len());
    }

    #[test]
    fn what_was_spent_is_shared_out_and_the_look_at_the_clock_left_out() {
        let us = Duration::from_micros;
        let at = |client: u64, wakeups: u64| Spent {
            client: (us(client), wakeups),
            ranker: (us(100), 7),
            nodes: (us(1), 1),
        };
        let mut all = Spent::default();
        all.add(at(900, 12).since(at(100, 2), us(200)));
        let each = all.each(10);
        assert_eq!(each.client, Cost { cpu_us: 60.0, wakeups: 1.0 });
        assert_eq!(each.ranker, Cost::default());
    }
}
