//! What the files declare, put together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    path::{Path, PathBuf, absolute},
    sync::Arc,
};

use foreshore_crds::conditions::reasons;
use jiff::Timestamp;

use crate::{
    object::ObjectKey,
    problem::{Position, Problem},
    source::{Origin, Snapshot, Sourced},
};

use super::{
    EmbeddedFile, UNREADABLE,
    document::{Content, Declared},
    identity::Identities,
    secrets,
    walk::{Found, Signature, walk},
};

/// Largest file of manifests.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Most bytes of all files of manifests.
const MAX_TOTAL_BYTES: u64 = 256 << 20;
/// File that only kustomize reads.
const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// Where manifests lie.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub(super) paths: Vec<PathBuf>,
    pub(super) embedded: Vec<EmbeddedFile>,
    pub(super) secrets: Option<PathBuf>,
    pub(super) default_namespace: String,
}

/// All files, as they were read last, and what they declare.
pub(super) struct Catalogue {
    places: Places,
    identities: Identities,
    /// Files of manifests, by their path.
    files: BTreeMap<PathBuf, ReadFile>,
    embedded: BTreeMap<PathBuf, ReadFile>,
    /// What the files of secrets looked like, and what they declare.
    secret_files: BTreeMap<PathBuf, Signature>,
    secrets: BTreeMap<PathBuf, Content>,
    problems: Vec<Problem>,
    /// Whether a snapshot was given yet.
    told: bool,
}

/// A file as it was read last.
struct ReadFile {
    /// `None` for one that can't change.
    signature: Option<Signature>,
    text: Option<Arc<str>>,
    content: Content,
}

/// What a scan gave.
pub(super) struct Scan {
    /// The new state, if it differs from that of the last scan.
    pub(super) snapshot: Option<Snapshot>,
    /// Folders whose changes matter.
    pub(super) folders: BTreeSet<PathBuf>,
    /// Whether a file is being written: another scan is due soon.
    pub(super) unsettled: bool,
}

/// What reading gave.
struct Reading {
    /// Whether any file differs from the last time.
    changed: bool,
    /// Files that are being written and have to be read again soon.
    unsettled: Vec<PathBuf>,
}

/// A file that declares something, for the time of putting together.
struct Part<'a> {
    shown: Arc<str>,
    absolute: String,
    text: Option<Arc<str>>,
    content: &'a Content,
}

impl Catalogue {
    pub(super) fn new(places: Places, identities: Identities) -> Self {
        let embedded = places
            .embedded
            .iter()
            .map(|EmbeddedFile { name, text }| {
                let shown = format!("embedded/{name}");
                let content = Content::read(&shown, text, &places.default_namespace);
                (
                    PathBuf::from(shown),
                    ReadFile {
                        signature: None,
                        text: Some(text.as_ref().into()),
                        content,
                    },
                )
            })
            .collect();
        Self {
            places,
            identities,
            files: BTreeMap::new(),
            embedded,
            secret_files: BTreeMap::new(),
            secrets: BTreeMap::new(),
            problems: Vec::new(),
            told: false,
        }
    }

    /// Absolute paths of all roots.
    pub(super) fn roots(&self) -> Vec<PathBuf> {
        let Places {
            paths,
            embedded,
            secrets,
            default_namespace: _,
        } = &self.places;
        let embedded = (!embedded.is_empty()).then(|| PathBuf::from("embedded"));
        paths
            .iter()
            .chain(secrets)
            .map(|path| absolute_of(path))
            .chain(embedded)
            .collect()
    }

    /// The paths that were given.
    pub(super) fn given(&self) -> impl Iterator<Item = &PathBuf> {
        self.places.paths.iter().chain(&self.places.secrets)
    }

    /// What is kept of the objects.
    pub(super) fn identities(&mut self) -> &mut Identities {
        &mut self.identities
    }

    /// Looks at all files, and reads those that changed.
    pub(super) fn scan(&mut self, is_being_written: &dyn Fn(&Path) -> bool, now: Timestamp) -> Scan {
        let mut found = walk(&self.places.paths, is_manifest);
        // A root that is a folder and is gone was hardly removed on purpose; one that is a file may well have been.
        found
            .unreadable
            .retain(|path| !(self.files.contains_key(path) && path.try_exists().is_ok_and(|there| !there)));
        let Reading {
            mut changed,
            unsettled,
        } = self.read(&found, is_being_written);
        let Found {
            files: _,
            mut folders,
            mut unreadable,
            mut problems,
        } = found;
        if let Some(root) = &self.places.secrets {
            let found = walk(std::slice::from_ref(root), |_| true);
            if found.files != self.secret_files {
                self.secrets = secrets::read(root, &found.files, &self.places.default_namespace);
                self.secret_files = found.files;
                changed = true;
            }
            folders.extend(found.folders);
            unreadable.extend(found.unreadable);
            problems.extend(found.problems);
        }
        changed |= problems != self.problems || !self.told;
        self.problems = problems;
        self.told = true;
        let held: Vec<_> = unreadable
            .iter()
            .chain(&unsettled)
            .map(|path| absolute_of(path))
            .collect();
        let snapshot = changed.then(|| self.put_together(&held, now));
        Scan {
            snapshot,
            folders,
            unsettled: !unsettled.is_empty(),
        }
    }

