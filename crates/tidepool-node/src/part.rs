//! A part of a lookup: a feature, or some of its ids or bags. Parts of a lookup write into room of their own,
//! cut from one buffer per field of the answer, and put together again without a copy. However a lookup is cut,
//! the answer is the same to the bit.

use std::{
    cell::RefCell,
    ops::Range,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tidepool_proto::v1;
use tidepool_table::{Bags, LayoutView, LookupScratch, Missing, NotHeld, PartitionRows, SumsRoom};

use crate::decode::{Feature, Form};

thread_local! {
    /// What the lookups of a thread work in, one after the other.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    lookup: LookupScratch,
    narrow: Narrow,
}

/// What of a feature a part is.
#[derive(Debug)]
pub(crate) enum Span {
    Whole,
    /// Of a feature that is gathered.
    Ids(Range<usize>),
    /// Of a feature that is pooled. Members are those of the bags.
    Bags {
        bags: Range<usize>,
        members: Range<usize>,
    },
}

/// A part, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Part {
    /// Position of the feature in the request.
    pub(crate) feature: usize,
    pub(crate) span: Span,
    pub(crate) room: Room,
}

/// Room for the fields of an answer that are as long as what is asked.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Stored rows, or sums.
    vectors: BytesMut,
    counts: BytesMut,
    weight_sums: BytesMut,
}

/// The answer to a part.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) feature: usize,
    pub(crate) room: Room,
    missing: Missing,
    /// Where the ids of `missing` are among those of the feature.
    places: Places,
    /// On the thread that did it.
    pub(crate) took: Duration,
}

#[derive(Debug)]
enum Places {
    /// From this one on.
    From(usize),
    /// One by one.
    At(Vec<u32>),
}

impl Room {
    /// For a whole feature.
    pub(crate) fn of<P>(feature: &Feature, layout: &LayoutView<P>) -> Self {
        match &feature.form {
            Form::Gather => Self {
                vectors: BytesMut::zeroed(feature.id_count() * layout.kernel().row_bytes()),
                ..Self::default()
            },
            Form::Pool(bags) => {
                let count = bags.bag_count();
                let weighted = if bags.weighted() { count } else { 0 };
                Self {
                    vectors: BytesMut::zeroed(count * layout.kernel().dim() as usize * size_of::<f32>()),
                    counts: BytesMut::zeroed(count * size_of::<u32>()),
                    weight_sums: BytesMut::zeroed(weighted * size_of::<f32>()),
                }
            }
        }
    }

    /// Cuts the room for the first `done` of `left` ids or bags off.
    pub(crate) fn cut(&mut self, done: usize, left: usize) -> Self {
        let cut = |all: &mut BytesMut| all.split_to(all.len() / left.max(1) * done);
        Self {
            vectors: cut(&mut self.vectors),
            counts: cut(&mut self.counts),
            weight_sums: cut(&mut self.weight_sums),
        }
    }

    /// Puts back what was cut off behind this.
    fn join(&mut self, next: Self) {
        self.vectors.unsplit(next.vectors);
        self.counts.unsplit(next.counts);
        self.weight_sums.unsplit(next.weight_sums);
    }

    pub(crate) fn len(&self) -> usize {
        self.vectors.len() + self.counts.len() + self.weight_sums.len()
    }
}

impl Part {
    /// A whole feature.
    pub(crate) fn whole<P>(at: usize, feature: &Feature, layout: &LayoutView<P>) -> Self {
        Self { feature: at, span: Span::Whole, room: Room::of(feature, layout) }
    }

    /// Looks it up.
    ///
    /// # Errors
    /// [`NotHeld`] for the first id whose partition is not.
    pub(crate) fn answer<P: PartitionRows>(
        self,
        feature: &Feature,
        layout: &LayoutView<P>,
    ) -> Result<Done, NotHeld> {
        SCRATCH.with_borrow_mut(|scratch| self.answer_in(feature, layout, scratch))
    }

