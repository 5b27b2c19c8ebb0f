//! The tasks of one device.

use std::{path::PathBuf, sync::Arc, time::Duration};

use foreshore_crds::conditions::reasons;
use foreshore_runtime::{HealthRegistry, Shutdown, spawn};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span};

use super::{
    Shared,
    counters::Counters,
    number::Numbers,
    publisher::{Books, Publisher},
    reports::Teller,
    supervisor::{Desired, LinkSlot, Supervisor},
    turn::{Entry, Gate, Standing},
};
use crate::{
    emitter::{Channel, Item, channel},
    health::{Health, Member},
    plan::DevicePlan,
};

/// Wait after a fault of ours, or of the disk.
const FAULT_RETRY: Duration = Duration::from_secs(10);
/// How long a device that was let go waits for the broker to settle what it has: what is not settled can't be told.
const UNSETTLED: Duration = Duration::from_secs(3600);

/// A device in force.
pub(super) struct Device {
    pub(super) plan: Arc<DevicePlan>,
    pub(super) desired: watch::Sender<Arc<Desired>>,
    pub(super) books: watch::Sender<Books>,
    pub(super) address: watch::Sender<Arc<str>>,
    pub(super) channel: Channel,
    pub(super) slot: Arc<LinkSlot>,
    pub(super) counters: Arc<Counters>,
    /// Whose turn it is.
    pub(super) gate: watch::Sender<Gate>,
    pub(super) standing: Arc<Standing>,
    shutdown: Shutdown,
    /// Cancelled when the device is no longer planned, in contrast to the end of the process.
    removed: CancellationToken,
    /// Cancelled when it has to let go for another instance.
    giving: CancellationToken,
    /// Cancelled when all of it has ended.
    ended: CancellationToken,
}

impl Device {
    /// Whether commands reach it: they go to the one instance that serves it.
    pub(super) fn is_served(&self) -> bool {
        !self.gate.borrow().is_shut() && !self.giving.is_cancelled()
    }

    /// Whether it has let go, or is about to.
    pub(super) fn is_given(&self) -> bool {
        self.giving.is_cancelled()
    }

    /// Lets go after a while, in which it goes on; then tells what it has handed over.
    pub(super) fn give(&self, after: Duration) {
        self.giving.cancel();
        let (shutdown, removed) = (self.shutdown.clone(), self.removed.clone());
        tokio::spawn(async move {
            shutdown.or_begun(tokio::time::sleep(after)).await;
            // Whoever takes it tells how it is.
            removed.cancel();
            shutdown.begin(UNSETTLED);
        });
    }

    /// Opens a later life of it with what this one has given, as soon as it has, under numbers above an epoch.
    pub(super) fn resume(&self, gate: watch::Sender<Gate>, above: u64) {
        let (ended, standing) = (self.ended.clone(), Arc::clone(&self.standing));
        tokio::spawn(async move {
            ended.cancelled().await;
            gate.send_replace(Gate::After(Arc::new(standing.entry(above))));
        });
    }
}

/// What the tasks of a device share.
struct Tasks {
    namespace: String,
    device: String,
    state_dir: PathBuf,
    supervisor: Supervisor,
    teller: Teller,
    items: mpsc::Receiver<Item>,
    books: watch::Receiver<Books>,
    address: watch::Receiver<Arc<str>>,
    client: watch::Receiver<Option<foreshore_mqtt::Client>>,
    health: HealthRegistry,
    shutdown: Shutdown,
    removed: CancellationToken,
    giving: CancellationToken,
    gate: watch::Receiver<Gate>,
    standing: Arc<Standing>,
}

