//! What an image's program is for, and whether it runs where no libraries are.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

/// Program header that names the dynamic loader.
const PT_INTERP: u32 = 3;

/// Returns the processor of a program as OCI calls it.
///
/// # Errors
/// Unless the file is a program that needs no dynamic loader, for a processor that images are made for.
pub(crate) fn static_program(path: &Path) -> Result<&'static str> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    match read(&bytes) {
        Some(Program {
            interpreted: true, ..
        }) => bail!(
            "{}: found a dynamically linked program; allowed: a static one, since the image holds no libraries \
             (build with -C target-feature=+crt-static)",
            path.display()
        ),
        Some(Program { machine: 0x3e, .. }) => Ok("amd64"),
        Some(Program { machine: 0xb7, .. }) => Ok("arm64"),
        Some(Program { machine, .. }) => bail!(
            "{}: found a program for ELF machine {machine}; allowed: 62 (amd64) and 183 (arm64)",
            path.display()
        ),
        None => bail!(
            "{}: found no 64-bit little-endian ELF program; allowed: one for Linux",
            path.display()
        ),
    }
}

/// What an ELF file tells of its program.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    /// Number of the processor.
    machine: usize,
    /// Whether it names a dynamic loader.
    interpreted: bool,
}

/// Reads a 64-bit little-endian ELF file; nothing when it is no such file.
fn read(bytes: &[u8]) -> Option<Program> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<usize> {
        let mut number = [0; 8];
        number
            .get_mut(..length)?
            .copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
        usize::try_from(u64::from_le_bytes(number)).ok()
    };
    let machine = number(0x12, 2)?;
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    let mut interpreted = false;
    for index in 0..count {
        let header = table.checked_add(index.checked_mul(size)?)?;
        interpreted |= number(header, 4)? == PT_INTERP as usize;
    }
    Some(Program { machine, interpreted })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file for arm64 of one program header of a type.
    fn file(header: u32) -> Vec<u8> {
        let mut bytes = vec![0; 0x40 + 0x38];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[0x12] = 0xb7;
        bytes[0x20] = 0x40;
        bytes[0x36] = 0x38;
        bytes[0x38] = 1;
        bytes[0x40..0x44].copy_from_slice(&header.to_le_bytes());
        bytes
    }

    #[test]
    fn sees_processor_and_dynamic_loader() {
        let program = |interpreted| {
            Some(Program {
                machine: 0xb7,
                interpreted,
            })
        };
        assert_eq!(read(&file(PT_INTERP)), program(true));
        assert_eq!(read(&file(1)), program(false));
    }

    #[test]
    fn takes_nothing_else_for_a_program() {
        assert_eq!(read(b"#!/bin/sh\n"), None);
        assert_eq!(read(b""), None);
        assert_eq!(read(&file(1)[..0x42]), None);
    }
}
