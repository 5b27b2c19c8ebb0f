//! Bodies of batches: encoded, compressed, cut into parts, and read back within bounds.

use std::{borrow::Borrow, sync::Arc};

use bytes::{Buf, Bytes};
use foreshore_record::{Interval, Record};
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field},
};

use crate::{
    limits::{MAX_BATCH_BYTES, MAX_OUTPUTS, PART_BYTES},
    proto,
    record::{self, InvalidRecord},
};

/// Compression level: the default of zstd, which is far faster than any uplink.
const ZSTD_LEVEL: i32 = 3;

/// Field number of `Entries.entries`.
const ENTRIES_FIELD: u32 = 1;

/// How a body is made smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    None,
    /// Zstandard (RFC 8878).
    #[default]
    Zstd,
}

/// One output: what the stages made of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<R = Record> {
    /// Epoch of the edge's store in which the id was given out.
    pub store_epoch: u64,
    /// The entry.
    pub id: u64,
    /// Which output of that entry, from 0.
    pub index: u32,
    /// What is delivered.
    pub record: R,
}

/// An encoded body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The bytes that travel.
    pub bytes: Bytes,
    /// How they were made smaller.
    pub codec: Codec,
    /// Bytes before compression.
    pub length: u32,
    /// CRC-32 (ISO 3309) before compression.
    pub crc: u32,
}

/// Why a body can't be made or read.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// It is larger than allowed.
    #[error("body has {found} bytes, {allowed} are allowed")]
    TooLarge {
        /// Bytes found, or declared.
        found: u64,
        /// Bytes allowed.
        allowed: u64,
    },
    /// It holds too many outputs.
    #[error("body holds more than {MAX_OUTPUTS} outputs")]
    TooManyOutputs,
    /// It holds none.
    #[error("body holds no output")]
    Empty,
    /// A codec that does not exist, or that this side does not know.
    #[error("codec {found} is not known")]
    Codec {
        /// Number of the codec.
        found: i32,
    },
    /// It can't be compressed or decompressed.
    #[error("body can't be decompressed: {cause}")]
    Compression {
        /// What the library says.
        cause: String,
    },
    /// It was damaged on the way.
    #[error("body has checksum {found:08x}, {declared:08x} was declared")]
    Checksum {
        /// Computed.
        found: u32,
        /// Declared.
        declared: u32,
    },
    /// It is not an encoded `Entries`.
    #[error("body is not well formed: {0}")]
    Decode(#[from] prost::DecodeError),
    /// It ends within an entry.
    #[error("body ends within an entry")]
    CutShort,
    /// An entry without a record.
    #[error("output {index} of entry {id} has no record")]
    NoRecord {
        /// The entry.
        id: u64,
        /// Which output.
        index: u32,
    },
    /// A record that is none.
    #[error("output {index} of entry {id}: {cause}")]
    Record {
        /// The entry.
        id: u64,
        /// Which output.
        index: u32,
        /// What is wrong.
        cause: InvalidRecord,
    },
    /// Outputs of an entry are not together and numbered from 0, or lie outside of what the batch settles.
    #[error("output {index} of entry {id} is out of place")]
    Order {
        /// The entry.
        id: u64,
        /// Which output.
        index: u32,
    },
}

impl Codec {
    /// The codec as a message's field.
    #[must_use]
    pub const fn to_proto(self) -> i32 {
        match self {
            Self::None => proto::Codec::None as i32,
            Self::Zstd => proto::Codec::Zstd as i32,
        }
    }

    fn from_proto(found: i32) -> Result<Self, BodyError> {
        match proto::Codec::try_from(found) {
            Ok(proto::Codec::None) => Ok(Self::None),
            Ok(proto::Codec::Zstd) => Ok(Self::Zstd),
            Ok(proto::Codec::Unspecified) | Err(_) => Err(BodyError::Codec { found }),
        }
    }
}

