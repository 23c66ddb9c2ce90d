//! Which operation happens before which, and accesses of one allocation that nothing orders.
//!
//! Every operation has a vector clock: for each stream, up to which position its operations are done for certain
//! before this one starts. An order comes from the stream itself, from events, from the legacy stream, and from the
//! host, which waited for one operation before it asked for the other. Two accesses of which one writes, and which no
//! order covers, are a race, in whatever order they happened to run here. The host counts as one thread: order
//! between host threads is not seen, so races behind a missing lock of the host are not found.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use crate::memory::Touched;

/// A place in a stream's work: the stream, and the how manieth operation, from one.
pub(crate) type Point = (u32, u64);

/// The most accesses that are remembered of an allocation. The oldest are forgotten first.
const MAX_RECORDS: usize = 1024;

/// For each stream, the last operation that comes before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Clock(BTreeMap<u32, u64>);

impl Clock {
    /// What comes before either comes before both.
    pub(crate) fn join(&mut self, other: &Clock) {
        for (stream, position) in &other.0 {
            self.add((*stream, *position));
        }
    }

    pub(crate) fn add(&mut self, (stream, position): Point) {
        let at = self.0.entry(stream).or_default();
        *at = position.max(*at);
    }

    pub(crate) fn covers(&self, (stream, position): Point) -> bool {
        self.0.get(&stream).is_some_and(|at| *at >= position)
    }
}

struct Record {
    point: Point,
    what: Arc<str>,
    reads: Vec<Range<u64>>,
    writes: Vec<Range<u64>>,
}

/// Two accesses that nothing orders.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Race {
    pub(crate) slot: u32,
    /// Offsets in the allocation that both touch.
    pub(crate) range: Range<u64>,
    /// The operation that came first here, and the other, with what they did.
    pub(crate) first: String,
    pub(crate) second: String,
}

/// The accesses since the host last waited for everything.
#[derive(Default)]
pub(crate) struct Races {
    records: BTreeMap<u32, Vec<Record>>,
}

/// The first range that is in both; both are in order.
pub(crate) fn common(a: &[Range<u64>], b: &[Range<u64>]) -> Option<Range<u64>> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        let range = x.start.max(y.start)..x.end.min(y.end);
        if !range.is_empty() {
            return Some(range);
        }
        if x.end <= y.end {
            a.next()
        } else {
            b.next()
        };
    }
    None
}

/// Where two sets of accesses to one allocation conflict, and whether the first and the second write there.
pub(crate) fn conflict(
    (reads, writes): (&[Range<u64>], &[Range<u64>]),
    now: &Touched,
) -> Option<(Range<u64>, bool, bool)> {
    let with = |a: &[_], b: &[_], first, second| common(a, b).map(|range| (range, first, second));
    with(writes, &now.writes, true, true)
        .or_else(|| with(writes, &now.reads, true, false))
        .or_else(|| with(reads, &now.writes, false, true))
}

pub(crate) fn says(what: &str, writes: bool) -> String {
    format!("{what} ({})", if writes { "writes" } else { "reads" })
}

impl Races {
    /// Remembers what the operation at `point`, after everything in `clock`, touched, and finds a race with what is
    /// remembered. `host` is what the host has waited for: no operation to come can race with that.
    pub(crate) fn note(
        &mut self,
        touched: Vec<Touched>,
        point: Point,
        clock: &Clock,
        host: &Clock,
        what: &Arc<str>,
    ) -> Option<Race> {
        let mut race = None;
        for now in touched {
            let records = self.records.entry(now.slot).or_default();
            for before in records.iter().filter(|r| r.point != point && !clock.covers(r.point)) {
                if let Some((range, first, second)) = conflict((&before.reads, &before.writes), &now) {
                    race.get_or_insert_with(|| Race {
                        slot: now.slot,
                        range,
                        first: says(&before.what, first),
                        second: says(what, second),
                    });
                }
            }
            records.retain(|record| !host.covers(record.point));
            if records.len() == MAX_RECORDS {
                records.remove(0);
            }
            let Touched { reads, writes, .. } = now;
            records.push(Record { point, what: Arc::clone(what), reads, writes });
        }
        race
    }

    /// Forgets everything, as when a context ends.
    pub(crate) fn forget(&mut self) {
        self.records.clear();
    }
}

/// Both sets of accesses as one.
pub(crate) fn union(all: &mut Vec<Touched>, more: Vec<Touched>) {
    for new in more {
        let Some(of) = all.iter_mut().find(|t| t.slot == new.slot) else {
            all.push(new);
            continue;
        };
        for (to, from) in [(&mut of.reads, new.reads), (&mut of.writes, new.writes)] {
            to.extend(from);
            to.sort_by_key(|range| range.start);
            to.dedup_by(|next, before| {
                let joined = next.start <= before.end;
                if joined {
                    before.end = before.end.max(next.end);
                }
                joined
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges may have one")]
mod tests {
    use super::*;

    fn touched(reads: &[Range<u64>], writes: &[Range<u64>]) -> Vec<Touched> {
        vec![Touched { slot: 0, reads: reads.to_vec(), writes: writes.to_vec() }]
    }

    #[test]
    fn what_no_order_covers_is_a_race() {
        let (mut races, host) = (Races::default(), Clock::default());
        let mut after_first = Clock::default();
        after_first.add((1, 1));
        assert_eq!(races.note(touched(&[], &[0..64]), (1, 1), &host, &host, &"a fill".into()), None);
        // Ordered by an event; beside it; and neither.
        assert_eq!(races.note(touched(&[0..64], &[]), (2, 1), &after_first, &host, &"x".into()), None);
        assert_eq!(races.note(touched(&[64..128], &[]), (2, 2), &host, &host, &"y".into()), None);
        let race = races.note(touched(&[60..70], &[]), (3, 1), &host, &host, &"a copy".into()).unwrap();
        assert_eq!(race.range, 60..64);
        assert_eq!((race.first.as_str(), race.second.as_str()), ("a fill (writes)", "a copy (reads)"));
        // Reads do not race with each other.
        assert_eq!(races.note(touched(&[64..70], &[]), (4, 1), &host, &host, &"z".into()), None);
    }

    #[test]
    fn what_the_host_waited_for_is_forgotten() {
        let (mut races, mut host) = (Races::default(), Clock::default());
        races.note(touched(&[], &[0..64]), (1, 1), &Clock::default(), &host, &"w".into());
        host.add((1, 1));
        assert_eq!(races.note(touched(&[0..64], &[]), (2, 1), &host, &host, &"r".into()), None);
        assert_eq!(races.records[&0].len(), 1);
    }

    #[test]
    fn accesses_join() {
        let mut all = touched(&[0..8, 32..40], &[]);
        union(&mut all, touched(&[8..16], &[4..5]));
        union(&mut all, vec![Touched { slot: 3, reads: vec![0..1], writes: vec![] }]);
        assert_eq!(all[0], touched(&[0..16, 32..40], &[4..5])[0]);
        assert_eq!(all.len(), 2);
    }
}
