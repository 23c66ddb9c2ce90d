//! What became of one lookup, for whoever asks afterwards: which nodes were asked and what each of them said, and
//! which ids were not found. It is bounded, and costs nothing where nobody wants it.

use std::{
    error::Error,
    fmt::Write,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tidepool_types::{Epoch, ErrorCode, NodeId};

use crate::{
    cache::KnownId,
    error::NodeFailure,
    fanout::Gathered,
    request::{FeatureCounts, Stages},
    split::{FeatureSplit, Split, TableSplit},
};

/// What is noted of a lookup while it runs, also of one that fails, or is dropped.
#[derive(Debug)]
pub struct LookupAccount {
    began: Instant,
    noted: Mutex<LookupNotes>,
}

/// What an account has in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LookupNotes {
    /// The epoch of the last map that it was routed by; None: there was none.
    pub epoch: Option<Epoch>,
    /// The calls in the order in which they were made.
    pub calls: Vec<CallNote>,
    /// Calls beyond [`LookupAccount::MAX_CALLS`].
    pub calls_left_out: u32,
    /// Features of which not all ids were found; those of a lookup that failed are not known.
    pub features: Vec<FeatureNote>,
    /// Where the time went; None: it failed.
    pub stages: Option<Stages>,
}

/// One call to one node.
#[derive(Clone, Debug, PartialEq)]
pub struct CallNote {
    /// The node.
    pub node: NodeId,
    /// `host:port` that it was asked at.
    pub address: String,
    /// Why it was made.
    pub kind: CallKind,
    /// Ids sent.
    pub ids: u32,
    /// Since the account was opened.
    pub begun: Duration,
    /// How long it took; None: it had not ended when the lookup was dropped.
    pub took: Option<Duration>,
    /// How it ended.
    pub end: CallEnd,
}

/// Why a call was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// It is one of the first.
    First,
    /// Another call had failed.
    Retry,
    /// Another call was late.
    Hedge,
    /// The whole lookup was tried again, by a newer cluster map.
    NewerMap,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// With an answer that was used.
    Answered,
    /// It failed.
    Failed {
        /// The code that decided whether to ask elsewhere.
        code: ErrorCode,
        /// What happened, the first of it.
        problem: String,
    },
    /// Another call was faster.
    Outrun,
    /// The lookup ended before it did.
    Unanswered,
}

/// What was not found of one feature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureNote {
    /// Which feature of the request, from 0.
    pub feature: usize,
    /// Ids that the table does not have, repetitions counted.
    pub missing: u32,
    /// Ids that nobody answered for, repetitions counted.
    pub unavailable: u32,
    /// Vectors that are the default row.
    pub defaulted_bags: u32,
    /// The first [`LookupAccount::MAX_IDS`] different ones that are missing.
    pub missing_ids: Vec<u64>,
    /// The first [`LookupAccount::MAX_IDS`] different ones that nobody answered for.
    pub unavailable_ids: Vec<u64>,
}

impl CallKind {
    /// The word for JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Hedge => "hedge",
            Self::NewerMap => "newer_map",
        }
    }
}

impl CallEnd {
    /// The word for JSON.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed { .. } => "failed",
            Self::Outrun => "outrun",
            Self::Unanswered => "unanswered",
        }
    }
}

impl Default for LookupAccount {
    fn default() -> Self {
        Self { began: Instant::now(), noted: Mutex::default() }
    }
}

impl LookupAccount {
    /// Calls that are noted at most.
    pub const MAX_CALLS: usize = 32;
    /// Ids of a feature that are noted at most, of those that are missing and of those that nobody answered for each.
    pub const MAX_IDS: usize = 64;
    /// Ids of all features together that are noted at most.
    pub const MAX_IDS_IN_ALL: usize = 512;
    /// Features that are noted at most.
    pub const MAX_FEATURES: usize = 64;
    /// Bytes of what happened to a call that are kept, and of the address that was asked.
    pub const MAX_TEXT_BYTES: usize = 200;

    /// What has been noted so far; it is taken out.
    #[must_use]
    pub fn take(&self) -> LookupNotes {
        self.note(std::mem::take)
    }

