//! Lines on their way to a file or standard output, written by a thread of its own.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use foreshore_runtime::metrics::prometheus_client::metrics::counter::Counter;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::{AuditDestination, AuditError, Event};

/// Lines that wait to be written. Each has a few texts of bounded length.
const WAITING: usize = 4096;

/// Longest time until it is told that lines were left out, while nothing else is.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// An audit log that is written.
#[derive(Debug)]
pub(super) struct Stream {
    broker: String,
    destination: AuditDestination,
    /// `None` when it has ended.
    sender: Mutex<Option<SyncSender<Vec<u8>>>>,
    left_out: LeftOut,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Lines that were left out for want of room.
#[derive(Clone, Debug)]
struct LeftOut {
    /// Since that was told last.
    untold: Arc<AtomicU64>,
    /// At all.
    counter: Counter,
}

impl LeftOut {
    fn add(&self, lines: u64) {
        self.untold.fetch_add(lines, Ordering::Relaxed);
        self.counter.inc_by(lines);
    }
}

impl Stream {
    /// Begins to write.
    pub(super) fn open(
        broker: &str,
        destination: AuditDestination,
        counter: Counter,
    ) -> Result<Self, AuditError> {
        let output: Box<dyn Output> = match &destination {
            AuditDestination::Stdout => Box::new(io::stdout()),
            AuditDestination::File { path, max_bytes } => {
                let file = LogFile::open(path.clone(), *max_bytes);
                Box::new(file.map_err(|source| AuditError {
                    path: path.clone(),
                    source,
                })?)
            }
        };
        Self::start(broker, destination, output, counter)
    }

    fn start(
        broker: &str,
        destination: AuditDestination,
        output: Box<dyn Output>,
        counter: Counter,
    ) -> Result<Self, AuditError> {
        let (sender, receiver) = sync_channel(WAITING);
        let left_out = LeftOut {
            untold: Arc::default(),
            counter,
        };
        let writer = Writer {
            broker: broker.to_owned(),
            output,
            left_out: left_out.clone(),
            fails: false,
        };
        let thread = std::thread::Builder::new()
            .name("broker-audit".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(|source| AuditError {
                path: PathBuf::new(),
                source,
            })?;
        Ok(Self {
            broker: broker.to_owned(),
            destination,
            sender: Mutex::new(Some(sender)),
            left_out,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(super) fn destination(&self) -> &AuditDestination {
        &self.destination
    }

    /// Tells something, or counts that it could not be told.
    pub(super) fn tell(&self, event: &Event<'_>) {
        let line = event.line(&self.broker, Timestamp::now());
        let sender = self.sender.lock();
        let sent = sender.as_ref().map(|sender| sender.try_send(line));
        if !matches!(sent, Some(Ok(()))) {
            self.left_out.add(1);
        }
    }

    /// Waits until everything that was told is written.
    pub(super) async fn close(&self) {
        drop(self.sender.lock().take());
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        let joined = tokio::task::spawn_blocking(move || thread.join());
        if !matches!(joined.await, Ok(Ok(()))) {
            tracing::error!("the thread of the audit log panicked");
        }
    }
}

/// Where lines end.
trait Output: Send {
    /// Adds lines; when it fails, none or a part of them is there.
    fn put(&mut self, lines: &[u8]) -> io::Result<()>;
}

impl Output for io::Stdout {
    fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut stdout = self.lock();
        stdout.write_all(lines)?;
        stdout.flush()
    }
}

/// A file that makes way for another when it has grown.
struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    file: File,
    bytes: u64,
}

impl LogFile {
    fn open(path: PathBuf, max_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path,
            max_bytes,
            file,
            bytes,
        })
    }
}

/// Name of the file that was set aside.
fn earlier(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl Output for LogFile {
    fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        let added = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.bytes > 0 && self.bytes.saturating_add(added) > self.max_bytes {
            std::fs::rename(&self.path, earlier(&self.path))?;
            *self = Self::open(self.path.clone(), self.max_bytes)?;
        }
        if let Err(error) = self.file.write_all(lines) {
            // Half a line would spoil the next one.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes = self.bytes.saturating_add(added);
        Ok(())
    }
}

struct Writer {
    broker: String,
    output: Box<dyn Output>,
    left_out: LeftOut,
    fails: bool,
}

impl Writer {
    /// Writes until nobody can tell anything any more.
    fn run(mut self, lines: &Receiver<Vec<u8>>) {
        loop {
            match lines.recv_timeout(TELL_AFTER) {
                Ok(line) => self.put(&line, 1),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.tell_left_out();
                    return;
                }
            }
            self.tell_left_out();
        }
    }

    /// Tells how many lines were left out since that was told last.
    fn tell_left_out(&mut self) {
        let left_out = self.left_out.untold.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            let event = Event {
                left_out,
                detail: Some("the audit log could not be written as fast as it was told"),
                ..Event::default()
            };
            let line = event.line(&self.broker, Timestamp::now());
            if !self.try_put(&line) {
                self.left_out.untold.fetch_add(left_out, Ordering::Relaxed);
            }
        }
    }

