//! What a connection holds in memory, as the quotas count it.

use super::{Connection, ending::Ending, transport::Transport};
use crate::{
    engine::memory::{CONNECTION, ENCRYPTION},
    wire::ReasonCode,
};

/// An acknowledgement that waits, with what its batch needs; about as much as it is in the table of the allocator.
const ACKNOWLEDGEMENT: usize = 256;

impl Connection {
    /// Says what the connection holds; an error ends it, because that is too much.
    pub(super) fn account(&mut self) -> Result<(), Box<Ending>> {
        self.shard
            .holds(&self.inbox, self.memory())
            .map_err(|detail| Ending::refused(ReasonCode::QuotaExceeded, detail).into())
    }

    /// Bytes that it holds. Messages that others wait for too are counted for each of them: nobody knows who is last.
    fn memory(&self) -> usize {
        let encryption = if self.transport.is_encrypted() {
            ENCRYPTION
        } else {
            0
        };
        CONNECTION
            + encryption
            + self.will_memory
            + self.receiving.input.capacity()
            + self.receiving.acks.len() * ACKNOWLEDGEMENT
            + self.out.memory()
            + self.inbox.waiting_bytes()
            + self.sending.replays.memory()
            + self.state.memory()
    }
}

impl Transport {
    fn is_encrypted(&self) -> bool {
        match self {
            Self::Socket(socket) => socket.is_encrypted(),
            Self::WebSocket(stream) => stream.get_ref().is_encrypted(),
        }
    }
}
