//! One device: dials it, keeps what is observed equal to the plan, and dials again.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use foreshore_crds::conditions::reasons;
use foreshore_runtime::{Backoff, Shutdown, spawn};
use parking_lot::RwLock;
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::{
    counters::Counters,
    publisher::Books,
    resolve::Resolved,
    turn::{Gate, Standing},
};
use crate::{
    command::schemas::SchemaBook,
    contract::{Connector, Link, LinkError, LinkErrorClass},
    emitter::{Channel, Item},
    endpoint::Endpoint,
    health::{Health, Member},
    plan::{AssetPlan, DevicePlan},
};

/// Longest time for one try to connect, and for one change of what is observed: protocols have their own, shorter ones.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest time for closing a link.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// A link that lasted this long was a good one: waiting begins anew with short waits.
const STABLE: Duration = Duration::from_secs(30);

/// What one device shall be.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    pub(crate) device: Arc<DevicePlan>,
    /// What its manifest refers to, or the health that the device has without it.
    pub(crate) resolved: Result<Resolved, Health>,
    /// The assets to observe.
    pub(crate) assets: Vec<Arc<AssetPlan>>,
    /// All assets of the device that are switched on, those included that it can't carry.
    pub(crate) known: BTreeMap<String, Arc<AssetPlan>>,
    /// Why assets can't be carried on this device.
    pub(crate) refused: BTreeMap<String, String>,
    pub(crate) books: Books,
}

impl Desired {
    pub(crate) fn asset(&self, name: &str) -> Option<&Arc<AssetPlan>> {
        self.known.get(name)
    }

    /// Every member of the device and its assets.
    pub(crate) fn members(&self) -> Vec<Member> {
        let assets = self.books.values().flat_map(|book| book.members());
        std::iter::once(Member::Device).chain(assets).collect()
    }

    /// Whether another link is needed than for `other`.
    fn dials_like(&self, other: &Self) -> bool {
        let spec = |desired: &Self| {
            let mut spec = desired.device.spec.clone();
            spec.reconnect = None;
            spec
        };
        self.device.object.uid == other.device.object.uid
            && self.device.address == other.device.address
            && self.resolved == other.resolved
            && spec(self) == spec(other)
    }
}

/// The present link of a device, for commands.
#[derive(Default)]
pub(crate) struct LinkSlot {
    link: RwLock<Option<Arc<dyn Link>>>,
}

impl LinkSlot {
    pub(crate) fn get(&self) -> Option<Arc<dyn Link>> {
        self.link.read().clone()
    }

    fn set(&self, link: Option<Arc<dyn Link>>) {
        *self.link.write() = link;
    }
}

/// How long the supervisor waits between tries that need a change to succeed.
pub(crate) type SlowRetry = (Duration, Duration);

#[derive(Clone)]
pub(crate) struct Supervisor {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) desired: watch::Receiver<Arc<Desired>>,
    pub(crate) channel: Channel,
    pub(crate) slot: Arc<LinkSlot>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) schemas: Arc<SchemaBook>,
    pub(crate) state_dir: PathBuf,
    pub(crate) slow_retry: SlowRetry,
    pub(crate) gate: watch::Receiver<Gate>,
    pub(crate) standing: Arc<Standing>,
}

/// Why a link was left, or none was made.
enum Left {
    /// The plan asks for another link, or for none.
    Changed,
    Lost(LinkError),
    Ended,
}