impl Body {
    /// Encodes and compresses outputs. Takes milliseconds for a large batch: call it where that may block.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`], [`BodyError::TooManyOutputs`], [`BodyError::Empty`].
    pub fn encode<R: Borrow<Record>>(outputs: &[Entry<R>], codec: Codec) -> Result<Self, BodyError> {
        if outputs.is_empty() {
            return Err(BodyError::Empty);
        }
        if outputs.len() > MAX_OUTPUTS {
            return Err(BodyError::TooManyOutputs);
        }
        let mut plain = Vec::new();
        for output in outputs {
            let message = proto::Entry {
                store_epoch: output.store_epoch,
                id: output.id,
                index: output.index,
                record: Some(record::to_proto(output.record.borrow())),
            };
            // One by one, so that not all of them exist as messages at the same time.
            encode_key(ENTRIES_FIELD, WireType::LengthDelimited, &mut plain);
            encode_varint(message.encoded_len() as u64, &mut plain);
            message.encode_raw(&mut plain);
            check_length(plain.len() as u64, MAX_BATCH_BYTES)?;
        }
        let (length, crc) = (plain.len() as u32, crc32fast::hash(&plain));
        let bytes = match codec {
            Codec::None => plain,
            Codec::Zstd => {
                zstd::bulk::compress(&plain, ZSTD_LEVEL).map_err(|error| BodyError::Compression {
                    cause: error.to_string(),
                })?
            }
        };
        Ok(Self {
            bytes: bytes.into(),
            codec,
            length,
            crc,
        })
    }

    /// Cuts the bytes into parts of at most [`PART_BYTES`].
    pub fn parts(&self) -> impl Iterator<Item = Bytes> + use<> {
        let mut rest = self.bytes.clone();
        std::iter::from_fn(move || {
            let length = rest.len().min(PART_BYTES);
            (length > 0).then(|| rest.split_to(length))
        })
    }
}

/// Reads a body: decompresses it into at most `max_length` bytes, verifies length and checksum, and that every output
/// lies within what the batch `settles`, in order and complete. Takes milliseconds for a large batch: call it where
/// that may block.
///
/// # Errors
/// [`BodyError`]; the first thing that is wrong.
pub fn decode(
    header: &proto::Batch,
    body: Bytes,
    settles: &[Interval],
    max_length: usize,
) -> Result<Vec<Entry>, BodyError> {
    check_length(u64::from(header.length), max_length)?;
    let plain = match Codec::from_proto(header.codec)? {
        Codec::None => body,
        Codec::Zstd => zstd::bulk::decompress(&body, header.length as usize)
            .map_err(|error| BodyError::Compression {
                cause: error.to_string(),
            })?
            .into(),
    };
    if plain.len() != header.length as usize {
        return Err(BodyError::TooLarge {
            found: plain.len() as u64,
            allowed: u64::from(header.length),
        });
    }
    let found = crc32fast::hash(&plain);
    if found != header.crc {
        return Err(BodyError::Checksum {
            found,
            declared: header.crc,
        });
    }
    decode_entries(plain, settles)
}

/// As prost would, but counting while it goes: an entry takes two bytes on the wire and a hundred times that in memory.
fn decode_entries(mut plain: Bytes, settles: &[Interval]) -> Result<Vec<Entry>, BodyError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut within = settles.iter().peekable();
    while plain.has_remaining() {
        let (field, wire_type) = decode_key(&mut plain)?;
        if field != ENTRIES_FIELD || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, field, &mut plain, DecodeContext::default())?;
            continue;
        }
        if entries.len() == MAX_OUTPUTS {
            return Err(BodyError::TooManyOutputs);
        }
        let length = decode_varint(&mut plain)?;
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= plain.remaining());
        let Some(length) = length else {
            return Err(BodyError::CutShort);
        };
        let entry = read_entry(proto::Entry::decode(plain.split_to(length))?)?;
        let Entry {
            store_epoch,
            id,
            index,
            ..
        } = entry;
        while within
            .next_if(|interval| !interval.contains(store_epoch, id))
            .is_some()
        {}
        let expected = match entries.last() {
            Some(before) if before.store_epoch == store_epoch && before.id == id => {
                before.index.wrapping_add(1)
            }
            Some(before) if before.store_epoch == store_epoch && before.id > id => u32::MAX,
            _ => 0,
        };
        if within.peek().is_none() || index != expected {
            return Err(BodyError::Order { id, index });
        }
        entries.push(entry);
    }
    if entries.is_empty() {
        Err(BodyError::Empty)
    } else {
        Ok(entries)
    }
}

fn read_entry(message: proto::Entry) -> Result<Entry, BodyError> {
    let proto::Entry {
        store_epoch,
        id,
        index,
        record,
    } = message;
    let record = record.ok_or(BodyError::NoRecord { id, index })?;
    let record = record::from_proto(record).map_err(|cause| BodyError::Record { id, index, cause })?;
    Ok(Entry {
        store_epoch,
        id,
        index,
        record,
    })
}

fn check_length(found: u64, allowed: usize) -> Result<(), BodyError> {
    let allowed = allowed as u64;
    if found > allowed {
        Err(BodyError::TooLarge { found, allowed })
    } else {
        Ok(())
    }
}

/// An output as a sink holds it.
pub type SharedEntry = Entry<Arc<Record>>;

#[cfg(test)]
mod tests;