    /// Reads files that changed.
    fn read(&mut self, found: &Found, is_being_written: &dyn Fn(&Path) -> bool) -> Reading {
        let cut_off = |path: &PathBuf| found.unreadable.iter().any(|folder| path.starts_with(folder));
        let before = self.files.len();
        self.files
            .retain(|path, _| found.files.contains_key(path) || cut_off(path));
        let mut read = Reading {
            changed: self.files.len() != before,
            unsettled: Vec::new(),
        };
        let mut total: u64 = 0;
        for (path, signature) in &found.files {
            total = total.saturating_add(signature.size());
            let known = self.files.get(path).and_then(|file| file.signature);
            if known.as_ref() == Some(signature) {
                continue;
            }
            let text = if is_being_written(path) {
                Err(Unread::Changing)
            } else {
                read_text(path, *signature, total)
            };
            let shown = path.display().to_string();
            let (text, content, signature) = match text {
                Ok((text, signature)) => {
                    let content = Content::read(&shown, &text, &self.places.default_namespace);
                    (Some(text.into()), content, signature)
                }
                Err(Unread::Changing) => {
                    read.unsettled.push(path.clone());
                    continue;
                }
                Err(Unread::Problem(problem)) => (None, Content::broken(problem.in_file(shown)), *signature),
            };
            read.changed = true;
            self.files.insert(
                path.clone(),
                ReadFile {
                    signature: Some(signature),
                    text,
                    content,
                },
            );
        }
        read
    }

