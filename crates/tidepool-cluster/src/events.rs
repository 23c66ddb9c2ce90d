//! What happened to the cluster, for those who ask afterwards: who did what, when and why. It is kept with the
//! durable state, the last so many of it.

use std::{collections::VecDeque, fmt};

use serde::{Deserialize, Serialize};
use tidepool_types::Name;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterEvent {
    /// From 1, without gaps: a gap at the beginning is what was forgotten.
    pub number: u64,
    /// Seconds since 1970; 0 when nobody said.
    pub unix_seconds: u64,
    /// Who caused it: a person, an address, "guards".
    pub by: String,
    /// What.
    pub kind: EventKind,
    /// The model it happened to, or the node's name.
    pub subject: Name,
    /// The release of it, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Name>,
    /// The rest in words: shares, numbers, reasons.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A release was taken in.
    Published,
    /// Every replica and every ranker has it.
    Ready,
    /// It was given a share of the traffic.
    Ramped,
    /// Its guards took its share away.
    Halted,
    /// It became the current release.
    Promoted,
    /// It was taken off the traffic, by hand.
    RolledBack,
    /// It is asked in the shadow of others, or no longer.
    Shadowed,
    /// It was let go.
    Retired,
    /// It stays loaded whatever is promoted.
    Pinned,
    /// It may go again.
    Unpinned,
    /// A node came up.
    NodeUp,
    /// A node's session has ended.
    NodeDown,
    /// Traffic is to leave a node.
    Drained,
    /// It may come back.
    Undrained,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 14] = [
        Self::Published,
        Self::Ready,
        Self::Ramped,
        Self::Halted,
        Self::Promoted,
        Self::RolledBack,
        Self::Shadowed,
        Self::Retired,
        Self::Pinned,
        Self::Unpinned,
        Self::NodeUp,
        Self::NodeDown,
        Self::Drained,
        Self::Undrained,
    ];

    /// The word for the wire and for JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Ready => "ready",
            Self::Ramped => "ramped",
            Self::Halted => "halted",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled_back",
            Self::Shadowed => "shadowed",
            Self::Retired => "retired",
            Self::Pinned => "pinned",
            Self::Unpinned => "unpinned",
            Self::NodeUp => "node_up",
            Self::NodeDown => "node_down",
            Self::Drained => "drained",
            Self::Undrained => "undrained",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The last events, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventList(VecDeque<ClusterEvent>);

impl EventList {
    /// Events that are kept: with each change of the cluster all of them are written down.
    pub const KEPT: usize = 256;

    /// Those with a number larger than `after`, oldest first.
    pub fn after(&self, after: u64) -> impl Iterator<Item = &ClusterEvent> {
        self.0.iter().filter(move |event| event.number > after)
    }

    /// Numbers an event and keeps it; the oldest goes.
    pub(crate) fn push(&mut self, mut event: ClusterEvent) {
        event.number = self.0.back().map_or(1, |last| last.number + 1);
        if self.0.len() >= Self::KEPT {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_and_numbers_go_on() {
        let event = |unix_seconds| ClusterEvent {
            number: 0,
            unix_seconds,
            by: "a test".into(),
            kind: EventKind::Ready,
            subject: Name::new("m").unwrap(),
            release: None,
            why: String::new(),
        };
        let mut list = EventList::default();
        let all = EventList::KEPT as u64 + 10;
        (0..all).for_each(|at| list.push(event(at)));
        assert_eq!(list.after(0).count(), EventList::KEPT);
        let last: Vec<_> = list.after(all - 2).map(|event| (event.number, event.unix_seconds)).collect();
        assert_eq!(last, [(all - 1, all - 2), (all, all - 1)]);
        let written = serde_json::to_string(&list).unwrap();
        assert_eq!(serde_json::from_str::<EventList>(&written).unwrap(), list);
    }
}
