//! Writes container images: one compressed layer, in one archive that containerd, Docker and podman read. The same files
//! make the same bytes.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// An image of one layer.
pub(crate) struct Image {
    /// Names with their tags, such as `localhost/foreshore:dev`.
    pub(crate) names: Vec<String>,
    /// The processor as OCI calls it; [`architecture`] is this machine's.
    pub(crate) architecture: String,
    /// Program and arguments that a container starts with.
    pub(crate) entrypoint: Vec<String>,
    /// User, or user and group, by number, that a container runs as.
    pub(crate) user: String,
    /// Labels, such as `org.opencontainers.image.version`.
    pub(crate) labels: BTreeMap<String, String>,
    /// Files and directories; the directories above them come by themselves.
    pub(crate) files: Vec<File>,
}

/// A file or a directory of an image; root owns it.
pub(crate) struct File {
    /// Absolute path in the image.
    pub(crate) path: String,
    /// What it holds.
    pub(crate) content: Content,
    /// Permissions, such as `0o755`.
    pub(crate) mode: u32,
}

/// What a [`File`] holds.
pub(crate) enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What this file of the machine holds.
    From(PathBuf),
    /// Nothing: it is a directory.
    Directory,
}

/// Returns this machine's processor as OCI calls it.
pub(crate) fn architecture() -> String {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned()
}

/// Writes an image as an archive in OCI layout. `manifest.json` beside it is for a Docker that reads no OCI layout.
pub(crate) fn write(image: &Image, out: &Path) -> Result<()> {
    let layer = layer(&image.files)?;
    let config = serde_json::to_vec(&json!({
        "architecture": image.architecture,
        "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint,
            "Labels": image.labels,
            "User": image.user,
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    }))?;
    let layer = compressed(&layer)?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
    }))?;
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": image.names.iter().map(|name| named(name, image, &manifest)).collect::<Result<Vec<_>>>()?,
    }))?;
    let docker = serde_json::to_vec(&json!([{
        "Config": blob(&config),
        "RepoTags": image.names,
        "Layers": [blob(&layer)],
    }]))?;

    let mut blobs = BTreeMap::new();
    for bytes in [&layer, &config, &manifest] {
        blobs.insert(blob(bytes), bytes.as_slice());
    }
    let file = fs::File::create(out).with_context(|| format!("create {}", out.display()))?;
    let mut archive = Builder::new(io::BufWriter::new(file));
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let first = [
        ("oci-layout", layout.as_slice()),
        ("index.json", &index),
        ("manifest.json", &docker),
    ];
    let blobs = blobs.iter().map(|(path, bytes)| (path.as_str(), *bytes));
    for (path, bytes) in first.into_iter().chain(blobs) {
        append(&mut archive, path, Some(bytes), 0o644).with_context(|| format!("write {}", out.display()))?;
    }
    let mut written = archive.into_inner()?;
    written
        .flush()
        .with_context(|| format!("write {}", out.display()))
}

/// The one layer: everything in the order of its path, with the directories above, without times.
fn layer(files: &[File]) -> Result<Vec<u8>> {
    let mut entries: BTreeMap<String, (Option<Vec<u8>>, u32)> = BTreeMap::new();
    for file in files {
        let Some(path) = file.path.strip_prefix('/').filter(|path| !path.is_empty()) else {
            bail!(
                "file of an image: found path {:?}; allowed: an absolute path below /",
                file.path
            );
        };
        for parent in Path::new(path).ancestors().skip(1) {
            let parent = parent.to_string_lossy().into_owned();
            if !parent.is_empty() {
                entries.entry(parent).or_insert((None, 0o755));
            }
        }
        let bytes = match &file.content {
            Content::Bytes(bytes) => Some(bytes.clone()),
            Content::From(source) => {
                Some(fs::read(source).with_context(|| format!("read {}", source.display()))?)
            }
            Content::Directory => None,
        };
        entries.insert(path.to_owned(), (bytes, file.mode));
    }
    let mut archive = Builder::new(Vec::new());
    for (path, (bytes, mode)) in &entries {
        append(&mut archive, path, bytes.as_deref(), *mode).with_context(|| format!("layer: {path}"))?;
    }
    Ok(archive.into_inner()?)
}

/// The fastest way leaves less than half of a program, and every test cluster waits for it.
fn compressed(layer: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(layer)?;
    Ok(encoder.finish()?)
}

/// Appends a file, or a directory where there are no bytes.
fn append(archive: &mut Builder<impl Write>, path: &str, bytes: Option<&[u8]>, mode: u32) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    match bytes {
        Some(bytes) => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, bytes)
        }
        None => {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            archive.append_data(&mut header, format!("{path}/"), io::empty())
        }
    }
}

