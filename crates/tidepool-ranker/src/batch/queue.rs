//! Who waits, and what the next batch is. Nothing here knows what a request is, nor looks at a clock.
//!
//! Requests that may share a batch (of one release, of one tenant) wait in one line. Lines take turns: the one that a
//! batch was taken from goes behind the others. So do the pieces of a request that is larger than a batch: what is left
//! of it goes behind those who wait in its line, so that a huge request has every other batch at most while others
//! wait. What may wait for others (a shadow's requests) is taken when nobody else waits, and is counted by itself.

use std::{collections::VecDeque, sync::Arc, time::Instant};

/// What one batch may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) rows: u64,
    pub(super) requests: usize,
    pub(super) ids: u64,
    /// Per input of the model: its ids, where there is room for so many only. Inputs beyond the last have room for any.
    pub(super) room: Vec<u64>,
}

/// What one piece of a request takes of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) rows: u64,
    pub(super) ids: u64,
    /// Per input: its ids, as far as the limits speak of them.
    pub(super) of_inputs: Vec<u64>,
}

impl Size {
    fn add(&mut self, more: &Self) {
        (self.rows, self.ids) = (self.rows + more.rows, self.ids + more.ids);
        self.of_inputs.resize(self.of_inputs.len().max(more.of_inputs.len()), 0);
        for (sum, more) in self.of_inputs.iter_mut().zip(&more.of_inputs) {
            *sum = sum.saturating_add(*more);
        }
    }

    /// Whether so much `more` goes into the same batch.
    fn has_room_for(&self, more: &Self, limits: &Limits) -> bool {
        let of = |size: &Self, input: usize| size.of_inputs.get(input).copied().unwrap_or(0);
        let mut inputs = limits.room.iter().enumerate();
        self.rows + more.rows <= limits.rows
            && self.ids + more.ids <= limits.ids
            && inputs.all(|(input, room)| of(self, input).saturating_add(of(more, input)) <= *room)
    }
}

/// A request that waits, or the rest of one.
#[derive(Clone, Debug)]
pub(super) struct Entry<T> {
    pub(super) item: T,
    /// Of its pieces, one after the other.
    pub(super) sizes: Arc<[Size]>,
    /// The first piece that has not been taken.
    pub(super) next: usize,
    /// Behind the last of them.
    pub(super) end: usize,
    /// Since when it stands where it is.
    pub(super) since: Instant,
    /// What the whole request takes in memory, however much of it still waits.
    pub(super) bytes: u64,
    /// It shares its batch with those of the same party alone: the batch they were in failed.
    pub(super) party: Option<u64>,
}

impl<T> Entry<T> {
    fn size(&self) -> Size {
        self.sizes.get(self.next).cloned().unwrap_or_default()
    }

    /// Rows that wait.
    pub(super) fn rows(&self) -> u64 {
        self.sizes.iter().take(self.end).skip(self.next).map(|size| size.rows).sum()
    }
}

/// A piece that was taken.
#[derive(Debug)]
pub(super) struct Part<T> {
    pub(super) item: T,
    /// Which of its pieces.
    pub(super) piece: usize,
    /// The rest of its request, to be put back; None: it was the last piece.
    pub(super) rest: Option<Entry<T>>,
}

#[derive(Debug)]
struct Line<K, T> {
    key: K,
    limits: Limits,
    entries: VecDeque<Entry<T>>,
    /// How much of them waits here.
    waiting: Waiting,
}

impl<K, T> Line<K, T> {
    const fn new(key: K, limits: Limits) -> Self {
        Self { key, limits, entries: VecDeque::new(), waiting: Waiting { requests: 0, rows: 0, bytes: 0 } }
    }

    fn came(&mut self, entry: &Entry<T>) {
        self.waiting.requests += 1;
        self.waiting.rows += entry.rows();
        self.waiting.bytes += entry.bytes;
    }

    fn push_back(&mut self, entry: Entry<T>) {
        self.came(&entry);
        self.entries.push_back(entry);
    }

    fn push_front(&mut self, entry: Entry<T>) {
        self.came(&entry);
        self.entries.push_front(entry);
    }

