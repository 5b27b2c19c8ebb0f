//! The rows of a table, block by block.
//!
//! Blocks of rows follow each other from the beginning of the file, each with its length and its checksum. Behind one
//! whose length can't be read the index tells where the next one begins. Nothing is searched for: what clients published
//! lies in blocks, and what looks like a block there must not be taken for one.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    vec,
};

use lsm_tree::{
    CompressionType, InternalValue, SeqNo,
    coding::Decode,
    table::{
        Block, DataBlock, IndexBlock,
        block::{BlockType, Header, decoder::ParsedItem},
    },
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    Damage, Unreadable,
    archive::{Archive, Section},
};

/// Bytes that are summed at a time.
const PART: usize = 64 << 10;

/// A table.
#[derive(Debug)]
pub(in super::super) struct Table {
    path: PathBuf,
    file: File,
    length: u64,
    /// Where its parts are.
    archive: Option<Archive>,
    /// How its rows are compressed, if it could be read.
    compression: Option<CompressionType>,
    /// The first and the last key, if they could be read.
    pub(in super::super) keys: Option<(Vec<u8>, Vec<u8>)>,
}

impl Table {
    /// Opens a table, as far as it can be read; `None` if it is gone.
    pub(in super::super) fn open(path: &Path, damage: &mut Damage) -> io::Result<Option<Self>> {
        let opened = File::open(path)
            .and_then(|file| Ok((file.metadata()?.len(), file)))
            .map_err(Unreadable::from);
        let Some((length, file)) = damage.note(path, opened)? else {
            return Ok(None);
        };
        let archive = damage.note(path, Archive::read(&file))?;
        let mut table = Self {
            path: path.to_owned(),
            file,
            length,
            archive,
            compression: None,
            keys: None,
        };
        if let Some(meta) = table.section(b"meta") {
            let read = table.describe(&meta);
            if let Some((compression, keys)) = damage.note(path, read)? {
                (table.compression, table.keys) = (Some(compression), Some(keys));
            }
        }
        Ok(Some(table))
    }

    fn section(&self, name: &[u8]) -> Option<Section> {
        self.archive.as_ref()?.section(name).cloned()
    }

    /// Reads how rows are compressed, and the first and the last key.
    #[expect(clippy::type_complexity, reason = "named where it is taken apart")]
    fn describe(&self, meta: &Section) -> Result<(CompressionType, (Vec<u8>, Vec<u8>)), Unreadable> {
        let header = self.header(meta.from)?;
        let block = DataBlock::new(self.block(meta.from, &header, CompressionType::None)?);
        let value = |name: &[u8]| {
            let found = block.point_read(name, SeqNo::MAX);
            found
                .map(|found| found.value)
                .ok_or_else(|| Unreadable::Damaged("its description is not whole".to_owned()))
        };
        let compression = value(b"compression#data")?;
        let keys = (value(b"key#min")?.to_vec(), value(b"key#max")?.to_vec());
        Ok((CompressionType::decode_from(&mut &*compression)?, keys))
    }

    /// Reads the header of the block at a place.
    fn header(&self, at: u64) -> Result<Header, Unreadable> {
        let mut header = vec![0; Header::serialized_len()];
        self.file.read_exact_at(&mut header, at)?;
        let header = Header::decode_from(&mut &*header)?;
        let fits = at.checked_add(size(&header)).is_some_and(|to| to <= self.length);
        if fits {
            Ok(header)
        } else {
            Err(Unreadable::Damaged("a block reaches beyond the end".to_owned()))
        }
    }

    /// Reads the block at a place, whose header is known.
    fn block(&self, at: u64, header: &Header, compression: CompressionType) -> Result<Block, Unreadable> {
        let mut block = vec![0; usize::try_from(size(header)).unwrap_or_default()];
        self.file.read_exact_at(&mut block, at)?;
        Ok(Block::from_reader(&mut &*block, compression)?)
    }

    /// How a block is compressed, if the table does not say.
    fn compression_of(&self, header: &Header) -> CompressionType {
        self.compression
            .unwrap_or(if header.data_length == header.uncompressed_length {
                CompressionType::None
            } else {
                CompressionType::Lz4
            })
    }

