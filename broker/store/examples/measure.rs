//! Measures the store: `cargo run --release -p foreshore-store --example measure -- DIRECTORY [SECONDS]`.
//!
//! Messages of 300 bytes, all through the committer, so every rate is a durable one. One machine, one run: compare
//! lines with each other, not with another machine's.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use foreshore_record::{Outcome, Qos, Record, TopicName};
use foreshore_store::{
    Applied, BrokerClock, Committer, CommitterHandle, CommitterOptions, EntryFlags, Limits, Message,
    Operation, Publish, ReadRange, ReceiverId, Settlement, SharedStore, StoreError, StoreOptions,
};

const PAYLOAD_LEN: usize = 300;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: measure DIRECTORY [SECONDS]")?;
    let seconds = arguments.next().map_or(Ok(5), |seconds| seconds.parse())?;
    let span = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()?;
    let directory = Path::new(&directory);
    for (publishers, batch, receivers) in [(1, 1, 1), (64, 1, 1), (16, 16, 1), (16, 64, 1), (16, 16, 10)] {
        let bench = Bench::open(&directory.join("publish"), &runtime, receivers)?;
        let rate = runtime.block_on(bench.publish_for(span, publishers, batch))?;
        println!(
            "publish: {publishers} publishers, {batch} a batch, {receivers} receivers: {rate}, {}",
            memory()
        );
        bench.close(batch == 64)?;
    }
    let bench = Bench::open(&directory.join("steady"), &runtime, 1)?;
    let rate = runtime.block_on(bench.steady_for(2 * span))?;
    println!("publish, read and settle at once: {rate}, {}", memory());
    bench.close(true)?;
    for (name, chunk, reverse) in [
        ("in order", 1000, false),
        ("in order", 20_000, false),
        ("reverse", 20_000, true),
    ] {
        let bench = Bench::open(&directory.join("settle"), &runtime, 1)?;
        let (rate, count) = runtime.block_on(bench.settle_backlog(200_000, chunk, reverse))?;
        println!("settle {count} {name}, {chunk} a batch: {rate}, {}", memory());
        bench.close(chunk == 1000)?;
    }
    Ok(())
}

struct Bench {
    store: SharedStore,
    committer: Committer,
    receivers: Vec<ReceiverId>,
    directory: std::path::PathBuf,
}

/// Messages in a time, with the latencies of commits.
struct Rate {
    messages: u64,
    elapsed: Duration,
    latencies: Vec<Duration>,
    /// Processor time of all threads, measuring included.
    processor: Duration,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.messages as f64 / self.elapsed.as_secs_f64();
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let at = |part: usize| {
            latencies
                .get(latencies.len() * part / 100)
                .copied()
                .unwrap_or_default()
        };
        let each = self.processor.as_secs_f64() * 1e6 / self.messages.max(1) as f64;
        write!(
            formatter,
            "{rate:.0}/s, {each:.1} us of processor each, commit p50 {:.1?} p99 {:.1?}",
            at(50),
            at(99)
        )
    }
}

impl Bench {
    fn open(directory: &Path, runtime: &tokio::runtime::Runtime, receivers: u64) -> Result<Self, Failure> {
        if directory.exists() {
            std::fs::remove_dir_all(directory)?;
        }
        let (store, _) = foreshore_store::open(directory, &StoreOptions::default())?;
        let clock = BrokerClock::starting_at(store.position().now);
        let committer = Committer::start(Arc::clone(&store), clock, CommitterOptions::default())?;
        let put = |index| Operation::PutReceiver {
            name: format!("dataflow/{index}"),
            limits: Limits::default(),
        };
        let applied = runtime.block_on(committer.handle().commit((0..receivers).map(put).collect()))?;
        let receivers = applied
            .iter()
            .filter_map(|applied| match applied {
                Applied::Receiver { receiver, .. } => Some(*receiver),
                _ => None,
            })
            .collect();
        Ok(Self {
            store,
            committer,
            receivers,
            directory: directory.to_owned(),
        })
    }

    fn close(self, show_disk: bool) -> Result<(), Failure> {
        self.committer.stop()?;
        drop(self.store);
        if show_disk {
            println!("  on disk: {} MB", disk(&self.directory)? >> 20);
            let begin = Instant::now();
            let (store, report) = foreshore_store::open(&self.directory, &StoreOptions::default())?;
            println!(
                "  opened again in {:.0?} (clean: {})",
                begin.elapsed(),
                report.clean
            );
            drop(store);
        }
        std::fs::remove_dir_all(self.directory)?;
        Ok(())
    }

