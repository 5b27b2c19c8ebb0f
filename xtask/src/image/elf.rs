//! Whether a program runs in an image that holds no libraries.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

/// Program header that names the dynamic loader.
const PT_INTERP: u32 = 3;

/// Fails unless a file is a program that needs no dynamic loader.
pub(crate) fn check_static(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    match interpreted(&bytes) {
        Some(false) => Ok(()),
        Some(true) => bail!(
            "{}: found a dynamically linked program; allowed: a static one, since the image holds no libraries \
             (build with -C target-feature=+crt-static)",
            path.display()
        ),
        None => bail!(
            "{}: found no 64-bit little-endian ELF program; allowed: one for Linux",
            path.display()
        ),
    }
}

/// Whether a 64-bit little-endian ELF file names a dynamic loader; nothing when it is no such file.
fn interpreted(bytes: &[u8]) -> Option<bool> {
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
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for index in 0..count {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if number(header, 4)? == PT_INTERP as usize {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of one program header of a type.
    fn file(header: u32) -> Vec<u8> {
        let mut bytes = vec![0; 0x40 + 0x38];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[0x20] = 0x40;
        bytes[0x36] = 0x38;
        bytes[0x38] = 1;
        bytes[0x40..0x44].copy_from_slice(&header.to_le_bytes());
        bytes
    }

    #[test]
    fn sees_the_dynamic_loader() {
        assert_eq!(interpreted(&file(PT_INTERP)), Some(true));
        assert_eq!(interpreted(&file(1)), Some(false));
    }

    #[test]
    fn takes_nothing_else_for_a_program() {
        assert_eq!(interpreted(b"#!/bin/sh\n"), None);
        assert_eq!(interpreted(b""), None);
        assert_eq!(interpreted(&file(1)[..0x42]), None);
    }
}