    fn put(&mut self, line: &[u8], lines: u64) {
        if !self.try_put(line) {
            self.left_out.add(lines);
        }
    }

    /// Writes a line; tells the log once when that does not work, and once when it works again.
    fn try_put(&mut self, line: &[u8]) -> bool {
        match self.output.put(line) {
            Ok(()) => {
                if std::mem::take(&mut self.fails) {
                    tracing::info!("the audit log is written again");
                }
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.fails, true) {
                    tracing::warn!(%error, "the audit log can't be written; lines are left out and counted");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use serde_json::Value;

    use super::*;
    use crate::audit::What;

    /// An output that keeps its thread waiting until it is told to go on.
    struct Held {
        go_on: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Output for Held {
        fn put(&mut self, lines: &[u8]) -> io::Result<()> {
            let _gone = self.go_on.recv();
            let _gone = self.written.send(lines.to_vec());
            Ok(())
        }
    }

    fn read(text: &[u8]) -> Vec<Value> {
        let lines = std::str::from_utf8(text).unwrap().lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn nobody_waits_for_a_slow_output_and_what_is_left_out_is_told() {
        let (go_on, waiting) = channel();
        let (written, lines) = channel();
        let output = Box::new(Held {
            go_on: waiting,
            written,
        });
        let counter = Counter::default();
        let stream = Stream::start("a/b", AuditDestination::Stdout, output, counter.clone()).unwrap();
        let event = Event {
            event: What::Connected,
            ..Event::default()
        };
        // One may be under way already.
        for _ in 0..WAITING + 101 {
            stream.tell(&event);
        }
        let left_out = counter.get();
        assert!((100..=101).contains(&left_out), "{left_out}");
        drop(go_on);
        stream.close().await;
        let lines: Vec<_> = lines.iter().flat_map(|line| read(&line)).collect();
        let told: u64 = lines.iter().filter_map(|line| line["leftOut"].as_u64()).sum();
        let connected = lines.iter().filter(|line| line["event"] == "connected").count();
        assert_eq!(told, left_out);
        assert_eq!(u64::try_from(connected).unwrap() + told, 4096 + 101);
        // What comes after its end is counted too.
        stream.tell(&event);
        assert_eq!(counter.get(), left_out + 1);
    }

    #[tokio::test]
    async fn a_file_that_has_grown_is_set_aside_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let max_bytes = 4096;
        let destination = || AuditDestination::File {
            path: path.clone(),
            max_bytes,
        };
        let open = || Stream::open("a/b", destination(), Counter::default()).unwrap();
        for part in 0..2 {
            let stream = open();
            for number in 0..100 {
                let name = format!("{part}-{number}");
                stream.tell(&Event {
                    event: What::ListenerOpened,
                    name: Some(&name),
                    ..Event::default()
                });
            }
            stream.close().await;
        }
        let (now, before) = (
            std::fs::read(&path).unwrap(),
            std::fs::read(earlier(&path)).unwrap(),
        );
        assert!(now.len() <= 4096 && before.len() <= 4096);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        let lines = [read(&before), read(&now)].concat();
        assert_eq!(lines.last().unwrap()["name"], "1-99");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        // A folder is no file.
        let destination = AuditDestination::File {
            path: directory.path().to_owned(),
            max_bytes,
        };
        let error = Stream::open("a/b", destination, Counter::default()).unwrap_err();
        assert!(error.to_string().contains("can't be written"), "{error}");
    }
}
