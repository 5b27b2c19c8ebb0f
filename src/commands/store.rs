//! `foreshore store verify|dump|compact`: the store of a broker that does not run.

use std::{
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use foreshore_broker::offline;
use foreshore_store::{
    StoreError, StoreOptions,
    offline::{ClosedStore, Contents, EncryptionState, Severity, Standing, Verification, compact},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    encryption::Encryption,
    status::Form,
    table::{bytes, harmless, table},
};

/// What to do with a store.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Read everything and say what is wrong; fails when something is damaged. The store is not changed: only its next
    /// start, or `compact --repair`, mends it.
    Verify(Verify),
    /// Print what the store holds as lines of JSON: sessions, subscriptions, wills, retained messages, receivers with
    /// their ledger, sources, the state store. The store is not changed; what can't be read becomes a line of the kind `damaged`.
    Dump(Dump),
    /// Write the store anew without what was deleted; with keys, all of it is encrypted with the active one. Needs room for
    /// the largest keyspace beside what is there.
    Compact(Compact),
}

/// What an encrypted store is opened with.
#[derive(clap::Args)]
struct Keys {
    /// Folder with the keys of an encrypted store.
    #[arg(long, value_name = "FOLDER", env = "FORESHORE_ENCRYPTION_KEYS")]
    encryption_keys: Option<PathBuf>,
}

impl Keys {
    fn options(&self) -> StoreOptions {
        StoreOptions {
            encryption_keys: self.encryption_keys.clone(),
            ..StoreOptions::default()
        }
    }
}

/// Which store, and where there is room.
#[derive(clap::Args)]
struct Quiet {
    /// Directory of the store: what `foreshore broker --data` names, or `roles/broker/NAMESPACE/NAME/store` in that of
    /// `foreshore up`. No broker may have it open.
    directory: PathBuf,
    /// Folder with room for a copy of the store's journals, up to some 200 MB; that of the system for temporary files
    /// where it is left out.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    keys: Keys,
}

#[derive(clap::Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    store: Quiet,
    #[command(flatten)]
    form: Form,
}

#[derive(clap::Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    store: Quiet,
    /// Print the entries of this queue instead, such as session/CLIENT or dataflow/NAMESPACE/NAME->SINK.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Print payloads too.
    #[arg(long)]
    payload: bool,
}

#[derive(clap::Args)]
pub(crate) struct Compact {
    /// Directory of the store. No broker may have it open.
    directory: PathBuf,
    /// Mend a damaged store first, as the next start of a broker would: what can't be read is set aside and counted as
    /// dropped (`corrupt`).
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    encryption: Encryption,
    #[command(flatten)]
    form: Form,
}

/// Does it.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Verify(options) => verify(&options),
        Command::Dump(options) => dump(&options),
        Command::Compact(options) => compact_store(&options),
    }
}

impl Quiet {
    /// Opens the store, and what has to be kept as long as it is open.
    fn open(&self) -> Result<(ClosedStore, TempDir)> {
        let scratch = match &self.scratch {
            Some(folder) => tempfile::tempdir_in(folder),
            None => tempfile::tempdir(),
        };
        let scratch = scratch.context("scratch folder")?;
        let store = ClosedStore::open(&self.directory, scratch.path(), &self.keys.options());
        let store =
            store.with_context(|| stores_below(&self.directory).unwrap_or_else(|| "open".to_owned()))?;
        Ok((store, scratch))
    }
}

/// An error, with where stores are if the directory is one above them.
fn hinted(error: StoreError, directory: &Path) -> anyhow::Error {
    match stores_below(directory) {
        Some(hint) => anyhow::Error::new(error).context(hint),
        None => error.into(),
    }
}

/// Where stores are in the data directory of a `foreshore up`, for whoever named that.
fn stores_below(data: &Path) -> Option<String> {
    let folders = |path: PathBuf| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let roles = folders(data.join("roles/broker")).into_iter().flat_map(folders);
    let stores = roles
        .map(|role| role.join("store"))
        .filter(|store| store.is_dir());
    let stores: Vec<_> = stores.map(|store| store.display().to_string()).collect();
    (!stores.is_empty()).then(|| format!("stores of this data directory are {}", stores.join(", ")))
}

fn verify(options: &Verify) -> Result<()> {
    let (store, _scratch) = options.store.open()?;
    let found = offline::verify(&store)?;
    if options.form.is_text() {
        print!("{}", text(&found));
    } else {
        println!("{}", serde_json::to_string_pretty(&found)?);
    }
    if !found.is_sound() {
        bail!("the store is damaged: {} findings", found.damage);
    }
    Ok(())
}

