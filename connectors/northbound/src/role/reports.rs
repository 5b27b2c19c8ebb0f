//! Reports of a runner: the health of every sink and every endpoint, with the totals of their paths.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use foreshore_control::{
    Aspect, AspectKind, Health, PlanResource, Report, Reporter, ResourceKey,
    plan::{DataflowPlan, EndpointPlan, ObjectRef},
    queue::{PathTotals, Paths},
};
use foreshore_runtime::Shutdown;
use parking_lot::Mutex;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::task::TaskTracker;

use super::Held;
use crate::{
    factory::{SinkSetup, Surroundings},
    health::{SinkHealth, reason},
    metrics::{DataflowMetrics, SinkLabels},
};

/// A sink that is reported.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) setup: SinkSetup,
    /// The endpoint that its records come from, instead of a broker of ours.
    pub(super) source: Option<ObjectRef>,
    pub(super) paths: Arc<dyn Paths>,
}

/// Reports what couriers say.
pub(super) struct Reports {
    shared: Arc<Shared>,
}

struct Shared {
    reporter: Option<Reporter>,
    metrics: DataflowMetrics,
    state: Mutex<State>,
    /// Rises with every change of health.
    changed: watch::Sender<u64>,
    shutdown: Shutdown,
}

#[derive(Default)]
struct State {
    shown: Vec<Shown>,
    health: HashMap<String, watch::Receiver<SinkHealth>>,
    totals: HashMap<String, PathTotals>,
    /// What was reported last, to be retracted when it is gone.
    reported: Vec<(ResourceKey, Aspect)>,
    disabled: Vec<ObjectRef>,
}

impl Reports {
    /// Starts to report.
    pub(super) fn start(
        surroundings: &Surroundings,
        metrics: DataflowMetrics,
        tasks: &TaskTracker,
        interval: Duration,
    ) -> Self {
        let shared = Arc::new(Shared {
            reporter: surroundings.reporter.clone(),
            metrics,
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            shutdown: surroundings.shutdown.clone(),
        });
        let running = Arc::clone(&shared);
        tasks.spawn(async move { running.run(interval).await });
        Self { shared }
    }

    /// Where a courier says how its sink is.
    pub(super) fn watch(&self, path: &str, health: SinkHealth) -> watch::Sender<SinkHealth> {
        let (sender, receiver) = watch::channel(health);
        let mut changes = receiver.clone();
        self.shared.state.lock().health.insert(path.to_owned(), receiver);
        let changed = self.shared.changed.clone();
        // Ends with the courier, which owns the sender.
        foreshore_runtime::spawn("sink health", async move {
            while changes.changed().await.is_ok() {
                changed.send_modify(|changes| *changes += 1);
            }
        })
        .detach();
        sender
    }

    /// From now on these sinks are reported.
    pub(super) fn show(&self, held: &Held, shown: &[Shown]) {
        let mut state = self.shared.state.lock();
        state
            .health
            .retain(|path, _| shown.iter().any(|shown| shown.setup.path == *path));
        state
            .totals
            .retain(|path, _| shown.iter().any(|shown| shown.setup.path == *path));
        state.shown = shown.to_vec();
        let disabled = held
            .dataflows
            .values()
            .filter(|dataflow| !dataflow.spec.effective_enabled());
        state.disabled = disabled.map(|dataflow| dataflow.object.clone()).collect();
        drop(state);
        self.shared.changed.send_modify(|changes| *changes += 1);
    }
}

impl Shared {
    async fn run(&self, interval: Duration) {
        let mut changed = self.changed.subscribe();
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shutdown.begun() => return,
                _ = ticks.tick() => {
                    if self.shutdown.or_begun(self.ask_totals()).await.is_none() {
                        return;
                    }
                }
                // The sender lives as long as this does.
                _ = changed.changed() => {}
            }
            self.report();
        }
    }

    /// Asks every broker once for the totals of its paths.
    async fn ask_totals(&self) {
        let mut brokers: Vec<Arc<dyn Paths>> = Vec::new();
        for shown in &self.state.lock().shown {
            if !brokers.iter().any(|known| Arc::ptr_eq(known, &shown.paths)) {
                brokers.push(Arc::clone(&shown.paths));
            }
        }
        for paths in brokers {
            // A broker that does not answer shows in the health of its sinks.
            let Ok(totals) = paths.totals().await else {
                continue;
            };
            let mut state = self.state.lock();
            for totals in totals {
                let Some(shown) = state
                    .shown
                    .iter()
                    .find(|shown| shown.setup.path == totals.ledger.path)
                else {
                    continue;
                };
                self.metrics.lag(&labels(&shown.setup), &totals);
                state.totals.insert(totals.ledger.path.clone(), totals);
            }
        }
    }

    fn report(&self) {
        let Some(reporter) = &self.reporter else { return };
        let mut state = self.state.lock();
        let reports = state.reports();
        let now: Vec<_> = reports
            .iter()
            .map(|report| (report.object.clone(), report.aspect.clone()))
            .collect();
        let gone = std::mem::replace(&mut state.reported, now.clone());
        drop(state);
        for (object, aspect) in gone.iter().filter(|reported| !now.contains(reported)) {
            reporter.retract(object, aspect);
        }
        for report in reports {
            reporter.report(report);
        }
    }
}

