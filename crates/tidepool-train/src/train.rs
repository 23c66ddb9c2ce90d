//! The whole run: pretrain, fine-tune, train once more from scratch, and measure both.

use std::{
    sync::mpsc::{self, SyncSender},
    thread,
    time::Instant,
};

use tidepool_types::RowFormat;

use crate::{
    contrastive,
    data::{Dataset, Event},
    error::TrainError,
    metrics::{Quality, paired_bootstrap},
    model::TrainedModel,
    options::TrainOptions,
    ranker::{Parameters, Trainer},
    report::{QualityByFormat, TrainingReport},
};

/// Which part of the work moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Contrastive pretraining of user and item tables.
    Pretrain,
    /// Tables and ranker together, from the pretrained tables.
    FineTune,
    /// Tables and ranker together, from random tables: for comparison. Runs beside the two above.
    FromScratch,
    /// Scores of the test slice in every row format.
    Evaluate,
}

impl Phase {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::FineTune => "fine-tune",
            Self::FromScratch => "from scratch",
            Self::Evaluate => "evaluate",
        }
    }
}

/// How far a phase is. Phases may interleave; each says `done == total` once, at its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Which.
    pub phase: Phase,
    /// Steps done.
    pub done: u64,
    /// Steps there may be. Early stopping can end a phase before: then it jumps to the end.
    pub total: u64,
    /// One short line for people.
    pub text: String,
}

/// What a run gives.
#[derive(Clone, Debug)]
pub struct TrainingOutcome {
    /// With pretraining.
    pub model: TrainedModel,
    /// What was measured.
    pub report: TrainingReport,
}