impl Supervisor {
    /// Runs until the shutdown begins.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut pace = Pace::new(&self.desired.borrow(), self.slow_retry);
        let mut linked_before = false;
        if self.gate.borrow().is_shut() && !self.connector.overlaps() {
            self.standing.refused();
            let mut gate = self.gate.clone();
            let open = async { drop(gate.wait_for(|gate| !gate.is_shut()).await) };
            shutdown.or_begun(open).await;
        }
        while !shutdown.is_begun() {
            let desired = Arc::clone(&self.desired.borrow_and_update());
            if let Some(health) = idle(&desired) {
                self.tell_down(&health);
                let changed = async { drop(self.desired.changed().await) };
                shutdown.or_begun(changed).await;
                pace = Pace::new(&self.desired.borrow(), self.slow_retry);
                continue;
            }
            let started = Instant::now();
            let left = self.link_once(&desired, &mut linked_before, &shutdown).await;
            if started.elapsed() >= STABLE {
                pace = Pace::new(&desired, self.slow_retry);
            }
            match left {
                Left::Ended => break,
                Left::Changed => pace = Pace::new(&self.desired.borrow(), self.slow_retry),
                Left::Lost(error) => {
                    // One that has no room for a second session, or none to offer. Where only this instance is not let in,
                    // or nothing answers, the owner goes on being served, and health tells what is wrong here.
                    let refused = matches!(
                        error.class,
                        LinkErrorClass::Configuration | LinkErrorClass::Protocol
                    );
                    if refused && self.gate.borrow().is_shut() {
                        self.standing.refused();
                    }
                    let wait = pace.wait(error.class);
                    let LinkError {
                        class,
                        message,
                        evidence,
                    } = &error;
                    warn!(
                        class = class.as_str(),
                        message,
                        evidence,
                        retry_seconds = wait.as_secs_f32(),
                        "no link to device"
                    );
                    self.tell_down(&error.health());
                    if self.sleep_unless_changed(&desired, wait, &shutdown).await {
                        pace = Pace::new(&self.desired.borrow(), self.slow_retry);
                    }
                }
            }
        }
        self.counters.connected(false);
    }

    /// Makes one link and keeps it until it is lost or no longer wanted.
    async fn link_once(
        &mut self,
        desired: &Arc<Desired>,
        linked_before: &mut bool,
        shutdown: &Shutdown,
    ) -> Left {
        let (emitter, closed) = self.channel.emitter();
        // Whatever happens, this link's emitters are good for nothing afterwards.
        let _closed = closed.drop_guard();
        let endpoint = match self.endpoint(desired) {
            Ok(endpoint) => endpoint,
            Err(error) => return Left::Lost(error),
        };
        let connector = Arc::clone(&self.connector);
        let connecting = async {
            let connect = connector.connect(endpoint, emitter);
            tokio::time::timeout(PATIENCE, connect)
                .await
                .unwrap_or_else(|_| Err(no_answer("connect")))
        };
        let link: Arc<dyn Link> = tokio::select! {
            link = connecting => match link {
                Ok(link) => Arc::from(link),
                Err(error) => return Left::Lost(error),
            },
            () = dial_changed(&mut self.desired, desired) => return Left::Changed,
            () = shutdown.begun() => return Left::Ended,
        };
        info!(address = desired.device.address, "linked to device");
        if std::mem::replace(linked_before, true) {
            self.counters.reconnect();
        }
        let left = self.serve(&link, desired, shutdown).await;
        self.slot.set(None);
        self.counters.connected(false);
        if tokio::time::timeout(CLOSE_TIMEOUT, link.close()).await.is_err() {
            warn!("device's link did not close in time");
        }
        self.channel.tell(Item::LinkDown).await;
        left
    }

    /// Keeps what is observed equal to the plan.
    async fn serve(&mut self, link: &Arc<dyn Link>, dialled: &Arc<Desired>, shutdown: &Shutdown) -> Left {
        let mut present = Arc::clone(&self.desired.borrow_and_update());
        // Before the first value, which may come while the rest is still being observed.
        self.channel
            .tell(Item::LinkUp(link.source_uri().map(Arc::from)))
            .await;
        // What was so without a link is not so any more.
        self.channel.board().set_all(|_| Health::unknown());
        if let Err(error) = self.observe(link, &present).await {
            return Left::Lost(error);
        }
        if self.gate.borrow().is_shut() {
            self.standing.ready();
        }
        self.slot.set(Some(Arc::clone(link)));
        self.counters.connected(true);
        self.channel.board().returned(&Member::Device, healthy(&present));
        // Held for its work; ends with the link, or when the plan changes.
        let mut _narrowing = self.narrow_schemas(link, &present);
        loop {
            tokio::select! {
                error = link.ended() => return Left::Lost(error),
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return Left::Ended;
                    }
                    let next = Arc::clone(&self.desired.borrow_and_update());
                    if idle(&next).is_some() || !next.dials_like(dialled) {
                        return Left::Changed;
                    }
                    if !same(&next.assets, &present.assets) || next.refused != present.refused {
                        if let Err(error) = self.observe(link, &next).await {
                            return Left::Lost(error);
                        }
                        _narrowing = self.narrow_schemas(link, &next);
                    }
                    present = next;
                }
                () = shutdown.begun() => return Left::Ended,
            }
        }
    }

    async fn observe(&self, link: &Arc<dyn Link>, desired: &Desired) -> Result<(), LinkError> {
        let board = self.channel.board();
        board.expect();
        let observe = link.observe(&desired.assets);
        let healths = tokio::time::timeout(PATIENCE, observe)
            .await
            .unwrap_or_else(|_| Err(no_answer("observe")))?;
        for told in healths {
            board.returned(&told.member, told.health);
        }
        // Actions are not observed: with a link they can be tried.
        for member in desired
            .members()
            .iter()
            .filter(|member| matches!(member, Member::Action { .. }))
        {
            board.returned(member, Health::healthy());
        }
        self.tell_refused(desired);
        Ok(())
    }

    /// Assets that this device can't carry.
    fn tell_refused(&self, desired: &Desired) {
        for (asset, reason) in &desired.refused {
            let health = Health::unhealthy(reasons::INVALID, reason.clone())
                .with_next_step("correct the Asset, or its Device");
            for member in desired
                .books
                .get(asset.as_str())
                .into_iter()
                .flat_map(|book| book.members())
            {
                self.channel.board().set(&member, health.clone());
            }
        }
    }

    /// There is no link: nothing of the device works.
    fn tell_down(&self, health: &Health) {
        let board = self.channel.board();
        board.set(&Member::Device, health.clone());
        let evidence = match health.evidence.as_str() {
            "" => "the device is not connected".to_owned(),
            evidence => format!("the device is not connected: {evidence}"),
        };
        board.set_all(|_| Health {
            evidence: evidence.clone(),
            ..health.clone()
        });
        self.tell_refused(&self.desired.borrow());
    }

    fn endpoint(&self, desired: &Desired) -> Result<Endpoint, LinkError> {
        let Resolved { credentials, trust } = match &desired.resolved {
            Ok(resolved) => resolved.clone(),
            Err(health) => {
                return Err(LinkError::new(
                    LinkErrorClass::Configuration,
                    health.evidence.clone(),
                ));
            }
        };
        Ok(Endpoint {
            object: desired.device.object.clone(),
            address: desired.device.address.clone(),
            spec: desired.device.spec.clone(),
            credentials,
            trust,
            state_dir: self.state_dir.clone(),
        })
    }

    /// Asks the link for what it knows of the actions' inputs; in the background, for it may ask the device.
    fn narrow_schemas(&self, link: &Arc<dyn Link>, desired: &Arc<Desired>) -> foreshore_runtime::Task<()> {
        let (link, desired, schemas) = (Arc::clone(link), Arc::clone(desired), Arc::clone(&self.schemas));
        spawn("request-schemas", async move {
            for asset in &desired.assets {
                for group in &asset.spec.action_groups {
                    for action in &group.actions {
                        if let Some(schema) = link.request_schema(asset, &group.name, &action.name).await {
                            schemas.narrow(asset, &group.name, action, schema);
                        }
                    }
                }
            }
        })
    }

    /// Waits; whether the plan changed meanwhile so that it is worth dialling at once.
    async fn sleep_unless_changed(
        &mut self,
        desired: &Arc<Desired>,
        wait: Duration,
        shutdown: &Shutdown,
    ) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => false,
            () = dial_changed(&mut self.desired, desired) => true,
            () = shutdown.begun() => false,
        }
    }
}

