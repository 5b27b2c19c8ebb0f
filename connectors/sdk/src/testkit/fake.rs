//! A connector that does as it is told.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_record::{CommandOutcome, DataValue};
use futures::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    contract::{Connector, Link, LinkError, Refusal},
    emitter::Emitter,
    ended::{EndSender, Ended},
    endpoint::Endpoint,
    health::{Health, Member, MemberHealth},
    invocation::Invocation,
    observation::{DatasetValues, Observation},
    plan::{AssetPlan, DevicePlan},
};

type Judge = Box<dyn Fn(&DevicePlan, &[Arc<AssetPlan>]) -> Vec<Refusal> + Send>;
type Invoke = Arc<dyn Fn(Invocation) -> BoxFuture<'static, CommandOutcome> + Send + Sync>;

/// A connector of the protocol `fake` (a custom one) that does as the test tells it, and remembers what it was asked.
#[derive(Clone)]
pub struct FakeConnector {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    judge: Option<Judge>,
    invoke: Option<Invoke>,
    refusal: Option<LinkError>,
    overlaps: bool,
    dials: Vec<Endpoint>,
    observed: Vec<Vec<Arc<AssetPlan>>>,
    invocations: Vec<Invocation>,
    closed: usize,
    link: Option<Present>,
}

/// The link that was made last.
struct Present {
    emitter: Emitter,
    end: EndSender,
}

struct FakeLink {
    shared: Arc<Shared>,
    ended: Ended,
}

impl Default for FakeConnector {
    fn default() -> Self {
        let shared = Shared {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock());
        self.changed.send_modify(|changes| *changes += 1);
        result
    }
}

impl FakeConnector {
    /// Says from now on what of a plan can't be done.
    pub fn judge(&self, judge: impl Fn(&DevicePlan, &[Arc<AssetPlan>]) -> Vec<Refusal> + Send + 'static) {
        self.shared.change(|state| state.judge = Some(Box::new(judge)));
    }

    /// Refuses every dial with an error, or takes them again.
    pub fn refuse_dials(&self, refusal: Option<LinkError>) {
        self.shared.change(|state| state.refusal = refusal);
    }

    /// Carries out commands from now on; without this they give `null`.
    pub fn on_invoke(
        &self,
        invoke: impl Fn(Invocation) -> BoxFuture<'static, CommandOutcome> + Send + Sync + 'static,
    ) {
        self.shared.change(|state| state.invoke = Some(Arc::new(invoke)));
    }

    /// Lets two links see the same, from now on.
    pub fn overlap(&self) {
        self.shared.change(|state| state.overlaps = true);
    }

    /// Every dial, refused ones included.
    #[must_use]
    pub fn dials(&self) -> Vec<Endpoint> {
        self.shared.state.lock().dials.clone()
    }

    /// What each call of `observe` asked for.
    #[must_use]
    pub fn observed(&self) -> Vec<Vec<Arc<AssetPlan>>> {
        self.shared.state.lock().observed.clone()
    }

    /// Every command that reached the link.
    #[must_use]
    pub fn invocations(&self) -> Vec<Invocation> {
        self.shared.state.lock().invocations.clone()
    }

    /// Links that were closed in order.
    #[must_use]
    pub fn closed(&self) -> usize {
        self.shared.state.lock().closed
    }

    /// The emitter of the link that was made last.
    #[must_use]
    pub fn emitter(&self) -> Option<Emitter> {
        self.shared
            .state
            .lock()
            .link
            .as_ref()
            .map(|link| link.emitter.clone())
    }

    /// Loses the link that was made last.
    pub fn lose(&self, error: LinkError) {
        self.shared.change(|state| {
            if let Some(link) = &state.link {
                link.end.send(error);
            }
        });
    }

    /// Waits until something holds of this connector; whether it did within `within`.
    pub async fn wait_until(&self, within: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            while !holds(self) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(within, wait).await.is_ok()
    }

    /// An observation of one dataset, every value good and of now.
    #[must_use]
    pub fn values(asset: &str, dataset: &str, values: &[(&str, i64)]) -> Observation {
        let now = Timestamp::now();
        let value = |(point, value): &(&str, i64)| (Arc::from(*point), DataValue::good(*value, now));
        Observation::Dataset(DatasetValues {
            asset: Arc::from(asset),
            dataset: Arc::from(dataset),
            values: values.iter().map(value).collect(),
        })
    }
}

#[async_trait]
impl Connector for FakeConnector {
    fn protocol(&self) -> &'static str {
        "fake"
    }

    fn overlaps(&self) -> bool {
        self.shared.state.lock().overlaps
    }

    fn check(&self, device: &DevicePlan, assets: &[Arc<AssetPlan>]) -> Result<(), Vec<Refusal>> {
        let state = self.shared.state.lock();
        let refusals = state
            .judge
            .as_ref()
            .map(|judge| judge(device, assets))
            .unwrap_or_default();
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(refusals)
        }
    }

    async fn connect(&self, endpoint: Endpoint, out: Emitter) -> Result<Box<dyn Link>, LinkError> {
        let (end, ended) = Ended::channel();
        self.shared.change(|state| {
            state.dials.push(endpoint);
            match state.refusal.clone() {
                Some(refusal) => Err(refusal),
                None => {
                    state.link = Some(Present { emitter: out, end });
                    Ok(())
                }
            }
        })?;
        Ok(Box::new(FakeLink {
            shared: Arc::clone(&self.shared),
            ended,
        }))
    }
}

#[async_trait]
impl Link for FakeLink {
    async fn observe(&self, assets: &[Arc<AssetPlan>]) -> Result<Vec<MemberHealth>, LinkError> {
        self.shared.change(|state| state.observed.push(assets.to_vec()));
        let datasets = assets.iter().flat_map(|asset| {
            asset.spec.datasets.iter().map(|dataset| MemberHealth {
                member: Member::Dataset {
                    asset: Arc::from(asset.object.name.as_str()),
                    dataset: Arc::from(dataset.name.as_str()),
                },
                health: Health::healthy(),
            })
        });
        Ok(datasets.collect())
    }

    async fn ended(&self) -> LinkError {
        match self.ended.why().await {
            Some(why) => why,
            // The connector made another link; this one is nobody's any more.
            None => std::future::pending().await,
        }
    }

    async fn invoke(&self, invocation: Invocation) -> CommandOutcome {
        let invoke = self.shared.change(|state| {
            state.invocations.push(invocation.clone());
            state.invoke.clone()
        });
        match invoke {
            Some(invoke) => invoke(invocation).await,
            None => Ok(serde_json::Value::Null),
        }
    }

    async fn close(&self) {
        self.shared.change(|state| state.closed += 1);
    }
}
