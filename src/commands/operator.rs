//! `foreshore operator`: the operator in a cluster.
//!
//! Every instance watches; one leads. It ends when it loses the lease: whatever it still had under way is safe to
//! repeat, and roles listen to the larger epoch.

use std::{net::Ipv4Addr, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use foreshore_control::ControlOptions;
use foreshore_operator::{
    Begin, Operator, Platform,
    control::{ControlPlane, Options as ControlPlaneOptions, Trust},
    kubernetes::{
        self, KubernetesSource, KubernetesStatus, OperatorMetrics, Revisions, Scope, TokenReviews, authority,
        lease::{Election, Leadership},
    },
    workloads::{
        pods::{Peers, PodWorkloads, Settings},
        ports,
    },
};
use foreshore_runtime::{HealthRegistry, Metrics, Shutdown, serve_http};
use foreshore_tls::{AuthorityOptions, Roots};
use tracing::info;

use super::{ADMIN, DRAIN, parse_time};
use crate::admin::Answerer;

/// Port of the control server.
const CONTROL_PORT: u16 = 7443;

/// How the operator is set up; its chart does so.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Namespace of the operator, for its lease and its authority.
    #[arg(long, env = "FORESHORE_NAMESPACE")]
    namespace: String,
    /// Name of this pod.
    #[arg(long, env = "FORESHORE_POD")]
    pod: String,
    /// Identity of this pod.
    #[arg(long, env = "FORESHORE_POD_UID")]
    pod_uid: String,
    /// Name by which roles reach operators: each address of it is tried.
    #[arg(long, value_name = "HOST", env = "FORESHORE_SERVICE")]
    service: String,
    /// Image of every role.
    #[arg(long, env = "FORESHORE_IMAGE")]
    image: String,
    /// When a node pulls it: Always, IfNotPresent or Never.
    #[arg(long, env = "FORESHORE_IMAGE_PULL_POLICY")]
    image_pull_policy: Option<String>,
    /// Secrets for the registry, separated by commas.
    #[arg(long, env = "FORESHORE_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    image_pull_secrets: Vec<String>,
    /// Namespaces to look after, separated by commas; all where none is named.
    #[arg(long, env = "FORESHORE_WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// Storage class of volumes whose manifest names none; the cluster's default where it is left out.
    #[arg(long, env = "FORESHORE_STORAGE_CLASS")]
    storage_class: Option<String>,
    /// Whether each workload gets a NetworkPolicy.
    #[arg(long, env = "FORESHORE_NETWORK_POLICIES", default_value_t = true, action = clap::ArgAction::Set)]
    network_policies: bool,
    /// Who may read the metrics of roles past such a policy: NetworkPolicy peers, as JSON; nobody where it is left out.
    #[arg(
        long,
        value_name = "JSON",
        env = "FORESHORE_METRICS_FROM",
        default_value = "[]"
    )]
    metrics_from: Peers,
    /// Time after which Secrets are read again.
    #[arg(long, value_name = "TIME", env = "FORESHORE_SECRET_REFRESH", default_value = "30s", value_parser = parse_time)]
    secret_refresh: Duration,
    /// Life of the certificates that roles show to each other; each renews its own at two thirds of it.
    #[arg(long, value_name = "TIME", env = "FORESHORE_CERTIFICATE_LIFETIME", default_value = "24h", value_parser = super::up::parse_certificate_lifetime)]
    certificate_lifetime: Duration,
    /// Secret of the operator's namespace with certificate and key (tls.crt, tls.key; ECDSA P-256, PKCS #8) of the
    /// authority that signs for roles, such as cert-manager makes; the operator makes its own where it is left out.
    #[arg(long, value_name = "NAME", env = "FORESHORE_AUTHORITY_SECRET")]
    authority_secret: Option<String>,
    /// Form of the roles' logs: human or json.
    #[arg(long, env = "FORESHORE_ROLE_LOG_FORMAT", default_value = "json")]
    role_log_format: String,
}