impl Shared {
    /// Begins a device, after an earlier one of the same name has ended.
    pub(super) fn start_device(
        self: &Arc<Self>,
        name: &(String, String),
        plan: &Arc<DevicePlan>,
        desired: Desired,
        gate: watch::Sender<Gate>,
        number: u64,
    ) -> Device {
        let (namespace, device) = name;
        let (channel, items) = channel(self.options.device_budget);
        let (books, books_receiver) = watch::channel(Arc::clone(&desired.books));
        let (address, address_receiver) = watch::channel(Arc::from(plan.address.as_str()));
        let (desired, desired_receiver) = watch::channel(Arc::new(desired));
        let counters = Counters::new(self.metrics.clone(), self.connector.protocol(), namespace, device);
        let slot: Arc<LinkSlot> = Arc::default();
        let (shutdown, removed) = (self.environment.shutdown.child(), CancellationToken::new());
        let (ended, giving) = (CancellationToken::new(), CancellationToken::new());
        let gate_receiver = gate.subscribe();
        let standing = Standing::new(Arc::clone(&self.environment.reports), namespace, device);
        standing.number(number);
        let state_dir = self
            .options
            .state_dir
            .join("devices")
            .join(namespace)
            .join(device);
        let supervisor = Supervisor {
            connector: Arc::clone(&self.connector),
            desired: desired_receiver.clone(),
            channel: channel.clone(),
            slot: Arc::clone(&slot),
            counters: Arc::clone(&counters),
            schemas: Arc::clone(&self.schemas),
            state_dir: state_dir.clone(),
            slow_retry: self.options.slow_retry,
            gate: gate_receiver.clone(),
            standing: Arc::clone(&standing),
        };
        let teller = Teller {
            sink: Arc::clone(&self.environment.reports),
            channel: channel.clone(),
            desired: desired_receiver,
            counters: Arc::clone(&counters),
            interval: self.options.report_interval,
        };
        let tasks = Tasks {
            namespace: namespace.clone(),
            device: device.clone(),
            state_dir,
            supervisor,
            teller,
            items,
            books: books_receiver,
            address: address_receiver,
            client: self.client.subscribe(),
            health: self.environment.health.clone(),
            shutdown: shutdown.clone(),
            removed: removed.clone(),
            giving: giving.clone(),
            gate: gate_receiver,
            standing: Arc::clone(&standing),
        };
        let (predecessor, over) = (self.ending.lock().remove(name), ended.clone().drop_guard());
        let span = info_span!("device", namespace, device);
        let run = async move {
            if let Some(predecessor) = predecessor {
                predecessor.cancelled().await;
            }
            tasks.run().await;
            drop(over);
        };
        self.tasks.spawn(run.instrument(span));
        let plan = Arc::clone(plan);
        Device {
            plan,
            desired,
            books,
            address,
            channel,
            slot,
            counters,
            gate,
            standing,
            shutdown,
            removed,
            giving,
            ended,
        }
    }

    /// Ends a device that is no longer planned, in the background.
    pub(super) fn end_device(&self, name: &(String, String), device: Device) {
        device.removed.cancel();
        device.shutdown.begin(self.options.drain);
        let mut ending = self.ending.lock();
        ending.retain(|_, ended| !ended.is_cancelled());
        ending.insert(name.clone(), device.ended);
    }
}

