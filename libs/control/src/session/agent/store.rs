//! The last good plan of a role on disk.
//!
//! One file for each resource, sealed (see `seal`): secrets are never in the clear on disk, and a torn or altered file is
//! noticed. Whatever is lost the operator sends again; so nothing here waits for a disk.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use foreshore_tls::{Fingerprint, read_bounded};
use prost::Message;
use tracing::warn;

use super::seal::Seal;
use crate::{
    plan::ResourceKey,
    proto,
    resource::{LARGEST_BODY, Resource},
    session::wire::{self, Received},
};

/// Ends the names of our files.
const EXTENSION: &str = "sealed";

/// Files larger than this are none of ours.
const LARGEST_FILE: u64 = LARGEST_BODY as u64 + 64 * 1024;

/// A directory with the resources that are in force.
pub(super) struct PlanStore {
    directory: PathBuf,
    seal: Arc<Seal>,
}

impl PlanStore {
    /// Opens the store in a role's state directory, making it when it does not exist.
    pub(super) fn open(state: &Path, seal: Arc<Seal>) -> Result<Self, foreshore_tls::Error> {
        let directory = state.join("plan");
        fs::create_dir_all(&directory).map_err(|error| file_error("create", &directory, error))?;
        Ok(Self { directory, seal })
    }

    /// Every resource, in the order in which they are to be set. A file that can't be used is removed: the operator
    /// sends its resource again.
    pub(super) fn load(&self, limit: usize) -> Result<Vec<Resource>, foreshore_tls::Error> {
        let read = |error| file_error("read", &self.directory, error);
        let mut resources = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) || resources.len() >= limit {
                // Left-overs of a write that was cut short.
                drop(fs::remove_file(&path));
                continue;
            }
            match self.load_one(&path) {
                Ok(resource) => resources.push(resource),
                Err(reason) => {
                    warn!(path = %path.display(), reason, "stored resource can't be used and is dropped");
                    drop(fs::remove_file(&path));
                }
            }
        }
        resources.sort_unstable_by(|a, b| (a.phase(), a.key()).cmp(&(b.phase(), b.key())));
        Ok(resources)
    }

    fn load_one(&self, path: &Path) -> Result<Resource, String> {
        let content = read_bounded(path, LARGEST_FILE).map_err(|error| error.to_string())?;
        let plain = self.seal.unseal(path, &content)?;
        let message = proto::Resource::decode(Bytes::from(plain)).map_err(|error| error.to_string())?;
        let resource = match wire::resource(Some(message)).map_err(|error| error.to_string())? {
            Received::Whole(resource) => resource,
            Received::Bad(_, nack) => return Err(nack.to_string()),
        };
        if self.path_of(resource.key()) != path {
            return Err("it is under the name of another resource".to_owned());
        }
        Ok(resource)
    }

    /// Stores a resource in place of its earlier version.
    pub(super) fn put(&self, resource: Resource) -> Result<(), foreshore_tls::Error> {
        let path = self.path_of(resource.key());
        let plain = proto::Resource::from(resource).encode_to_vec();
        let sealed = self.seal.seal(&path, &plain)?;
        write_quickly(&path, &sealed).map_err(|error| file_error("write", &path, error))
    }

    /// Forgets a resource.
    pub(super) fn remove(&self, key: &ResourceKey) -> Result<(), foreshore_tls::Error> {
        let path = self.path_of(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error("remove", &path, error)),
            _ => Ok(()),
        }
    }

    /// Keys have characters that file names may not have, and a length that they can't have: a hash has neither.
    fn path_of(&self, key: &ResourceKey) -> PathBuf {
        let text = format!("{}\0{}\0{}", key.kind, key.namespace, key.name);
        self.directory
            .join(format!("{}.{EXTENSION}", Fingerprint::of(text.as_bytes())))
    }
}

/// Whole or not at all while the machine runs; after a power cut the seal tells.
fn write_quickly(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    drop(file);
    fs::rename(&temporary, path)
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> foreshore_tls::Error {
    foreshore_tls::Error::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LIMIT: usize = 100;

    fn open(state: &Path) -> Result<PlanStore, foreshore_tls::Error> {
        PlanStore::open(state, Arc::new(Seal::open(state, None)?))
    }

    fn resource(kind: &str, name: &str, phase: u32, body: &str) -> Resource {
        Resource::new(
            ResourceKey::new(kind, "plant", name),
            7,
            phase,
            Bytes::from(body.to_owned()),
        )
        .unwrap()
    }

    fn files(state: &Path) -> Vec<PathBuf> {
        fs::read_dir(state.join("plan"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    #[test]
    fn what_is_stored_comes_back_in_the_order_of_setting() {
        let state = tempfile::tempdir().unwrap();
        let store = open(state.path()).unwrap();
        let (asset, secret) = (
            resource("Asset", "line", 3, "{}"),
            resource("Secret", "plc", 0, "old"),
        );
        for resource in [&asset, &secret, &resource("Asset", "gone", 3, "{}")] {
            store.put(resource.clone()).unwrap();
        }
        let secret = resource("Secret", "plc", 0, "new");
        store.put(secret.clone()).unwrap();
        store.remove(&ResourceKey::new("Asset", "plant", "gone")).unwrap();
        store
            .remove(&ResourceKey::new("Asset", "plant", "never"))
            .unwrap();
        let reopened = open(state.path()).unwrap();
        assert_eq!(reopened.load(LIMIT).unwrap(), [secret, asset]);
    }

    #[test]
    fn nothing_is_in_the_clear_and_the_key_is_private() {
        let state = tempfile::tempdir().unwrap();
        let store = open(state.path()).unwrap();
        store.put(resource("Secret", "plc", 0, "hunter2")).unwrap();
        for file in files(state.path()) {
            let content = fs::read(&file).unwrap();
            assert!(!content.windows(7).any(|window| window == b"hunter2"));
            assert!(!content.windows(3).any(|window| window == b"plc"));
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let key = state.path().join("plan.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            open(state.path()),
            Err(foreshore_tls::Error::FileMode { .. })
        ));
    }

    #[test]
    fn damaged_files_are_dropped_and_the_others_are_used() {
        let state = tempfile::tempdir().unwrap();
        let store = open(state.path()).unwrap();
        for number in 0..6 {
            store
                .put(resource("Asset", &format!("asset-{number}"), 3, "{}"))
                .unwrap();
        }
        let paths = files(state.path());
        let content = fs::read(&paths[0]).unwrap();
        fs::write(&paths[0], &content[..content.len() / 2]).unwrap();
        fs::write(&paths[1], b"").unwrap();
        let mut flipped = fs::read(&paths[2]).unwrap();
        flipped[30] ^= 1;
        fs::write(&paths[2], flipped).unwrap();
        fs::copy(&paths[4], &paths[3]).unwrap();
        fs::write(state.path().join("plan/half.tmp"), b"x").unwrap();
        assert_eq!(store.load(LIMIT).unwrap().len(), 2);
        assert_eq!(files(state.path()).len(), 2);
    }

    #[test]
    fn without_its_key_a_plan_is_worth_nothing() {
        let state = tempfile::tempdir().unwrap();
        open(state.path())
            .unwrap()
            .put(resource("Asset", "line", 3, "{}"))
            .unwrap();
        fs::remove_file(state.path().join("plan.key")).unwrap();
        assert!(open(state.path()).unwrap().load(LIMIT).unwrap().is_empty());
    }
}
