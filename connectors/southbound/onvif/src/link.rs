//! The link to one camera: nothing to keep open but the tasks that ask.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_connector_sdk::{
    Credentials, Emitter, EndSender, Ended, Endpoint, Health, Invocation, Link, LinkError, LinkErrorClass,
    Member, MemberHealth, plan::AssetPlan,
};
use foreshore_crds::v1alpha1::asset::Stream;
use foreshore_record::CommandOutcome;
use parking_lot::{Mutex, RwLock};
use reqwest::Url;
use tokio::task::AbortHandle;
use tracing::debug;

use crate::{
    action,
    authentication::{Authentication, User},
    camera::{Camera, DEVICE},
    client::{Client, Error},
    events::{self, Wanted},
    ptz::Movements,
    shared::Shared,
    snapshot, trust,
};

/// Failed questions in a row after which the camera is given up.
const PATIENCE: u32 = 3;

/// A link to one camera.
pub(crate) struct OnvifLink {
    shared: Arc<Shared>,
    ended: Ended,
    running: Mutex<Running>,
    keep_alive: AbortHandle,
    pull_point: events::Current,
}

/// Tasks that ask the camera.
#[derive(Default)]
struct Running {
    streams: BTreeMap<Member, (Stream, AbortHandle)>,
    events: Option<AbortHandle>,
}

// === impl OnvifLink ===

impl OnvifLink {
    /// Asks a camera about itself.
    pub(crate) async fn connect(endpoint: Endpoint, out: Emitter) -> Result<Self, LinkError> {
        let settings = endpoint.spec.onvif.clone().unwrap_or_default();
        let configuration = |message: String| LinkError::new(LinkErrorClass::Configuration, message);
        let address = Url::parse(&endpoint.address).map_err(|error| {
            configuration(format!("found address {:?}; a URL is allowed", endpoint.address))
                .with_evidence(error)
        })?;
        let user = match &endpoint.credentials {
            Credentials::Anonymous => None,
            Credentials::UsernamePassword { username, password } => Some(User {
                name: username.clone(),
                password: password.clone(),
            }),
            Credentials::Certificate { .. } => {
                return Err(configuration(
                    "x509 user certificates are not supported on ONVIF".to_owned(),
                ));
            }
        };
        let authentication = Authentication::new(user, settings.effective_username_token_fallback());
        let tls = trust::configuration(&endpoint.trust).map_err(|error| {
            configuration("certificates of spec.trust can't be used".to_owned()).with_evidence(error)
        })?;
        let timeout = settings.effective_request_timeout();
        let client = Client::new(authentication, timeout, tls).map_err(|error| {
            configuration("the HTTP client could not be made".to_owned()).with_evidence(error)
        })?;
        let camera = Camera::ask(&client, &address, &settings)
            .await
            .map_err(|error| error.to_link_error())?;
        debug!(
            profiles = camera.profiles.len(),
            ptz = camera.ptz.is_some(),
            "camera answers"
        );
        let shared = Arc::new(Shared {
            client: Arc::new(client),
            camera,
            out,
            settings,
            movements: Movements::default(),
            events: RwLock::default(),
        });
        let (sender, ended) = Ended::channel();
        let keep_alive = tokio::spawn(keep_alive(Arc::clone(&shared), sender)).abort_handle();
        Ok(Self {
            shared,
            ended,
            running: Mutex::default(),
            keep_alive,
            pull_point: events::Current::default(),
        })
    }

    fn observe_streams(&self, assets: &[Arc<AssetPlan>]) -> Vec<MemberHealth> {
        let mut wanted = BTreeMap::new();
        for asset in assets.iter().filter(|asset| asset.spec.effective_enabled()) {
            for stream in asset
                .spec
                .streams
                .iter()
                .filter(|stream| stream.snapshot.is_some())
            {
                let member = Member::Stream {
                    asset: asset.object.name.as_str().into(),
                    stream: stream.name.as_str().into(),
                };
                wanted.insert(member, stream.clone());
            }
        }
        let mut running = self.running.lock();
        running.streams.retain(|member, (stream, task)| {
            let stays = wanted.get(member) == Some(stream);
            if !stays {
                task.abort();
            }
            stays
        });
        let mut health = Vec::with_capacity(wanted.len());
        for (member, stream) in wanted {
            if !running.streams.contains_key(&member) {
                let task = tokio::spawn(snapshot::run(
                    Arc::clone(&self.shared),
                    member.clone(),
                    stream.clone(),
                ));
                running
                    .streams
                    .insert(member.clone(), (stream, task.abort_handle()));
                health.push(MemberHealth {
                    member,
                    health: Health::unknown(),
                });
            }
        }
        health
    }