/// The manifest under one of the image's names, where each reader looks for it: containerd wants the whole name, OCI
/// means the tag.
fn named(name: &str, image: &Image, manifest: &[u8]) -> Result<Value> {
    let Some((_, tag)) = name
        .rsplit_once(':')
        .filter(|(_, tag)| !tag.is_empty() && !tag.contains('/'))
    else {
        bail!(
            "name of an image: found {name:?}; allowed: a name with a tag, such as localhost/foreshore:dev"
        );
    };
    let mut descriptor = descriptor("application/vnd.oci.image.manifest.v1+json", manifest);
    descriptor["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
    descriptor["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag,
    });
    Ok(descriptor)
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn image() -> Image {
        Image {
            names: vec![
                "localhost/some:dev".to_owned(),
                "localhost:5000/some:0.1.0".to_owned(),
            ],
            architecture: "amd64".to_owned(),
            entrypoint: vec!["/some".to_owned()],
            user: "65532:65532".to_owned(),
            labels: BTreeMap::from([("org.opencontainers.image.version".to_owned(), "0.1.0".to_owned())]),
            files: vec![
                File {
                    path: "/some".to_owned(),
                    content: Content::Bytes(b"program".to_vec()),
                    mode: 0o755,
                },
                File {
                    path: "/etc/ssl/certs/ca-certificates.crt".to_owned(),
                    content: Content::Bytes(b"certificates".to_vec()),
                    mode: 0o644,
                },
                File {
                    path: "/tmp".to_owned(),
                    content: Content::Directory,
                    mode: 0o1777,
                },
            ],
        }
    }

    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        tar::Archive::new(archive)
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                assert_eq!(entry.header().mtime().unwrap(), 0);
                assert_eq!(entry.header().uid().unwrap(), 0);
                (
                    entry.path().unwrap().display().to_string(),
                    entry.header().mode().unwrap(),
                    bytes,
                )
            })
            .collect()
    }

    /// Reads an archive back as a runtime does: from the index through digests to the layer.
    #[test]
    fn reads_back_by_digests() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("some.tar");
        write(&image(), &out).unwrap();
        let files: BTreeMap<String, Vec<u8>> = entries(&fs::read(&out).unwrap())
            .into_iter()
            .map(|(path, _, bytes)| (path, bytes))
            .collect();
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let bytes = &files[&format!("blobs/{}", digest.replace(':', "/"))];
            assert_eq!(super::digest(bytes), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };

        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let annotations: Vec<_> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|manifest| &manifest["annotations"])
            .collect();
        assert_eq!(annotations[0]["io.containerd.image.name"], "localhost/some:dev");
        assert_eq!(annotations[1]["org.opencontainers.image.ref.name"], "0.1.0");
        let manifest: Value = serde_json::from_slice(follow(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(follow(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Entrypoint"][0], "/some");
        let mut layer = Vec::new();
        GzDecoder::new(follow(&manifest["layers"][0]).as_slice())
            .read_to_end(&mut layer)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&layer));

        let modes: Vec<_> = entries(&layer)
            .into_iter()
            .map(|(path, mode, bytes)| (path, mode, bytes.len()))
            .collect();
        let expected = [
            ("etc/", 0o755, 0),
            ("etc/ssl/", 0o755, 0),
            ("etc/ssl/certs/", 0o755, 0),
            ("etc/ssl/certs/ca-certificates.crt", 0o644, 12),
            ("some", 0o755, 7),
            ("tmp/", 0o1777, 0),
        ];
        assert_eq!(
            modes,
            expected.map(|(path, mode, length)| (path.to_owned(), mode, length))
        );
    }

    #[test]
    fn same_files_make_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one.tar", "two.tar"].map(|name| directory.path().join(name));
        write(&image(), &one).unwrap();
        let mut reversed = image();
        reversed.files.reverse();
        write(&reversed, &two).unwrap();
        assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
    }

    #[test]
    fn refuses_names_without_tag_and_relative_paths() {
        let out = Path::new("/nowhere/some.tar");
        let mut untagged = image();
        untagged.names = vec!["localhost:5000/some".to_owned()];
        let error = write(&untagged, out).unwrap_err().to_string();
        assert!(
            error.contains("found \"localhost:5000/some\"; allowed: a name with a tag"),
            "{error}"
        );
        let mut relative = image();
        relative.files[0].path = "some".to_owned();
        let error = write(&relative, out).unwrap_err().to_string();
        assert!(error.contains("found path \"some\""), "{error}");
    }
}
