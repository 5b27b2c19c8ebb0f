//! How one shard hands work to another.
//!
//! Sending never waits, so that a connection can send from anywhere. It is bounded all the same: a mailbox that is full
//! is congested, and whoever filled it reads nothing more until it is half empty again (see [`Pressure`]).

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::pressure::{Congestion, Pressure};

/// Items above which senders are to wait.
const FULL: usize = 4096;

/// Bytes of messages above which senders are to wait.
const FULL_BYTES: usize = 1 << 20;

/// Work for one shard.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    waiting: Mutex<Waiting<T>>,
    waker: AtomicWaker,
    pressure: Pressure,
}

#[derive(Debug)]
struct Waiting<T> {
    items: Vec<T>,
    bytes: usize,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            bytes: 0,
        }
    }
}

impl<T> Mailbox<T> {
    pub(crate) fn new(total: Arc<Congestion>) -> Self {
        Self {
            waiting: Mutex::default(),
            waker: AtomicWaker::new(),
            pressure: Pressure::new(total),
        }
    }

    /// Leaves an item that holds so many bytes of a message.
    pub(crate) fn send(&self, item: T, bytes: usize) {
        let mut waiting = self.waiting.lock();
        waiting.items.push(item);
        waiting.bytes += bytes;
        let is_first = waiting.items.len() == 1;
        let is_full = waiting.items.len() > FULL || waiting.bytes > FULL_BYTES;
        drop(waiting);
        if is_first {
            self.waker.wake();
        }
        if is_full {
            self.pressure.raise();
        }
    }

    /// Takes all items, in the order in which they were left.
    pub(crate) fn poll_take(&self, context: &mut Context<'_>) -> Poll<Vec<T>> {
        let take = || {
            let Waiting { items, .. } = std::mem::take(&mut *self.waiting.lock());
            (!items.is_empty()).then_some(items)
        };
        let items = take().or_else(|| {
            self.waker.register(context.waker());
            // An item that was left before the waker was there.
            take()
        });
        match items {
            Some(items) => {
                self.pressure.clear();
                Poll::Ready(items)
            }
            None => Poll::Pending,
        }
    }

    /// Items that wait, and the bytes of messages that they hold.
    pub(crate) fn load(&self) -> (usize, usize) {
        let waiting = self.waiting.lock();
        (waiting.items.len(), waiting.bytes)
    }

    /// Whether senders are to wait.
    pub(crate) fn pressure(&self) -> &Pressure {
        &self.pressure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn items_arrive_in_order_and_relieve_the_senders() {
        let mailbox = Arc::new(Mailbox::new(Arc::default()));
        let reader = Arc::clone(&mailbox);
        let taken =
            tokio::spawn(async move { std::future::poll_fn(|context| reader.poll_take(context)).await });
        tokio::task::yield_now().await;
        mailbox.send(1, 0);
        mailbox.send(2, 0);
        let first = taken.await.unwrap();
        assert_eq!(first[0], 1);

        for item in 0..=FULL {
            assert!(!mailbox.pressure().is_congested());
            mailbox.send(item, 0);
        }
        assert!(mailbox.pressure().is_congested());
        let all = std::future::poll_fn(|context| mailbox.poll_take(context)).await;
        assert!(all.ends_with(&[FULL]) && !mailbox.pressure().is_congested());

        mailbox.send(1, FULL_BYTES);
        assert!(!mailbox.pressure().is_congested());
        mailbox.send(2, 1);
        assert!(mailbox.pressure().is_congested());
        assert_eq!(mailbox.load(), (2, FULL_BYTES + 1));
    }
}
