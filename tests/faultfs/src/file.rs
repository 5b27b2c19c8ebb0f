//! A file: what is shown, what is on the disk, and what waits to get there.

use rand::{Rng, rngs::StdRng};

use crate::{SECTOR, content::Content, faults::Loss};

/// A change of content that is not on the disk.
#[derive(Clone, Debug)]
enum Change {
    Write { at: u64, data: Vec<u8> },
    SetLength(u64),
}

/// A file.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    now: Content,
    on_disk: Content,
    pending: Vec<Change>,
}

impl File {
    /// What is shown.
    pub(crate) fn content(&self) -> &Content {
        &self.now
    }

    /// Writes at a place.
    pub(crate) fn write(&mut self, at: u64, data: &[u8]) {
        self.now.write(at, data);
        let data = data.to_vec();
        self.pending.push(Change::Write { at, data });
    }

    /// Cuts the file off, or makes it longer with zeros.
    pub(crate) fn set_length(&mut self, length: u64) {
        self.now.set_length(length);
        self.pending.push(Change::SetLength(length));
    }

    /// Brings everything that waits to the disk.
    pub(crate) fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            apply(&mut self.on_disk, &change);
        }
    }

    /// Brings some of what waits to the disk, and forgets the rest, which is shown all the same.
    pub(crate) fn sync_partly(&mut self, random: &mut StdRng) {
        let pending = std::mem::take(&mut self.pending);
        match random.random_range(0..3) {
            0 => {}
            1 => keep_beginning(&mut self.on_disk, &pending, random),
            _ => keep_sectors(&mut self.on_disk, &pending, random),
        }
    }

    /// Shows what is on the disk, and what survives of what was to get there.
    pub(crate) fn lose(&mut self, loss: Loss, random: &mut StdRng) {
        match loss {
            Loss::Unsynced => self.pending.clear(),
            Loss::Torn => self.sync_partly(random),
        }
        self.now = self.on_disk.clone();
    }
}

fn apply(content: &mut Content, change: &Change) {
    match change {
        Change::Write { at, data } => content.write(*at, data),
        Change::SetLength(length) => content.set_length(*length),
    }
}

/// Keeps the first changes, and the first sectors of the one that follows.
fn keep_beginning(content: &mut Content, pending: &[Change], random: &mut StdRng) {
    let whole = random.random_range(0..=pending.len());
    for change in &pending[..whole] {
        apply(content, change);
    }
    if let Some(Change::Write { at, data }) = pending.get(whole) {
        let sectors: Vec<_> = sectors(*at, data).collect();
        let kept = random.random_range(0..=sectors.len());
        for (at, sector) in &sectors[..kept] {
            content.write(*at, sector);
        }
    }
}

/// Keeps each sector, and each change of the length, by chance.
fn keep_sectors(content: &mut Content, pending: &[Change], random: &mut StdRng) {
    let chance = random.random_range(0.05..0.95);
    for change in pending {
        match change {
            Change::Write { at, data } => {
                for (at, sector) in sectors(*at, data) {
                    if random.random_bool(chance) {
                        content.write(at, sector);
                    }
                }
            }
            Change::SetLength(length) if random.random_bool(chance) => content.set_length(*length),
            Change::SetLength(_) => {}
        }
    }
}

/// The sectors that a write touches, with the part of each that is written.
fn sectors(at: u64, data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let first = SECTOR - (at % SECTOR as u64) as usize;
    let (head, rest) = data.split_at(first.min(data.len()));
    let rest_at = at + head.len() as u64;
    let rest = rest.chunks(SECTOR).zip((rest_at..).step_by(SECTOR));
    std::iter::once((at, head)).chain(rest.map(|(sector, at)| (at, sector)))
}