    fn put_together(&mut self, unreadable: &[PathBuf], now: Timestamp) -> Snapshot {
        let Self {
            places: _,
            identities,
            files,
            embedded,
            secret_files: _,
            secrets,
            problems,
            told: _,
        } = self;
        let manifests = files.iter().chain(embedded.iter()).map(|(path, file)| Part {
            shown: path.display().to_string().into(),
            absolute: file
                .signature
                .map_or_else(|| path.clone(), |_| absolute_of(path))
                .display()
                .to_string(),
            text: file.text.clone(),
            content: &file.content,
        });
        let secrets = secrets.iter().map(|(path, content)| Part {
            shown: path.display().to_string().into(),
            absolute: absolute_of(path).display().to_string(),
            text: None,
            content,
        });
        let parts: Vec<_> = manifests.chain(secrets).collect();
        let mut snapshot = Snapshot {
            objects: BTreeMap::new(),
            problems: problems.clone(),
            service_accounts: None,
        };
        snapshot.problems.extend(
            parts
                .iter()
                .flat_map(|part| part.content.problems.iter().cloned()),
        );

        let mut declared: BTreeMap<&ObjectKey, Vec<(&Part<'_>, &Declared)>> = BTreeMap::new();
        for part in &parts {
            for one in &part.content.declared {
                declared.entry(&one.key).or_default().push((part, one));
            }
        }
        for (key, places) in &declared {
            match choose(identities, key, places) {
                Some((part, one)) => {
                    let meta = identities.seen(one, &part.absolute, now);
                    let sourced = Sourced {
                        meta,
                        manifest: Some(one.manifest.clone()),
                        origin: Some(origin(part, one)),
                    };
                    snapshot.objects.insert((*key).clone(), sourced);
                    snapshot.problems.extend(twice(key, places, Some(part)));
                }
                None => snapshot.problems.extend(twice(key, places, None)),
            }
        }
        hold(identities, &parts, &declared, unreadable, &mut snapshot);
        identities.retain(|key| snapshot.objects.contains_key(key));
        snapshot
    }
}

/// Which of several declarations of an object counts: the only one, or the one in the file that declared it earlier.
fn choose<'a>(
    identities: &Identities,
    key: &ObjectKey,
    places: &[(&'a Part<'a>, &'a Declared)],
) -> Option<(&'a Part<'a>, &'a Declared)> {
    if let [only] = places {
        return Some(*only);
    }
    let earlier = identities.objects.get(key)?;
    let mut there = places.iter().filter(|(part, _)| part.absolute == earlier.file);
    match (there.next(), there.next()) {
        (Some(one), None) => Some(*one),
        _ => None,
    }
}

/// Tells of an object that is declared more than once: one problem for each place that does not count.
fn twice(key: &ObjectKey, places: &[(&Part<'_>, &Declared)], counts: Option<&Part<'_>>) -> Vec<Problem> {
    if places.len() < 2 {
        return Vec::new();
    }
    let shown: Vec<_> = places
        .iter()
        .map(|(part, one)| format!("{}:{}", part.shown, one.position.line))
        .collect();
    let losing = places
        .iter()
        .filter(|(part, _)| counts.is_none_or(|winner| !std::ptr::eq(*part, winner)));
    let outcome = match counts {
        Some(winner) => format!("the one in {} was there first and counts", winner.shown),
        None => "none of them counts".to_owned(),
    };
    losing
        .map(|(part, one)| {
            Problem::new(reasons::CONFLICT, format!("declared more than once, {outcome}"))
                .in_file(&*part.shown)
                .at(one.position)
                .of(key.clone())
                .field("metadata.name")
                .found(shown.join(", "))
                .allowed("one declaration of each name")
        })
        .collect()
}

/// Objects that were declared and are not now, though nobody removed them: their file can't be read or told, or they
/// are declared more than once.
fn hold(
    identities: &Identities,
    parts: &[Part<'_>],
    declared: &BTreeMap<&ObjectKey, Vec<(&Part<'_>, &Declared)>>,
    unreadable: &[PathBuf],
    snapshot: &mut Snapshot,
) {
    let incomplete: BTreeMap<&str, &Part<'_>> = parts
        .iter()
        .filter(|part| !part.content.complete)
        .map(|part| (part.absolute.as_str(), part))
        .collect();
    for (key, identity) in &identities.objects {
        if snapshot.objects.contains_key(key) {
            continue;
        }
        let part = incomplete.get(identity.file.as_str());
        let cut_off = unreadable
            .iter()
            .any(|path| Path::new(&identity.file).starts_with(path));
        if part.is_none() && !cut_off && !declared.contains_key(key) {
            continue;
        }
        let origin = part.map(|part| Origin {
            file: Arc::clone(&part.shown),
            position: part
                .content
                .problems
                .first()
                .map_or(Position { line: 1, column: 1 }, first_position),
            document: 0,
            prefix: String::new(),
            text: None,
        });
        let sourced = Sourced {
            meta: identity.meta.clone(),
            manifest: None,
            origin,
        };
        snapshot.objects.insert(key.clone(), sourced);
    }
}

fn first_position(problem: &Problem) -> Position {
    Position {
        line: problem.line.unwrap_or(1),
        column: problem.column.unwrap_or(1),
    }
}

fn origin(part: &Part<'_>, declared: &Declared) -> Origin {
    Origin {
        file: Arc::clone(&part.shown),
        position: declared.position,
        document: declared.document,
        prefix: declared.prefix.clone(),
        text: part.text.clone(),
    }
}

/// Why a file was not read.
enum Unread {
    /// It changed while it was read.
    Changing,
    Problem(Problem),
}

fn read_text(path: &Path, signature: Signature, total: u64) -> Result<(String, Signature), Unread> {
    let unreadable =
        |error: std::io::Error| Unread::Problem(Problem::new(UNREADABLE, format!("can't be read: {error}")));
    let too_large = |message: &str, found: u64, allowed: u64| {
        Unread::Problem(
            Problem::new(reasons::TOO_LARGE, message)
                .found(format!("{found} bytes"))
                .allowed(format!("{allowed} bytes")),
        )
    };
    if signature.size() > MAX_FILE_BYTES {
        return Err(too_large("a file too long", signature.size(), MAX_FILE_BYTES));
    }
    if total > MAX_TOTAL_BYTES {
        return Err(too_large(
            "too much in all files together",
            total,
            MAX_TOTAL_BYTES,
        ));
    }
    let mut file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Unread::Changing),
        file => file.map_err(unreadable)?,
    };
    let before = Signature::of(&file.metadata().map_err(unreadable)?);
    let mut bytes = Vec::new();
    (&mut file)
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    let after = Signature::of(&file.metadata().map_err(unreadable)?);
    if before != after || bytes.len() as u64 != after.size() {
        return Err(Unread::Changing);
    }
    String::from_utf8(bytes)
        .map(|text| (text, after))
        .map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let line = error
                .as_bytes()
                .iter()
                .take(valid)
                .filter(|byte| **byte == b'\n')
                .count();
            let line = u32::try_from(line).unwrap_or(u32::MAX).saturating_add(1);
            Unread::Problem(
                Problem::new(reasons::INVALID, "not UTF-8 text")
                    .at(Position { line, column: 1 })
                    .allowed("UTF-8"),
            )
        })
}

fn is_manifest(path: &Path) -> bool {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    ["yaml", "yml", "json"]
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
        && !KUSTOMIZATIONS.contains(&name)
}

/// The same path however the program was started.
fn absolute_of(path: &Path) -> PathBuf {
    absolute(path).unwrap_or_else(|_| path.to_owned())
}
