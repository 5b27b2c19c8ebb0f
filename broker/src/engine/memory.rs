//! What the broker holds in memory for its clients, and what happens when that is too much.
//!
//! Every connection tells its shard what it holds whenever that has changed: what waits for it, what waits to be written,
//! packets that are not complete, what is in flight, its subscriptions. The shard adds up, for itself, so that nobody
//! writes where another one does; the sum over shards is worked out only by those who need it. What belongs to no
//! connection (retained messages, the state store, sessions that wait for their clients) is measured now and then.
//!
//! Beyond the quota the connection that holds most is ended (0x97, quota exceeded), and the next, until it is kept; new
//! clients are refused. Whoever holds little never is among them: see [`SPARED`]. What is counted is what grows with what
//! clients do, and no more exact than that: the allocator, threads and caches of the store come on top of it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use super::Engine;
use crate::stats::Stats;

/// Bytes that a connection may hold however short memory is: it would gain nothing to end it.
pub(crate) const SPARED: usize = 64 << 10;

/// What a connection holds that does nothing, in bytes: its state, and its socket's in the program.
pub(crate) const CONNECTION: usize = 4 << 10;

/// What encryption adds to that, in bytes.
pub(crate) const ENCRYPTION: usize = 16 << 10;

/// What a retained message takes beside its bytes.
const RETAINED: usize = 256;

/// What is held in memory for clients.
#[derive(Debug)]
pub(crate) struct Memory {
    shards: Box<[OfShard]>,
    /// What clients sent that have not been let in yet.
    handshakes: AtomicUsize,
    /// What belongs to no connection, as it was measured last.
    elsewhere: AtomicUsize,
    /// Most bytes of all; `usize::MAX` without a quota.
    max: AtomicUsize,
    /// Most bytes of one connection; `usize::MAX` without a quota.
    max_of_client: AtomicUsize,
    /// Connections that were ended for it.
    ended: AtomicU64,
    /// Connections that were refused for it.
    refused: AtomicU64,
}

/// What the connections of one shard hold. Only that shard writes here, so it has a cache line to itself.
#[derive(Debug, Default)]
#[repr(align(128))]
struct OfShard {
    bytes: AtomicUsize,
    /// What the connection holds that holds most.
    worst: AtomicUsize,
}

/// What is held in memory for clients, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryUse {
    /// Bytes.
    pub bytes: usize,
    /// Most of them, if that is limited.
    pub max_bytes: Option<usize>,
    /// Connections that were ended because they held too much.
    pub ended: u64,
    /// Connections that were refused for want of memory.
    pub refused: u64,
}

/// Whether a connection may hold what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may.
    Fits,
    /// It holds more than one client may.
    TooMuch,
    /// All together hold too much, and no connection more than this one.
    Worst,
}