/// Resolves when the plan asks for another link than `dialled`, or for none. Never resolves when there are no plans any
/// more: the shutdown ends the wait then.
async fn dial_changed(desired: &mut watch::Receiver<Arc<Desired>>, dialled: &Arc<Desired>) {
    loop {
        if desired.changed().await.is_err() {
            return std::future::pending().await;
        }
        let next = desired.borrow();
        if idle(&next).is_some() || !next.dials_like(dialled) {
            drop(next);
            // What changed has still to be read.
            desired.mark_changed();
            return;
        }
    }
}

/// Whether two plans hold the very same assets; what a change leaves alone stays where it is in memory.
fn same(one: &[Arc<AssetPlan>], other: &[Arc<AssetPlan>]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
}

/// Why a device is not to be dialled.
fn idle(desired: &Desired) -> Option<Health> {
    if !desired.device.spec.effective_enabled() {
        let mut health = Health::unknown();
        health.reason = reasons::DISABLED.into();
        return Some(health);
    }
    desired.resolved.as_ref().err().cloned()
}

fn healthy(desired: &Desired) -> Health {
    let mut health = Health::healthy();
    if desired
        .resolved
        .as_ref()
        .is_ok_and(|resolved| resolved.trust.accept_untrusted)
    {
        "any certificate of the device is accepted (spec.trust.acceptUntrusted)"
            .clone_into(&mut health.evidence);
    }
    health
}

fn no_answer(what: &str) -> LinkError {
    LinkError::new(
        LinkErrorClass::Unreachable,
        format!("{what} did not end within {} s", PATIENCE.as_secs()),
    )
}

/// Waits between tries: short ones for what may pass, long ones for what needs a change.
struct Pace {
    soon: Backoff,
    slow: Backoff,
}

impl Pace {
    fn new(desired: &Desired, slow: SlowRetry) -> Self {
        let reconnect = desired.device.spec.reconnect.clone().unwrap_or_default();
        let soon = Backoff::new(reconnect.effective_initial(), reconnect.effective_maximum());
        Self {
            soon,
            slow: Backoff::new(slow.0, slow.1),
        }
    }

    fn wait(&mut self, class: LinkErrorClass) -> Duration {
        if class.needs_a_change() {
            self.slow.next_delay()
        } else {
            self.soon.next_delay()
        }
    }
}
