//! Sorts the rows of a version into partitions, and refuses ids that cannot stand there together.

use tidepool_types::{Keying, PartitionCount, PartitionIndex};

use crate::{error::BuildError, header::MAX_PARTITION_ROWS};

/// One row on its way into a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    /// What the partition is asked for; see [`Keying::locate`].
    pub(crate) key: u64,
    /// The how-manieth row that was pushed.
    pub(crate) pushed: usize,
}

/// The members of each partition, in ascending order of their keys.
pub(crate) fn group(
    ids: &[u64],
    keying: Keying,
    partitions: PartitionCount,
) -> Result<Vec<Vec<Member>>, BuildError> {
    let mut counts = vec![0usize; partitions.get() as usize];
    for &id in ids {
        counts[keying.locate(id, partitions).partition.0 as usize] += 1;
    }
    let mut groups: Vec<Vec<Member>> = counts.iter().map(|&count| Vec::with_capacity(count)).collect();
    for (pushed, &id) in ids.iter().enumerate() {
        let location = keying.locate(id, partitions);
        groups[location.partition.0 as usize].push(Member { key: location.key, pushed });
    }
    for (group, partition) in groups.iter_mut().zip(partitions.indexes()) {
        if group.len() as u64 > MAX_PARTITION_ROWS {
            return Err(BuildError::TooManyRows { partition: partition.0, rows: group.len() as u64 });
        }
        group.sort_unstable();
    }
    refuse_duplicates(ids, &groups)?;
    if keying == Keying::Dense {
        refuse_holes(&groups, partitions, ids.len() as u64)?;
    }
    Ok(groups)
}

/// Names the smallest id that stands twice, whatever the order of rows.
fn refuse_duplicates(ids: &[u64], groups: &[Vec<Member>]) -> Result<(), BuildError> {
    let twice = groups.iter().flat_map(|group| group.windows(2)).filter(|pair| pair[0].key == pair[1].key);
    match twice.map(|pair| ids[pair[0].pushed]).min() {
        Some(id) => Err(BuildError::DuplicateId { id }),
        None => Ok(()),
    }
}

/// Without duplicates, N ids are 0..N exactly when row `r` of each partition has the key `r`.
fn refuse_holes(groups: &[Vec<Member>], partitions: PartitionCount, rows: u64) -> Result<(), BuildError> {
    let first_hole = |(group, partition): (&Vec<Member>, PartitionIndex)| {
        let expected = Keying::dense_rows(rows, partition, partitions);
        let keys = group.iter().map(|member| Some(member.key)).chain(std::iter::repeat(None));
        let hole = (0..expected).zip(keys).find(|&(row, key)| key != Some(row));
        hole.map(|(row, _)| row * u64::from(partitions.get()) + u64::from(partition.0))
    };
    match groups.iter().zip(partitions.indexes()).filter_map(first_hole).min() {
        Some(id) => Err(BuildError::MissingId { id, rows }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> PartitionCount {
        PartitionCount::new(4).unwrap()
    }

    #[test]
    fn dense_ids_must_be_complete() {
        assert!(group(&[5, 3, 1, 0, 2, 4], Keying::Dense, four()).is_ok());
        assert!(matches!(
            group(&[5, 3, 1, 0, 4], Keying::Dense, four()),
            Err(BuildError::MissingId { id: 2, rows: 5 })
        ));
        assert!(matches!(
            group(&[1 << 40], Keying::Dense, four()),
            Err(BuildError::MissingId { id: 0, rows: 1 })
        ));
    }

    #[test]
    fn the_smallest_duplicate_is_named() {
        for keying in [Keying::Dense, Keying::Hashed] {
            for ids in [[3, 7, 1, 7, 3, 0], [7, 7, 3, 0, 1, 3]] {
                assert!(matches!(group(&ids, keying, four()), Err(BuildError::DuplicateId { id: 3 })));
            }
        }
    }
}
