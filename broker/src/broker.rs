//! A broker that runs, and the handle on it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Weak, atomic::AtomicU64},
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use foreshore_crds::v1alpha1::broker_policy::BrokerPolicySpec;
use foreshore_record::{Record, TopicFilter};
use foreshore_runtime::Task;
use foreshore_store::{BrokerClock, Committer, CommitterOptions, OpenReport, SharedStore, StoreError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::{
    audit::{Audit, AuditDestination, Event, What},
    engine::{
        Engine,
        mailbox::Mailbox,
        memory::Memory,
        pressure::Congestion,
        router::Router,
        shard::{Control, Shard, ShardItem},
    },
    error::Error,
    listener::{Endpoint, OpenListener, placement::Placement},
    message::Message,
    options::{Conduct, Limits, ListenerOptions, Options, Storage},
    path::BrokerPaths,
    policy::{
        Policies,
        explain::{Explanation, Question},
    },
    probe::{self, ProbeReport, Probes, Schedule},
    stats::Stats,
    wire::ReasonCode,
};

/// Most shards: a connection's location has eight bits for its shard, and more threads than this serve nobody.
const MAX_SHARDS: usize = 64;

/// Shards where nothing else is said, at most.
const DEFAULT_SHARDS: usize = 8;

/// How often what has expired in memory is removed.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// The MQTT broker.
#[derive(Debug)]
pub struct Broker;

/// A broker that runs. Clones are handles on the same broker; it ends with [`Handle::stop`], or with the last handle.
#[derive(Clone, Debug)]
pub struct Handle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Arc<Engine>,
    committer: Mutex<Option<Committer>>,
    listeners: Mutex<Vec<OpenListener>>,
    shards: Mutex<Vec<JoinHandle<()>>>,
    _tasks: Vec<Task<()>>,
}

impl Broker {
    /// Opens the store, takes up what it holds, and opens the listeners.
    ///
    /// # Errors
    /// When the store can't be opened, a listener can't be bound, or the system gives no threads. Nothing runs then.
    pub async fn start(options: Options) -> Result<Handle, Error> {
        foreshore_tls::install_provider();
        let Options {
            namespace,
            name,
            listeners,
            storage,
            limits,
            conduct,
            audit: destination,
            shards,
            few_connections,
            sys_interval,
            metrics,
        } = options;
        let qualified: Arc<str> = format!("{namespace}/{name}").into();
        let stats = Stats::new(&metrics, &qualified);
        let audit = Audit::new(&qualified, stats.audit_left_out.clone());
        audit.set(destination.as_ref())?;
        let (store, found, committer) = blocking(move || open(&storage)).await?;
        stats.count_lost(&found);
        let count = shards.unwrap_or_else(default_shards).clamp(1, MAX_SHARDS);
        let congestion = Arc::<Congestion>::default();
        let engine = Arc::new(Engine {
            identity: (namespace, name),
            router: Router::new(),
            shards: (0..count)
                .map(|_| Arc::new(Mailbox::new(Arc::clone(&congestion))))
                .collect(),
            congestion,
            clock: committer.handle().clock().clone(),
            committer: committer.handle(),
            open_store: RwLock::new(Some(store)),
            memory: Arc::new(Memory::new(count, limits.max_memory, limits.max_client_memory)),
            pace: Default::default(),
            subscriptions: Default::default(),
            limits: ArcSwap::from_pointee(limits),
            limits_changed: Default::default(),
            conduct: ArcSwap::from_pointee(conduct),
            policies: ArcSwap::from_pointee(Policies::none()),
            sessions: Default::default(),
            retained: Default::default(),
            state_store: Default::default(),
            groups: Default::default(),
            paths: Default::default(),
            sources: Default::default(),
            timers: Default::default(),
            stats,
            tracer: Default::default(),
            probes: Probes::new(&metrics, qualified),
            checks: Default::default(),
            audit,
            runtime: tokio::runtime::Handle::current(),
            placement: Arc::new(Placement::new(count, few_connections)),
            next_uid: AtomicU64::new(1),
        });
        let loading = Arc::clone(&engine);
        blocking(move || loading.load().map_err(Error::from)).await?;
        let threads = (0..count)
            .map(|index| start_shard(&engine, index))
            .collect::<Result<Vec<_>, _>>()?;
        let inner = Arc::new_cyclic(|inner| {
            let mut tasks = start_tasks(&engine, sys_interval);
            let probe = run_probe(Arc::clone(&engine), Weak::clone(inner));
            tasks.push(foreshore_runtime::spawn("broker probe", probe));
            Inner {
                committer: Mutex::new(Some(committer)),
                listeners: Mutex::default(),
                shards: Mutex::new(threads),
                _tasks: tasks,
                engine,
            }
        });
        let handle = Handle { inner };
        for listener in listeners {
            handle.open_listener(listener)?;
        }
        Ok(handle)
    }
}

