//! The whole run: pretrain, train, measure.

use std::time::Instant;

use tidepool_types::RowFormat;

use super::{
    Architecture, HeadReport, OUTPUT_CTR, OUTPUT_CVR, ReferenceModel, ReferenceOptions, ReferenceReport,
    fit::{Fit, Tables},
};
use crate::{
    contrastive,
    data::{Dataset, Event},
    error::TrainError,
    metrics::{Quality, log_loss},
    train::{Phase, Progress, check},
};

/// What a run gives.
#[derive(Clone, Debug)]
pub struct ReferenceOutcome {
    /// The model.
    pub model: ReferenceModel,
    /// What was measured.
    pub report: ReferenceReport,
}

/// Pretrains user and item rows contrastively, trains tables and dense model, and measures on the test slice, with rows
/// as trained and as served. The same data, options and machine give the same model.
///
/// # Errors
/// [`TrainError`] when a slice lacks one of the labels, an option is out of range, or training diverges.
pub fn train_reference(
    data: &Dataset,
    options: &ReferenceOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<ReferenceOutcome, TrainError> {
    let started = Instant::now();
    check(data, &options.training)?;
    if options.architecture == Architecture::DcnMmoe {
        check_conversions(data)?;
    }
    let training = &options.training;
    let mut tables = Tables::random(data, options);
    let total = training.pretrain.epochs as u64;
    let Tables { user, item, .. } = &mut tables;
    contrastive::pretrain(data, &training.pretrain, training.seed, user, item, &mut |epoch, loss| {
        let text = format!("loss {loss:.3}");
        progress(Progress { phase: Phase::Pretrain, done: epoch as u64, total, text });
    })?;
    for table in [user, item] {
        table.restart(training.pretrain.row_length);
    }
    let total = training.ranker.max_epochs as u64;
    let mut last = String::new();
    let model = Fit::new(data, options, tables).run(&mut |epoch, loss| {
        last = format!("validation log loss {loss:.4}");
        if (epoch as u64) < total {
            progress(Progress { phase: Phase::FineTune, done: epoch as u64, total, text: last.clone() });
        }
    })?;
    progress(Progress { phase: Phase::FineTune, done: total, total, text: last });
    let report = measure(data, options, &model, true, started)?;
    progress(Progress { phase: Phase::Evaluate, done: 1, total: 1, text: String::from("INT4") });
    Ok(ReferenceOutcome { model, report })
}

/// The same model with random weights and rows: for measurements of speed, where only shapes matter.
///
/// # Errors
/// [`TrainError::Quantize`] when a row cannot be stored as INT4; random rows can.
pub fn untrained_reference(
    data: &Dataset,
    options: &ReferenceOptions,
) -> Result<ReferenceOutcome, TrainError> {
    let started = Instant::now();
    let model = Fit::new(data, options, Tables::random(data, options)).model();
    let report = measure(data, options, &model, false, started)?;
    Ok(ReferenceOutcome { model, report })
}

/// A second head needs both kinds of clicks.
fn check_conversions(data: &Dataset) -> Result<(), TrainError> {
    let parts = [
        ("train (clicks)", &data.train),
        ("validation (clicks)", &data.validation),
        ("test (clicks)", &data.test),
    ];
    for (part, events) in parts {
        let examples = events.iter().filter(|e| e.label).count();
        let positives = events.iter().filter(|e| e.conversion).count();
        if positives == 0 || positives == examples {
            return Err(TrainError::OneClass { data: data.name.clone(), part, examples, positives });
        }
    }
    Ok(())
}

/// What training minimises, from probabilities: log loss of clicks, and of clicks that converted.
pub(super) fn log_loss_of_heads(scores: &[Vec<f32>], events: &[Event]) -> f64 {
    let clicks: Vec<bool> = events.iter().map(|e| e.label).collect();
    let mut sum = scores.first().map_or(0.0, |ctr| log_loss(ctr, &clicks));
    if let [ctr, cvr] = scores {
        let conversions: Vec<bool> = events.iter().map(|e| e.conversion).collect();
        sum += log_loss(&product(ctr, cvr), &conversions);
    }
    sum
}

fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// Scores of one head as f32 and INT4 rows give them, with what they are held against.
struct Measured<'a> {
    output: &'static str,
    label: &'static str,
    events: Vec<&'a Event>,
    scores: [Vec<f32>; 2],
    positive: fn(&Event) -> bool,
    truth: fn(&Event) -> Option<f32>,
}

impl Measured<'_> {
    fn report(self) -> HeadReport {
        let labels: Vec<bool> = self.events.iter().map(|&e| (self.positive)(e)).collect();
        let truth: Option<Vec<f32>> = self.events.iter().map(|&e| (self.truth)(e)).collect();
        let [f32, int4] = self.scores.map(|scores| Quality::of(&scores, &labels));
        HeadReport {
            output: self.output.into(),
            label: self.label.into(),
            examples: labels.len(),
            positives: labels.iter().filter(|&&label| label).count(),
            f32,
            int4,
            planted_optimum: truth.map(|truth| Quality::of(&truth, &labels)),
        }
    }
}

fn measure(
    data: &Dataset,
    options: &ReferenceOptions,
    model: &ReferenceModel,
    trained: bool,
    started: Instant,
) -> Result<ReferenceReport, TrainError> {
    let all = &data.test;
    let scores = [model.predict(data, all), model.stored_as(RowFormat::Int4)?.predict(data, all)];
    let mut heads = vec![
        Measured {
            output: OUTPUT_CTR,
            label: "click",
            events: all.iter().collect(),
            scores: scores.each_ref().map(|heads| heads[0].clone()),
            positive: |e| e.label,
            truth: |e| e.true_probability,
        }
        .report(),
    ];
    if model.output_names().contains(&OUTPUT_CVR) {
        let of_clicks = |scores: &Vec<f32>| {
            all.iter().zip(scores).filter(|(e, _)| e.label).map(|(_, &score)| score).collect::<Vec<_>>()
        };
        let cvr = Measured {
            output: OUTPUT_CVR,
            label: "conversion, among clicks",
            events: all.iter().filter(|e| e.label).collect(),
            scores: scores.each_ref().map(|heads| of_clicks(&heads[1])),
            positive: |e| e.conversion,
            truth: |e| e.true_conversion,
        };
        let both = Measured {
            output: "ctr * cvr",
            label: "conversion, among all events",
            events: all.iter().collect(),
            scores: scores.each_ref().map(|heads| product(&heads[0], &heads[1])),
            positive: |e| e.conversion,
            truth: |e| Some(e.true_probability? * e.true_conversion?),
        };
        heads.extend([cvr.report(), both.report()]);
    }
    Ok(ReferenceReport {
        schema_version: ReferenceReport::SCHEMA_VERSION,
        architecture: options.architecture,
        size: options.size,
        trained,
        data: data.name.clone(),
        seed: options.training.seed,
        parameters: model.parameters(),
        train_examples: data.train.len(),
        validation_examples: data.validation.len(),
        heads,
        seconds: started.elapsed().as_secs_f64(),
    })
}
