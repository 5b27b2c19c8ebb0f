//! The switch between reading a durable queue and being fed live.
//!
//! What a durable receiver gets is in its queue anyway; live feeding only spares the reading. While the queue is read,
//! what arrives live is noted, so far as it fits, and when the end of the queue is reached, what was noted and not read
//! follows at once: from then on the receiver is live. So nothing live overtakes what is queued, nothing is delivered
//! twice, and nothing is missed.
//!
//! It rests on two properties of the store: entries become visible in the order of their ids, whole commits at a time;
//! and whoever feeds live does so after the entry has its id.

use std::collections::VecDeque;

use foreshore_store::EntryId;

/// Most entries that are noted while the queue is read.
const MAX_NOTED: usize = 256;

/// Most bytes that are noted while the queue is read.
const MAX_NOTED_BYTES: usize = 256 << 10;

/// How a durable receiver gets its entries.
#[derive(Debug)]
pub(crate) enum Backlog<T> {
    /// They are fed as they arrive; those up to `after` were read.
    Live {
        /// The last entry that was read.
        after: EntryId,
    },
    /// They are read from the queue.
    Draining {
        /// The last entry that was read.
        cursor: EntryId,
        /// An entry that arrived and could not be noted: the queue is to be read at least up to it.
        floor: EntryId,
        /// What arrived meanwhile.
        noted: VecDeque<(EntryId, T)>,
        /// What that weighs.
        noted_bytes: usize,
    },
}

/// What is to be done with an entry that arrives live.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offered<T> {
    /// Deliver it.
    Deliver(T),
    /// Nothing: it was read, or will be.
    Covered,
}

/// What is to be done after a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AfterRead<T> {
    /// Read on.
    More,
    /// Wait until everything that was submitted is committed, tell [`Backlog::resolved`], and read on: entries up to
    /// this one have arrived that may not be visible yet.
    AwaitCommit(EntryId),
    /// The receiver is live; deliver these first.
    Live(Vec<T>),
}

impl<T> Backlog<T> {
    /// Reads the queue from its head.
    pub(crate) fn draining() -> Self {
        Self::Draining {
            cursor: 0,
            floor: 0,
            noted: VecDeque::new(),
            noted_bytes: 0,
        }
    }

    /// The last entry that was read, while the queue is read.
    pub(crate) fn cursor(&self) -> Option<EntryId> {
        match self {
            Self::Live { .. } => None,
            Self::Draining { cursor, .. } => Some(*cursor),
        }
    }

    /// An entry arrives live.
    pub(crate) fn offer(&mut self, entry: EntryId, weight: usize, item: T) -> Offered<T> {
        match self {
            Self::Live { after } if entry <= *after => Offered::Covered,
            Self::Live { .. } => Offered::Deliver(item),
            Self::Draining {
                cursor,
                floor,
                noted,
                noted_bytes,
            } => {
                if entry > *cursor {
                    *noted_bytes += weight;
                    noted.push_back((entry, item));
                    if noted.len() > MAX_NOTED || *noted_bytes > MAX_NOTED_BYTES {
                        *floor = noted.drain(..).map(|(entry, _)| entry).fold(*floor, EntryId::max);
                        *noted_bytes = 0;
                    }
                }
                Offered::Covered
            }
        }
    }

    /// Goes back to reading from the head: live entries up to `floor` could not be kept in memory.
    pub(crate) fn fall_back(&mut self, floor: EntryId) {
        match self {
            Self::Live { .. } => {
                *self = Self::Draining {
                    cursor: 0,
                    floor,
                    noted: VecDeque::new(),
                    noted_bytes: 0,
                };
            }
            Self::Draining {
                cursor, floor: known, ..
            } => {
                *cursor = 0;
                *known = floor.max(*known);
            }
        }
    }

    /// Entries up to `floor` are visible now, or were refused and never will be.
    pub(crate) fn resolved(&mut self, resolved: EntryId) {
        if let Self::Draining { floor, .. } = self
            && *floor <= resolved
        {
            *floor = 0;
        }
    }

    /// The queue was read up to `read_to`.
    pub(crate) fn read(&mut self, read_to: EntryId, at_end: bool) -> AfterRead<T> {
        let Self::Draining {
            cursor, floor, noted, ..
        } = self
        else {
            return AfterRead::Live(Vec::new());
        };
        *cursor = read_to.max(*cursor);
        if !at_end {
            return AfterRead::More;
        }
        if *cursor < *floor {
            return AfterRead::AwaitCommit(*floor);
        }
        let after = *cursor;
        let rest = noted
            .drain(..)
            .filter(|(entry, _)| *entry > after)
            .map(|(_, item)| item)
            .collect();
        *self = Self::Live { after };
        AfterRead::Live(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_while_reading_follows_once() {
        let mut backlog = Backlog::draining();
        assert_eq!(backlog.offer(3, 1, 'c'), Offered::Covered);
        assert_eq!(backlog.offer(5, 1, 'e'), Offered::Covered);
        assert_eq!(backlog.read(2, false), AfterRead::More);
        assert_eq!(backlog.offer(1, 1, 'a'), Offered::Covered);
        assert_eq!(backlog.read(4, true), AfterRead::Live(vec!['e']));
        assert_eq!(backlog.offer(4, 1, 'd'), Offered::Covered);
        assert_eq!(backlog.offer(6, 1, 'f'), Offered::Deliver('f'));
    }

    #[test]
    fn what_could_not_be_noted_is_read() {
        let mut backlog = Backlog::draining();
        for entry in 1..=MAX_NOTED as u64 + 1 {
            assert_eq!(backlog.offer(entry, 1, entry), Offered::Covered);
        }
        assert_eq!(backlog.read(100, true), AfterRead::AwaitCommit(257));
        assert_eq!(backlog.offer(300, 1, 300), Offered::Covered);
        assert_eq!(
            backlog.read(MAX_NOTED as u64 + 1, true),
            AfterRead::Live(vec![300])
        );
    }

    #[test]
    fn large_entries_are_not_noted() {
        let mut backlog = Backlog::draining();
        assert_eq!(backlog.offer(7, MAX_NOTED_BYTES + 1, 'x'), Offered::Covered);
        assert_eq!(backlog.read(6, true), AfterRead::AwaitCommit(7));
        // Whether it was refused or taken in, a read after the commit tells.
        backlog.resolved(7);
        assert_eq!(backlog.read(6, true), AfterRead::Live(vec![]));
    }

    #[test]
    fn falling_back_reads_from_the_head() {
        let mut backlog = Backlog::Live { after: 10 };
        assert_eq!(backlog.offer(11, 1, 'k'), Offered::Deliver('k'));
        backlog.fall_back(13);
        assert_eq!(backlog.cursor(), Some(0));
        assert_eq!(backlog.read(12, true), AfterRead::AwaitCommit(13));
        assert_eq!(backlog.read(13, true), AfterRead::Live(vec![]));
        assert_eq!(backlog.cursor(), None);
    }
}