fn default_shards() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(DEFAULT_SHARDS))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(StoreError::Closed.into()),
    }
}

fn open(storage: &Storage) -> Result<(SharedStore, OpenReport, Committer), Error> {
    let (store, report) = match storage {
        Storage::Memory => (foreshore_store::open_in_memory()?, OpenReport::default()),
        Storage::Directory { path, options } => {
            let (store, report) = foreshore_store::open(path, options)?;
            tracing::info!(
                ?path,
                created = report.created,
                clean = report.clean,
                "store is open"
            );
            (store, report)
        }
    };
    let clock = BrokerClock::starting_at(store.position().now);
    let committer = Committer::start(Arc::clone(&store), clock, CommitterOptions::default())?;
    Ok((store, report, committer))
}

fn start_shard(engine: &Arc<Engine>, index: usize) -> Result<JoinHandle<()>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_name(format!("broker-io-{index}-aux"))
        .build()
        .map_err(Error::Thread)?;
    let engine = Arc::clone(engine);
    let run = move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            // At most `MAX_SHARDS`, which fits.
            Shard::new(index as u8, engine).run().await;
        });
    };
    std::thread::Builder::new()
        .name(format!("broker-io-{index}"))
        .spawn(run)
        .map_err(Error::Thread)
}

/// Looks at the listeners when that is due, for as long as the broker runs.
async fn run_probe(engine: Arc<Engine>, broker: Weak<Inner>) {
    loop {
        let timeout = engine.probes.due().await;
        let Some(inner) = broker.upgrade() else { return };
        Handle { inner }.probe(timeout).await;
    }
}

fn start_tasks(engine: &Arc<Engine>, sys_interval: Option<Duration>) -> Vec<Task<()>> {
    let timers = foreshore_runtime::spawn("broker timers", Arc::clone(engine).run_timers());
    let sweeping = Arc::clone(engine);
    let sweep = foreshore_runtime::spawn("broker sweep", async move {
        let mut every = tokio::time::interval(SWEEP_EVERY);
        // A broker that begins again in its process counts on, and its store from 0.
        let mut counted = 0;
        loop {
            every.tick().await;
            let Ok(store) = sweeping.store() else { return };
            let settled = store.position().next_id.saturating_sub(1);
            sweeping.retained.sweep(sweeping.now(), settled);
            sweeping.tracer.sweep();
            sweeping.audit.sweep();
            // A store that can't be asked any more tells that elsewhere.
            let space = sweeping.blocking(|store| Ok(store.space())).await;
            sweeping.state_store.set_space(space.ok().flatten());
            sweeping.measure_topic_limits().await;
            sweeping.measure_memory();
            let overflowed = store.overflowed();
            sweeping.stats.overflowed.inc_by(overflowed - counted);
            counted = overflowed;
            if let Some(encryption) = store.encryption() {
                let stats = &sweeping.stats;
                stats.store_rewriting.set(encryption.is_rewriting.into());
                stats.store_keys_refused.set(encryption.problem.is_some().into());
            }
            let (keys, bytes) = sweeping.state_store.size();
            Stats::show(&sweeping.stats.state_keys, keys);
            Stats::show(&sweeping.stats.state_bytes, bytes);
            Stats::show(&sweeping.stats.subscriptions, sweeping.subscriptions.get());
        }
    });
    let topics = foreshore_runtime::spawn("broker topic limits", Arc::clone(engine).keep_topic_limits());
    let state = foreshore_runtime::spawn("broker state store", Arc::clone(engine).deliver_state());
    let expiry = foreshore_runtime::spawn("broker state expiry", Arc::clone(engine).expire_state());
    let mut tasks = vec![timers, sweep, topics, state, expiry];
    if let Some(interval) = sys_interval.filter(|interval| !interval.is_zero()) {
        tasks.push(foreshore_runtime::spawn(
            "broker $SYS",
            crate::sys::publish(Arc::clone(engine), interval),
        ));
    }
    tasks
}

