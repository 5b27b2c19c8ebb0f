//! The cloud endpoint, as its plan says.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use foreshore_cloud::{
    ApiToken, Cloud, CommandOptions, Handle, HistoryOptions, HttpOptions, JoinToken, ListenOptions, Options,
    Secret, TlsFiles,
};
use foreshore_control::{
    Aspect, Change, Health, Nack, PlanResource, Report, Reporter,
    plan::{CloudPlan, SecretPlan},
    session::agent::Role,
};
use foreshore_crds::{
    conditions::reasons,
    refs::{SecretRef, TLS_CERTIFICATE_KEY, TLS_PRIVATE_KEY_KEY},
};
use foreshore_operator::{
    RoleName,
    facts::{self, RoleFacts},
    workloads::{local::RoleError, ports},
};
use foreshore_runtime::{Shutdown, Task};

use super::{Assignment, CloudAccess, DRAIN, Directory, Observability, Roles, Site};

/// Who holds the token of this process, in errors.
const ADMIN_SOCKET: &str = "admin-socket";

/// Runs a cloud endpoint until its shutdown begins.
pub(super) async fn run(
    roles: &Roles,
    assignment: Assignment,
    observability: Observability,
) -> Result<(), RoleError> {
    let agent = roles.agent(&assignment)?;
    let role = CloudRole {
        reporter: agent.reporter(),
        data: roles.folder(&assignment).join("data"),
        observability,
        site: roles.site.clone(),
        directory: Arc::clone(&roles.directory),
        name: assignment.name.clone(),
        shutdown: assignment.shutdown.clone(),
        admin_token: format!(
            "{}{}",
            uuid::Uuid::new_v4().simple(),
            uuid::Uuid::new_v4().simple()
        ),
        secrets: BTreeMap::new(),
        plan: None,
        serving: None,
    };
    let ended = agent.run(role, assignment.shutdown.clone()).await;
    assignment.shutdown.begin(DRAIN);
    ended.map_err(RoleError::new)
}

struct CloudRole {
    reporter: Reporter,
    data: PathBuf,
    observability: Observability,
    site: Site,
    directory: Arc<Directory>,
    name: RoleName,
    shutdown: Shutdown,
    /// With which the admin socket asks, for whoever asked it.
    admin_token: String,
    secrets: BTreeMap<String, SecretPlan>,
    plan: Option<CloudPlan>,
    serving: Option<Serving>,
}

/// A cloud endpoint that serves.
struct Serving {
    handle: Handle,
    shutdown: Shutdown,
    task: Task<Result<(), foreshore_cloud::Error>>,
}

#[async_trait]
impl Role for CloudRole {
    async fn apply(&mut self, change: Change) -> Result<(), Nack> {
        match change {
            Change::Set(resource) if resource.key().kind == SecretPlan::KIND => {
                let secret: SecretPlan = resource.decode().map_err(undecodable)?;
                self.secrets.insert(secret.name.clone(), secret);
                self.set_tokens().await
            }
            Change::Set(resource) => {
                let plan: CloudPlan = resource.decode().map_err(undecodable)?;
                self.serve(plan).await
            }
            Change::Remove(key) if key.kind == SecretPlan::KIND => {
                self.secrets.remove(&key.name);
                Ok(())
            }
            Change::Remove(_) => {
                self.plan = None;
                self.stop().await;
                self.reporter.tell(RoleFacts::default());
                Ok(())
            }
            Change::SnapshotComplete => Ok(()),
        }
    }
}

fn undecodable(error: impl std::fmt::Display) -> Nack {
    Nack::new(reasons::INVALID, error.to_string())
}

impl CloudRole {
    fn secret(&self, name: &str) -> Result<&SecretPlan, Nack> {
        let missing = || {
            Nack::new(
                reasons::SECRET_NOT_FOUND,
                format!("secret {name:?} was not received"),
            )
        };
        self.secrets.get(name).ok_or_else(missing)
    }

    /// Tokens that admit edges: each key of the Secret is an edge.
    fn join_tokens(&self, plan: &CloudPlan) -> Result<Vec<JoinToken>, Nack> {
        let secret = self.secret(plan.spec.join_tokens_secret_ref.name.as_str())?;
        let tokens = secret.data.iter().map(|(edge, value)| {
            let not_text = || {
                Nack::new(
                    reasons::SECRET_INVALID,
                    format!("join token of edge {edge:?} is not text"),
                )
            };
            let token = value.as_text().ok_or_else(not_text)?;
            Ok(JoinToken {
                edge: edge.clone(),
                token: Secret::new(token),
                expires_at: None,
            })
        });
        tokens.collect()
    }

    fn tls(&self, reference: Option<&SecretRef>) -> Result<Option<TlsFiles>, Nack> {
        let Some(reference) = reference else {
            return Ok(None);
        };
        let name = reference.name.as_str();
        let secret = self.secret(name)?;
        let value = |key: &str| {
            let missing = || {
                Nack::new(
                    reasons::SECRET_KEY_MISSING,
                    format!("secret {name:?} has no key {key:?}"),
                )
            };
            secret
                .data
                .get(key)
                .map(|value| value.0.clone())
                .ok_or_else(missing)
        };
        Ok(Some(TlsFiles {
            certificate: value(TLS_CERTIFICATE_KEY)?,
            key: value(TLS_PRIVATE_KEY_KEY)?,
        }))
    }

    async fn set_tokens(&self) -> Result<(), Nack> {
        let (Some(plan), Some(serving)) = (&self.plan, &self.serving) else {
            return Ok(());
        };
        let failing = |error: foreshore_cloud::Error| Nack::new(reasons::FAILING, error.to_string());
        let (join, api) = (self.join_tokens(plan)?, self.api_tokens(plan)?);
        serving.handle.set_join_tokens(&join).await.map_err(failing)?;
        serving.handle.set_api_tokens(&api).map_err(failing)
    }