    /// What an index block leads to.
    fn index(&self, at: u64) -> Result<Vec<u64>, Unreadable> {
        let header = self.header(at)?;
        if header.block_type != BlockType::Index {
            return Err(Unreadable::Damaged("a block is no index".to_owned()));
        }
        let compression = if header.data_length == header.uncompressed_length {
            CompressionType::None
        } else {
            CompressionType::Lz4
        };
        let block = IndexBlock::new(self.block(at, &header, compression)?);
        let places = block
            .iter()
            .map(|entry| *entry.materialize(block.as_slice()).offset());
        Ok(places.collect())
    }

    /// The first block of rows behind a place, as the index tells, as far as that can be read.
    fn next_block(&self, behind: u64) -> Option<u64> {
        let top = self.index(self.section(b"tli")?.from).ok()?;
        let blocks: Vec<u64> = if self.section(b"index").is_some() {
            top.iter()
                .filter_map(|at| self.index(*at).ok())
                .filter_map(|places| places.into_iter().find(|place| *place > behind))
                .collect()
        } else {
            top
        };
        blocks.into_iter().filter(|place| *place > behind).min()
    }

    /// Whether the file is what was written.
    pub(in super::super) fn matches(&self, checksum: u128) -> Result<bool, Unreadable> {
        let (mut file, mut sum, mut part) = (&self.file, Xxh3::new(), vec![0; PART]);
        io::Seek::rewind(&mut file)?;
        loop {
            match file.read(&mut part)? {
                0 => return Ok(sum.digest128() == checksum),
                length => sum.update(part.get(..length).unwrap_or_default()),
            }
        }
    }

    /// Reads its rows.
    pub(in super::super) fn rows(self) -> Rows {
        let data = self.section(b"data");
        let end = data.map_or(self.length, |data| data.from + data.length);
        Rows {
            table: self,
            position: 0,
            end,
            rows: Vec::new().into_iter(),
        }
    }
}

/// Length of a block with its header.
fn size(header: &Header) -> u64 {
    Header::serialized_len() as u64 + u64::from(header.data_length)
}

/// The rows of a table, in the order of their keys, and of one key the newest first.
#[derive(Debug)]
pub(in super::super) struct Rows {
    table: Table,
    position: u64,
    end: u64,
    /// Those of the current block.
    rows: vec::IntoIter<InternalValue>,
}

impl Rows {
    /// The table that they are of.
    pub(in super::super) fn table(&self) -> &Table {
        &self.table
    }

    /// The next row that can be read.
    pub(in super::super) fn next(&mut self, damage: &mut Damage) -> io::Result<Option<InternalValue>> {
        loop {
            if let Some(row) = self.rows.next() {
                return Ok(Some(row));
            }
            if self.position >= self.end {
                return Ok(None);
            }
            self.read_block(damage)?;
        }
    }

    /// Reads the next block, or goes on behind it.
    fn read_block(&mut self, damage: &mut Damage) -> io::Result<()> {
        let (table, at) = (&self.table, self.position);
        let at_place = |error| match error {
            Unreadable::Damaged(cause) => Unreadable::Damaged(format!("byte {at}: {cause}")),
            refused @ Unreadable::Refused(_) => refused,
        };
        let header = damage.note(&table.path, table.header(at).map_err(at_place))?;
        let Some(header) = header else {
            self.position = table.next_block(at).unwrap_or(self.end);
            return Ok(());
        };
        if header.block_type != BlockType::Data {
            // Its table of contents could not be read, and this is what follows the rows.
            self.position = self.end;
            return Ok(());
        }
        self.position += size(&header);
        let block = table.block(at, &header, table.compression_of(&header));
        if let Some(block) = damage.note(&table.path, block.map_err(at_place))? {
            let block = DataBlock::new(block);
            let rows = block.iter().map(|row| row.materialize(block.as_slice()));
            self.rows = rows.collect::<Vec<_>>().into_iter();
        }
        Ok(())
    }
}
