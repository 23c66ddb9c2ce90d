//! Where the buffers of a program lie in the arena on the device. As on the CPU, places are given once, by when the
//! first writer and the last reader run, and buffers that are never alive together share one. A bucket runs whole here,
//! so buffers of requests and of rows each have a region of their own, which grows with the bucket.

use crate::plan::view::{BufferId, Space};

/// Elements that places are rounded up to: with 16 records and more, regions begin at 256 bytes.
const ALIGN: usize = 16;

/// When a buffer is written and read, by the numbers of the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) buffer: BufferId,
    pub(super) space: Space,
    /// Elements per record.
    pub(super) width: usize,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// Elements per request and per row that the arena must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) requests: usize,
    pub(crate) rows: usize,
}

/// Gives each a place: in the order of `lives`, in elements per record of its space.
pub(super) fn assign(lives: &[Life]) -> (Vec<usize>, Extent) {
    let mut order: Vec<usize> = (0..lives.len()).collect();
    order.sort_by_key(|&at| (lives[at].first, lives[at].buffer));
    let mut places = vec![0; lives.len()];
    let mut extent = Extent::default();
    for space in [Space::Request, Space::Row] {
        // What is alive, by place: where it begins, its size, and until when.
        let mut alive: Vec<(usize, usize, usize)> = Vec::new();
        let end = if space == Space::Request { &mut extent.requests } else { &mut extent.rows };
        for &at in order.iter().filter(|&&at| lives[at].space == space) {
            let life = lives[at];
            alive.retain(|&(_, _, last)| last >= life.first);
            let size = life.width.next_multiple_of(ALIGN);
            let mut place = 0;
            let gap = alive.iter().position(|&(begin, taken, _)| {
                let fits = begin.saturating_sub(place) >= size;
                place = if fits { place } else { begin + taken };
                fits
            });
            alive.insert(gap.unwrap_or(alive.len()), (place, size, life.last));
            places[at] = place;
            *end = (*end).max(place + size);
        }
    }
    (places, extent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(buffer: BufferId, space: Space, width: usize, first: usize, last: usize) -> Life {
        Life { buffer, space, width, first, last }
    }

    #[test]
    fn buffers_share_a_place_when_their_lives_do_not_meet() {
        let row = Space::Row;
        let lives =
            [life(0, row, 20, 0, 1), life(1, row, 20, 1, 2), life(2, row, 30, 2, 3), life(3, row, 9, 3, 3)];
        let (places, extent) = assign(&lives);
        assert_eq!((places, extent), (vec![0, 32, 0, 32], Extent { requests: 0, rows: 64 }));
    }

    #[test]
    fn no_two_that_are_alive_together_overlap() {
        let mut state = 7u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let lives: Vec<Life> = (0..20)
                .map(|buffer| {
                    let first = next(30) as usize;
                    let space = if next(3) == 0 { Space::Request } else { Space::Row };
                    life(buffer, space, 1 + next(70) as usize, first, first + next(9) as usize)
                })
                .collect();
            let (places, extent) = assign(&lives);
            for (a, left) in lives.iter().enumerate() {
                let end = if left.space == Space::Row { extent.rows } else { extent.requests };
                assert!(places[a] + left.width <= end);
                for (b, right) in
                    lives.iter().enumerate().filter(|&(b, right)| b != a && right.space == left.space)
                {
                    let together = left.first <= right.last && right.first <= left.last;
                    let overlap = places[a] < places[b] + right.width && places[b] < places[a] + left.width;
                    assert!(
                        !(together && overlap),
                        "{left:?} at {} and {right:?} at {}",
                        places[a],
                        places[b]
                    );
                }
            }
        }
    }
}
