//! Where a large lookup is cut into pieces, so that several threads can share it and others have their turn
//! in between.
//!
//! Gathered features are cut between any two ids. Pooled ones are cut between bags, if every id is a member, each
//! met first in its place: so a client sends them that keeps each id once. Otherwise a piece could not tell which ids
//! it has to look up on behalf of none of its bags, and the feature stays whole. So does a bag, for its members are
//! added in order.

use tidepool_table::PartitionRows;

use crate::{
    decode::{Bags, Feature, Form},
    lookup::{Prepared, Ready},
    part::{Part, Room, Span},
};

/// Parts that one thread does one after the other, and their rows.
pub(crate) struct Piece {
    pub(crate) rows: u64,
    pub(crate) parts: Vec<Part>,
}

/// Pieces of about `piece_rows` rows each, in the order of the request. At least one.
pub(crate) fn cut<P: PartitionRows>(prepared: &Prepared<P>, piece_rows: u64) -> Vec<Piece> {
    let (mut pieces, mut current) = (Vec::new(), Piece { rows: 0, parts: Vec::new() });
    for (at, Ready { feature, layout, .. }) in prepared.features.iter().enumerate() {
        let spans = spans(feature, piece_rows);
        let (mut room, mut left) = (Room::of(feature, layout), spans.iter().map(Cut::len).sum::<usize>());
        for Cut { rows, span, .. } in spans {
            let len = match &span {
                Span::Whole => left,
                Span::Ids(range) | Span::Bags { bags: range, .. } => range.len(),
            };
            let room = if len == left { std::mem::take(&mut room) } else { room.cut(len, left) };
            left -= len;
            if !current.parts.is_empty() && current.rows + rows > piece_rows {
                pieces.push(std::mem::replace(&mut current, Piece { rows: 0, parts: Vec::new() }));
            }
            current.rows += rows;
            current.parts.push(Part { feature: at, span, room });
        }
    }
    pieces.push(current);
    pieces
}

struct Cut {
    rows: u64,
    span: Span,
}

impl Cut {
    /// Ids or bags; it does not matter which of a whole feature.
    fn len(&self) -> usize {
        match &self.span {
            Span::Whole => 1,
            Span::Ids(range) | Span::Bags { bags: range, .. } => range.len(),
        }
    }
}

/// The parts of a feature, one after the other.
fn spans(feature: &Feature, piece_rows: u64) -> Vec<Cut> {
    let rows = feature.rows();
    let whole = || vec![Cut { rows, span: Span::Whole }];
    if rows <= piece_rows {
        return whole();
    }
    let pieces = rows.div_ceil(piece_rows.max(1));
    match &feature.form {
        Form::Gather => {
            let ids = feature.id_count();
            let step = ids.div_ceil(pieces as usize).max(1);
            let ends = (0..ids).step_by(step).map(|from| from..(from + step).min(ids));
            ends.map(|range| Cut { rows: range.len() as u64, span: Span::Ids(range) }).collect()
        }
        Form::Pool(bags) if every_id_is_met_in_its_place(feature, bags) => bag_spans(bags, rows, pieces),
        Form::Pool(_) => whole(),
    }
}

/// About equal spans of bags; `rows` are those of all of them.
fn bag_spans(bags: &Bags, rows: u64, pieces: u64) -> Vec<Cut> {
    let lengths = bags.packed().lengths;
    let (mut spans, mut bag, mut member, mut done) = (Vec::new(), 0, 0, 0);
    let all: u64 = lengths.iter().map(|length| 1 + u64::from(u32::from_le_bytes(*length))).sum();
    let target = all.div_ceil(pieces);
    let (mut end, mut end_member) = (0, 0);
    for length in lengths {
        end += 1;
        end_member += u32::from_le_bytes(*length) as usize;
        let here = (end - bag + end_member - member) as u64;
        if here >= target || end == lengths.len() {
            // Of ids, which are not those of any one bag, each span has its share.
            let share = if end == lengths.len() { rows - done } else { here * rows / all };
            done += share;
            spans.push(Cut { rows: share, span: Span::Bags { bags: bag..end, members: member..end_member } });
            (bag, member) = (end, end_member);
        }
    }
    spans
}

/// Whether the members are all ids, in the order in which they are met first.
fn every_id_is_met_in_its_place(feature: &Feature, bags: &Bags) -> bool {
    let Some(members) = bags.packed().members else { return true };
    let (mut next, mut in_place) = (0, true);
    for member in members {
        let member = u32::from_le_bytes(*member);
        in_place &= member <= next;
        next = next.max(member.saturating_add(1));
    }
    in_place && next as usize == feature.id_count()
}
