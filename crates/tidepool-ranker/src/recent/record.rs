//! One request, as it is remembered, and as JSON tells it.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tidepool_client::{CallEnd, CallNote, FeatureNote, LookupNotes, Stages};
use tidepool_types::{Epoch, ErrorCode, Name, TableVersion};

use super::micros;
use crate::{batch::Share, choice::Choice, request::RankRequest};

/// No record takes more, whatever a request or a node says. A usual one takes about one KiB.
#[cfg(test)]
pub(super) const MAX_BYTES: usize = 32 << 10;

/// What became of a request.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// In the order in which requests ended.
    pub(super) number: u64,
    pub(super) request_id: Box<str>,
    /// Whether the caller gave the id.
    id_given: bool,
    /// Since 1970.
    pub(super) arrived: Duration,
    tenant: Box<str>,
    model: Box<str>,
    release: Box<str>,
    candidates: u32,
    /// What the release is that was chosen; None: none was.
    pub(crate) told: Option<Arc<Told>>,
    pub(crate) choice: Option<Choice>,
    pub(crate) bucket: Option<u32>,
    /// Whether the answer was given to nobody.
    shadow: bool,
    /// Releases that were asked in its shadow.
    pub(crate) shadows: u8,
    /// Ids of all features, repetitions included.
    pub(crate) ids: u64,
    /// Of the map that its release was chosen by.
    pub(crate) epoch: Epoch,
    /// What of its batches is its own.
    pub(super) share: Share,
    /// The time that there was.
    pub(crate) budget: Option<Duration>,
    /// From its arrival to its end.
    pub(super) took: Duration,
    /// Of the last lookup that it was in.
    pub(super) lookup: LookupNotes,
    pub(super) end: End,
}

/// How a request ended.
#[derive(Debug, Default)]
pub(super) enum End {
    /// Nobody waited for the answer any more.
    #[default]
    Abandoned,
    Answered,
    Failed(ErrorCode, Box<str>),
}

/// A release, as records tell it: they all share it, and keep no model alive.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) names: Option<(Name, Name)>,
    pub(crate) table_versions: Vec<TableVersion>,
    /// The input of each feature of a lookup, and what it pools from.
    pub(crate) features: Vec<(String, TableVersion)>,
}

impl Record {
    /// Names are kept so far.
    const MAX_NAME_BYTES: usize = 100;
    /// What went wrong is kept so far.
    const MAX_PROBLEM_BYTES: usize = 500;

    /// The record of a request for so many candidates, under this id.
    pub(super) fn of(request_id: &str, candidates: u32) -> Self {
        Self { request_id: cut_id(request_id).into(), candidates, ..Self::default() }
    }

    /// In whose name was asked, for which model and which release of it.
    pub(super) fn asked(mut self, tenant: &str, model: &str, release: &str) -> Self {
        let name = |text| cut(text, Self::MAX_NAME_BYTES).into();
        (self.tenant, self.model, self.release) = (name(tenant), name(model), name(release));
        self
    }

    /// Whether the caller gave the id, and whether the answer is given to nobody.
    pub(super) const fn known_as(mut self, id_given: bool, shadow: bool) -> Self {
        (self.id_given, self.shadow) = (id_given, shadow);
        self
    }

    pub(super) fn fail(&mut self, code: ErrorCode, problem: &str) {
        self.end = End::Failed(code, cut(problem, Self::MAX_PROBLEM_BYTES).into());
    }

    pub(super) fn failed(&self) -> bool {
        !matches!(self.end, End::Answered)
    }

