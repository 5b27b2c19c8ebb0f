//! Bounds that both ends hold, whatever the other one says.

use std::ops::RangeInclusive;

/// Versions of the protocol that this crate speaks.
pub const PROTOCOLS: RangeInclusive<u32> = 1..=1;

/// Most bytes of a body in one frame. Small, so that an urgent frame never waits long behind another.
pub const PART_BYTES: usize = 32 * 1024;

/// Most bytes of a batch's body, before and after compression. A record that is larger alone can't be sent.
pub const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Most outputs in a batch.
pub const MAX_OUTPUTS: usize = 10_000;

/// Largest id of an entry: ids are kept as signed numbers of 64 bits.
pub const MAX_ID: u64 = i64::MAX as u64;

/// Most intervals that a batch settles.
pub const MAX_INTERVALS: usize = 10_000;

/// Longest name of a path, in bytes.
pub const MAX_PATH_LEN: usize = 1024;

/// Largest frame, in bytes: a batch's header with its first part.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;

/// Most assets of an edge.
pub const MAX_ASSETS: usize = 10_000;

/// Most bytes of what describes an asset.
pub const MAX_DESCRIPTION_BYTES: usize = 256 * 1024;

/// Most bytes of what describes all assets of an edge.
pub const MAX_REGISTRY_BYTES: usize = 8 * 1024 * 1024;

/// Most bytes of a command's input or output.
pub const MAX_COMMAND_BYTES: usize = 1024 * 1024;

/// Longest name of an edge, namespace, asset, group or action, in bytes.
pub const MAX_NAME_LEN: usize = 253;

/// The version to speak with a peer that speaks `min..=max`: the newest that both do.
#[must_use]
pub fn common_protocol(min: u32, max: u32) -> Option<u32> {
    let newest = max.min(*PROTOCOLS.end());
    (newest >= min && newest >= *PROTOCOLS.start()).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        let newest = *PROTOCOLS.end();
        assert_eq!(common_protocol(1, newest + 7), Some(newest));
        assert_eq!(common_protocol(newest, newest), Some(newest));
        assert_eq!(common_protocol(newest + 1, newest + 7), None);
        assert_eq!(common_protocol(0, 0), None);
    }
}
