//! What is in a file: pages that were written to, with zeros between them.

use std::collections::BTreeMap;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Content of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    length: u64,
}

impl Content {
    /// Length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of the disk that it takes.
    pub(crate) fn allocated(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// Reads so many bytes from a place, or what there is of them.
    pub(crate) fn read(&self, at: u64, size: usize) -> Vec<u8> {
        let there = self.length.saturating_sub(at);
        let mut data = vec![0; size.min(usize::try_from(there).unwrap_or(usize::MAX))];
        for part in parts(at, data.len()) {
            if let Some(page) = self.pages.get(&part.page) {
                data[part.from..part.from + part.length]
                    .copy_from_slice(&page[part.offset..part.offset + part.length]);
            }
        }
        data
    }

    /// Writes at a place; what lies between the end and there becomes zeros.
    pub(crate) fn write(&mut self, at: u64, data: &[u8]) {
        for part in parts(at, data.len()) {
            let page = self.pages.entry(part.page).or_insert_with(|| Box::new([0; PAGE]));
            page[part.offset..part.offset + part.length]
                .copy_from_slice(&data[part.from..part.from + part.length]);
        }
        self.length = self.length.max(at + data.len() as u64);
    }

    /// Cuts the content off, or makes it longer with zeros.
    pub(crate) fn set_length(&mut self, length: u64) {
        if length < self.length {
            drop(self.pages.split_off(&length.div_ceil(PAGE as u64)));
            // What is behind the end must be zeros when the file grows again.
            if let Some(last) = self.pages.get_mut(&(length / PAGE as u64)) {
                last[offset(length)..].fill(0);
            }
        }
        self.length = length;
    }

    /// Bytes that a write would take in addition.
    pub(crate) fn needed(&self, at: u64, size: usize) -> u64 {
        let new = parts(at, size).filter(|part| !self.pages.contains_key(&part.page));
        (new.count() * PAGE) as u64
    }
}

/// The part of a range that lies in one page.
struct Part {
    page: u64,
    /// Place in the page.
    offset: usize,
    /// Place in the range.
    from: usize,
    length: usize,
}

fn parts(at: u64, size: usize) -> impl Iterator<Item = Part> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let place = at + from as u64;
        let length = (PAGE - offset(place)).min(size - from);
        let part = Part {
            page: place / PAGE as u64,
            offset: offset(place),
            from,
            length,
        };
        from += length;
        (length > 0).then_some(part)
    })
}

/// The pages of a range.
pub(crate) fn pages(at: u64, size: usize) -> impl Iterator<Item = u64> {
    parts(at, size).map(|part| part.page)
}

fn offset(place: u64) -> usize {
    (place % PAGE as u64) as usize
}
