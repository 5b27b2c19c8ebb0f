//! What was begun, and how it ended: a repeat is answered with the first outcome, and never carried out twice.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use foreshore_record::{CommandError, CommandErrorCode, CommandOutcome};
use foreshore_tls::Fingerprint;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{error, warn};

/// Most commands remembered at a time.
const MAX_ENTRIES: usize = 10_000;
/// Largest outcome that is kept, in bytes.
const LARGEST_OUTCOME: usize = 64 * 1024;
/// Most bytes of outcomes that are kept.
const MAX_BYTES: usize = 32 << 20;
/// How long a command is remembered after its deadline: whoever repeats it does so soon.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(1);
/// Longest line that is read.
const LONGEST_LINE: u64 = 256 * 1024;

/// Remembers commands by their key, in memory and in a file.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    entries: Mutex<Entries>,
    log: Arc<Mutex<Log>>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<String, Entry>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Of the input: another input under the same key is another command.
    digest: Fingerprint,
    expires: Timestamp,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// It runs now.
    Running(watch::Receiver<Option<CommandOutcome>>),
    /// It was begun in an earlier life, and its outcome is not known.
    Begun,
    Done(CommandOutcome),
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    digest: Fingerprint,
    expires: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outcome: Option<CommandOutcome>,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    lines: usize,
}

/// What is known of a command that is about to begin.
pub(crate) enum Begin {
    /// Nothing: it may begin, and is recorded as begun.
    New(Permit),
    /// It ran, or runs: this is, or will be, its outcome.
    Repeat(Outcome),
    /// It was begun in an earlier life, and its outcome is not known. An action that may be done twice may begin.
    Orphan(Permit),
    /// The key belongs to a command with another input.
    Taken,
    /// Too many commands are remembered.
    Full,
    /// It is no repeat, and can't begin now; nothing is recorded.
    NotReady(CommandError),
}

/// The outcome of a command that may still run.
pub(crate) struct Outcome(State);

/// The right to carry out a command. Dropped without an outcome, the command stays begun.
#[derive(Debug)]
pub(crate) struct Permit {
    journal: Journal,
    key: String,
    digest: Fingerprint,
    expires: Timestamp,
    durable: bool,
    done: watch::Sender<Option<CommandOutcome>>,
    finished: bool,
}

