//! Reading files of which the disk can't read every sector.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use rustix::io::Errno;

/// Bytes that are given up together: those of a page, in which the system reads.
const SECTOR: u64 = 4096;

/// Whether this is what a disk says of a sector that it can't read, or what a reader says that got too little because of
/// one, which is no error of the system's.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code.is_none_or(|code| code == Errno::IO.raw_os_error())
}

/// A file that reads as zeros where the disk can't read it.
#[derive(Debug)]
pub(super) struct Sectors<'f> {
    file: &'f File,
    position: u64,
    /// Whether there was such a place.
    pub(super) were_unreadable: bool,
}

impl<'f> Sectors<'f> {
    /// A file from its beginning on.
    pub(super) fn new(file: &'f File) -> Self {
        Self {
            file,
            position: 0,
            were_unreadable: false,
        }
    }

    /// Reads the rest of the present sector, which the disk may not be able to.
    fn read_sector(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // At most a sector, which fits.
        let rest = (SECTOR - self.position % SECTOR) as usize;
        let length = buffer.len().min(rest);
        let part = &mut buffer[..length];
        match self.file.read_at(part, self.position) {
            Err(error) if is_unreadable(&error) => {
                part.fill(0);
                self.were_unreadable = true;
                Ok(length)
            }
            read => read,
        }
    }
}

impl Read for Sectors<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.file.read_at(buffer, self.position) {
            // It may be one of the sectors behind this one.
            Err(error) if is_unreadable(&error) => self.read_sector(buffer)?,
            read => read?,
        };
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Sectors<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(to) => Some(to),
            SeekFrom::Current(step) => self.position.checked_add_signed(step),
            SeekFrom::End(step) => self.file.metadata()?.len().checked_add_signed(step),
        };
        self.position = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use foreshore_faultfs::FaultDisk;

    use super::*;

    #[test]
    fn what_can_not_be_read_is_zeros_and_nothing_else_is() {
        let home = tempfile::tempdir().unwrap();
        let disk = FaultDisk::new(1);
        let mounted = disk.mount(home.path()).unwrap_or_else(|error| panic!("{error}"));
        let path = home.path().join("file");
        let mut expected: Vec<u8> = (0..3 * SECTOR + 100)
            .map(|place| (place % 251) as u8 + 1)
            .collect();
        fs::write(&path, &expected).unwrap();
        let read = |length: usize| {
            let file = File::open(&path).unwrap();
            let mut sectors = Sectors::new(&file);
            // Begins and ends amid sectors, over what was there before.
            let mut found = vec![0xFF; length];
            sectors.seek(SeekFrom::Start(10)).unwrap();
            sectors.read_exact(&mut found).unwrap();
            assert_eq!(sectors.read(&mut [0]).unwrap(), 0);
            (found, sectors.were_unreadable)
        };
        assert_eq!(read(expected.len() - 10), (expected[10..].to_vec(), false));
        disk.spoil(fs::metadata(&path).unwrap().ino(), 1);
        expected[SECTOR as usize..2 * SECTOR as usize].fill(0);
        assert_eq!(read(expected.len() - 10), (expected[10..].to_vec(), true));
        mounted.unmount().unwrap();
    }
}
