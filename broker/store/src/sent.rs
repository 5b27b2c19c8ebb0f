//! What was sent with quality of service 2 and awaits its end does not expire any more ([MQTT-4.3.3-7]): its client may
//! have taken it already. The row in flight says so; the entry's own row is written once and never changed.
//!
//! It holds for a session's own queue. What a shared subscription handed out is sent again from memory, and forgotten when
//! it expires while the broker does not run.

use std::{collections::BTreeSet, ops::ControlFlow};

use crate::{
    engine::Visit,
    entry::{EntryId, Inflight, ReceiverId},
    error::StoreError,
    keys, rows,
};

/// The entries of a session's queue that were sent with quality of service 2. `scan` visits rows in flight from one key to
/// another.
pub(crate) fn entries(
    session: ReceiverId,
    scan: impl FnOnce(&[u8], &[u8], &mut Visit<'_>) -> Result<(), StoreError>,
) -> Result<BTreeSet<EntryId>, StoreError> {
    let mut sent = BTreeSet::new();
    let (from, to) = (keys::number(session), keys::number(session.saturating_add(1)));
    scan(&from, &to, &mut |_, row| {
        // A row that can't be read is told of by whoever takes the session up.
        if let Ok(Inflight::Sent { receiver, id }) = rows::decode_inflight(row)
            && receiver == session
        {
            sent.insert(id);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(sent)
}
