//! Which thread carries a connection: the one that carries fewest.
//!
//! As long as there are only a few, the first carries them all: threads that wake each other for a handful of clients cost
//! more than they gain. It also gives such clients the order in which they speak, which is promised to nobody, and which
//! interoperability suites count on all the same.

use std::sync::Arc;

use parking_lot::Mutex;

/// Connections of each thread.
#[derive(Debug)]
pub(crate) struct Placement {
    few: usize,
    carried: Mutex<Vec<usize>>,
}

/// A connection's place on a thread, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    placement: Arc<Placement>,
    /// The thread.
    pub(crate) shard: usize,
    /// Connections that there were before it.
    pub(crate) others: usize,
}

impl Placement {
    /// For so many threads, of which the first carries all connections up to `few`.
    pub(crate) fn new(shards: usize, few: usize) -> Self {
        Self {
            few,
            carried: Mutex::new(vec![0; shards]),
        }
    }

    /// Finds a place for one more connection.
    pub(crate) fn place(self: &Arc<Self>) -> Place {
        let mut carried = self.carried.lock();
        let others = carried.iter().sum();
        let least = carried.iter().enumerate().min_by_key(|(_, count)| **count);
        let shard = match least {
            Some((shard, _)) if others >= self.few => shard,
            _ => 0,
        };
        carried[shard] += 1;
        Place {
            placement: Arc::clone(self),
            shard,
            others,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.placement.carried.lock()[self.shard] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_together_and_more_are_spread() {
        let placement = Arc::new(Placement::new(3, 2));
        let mut places: Vec<_> = (0..6).map(|_| placement.place()).collect();
        let shards = |places: &[Place]| places.iter().map(|place| place.shard).collect::<Vec<_>>();
        assert_eq!(shards(&places), [0, 0, 1, 2, 1, 2]);
        assert_eq!(places[5].others, 5);
        places.retain(|place| place.shard != 1);
        places.extend([placement.place(), placement.place()]);
        assert_eq!(shards(&places), [0, 0, 2, 2, 1, 1]);
        drop(places);
        assert_eq!((placement.place().shard, placement.place().shard), (0, 0));
    }
}
