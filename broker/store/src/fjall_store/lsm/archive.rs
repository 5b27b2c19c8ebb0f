//! The container of fjall's tables and lists of tables: sections, a table of contents, a trailer.
//!
//! ```text
//! contents = "TOC!", entries u32, entry*             entry = from u64, length u64, length of the name u16, name
//! trailer  = "SFA!", 1 u8, 0 u8, XXH3-128 of the contents u128, place of the contents u64, their length u64
//! ```
//! It is read here before fjall does: fjall takes memory for as many entries as it is told before it looks at the
//! checksum, and a flipped bit would end the process.

use std::{fs::File, os::unix::fs::FileExt};

use xxhash_rust::xxh3::xxh3_128;

use super::Unreadable;

const TRAILER_LEN: u64 = 38;

/// Longest table of contents that is believed; those of fjall have about ten entries.
const MAX_CONTENTS: u64 = 64 << 10;

/// A part of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Section {
    name: Vec<u8>,
    pub(in super::super) from: u64,
    pub(in super::super) length: u64,
}

/// What an archive consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Archive(Vec<Section>);

impl Archive {
    /// Reads the table of contents.
    pub(in super::super) fn read(file: &File) -> Result<Self, Unreadable> {
        let damaged = |cause: &str| Unreadable::Damaged(cause.to_owned());
        let length = file.metadata()?.len();
        let end = length
            .checked_sub(TRAILER_LEN)
            .ok_or_else(|| damaged("it is too short for a trailer"))?;
        let mut trailer = [0; TRAILER_LEN as usize];
        file.read_exact_at(&mut trailer, end)?;
        let (head, numbers) = trailer.split_at(6);
        if head != b"SFA!\x01\x00" {
            return Err(damaged("it has no trailer"));
        }
        let (checksum, from) = numbers.split_at(16);
        let from = u64_at(from, 0).unwrap_or(u64::MAX);
        let long = end.checked_sub(from).filter(|long| *long <= MAX_CONTENTS);
        let long = long.ok_or_else(|| damaged("its trailer leads nowhere"))?;
        let mut contents = vec![0; usize::try_from(long).unwrap_or_default()];
        file.read_exact_at(&mut contents, from)?;
        if xxh3_128(&contents).to_le_bytes() != *checksum {
            return Err(damaged("its table of contents does not match its checksum"));
        }
        let sections = parse(&contents).filter(|sections| {
            let fits = |section: &Section| {
                section
                    .from
                    .checked_add(section.length)
                    .is_some_and(|to| to <= from)
            };
            sections.iter().all(fits)
        });
        Ok(Self(
            sections.ok_or_else(|| damaged("its table of contents can't be read"))?,
        ))
    }

    /// The section of that name.
    pub(in super::super) fn section(&self, name: &[u8]) -> Option<&Section> {
        self.0.iter().find(|section| section.name == name)
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}

fn parse(contents: &[u8]) -> Option<Vec<Section>> {
    let (count, mut rest) = contents.strip_prefix(b"TOC!")?.split_first_chunk::<4>()?;
    let mut sections = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (from, length) = (u64_at(rest, 0)?, u64_at(rest, 8)?);
        let (name, behind) = rest.get(16..)?.split_first_chunk::<2>()?;
        let (name, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes(*name)))?;
        sections.push(Section {
            name: name.to_vec(),
            from,
            length,
        });
        rest = behind;
    }
    Some(sections)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_archive_is_read_and_no_flipped_bit_is_believed() {
        let mut contents = b"TOC!\x02\0\0\0".to_vec();
        for (from, length, name) in [(0_u64, 3_u64, b"data"), (3, 4, b"meta")] {
            contents.extend_from_slice(&from.to_le_bytes());
            contents.extend_from_slice(&length.to_le_bytes());
            contents.extend_from_slice(&4_u16.to_le_bytes());
            contents.extend_from_slice(name);
        }
        let mut whole = b"abcdefg".to_vec();
        whole.extend_from_slice(&contents);
        whole.extend_from_slice(b"SFA!\x01\x00");
        whole.extend_from_slice(&xxh3_128(&contents).to_le_bytes());
        whole.extend_from_slice(&7_u64.to_le_bytes());
        whole.extend_from_slice(&(contents.len() as u64).to_le_bytes());
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("archive");
        let read = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            Archive::read(&File::open(&path).unwrap())
        };
        let archive = read(&whole).unwrap();
        let meta = archive.section(b"meta").unwrap();
        assert_eq!((meta.from, meta.length), (3, 4));
        assert!(archive.section(b"tli").is_none());
        // The length of the contents is written and never read.
        for byte in 7..whole.len() - 8 {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[byte] ^= 1 << bit;
                assert!(
                    matches!(read(&flipped), Err(Unreadable::Damaged(_))),
                    "byte {byte} bit {bit}"
                );
            }
        }
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err());
        }
    }
}
