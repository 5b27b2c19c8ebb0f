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
};
use crate::{
    emitter::{Channel, Item, channel},
    health::{Health, Member},
    plan::DevicePlan,
};

/// Wait after a fault of ours, or of the disk.
const FAULT_RETRY: Duration = Duration::from_secs(10);

/// A device in force.
pub(super) struct Device {
    pub(super) plan: Arc<DevicePlan>,
    pub(super) desired: watch::Sender<Arc<Desired>>,
    pub(super) books: watch::Sender<Books>,
    pub(super) address: watch::Sender<Arc<str>>,
    pub(super) channel: Channel,
    pub(super) slot: Arc<LinkSlot>,
    pub(super) counters: Arc<Counters>,
    shutdown: Shutdown,
    /// Cancelled when the device is no longer planned, in contrast to the end of the process.
    removed: CancellationToken,
    /// Cancelled when all of it has ended.
    ended: CancellationToken,
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
}

impl Shared {
    /// Begins a device, after an earlier one of the same name has ended.
    pub(super) fn start_device(
        self: &Arc<Self>,
        name: &(String, String),
        plan: &Arc<DevicePlan>,
        desired: Desired,
    ) -> Device {
        let (namespace, device) = name;
        let (channel, items) = channel(self.options.device_budget);
        let (books, books_receiver) = watch::channel(Arc::clone(&desired.books));
        let (address, address_receiver) = watch::channel(Arc::from(plan.address.as_str()));
        let (desired, desired_receiver) = watch::channel(Arc::new(desired));
        let counters = Counters::new(self.metrics.clone(), self.connector.protocol(), namespace, device);
        let slot: Arc<LinkSlot> = Arc::default();
        let (shutdown, removed) = (self.environment.shutdown.child(), CancellationToken::new());
        let ended = CancellationToken::new();
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
            shutdown,
            removed,
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
            ..
        } = self;
        let (shutdown, removed, channel) = (self.shutdown, self.removed, supervisor.channel.clone());
        let telling_shutdown = Shutdown::new();
        let span = tracing::Span::current();
        let telling = teller.run(telling_shutdown.clone(), move || removed.is_cancelled());
        let telling = spawn("device-reports", telling.instrument(span.clone()));

        if let Some(numbers) = begin_numbers(&namespace, &device, &state_dir, &channel, &shutdown).await {
            let counters = Arc::clone(&supervisor.counters);
            let publisher = Publisher {
                items,
                books,
                client,
                numbers,
                counters,
                channel: channel.clone(),
                address,
            };
            let publishing = publisher.run(shutdown.clone()).instrument(span.clone());
            let publishing = spawn("device-publisher", publishing);
            supervise(&supervisor, &channel, &shutdown).await;
            // Everything that links saw is in the queue before this.
            shutdown.or_deadline(channel.tell(Item::End)).await;
            if let Err(error) = publishing.await {
                // Without its publisher a device is dead: only a new process can mend that.
                let component = health.component(format!("publisher of {namespace}/{device}"));
                component.failed(error.to_string());
                error!(%error, "publisher ended");
                shutdown.begun().await;
            }
        }
        telling_shutdown.begin(Duration::ZERO);
        drop(telling.await);
    }
}

/// Begins the count, again and again while the disk does not let us; `None` when the shutdown came first.
async fn begin_numbers(
    namespace: &str,
    device: &str,
    state_dir: &std::path::Path,
    channel: &Channel,
    shutdown: &Shutdown,
) -> Option<Numbers> {
    loop {
        let (namespace, device, directory) = (namespace.to_owned(), device.to_owned(), state_dir.to_owned());
        let begin = move || {
            foreshore_tls::create_private_directory(&directory)?;
            Numbers::begin(&namespace, &device, &directory)
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
