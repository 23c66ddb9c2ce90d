//! The replay: samples are read one after the other, scored in every cell on the threads of a pool, and added up in their
//! order.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{BufRead, BufReader, stdin},
    path::{Path, PathBuf},
    sync::Arc,
};

use tidepool_ranker::{
    Limits, RankError,
    offline::{Prepared, Scored},
    samples::{Entry, Sample, SampleReader},
};
use tidepool_runtime::pool::CpuPool;
use tidepool_store::ArtifactStore;
use tidepool_train::Tally;
use tidepool_types::{ModelSpec, TableVersion};
use tokio::task::JoinHandle;

use crate::{
    SkewError,
    cells::{Cell, Judged, Opener, Plan, Runs},
    labels::Labels,
    online::OnlineReport,
    report::{CellReport, MissingReport, OutputReport, ReleaseReport, ScoreChange, SkewReport},
};

/// Requests that are scored at the same time, per thread: enough that no thread waits for the one that reads.
const AHEAD_PER_THREAD: usize = 4;
/// Jobs that may wait for a thread. Those are never more than the requests under way have.
const POOL_QUEUE_LEN: usize = 1 << 16;
/// Lines are bounded, and so are the requests on them.
const LIMITS: Limits = Limits { max_candidates: u32::MAX, max_ids: u64::MAX };

/// How a sample is replayed.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Threads that run models. Rows are looked up on those of the runtime.
    pub threads: usize,
    /// By how much an online score may differ from the one that is computed here, as a part of the larger of 1 and the
    /// score.
    pub score_bound: f64,
}

/// How far a replay is.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress<'a> {
    /// A table is being opened and verified.
    Opening(&'a TableVersion),
    /// So many requests have been scored, and so many bytes of the samples read.
    Scored {
        /// Of all samples.
        requests: u64,
        /// Of all samples.
        bytes: u64,
    },
}

/// Scores every request of the samples with every dense model and every set of tables of the plan. A sample is a file, or
/// `-` for stdin.
///
/// # Errors
/// [`SkewError`]; what is wrong with a sample names file and line.
pub async fn replay(
    store: &ArtifactStore,
    plan: &Plan,
    samples: &[PathBuf],
    mut labels: Option<Labels>,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SkewReport, SkewError> {
    let pool = CpuPool::new(options.threads, POOL_QUEUE_LEN)?;
    let mut opener = Opener::new(store, (&pool, options.threads));
    let judged = opener.open(plan, &mut |table| progress(Progress::Opening(table)))?;
    let mut totals = Totals::new(judged, options.score_bound);
    let mut under_way: VecDeque<UnderWay> = VecDeque::new();
    let most = options.threads.max(1) * AHEAD_PER_THREAD;
    let mut bytes_before = 0;
    for path in samples {
        let mut reader = SampleReader::new(open(path)?);
        let path: Arc<Path> = path.as_path().into();
        loop {
            let failed = |error| SkewError::Sample { path: path.to_path_buf(), source: Box::new(error) };
            let Some(entry) = reader.next_entry().map_err(failed)? else { break };
            match entry {
                Entry::Damaged { line } => totals.damaged(&path, line),
                Entry::Sample(sample) => {
                    under_way.push_back(totals.begin(*sample, labels.as_mut(), &path)?)
                }
            }
            if under_way.len() >= most {
                totals.end_first(&mut under_way).await?;
                progress(Progress::Scored {
                    requests: totals.requests,
                    bytes: bytes_before + reader.bytes(),
                });
            }
        }
        bytes_before += reader.bytes();
    }
    while !under_way.is_empty() {
        totals.end_first(&mut under_way).await?;
        progress(Progress::Scored { requests: totals.requests, bytes: bytes_before });
    }
    if totals.requests == 0 {
        return Err(SkewError::Empty { damaged: totals.damaged_lines });
    }
    Ok(totals.report(plan, labels.as_ref()))
}

fn open(path: &Path) -> Result<Box<dyn BufRead>, SkewError> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(BufReader::new(stdin())));
    }
    let file = File::open(path).map_err(|source| SkewError::File { path: path.to_owned(), source })?;
    Ok(Box::new(BufReader::with_capacity(1 << 16, file)))
}

/// A request that is being scored.
struct UnderWay {
    sample: Sample,
    path: Arc<Path>,
    candidates: usize,
    /// Per release, per cell that runs.
    scored: JoinHandle<Result<Vec<Vec<Scored>>, Failed>>,
}

