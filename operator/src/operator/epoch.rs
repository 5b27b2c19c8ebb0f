//! Epochs of leaders: each start of the operator has a larger one than all before, so that roles can tell a stale
//! leader.

use std::path::Path;

use jiff::Timestamp;

use crate::vault::{Error, Vault};

/// Name of the file.
const FILE: &str = "epoch";

/// The epoch of this start.
///
/// # Errors
/// When it can't be kept: the next start might take the same.
pub(super) fn next(folder: &Path) -> Result<u64, Error> {
    // Where nothing was kept, the clock is larger than any count could be.
    let clock = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
    let vault = Vault::open(folder)?;
    let before = match vault.read(FILE, 64) {
        Ok(content) => content,
        Err(Error::Damaged { .. }) => None,
        Err(error) => return Err(error),
    };
    let before = before.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
    let epoch = before.map_or(clock, |before| before.saturating_add(1).max(clock));
    vault.write(FILE, epoch.to_be_bytes().to_vec())?;
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_grow_even_within_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let epochs: Vec<_> = (0..5).map(|_| next(folder.path()).unwrap()).collect();
        assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
    }
}