impl Memory {
    pub(crate) fn new(shards: usize, max: Option<usize>, max_of_client: Option<usize>) -> Self {
        let memory = Self {
            shards: (0..shards).map(|_| OfShard::default()).collect(),
            handshakes: AtomicUsize::new(0),
            elsewhere: AtomicUsize::new(0),
            max: AtomicUsize::new(usize::MAX),
            max_of_client: AtomicUsize::new(usize::MAX),
            ended: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        memory.set_quota(max, max_of_client);
        memory
    }

    /// Puts a quota in force.
    pub(crate) fn set_quota(&self, max: Option<usize>, max_of_client: Option<usize>) {
        self.max.store(max.unwrap_or(usize::MAX), Ordering::Relaxed);
        self.max_of_client
            .store(max_of_client.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// All bytes.
    pub(crate) fn total(&self) -> usize {
        let shards = self
            .shards
            .iter()
            .map(|shard| shard.bytes.load(Ordering::Relaxed));
        let others = [&self.handshakes, &self.elsewhere].map(|bytes| bytes.load(Ordering::Relaxed));
        // Shards are read one after the other: the sum is of no one moment, and may be off by what moved meanwhile.
        shards.chain(others).fold(0, usize::saturating_add)
    }

    /// Bytes beyond the quota.
    pub(crate) fn excess(&self) -> usize {
        let max = self.max.load(Ordering::Relaxed);
        if max == usize::MAX {
            return 0;
        }
        self.total().saturating_sub(max)
    }

    /// A connection of a shard holds so many bytes now, after so many before. To be called on that shard only.
    pub(crate) fn account(&self, shard: u8, before: usize, now: usize) -> Verdict {
        let Some(of_shard) = self.shards.get(usize::from(shard)) else {
            return Verdict::Fits;
        };
        let bytes = of_shard.bytes.load(Ordering::Relaxed);
        let bytes = bytes.saturating_sub(before).saturating_add(now);
        of_shard.bytes.store(bytes, Ordering::Relaxed);
        if now <= before || now <= SPARED {
            return Verdict::Fits;
        }
        if now > of_shard.worst.load(Ordering::Relaxed) {
            of_shard.worst.store(now, Ordering::Relaxed);
        }
        if now > self.max_of_client.load(Ordering::Relaxed) {
            Verdict::TooMuch
        } else if self.excess() > 0 && now >= self.worst() {
            Verdict::Worst
        } else {
            Verdict::Fits
        }
    }

    /// What the connection holds that holds most.
    pub(crate) fn worst(&self) -> usize {
        let worst = self
            .shards
            .iter()
            .map(|shard| shard.worst.load(Ordering::Relaxed));
        worst.max().unwrap_or_default()
    }

    /// Says what the worst connection of a shard holds, after looking at all of them.
    pub(crate) fn set_worst(&self, shard: u8, bytes: usize) {
        if let Some(of_shard) = self.shards.get(usize::from(shard)) {
            of_shard.worst.store(bytes, Ordering::Relaxed);
        }
    }

    /// Says what is held that belongs to no connection.
    pub(crate) fn set_elsewhere(&self, bytes: usize) {
        self.elsewhere.store(bytes, Ordering::Relaxed);
    }

    /// A connection was ended because it held too much.
    pub(crate) fn count_ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was refused for want of memory.
    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How it stands.
    pub(crate) fn usage(&self) -> MemoryUse {
        let max = self.max.load(Ordering::Relaxed);
        MemoryUse {
            bytes: self.total(),
            max_bytes: (max != usize::MAX).then_some(max),
            ended: self.ended.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// What is held for a client that has not been let in yet; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Handshake {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Handshake {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        Self {
            memory: Arc::clone(memory),
            bytes: 0,
        }
    }

    /// It holds so many bytes now; tells whether there is memory for that.
    pub(crate) fn holds(&mut self, bytes: usize) -> bool {
        self.memory.handshakes.fetch_add(bytes, Ordering::Relaxed);
        self.memory.handshakes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
        self.memory.excess() == 0
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.memory.handshakes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Engine {
    /// Measures what belongs to no connection, and shows all of it.
    pub(crate) fn measure_memory(&self) {
        let (retained, retained_bytes) = self.retained.size();
        let (_, state_bytes) = self.state_store.size();
        let parked = self.sessions.memory_of_parked();
        self.memory
            .set_elsewhere(retained * RETAINED + retained_bytes + state_bytes + parked);
        let MemoryUse { bytes, max_bytes, .. } = self.memory.usage();
        Stats::show(&self.stats.memory_bytes, bytes);
        Stats::show(&self.stats.memory_max_bytes, max_bytes.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_connection_that_holds_most_has_to_go() {
        let memory = Memory::new(2, Some(10 * MIB), None);
        assert_eq!(memory.account(0, 0, 4 * MIB), Verdict::Fits);
        assert_eq!(memory.account(1, 0, 5 * MIB), Verdict::Fits);
        // Too much in all; this one holds least.
        assert_eq!(memory.account(1, 0, 2 * MIB), Verdict::Fits);
        assert_eq!((memory.total(), memory.excess()), (11 * MIB, MIB));
        assert_eq!(memory.account(1, 5 * MIB, 6 * MIB), Verdict::Worst);
        // It has gone: now the other one holds most.
        memory.account(1, 6 * MIB, 0);
        memory.set_worst(1, 2 * MIB);
        assert_eq!(memory.account(0, 4 * MIB, 9 * MIB), Verdict::Worst);
        // Whoever holds little is spared, however much others hold.
        memory.set_elsewhere(100 * MIB);
        memory.set_worst(0, 0);
        memory.set_worst(1, 0);
        assert_eq!(memory.account(0, 0, SPARED), Verdict::Fits);
        memory.set_quota(None, Some(MIB));
        assert_eq!(memory.excess(), 0);
        assert_eq!(memory.account(0, 0, 2 * MIB), Verdict::TooMuch);
    }

    #[test]
    fn a_handshake_gives_back_what_it_holds() {
        let memory = Arc::new(Memory::new(1, Some(100), None));
        let mut first = Handshake::new(&memory);
        assert!(first.holds(60) && first.holds(90));
        let mut second = Handshake::new(&memory);
        assert!(!second.holds(20));
        drop(first);
        assert!(second.holds(30));
        drop(second);
        assert_eq!(memory.total(), 0);
    }
}