impl Tasks {
    async fn run(self) {
        let Self {
            namespace,
            device,
            state_dir,
            supervisor,
            teller,
            items,
            books,
            address,
            client,
            health,
            giving,
            mut gate,
            standing,
            ..
        } = self;
        let (shutdown, removed, channel) = (self.shutdown, self.removed, supervisor.channel.clone());
        let telling_shutdown = Shutdown::new();
        let span = tracing::Span::current();
        let telling = teller.run(telling_shutdown.clone(), move || removed.is_cancelled());
        let telling = spawn("device-reports", telling.instrument(span.clone()));

        let begin = Beginning {
            namespace: namespace.clone(),
            device: device.clone(),
            state_dir,
            channel: channel.clone(),
        };
        // Without a count nothing can be handed over. Who waits for its turn subscribes first, and counts when it comes.
        let begun = match gate.borrow().clone() {
            Gate::Shut => None,
            open => Some(open),
        };
        let begun = match begun {
            Some(open) => Some(begin.numbers(open, &shutdown).await),
            None => None,
        };
        if !matches!(begun, Some(None)) {
            let (counters, shutdown_of_it) = (Arc::clone(&supervisor.counters), shutdown.clone());
            let (told, own_channel) = (Arc::clone(&standing), channel.clone());
            let publishing = async move {
                let (numbers, entry) = match begun.flatten() {
                    Some(begun) => begun,
                    None => {
                        let open = gate.wait_for(|gate| !gate.is_shut());
                        // What was held back until the end is the other instance's to hand over.
                        let open = shutdown_of_it.or_begun(open).await?.ok()?.clone();
                        begin.numbers(open, &shutdown_of_it).await?
                    }
                };
                let epoch = numbers.epoch();
                told.serving(epoch);
                let publisher = Publisher {
                    items,
                    books,
                    client,
                    numbers,
                    counters,
                    channel: own_channel,
                    address,
                    entry,
                };
                let handed_over = publisher.run(shutdown_of_it).await;
                Some((epoch, handed_over))
            };
            let publishing = spawn("device-publisher", publishing.instrument(span.clone()));
            supervise(&supervisor, &channel, &shutdown).await;
            // Everything that links saw is in the queue before this.
            shutdown.or_deadline(channel.tell(Item::End)).await;
            match publishing.await {
                Ok(handed_over) => {
                    let (epoch, watermark) = handed_over.unwrap_or_default();
                    if giving.is_cancelled() {
                        let watermark = watermark.and_then(|watermark| watermark.encode());
                        standing.given(epoch, watermark.unwrap_or_default());
                    }
                }
                Err(error) => {
                    // Without its publisher a device is dead: only a new process can mend that.
                    let component = health.component(format!("publisher of {namespace}/{device}"));
                    component.failed(error.to_string());
                    error!(%error, "publisher ended");
                    shutdown.begun().await;
                }
            }
        }
        telling_shutdown.begin(Duration::ZERO);
        drop(telling.await);
    }
}

/// What the count of a device begins with.
struct Beginning {
    namespace: String,
    device: String,
    state_dir: PathBuf,
    channel: Channel,
}

impl Beginning {
    /// Begins the count, and how to go on; `None` when the shutdown came first.
    async fn numbers(&self, gate: Gate, shutdown: &Shutdown) -> Option<(Numbers, Option<Arc<Entry>>)> {
        let entry = match gate {
            Gate::After(entry) => Some(entry),
            Gate::Open | Gate::Shut => None,
        };
        let above = entry.as_ref().map_or(0, |entry| entry.epoch);
        let numbers = begin_numbers(self, above, shutdown).await?;
        Some((numbers, entry))
    }
}

/// Begins the count, again and again while the disk does not let us; `None` when the shutdown came first.
async fn begin_numbers(begin: &Beginning, above: u64, shutdown: &Shutdown) -> Option<Numbers> {
    let Beginning {
        namespace,
        device,
        state_dir,
        channel,
    } = begin;
    loop {
        let (namespace, device, directory) = (namespace.clone(), device.clone(), state_dir.clone());
        let begin = move || {
            foreshore_tls::create_private_directory(&directory)?;
            Numbers::begin(&namespace, &device, &directory, above)
        };
        let evidence = match tokio::task::spawn_blocking(begin).await {
            Ok(Ok(numbers)) => return Some(numbers),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        error!(evidence, "state of the device can't be written");
        let health = Health::unhealthy(reasons::STORAGE_FAILED, evidence)
            .with_next_step("make room in the connector's state directory");
        channel.board().set(&Member::Device, health);
        shutdown.or_begun(tokio::time::sleep(FAULT_RETRY)).await?;
    }
}

/// Keeps a supervisor running: a protocol that panics costs its device a pause, and nobody else anything.
async fn supervise(supervisor: &Supervisor, channel: &Channel, shutdown: &Shutdown) {
    loop {
        let run = supervisor
            .clone()
            .run(shutdown.clone())
            .instrument(tracing::Span::current());
        let Err(error) = spawn("device-supervisor", run).await else {
            return;
        };
        let health = Health::unhealthy("InternalError", error.to_string())
            .with_next_step("report this fault with the connector's log; the device is dialled again");
        channel.board().set(&Member::Device, health);
        if shutdown.or_begun(tokio::time::sleep(FAULT_RETRY)).await.is_none() {
            return;
        }
    }
}