    fn pop_front(&mut self) -> Option<Entry<T>> {
        let entry = self.entries.pop_front()?;
        self.waiting.requests -= 1;
        self.waiting.rows -= entry.rows();
        self.waiting.bytes -= entry.bytes;
        Some(entry)
    }
}

/// Entries of a line that a batch looks at before it leaves without being full.
const LOOK_AHEAD: usize = 256;

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Requests, without the rests that are yet to be put back.
    pub(super) requests: usize,
    /// Those of rests that are yet to be put back included.
    pub(super) rows: u64,
    /// Likewise.
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct Lines<K, T> {
    /// None is empty. The first has the next turn.
    lines: VecDeque<Line<K, T>>,
    waiting: Waiting,
}

/// The lines before one model.
#[derive(Debug)]
pub(super) struct Queue<K, T> {
    first: Lines<K, T>,
    /// Those that are taken when there is nobody in the others.
    behind: Lines<K, T>,
}

impl<K, T> Default for Lines<K, T> {
    fn default() -> Self {
        Self { lines: VecDeque::new(), waiting: Waiting::default() }
    }
}

impl<K, T> Default for Queue<K, T> {
    fn default() -> Self {
        Self { first: Lines::default(), behind: Lines::default() }
    }
}

impl<K: PartialEq, T> Queue<K, T> {
    /// Rows that wait.
    pub(super) const fn rows(&self) -> u64 {
        self.first.waiting.rows + self.behind.waiting.rows
    }

    /// What waits `behind` the others, or of the others.
    pub(super) const fn waiting(&self, behind: bool) -> Waiting {
        if behind { self.behind.waiting } else { self.first.waiting }
    }

    /// What of that waits in the lines that are `wanted`: rests that are yet to be put back are in none.
    pub(super) fn waiting_in(&self, behind: bool, wanted: impl Fn(&K) -> bool) -> Waiting {
        let lines = if behind { &self.behind.lines } else { &self.first.lines };
        lines.iter().filter(|line| wanted(&line.key)).fold(Waiting::default(), |sum, line| Waiting {
            requests: sum.requests + line.waiting.requests,
            rows: sum.rows + line.waiting.rows,
            bytes: sum.bytes + line.waiting.bytes,
        })
    }

    fn of(&mut self, behind: bool) -> &mut Lines<K, T> {
        if behind { &mut self.behind } else { &mut self.first }
    }

    /// Lines a request up that has just come.
    pub(super) fn push(&mut self, key: K, limits: Limits, behind: bool, entry: Entry<T>) {
        let waiting = &mut self.of(behind).waiting;
        waiting.rows += entry.rows();
        waiting.bytes += entry.bytes;
        self.put_back(key, limits, behind, entry);
    }

    /// Lines up what is left of a request of which a piece was taken: behind the others.
    pub(super) fn put_back(&mut self, key: K, limits: Limits, behind: bool, entry: Entry<T>) {
        let Lines { lines, waiting } = self.of(behind);
        waiting.requests += 1;
        match lines.iter_mut().find(|line| line.key == key) {
            Some(line) => line.push_back(entry),
            None => {
                let mut line = Line::new(key, limits);
                line.push_back(entry);
                lines.push_back(line);
            }
        }
    }

    /// Lines requests up that have waited already: before all others of their line. The line itself goes behind the other
    /// lines, which are not to pay for a batch that failed.
    pub(super) fn again(&mut self, key: K, limits: Limits, behind: bool, entries: Vec<Entry<T>>) {
        if entries.is_empty() {
            return;
        }
        let Lines { lines, waiting } = self.of(behind);
        waiting.requests += entries.len();
        waiting.rows += entries.iter().map(Entry::rows).sum::<u64>();
        waiting.bytes += entries.iter().map(|entry| entry.bytes).sum::<u64>();
        let mut line = match lines.iter().position(|line| line.key == key).and_then(|at| lines.remove(at)) {
            Some(line) => line,
            None => Line::new(key, limits),
        };
        entries.into_iter().rev().for_each(|entry| line.push_front(entry));
        lines.push_back(line);
    }

