//! The switch between reading a durable queue and being fed live.
//!
//! What a durable receiver gets is in its queue anyway; live feeding only spares the reading. While the queue is read,
//! what arrives live is noted, so far as it fits, and when the end of the queue is reached, what was noted and not read
//! follows at once: from then on the receiver is live. So nothing live overtakes what is queued, nothing is delivered
//! twice, and nothing is missed.
//!
//! An entry stays in the queue until its settlement is durable, and a queue that is read again from its head gives it
//! again. So the entries that were taken out are held, until no page can have them.
//!
//! It rests on two properties of the store: entries become visible in the order of their ids, whole commits at a time;
//! and whoever feeds live does so after the entry has its id.

use std::collections::{HashSet, VecDeque};

use foreshore_store::{EntryId, Page};

/// Most entries that are noted while the queue is read.
const MAX_NOTED: usize = 256;

/// Most bytes that are noted while the queue is read.
const MAX_NOTED_BYTES: usize = 256 << 10;

/// How a durable receiver gets its entries.
#[derive(Debug)]
pub(crate) struct Backlog<T> {
    feed: Feed<T>,
    /// The page that is being read, if one is.
    reading: Option<Reading>,
    /// Entries that were taken out of the queue and are not settled for good.
    held: HashSet<EntryId>,
}

#[derive(Debug)]
enum Feed<T> {
    /// Entries are fed as they arrive; those up to `after` were read.
    Live { after: EntryId },
    /// Entries are read from the queue.
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

/// A page that is being read.
#[derive(Debug, Default)]
struct Reading {
    /// Whether it is to be read anew.
    stale: bool,
    /// Entries that were settled for good meanwhile: the page may have them still.
    settled: Vec<EntryId>,
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
    /// Is fed live from the first entry on.
    pub(crate) fn live() -> Self {
        Self::new(Feed::Live { after: 0 })
    }

    /// Reads the queue from its head.
    pub(crate) fn draining() -> Self {
        Self::new(Feed::draining_to(0))
    }

    fn new(feed: Feed<T>) -> Self {
        Self {
            feed,
            reading: None,
            held: HashSet::new(),
        }
    }

    /// The last entry that was read, while the queue is read.
    pub(crate) fn cursor(&self) -> Option<EntryId> {
        match self.feed {
            Feed::Live { .. } => None,
            Feed::Draining { cursor, .. } => Some(cursor),
        }
    }

