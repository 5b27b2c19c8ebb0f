//! The streams that are open: at most one for each edge.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use foreshore_edgelink::command::Command;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::metrics::LinkMetrics;

/// Commands that wait to be sent to an edge.
const WAITING_COMMANDS: usize = 64;

/// The streams that are open. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    live: Mutex<Live>,
    metrics: LinkMetrics,
}

#[derive(Default)]
struct Live {
    by_edge: HashMap<i64, Session>,
    /// Names the next session.
    next: u64,
}

struct Session {
    number: u64,
    connected: Connected,
    commands: mpsc::Sender<Command>,
    superseded: CancellationToken,
}

/// An edge that is connected.
#[derive(Clone, Debug)]
pub(crate) struct Connected {
    /// Which of the edge's processes, in the order in which they first connected.
    pub(crate) boot: i64,
    pub(crate) since: Timestamp,
    pub(crate) address: SocketAddr,
    /// Version of its software.
    pub(crate) software: String,
    /// Commands that it takes at a time.
    pub(crate) command_credit: usize,
}

/// A newer process of the edge is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superseded;

/// A session's own place among the sessions; leaves it when dropped.
pub(crate) struct Place {
    sessions: Sessions,
    edge: i64,
    number: u64,
    /// Commands for the edge.
    pub(crate) commands: mpsc::Receiver<Command>,
    /// Cancelled when another stream of the edge takes the place.
    pub(crate) superseded: CancellationToken,
}

impl Sessions {
    pub(crate) fn new(metrics: LinkMetrics) -> Self {
        Self {
            shared: Arc::new(Shared {
                live: Mutex::default(),
                metrics,
            }),
        }
    }

    /// Takes the place of the edge's stream. An open one ends, unless it is that of a newer process: an old process that
    /// comes back must not push out the one that took over.
    pub(crate) fn enter(&self, edge: i64, connected: Connected) -> Result<Place, Superseded> {
        let (sender, commands) = mpsc::channel(WAITING_COMMANDS);
        let superseded = CancellationToken::new();
        let mut live = self.shared.live.lock();
        if live
            .by_edge
            .get(&edge)
            .is_some_and(|present| present.connected.boot > connected.boot)
        {
            return Err(Superseded);
        }
        let number = live.next;
        live.next += 1;
        let session = Session {
            number,
            connected,
            commands: sender,
            superseded: superseded.clone(),
        };
        match live.by_edge.insert(edge, session) {
            Some(before) => before.superseded.cancel(),
            None => drop(self.shared.metrics.connected.inc()),
        }
        Ok(Place {
            sessions: self.clone(),
            edge,
            number,
            commands,
            superseded,
        })
    }

    /// How an edge is connected; `None` when it is not.
    pub(crate) fn connected(&self, edge: i64) -> Option<Connected> {
        self.shared
            .live
            .lock()
            .by_edge
            .get(&edge)
            .map(|session| session.connected.clone())
    }

    /// Hands a command to the edge's stream; `false` when there is none, or it can't take more.
    pub(crate) fn send(&self, edge: i64, command: Command) -> bool {
        let live = self.shared.live.lock();
        live.by_edge
            .get(&edge)
            .is_some_and(|session| session.commands.try_send(command).is_ok())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut live = self.sessions.shared.live.lock();
        if live
            .by_edge
            .get(&self.edge)
            .is_some_and(|present| present.number == self.number)
        {
            live.by_edge.remove(&self.edge);
            self.sessions.shared.metrics.connected.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use foreshore_runtime::Metrics;

    use super::*;

    fn connected(boot: i64) -> Connected {
        Connected {
            boot,
            since: Timestamp::UNIX_EPOCH,
            address: "127.0.0.1:1".parse().unwrap(),
            software: String::new(),
            command_credit: 1,
        }
    }

    #[test]
    fn the_newest_process_has_the_place() {
        let sessions = Sessions::new(LinkMetrics::new(&Metrics::new()));
        let first = sessions.enter(1, connected(1)).unwrap();
        // The same process after its connection broke.
        let second = sessions.enter(1, connected(1)).unwrap();
        assert!(first.superseded.is_cancelled() && !second.superseded.is_cancelled());
        let third = sessions.enter(1, connected(2)).unwrap();
        assert_eq!(sessions.enter(1, connected(1)).err(), Some(Superseded));
        // Those that lost the place do not take it away when they go.
        drop((first, second));
        assert_eq!(sessions.connected(1).map(|connected| connected.boot), Some(2));
        let metrics = &sessions.shared.metrics;
        assert_eq!(metrics.connected.get(), 1);
        drop(third);
        assert!(sessions.connected(1).is_none());
        assert_eq!(metrics.connected.get(), 0);
        assert!(sessions.enter(1, connected(1)).is_ok());
    }
}