    /// A rest will not be put back, for its request has ended.
    pub(super) fn forget(&mut self, behind: bool, rest: &Entry<T>) {
        let waiting = &mut self.of(behind).waiting;
        waiting.rows -= rest.rows();
        waiting.bytes -= rest.bytes;
    }

    /// Takes out all that are over.
    pub(super) fn sweep(&mut self, is_over: impl Fn(&T) -> bool) -> Vec<T>
    where
        T: Clone,
    {
        let mut over = Vec::new();
        for Lines { lines, waiting } in [&mut self.first, &mut self.behind] {
            for line in lines.iter_mut() {
                let of_line = &mut line.waiting;
                line.entries.retain(|entry| {
                    let stays = !is_over(&entry.item);
                    if !stays {
                        for waiting in [&mut *waiting, &mut *of_line] {
                            waiting.requests -= 1;
                            waiting.rows -= entry.rows();
                            waiting.bytes -= entry.bytes;
                        }
                        over.push(entry.item.clone());
                    }
                    stays
                });
            }
            lines.retain(|line| !line.entries.is_empty());
        }
        over
    }

    /// Since when the first of those waits whose turn is next.
    pub(super) fn since(&self) -> Option<Instant> {
        let line = self.first.lines.front().or_else(|| self.behind.lines.front())?;
        line.entries.front().map(|entry| entry.since)
    }