/// Trains with and without pretraining, side by side on two threads, and measures both on the test slice. The same data,
/// options and machine give the same model.
///
/// # Errors
/// [`TrainError`] when a slice lacks one of the two labels, an option is out of range, or training diverges.
pub fn train(
    data: &Dataset,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainingOutcome, TrainError> {
    let started = Instant::now();
    check(data, options)?;
    let (sender, receiver) = mpsc::sync_channel(64);
    let (tuned, scratch) = thread::scope(|scope| {
        let (to_tuned, to_scratch) = (sender.clone(), sender);
        let tuned = scope.spawn(move || fit(data, options, true, &to_tuned));
        let scratch = scope.spawn(move || fit(data, options, false, &to_scratch));
        // Ends when both threads have dropped their senders.
        receiver.iter().for_each(&mut *progress);
        (joined(tuned), joined(scratch))
    });
    let (tuned, scratch) = (tuned?, scratch?);
    let report = measure(data, options, &tuned, &scratch, started, progress)?;
    Ok(TrainingOutcome { model: tuned, report })
}

/// The thread's result; its panic, a defect of ours, goes on in the caller.
fn joined<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Refuses data and options that no training can run with.
pub(crate) fn check(data: &Dataset, options: &TrainOptions) -> Result<(), TrainError> {
    let parts = [("train", &data.train), ("validation", &data.validation), ("test", &data.test)];
    for (part, events) in parts {
        let positives = events.iter().filter(|e| e.label).count();
        if positives == 0 || positives == events.len() {
            let (data, examples) = (data.name.clone(), events.len());
            return Err(TrainError::OneClass { data, part, examples, positives });
        }
    }
    let refuse = |option, problem: &str| Err(TrainError::Option { option, problem: problem.into() });
    if options.pretrain.batch < 2 {
        return refuse("pretrain.batch", "a pair needs another pair to be told from: at least 2");
    }
    if options.ranker.batch == 0 {
        return refuse("ranker.batch", "at least 1");
    }
    if options.ranker.max_epochs == 0 {
        return refuse("ranker.max_epochs", "at least 1");
    }
    for (option, share) in
        [("ranker.dropout", options.ranker.dropout), ("ranker.missing_ids", options.ranker.missing_ids)]
    {
        if !(0.0..1.0).contains(&share) {
            return refuse(option, "a share: at least 0 and below 1");
        }
    }
    Ok(())
}

/// One model, with or without pretraining.
fn fit(
    data: &Dataset,
    options: &TrainOptions,
    pretrained: bool,
    progress: &SyncSender<Progress>,
) -> Result<TrainedModel, TrainError> {
    // The receiver outlives the threads, so a send can only fail after a panic there, which is told anyway.
    let tell = |phase, done: usize, total: usize, text| {
        let _ = progress.send(Progress { phase, done: done as u64, total: total as u64, text });
    };
    let mut params = Parameters::random(data, &options.ranker, options.seed);
    if pretrained {
        let total = options.pretrain.epochs;
        let mut done = |epoch, loss: f64| tell(Phase::Pretrain, epoch, total, format!("loss {loss:.3}"));
        let Parameters { user, item, .. } = &mut params;
        contrastive::pretrain(data, &options.pretrain, options.seed, user, item, &mut done)?;
        for table in [user, item] {
            table.restart(options.pretrain.row_length);
        }
    }
    let (phase, rate) = if pretrained {
        (Phase::FineTune, options.ranker.pretrained_learning_rate)
    } else {
        (Phase::FromScratch, options.ranker.table_learning_rate)
    };
    let total = options.ranker.max_epochs;
    let mut last = String::new();
    let mut done = |epoch, quality: Quality| {
        last = format!("validation AUC {:.4}, log loss {:.4}", quality.auc, quality.log_loss);
        if epoch < total {
            tell(phase, epoch, total, last.clone());
        }
    };
    let trainer = Trainer::new(data, &options.ranker, params, rate, options.seed);
    let model = trainer.run(&mut done)?;
    tell(phase, total, total, last);
    Ok(model)
}

fn measure(
    data: &Dataset,
    options: &TrainOptions,
    tuned: &TrainedModel,
    scratch: &TrainedModel,
    started: Instant,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainingReport, TrainError> {
    const STEPS: u64 = 7;
    let mut done = 0;
    let mut tell = |text: &str| {
        done += 1;
        progress(Progress { phase: Phase::Evaluate, done, total: STEPS, text: text.into() });
    };
    let labels: Vec<bool> = data.test.iter().map(|e| e.label).collect();
    let scores = |model: &TrainedModel| model.predict(data, &data.test);
    let without_pretraining = Quality::of(&scores(scratch), &labels);
    tell("from scratch");
    let f32_scores = scores(tuned);
    let mut stored = |format: RowFormat| -> Result<Vec<f32>, TrainError> {
        let scores = scores(&tuned.stored_as(format)?);
        tell(format.as_str());
        Ok(scores)
    };
    let f32_stored = stored(RowFormat::F32)?;
    let f16 = stored(RowFormat::F16)?;
    let int8 = stored(RowFormat::Int8)?;
    let int4 = stored(RowFormat::Int4)?;
    let tables_missing = Quality::of(&scores(&tuned.without_rows()), &labels);
    tell("tables missing");
    let int4_minus_f32 = paired_bootstrap(&int4, &f32_scores, &labels, options.resamples, options.seed);
    tell("bootstrap");
    Ok(TrainingReport {
        schema_version: TrainingReport::SCHEMA_VERSION,
        data: data.name.clone(),
        seed: options.seed,
        train_examples: data.train.len(),
        validation_examples: data.validation.len(),
        test_examples: data.test.len(),
        with_pretraining: Quality::of(&f32_scores, &labels),
        without_pretraining,
        offline: QualityByFormat {
            f32: Quality::of(&f32_stored, &labels),
            f16: Quality::of(&f16, &labels),
            int8: Quality::of(&int8, &labels),
            int4: Quality::of(&int4, &labels),
        },
        int4_minus_f32,
        tables_missing,
        planted_optimum: planted_optimum(&data.test, &labels),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The quality of the probabilities that the labels were drawn with; `None` unless every event knows its own.
fn planted_optimum(events: &[Event], labels: &[bool]) -> Option<Quality> {
    let truth: Option<Vec<f32>> = events.iter().map(|e| e.true_probability).collect();
    truth.map(|truth| Quality::of(&truth, labels))
}