/// A cell that could not score a request.
struct Failed {
    release: usize,
    cell: usize,
    error: Box<RankError>,
}

/// What has been added up.
struct Totals {
    judged: Vec<Judged>,
    /// Per release, per cell that runs.
    runs: Vec<Vec<(usize, Arc<Runs>)>>,
    sums: Vec<Vec<CellSums>>,
    online: Vec<Option<OnlineReport>>,
    bound: f64,
    requests: u64,
    candidates: u64,
    labelled: u64,
    damaged_lines: u64,
    first_damaged: Option<String>,
    online_of_others: u64,
}

#[derive(Default)]
struct CellSums {
    tallies: BTreeMap<String, Tally>,
    moved: f64,
    moved_most: f64,
}

impl Totals {
    fn new(judged: Vec<Judged>, bound: f64) -> Self {
        let that_run = |judged: &Judged| {
            let cells = judged.cells.iter().enumerate();
            cells.filter_map(|(at, cell)| Some((at, cell.runs.as_ref().ok()?.clone()))).collect::<Vec<_>>()
        };
        let runs: Vec<Vec<_>> = judged.iter().map(that_run).collect();
        let sums = runs.iter().map(|runs| runs.iter().map(|_| CellSums::default()).collect()).collect();
        let online = judged.iter().map(|_| None).collect();
        Self {
            judged,
            runs,
            sums,
            online,
            bound,
            requests: 0,
            candidates: 0,
            labelled: 0,
            damaged_lines: 0,
            first_damaged: None,
            online_of_others: 0,
        }
    }

    fn damaged(&mut self, path: &Path, line: u64) {
        self.damaged_lines += 1;
        self.first_damaged.get_or_insert_with(|| format!("{}, line {line}", path.display()));
    }

    /// Holds a request against the contract of every release, and has it scored.
    fn begin(
        &self,
        mut sample: Sample,
        labels: Option<&mut Labels>,
        path: &Arc<Path>,
    ) -> Result<UnderWay, SkewError> {
        let failed = |error| SkewError::Sample { path: path.to_path_buf(), source: Box::new(error) };
        let prepare = |sample: &Sample| {
            let prepared = self.judged.iter().map(|judged| sample.prepare(&judged.spec, LIMITS));
            prepared.collect::<Result<Vec<Prepared>, _>>()
        };
        let mut prepared = prepare(&sample).map_err(failed)?;
        let candidates = prepared.first().map_or(0, |prepared| prepared.candidates as usize);
        if let Some(labels) = labels {
            labels.join(&mut sample, candidates).map_err(failed)?;
            // What was joined may speak of outputs that there are not.
            prepared = prepare(&sample).map_err(failed)?;
        }
        let runs: Vec<Vec<Arc<Runs>>> =
            self.runs.iter().map(|runs| runs.iter().map(|(_, runs)| runs.clone()).collect()).collect();
        let scored = tokio::spawn(async move {
            let mut scored = Vec::with_capacity(runs.len());
            for (release, (runs, request)) in runs.iter().zip(&prepared).enumerate() {
                let mut of_release = Vec::with_capacity(runs.len());
                for (cell, runs) in runs.iter().enumerate() {
                    let one = runs.model.score(request).await;
                    of_release.push(one.map_err(|e| Failed { release, cell, error: Box::new(e) })?);
                }
                scored.push(of_release);
            }
            Ok(scored)
        });
        Ok(UnderWay { sample, path: path.clone(), candidates, scored })
    }

    /// Waits for the request that was begun first, and adds it.
    async fn end_first(&mut self, under_way: &mut VecDeque<UnderWay>) -> Result<(), SkewError> {
        let Some(UnderWay { sample, path, candidates, scored }) = under_way.pop_front() else {
            return Ok(());
        };
        let scored = scored.await?.map_err(|Failed { release, cell, error: source }| {
            let judged = &self.judged[release];
            let cell = &judged.cells[self.runs[release][cell].0];
            let (release, tables) = (judged.release.clone(), cell.tables_of.to_string());
            SkewError::Score { path: path.to_path_buf(), line: sample.line, release, tables, source }
        })?;
        self.add(&sample, candidates, &scored);
        Ok(())
    }