    /// A copy of what has been noted so far.
    #[must_use]
    pub fn notes(&self) -> LookupNotes {
        self.note(|noted| noted.clone())
    }

    fn note<T>(&self, note: impl FnOnce(&mut LookupNotes) -> T) -> T {
        note(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn routed_by(&self, epoch: Epoch) {
        self.note(|noted| noted.epoch = Some(epoch));
    }

    /// A call begins; gives its place, if it has one.
    pub(crate) fn begin(&self, node: &NodeId, address: &str, kind: CallKind, ids: usize) -> Option<usize> {
        self.note(|noted| {
            if noted.calls.len() == Self::MAX_CALLS {
                noted.calls_left_out += 1;
                return None;
            }
            noted.calls.push(CallNote {
                node: node.clone(),
                address: address[..address.floor_char_boundary(Self::MAX_TEXT_BYTES)].to_owned(),
                kind,
                ids: u32::try_from(ids).unwrap_or(u32::MAX),
                begun: self.began.elapsed(),
                took: None,
                end: CallEnd::Unanswered,
            });
            Some(noted.calls.len() - 1)
        })
    }

    pub(crate) fn answered(&self, call: usize) {
        self.end(call, CallEnd::Answered);
    }

    pub(crate) fn failed(&self, call: usize, failure: &NodeFailure) {
        let mut problem = failure.to_string();
        if let Some(cause) = failure.source() {
            // Writing to a string cannot fail.
            let _ = write!(problem, ": {cause}");
        }
        problem.truncate(problem.floor_char_boundary(Self::MAX_TEXT_BYTES));
        self.end(call, CallEnd::Failed { code: failure.code(), problem });
    }

    pub(crate) fn outrun(&self, call: usize) {
        self.end(call, CallEnd::Outrun);
    }

    /// The lookup ends: calls that have not ended are not waited for any more.
    pub(crate) fn part(&self) {
        let now = self.began.elapsed();
        self.note(|noted| {
            let open = noted.calls.iter_mut().filter(|call| call.took.is_none());
            open.for_each(|call| call.took = Some(now.saturating_sub(call.begun)));
        });
    }

    fn end(&self, call: usize, end: CallEnd) {
        let now = self.began.elapsed();
        self.note(|noted| {
            if let Some(call) = noted.calls.get_mut(call).filter(|call| call.took.is_none()) {
                call.took = Some(now.saturating_sub(call.begun));
                call.end = end;
            }
        });
    }

    /// The lookup is answered.
    pub(crate) fn looked_up(
        &self,
        split: &Split<'_>,
        gathered: &Gathered,
        counts: &[FeatureCounts],
        stages: Stages,
    ) {
        let features = not_found(split, gathered, counts);
        self.note(|noted| (noted.features, noted.stages) = (features, Some(stages)));
    }
}

/// Whether a unique id was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Found,
    Missing,
    Gone,
    /// It has been told for the feature at hand.
    Told,
}

/// Of each feature of which not all ids were found, which were not.
pub(crate) fn not_found(
    split: &Split<'_>,
    gathered: &Gathered,
    counts: &[FeatureCounts],
) -> Vec<FeatureNote> {
    let lacks = |of: &FeatureCounts| of.missing_ids > 0 || of.unavailable_ids > 0;
    let mut fates = if counts.iter().any(lacks) { fates(split, gathered) } else { Vec::new() };
    let mut left = LookupAccount::MAX_IDS_IN_ALL;
    let mut notes = Vec::new();
    for (feature, (of_split, of_answer)) in split.features.iter().zip(counts).enumerate() {
        if !(lacks(of_answer) || of_answer.defaulted_bags > 0) {
            continue;
        }
        if notes.len() == LookupAccount::MAX_FEATURES {
            break;
        }
        let mut note = FeatureNote {
            feature,
            missing: of_answer.missing_ids,
            unavailable: of_answer.unavailable_ids,
            defaulted_bags: of_answer.defaulted_bags,
            ..FeatureNote::default()
        };
        if let Some(fates) = fates.get_mut(of_split.table) {
            let table = &split.tables[of_split.table];
            let mut list = |wanted| {
                let ids = ids_of(of_split, table, fates, wanted, left.min(LookupAccount::MAX_IDS));
                left -= ids.len();
                ids
            };
            if of_answer.missing_ids > 0 {
                note.missing_ids = list(Fate::Missing);
            }
            if of_answer.unavailable_ids > 0 {
                note.unavailable_ids = list(Fate::Gone);
            }
        }
        notes.push(note);
    }
    notes
}

/// Per table and unique id.
fn fates(split: &Split<'_>, gathered: &Gathered) -> Vec<Vec<Fate>> {
    let known = |table: &TableSplit<'_>| {
        let known_missing = |id| table.known.of(id) == KnownId::Missing;
        let fate = |id| if known_missing(id) { Fate::Missing } else { Fate::Found };
        (0..table.ids.len()).map(fate).collect::<Vec<_>>()
    };
    let mut fates: Vec<_> = split.tables.iter().map(known).collect();
    for answer in &gathered.answers {
        let of_table = &mut fates[answer.ask.table(split)];
        for (_, id) in answer.ask.ids().iter().enumerate().filter(|(at, _)| answer.is_missing(*at)) {
            of_table[*id as usize] = Fate::Missing;
        }
    }
    for (table, slot) in &gathered.unavailable {
        let slots = split.tables[*table].slot_of.iter().zip(&mut fates[*table]);
        slots.filter(|(of, _)| *of == slot).for_each(|(_, fate)| *fate = Fate::Gone);
    }
    fates
}