    /// Tokens of the JSON API: of the key that the manifest names, or of every key of the Secret, and the one of this
    /// process.
    fn api_tokens(&self, plan: &CloudPlan) -> Result<Vec<ApiToken>, Nack> {
        let reference = &plan.spec.api_token_secret_ref;
        let name = reference.name.as_str();
        let held = self.secret(name)?.data.iter();
        let wanted = held.filter(|(key, _)| {
            reference
                .key
                .as_ref()
                .is_none_or(|wanted| wanted.as_str() == *key)
        });
        let mut tokens = vec![ApiToken {
            name: ADMIN_SOCKET.to_owned(),
            token: Secret::new(&self.admin_token),
            speaks_for_others: true,
        }];
        for (key, value) in wanted {
            let not_text = || {
                Nack::new(
                    reasons::SECRET_INVALID,
                    format!("api token of {key:?} is not text"),
                )
            };
            tokens.push(ApiToken {
                name: key.clone(),
                token: Secret::new(value.as_text().ok_or_else(not_text)?),
                speaks_for_others: false,
            });
        }
        if tokens.len() == 1 {
            let message = format!("secret {name:?} has no token of the api");
            return Err(Nack::new(reasons::SECRET_KEY_MISSING, message));
        }
        Ok(tokens)
    }

    /// Serves as the plan says, in place of what was served before.
    async fn serve(&mut self, plan: CloudPlan) -> Result<(), Nack> {
        let options = self.options(&plan)?;
        self.stop().await;
        let shutdown = self.shutdown.child();
        let Observability { health, metrics } = &self.observability;
        let started = Cloud::start(options, health, metrics, shutdown.clone()).await;
        let (handle, task) = started.map_err(|error| {
            let reason = match &error {
                foreshore_cloud::Error::Listen { .. } => reasons::PORT_IN_USE,
                foreshore_cloud::Error::Store(_) => reasons::STORAGE_FAILED,
                _ => reasons::FAILING,
            };
            Nack::new(reason, error.to_string())
        })?;
        let scheme = if plan.spec.http.tls_secret_ref.is_some() {
            "https"
        } else {
            "http"
        };
        let url = format!("{scheme}://{}", self.site.dialled(handle.http_address()));
        let edges = self.site.dialled(handle.edge_link_address());
        let mut told = RoleFacts::default()
            .with(facts::EDGE_LINK, &edges)
            .with(facts::HTTP, &url);
        told.authority = Some(handle.trust_bundle().to_pem());
        self.reporter.tell(told);
        self.directory.clouds.lock().insert(
            self.name.clone(),
            CloudAccess {
                url: url.clone(),
                token: self.admin_token.clone(),
            },
        );
        let report = Report::new(
            CloudPlan::KIND,
            &plan.object,
            Aspect::endpoint(),
            Health::Available,
            reasons::HEALTHY,
        );
        self.reporter
            .report(report.message(format!("edges connect to {edges}, the api answers at {url}")));
        self.serving = Some(Serving {
            handle,
            shutdown,
            task,
        });
        self.plan = Some(plan);
        Ok(())
    }

    async fn stop(&mut self) {
        if let Some(Serving { shutdown, task, .. }) = self.serving.take() {
            shutdown.begin(DRAIN);
            if let Ok(Err(error)) = task.await {
                tracing::warn!(%error, "cloud endpoint ended");
            }
        }
    }

    fn options(&self, plan: &CloudPlan) -> Result<Options, Nack> {
        let spec = &plan.spec;
        let certificates = spec.certificates.clone().unwrap_or_default();
        let history = spec.history.clone().unwrap_or_default();
        let commands = spec.commands.clone().unwrap_or_default();
        // Unencrypted it is for this machine, or this pod, alone.
        let mut http = self.site.listen(spec.http.port, ports::CLOUD_API);
        if spec.http.tls_secret_ref.is_none() {
            http.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let edge_link = self.site.listen(spec.edge_link.port, ports::EDGE_LINK);
        Ok(Options {
            namespace: plan.object.namespace.clone(),
            name: plan.object.name.clone(),
            edge_link: ListenOptions {
                address: super::bind(
                    "spec.edgeLink.bindAddress",
                    spec.edge_link.bind_address.as_ref(),
                    edge_link,
                )?,
                tls: self.tls(spec.edge_link.tls_secret_ref.as_ref())?,
                host_names: spec
                    .edge_link
                    .host_names
                    .iter()
                    .map(|name| name.as_str().to_owned())
                    .chain(self.site.host.clone())
                    .collect(),
            },
            http: HttpOptions {
                address: super::bind("spec.http.bindAddress", spec.http.bind_address.as_ref(), http)?,
                tls: self.tls(spec.http.tls_secret_ref.as_ref())?,
                allow_plain: false,
            },
            join_tokens: self.join_tokens(plan)?,
            api_tokens: self.api_tokens(plan)?,
            certificate_lifetime: certificates.effective_lifetime(),
            renewal_grace: certificates.effective_renewal_grace(),
            history: HistoryOptions {
                max_age: history.effective_max_age(),
                max_bytes: history.max_bytes.map(|size| size.get()),
                ..HistoryOptions::default()
            },
            commands: CommandOptions {
                timeout: commands.effective_timeout(),
                max_timeout: commands.effective_max_timeout(),
                audit_max_age: commands.effective_audit_max_age(),
            },
            ..Options::new(&self.data, Secret::new(&self.admin_token))
        })
    }
}
