//! A simulated asset: plays what its Simulator says, and tells where.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_control::session::agent::Role;
use foreshore_control::{
    Aspect, Change, Health, Nack, PlanResource, Report, Reporter,
    plan::{SecretPlan, SimulatorPlan},
};
use foreshore_crds::{
    conditions::reasons,
    refs::CredentialsSecretRef,
    v1alpha1::simulator::{self as api, OnvifSimulatorAuthentication},
};
use foreshore_operator::{
    facts::{self, RoleFacts},
    workloads::{local::RoleError, ports},
};
use foreshore_runtime::Task;
use foreshore_sim::{
    camera::{self, Accepted},
    faults::{Fault, FaultKind},
    line::{Line, STEP},
    opcua,
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Assignment, Roles, Site};

/// Runs a simulated asset until its shutdown begins.
pub(super) async fn run(roles: &Roles, assignment: Assignment) -> Result<(), RoleError> {
    let agent = roles.agent(&assignment)?;
    let role = Simulator {
        reporter: agent.reporter(),
        site: roles.site.clone(),
        directory: roles.folder(&assignment),
        secrets: BTreeMap::new(),
        plan: None,
        playing: None,
    };
    agent.run(role, assignment.shutdown).await.map_err(RoleError::new)
}

struct Simulator {
    reporter: Reporter,
    site: Site,
    directory: PathBuf,
    secrets: BTreeMap<String, SecretPlan>,
    plan: Option<SimulatorPlan>,
    playing: Option<Playing>,
}

/// A device that plays; ends when dropped.
struct Playing {
    token: CancellationToken,
    tasks: Vec<Task<()>>,
}

impl Drop for Playing {
    fn drop(&mut self) {
        self.token.cancel();
        self.tasks.iter().for_each(Task::abort);
    }
}

#[async_trait]
impl Role for Simulator {
    async fn apply(&mut self, change: Change) -> Result<(), Nack> {
        match change {
            Change::Set(resource) if resource.key().kind == SecretPlan::KIND => {
                let secret: SecretPlan = resource.decode().map_err(undecodable)?;
                let changed =
                    self.secrets.insert(secret.name.clone(), secret.clone()).as_ref() != Some(&secret);
                if changed && self.playing.is_some() {
                    self.play().await?;
                }
            }
            Change::Set(resource) => {
                self.plan = Some(resource.decode().map_err(undecodable)?);
                self.play().await?;
            }
            Change::Remove(key) if key.kind == SecretPlan::KIND => {
                self.secrets.remove(&key.name);
            }
            Change::Remove(_) => {
                self.plan = None;
                self.playing = None;
                self.reporter.tell(RoleFacts::default());
            }
            Change::SnapshotComplete => {}
        }
        Ok(())
    }
}

fn undecodable(error: impl std::fmt::Display) -> Nack {
    Nack::new(reasons::INVALID, error.to_string())
}

impl Simulator {
    /// Plays what the plan says, in place of what was played before.
    async fn play(&mut self) -> Result<(), Nack> {
        let Some(plan) = self.plan.clone() else {
            return Ok(());
        };
        let before = self.playing.take();
        if let Some(mut before) = before {
            before.token.cancel();
            // The port must be free again.
            for task in before.tasks.drain(..) {
                drop(tokio::time::timeout(Duration::from_secs(2), task).await);
            }
        }
        let (playing, address) = if plan.spec.opcua.is_some() {
            self.play_line(&plan).await?
        } else {
            self.play_camera(&plan).await?
        };
        self.playing = Some(playing);
        self.reporter
            .tell(RoleFacts::default().with(facts::DEVICE, &address));
        let report = Report::new(
            SimulatorPlan::KIND,
            &plan.object,
            Aspect::endpoint(),
            Health::Available,
            reasons::HEALTHY,
        );
        self.reporter
            .report(report.message(format!("answers at {address}")));
        Ok(())
    }

    fn listen(&self, plan: &SimulatorPlan) -> Result<SocketAddr, Nack> {
        let usual = if plan.spec.onvif.is_some() {
            ports::ONVIF
        } else {
            ports::OPCUA
        };
        let listen = self.site.listen(plan.spec.effective_port(), usual);
        super::bind("spec.bindAddress", plan.spec.bind_address.as_ref(), listen)
    }

    fn user(&self, reference: Option<&CredentialsSecretRef>) -> Result<Option<(String, String)>, Nack> {
        let Some(reference) = reference else {
            return Ok(None);
        };
        let name = reference.name.as_str();
        let missing = || {
            Nack::new(
                reasons::SECRET_NOT_FOUND,
                format!("secret {name:?} was not received"),
            )
        };
        let secret = self.secrets.get(name).ok_or_else(missing)?;
        let value = |key: &str| {
            let missing = || {
                Nack::new(
                    reasons::SECRET_KEY_MISSING,
                    format!("secret {name:?} has no text {key:?}"),
                )
            };
            secret
                .data
                .get(key)
                .and_then(|value| value.as_text())
                .map(ToOwned::to_owned)
                .ok_or_else(missing)
        };
        Ok(Some((
            value(reference.effective_username_key())?,
            value(reference.effective_password_key())?,
        )))
    }

