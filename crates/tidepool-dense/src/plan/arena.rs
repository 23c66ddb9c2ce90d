//! Where buffers lie in the arena: assigned once, by when their first writer and their last reader run. Buffers that
//! are never alive at the same time share their place.

use super::{
    step::Step,
    view::{Buffer, BufferId, Home, Space},
};

/// Elements that places are rounded up to, so that blocks begin at cache lines.
const ALIGN: usize = 16;

/// Elements of the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Per record of a block of requests, and of rows: the two share their memory.
    pub(crate) requests: usize,
    pub(crate) rows: usize,
    /// Per request of a run.
    pub(crate) kept: usize,
}

impl Extent {
    /// Per record of a block of that space.
    pub(crate) fn scratch(self, space: Space) -> usize {
        match space {
            Space::Request => self.requests,
            Space::Row => self.rows,
        }
    }
}

/// Assigns a place to every buffer that steps make. `last` are those that are read when all steps have run.
pub(crate) fn assign(buffers: &mut [Buffer], requests: &[Step], rows: &[Step], last: &[BufferId]) -> Extent {
    let mut extent = Extent::default();
    // What rows read of requests outlives the blocks of requests.
    let read_by_rows = rows.iter().flat_map(Step::reads).chain(last.iter().copied());
    for buffer in read_by_rows {
        let buffer = &mut buffers[buffer];
        if buffer.space == Space::Request && matches!(buffer.home, Home::Scratch(_)) {
            buffer.home = Home::Kept(extent.kept);
            extent.kept += buffer.width.next_multiple_of(ALIGN);
        }
    }
    for (steps, scratch) in [(requests, &mut extent.requests), (rows, &mut extent.rows)] {
        let mut until = vec![0; buffers.len()];
        for (at, step) in steps.iter().enumerate() {
            step.reads().into_iter().chain([step.out]).for_each(|buffer| until[buffer] = at);
        }
        last.iter().for_each(|&buffer| until[buffer] = steps.len());
        // What is alive: where it begins, its size, and the step that it is alive until.
        let mut alive: Vec<(usize, usize, usize)> = Vec::new();
        let mut placed = vec![false; buffers.len()];
        for (at, step) in steps.iter().enumerate() {
            if placed[step.out] || !matches!(buffers[step.out].home, Home::Scratch(_)) {
                continue;
            }
            placed[step.out] = true;
            alive.retain(|&(_, _, until)| until >= at);
            let size = buffers[step.out].width.next_multiple_of(ALIGN);
            let mut place = 0;
            let fits = alive.iter().position(|&(begin, taken, _)| {
                let gap = begin.saturating_sub(place) >= size;
                place = if gap { place } else { begin + taken };
                gap
            });
            alive.insert(fits.unwrap_or(alive.len()), (place, size, until[step.out]));
            buffers[step.out].home = Home::Scratch(place);
            *scratch = (*scratch).max(place + size);
        }
    }
    extent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::step::Work;

    fn step(reads: BufferId, out: BufferId) -> Step {
        Step { node: String::new(), out, work: Work::Pick { source: reads, elements: Vec::new() } }
    }

    #[test]
    fn buffers_share_a_place_when_their_lives_do_not_meet() {
        let buffer = |space, home| Buffer { space, home, width: 20 };
        let mut buffers = vec![buffer(Space::Row, Home::Input(0))];
        buffers.extend([buffer(Space::Row, Home::Scratch(0)); 4]);
        let rows = [step(0, 1), step(1, 2), step(2, 3), step(3, 4)];
        let extent = assign(&mut buffers, &[], &rows, &[4]);
        assert_eq!(extent, Extent { requests: 0, rows: 64, kept: 0 });
        let homes: Vec<Home> = buffers[1..].iter().map(|b| b.home).collect();
        assert_eq!(homes, [0, 32, 0, 32].map(Home::Scratch));
    }

    #[test]
    fn what_rows_read_of_requests_is_kept() {
        let mut buffers = vec![Buffer { space: Space::Request, home: Home::Input(0), width: 1 }];
        buffers.extend([Buffer { space: Space::Request, home: Home::Scratch(0), width: 3 }; 2]);
        buffers.push(Buffer { space: Space::Row, home: Home::Scratch(0), width: 5 });
        let extent = assign(&mut buffers, &[step(0, 1), step(1, 2)], &[step(2, 3)], &[3]);
        assert_eq!(extent, Extent { requests: 16, rows: 16, kept: 16 });
        assert_eq!((buffers[1].home, buffers[2].home), (Home::Scratch(0), Home::Kept(0)));
    }
}
