//! Reading a journal at any place of it.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
};

use xxhash_rust::xxh3::Xxh3;

use super::{
    super::{
        marks::{self, Mark, Marks},
        sectors::Sectors,
    },
    Batch, WINDOW,
};

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";

/// Tag, number of items, sequence number; also of an end: tag, checksum, trailer.
pub(super) const START_LEN: usize = 13;

/// What follows the tag of an item: type, compression, keyspace, length of the key, length, stored length.
const HEAD_LEN: usize = 20;

/// Bytes in front of the key of a batch's first item.
const BEFORE_KEY: u64 = (START_LEN + 1 + HEAD_LEN) as u64;

/// Keys and values are read in parts of this length, to be summed only.
const PART: usize = 4096;

/// Where and what an item is; its value stays in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Item {
    pub(in super::super) kind: u8,
    pub(in super::super) keyspace: u64,
    /// Place of the value, and its length.
    pub(in super::super) at: u64,
    pub(in super::super) length: u32,
    /// Whether the value is stored as it is.
    pub(in super::super) plain: bool,
}

/// The head of an item as it is stored.
pub(in super::super) fn head(kind: u8, keyspace: u64, key: &[u8], value: &[u8]) -> [u8; 1 + HEAD_LEN] {
    // fjall cuts the lengths off in the same way.
    let (key, value) = (key.len() as u16, (value.len() as u32).to_le_bytes());
    let mut head = [0; 1 + HEAD_LEN];
    head[0] = ITEM;
    head[1] = kind;
    head[3..11].copy_from_slice(&keyspace.to_le_bytes());
    head[11..13].copy_from_slice(&key.to_le_bytes());
    head[13..17].copy_from_slice(&value);
    head[17..21].copy_from_slice(&value);
    head
}

/// The parts of an item's head.
struct Head {
    kind: u8,
    plain: bool,
    keyspace: u64,
    key: u16,
    stored: u32,
}

impl Head {
    fn parse(head: &[u8; HEAD_LEN]) -> Self {
        let [
            kind,
            compression,
            keyspace @ ..,
            k0,
            k1,
            _,
            _,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
        ] = *head;
        Self {
            kind,
            plain: compression == 0,
            keyspace: u64::from_le_bytes(keyspace),
            key: u16::from_le_bytes([k0, k1]),
            stored: u32::from_le_bytes([s0, s1, s2, s3]),
        }
    }
}

/// Sums over the items of a batch.
struct Sums {
    checksum: Xxh3,
    /// The mark that the items make, once that of the batch was read.
    mark: Option<Mark>,
}

impl Sums {
    fn update(&mut self, bytes: &[u8]) {
        self.checksum.update(bytes);
        if let Some(mark) = &mut self.mark {
            mark.update(bytes);
        }
    }
}

/// Reads a journal at any place.
pub(super) struct Cursor<'f> {
    reader: BufReader<Sectors<'f>>,
    position: u64,
    length: u64,
    /// Without, batches are believed that begin where another one ends.
    marks: Option<&'f Marks>,
}