    async fn publish_for(&self, span: Duration, publishers: usize, batch: usize) -> Result<Rate, Failure> {
        let (begin, busy) = (Instant::now(), processor());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..publishers {
            let (handle, receivers) = (self.committer.handle(), self.receivers.clone());
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                while begin.elapsed() < span {
                    let asked = Instant::now();
                    handle.commit(messages(batch, &receivers)).await?;
                    latencies.push(asked.elapsed());
                }
                Ok::<_, StoreError>(latencies)
            });
        }
        let mut latencies = Vec::new();
        for task in tasks.join_all().await {
            latencies.extend(task?);
        }
        let messages = (latencies.len() * batch) as u64;
        Ok(Rate {
            messages,
            elapsed: begin.elapsed(),
            latencies,
            processor: processor() - busy,
        })
    }

    /// Publishers on one side, one reader on the other, which settles pages of 1,000.
    async fn steady_for(&self, span: Duration) -> Result<Rate, Failure> {
        let (settled, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let reader = tokio::spawn(settle_all(
            self.committer.handle(),
            Arc::clone(&self.store),
            self.receivers[0],
            Arc::clone(&settled),
            Arc::clone(&done),
        ));
        let published = self.publish_for(span, 16, 16).await?;
        let at_end = settled.load(Ordering::SeqCst);
        done.store(true, Ordering::SeqCst);
        reader.await??;
        println!(
            "  published {published}, waiting at the end: {}",
            published.messages - at_end
        );
        Ok(Rate {
            messages: at_end,
            ..published
        })
    }

    async fn settle_backlog(
        &self,
        count: usize,
        chunk: usize,
        reverse: bool,
    ) -> Result<(Rate, usize), Failure> {
        let handle = self.committer.handle();
        for _ in 0..count / 100 {
            drop(handle.submit(messages(100, &self.receivers)).await?);
        }
        handle.commit(Vec::new()).await?;
        let mut ids: Vec<u64> = (1..=count as u64).collect();
        if reverse {
            ids.reverse();
        }
        let (begin, busy, mut latencies) = (Instant::now(), processor(), Vec::new());
        for chunk in ids.chunks(chunk) {
            let asked = Instant::now();
            handle
                .commit(vec![settle(self.receivers[0], chunk.iter().copied())])
                .await?;
            latencies.push(asked.elapsed());
        }
        let processor = processor() - busy;
        Ok((
            Rate {
                messages: count as u64,
                elapsed: begin.elapsed(),
                latencies,
                processor,
            },
            count,
        ))
    }
}

async fn settle_all(
    handle: CommitterHandle,
    store: SharedStore,
    receiver: ReceiverId,
    settled: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
) -> Result<(), StoreError> {
    let mut range = ReadRange {
        after: 0,
        before: None,
        max_entries: 1000,
        max_bytes: usize::MAX,
    };
    while !done.load(Ordering::SeqCst) {
        let page = store.read(receiver, range, handle.clock().now())?;
        let Some(last) = page.entries.last() else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        range.after = last.id;
        let count = page.entries.len() as u64;
        handle
            .commit(vec![settle(receiver, page.entries.iter().map(|entry| entry.id))])
            .await?;
        settled.fetch_add(count, Ordering::SeqCst);
    }
    Ok(())
}

fn settle(receiver: ReceiverId, ids: impl Iterator<Item = u64>) -> Operation {
    let settlements = ids
        .map(|id| Settlement {
            id,
            emitted: 1,
            outcome: Outcome::Delivered,
        })
        .collect();
    Operation::Settle {
        receiver,
        epoch: 0,
        settlements,
    }
}

fn messages(count: usize, receivers: &[ReceiverId]) -> Vec<Operation> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let publish = |_| {
        // Not compressible, as packed values are not.
        let mut random = NUMBER
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            | 1;
        let mut payload = Vec::with_capacity(PAYLOAD_LEN);
        while payload.len() < PAYLOAD_LEN {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            payload.extend_from_slice(&random.to_le_bytes());
        }
        payload.truncate(PAYLOAD_LEN);
        let topic = TopicName::new("foreshore/data/plant/line-1/telemetry").ok()?;
        let message = Message {
            record: Arc::new(Record::new(topic, payload)),
            expires_at: None,
        };
        let flags = EntryFlags {
            qos: Qos::AtLeastOnce,
            ..EntryFlags::default()
        };
        let receivers = receivers
            .iter()
            .map(|receiver| (*receiver, flags.clone()))
            .collect();
        Some(Operation::Publish(Publish {
            message,
            receivers,
            update_retained: false,
            receipt: None,
        }))
    };
    (0..count).filter_map(publish).collect()
}

/// Processor time of this process, in the system's ticks of 10 ms.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2);
    Duration::from_millis(10) * fields.filter_map(|ticks| ticks.parse::<u32>().ok()).sum::<u32>()
}

/// Memory of this process, measuring included.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or("?")
            .trim()
            .to_owned()
    };
    format!("RSS {} (peak {})", line("VmRSS:"), line("VmHWM:"))
}

fn disk(directory: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for file in std::fs::read_dir(directory)? {
        let (file, kind) = file.and_then(|file| file.file_type().map(|kind| (file, kind)))?;
        bytes += if kind.is_dir() {
            disk(&file.path())?
        } else {
            file.metadata()?.blocks() * 512
        };
    }
    Ok(bytes)
}
