//! Small files of one line that a store keeps beside its database, each with a checksum in a second line, so that a flipped
//! bit makes none of them say something else.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use xxhash_rust::xxh3::xxh3_64;

use super::sectors;
use crate::error::StoreError;

/// Bytes that are read of such a file; none has as many.
const LIMIT: u64 = 256;

/// What was found in place of such a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// It is not there.
    None,
    /// Its text, which matches its checksum.
    Whole(String),
    /// The text of an earlier version, which wrote none.
    Unchecked(String),
    /// The beginning of what can't be made out.
    Damaged(String),
}

/// What a file with this text holds.
pub(crate) fn content(text: &str) -> String {
    format!("{text}\n{:016x}\n", xxh3_64(text.as_bytes()))
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Note, StoreError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(path)?.take(LIMIT).read_to_end(&mut content)?;
        Ok(content)
    };
    match read() {
        Ok(found) => Ok(decode(&found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Note::None),
        Err(error) if sectors::is_unreadable(&error) => Ok(Note::Damaged(String::new())),
        Err(error) => Err(StoreError::io("read", path, error)),
    }
}

fn decode(found: &[u8]) -> Note {
    let damaged = || Note::Damaged(String::from_utf8_lossy(found).trim().chars().take(64).collect());
    let Ok(text) = std::str::from_utf8(found) else {
        return damaged();
    };
    let text = text.strip_suffix('\n').unwrap_or(text);
    match text.split_once('\n') {
        None => Note::Unchecked(text.to_owned()),
        Some((text, _)) if content(text).as_bytes() == found => Note::Whole(text.to_owned()),
        Some(_) => damaged(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_never_taken_for_another_text() {
        let whole = content("foreshore-store 1");
        assert_eq!(
            decode(whole.as_bytes()),
            Note::Whole("foreshore-store 1".to_owned())
        );
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = decode(&flipped);
            // What has lost its first line end looks like one line, and is no text that anybody knows.
            let is_long = |text: &String| text.len() > 20;
            assert!(
                matches!(&found, Note::Damaged(_))
                    || matches!(&found, Note::Unchecked(text) if is_long(text)),
                "bit {bit}: {found:?}"
            );
        }
        assert_eq!(
            decode(b"foreshore-store 1\n"),
            Note::Unchecked("foreshore-store 1".to_owned())
        );
        assert_eq!(decode(b""), Note::Unchecked(String::new()));
        assert!(matches!(decode(&[0xFF; 300]), Note::Damaged(_)));
    }
}
