//! Bits that flip in files while nobody has them open: what a disk may do without telling anybody.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Files below a folder, with the bytes that are used of each: what follows the last byte that is not zero was only
/// made in advance. Files that are all zero are left out, and what is no file.
///
/// # Errors
/// When the folder or a file can't be read.
pub fn used_files(folder: &Path) -> io::Result<Vec<(PathBuf, usize)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(used_files(&entry.path())?);
        }
        if !kind.is_file() {
            continue;
        }
        let content = fs::read(entry.path())?;
        let used = content.iter().rposition(|byte| *byte != 0);
        found.extend(used.map(|last| (entry.path(), last + 1)));
    }
    found.sort();
    Ok(found)
}

/// Flips one bit of a file: of the byte at `place`, and 0 is the lowest.
///
/// # Errors
/// When the file can't be read or written there.
pub fn flip_bit(file: &Path, place: usize, bit: u32) -> io::Result<()> {
    let opened = File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    opened.read_exact_at(&mut byte, place as u64)?;
    opened.write_all_at(&[byte[0] ^ (1 << (bit % 8))], place as u64)
}