/// What was found, for people.
fn text(found: &Verification) -> String {
    let Verification {
        closed_in_order,
        commits,
        encryption,
        journals,
        keyspaces,
        ledger,
        findings,
        damage,
        minor,
    } = found;
    let ended = if *closed_in_order {
        "closed in order"
    } else {
        "not closed in order"
    };
    let mut text = format!("{commits} commits, {ended}\n");
    if let Some(EncryptionState {
        key,
        current,
        older,
        plain,
    }) = encryption
    {
        text.push_str(&format!(
            "encrypted with key {}, no other one is needed; rows of the current key of the store: {current}, of older \
             ones: {older}, not encrypted: {plain}\n",
            harmless(key)
        ));
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    for journal in journals {
        let damaged = if journal.lost > 0 {
            format!("{} lost", journal.lost)
        } else {
            "0".to_owned()
        };
        rows.push(vec![
            journal.file.clone(),
            journal.batches.to_string(),
            "-".to_owned(),
            damaged,
            "-".to_owned(),
        ]);
    }
    for keyspace in keyspaces {
        rows.push(vec![
            keyspace.name.to_owned(),
            keyspace.rows.to_string(),
            bytes(keyspace.bytes),
            keyspace.damaged.to_string(),
            keyspace.unreadable.to_string(),
        ]);
    }
    text.push_str(&table(&["WHAT", "ROWS", "BYTES", "DAMAGED", "UNREADABLE"], &rows));
    text.push_str(&format!(
        "ledger of {} paths: received {} = delivered {} + waiting {} + dead-lettered {} + dropped {}\n",
        ledger.paths, ledger.received, ledger.delivered, ledger.waiting, ledger.dead_lettered, ledger.dropped
    ));
    for finding in findings {
        let severity = match finding.severity {
            Severity::Damage => "DAMAGE",
            Severity::Minor => "minor",
        };
        let place = [finding.place.as_str(), finding.key.as_str()].join(" ");
        text.push_str(&format!(
            "{severity}  {}: {}\n",
            harmless(place.trim_end()),
            harmless(&finding.found)
        ));
    }
    let untold = (damage + minor).saturating_sub(findings.len() as u64);
    if untold > 0 {
        text.push_str(&format!("{untold} more findings\n"));
    }
    let verdict = if found.is_sound() { "sound" } else { "damaged" };
    text.push_str(&format!("{verdict}: {damage} of damage, {minor} minor\n"));
    text
}

fn dump(options: &Dump) -> Result<()> {
    let (store, _scratch) = options.store.open()?;
    let mut out = BufWriter::new(io::stdout().lock());
    match print(&store, options, &mut out).and_then(|()| Ok(out.flush()?)) {
        // Whoever reads has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        printed => printed,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn print(store: &ClosedStore, options: &Dump, out: &mut impl Write) -> Result<()> {
    let standing = store.standing().unwrap_or_else(|error| {
        // What else can be read is told all the same.
        eprintln!("where the store stands is not known, ages are wrong: {error}");
        Standing::default()
    });
    let each = |contents: Contents, out: &mut dyn Write| -> Result<()> {
        let mut printed = Ok(());
        store.each(contents, &mut |row| {
            let line: Value = offline::describe(&row, standing.now, options.payload);
            printed = writeln!(out, "{line}");
            if printed.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(printed?)
    };
    if let Some(name) = &options.queue {
        let receiver = store.find_receiver(name)?;
        let receiver =
            receiver.with_context(|| format!("no queue has the name {name:?}: `dump` lists receivers"))?;
        return each(Contents::Queue(receiver), out);
    }
    let line = json!({
        "kind": "store",
        "closedInOrder": standing.closed_in_order,
        "commits": standing.commits,
        "nextId": standing.next_id,
        "clockMilliseconds": standing.now.0,
    });
    writeln!(out, "{line}")?;
    for contents in [
        Contents::Sessions,
        Contents::Wills,
        Contents::Retained,
        Contents::Receivers,
        Contents::Sources,
        Contents::State,
        Contents::Ended,
    ] {
        each(contents, out)?;
    }
    Ok(())
}

fn compact_store(options: &Compact) -> Result<()> {
    let Compact {
        directory,
        repair,
        encryption,
        form,
    } = options;
    let compacted = compact(directory, &encryption.store_options(), *repair);
    let compacted = compacted.map_err(|error| match error {
        error @ StoreError::Damaged { .. } => anyhow::Error::new(error)
            .context("`foreshore store verify` names what is damaged, --repair mends it first"),
        error => hinted(error, directory),
    })?;
    if form.is_text() {
        println!(
            "{} before, {} after",
            bytes(compacted.bytes_before),
            bytes(compacted.bytes_after)
        );
    } else {
        println!("{}", serde_json::to_string(&compacted)?);
    }
    Ok(())
}