    fn observe_events(&self, assets: &[Arc<AssetPlan>]) -> Vec<MemberHealth> {
        let mut wanted = Vec::new();
        for asset in assets.iter().filter(|asset| asset.spec.effective_enabled()) {
            for group in &asset.spec.event_groups {
                for event in &group.events {
                    let member = Member::Event {
                        asset: asset.object.name.as_str().into(),
                        group: group.name.as_str().into(),
                        event: event.name.as_str().into(),
                    };
                    wanted.push(Wanted {
                        member,
                        event: event.clone(),
                    });
                }
            }
        }
        let health = match (&self.shared.camera.events, wanted.is_empty()) {
            (None, false) => Health::unhealthy(
                foreshore_connector_sdk::health::reason::CONFIGURATION_REFUSED,
                "the camera has no event service",
            )
            .with_next_step("remove the event groups, or choose a camera with events"),
            _ => Health::unknown(),
        };
        let mut running = self.running.lock();
        let none = wanted.is_empty();
        let known = self.shared.wanted_events();
        let new = wanted.iter().filter(|wanted| !known.contains(wanted));
        let health = new
            .map(|wanted| MemberHealth {
                member: wanted.member.clone(),
                health: health.clone(),
            })
            .collect();
        *self.shared.events.write() = Arc::new(wanted);
        match (&self.shared.camera.events, &running.events) {
            (Some(address), None) if !none => {
                let current = Arc::clone(&self.pull_point);
                let task = events::run(Arc::clone(&self.shared), address.clone(), current);
                running.events = Some(tokio::spawn(task).abort_handle());
            }
            (_, Some(task)) if none => {
                task.abort();
                running.events = None;
                let (shared, point) = (Arc::clone(&self.shared), self.pull_point.lock().take());
                tokio::spawn(async move { events::end(&shared.client, point).await });
            }
            _ => {}
        }
        health
    }

    fn stop(&self) {
        let mut running = self.running.lock();
        running.streams.values().for_each(|(_, task)| task.abort());
        running.streams.clear();
        if let Some(task) = running.events.take() {
            task.abort();
        }
        self.keep_alive.abort();
    }
}

impl Drop for OnvifLink {
    fn drop(&mut self) {
        self.stop();
    }
}

#[async_trait]
impl Link for OnvifLink {
    async fn observe(&self, assets: &[Arc<AssetPlan>]) -> Result<Vec<MemberHealth>, LinkError> {
        let mut health = self.observe_streams(assets);
        health.extend(self.observe_events(assets));
        Ok(health)
    }

    async fn ended(&self) -> LinkError {
        let why = self.ended.why().await;
        why.unwrap_or_else(|| LinkError::new(LinkErrorClass::Unreachable, "the camera's task ended"))
    }

    async fn invoke(&self, invocation: Invocation) -> CommandOutcome {
        action::invoke(&self.shared, &invocation).await
    }

    async fn close(&self) {
        self.stop();
        let point = self.pull_point.lock().take();
        events::end(&self.shared.client, point).await;
    }
}

/// Asks whether the camera is there, so that one without streams is not healthy for ever.
async fn keep_alive(shared: Arc<Shared>, end: EndSender) {
    let interval = shared.settings.effective_keep_alive_interval();
    let body = format!("<GetSystemDateAndTime xmlns=\"{DEVICE}\"/>");
    let mut failures = 0;
    loop {
        // A camera that failed is asked again sooner.
        let wait = if failures == 0 {
            interval
        } else {
            interval.min(Duration::from_secs(2))
        };
        tokio::time::sleep(wait).await;
        match shared
            .client
            .call(&shared.camera.device, DEVICE, "GetSystemDateAndTime", &body)
            .await
        {
            // A camera that refuses is there; what answers nonsense is no camera, or no longer.
            Ok(_) | Err(Error::Fault { .. }) => failures = 0,
            Err(error) => {
                failures += 1;
                debug!(%error, failures, "camera does not answer");
                if failures >= PATIENCE || error == Error::Refused {
                    end.send(error.to_link_error());
                    return;
                }
            }
        }
    }
}
