//! What an edge tells of its assets: cut into parts, so that an alarm never waits behind all of it, and put together again.
//!
//! The whole has a version, which is a hash of it. The cloud says in its welcome which version it holds, and the edge sends
//! its registry only when that is another; so a link that breaks costs nothing, and one that breaks midway begins anew.

use std::collections::VecDeque;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::{
    limits::{MAX_ASSETS, MAX_DESCRIPTION_BYTES, MAX_NAME_LEN, MAX_REGISTRY_BYTES, PART_BYTES},
    proto,
};

/// Bytes of a version.
const VERSION_LEN: usize = 32;

/// What takes the place of a description that is too large.
const NO_DESCRIPTION: &[u8] = b"{}";

/// A registry, ready to be sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cut {
    /// Names what is in it.
    pub version: Bytes,
    /// Its parts, at least one.
    pub parts: VecDeque<proto::Registry>,
    /// Assets that the cloud is told without what describes them, since that is too much.
    pub undescribed: usize,
    /// Assets that are more than an edge may have.
    pub left_out: usize,
}

/// Cuts a registry; the assets come in an order that is always the same, each once.
pub fn cut(assets: impl IntoIterator<Item = proto::Asset>) -> Cut {
    let mut cut = Cut::default();
    let mut hash = Sha256::new();
    let mut part = proto::Registry::default();
    let (mut count, mut weight, mut left) = (0, 0, MAX_REGISTRY_BYTES);
    for mut asset in assets {
        if count == MAX_ASSETS {
            cut.left_out += 1;
            continue;
        }
        count += 1;
        if asset.description.len() > MAX_DESCRIPTION_BYTES.min(left) {
            asset.description = Bytes::from_static(NO_DESCRIPTION);
            cut.undescribed += 1;
        }
        left = left.saturating_sub(asset.description.len());
        for text in [
            asset.namespace.as_bytes(),
            asset.name.as_bytes(),
            &asset.description,
        ] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        let own_weight = asset.namespace.len() + asset.name.len() + asset.description.len();
        if weight > 0 && weight + own_weight > PART_BYTES {
            cut.parts.push_back(std::mem::take(&mut part));
            weight = 0;
        }
        weight += own_weight;
        part.assets.push(asset);
    }
    cut.parts.push_back(part);
    cut.version = Bytes::copy_from_slice(&hash.finalize());
    let last = cut.parts.len() - 1;
    for (place, part) in cut.parts.iter_mut().enumerate() {
        part.version = cut.version.clone();
        part.more = place < last;
    }
    cut
}

/// A registry that has arrived.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Whole {
    /// Names what is in it.
    pub version: Bytes,
    /// All assets of the edge.
    pub assets: Vec<proto::Asset>,
}

/// A registry that no edge of ours sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRegistry {
    /// The version has another length.
    #[error("the version of the registry has {found} bytes, {VERSION_LEN} are allowed")]
    Version {
        /// Bytes found.
        found: usize,
    },
    /// A name is empty or too long.
    #[error("a name in the registry has {found} bytes, 1 to {MAX_NAME_LEN} are allowed")]
    Name {
        /// Bytes found.
        found: usize,
    },
    /// A description, or all of them, or the number of assets is too large.
    #[error(
        "the registry is too large: {MAX_ASSETS} assets are allowed, descriptions of {MAX_DESCRIPTION_BYTES} bytes and \
         of {MAX_REGISTRY_BYTES} bytes together"
    )]
    TooLarge,
}

/// Puts the parts of a registry together, within bounds.
#[derive(Debug, Default)]
pub struct Assembly {
    whole: Whole,
    bytes: usize,
}

