//! The control session: desired state down, observed state up, over one stream for each role.
//!
//! A role dials the operator, names what it is capable of and what it has in force (each resource with its hash), and
//! from then on receives what changed: one resource a message, removals, and an end of snapshot when everything that
//! is desired has been sent. It acknowledges or refuses each; a refused one keeps its last good version. Reports flow
//! up: the latest about each part of each object, never a backlog of them. The role's certificate is renewed over the
//! session, and a changed trust bundle reaches it the same way.
//!
//! [`server`] is the operator's end, [`agent`] the role's. A role goes on without the operator, and starts without it
//! from the last good plan that it stored.

pub mod agent;
pub mod server;
mod wire;

#[cfg(test)]
mod tests;

/// The version of the protocol that this version speaks. Raised when a peer must understand something new to work at
/// all; everything else is a new field, or a capability.
pub const PROTOCOL: u32 = 1;

/// The oldest version that this version still speaks: the one before its own.
pub const OLDEST_PROTOCOL: u32 = if PROTOCOL > 1 { PROTOCOL - 1 } else { 1 };

/// The largest message of a session, in bytes: a body of the largest size and what surrounds it.
pub(crate) const LARGEST_MESSAGE: usize = crate::resource::LARGEST_BODY + 64 * 1024;

/// Versions in force are announced in pieces of so many.
pub(crate) const HELD_PIECE: usize = 500;

/// The version that both ends speak: the newest that the older of them knows.
///
/// Versions next to each other always talk; `None` when they lie further apart.
pub(crate) fn negotiate(peer_oldest: u32, peer_newest: u32) -> Option<u32> {
    let chosen = PROTOCOL.min(peer_newest);
    (chosen >= OLDEST_PROTOCOL.max(peer_oldest)).then_some(chosen)
}
