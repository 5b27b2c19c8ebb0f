//! What is wrong with a store, and where.

use serde::Serialize;

use crate::{
    entry::Direction,
    keys::{self, Table},
};

/// Most findings that are kept; further ones are counted.
pub(super) const MAX_FINDINGS: usize = 1000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Something that was acknowledged is lost, or the ledger does not balance.
    Damage,
    /// Something costs space or is counted inaccurately; no message is lost by it.
    Minor,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The keyspace, or the file in the store's directory.
    pub place: String,
    /// Which row, or which bytes of the file; empty when it is about all of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// What was found.
    pub found: String,
}

/// Everything that is wrong: the first ones, and how many there are.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) list: Vec<Finding>,
    pub(super) damage: u64,
    pub(super) minor: u64,
}

impl Findings {
    pub(super) fn damage(&mut self, place: &str, key: String, found: String) {
        self.damage += 1;
        self.add(Severity::Damage, place, key, found);
    }

    pub(super) fn minor(&mut self, place: &str, key: String, found: String) {
        self.minor += 1;
        self.add(Severity::Minor, place, key, found);
    }

    fn add(&mut self, severity: Severity, place: &str, key: String, found: String) {
        if self.list.len() < MAX_FINDINGS {
            self.list.push(Finding {
                severity,
                place: place.to_owned(),
                key,
                found,
            });
        }
    }
}

/// A key for people.
pub(super) fn describe(table: Table, key: &[u8]) -> String {
    let known = match table {
        Table::Queue | Table::Dead => {
            keys::split_entry(key).map(|(receiver, id)| format!("receiver {receiver} entry {id}"))
        }
        Table::Body | Table::Left => keys::split_number(key).map(|id| format!("entry {id}")),
        Table::Path | Table::Receiver => keys::split_number(key).map(|id| format!("receiver {id}")),
        Table::Inflight => keys::split_slot(key).map(|slot| {
            let direction = match slot.direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            };
            format!("session {} {direction} packet {}", slot.session, slot.packet_id)
        }),
        Table::Meta => [keys::OPENING, keys::GRAVE].iter().find_map(|prefix| {
            let number = keys::split_number(key.strip_prefix(*prefix)?)?;
            Some(format!("{}{number}", String::from_utf8_lossy(prefix)))
        }),
        Table::Name | Table::Session | Table::Retained | Table::Will | Table::Source | Table::State => None,
    };
    known.unwrap_or_else(|| match std::str::from_utf8(key) {
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => key.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_as_what_they_are_of() {
        for (table, key, expected) in [
            (Table::Queue, &keys::entry(5, 7)[..], "receiver 5 entry 7"),
            (Table::Queue, b"short", "short"),
            (Table::Body, &keys::number(9), "entry 9"),
            (Table::Path, &keys::number(3), "receiver 3"),
            (Table::Session, b"c\0a/#", "c\\0a/#"),
            (Table::Meta, &keys::meta_number(keys::GRAVE, 4), "grave/4"),
            (Table::Meta, keys::POSITION, "position"),
            (Table::Retained, b"\xFF\x01", "ff01"),
        ] {
            assert_eq!(describe(table, key), expected);
        }
    }

    #[test]
    fn findings_are_bounded_and_counted_beyond() {
        let mut findings = Findings::default();
        for number in 0..MAX_FINDINGS + 5 {
            findings.damage("queue", number.to_string(), String::new());
        }
        findings.minor("body", String::new(), String::new());
        assert_eq!(findings.list.len(), MAX_FINDINGS);
        assert_eq!((findings.damage, findings.minor), (MAX_FINDINGS as u64 + 5, 1));
    }
}
