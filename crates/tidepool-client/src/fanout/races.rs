//! What is remembered of the calls of a lookup: which pieces each was for, which of two that race for the same
//! pieces counts, and what has come of them so far. Nothing here decides whom to ask.

use std::{future::Future, pin::Pin, time::Instant};

use futures::{
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use tidepool_proto::v1;

use super::Gathered;
use crate::{
    account::LookupAccount,
    answer::Answered,
    asks::Ask,
    error::NodeFailure,
    peer::Ticket,
    route::{Piece, Tried},
    topology::NodeAt,
};

/// A call that has ended.
pub(super) struct Done {
    /// Its number, in the order of asking.
    pub(super) number: usize,
    pub(super) asks: Vec<Ask>,
    pub(super) result: Result<v1::LookupResponse, NodeFailure>,
}

/// What is remembered of a call while it is under way.
pub(super) struct Call<'c> {
    /// Which of [`State::races`] it runs in.
    pub(super) race: usize,
    pub(super) node: NodeAt,
    pub(super) pieces: Vec<Piece>,
    pub(super) ids: usize,
    /// None: it has ended.
    pub(super) ticket: Option<Ticket<'c>>,
    pub(super) cancel: AbortHandle,
    /// Its place in the account of the lookup.
    pub(super) noted: Option<usize>,
}

/// Pieces on their way: a call, and perhaps those that were made because it was late.
pub(super) struct Race {
    /// The number of the first call.
    pub(super) first: usize,
    pub(super) hedge: Option<Hedge>,
    /// When the first call is late; None: it has been hedged, or there is nobody else.
    pub(super) late_at: Option<Instant>,
    /// A hedge was due and could not be paid for.
    pub(super) suppressed: bool,
    pub(super) over: bool,
}

/// The calls of another group for the pieces of a race.
pub(super) struct Hedge {
    pub(super) calls: Vec<usize>,
    pub(super) answers: Vec<(usize, Vec<Answered>)>,
}

/// What has been asked so far.
pub(super) struct State<'c> {
    pub(super) running: FuturesUnordered<Abortable<Running<'c>>>,
    pub(super) calls: Vec<Call<'c>>,
    pub(super) races: Vec<Race>,
    /// Races that are not over.
    pub(super) open: usize,
    pub(super) tried: Tried,
    /// Every node asked, once.
    pub(super) nodes: Vec<NodeAt>,
    /// Number, node and answers of each call that counts.
    pub(super) answers: Vec<(usize, NodeAt, Vec<Answered>)>,
    pub(super) out: Gathered,
    account: Option<&'c LookupAccount>,
}

pub(super) type Running<'a> = Pin<Box<dyn Future<Output = Done> + Send + 'a>>;

impl<'c> State<'c> {
    pub(super) fn new(account: Option<&'c LookupAccount>) -> Self {
        Self {
            account,
            running: FuturesUnordered::new(),
            calls: Vec::new(),
            races: Vec::new(),
            open: 0,
            tried: Tried::default(),
            nodes: Vec::new(),
            answers: Vec::new(),
            out: Gathered::default(),
        }
    }

    /// Cancels a call that nobody waits for any more. What it had in flight is no longer counted.
    pub(super) fn cancel(&mut self, number: usize) -> Option<Ticket<'c>> {
        let call = &mut self.calls[number];
        call.cancel.abort();
        if let (Some(account), Some(noted)) = (self.account, call.noted) {
            account.outrun(noted);
        }
        call.ticket.take()
    }

    pub(super) fn finish_race(&mut self, race: usize) {
        self.races[race].over = true;
        self.open -= 1;
    }

    /// When something is due that is not a call's end.
    pub(super) fn next_due(&self, deadline: Instant) -> Instant {
        let open = self.races.iter().filter(|race| !race.over);
        open.filter_map(|race| race.late_at).fold(deadline, Instant::min)
    }

    /// The first call of a race has failed: its hedge, if it is under way, goes on in its place.
    pub(super) fn hedge_takes_over(&mut self, race: usize) -> bool {
        let Some(hedge) = self.races[race].hedge.take() else { return false };
        self.out.hedges_won += 1;
        for number in hedge.calls {
            let over = false;
            self.races.push(Race { first: number, hedge: None, late_at: None, suppressed: false, over });
            self.open += 1;
            self.calls[number].race = self.races.len() - 1;
        }
        for (number, answer) in hedge.answers {
            self.answers.push((number, self.calls[number].node, answer));
            self.finish_race(self.calls[number].race);
        }
        self.finish_race(race);
        true
    }

    /// Cancels the hedge of a race, whose nodes may be asked again if they have not failed.
    pub(super) fn drop_hedge(&mut self, race: usize) {
        let Some(hedge) = self.races[race].hedge.take() else { return };
        for number in hedge.calls {
            let answered = hedge.answers.iter().any(|(n, _)| *n == number);
            if self.cancel(number).is_some() || answered {
                let call = &self.calls[number];
                self.tried.remove(&call.pieces, call.node);
            }
        }
    }
}