    /// For machines, and for `tidepool why`.
    pub(super) fn object(&self) -> Value {
        let told = self.told.as_deref();
        let (model, release) = match told.and_then(|told| told.names.as_ref()) {
            Some((model, release)) => (json!(model), json!(release)),
            None => (json!(self.model), Value::Null),
        };
        let (outcome, error) = match &self.end {
            End::Answered => ("answered", Value::Null),
            End::Abandoned => ("abandoned", Value::Null),
            End::Failed(code, message) => ("failed", json!({ "code": code.as_str(), "message": message })),
        };
        let us = |time: Option<Duration>| time.map(micros);
        let (share, counts) = (self.share, self.share.counts);
        let feature = |note: &FeatureNote| of_feature(note, told);
        let mut object = json!({
            "request_id": self.request_id,
            "request_id_given": self.id_given,
            "arrived_unix_ms": u64::try_from(self.arrived.as_millis()).unwrap_or(u64::MAX),
            "outcome": outcome,
            "error": error,
            "tenant": self.tenant,
            "model": model,
            "release": release,
            "release_asked_for": (!self.release.is_empty()).then_some(&self.release),
            "choice": self.choice.map(Choice::as_str),
            "bucket": self.bucket,
            "shadow": self.shadow,
            "shadows_asked": self.shadows,
            "epoch": self.lookup.epoch.or(Some(self.epoch)).filter(|epoch| *epoch != Epoch(0)),
            "table_versions": told.map(|told| told.table_versions.iter().map(ToString::to_string).collect::<Vec<_>>()),
            "candidates": self.candidates,
            "ids": self.ids,
            "batches": share.batches,
            "batch_requests": share.batch_requests,
            "batch_rows": share.batch_rows,
            "rows_looked_up": counts.rows,
            "cache_hits": counts.cache_hits,
            "nodes_touched": counts.nodes,
            "retries": counts.retries,
            "hedges": counts.hedges,
            "hedges_won": counts.hedges_won,
            "missing_ids": counts.missing,
            "defaulted_bags": counts.defaulted,
            "unavailable_ids": counts.unavailable,
            "not_found": self.lookup.features.iter().map(feature).collect::<Vec<_>>(),
            "calls": self.lookup.calls.iter().map(call).collect::<Vec<_>>(),
            "calls_left_out": self.lookup.calls_left_out,
            "took_us": micros(self.took),
            "deadline_us": us(self.budget),
            "left_us": self.budget.map(|budget| micros(budget.saturating_sub(self.took))),
            "lookup_us": us(share.lookup),
            "lookup_stages": self.lookup.stages.map(of_lookup),
            "batch_wait_us": us(share.waited),
            "queue_us": us(share.queued),
            "dense_us": us(share.dense),
            "finish_us": us(share.finish),
        });
        // The macro takes no more keys than these.
        object["held_ids"] = counts.held.into();
        object
    }

    /// The least that it can take in memory, and what it takes beside that.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let calls = self.lookup.calls.iter().map(|call| {
            let problem = match &call.end {
                CallEnd::Failed { problem, .. } => problem.capacity(),
                _ => 0,
            };
            call.node.0.len() + call.address.capacity() + problem
        });
        let features = &self.lookup.features;
        let lists = features.iter().map(|f| (f.missing_ids.capacity() + f.unavailable_ids.capacity()) * 8);
        let end = match &self.end {
            End::Failed(_, problem) => problem.len(),
            _ => 0,
        };
        size_of::<Self>()
            + self.request_id.len()
            + self.tenant.len()
            + self.model.len()
            + self.release.len()
            + end
            + self.lookup.calls.capacity() * size_of::<CallNote>()
            + calls.sum::<usize>()
            + features.capacity() * size_of::<FeatureNote>()
            + lists.sum::<usize>()
    }
}

/// What is kept of a request's id, and asked for by.
pub(crate) fn cut_id(request_id: &str) -> &str {
    cut(request_id, RankRequest::MAX_REQUEST_ID_BYTES)
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn call(note: &CallNote) -> Value {
    let (code, problem) = match &note.end {
        CallEnd::Failed { code, problem } => (Some(code.as_str()), Some(problem)),
        _ => (None, None),
    };
    json!({
        "node": note.node,
        "address": note.address,
        "kind": note.kind.as_str(),
        "ids": note.ids,
        "begun_us": micros(note.begun),
        "took_us": note.took.map(micros),
        "end": note.end.as_str(),
        "code": code,
        "problem": problem,
    })
}

fn of_lookup(stages: Stages) -> Value {
    let Stages { split, wait, node, merge } = stages;
    let [split, wait, node, merge] = [split, wait, node, merge].map(micros);
    json!({ "split_us": split, "wait_us": wait, "node_us": node, "merge_us": merge })
}

fn of_feature(note: &FeatureNote, told: Option<&Told>) -> Value {
    let named = told.and_then(|told| told.features.get(note.feature));
    json!({
        "feature": named.map(|(name, _)| name),
        "table_version": named.map(|(_, table)| table.to_string()),
        "missing_ids": note.missing,
        "unavailable_ids": note.unavailable,
        "defaulted_bags": note.defaulted_bags,
        "missing": note.missing_ids,
        "unavailable": note.unavailable_ids,
    })
}