    async fn play_line(&self, plan: &SimulatorPlan) -> Result<(Playing, String), Nack> {
        let spec = plan.spec.opcua.clone().unwrap_or_default();
        let options = opcua::Options {
            listen: self.listen(plan)?,
            host: self.site.host.clone(),
            seed: plan.spec.effective_seed(),
            users: self.user(spec.user_secret_ref.as_ref())?.into_iter().collect(),
            anonymous: spec.effective_anonymous(),
            load_points: spec.effective_load_points(),
            load_interval: spec.effective_load_interval(),
            pki_dir: self.directory.join("pki"),
        };
        let bound = opcua::Plant::bind(options).await;
        let (plant, listener) = bound.map_err(|error| Nack::new(reasons::PORT_IN_USE, error.to_string()))?;
        let (handle, token) = (plant.handle(), CancellationToken::new());
        let address = handle.url().to_owned();
        let serving = token.clone();
        let mut tasks = vec![foreshore_runtime::spawn("simulated line", async move {
            if let Err(error) = plant.run(listener, serving).await {
                warn!(%error, "simulated line ended");
            }
        })];
        for fault in plan.spec.faults.clone() {
            let handle = handle.clone();
            tasks.push(foreshore_runtime::spawn(
                "fault of the simulated line",
                async move {
                    repeat(&fault, |fault| handle.inject(fault)).await;
                },
            ));
        }
        Ok((Playing { token, tasks }, address))
    }

    async fn play_camera(&self, plan: &SimulatorPlan) -> Result<(Playing, String), Nack> {
        let spec = plan.spec.onvif.clone().unwrap_or_default();
        let size = |pixels: u32| u16::try_from(pixels).unwrap_or(640);
        let options = camera::Options {
            listen: self.listen(plan)?,
            host: self.site.host.clone(),
            seed: plan.spec.effective_seed(),
            user: self.user(spec.user_secret_ref.as_ref())?,
            accepted: match spec.effective_authentication() {
                OnvifSimulatorAuthentication::Digest => Accepted::Digest,
                OnvifSimulatorAuthentication::UsernameToken => Accepted::UsernameToken,
                OnvifSimulatorAuthentication::Both => Accepted::Both,
            },
            clock_skew_millis: 0,
            motion_interval: spec.effective_motion_interval(),
            size: (size(spec.effective_width()), size(spec.effective_height())),
        };
        let line = Arc::new(Mutex::new(Line::new(plan.spec.effective_seed())));
        let bound = camera::Service::bind(options, Arc::clone(&line)).await;
        let (service, listener) =
            bound.map_err(|error| Nack::new(reasons::PORT_IN_USE, error.to_string()))?;
        let (handle, token) = (service.handle(), CancellationToken::new());
        let address = handle.device_service();
        let serving = token.clone();
        let mut tasks = vec![
            foreshore_runtime::spawn("simulated camera", async move {
                if let Err(error) = service.run(listener, serving).await {
                    warn!(%error, "simulated camera ended");
                }
            }),
            foreshore_runtime::spawn("line before the simulated camera", advance(line)),
        ];
        for fault in plan.spec.faults.clone() {
            let handle = handle.clone();
            tasks.push(foreshore_runtime::spawn(
                "fault of the simulated camera",
                async move {
                    repeat(&fault, |fault| handle.inject(fault)).await;
                },
            ));
        }
        Ok((Playing { token, tasks }, address))
    }
}

/// Lets the line run that a camera looks at.
async fn advance(line: Arc<Mutex<Line>>) {
    let mut steps = tokio::time::interval(STEP);
    loop {
        steps.tick().await;
        drop(line.lock().step());
    }
}

/// Lets something go wrong again and again, as the manifest says.
async fn repeat<F: Future<Output = ()>>(declared: &api::Fault, inject: impl Fn(Fault) -> F) {
    let fault = Fault {
        kind: match declared.kind {
            api::FaultKind::DropConnections => FaultKind::DropConnections,
            api::FaultKind::Refuse => FaultKind::Refuse,
            api::FaultKind::Slow => FaultKind::Slow,
            api::FaultKind::BadStatus => FaultKind::BadStatus,
            api::FaultKind::Restart => FaultKind::Restart,
        },
        seconds: u32::try_from(declared.effective_duration().as_secs()).unwrap_or(u32::MAX),
        delay_millis: declared.delay.map_or(0, |delay| {
            u32::try_from(delay.get().as_millis()).unwrap_or(u32::MAX)
        }),
    };
    let mut beginnings = tokio::time::interval(declared.every.get().max(Duration::from_secs(1)));
    // The first is due at once; a plant begins well.
    beginnings.tick().await;
    loop {
        beginnings.tick().await;
        inject(fault).await;
    }
}