impl Handle {
    /// Where the listeners are open, by name.
    #[must_use]
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        let listeners = self.inner.listeners.lock();
        listeners
            .iter()
            .map(|listener| (listener.options.name.clone(), listener.address))
            .collect()
    }

    /// The listeners that are open, by name.
    #[must_use]
    pub fn endpoints(&self) -> Vec<(String, Endpoint)> {
        let listeners = self.inner.listeners.lock();
        let endpoint = |open: &OpenListener| Endpoint {
            address: open.address,
            protocol: open.options.protocol.clone(),
        };
        listeners
            .iter()
            .map(|open| (open.options.name.clone(), endpoint(open)))
            .collect()
    }

    /// Opens a listener, or changes the one of that name. As long as it stays at its address, only clients leave that
    /// could not come in any more; else it is closed and opened anew.
    ///
    /// # Errors
    /// When the address can't be bound; then no listener of that name is open.
    pub fn open_listener(&self, options: ListenerOptions) -> Result<SocketAddr, Error> {
        let mut listeners = self.inner.listeners.lock();
        let engine = &self.inner.engine;
        for open in listeners.iter_mut() {
            if open.change(engine, &options) {
                engine.audit.tell(&listener(What::ListenerChanged, &options.name));
                return Ok(open.address);
            }
        }
        listeners.retain(|open| {
            let stays = open.options.name != options.name;
            if !stays {
                open.disconnect(engine);
            }
            stays
        });
        let open = OpenListener::open(engine, options)?;
        let address = open.address;
        let told = Event {
            detail: Some(&address.to_string()),
            ..listener(What::ListenerOpened, &open.options.name)
        };
        engine.audit.tell(&told);
        listeners.push(open);
        Ok(address)
    }

    /// Closes a listener; its connections end, others do not.
    pub fn close_listener(&self, name: &str) {
        self.inner.listeners.lock().retain(|open| {
            let stays = open.options.name != name;
            if !stays {
                self.inner
                    .engine
                    .audit
                    .tell(&listener(What::ListenerClosed, name));
                open.disconnect(&self.inner.engine);
            }
            stays
        });
    }

    /// Puts policies in force, given by name; none at all allow everything to whoever was authenticated. Only clients
    /// that lose a right which they use notice it.
    ///
    /// # Errors
    /// When one can't be compiled; then all stay as they were.
    pub fn set_policies<'a>(
        &self,
        policies: impl IntoIterator<Item = (&'a str, &'a BrokerPolicySpec)>,
    ) -> Result<(), Error> {
        let mut names = Vec::new();
        let named = policies.into_iter().inspect(|(name, _)| names.push(*name));
        let policies = Policies::compile(named)?;
        self.inner.engine.policies.store(Arc::new(policies));
        self.inner.engine.audit.tell(&Event {
            event: What::PoliciesChanged,
            name: Some(&names.join(", ")),
            ..Event::default()
        });
        self.inner.engine.control_all(&Control::PolicyChanged);
        Ok(())
    }

    /// Says what the policies that are in force mean for a client.
    #[must_use]
    pub fn explain(&self, question: Question) -> Explanation {
        self.inner.engine.policies.load().explain(question)
    }

    /// Puts limits in force. Connections keep what they were told at their beginning.
    pub fn set_limits(&self, limits: Limits) {
        let memory = &self.inner.engine.memory;
        memory.set_quota(limits.max_memory, limits.max_client_memory);
        let before = self.inner.engine.limits.swap(Arc::new(limits));
        self.inner.engine.limits_changed.notify_one();
        if *before != **self.inner.engine.limits.load() {
            self.tell_change("limits");
        }
    }

    /// Changes how clients are treated. A redirection that is new disconnects all clients but our own roles.
    pub fn set_conduct(&self, conduct: Conduct) {
        let redirect = conduct.redirect.clone();
        let before = self.inner.engine.conduct.swap(Arc::new(conduct));
        if *before != **self.inner.engine.conduct.load() {
            self.tell_change("conduct");
        }
        if let Some(redirect) = redirect.filter(|redirect| before.redirect.as_ref() != Some(redirect)) {
            self.inner.engine.control_all(&Control::Redirected(redirect));
        }
    }

    /// Writes the audit log there from now on, or nowhere.
    ///
    /// # Errors
    /// When the file can't be opened; then it goes where it went.
    pub fn set_audit(&self, destination: Option<&AuditDestination>) -> Result<(), Error> {
        Ok(self.inner.engine.audit.set(destination)?)
    }

    /// Tells the audit log what somebody told the broker to do, or looked at.
    pub fn tell_command(&self, command: &'static str, actor: Option<&str>) {
        self.inner.engine.audit.tell(&Event {
            event: What::Command,
            command: Some(command),
            actor,
            ..Event::default()
        });
    }

    /// Tells the audit log that a Secret has changed of which listeners are made.
    pub(crate) fn tell_secret(&self, name: &str) {
        self.inner.engine.audit.tell(&Event {
            event: What::SecretChanged,
            name: Some(name),
            ..Event::default()
        });
    }

    fn tell_change(&self, name: &str) {
        self.inner.engine.audit.tell(&Event {
            event: What::LimitsChanged,
            name: Some(name),
            ..Event::default()
        });
    }

    /// Counts messages by topic: for the first of these filters that matches, or for `other`. At most 32 are counted apart,
    /// those beyond as `other`; nothing is counted by topic where there is none.
    pub fn count_topics(&self, filters: &[TopicFilter]) {
        let engine = &self.inner.engine;
        engine.stats.by_topic.set(filters);
        // Shards look up anew for whom a topic counts.
        engine.router.touch();
    }

    /// Changes when the broker looks at its own listeners; never with `None`, as in the beginning.
    pub fn set_probe(&self, schedule: Option<Schedule>) {
        self.inner.engine.probes.set_schedule(schedule);
    }

    /// Looks at every listener now, one after the other, each for so long at most.
    pub async fn probe(&self, timeout: Duration) -> Vec<ProbeReport> {
        let engine = &self.inner.engine;
        let mut reports = Vec::new();
        for (name, endpoint) in self.endpoints() {
            reports.push(probe::probe(engine, &name, &endpoint, timeout).await);
        }
        // What was closed meanwhile can't have been used.
        let open = self.endpoints();
        reports.retain(|report| open.iter().any(|(name, _)| *name == report.listener));
        engine.probes.show(&reports);
        reports
    }

    /// What the last look at each listener found, by its name, and each time that it is looked at.
    #[must_use]
    pub fn probed(&self) -> watch::Receiver<BTreeMap<String, ProbeReport>> {
        self.inner.engine.probes.latest()
    }

    /// Makes the queue of a path, or changes what it wants or may hold.
    ///
    /// # Errors
    /// When nothing can be committed any more.
    pub async fn put_path(
        &self,
        name: &str,
        topics: Vec<TopicFilter>,
        limits: foreshore_store::Limits,
    ) -> Result<(), Error> {
        Ok(self.inner.engine.put_path(name, topics, limits).await?)
    }

    /// Releases the queue of a path; what waits there is dropped.
    ///
    /// # Errors
    /// When nothing can be committed any more.
    pub async fn remove_path(&self, name: &str) -> Result<(), Error> {
        Ok(self.inner.engine.remove_path(name).await?)
    }

    /// Publishes a record as the broker itself, and returns when it is durable.
    ///
    /// # Errors
    /// When nothing can be committed any more.
    pub async fn publish(&self, record: Record) -> Result<(), Error> {
        let engine = &self.inner.engine;
        let expiry = record
            .properties
            .expiry_seconds
            .map(|seconds| Duration::from_secs(seconds.into()));
        let expires_at = expiry.map(|expiry| engine.now().after(expiry));
        let message = Message::from_record(&Arc::new(record), expires_at);
        Ok(engine.publish(message, Vec::new()).await?)
    }

    /// Names of all paths that have a queue.
    #[must_use]
    pub fn path_names(&self) -> Vec<String> {
        self.inner.engine.paths.names()
    }

    /// The queues of dataflows, to be read in process or served over gRPC.
    #[must_use]
    pub fn paths(&self) -> BrokerPaths {
        BrokerPaths::new(Arc::clone(&self.inner.engine))
    }

    /// Resolves with the cause when nothing can be committed any more: the role ends with it.
    pub async fn failed(&self) -> Error {
        self.inner.engine.committer.failed().await.into()
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.inner.engine
    }

    /// Ends the broker: no new connections, a word to every client, and everything that is queued for the disk is
    /// committed. Connections that do not end within the time are cut.
    ///
    /// # Errors
    /// The cause, when something could not be committed.
    pub async fn stop(&self, within: Duration) -> Result<(), Error> {
        self.inner.begin_stop();
        let threads = std::mem::take(&mut *self.inner.shards.lock());
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the broker panicked");
                }
            }
        });
        if tokio::time::timeout(within, joined).await.is_err() {
            tracing::warn!("connections did not end in time");
        }
        if tokio::time::timeout(within, self.inner.engine.audit.close())
            .await
            .is_err()
        {
            tracing::warn!("the audit log was not written to its end in time");
        }
        let committer = self.inner.committer.lock().take();
        let stopped = match committer {
            Some(committer) => blocking(move || committer.stop().map_err(Error::from)).await,
            None => Ok(()),
        };
        let store = self.inner.engine.open_store.write().take();
        if let Some(store) = store {
            // A read that is under way holds the store too; whoever is last to
            // let go closes it, so wait to be the last.
            let closed = tokio::time::timeout(within, close(store)).await;
            if closed.is_err() {
                tracing::warn!("the store is still being read and stays locked until that ends");
            }
        }
        stopped
    }
}

fn listener(event: What, name: &str) -> Event<'_> {
    Event {
        event,
        listener: Some(name),
        ..Event::default()
    }
}

/// Waits until `store` has no other owner, then closes it: when this returns,
/// another broker can open the directory.
async fn close(mut store: SharedStore) -> Result<(), Error> {
    while Arc::get_mut(&mut store).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    blocking(move || {
        drop(store);
        Ok(())
    })
    .await
}

impl Inner {
    fn begin_stop(&self) {
        self.listeners.lock().clear();
        self.engine.control_all(&Control::Disconnect(
            ReasonCode::ServerShuttingDown,
            "the broker ends",
        ));
        for mailbox in &self.engine.shards {
            mailbox.send(ShardItem::Stop, 0);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.begin_stop();
    }
}