    /// An entry arrives live.
    pub(crate) fn offer(&mut self, entry: EntryId, weight: usize, item: T) -> Offered<T> {
        match &mut self.feed {
            Feed::Live { after } if entry <= *after => Offered::Covered,
            Feed::Live { .. } => Offered::Deliver(item),
            Feed::Draining {
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

    /// Takes an entry out of the queue: no page gives it again until it is settled for good, or given back.
    pub(crate) fn hold(&mut self, entry: EntryId) {
        self.held.insert(entry);
    }

    /// An entry is left to the queue.
    pub(crate) fn give_back(&mut self, entry: EntryId) {
        self.held.remove(&entry);
    }

    /// An entry is settled for good.
    pub(crate) fn settled(&mut self, entry: EntryId) {
        match &mut self.reading {
            Some(reading) => reading.settled.push(entry),
            None => self.give_back(entry),
        }
    }

    /// Goes back to reading from the head: live entries up to `floor` could not be kept in memory.
    pub(crate) fn fall_back(&mut self, floor: EntryId) {
        if let Some(reading) = &mut self.reading {
            reading.stale = true;
        }
        match &mut self.feed {
            Feed::Live { .. } => self.feed = Feed::draining_to(floor),
            Feed::Draining {
                cursor, floor: known, ..
            } => {
                *cursor = 0;
                *known = floor.max(*known);
            }
        }
    }

    /// Entries up to `floor` are visible now, or were refused and never will be.
    pub(crate) fn resolved(&mut self, resolved: EntryId) {
        if let Feed::Draining { floor, .. } = &mut self.feed
            && *floor <= resolved
        {
            *floor = 0;
        }
    }

    /// Begins to read a page, if the queue is read: of the entries after this one. [`Backlog::end_read`] ends it.
    pub(crate) fn begin_read(&mut self) -> Option<EntryId> {
        let after = self.cursor()?;
        self.reading = Some(Reading::default());
        Some(after)
    }

    /// A page was read: leaves in it what was not taken out before, and tells what is to be done after that.
    pub(crate) fn end_read(&mut self, page: &mut Page) -> AfterRead<T> {
        let Reading { stale, settled } = self.reading.take().unwrap_or_default();
        let is_new = |id: &EntryId| !stale && !self.held.contains(id);
        page.entries.retain(|entry| is_new(&entry.id));
        page.expired.retain(is_new);
        page.damaged.retain(is_new);
        for entry in settled {
            self.give_back(entry);
        }
        if stale {
            return AfterRead::More;
        }
        self.advance(page.resume_after, page.at_end)
    }

    /// The queue was read up to `read_to`.
    fn advance(&mut self, read_to: EntryId, at_end: bool) -> AfterRead<T> {
        let Feed::Draining {
            cursor, floor, noted, ..
        } = &mut self.feed
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
        self.feed = Feed::Live { after };
        AfterRead::Live(rest)
    }
}

impl<T> Feed<T> {
    fn draining_to(floor: EntryId) -> Self {
        Self::Draining {
            cursor: 0,
            floor,
            noted: VecDeque::new(),
            noted_bytes: 0,
        }
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
        assert_eq!(backlog.advance(2, false), AfterRead::More);
        assert_eq!(backlog.offer(1, 1, 'a'), Offered::Covered);
        assert_eq!(backlog.advance(4, true), AfterRead::Live(vec!['e']));
        assert_eq!(backlog.offer(4, 1, 'd'), Offered::Covered);
        assert_eq!(backlog.offer(6, 1, 'f'), Offered::Deliver('f'));
    }

    #[test]
    fn what_could_not_be_noted_is_read() {
        let mut backlog = Backlog::draining();
        for entry in 1..=MAX_NOTED as u64 + 1 {
            assert_eq!(backlog.offer(entry, 1, entry), Offered::Covered);
        }
        assert_eq!(backlog.advance(100, true), AfterRead::AwaitCommit(257));
        assert_eq!(backlog.offer(300, 1, 300), Offered::Covered);
        assert_eq!(
            backlog.advance(MAX_NOTED as u64 + 1, true),
            AfterRead::Live(vec![300])
        );
    }

    #[test]
    fn large_entries_are_not_noted() {
        let mut backlog = Backlog::draining();
        assert_eq!(backlog.offer(7, MAX_NOTED_BYTES + 1, 'x'), Offered::Covered);
        assert_eq!(backlog.advance(6, true), AfterRead::AwaitCommit(7));
        // Whether it was refused or taken in, a read after the commit tells.
        backlog.resolved(7);
        assert_eq!(backlog.advance(6, true), AfterRead::Live(vec![]));
    }

    #[test]
    fn falling_back_reads_from_the_head() {
        let mut backlog = Backlog::new(Feed::Live { after: 10 });
        assert_eq!(backlog.offer(11, 1, 'k'), Offered::Deliver('k'));
        backlog.fall_back(13);
        assert_eq!(backlog.cursor(), Some(0));
        assert_eq!(backlog.advance(12, true), AfterRead::AwaitCommit(13));
        assert_eq!(backlog.advance(13, true), AfterRead::Live(vec![]));
        assert_eq!(backlog.cursor(), None);
    }

    fn page(ids: &[EntryId], at_end: bool) -> Page {
        // Expired ones need no record.
        Page {
            expired: ids.to_vec(),
            resume_after: ids.last().copied().unwrap_or_default(),
            at_end,
            ..Page::default()
        }
    }

    #[test]
    fn what_was_taken_out_is_not_read_again() {
        let mut backlog = Backlog::<()>::draining();
        assert_eq!(backlog.begin_read(), Some(0));
        let mut first = page(&[1, 2, 3], false);
        assert_eq!(backlog.end_read(&mut first), AfterRead::More);
        assert_eq!(first.expired, [1, 2, 3]);
        backlog.hold(1);
        backlog.hold(2);
        backlog.hold(3);
        backlog.fall_back(0);

        // Settled while a page is read that has it still; the next one can't have it.
        assert_eq!(backlog.begin_read(), Some(0));
        backlog.settled(1);
        backlog.give_back(3);
        let mut again = page(&[1, 2, 3], true);
        assert_eq!(backlog.end_read(&mut again), AfterRead::Live(vec![]));
        assert_eq!(again.expired, [3]);
        assert_eq!(backlog.held, HashSet::from([2]));
        backlog.settled(2);
        assert!(backlog.held.is_empty());
    }

    #[test]
    fn a_page_that_was_read_before_falling_back_is_read_anew() {
        let mut backlog = Backlog::<()>::draining();
        assert_eq!(backlog.begin_read(), Some(0));
        assert_eq!(backlog.end_read(&mut page(&[1, 2], false)), AfterRead::More);
        assert_eq!(backlog.begin_read(), Some(2));
        backlog.fall_back(2);
        let mut stale = page(&[3], true);
        assert_eq!(backlog.end_read(&mut stale), AfterRead::More);
        assert!(stale.expired.is_empty());
        // Nothing between the head and the stale page is passed over.
        assert_eq!(backlog.begin_read(), Some(0));
        let mut anew = page(&[1, 2, 3], true);
        assert_eq!(backlog.end_read(&mut anew), AfterRead::Live(vec![]));
        assert_eq!(anew.expired, [1, 2, 3]);
    }
}