    fn answer_in<P: PartitionRows>(
        self,
        of: &Feature,
        layout: &LayoutView<P>,
        scratch: &mut Scratch,
    ) -> Result<Done, NotHeld> {
        let begun = Instant::now();
        let Self { feature, span, mut room } = self;
        let (mut missing, mut places) = (Missing::default(), Places::From(0));
        let ids = of.ids();
        match &of.form {
            Form::Gather => {
                let range = if let Span::Ids(range) = span { range } else { 0..ids.len() };
                places = Places::From(range.start);
                let rows = &mut room.vectors;
                layout.gather_into(&ids[range], &mut scratch.lookup, rows, &mut missing)?;
            }
            Form::Pool(bags) => {
                let room = SumsRoom {
                    sums: &mut room.vectors,
                    counts: &mut room.counts,
                    weight_sums: &mut room.weight_sums,
                };
                let all = bags.packed();
                if let Span::Bags { bags, members } = span {
                    let lengths = &all.lengths[bags];
                    let weights = all.weights.map(|weights| &weights[members.clone()]);
                    if let Some(packed) = all.members {
                        let narrow = &mut scratch.narrow;
                        narrow.to(&packed[members], ids);
                        let bags = Bags { members: Some(&narrow.members), lengths, weights };
                        layout.pool_into(&narrow.ids, bags, &mut scratch.lookup, room, &mut missing)?;
                        if missing.count > 0 {
                            places = Places::At(narrow.places.clone());
                        }
                    } else {
                        // Each id is one member.
                        places = Places::From(members.start);
                        let bags = Bags { members: None, lengths, weights };
                        layout.pool_into(&ids[members], bags, &mut scratch.lookup, room, &mut missing)?;
                    }
                } else {
                    layout.pool_into(ids, all, &mut scratch.lookup, room, &mut missing)?;
                }
            }
        }
        Ok(Done { feature, room, missing, places, took: begun.elapsed() })
    }
}

/// Members of some bags, as positions in the ids that these bags have, each id once, in the order of their first
/// use. So a part looks no other ids up.
#[derive(Default)]
struct Narrow {
    ids: Vec<[u8; 8]>,
    /// Where these ids are among all.
    places: Vec<u32>,
    members: Vec<[u8; 4]>,
    /// For every id of the feature: its position in `ids`, if the number before it is that of this part.
    seen: Vec<(u32, u32)>,
    part: u32,
}

impl Narrow {
    fn to(&mut self, members: &[[u8; 4]], all: &[[u8; 8]]) {
        self.ids.clear();
        self.places.clear();
        self.members.clear();
        if self.seen.len() < all.len() {
            self.seen.resize(all.len(), (0, 0));
        }
        self.part = self.part.wrapping_add(1);
        if self.part == 0 {
            self.seen.fill((0, 0));
            self.part = 1;
        }
        for member in members {
            let place = u32::from_le_bytes(*member);
            let seen = &mut self.seen[place as usize];
            if seen.0 != self.part {
                *seen = (self.part, self.ids.len() as u32);
                self.ids.push(all[place as usize]);
                self.places.push(place);
            }
            self.members.push(seen.1.to_le_bytes());
        }
    }
}

impl Done {
    /// Takes the answer to the next part of the same feature in. `ids` are those of the feature.
    pub(crate) fn join(&mut self, next: Self, ids: usize) {
        self.room.join(next.room);
        self.took += next.took;
        if next.missing.count > 0 {
            self.widen(ids);
            next.places.of(&next.missing).for_each(|place| mark(&mut self.missing, place));
        }
    }

    /// Turns what is missing into bits for all ids of the feature.
    fn widen(&mut self, ids: usize) {
        let whole = matches!(self.places, Places::From(0)) && self.missing.bits.len() == ids.div_ceil(8);
        if whole {
            return;
        }
        let narrow = std::mem::take(&mut self.missing);
        self.missing.bits.resize(ids.div_ceil(8), 0);
        self.places.of(&narrow).for_each(|place| mark(&mut self.missing, place));
        self.places = Places::From(0);
    }

    /// The answer to a whole feature, and how many of its `ids` are missing.
    pub(crate) fn response(mut self, of: &Feature) -> v1::FeatureResponse {
        if self.missing.count > 0 {
            self.widen(of.id_count());
        } else {
            self.missing.bits.clear();
        }
        let mut response = v1::FeatureResponse {
            table_version: Some((&of.table_version).into()),
            missing_ids: self.missing.count,
            missing: Bytes::from(self.missing.bits),
            ..v1::FeatureResponse::default()
        };
        let vectors = self.room.vectors.freeze();
        match of.form {
            Form::Gather => response.rows = vectors,
            Form::Pool(_) => {
                response.sums = vectors;
                response.counts = self.room.counts.freeze();
                response.weight_sums = self.room.weight_sums.freeze();
            }
        }
        response
    }
}

impl Places {
    /// The places of what is missing among the ids of the feature.
    fn of<'a>(&'a self, missing: &'a Missing) -> impl Iterator<Item = usize> + 'a {
        let set = |(at, byte): (usize, &'a u8)| {
            (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at * 8 + bit)
        };
        missing.bits.iter().enumerate().flat_map(set).map(move |at| match self {
            Self::From(first) => first + at,
            Self::At(places) => places[at] as usize,
        })
    }
}

/// Notes that the id at `place` is missing; twice is once.
fn mark(missing: &mut Missing, place: usize) {
    let (byte, bit) = (&mut missing.bits[place / 8], 1 << (place % 8));
    missing.count += u32::from(*byte & bit == 0);
    *byte |= bit;
}
