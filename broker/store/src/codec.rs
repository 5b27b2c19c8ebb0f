//! The form of a row: a version, fields, and a checksum over both.
//!
//! Numbers are LEB128; texts and bytes are preceded by their length.

use crate::{error::StoreError, keys::Bytes};

/// Length of the checksum at a row's end (CRC-32).
const CHECKSUM_LEN: usize = 4;

/// Writes a row.
pub(crate) struct RowWriter {
    bytes: Vec<u8>,
}

impl RowWriter {
    pub(crate) fn new(version: u8, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity + 1 + CHECKSUM_LEN);
        bytes.push(version);
        Self { bytes }
    }

    pub(crate) fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// A number that may be missing: 0, or one more than it is.
    pub(crate) fn optional(&mut self, value: Option<u64>) {
        self.number(value.map_or(0, |value| value.saturating_add(1)));
    }

    /// A number of fixed width, for those that fill it.
    pub(crate) fn fixed(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    pub(crate) fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    pub(crate) fn finish(mut self) -> Bytes {
        let checksum = crc32fast::hash(&self.bytes);
        self.bytes.extend_from_slice(&checksum.to_le_bytes());
        self.bytes.into()
    }
}

/// Reads a row.
pub(crate) struct RowReader<'r> {
    what: &'static str,
    rest: &'r [u8],
}

impl<'r> RowReader<'r> {
    /// Checks the checksum and the version of a row.
    pub(crate) fn open(what: &'static str, version: u8, row: &'r [u8]) -> Result<Self, StoreError> {
        let reader = Self { what, rest: &[] };
        let Some((fields, checksum)) = row.split_last_chunk::<CHECKSUM_LEN>() else {
            return Err(reader.damaged(if row.is_empty() {
                "it is empty, or can't be decrypted"
            } else {
                "it is too short"
            }));
        };
        if crc32fast::hash(fields) != u32::from_le_bytes(*checksum) {
            return Err(reader.damaged("its checksum does not match"));
        }
        match fields.split_first() {
            Some((found, rest)) if *found == version => Ok(Self { what, rest }),
            Some((found, _)) => Err(reader.damaged(format!("it has version {found}, {version} is allowed"))),
            None => Err(reader.damaged("it is empty")),
        }
    }

    /// The error that this row is damaged.
    pub(crate) fn damaged(&self, cause: impl Into<String>) -> StoreError {
        StoreError::Damaged {
            what: self.what,
            cause: cause.into(),
        }
    }

    /// Whether nothing is left: what was added to a row later is missing.
    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn byte(&mut self) -> Result<u8, StoreError> {
        let (byte, rest) = self
            .rest
            .split_first()
            .ok_or_else(|| self.damaged("it ends early"))?;
        self.rest = rest;
        Ok(*byte)
    }

    pub(crate) fn number(&mut self) -> Result<u64, StoreError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7F);
            if (part << shift) >> shift != part {
                return Err(self.damaged("a number is too large"));
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.damaged("a number is too long"))
    }

    pub(crate) fn small<T: TryFrom<u64>>(&mut self) -> Result<T, StoreError> {
        let value = self.number()?;
        T::try_from(value).map_err(|_| self.damaged(format!("the number {value} is too large")))
    }

    pub(crate) fn optional(&mut self) -> Result<Option<u64>, StoreError> {
        Ok(self.number()?.checked_sub(1))
    }

    pub(crate) fn fixed(&mut self) -> Result<u64, StoreError> {
        let (chunk, rest) = self
            .rest
            .split_first_chunk::<8>()
            .ok_or_else(|| self.damaged("it ends early"))?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*chunk))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'r [u8], StoreError> {
        let length = self.small::<usize>()?;
        let (value, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| self.damaged("it ends early"))?;
        self.rest = rest;
        Ok(value)
    }

    pub(crate) fn text(&mut self) -> Result<&'r str, StoreError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.damaged("a text is not UTF-8"))
    }

    /// A count of items that each take at least one byte: bounded by what is left.
    pub(crate) fn count(&mut self) -> Result<usize, StoreError> {
        let count = self.small::<usize>()?;
        if count > self.rest.len() {
            Err(self.damaged("a count is too large"))
        } else {
            Ok(count)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(number: u64, optional: Option<u32>, fixed: u64, text: String) {
            let mut writer = RowWriter::new(3, 0);
            writer.number(number);
            writer.optional(optional.map(u64::from));
            writer.fixed(fixed);
            writer.text(&text);
            let row = writer.finish();
            let mut reader = RowReader::open("row", 3, &row).unwrap();
            prop_assert_eq!(reader.number().unwrap(), number);
            prop_assert_eq!(reader.optional().unwrap(), optional.map(u64::from));
            prop_assert_eq!(reader.fixed().unwrap(), fixed);
            prop_assert_eq!(reader.text().unwrap(), text);
            prop_assert!(reader.byte().is_err());
        }

        #[test]
        fn a_flipped_bit_is_noticed(text: String, position: prop::sample::Index, bit in 0_u8..8) {
            let mut writer = RowWriter::new(1, 0);
            writer.text(&text);
            let mut row = writer.finish().to_vec();
            let index = position.index(row.len());
            row[index] ^= 1_u8 << bit;
            prop_assert!(RowReader::open("row", 1, &row).is_err());
        }

        #[test]
        fn garbage_does_no_harm(bytes: Vec<u8>) {
            let mut reader = RowReader { what: "row", rest: &bytes };
            while reader.bytes().is_ok() {}
            while reader.number().is_ok() {}
            prop_assert!(RowReader::open("row", 1, &bytes[..bytes.len().min(4)]).is_err());
        }
    }
}
