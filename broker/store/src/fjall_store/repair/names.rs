//! Setting right the names of receivers. They stand twice, by receiver and by name, so that what is lost of one table is
//! known from the other.

use std::{collections::BTreeMap, ops::ControlFlow};

use super::{change, removal};
use crate::{
    engine::{Change, Engine, View},
    entry::ReceiverId,
    error::StoreError,
    keys::{self, Table},
    rows::{self, PathRow},
};

/// All receivers, and what is to change so that each has a name that leads to it.
///
/// One whose name is lost in both tables is called `lost/` with its number: what waits for it is not thrown away unseen.
/// Where two have the same name, which only an older row that came to light can cause, the younger one keeps it.
pub(super) fn set_right(
    engine: &impl Engine,
    paths: &BTreeMap<ReceiverId, PathRow>,
) -> Result<(Vec<ReceiverId>, Vec<Change>), StoreError> {
    let (view, mut known, mut leads) = (engine.view(), BTreeMap::new(), BTreeMap::new());
    view.scan(Table::Receiver, &[], None, &mut |key, row| {
        if let (Some(receiver), Ok(name)) = (keys::split_number(key), rows::decode_name(row)) {
            known.insert(receiver, name);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    view.scan(Table::Name, &[], None, &mut |key, row| {
        leads.insert(key.to_vec(), rows::decode_number(row).ok());
        Ok(ControlFlow::Continue(()))
    })?;
    let mut names = known.clone();
    for (name, receiver) in &leads {
        if let (Ok(name), Some(receiver)) = (std::str::from_utf8(name), receiver) {
            names.entry(*receiver).or_insert_with(|| name.to_owned());
        }
    }
    let lost = |receiver: ReceiverId| format!("lost/{receiver}");
    for receiver in paths.keys() {
        names.entry(*receiver).or_insert_with(|| lost(*receiver));
    }
    let mut owners: BTreeMap<String, ReceiverId> = BTreeMap::new();
    let receivers = names.keys().copied().collect();
    for (receiver, name) in names {
        if let Some(older) = owners.insert(name, receiver) {
            owners.insert(lost(older), older);
        }
    }
    let mut changes = Vec::new();
    for (name, receiver) in &owners {
        if known.get(receiver) != Some(name) {
            tracing::error!(receiver, name, "the name of a receiver is restored");
            changes.push(change(
                Table::Receiver,
                keys::number(*receiver),
                rows::encode_name(name),
            ));
        }
        if leads.remove(name.as_bytes()) != Some(Some(*receiver)) {
            changes.push(change(
                Table::Name,
                name.as_bytes(),
                rows::encode_number(*receiver),
            ));
        }
    }
    // What is left of them leads to nobody.
    changes.extend(leads.keys().map(|name| removal(Table::Name, name)));
    Ok((receivers, changes))
}