fn labels(setup: &SinkSetup) -> SinkLabels {
    SinkLabels {
        namespace: setup.dataflow.namespace.as_str().into(),
        dataflow: setup.dataflow.name.as_str().into(),
        sink: setup.sink.name.as_str().into(),
    }
}

impl State {
    fn health_of(&self, setup: &SinkSetup) -> SinkHealth {
        self.health
            .get(&setup.path)
            .map_or_else(SinkHealth::starting, |health| health.borrow().clone())
    }

    fn reports(&self) -> Vec<Report> {
        let mut reports = Vec::new();
        // The worst that the sinks of an endpoint say is the endpoint's.
        let mut endpoints: BTreeMap<String, (&ObjectRef, SinkHealth)> = BTreeMap::new();
        let mut say = |object, health: SinkHealth| {
            let key = ObjectRef::to_string(object);
            let worst = endpoints.entry(key).or_insert_with(|| (object, health.clone()));
            if badness(&health) > badness(&worst.1) {
                *worst = (object, health);
            }
        };
        for Shown { setup, source, .. } in &self.shown {
            let health = self.health_of(setup);
            reports.push(self.sink_report(setup, &health));
            let target = &setup.endpoint.endpoint.object;
            match source {
                // Of the sink nothing is known while nothing comes.
                Some(source)
                    if [reason::QUEUE_UNAVAILABLE, reason::QUEUE_FORBIDDEN].contains(&health.reason) =>
                {
                    say(target, SinkHealth::starting());
                    say(source, health);
                }
                // Whatever the sink says, its source is read.
                Some(source) if health.reason != reason::STARTING => {
                    say(source, SinkHealth::delivering());
                    say(target, health);
                }
                Some(source) => {
                    say(source, health.clone());
                    say(target, health);
                }
                None => say(target, health),
            }
        }
        for (object, health) in endpoints.into_values() {
            let report = Report::new(
                EndpointPlan::KIND,
                object,
                Aspect::endpoint(),
                health.health,
                health.reason,
            );
            reports.push(report.evidence(health.evidence));
        }
        for object in &self.disabled {
            let aspect = Aspect::new(AspectKind::Path, "");
            reports.push(Report::new(
                DataflowPlan::KIND,
                object,
                aspect,
                Health::Unknown,
                reason::DISABLED,
            ));
        }
        reports
    }

    fn sink_report(&self, setup: &SinkSetup, health: &SinkHealth) -> Report {
        let aspect = Aspect::new(AspectKind::Path, setup.sink.name.as_str());
        let mut report = Report::new(
            DataflowPlan::KIND,
            &setup.dataflow,
            aspect,
            health.health,
            health.reason,
        )
        .evidence(health.evidence.clone());
        let Some(totals) = self.totals.get(&setup.path) else {
            return report;
        };
        let ledger = &totals.ledger;
        let waiting = format!(
            "{} records wait, the oldest for {} s",
            ledger.waiting,
            totals.oldest_age.as_secs()
        );
        report = report
            .message(waiting)
            .counter("received", ledger.received)
            .counter("delivered", ledger.delivered)
            .counter("dead_lettered", ledger.dead_lettered)
            .counter("dropped", ledger.dropped_total());
        report
    }
}

/// What outweighs what.
fn badness(health: &SinkHealth) -> u8 {
    match health.health {
        Health::Available => 0,
        Health::Unknown => 1,
        Health::Degraded => 2,
        Health::Unavailable => 3,
    }
}