impl Assembly {
    /// Takes the next part; the registry, when it was the last. A part of another version begins anew.
    ///
    /// # Errors
    /// When it is no registry, or a larger one than allowed.
    pub fn take(&mut self, part: proto::Registry) -> Result<Option<Whole>, InvalidRegistry> {
        let proto::Registry {
            assets,
            version,
            more,
        } = part;
        if version.len() != VERSION_LEN {
            return Err(InvalidRegistry::Version { found: version.len() });
        }
        if version != self.whole.version {
            *self = Self::default();
            self.whole.version = version;
        }
        for asset in assets {
            let wrong = [&asset.namespace, &asset.name]
                .into_iter()
                .map(String::len)
                .find(|length| !(1..=MAX_NAME_LEN).contains(length));
            if let Some(found) = wrong {
                return Err(InvalidRegistry::Name { found });
            }
            self.bytes += asset.description.len();
            if asset.description.len() > MAX_DESCRIPTION_BYTES
                || self.bytes > MAX_REGISTRY_BYTES
                || self.whole.assets.len() == MAX_ASSETS
            {
                return Err(InvalidRegistry::TooLarge);
            }
            self.whole.assets.push(asset);
        }
        Ok((!more).then(|| std::mem::take(self).whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asset(number: usize, description: usize) -> proto::Asset {
        proto::Asset {
            namespace: "plant".to_owned(),
            name: format!("asset-{number:05}"),
            description: vec![b'x'; description].into(),
        }
    }

    fn arrived(parts: impl IntoIterator<Item = proto::Registry>) -> Option<Whole> {
        let mut assembly = Assembly::default();
        let mut whole = None;
        for part in parts {
            assert_eq!(whole, None, "the last part was not the last");
            whole = assembly.take(part).unwrap();
        }
        whole
    }

    #[test]
    fn what_is_cut_arrives_whole_and_in_small_parts() {
        for count in [0, 1, 500] {
            let assets: Vec<_> = (0..count).map(|number| asset(number, 1000)).collect();
            let cut = cut(assets.clone());
            assert_eq!((cut.undescribed, cut.left_out), (0, 0));
            assert!(cut.parts.len() > count * 1000 / PART_BYTES);
            for part in &cut.parts {
                assert!(prost::Message::encoded_len(part) < PART_BYTES * 5 / 4);
            }
            let whole = arrived(cut.parts).unwrap();
            assert_eq!(
                whole,
                Whole {
                    version: cut.version,
                    assets
                }
            );
        }
    }

    #[test]
    fn the_version_is_that_of_the_content() {
        let version = |assets: &[proto::Asset]| cut(assets.to_vec()).version;
        let one = [asset(1, 5)];
        assert_eq!(version(&one), version(&one.clone()));
        assert_ne!(version(&one), version(&[]));
        assert_ne!(version(&one), version(&[asset(1, 6)]));
        let mut shifted = asset(1, 5);
        shifted.namespace.push('a');
        shifted.name.remove(0);
        assert_ne!(version(&one), version(&[shifted]));
    }

    #[test]
    fn a_plant_beyond_the_bounds_is_told_as_far_as_they_go() {
        let large = cut([
            asset(0, MAX_DESCRIPTION_BYTES + 1),
            asset(1, MAX_DESCRIPTION_BYTES),
        ]);
        assert_eq!((large.undescribed, large.parts.len()), (1, 2));
        assert!(arrived(large.parts).is_some());
        let per_asset = MAX_REGISTRY_BYTES / MAX_ASSETS + 1;
        let many = cut((0..MAX_ASSETS + 2).map(|number| asset(number, per_asset)));
        assert!(many.undescribed > 0);
        assert_eq!(many.left_out, 2);
        assert_eq!(arrived(many.parts).unwrap().assets.len(), MAX_ASSETS);
    }

    #[test]
    fn a_new_version_begins_anew_and_nonsense_is_refused() {
        let assets = || (0..100).map(|number| asset(number, 1000));
        let (old, new) = (cut(assets()), cut(assets().skip(1)));
        let mut parts: Vec<_> = old.parts.into_iter().take(2).collect();
        parts.extend(new.parts);
        assert_eq!(arrived(parts).unwrap().assets.len(), 99);

        let refused = |part| Assembly::default().take(part).unwrap_err().to_string();
        let part = |assets| proto::Registry {
            assets,
            version: vec![0; VERSION_LEN].into(),
            more: true,
        };
        assert!(refused(proto::Registry::default()).contains("has 0 bytes, 32 are allowed"));
        let mut nameless = asset(1, 1);
        nameless.name.clear();
        assert!(refused(part(vec![nameless])).contains("1 to 253"));
        assert!(refused(part(vec![asset(1, MAX_DESCRIPTION_BYTES + 1)])).contains("too large"));
        let mut assembly = Assembly::default();
        let flood = (0..).map(|_| assembly.take(part(vec![asset(1, MAX_DESCRIPTION_BYTES)])));
        let taken = flood.take_while(Result::is_ok).count();
        assert_eq!(taken, MAX_REGISTRY_BYTES / MAX_DESCRIPTION_BYTES);
    }
}