impl<'f> Cursor<'f> {
    pub(super) fn new(file: &'f File, marks: Option<&'f Marks>) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self {
            reader: BufReader::with_capacity(WINDOW, Sectors::new(file)),
            position: 0,
            length,
            marks,
        })
    }

    /// Whether the disk could not read all that was looked at; that counts as zeros.
    pub(super) fn met_unreadable(&self) -> bool {
        self.reader.get_ref().were_unreadable
    }

    fn seek(&mut self, position: u64) -> io::Result<()> {
        let step = i64::try_from(i128::from(position) - i128::from(self.position));
        match step {
            // Stays within what is buffered, where it can.
            Ok(step) => self.reader.seek_relative(step)?,
            Err(_) => drop(self.reader.seek(SeekFrom::Start(position))?),
        }
        self.position = position;
        Ok(())
    }

    /// Fills a buffer; `None` at the end of the file.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<Option<()>> {
        if self.length - self.position < buffer.len() as u64 {
            return Ok(None);
        }
        self.reader.read_exact(buffer)?;
        self.position += buffer.len() as u64;
        Ok(Some(()))
    }

    fn array<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut array = [0; N];
        Ok(self.fill(&mut array)?.map(|()| array))
    }

    /// Reads the batch that begins at a place; `None` if none does, or if it is not whole or not ours.
    pub(super) fn batch(&mut self, from: u64) -> io::Result<Option<Batch>> {
        self.seek(from)?;
        let Some(start) = self.array::<START_LEN>()? else {
            return Ok(None);
        };
        let Some((mut items, seqno)) = parse_start(&start) else {
            return Ok(None);
        };
        let mut sums = Sums {
            checksum: Xxh3::new(),
            mark: None,
        };
        let mut marked = None;
        if let Some(marks) = self.marks {
            let Some(mark) = self.mark(marks, &mut sums)? else {
                return Ok(None);
            };
            let Some(rest) = items.checked_sub(1) else {
                return Ok(None);
            };
            items = rest;
            marked = Some(mark);
            sums.mark = Some(marks.begin());
        }
        for _ in 0..items {
            if self.item(&mut sums)?.is_none() {
                return Ok(None);
            }
        }
        let Some(end) = self.array::<START_LEN>()? else {
            return Ok(None);
        };
        let Sums { checksum, mark } = sums;
        let whole = end[0] == END && end[1..9] == checksum.digest().to_le_bytes() && end[9..] == TRAILER;
        let is_ours = mark.map(Mark::finish) == marked;
        Ok((whole && is_ours).then_some(Batch {
            from,
            to: self.position,
            seqno,
        }))
    }

    /// Reads the item that marks a batch.
    fn mark(&mut self, marks: &Marks, sums: &mut Sums) -> io::Result<Option<[u8; marks::LEN]>> {
        let (Some([tag]), Some(head)) = (self.array::<1>()?, self.array::<HEAD_LEN>()?) else {
            return Ok(None);
        };
        let Head { key, stored, .. } = Head::parse(&head);
        if tag != ITEM || usize::from(key) != marks::LEN || stored as usize != marks::LEN {
            return Ok(None);
        }
        let (Some(name), Some(mark)) = (self.array::<{ marks::LEN }>()?, self.array::<{ marks::LEN }>()?)
        else {
            return Ok(None);
        };
        [&[tag][..], &head, &name, &mark]
            .iter()
            .for_each(|part| sums.update(part));
        Ok((name == *marks.name()).then_some(mark))
    }

    fn item(&mut self, sums: &mut Sums) -> io::Result<Option<()>> {
        let Some([tag]) = self.array::<1>()? else {
            return Ok(None);
        };
        sums.update(&[tag]);
        match tag {
            CLEAR => {
                let Some(keyspace) = self.array::<8>()? else {
                    return Ok(None);
                };
                sums.update(&keyspace);
                Ok(Some(()))
            }
            ITEM => {
                let Some(head) = self.array::<HEAD_LEN>()? else {
                    return Ok(None);
                };
                sums.update(&head);
                let Head { key, stored, .. } = Head::parse(&head);
                self.skip(u64::from(key) + u64::from(stored), sums)
            }
            _ => Ok(None),
        }
    }

    /// Passes over content that only sums look at.
    fn skip(&mut self, mut length: u64, sums: &mut Sums) -> io::Result<Option<()>> {
        if self.length - self.position < length {
            return Ok(None);
        }
        let mut buffer = [0; PART];
        while length > 0 {
            let part = &mut buffer[..usize::try_from(length).unwrap_or(usize::MAX).min(PART)];
            self.reader.read_exact(part)?;
            sums.update(part);
            self.position += part.len() as u64;
            length -= part.len() as u64;
        }
        Ok(Some(()))
    }

    /// Visits the items of a batch that was found to be whole, but for its mark.
    pub(super) fn items(&mut self, batch: &Batch, mut visit: impl FnMut(Vec<u8>, Item)) -> io::Result<()> {
        self.seek(batch.from + START_LEN as u64)?;
        let ends_early = || io::Error::from(io::ErrorKind::UnexpectedEof);
        loop {
            let [tag] = self.array()?.ok_or_else(ends_early)?;
            match tag {
                ITEM => {}
                CLEAR => {
                    self.seek(self.position + 8)?;
                    continue;
                }
                _ => return Ok(()),
            }
            let Head {
                kind,
                plain,
                keyspace,
                key,
                stored,
            } = Head::parse(&self.array()?.ok_or_else(ends_early)?);
            let mut name = vec![0; usize::from(key)];
            self.fill(&mut name)?.ok_or_else(ends_early)?;
            let at = self.position;
            if self.marks.is_none_or(|marks| name != marks.name()) {
                visit(
                    name,
                    Item {
                        kind,
                        keyspace,
                        at,
                        length: stored,
                        plain,
                    },
                );
            }
            self.seek(at + u64::from(stored))?;
        }
    }

    pub(super) fn is_zero_from(&mut self, position: u64) -> io::Result<bool> {
        self.seek(position)?;
        let mut buffer = vec![0; WINDOW];
        while self.position < self.length {
            let part = usize::try_from(self.length - self.position)
                .unwrap_or(usize::MAX)
                .min(WINDOW);
            let part = &mut buffer[..part];
            self.reader.read_exact(part)?;
            self.position += part.len() as u64;
            if part.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Finds the next place where a whole batch of ours begins. Only what follows the name of the database is looked at,
    /// so nobody can make this long by what he publishes.
    pub(super) fn find_batch(&mut self, from: u64) -> io::Result<Option<u64>> {
        let Some(marks) = self.marks else {
            return Ok(None);
        };
        let mut window = vec![0; WINDOW];
        let mut at = from + BEFORE_KEY;
        while at + marks::LEN as u64 <= self.length {
            let size = usize::try_from(self.length - at)
                .unwrap_or(usize::MAX)
                .min(WINDOW);
            self.seek(at)?;
            if self.fill(&mut window[..size])?.is_none() {
                return Ok(None);
            }
            for (offset, name) in window[..size].windows(marks::LEN).enumerate() {
                if name != marks.name() {
                    continue;
                }
                let place = at + offset as u64 - BEFORE_KEY;
                if self.batch(place)?.is_some() {
                    return Ok(Some(place));
                }
            }
            at += (size - marks::LEN + 1) as u64;
        }
        Ok(None)
    }
}

/// Number of items and sequence number, if a batch begins like this.
fn parse_start(start: &[u8; START_LEN]) -> Option<(u32, u64)> {
    let (tag, rest) = start.split_first()?;
    let (items, seqno) = rest.split_first_chunk::<4>()?;
    let seqno = u64::from_le_bytes(seqno.try_into().ok()?);
    (*tag == START).then_some((u32::from_le_bytes(*items), seqno))
}