    fn add(&mut self, sample: &Sample, candidates: usize, scored: &[Vec<Scored>]) {
        for ((judged, sums), scored) in self.judged.iter().zip(&mut self.sums).zip(scored) {
            for (sums, one) in sums.iter_mut().zip(scored) {
                sums.add((self.requests, sample), &judged.spec, one, &scored[0]);
            }
        }
        if let Some(online) = &sample.online {
            match self.judged.iter().position(|judged| judged.release.as_str() == online.release) {
                None => self.online_of_others += 1,
                Some(at) => {
                    let judged = &self.judged[at];
                    let report = self.online[at].get_or_insert_default();
                    report.add((&judged.spec, &judged.tables), online, &scored[at][0], self.bound);
                }
            }
        }
        let has_label = |at: &usize| sample.labels.values().any(|labels| labels[*at].is_some());
        self.labelled += (0..candidates).filter(has_label).count() as u64;
        self.requests += 1;
        self.candidates += candidates as u64;
    }

    fn report(self, plan: &Plan, labels: Option<&Labels>) -> SkewReport {
        let mut releases = Vec::with_capacity(self.judged.len());
        let parts = self.judged.into_iter().zip(self.runs).zip(self.sums).zip(self.online);
        for (((judged, runs), sums), online) in parts {
            let mut of_cell: BTreeMap<usize, (Arc<Runs>, &CellSums)> = BTreeMap::new();
            for ((at, runs), sums) in runs.into_iter().zip(&sums) {
                of_cell.insert(at, (runs, sums));
            }
            let cells = judged.cells.iter().enumerate().map(|(at, cell)| {
                let ran = of_cell.get(&at).map(|(runs, sums)| (&**runs, *sums));
                cell_report(cell, at == 0, ran, sums.first(), self.candidates)
            });
            releases.push(ReleaseReport {
                cells: cells.collect(),
                release: judged.release,
                tables: judged.tables.iter().map(ToString::to_string).collect(),
                online: online.map(OnlineReport::finished),
            });
        }
        SkewReport {
            model: plan.model.clone(),
            requests: self.requests,
            candidates: self.candidates,
            labelled_candidates: self.labelled,
            damaged_lines: self.damaged_lines,
            first_damaged_line: self.first_damaged,
            online_of_other_releases: self.online_of_others,
            labels: labels.map(Labels::end),
            releases,
        }
    }
}

impl CellSums {
    fn add(&mut self, (request, sample): (u64, &Sample), spec: &ModelSpec, one: &Scored, matched: &Scored) {
        for (output, labels) in &sample.labels {
            let values = spec.output(output).map_or(&one.scores, |at| &one.outputs[at]);
            if !self.tallies.contains_key(output) {
                self.tallies.insert(output.clone(), Tally::default());
            }
            let Some(tally) = self.tallies.get_mut(output) else { continue };
            for (value, label) in values.iter().zip(labels) {
                if let Some(label) = label {
                    tally.add(request, *value, *label);
                }
            }
        }
        for (score, matched) in one.scores.iter().zip(&matched.scores) {
            let moved = f64::from((score - matched).abs());
            self.moved += moved;
            self.moved_most = self.moved_most.max(moved);
        }
    }
}

/// What a cell found; `matched` is what the dense model found with its own tables.
fn cell_report(
    cell: &Cell,
    is_matched: bool,
    ran: Option<(&Runs, &CellSums)>,
    matched: Option<&CellSums>,
    candidates: u64,
) -> CellReport {
    let mut report = CellReport {
        tables_of: cell.tables_of.clone(),
        only_table: cell.only.clone(),
        matched: is_matched,
        tables: cell.tables.iter().map(ToString::to_string).collect(),
        not_comparable: cell.runs.as_ref().err().cloned(),
        outputs: BTreeMap::new(),
        score_change: ScoreChange::default(),
        missing: Vec::new(),
    };
    let Some((runs, sums)) = ran else { return report };
    for (output, tally) in &sums.tallies {
        let evaluation = tally.evaluation();
        if evaluation.examples == 0 {
            continue;
        }
        let other = matched.and_then(|matched| matched.tallies.get(output)).filter(|_| !is_matched);
        let change = other.map(|other| tally.change(other));
        report.outputs.insert(output.clone(), OutputReport { evaluation, change });
    }
    report.score_change = ScoreChange { mean: sums.moved / (candidates.max(1) as f64), max: sums.moved_most };
    let counts = runs.source.counts();
    report.missing = cell
        .tables
        .iter()
        .filter_map(|version| {
            let asked = counts.get(&version.table)?;
            let share = asked.missing as f64 / (asked.ids.max(1) as f64);
            Some(MissingReport {
                table: version.to_string(),
                ids: asked.ids,
                missing_ids: asked.missing,
                missing_percent: share * 100.0,
            })
        })
        .collect();
    report
}
