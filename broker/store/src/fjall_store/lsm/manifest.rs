//! The list of a keyspace's tables.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use xxhash_rust::xxh3::xxh3_128;

use super::{Unreadable, archive::Archive};

/// Longest list that is believed: for some hundred thousand tables.
const MAX_LIST: u64 = 16 << 20;

/// Length of a table in the list: number, type of the checksum, checksum, what is added to sequence numbers.
const TABLE_LEN: usize = 8 + 1 + 16 + 8;

/// A table that belongs to a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Listed {
    pub(in super::super) id: u64,
    /// XXH3-128 of the whole file.
    pub(in super::super) checksum: u128,
}

/// Reads the list that is in use. fjall does not compare it with the checksum that `current` holds: a flipped bit would
/// have it forget tables, and remove them.
pub(in super::super) fn read(keyspace: &Path) -> Result<Vec<Listed>, Unreadable> {
    let damaged = |cause: &str| Unreadable::Damaged(cause.to_owned());
    let current = match read_up_to(&keyspace.join("current"), 25) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !has_tables(keyspace)? => {
            // Its creation was not finished.
            return Ok(Vec::new());
        }
        read => read?,
    };
    let Some((number, rest)) = current.split_first_chunk::<8>() else {
        return Err(damaged("`current` is too short"));
    };
    let Some((checksum, [0])) = rest.split_first_chunk::<16>() else {
        return Err(damaged("`current` has no checksum that is known"));
    };
    let name = format!("v{}", u64::from_le_bytes(*number));
    let file = File::open(keyspace.join(&name))
        .map_err(|error| Unreadable::from(io::Error::new(error.kind(), format!("{name}: {error}"))))?;
    let length = file.metadata()?.len();
    if length > MAX_LIST {
        return Err(damaged("the list of tables is too long"));
    }
    let mut list = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut list, 0)?;
    if xxh3_128(&list).to_le_bytes() != *checksum {
        return Err(Unreadable::Damaged(format!("{name} does not match its checksum")));
    }
    let archive = Archive::read(&file)?;
    let tables = archive.section(b"tables").and_then(|tables| {
        let from = usize::try_from(tables.from).ok()?;
        parse(list.get(from..from + usize::try_from(tables.length).ok()?)?)
    });
    tables.ok_or_else(|| damaged("the list of tables can't be read"))
}

fn read_up_to(path: &Path, length: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, length), &mut content)?;
    Ok(content)
}

fn has_tables(keyspace: &Path) -> io::Result<bool> {
    match fs::read_dir(keyspace.join("tables")) {
        Ok(mut tables) => Ok(tables.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Levels, runs and tables: of each a count, then the content.
fn parse(section: &[u8]) -> Option<Vec<Listed>> {
    let mut tables = Vec::new();
    let (levels, mut rest) = section.split_first()?;
    for _ in 0..*levels {
        let (runs, behind) = rest.split_first()?;
        rest = behind;
        for _ in 0..*runs {
            let (count, behind) = rest.split_first_chunk::<4>()?;
            rest = behind;
            for _ in 0..u32::from_le_bytes(*count) {
                let (table, behind) = rest.split_first_chunk::<TABLE_LEN>()?;
                rest = behind;
                tables.push(Listed {
                    id: u64::from_le_bytes(*table.first_chunk()?),
                    checksum: u128::from_le_bytes(*table.get(9..)?.first_chunk()?),
                });
            }
        }
    }
    Some(tables)
}