/// A chart writes a variable without a value where nothing is set.
fn set(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

fn all_set(values: Vec<String>) -> Vec<String> {
    values.into_iter().filter(|value| !value.is_empty()).collect()
}

/// Runs until it is told to end, or another one leads.
pub(crate) async fn run(options: Options) -> Result<()> {
    foreshore_tls::install_provider();
    let shutdown = Shutdown::new();
    shutdown.begin_on_signals(DRAIN).context("listen for signals")?;
    let (health, metrics) = (HealthRegistry::new(), Metrics::new());
    let http = SocketAddr::from((Ipv4Addr::UNSPECIFIED, ports::HTTP));
    let server = serve_http(http, health.clone(), metrics.clone(), shutdown.clone()).await?;
    info!(address = %server.address, "metrics and health");

    let metrics = OperatorMetrics::new(&metrics);
    let client = kubernetes::client().await.context("Kubernetes API")?;
    let scope = Scope {
        namespaces: all_set(options.watch_namespaces.clone()),
    };
    let refresh = options.secret_refresh;
    let mut source = KubernetesSource::start(
        client.clone(),
        scope.clone(),
        refresh,
        metrics.clone(),
        shutdown.clone(),
    );
    let component = health.component("manifests");
    if shutdown.or_begun(source.read()).await.is_none() {
        return Ok(());
    }
    component.ok();

    let mut election = Election::new(client.clone(), &options.namespace, &options.pod);
    let Some(leadership) = shutdown.or_begun(election.win()).await else {
        return Ok(());
    };
    metrics.leads();
    let parts = Parts {
        client,
        scope,
        source,
        metrics,
    };
    lead(options, parts, leadership, shutdown).await
}

/// What every instance has, whether it leads or not.
struct Parts {
    client: kubernetes::Client,
    scope: Scope,
    source: KubernetesSource,
    metrics: OperatorMetrics,
}

/// Does what only the leader may.
async fn lead(options: Options, parts: Parts, leadership: Leadership, shutdown: Shutdown) -> Result<()> {
    let Options {
        namespace,
        pod,
        pod_uid,
        service,
        image,
        image_pull_policy,
        image_pull_secrets,
        watch_namespaces: _,
        storage_class,
        network_policies,
        metrics_from,
        secret_refresh: _,
        certificate_lifetime,
        authority_secret,
        role_log_format,
    } = options;
    let Parts {
        client,
        scope,
        source,
        metrics,
    } = parts;
    let epoch = leadership.epoch();
    let given = set(authority_secret);
    let certificates = AuthorityOptions {
        leaf_lifetime: certificate_lifetime,
        roots: if given.is_some() { Roots::Given } else { Roots::Own },
        ..AuthorityOptions::default()
    };
    let authority = authority::open(client.clone(), &namespace, certificates, given.as_deref()).await;
    let authority = authority.context("certificate authority")?;
    if let Some(secret) = given {
        let following = authority::follow(
            client.clone(),
            namespace,
            secret,
            Arc::clone(&authority),
            shutdown.child(),
        );
        foreshore_runtime::spawn("authority", following).detach();
    }
    let settings = Settings {
        image,
        image_pull_policy: set(image_pull_policy),
        image_pull_secrets: all_set(image_pull_secrets),
        control: format!("{service}:{CONTROL_PORT}"),
        storage_class: set(storage_class),
        network_policies,
        metrics_from,
        log_format: role_log_format,
    };
    let workloads = PodWorkloads::start(
        &client,
        &scope,
        settings,
        Trust::from(Arc::clone(&authority)),
        metrics.clone(),
        shutdown.child(),
    );
    let earlier = Revisions::open(client.clone(), &scope, shutdown.child()).await;
    let earlier = earlier.context("versions that ran on")?;
    let control = ControlPlane::bind(ControlPlaneOptions {
        listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, CONTROL_PORT)),
        authority,
        authenticator: Arc::new(TokenReviews::new(client.clone(), workloads.identities())),
        server: ControlOptions::default(),
        uid: pod_uid,
    });
    let status = KubernetesStatus::new(client, &source, &pod, metrics);
    let operator = Operator::start(
        foreshore_operator::Options {
            source: Box::new(source),
            workloads: Arc::new(workloads),
            control: control.await.context("control server")?,
            platform: Platform::cluster(),
            begin: Begin::Lead { epoch, earlier },
            status: Some(Arc::new(status)),
        },
        shutdown.clone(),
    )
    .await?;
    let answerer = Answerer {
        operator: Some(operator.clone()),
        directory: Arc::default(),
    };
    answerer.serve_port(ADMIN, &shutdown).await?;
    tokio::select! {
        lost = leadership.hold(shutdown.clone()) => if let Some(reason) = lost {
            // Nothing in order: another one leads already, or is about to.
            bail!("this operator does not lead any more: {reason}");
        },
        ended = operator.ended() => if let Err(error) = ended.as_ref() {
            bail!("the operator ended: {error}");
        },
    }
    operator.shutdown(DRAIN);
    match operator.ended().await.as_ref() {
        Ok(()) => Ok(()),
        Err(error) => bail!("the operator ended: {error}"),
    }
}