/// The first `limit` different ids of a feature whose fate is `wanted`.
fn ids_of(
    feature: &FeatureSplit<'_>,
    table: &TableSplit<'_>,
    fates: &mut [Fate],
    wanted: Fate,
    limit: usize,
) -> Vec<u64> {
    if let Some(composed) = &feature.composed {
        let is_wanted = |at: usize| {
            let id = feature.members.get(at).map(|member| *member as usize);
            id.and_then(|id| fates.get(id)) == Some(&wanted)
        };
        return composed.ids_with(is_wanted, limit);
    }
    let mut told = Vec::new();
    for member in &feature.members {
        if told.len() == limit {
            break;
        }
        let fate = &mut fates[*member as usize];
        if *fate == wanted {
            *fate = Fate::Told;
            told.push(*member);
        }
    }
    // Other features may have them too.
    told.iter().for_each(|member| fates[*member as usize] = wanted);
    told.iter().map(|member| table.ids[*member as usize]).collect()
}

#[cfg(test)]
mod tests {
    use tidepool_types::Name;

    use super::*;

    fn node() -> NodeId {
        NodeId(Name::new("a-1").unwrap())
    }

    #[test]
    fn calls_are_noted_however_they_end_and_no_more_than_so_many() {
        let account = LookupAccount::default();
        let begin = |kind| account.begin(&node(), "a-1:7410", kind, 7);
        let calls: Vec<_> =
            [CallKind::First, CallKind::Retry, CallKind::Hedge].map(|kind| begin(kind).unwrap()).into();
        let long = "ä".repeat(LookupAccount::MAX_TEXT_BYTES);
        account.failed(calls[0], &NodeFailure::Address(long));
        account.answered(calls[1]);
        account.outrun(calls[1]);
        let more: Vec<_> = (0..40).map(|_| begin(CallKind::NewerMap)).collect();
        assert_eq!(more.iter().flatten().count(), LookupAccount::MAX_CALLS - calls.len());
        account.part();
        account.answered(calls[2]);
        let noted = account.take();
        assert_eq!((noted.calls.len(), noted.calls_left_out), (LookupAccount::MAX_CALLS, 11));
        assert!(noted.calls.iter().all(|call| call.took.is_some()));
        let CallEnd::Failed { code, problem } = &noted.calls[0].end else { panic!("{:?}", noted.calls[0]) };
        assert_eq!(*code, ErrorCode::Unavailable);
        assert!(problem.len() <= LookupAccount::MAX_TEXT_BYTES && problem.starts_with("address: ä"));
        assert_eq!(noted.calls[1].end, CallEnd::Answered, "what has ended has ended");
        assert_eq!(noted.calls[2].end, CallEnd::Unanswered);
        assert_eq!(account.take(), LookupNotes::default());
    }
}