    /// Takes the next batch: of one line, its first piece in any case, and those behind that fit. Each that fits, the
    /// first included, is asked in turn whether it `goes_along`.
    pub(super) fn take(&mut self, mut goes_along: impl FnMut(&T) -> bool) -> Option<(K, Vec<Part<T>>)>
    where
        K: Clone,
        T: Clone,
    {
        let behind = self.first.lines.is_empty();
        let Lines { lines, waiting } = self.of(behind);
        let mut line = lines.pop_front()?;
        let limits = line.limits.clone();
        let party = line.entries.front().and_then(|entry| entry.party);
        let (mut parts, mut passed, mut sum) = (Vec::new(), Vec::new(), Size::default());
        for _ in 0..LOOK_AHEAD {
            if parts.len() == limits.requests.max(1) || sum.rows >= limits.rows {
                break;
            }
            let Some(entry) = line.pop_front() else { break };
            if party.is_some() && entry.party != party {
                // A party stands together.
                line.push_front(entry);
                break;
            }
            let size = entry.size();
            let leads = parts.is_empty();
            let fits = leads || entry.party == party && sum.has_room_for(&size, &limits);
            let goes = fits && goes_along(&entry.item);
            if !leads && !goes {
                passed.push(entry);
                continue;
            }
            sum.add(&size);
            let (item, piece, bytes) = (entry.item.clone(), entry.next, entry.bytes);
            let rest = Entry { next: piece + 1, ..entry };
            let rest = (rest.next < rest.end).then_some(rest);
            waiting.requests -= 1;
            waiting.rows -= size.rows;
            if rest.is_none() {
                waiting.bytes -= bytes;
            }
            parts.push(Part { item, piece, rest });
        }
        passed.into_iter().rev().for_each(|entry| line.push_front(entry));
        let key = line.key.clone();
        if !line.entries.is_empty() {
            lines.push_back(line);
        }
        Some((key, parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { rows: 100, requests: 3, ids: 1_000, room: Vec::new() };

    fn entry(item: &'static str, rows: &[u64]) -> Entry<&'static str> {
        let sizes: Arc<[Size]> = rows.iter().map(|rows| Size { rows: *rows, ..Size::default() }).collect();
        Entry { item, end: sizes.len(), sizes, next: 0, since: Instant::now(), bytes: 7, party: None }
    }

    fn push(queue: &mut Queue<u8, &'static str>, key: u8, item: &'static str, rows: &[u64]) {
        queue.push(key, LIMITS, key >= 100, entry(item, rows));
    }

    /// The next batch; rests are put back at once.
    fn next(queue: &mut Queue<u8, &'static str>) -> Vec<(&'static str, usize)> {
        let Some((key, parts)) = queue.take(|_| true) else { return Vec::new() };
        let mut taken = Vec::new();
        for part in parts {
            taken.push((part.item, part.piece));
            if let Some(rest) = part.rest {
                queue.put_back(key, LIMITS, key >= 100, rest);
            }
        }
        taken
    }

    #[test]
    fn a_batch_is_full_by_rows_or_by_requests_and_small_ones_fill_it_up() {
        let mut queue = Queue::default();
        for (item, rows) in [("a", 60), ("b", 50), ("c", 30), ("d", 10), ("e", 1)] {
            push(&mut queue, 1, item, &[rows]);
        }
        assert_eq!(next(&mut queue), [("a", 0), ("c", 0), ("d", 0)], "b does not fit");
        assert_eq!(queue.waiting(false), Waiting { requests: 2, rows: 51, bytes: 14 });
        assert_eq!(next(&mut queue), [("b", 0), ("e", 0)]);
        for item in ["f", "g", "h", "i"] {
            push(&mut queue, 1, item, &[1]);
        }
        assert_eq!(next(&mut queue).len(), 3);
        assert_eq!(next(&mut queue), [("i", 0)]);
        assert_eq!((queue.waiting(false), next(&mut queue).len()), (Waiting::default(), 0));
    }

    #[test]
    fn a_request_with_more_than_fits_is_taken_all_the_same_and_ids_count_too() {
        let mut queue = Queue::default();
        push(&mut queue, 1, "wide", &[500]);
        for (item, ids) in [("ids", 999), ("more", 2)] {
            let sizes = [Size { rows: 1, ids, ..Size::default() }].into();
            queue.push(1, LIMITS, false, Entry { sizes, ..entry(item, &[1]) });
        }
        assert_eq!(next(&mut queue), [("wide", 0)]);
        assert_eq!(next(&mut queue), [("ids", 0)]);
        assert_eq!(next(&mut queue), [("more", 0)]);
    }

    #[test]
    fn lines_take_turns_and_so_do_the_pieces_of_a_huge_request() {
        let mut queue = Queue::default();
        push(&mut queue, 1, "huge", &[100, 100, 100, 20]);
        push(&mut queue, 1, "small", &[10]);
        push(&mut queue, 2, "other", &[10]);
        push(&mut queue, 100, "shadow", &[10]);
        assert_eq!(next(&mut queue), [("huge", 0)]);
        assert_eq!(next(&mut queue), [("other", 0)]);
        assert_eq!(next(&mut queue), [("small", 0)]);
        assert_eq!(next(&mut queue), [("huge", 1)]);
        push(&mut queue, 1, "late", &[10]);
        assert_eq!(next(&mut queue), [("huge", 2)], "its turn had come before the late one did");
        assert_eq!(next(&mut queue), [("late", 0), ("huge", 3)], "the last piece shares a batch");
        assert_eq!(next(&mut queue), [("shadow", 0)]);
        assert_eq!(queue.rows(), 0);
    }

    #[test]
    fn whose_batch_failed_go_before_their_line_in_parties_and_other_lines_before_them() {
        let mut queue = Queue::default();
        push(&mut queue, 1, "new", &[10]);
        push(&mut queue, 2, "other", &[10]);
        let of = |item, party| Entry { party: Some(party), ..entry(item, &[5]) };
        queue.again(1, LIMITS, false, vec![of("a", 0), of("b", 0), of("c", 1)]);
        assert_eq!(queue.waiting(false), Waiting { requests: 5, rows: 35, bytes: 35 });
        assert_eq!(next(&mut queue), [("other", 0)]);
        assert_eq!(next(&mut queue), [("a", 0), ("b", 0)]);
        assert_eq!(next(&mut queue), [("c", 0)]);
        assert_eq!(next(&mut queue), [("new", 0)]);
        queue.again(3, LIMITS, false, Vec::new());
        assert_eq!((queue.waiting(false), queue.since()), (Waiting::default(), None));
    }

    #[test]
    fn a_batch_ends_before_it_has_more_ids_of_any_input_than_there_is_room_for() {
        let mut queue = Queue::default();
        let limits = Limits { requests: 9, room: vec![u64::MAX, 10, 5], ..LIMITS };
        for (item, of_inputs) in
            [("a", vec![900, 4, 1]), ("b", vec![0, 7, 0]), ("c", vec![0, 6, 4]), ("d", vec![0, 0, 1])]
        {
            let sizes = [Size { rows: 1, ids: 1, of_inputs }].into();
            queue.push(1, limits.clone(), false, Entry { sizes, ..entry(item, &[1]) });
        }
        // The second input has no room for `b` beside `a`; `d` would be one too many of the third.
        assert_eq!(next(&mut queue), [("a", 0), ("c", 0)]);
        assert_eq!(next(&mut queue), [("b", 0), ("d", 0)]);
    }

    #[test]
    fn who_does_not_go_along_keeps_the_turn() {
        let mut queue = Queue::default();
        for item in ["a", "x", "b", "y"] {
            push(&mut queue, 1, item, &[10]);
        }
        let (_, parts) = queue.take(|item| ["a", "b"].contains(item)).unwrap();
        assert_eq!(parts.iter().map(|part| part.item).collect::<Vec<_>>(), ["a", "b"]);
        push(&mut queue, 1, "c", &[10]);
        let (_, parts) = queue.take(|_| false).unwrap();
        assert_eq!(parts.iter().map(|part| part.item).collect::<Vec<_>>(), ["x"], "the first in any case");
        assert_eq!(next(&mut queue), [("y", 0), ("c", 0)]);
    }

    #[test]
    fn those_that_are_over_are_swept_out_of_all_lines() {
        let mut queue = Queue::default();
        for (key, item) in [(1, "gone"), (1, "stays"), (2, "gone"), (100, "gone")] {
            push(&mut queue, key, item, &[10, 20]);
        }
        assert_eq!(queue.waiting(true), Waiting { requests: 1, rows: 30, bytes: 7 });
        assert_eq!(queue.sweep(|item| *item == "gone").len(), 3);
        assert_eq!(queue.waiting(true), Waiting::default());
        assert_eq!(queue.waiting(false), Waiting { requests: 1, rows: 30, bytes: 7 });
        assert_eq!(next(&mut queue), [("stays", 0)]);
        assert_eq!(next(&mut queue), [("stays", 1)]);
        assert_eq!(queue.waiting(false), Waiting::default());
    }

    #[test]
    fn what_waits_is_known_line_by_line_whatever_happens_to_them() {
        let mut queue = Queue::default();
        let of = |queue: &Queue<u8, &'static str>, key: u8| queue.waiting_in(key >= 100, |k| *k == key);
        for (key, item) in [(1, "a"), (1, "gone"), (2, "b"), (100, "shadow")] {
            push(&mut queue, key, item, &[10, 20]);
        }
        assert_eq!(of(&queue, 1), Waiting { requests: 2, rows: 60, bytes: 14 });
        assert_eq!(of(&queue, 100), Waiting { requests: 1, rows: 30, bytes: 7 });
        queue.sweep(|item| *item == "gone");
        assert_eq!(of(&queue, 1), Waiting { requests: 1, rows: 30, bytes: 7 });
        assert_eq!(next(&mut queue), [("a", 0)]);
        assert_eq!(of(&queue, 1), Waiting { requests: 1, rows: 20, bytes: 7 }, "its rest has been put back");
        queue.again(2, LIMITS, false, vec![entry("c", &[5])]);
        assert_eq!(of(&queue, 2), Waiting { requests: 2, rows: 35, bytes: 14 });
        let (_, parts) = queue.take(|item| *item != "c").unwrap();
        assert_eq!(parts[0].item, "a", "line 2 went behind");
        let (_, parts) = queue.take(|item| *item == "c").unwrap();
        assert_eq!((parts.len(), of(&queue, 2)), (1, Waiting { requests: 1, rows: 30, bytes: 7 }));
    }

    #[test]
    fn a_rest_that_is_not_put_back_waits_no_more() {
        let mut queue = Queue::default();
        push(&mut queue, 1, "huge", &[100, 100, 20]);
        let (_, parts) = queue.take(|_| true).unwrap();
        assert_eq!(queue.waiting(false), Waiting { requests: 0, rows: 120, bytes: 7 });
        queue.forget(false, parts[0].rest.as_ref().unwrap());
        assert_eq!(queue.waiting(false), Waiting::default());
    }
}