impl Journal {
    /// Opens the journal in a directory, and forgets what is old. Blocks on files.
    ///
    /// # Errors
    /// When the file can't be read or written.
    pub(crate) fn open(directory: &Path, now: Timestamp) -> io::Result<Self> {
        let path = directory.join("commands.journal");
        let entries = read(&path, now)?;
        let log = Log::rewrite(path, &entries)?;
        let inner = Inner {
            entries: Mutex::new(entries),
            log: Arc::new(Mutex::new(log)),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Asks whether a command may begin, and records that it does; durably before this returns, if `durable`. `ready`
    /// tells whether one that is no repeat can begin at all.
    ///
    /// # Errors
    /// When it can't be recorded; it must not begin then.
    pub(crate) async fn begin(
        &self,
        key: String,
        input: &[u8],
        deadline: Timestamp,
        durable: bool,
        ready: impl FnOnce() -> Result<(), CommandError>,
    ) -> io::Result<Begin> {
        self.begin_at(key, input, deadline, durable, ready, Timestamp::now())
            .await
    }

    async fn begin_at(
        &self,
        key: String,
        input: &[u8],
        deadline: Timestamp,
        durable: bool,
        ready: impl FnOnce() -> Result<(), CommandError>,
        now: Timestamp,
    ) -> io::Result<Begin> {
        let digest = Fingerprint::of(input);
        let expires = deadline.checked_add(REMEMBERED).unwrap_or(Timestamp::MAX);
        let (permit, orphan) = {
            let mut entries = self.inner.entries.lock();
            let known = entries
                .by_key
                .get(&key)
                .filter(|entry| entry.expires > now)
                .cloned();
            let orphan = match known {
                Some(entry) if entry.digest != digest => return Ok(Begin::Taken),
                Some(Entry {
                    state: State::Begun, ..
                }) => true,
                Some(entry) => return Ok(Begin::Repeat(Outcome(entry.state))),
                None => false,
            };
            if let Err(error) = ready() {
                return Ok(Begin::NotReady(error));
            }
            if !orphan && !entries.make_room(now) {
                return Ok(Begin::Full);
            }
            let (done, outcome) = watch::channel(None);
            entries.insert(
                key.clone(),
                Entry {
                    digest,
                    expires,
                    state: State::Running(outcome),
                },
            );
            let permit = Permit {
                journal: self.clone(),
                key,
                digest,
                expires,
                durable,
                done,
                finished: false,
            };
            (permit, orphan)
        };
        if orphan {
            return Ok(Begin::Orphan(permit));
        }
        if durable && let Err(error) = self.append(permit.line(None)).await {
            permit.forget();
            return Err(error);
        }
        Ok(Begin::New(permit))
    }

    async fn append(&self, line: Line) -> io::Result<()> {
        let (log, journal) = (Arc::clone(&self.inner.log), self.clone());
        let append = move || {
            let mut log = log.lock();
            if log.lines > 2 * MAX_ENTRIES {
                let entries = journal.inner.entries.lock().clone_known();
                let path = log.path.clone();
                *log = Log::rewrite(path, &entries)?;
            }
            log.append(&line)
        };
        tokio::task::spawn_blocking(append)
            .await
            .map_err(io::Error::other)?
    }
}

impl Permit {
    /// Records the outcome, and tells it to those who repeated the command meanwhile.
    pub(crate) async fn finish(mut self, outcome: CommandOutcome) {
        self.finished = true;
        let kept = keepable(outcome.clone());
        self.journal.inner.entries.lock().insert(
            self.key.clone(),
            Entry {
                digest: self.digest,
                expires: self.expires,
                state: State::Done(kept.clone()),
            },
        );
        self.done.send_replace(Some(outcome));
        if self.durable
            && let Err(error) = self.journal.append(self.line(Some(kept))).await
        {
            // A repeat in this life is answered from memory; one in the next is answered with Unknown.
            error!(%error, "outcome of a command can't be recorded");
        }
    }

    /// Takes the record back: the command did not begin.
    fn forget(mut self) {
        self.finished = true;
        self.journal.inner.entries.lock().remove(&self.key);
    }

    fn line(&self, outcome: Option<CommandOutcome>) -> Line {
        Line {
            key: self.key.clone(),
            digest: self.digest,
            expires: self.expires,
            outcome,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.finished {
            let entry = Entry {
                digest: self.digest,
                expires: self.expires,
                state: State::Begun,
            };
            self.journal.inner.entries.lock().insert(self.key.clone(), entry);
        }
    }
}

impl Outcome {
    /// Waits for the outcome; `None` when it will never be known.
    pub(crate) async fn get(self) -> Option<CommandOutcome> {
        match self.0 {
            State::Done(outcome) => Some(outcome),
            State::Begun => None,
            State::Running(mut running) => running.wait_for(Option::is_some).await.ok()?.clone(),
        }
    }
}

/// An outcome that is too large is kept without its content.
fn keepable(outcome: CommandOutcome) -> CommandOutcome {
    if size(&outcome) <= LARGEST_OUTCOME {
        return outcome;
    }
    let message = "it was carried out; its output was too large to be kept for a repeat";
    Err(CommandError::new(CommandErrorCode::Unknown, message))
}

fn size(outcome: &CommandOutcome) -> usize {
    serde_json::to_vec(outcome).map_or(usize::MAX, |text| text.len())
}

impl Entries {
    fn insert(&mut self, key: String, entry: Entry) {
        self.remove(&key);
        self.bytes += entry.weight();
        self.by_key.insert(key, entry);
    }

    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.by_key.remove(key) {
            self.bytes -= entry.weight();
        }
    }

    /// Makes room for one more; false when everything must still be remembered.
    fn make_room(&mut self, now: Timestamp) -> bool {
        if self.has_room() {
            return true;
        }
        let old: Vec<String> = self
            .by_key
            .iter()
            .filter(|(_, entry)| entry.expires <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in old {
            self.remove(&key);
        }
        self.has_room()
    }

    fn has_room(&self) -> bool {
        self.by_key.len() < MAX_ENTRIES && self.bytes < MAX_BYTES
    }

    /// What the file has to hold.
    fn clone_known(&self) -> Self {
        Self {
            by_key: self.by_key.clone(),
            bytes: self.bytes,
        }
    }
}

impl Entry {
    fn weight(&self) -> usize {
        match &self.state {
            State::Done(outcome) => size(outcome),
            State::Running(_) | State::Begun => 0,
        }
    }
}

impl Log {
    /// Writes a new file with what is known, in place of the old one.
    fn rewrite(path: PathBuf, entries: &Entries) -> io::Result<Self> {
        let mut content = Vec::new();
        for (
            key,
            Entry {
                digest,
                expires,
                state,
            },
        ) in &entries.by_key
        {
            let outcome = match state {
                State::Done(outcome) => Some(outcome.clone()),
                State::Running(_) | State::Begun => None,
            };
            let line = Line {
                key: key.clone(),
                digest: *digest,
                expires: *expires,
                outcome,
            };
            serde_json::to_writer(&mut content, &line)?;
            content.push(b'\n');
        }
        foreshore_tls::write_private(&path, &content).map_err(io::Error::other)?;
        let file = OpenOptions::new().append(true).open(&path)?;
        Ok(Self {
            path,
            file,
            lines: entries.by_key.len(),
        })
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        self.file.sync_data()?;
        self.lines += 1;
        Ok(())
    }
}

fn read(path: &Path, now: Timestamp) -> io::Result<Entries> {
    let mut entries = Entries::default();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(entries),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    let mut text = Vec::new();
    let mut damaged = 0_u64;
    loop {
        text.clear();
        if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text)? == 0 {
            break;
        }
        match serde_json::from_slice::<Line>(&text) {
            Ok(line) if line.expires > now => {
                let state = line.outcome.map_or(State::Begun, State::Done);
                entries.insert(
                    line.key,
                    Entry {
                        digest: line.digest,
                        expires: line.expires,
                        state,
                    },
                );
            }
            Ok(_) => {}
            // The last line is torn when the power failed while it was written: that command had not begun.
            Err(_) => damaged += 1,
        }
    }
    if damaged > 0 {
        warn!(path = %path.display(), lines = damaged, "journal of commands has lines that can't be read");
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn later(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    async fn begin_at(journal: &Journal, key: &str, input: &[u8], now: Timestamp, durable: bool) -> Begin {
        let deadline = now.checked_add(SignedDuration::from_secs(10)).unwrap();
        journal
            .begin_at(key.to_owned(), input, deadline, durable, || Ok(()), now)
            .await
            .unwrap()
    }

    async fn begin(journal: &Journal, key: &str, input: &[u8]) -> Begin {
        begin_at(journal, key, input, now(), true).await
    }

    #[tokio::test]
    async fn a_repeat_is_answered_with_the_first_outcome_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), now()).unwrap();
        let Begin::New(permit) = begin(&journal, "k", b"1").await else {
            panic!()
        };
        let Begin::Repeat(early) = begin(&journal, "k", b"1").await else {
            panic!()
        };
        assert!(matches!(begin(&journal, "k", b"2").await, Begin::Taken));
        permit.finish(Ok(json!(42))).await;
        assert_eq!(early.get().await, Some(Ok(json!(42))));

        for _ in 0..2 {
            let journal = Journal::open(directory.path(), now()).unwrap();
            let Begin::Repeat(outcome) = begin(&journal, "k", b"1").await else {
                panic!()
            };
            assert_eq!(outcome.get().await, Some(Ok(json!(42))));
        }
        let journal = Journal::open(directory.path(), later(10 + 3600)).unwrap();
        let again = begin_at(&journal, "k", b"1", later(10 + 3600), true).await;
        assert!(matches!(again, Begin::New(_)), "an old command was remembered");
    }

    #[tokio::test]
    async fn what_was_begun_without_an_outcome_is_an_orphan() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), now()).unwrap();
        let Begin::New(permit) = begin(&journal, "k", b"1").await else {
            panic!()
        };
        let Begin::Repeat(waiting) = begin(&journal, "k", b"1").await else {
            panic!()
        };
        drop(permit);
        assert_eq!(waiting.get().await, None);
        assert!(matches!(begin(&journal, "k", b"1").await, Begin::Orphan(_)));
        // The process died meanwhile, in the middle of a line.
        let path = directory.path().join("commands.journal");
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"key\":\"x\",")
            .unwrap();
        let journal = Journal::open(directory.path(), now()).unwrap();
        assert!(matches!(begin(&journal, "k", b"1").await, Begin::Orphan(_)));
        assert!(matches!(begin(&journal, "x", b"1").await, Begin::New(_)));
    }

    #[tokio::test]
    async fn what_can_not_begin_is_not_recorded_and_what_is_volatile_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), now()).unwrap();
        let Begin::New(permit) = begin_at(&journal, "v", b"", now(), false).await else {
            panic!()
        };
        permit.finish(Ok(json!(null))).await;
        assert_eq!(
            std::fs::read(directory.path().join("commands.journal")).unwrap(),
            b""
        );
        let late = || Err(CommandError::new(CommandErrorCode::DeadlineExceeded, "late"));
        let refused = journal
            .begin_at("k".into(), b"", later(10), true, late, now())
            .await
            .unwrap();
        assert!(matches!(refused, Begin::NotReady(_)));
        assert!(matches!(begin(&journal, "k", b"").await, Begin::New(_)));
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path(), now()).unwrap();
        for number in 0..MAX_ENTRIES {
            let begun = begin_at(&journal, &number.to_string(), b"", now(), false).await;
            let Begin::New(permit) = begun else { panic!() };
            permit.finish(Ok(json!(1))).await;
        }
        assert!(matches!(
            begin_at(&journal, "one more", b"", now(), false).await,
            Begin::Full
        ));
        let room = begin_at(&journal, "one more", b"", later(2 * 3600), false).await;
        assert!(matches!(room, Begin::New(_)));
        let large = keepable(Ok(json!("x".repeat(LARGEST_OUTCOME))));
        assert_eq!(large.unwrap_err().code, CommandErrorCode::Unknown);
    }
}
