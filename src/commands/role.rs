//! `foreshore broker|connector|dataflow|simulator|cloud`: one role, as the operator runs it in a pod.
//!
//! What it shall do, the operator tells it in its plan; where the operator is, and how to prove itself to it, stands in
//! the environment of the pod.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use foreshore_control::enroll::CredentialFile;
use foreshore_crds::v1alpha1::Protocol;
use foreshore_operator::RoleName;
use foreshore_runtime::Shutdown;
use foreshore_tls::{Role, RoleIdentity, TrustBundle, read_bounded};

use super::{ADMIN, DRAIN, encryption::Encryption};
use crate::{
    admin::Answerer,
    roles::{Assignment, Directory, Roles, Site, Work},
};

/// How long a connector may take: others take its devices first. A pod has 30 s.
const CONNECTOR_DRAIN: Duration = Duration::from_secs(25);
/// Largest file of roots to trust, in bytes.
const LARGEST_TRUST: u64 = 1 << 20;

/// How a role reaches its operator, and where it serves.
#[derive(clap::Args)]
#[group(id = "role")]
pub(crate) struct Options {
    /// Addresses of the operator, `host:port`; a name with several addresses counts as each of them.
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "FORESHORE_CONTROL",
        value_delimiter = ','
    )]
    control: Vec<String>,
    /// File with the bootstrap credential, such as a projected ServiceAccount token.
    #[arg(long, value_name = "FILE", env = "FORESHORE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// File with the roots to trust at the first start (PEM).
    #[arg(long, value_name = "FILE", env = "FORESHORE_TRUST_FILE")]
    trust_file: Option<PathBuf>,
    /// What this role is called, for its own log and folder; who it is, its credential says.
    #[arg(long, value_name = "NAMESPACE/NAME", env = "FORESHORE_ROLE_NAME")]
    role_name: Option<String>,
    /// Identity of this pod: what an earlier one left on the volume proves nothing for it.
    #[arg(long, env = "FORESHORE_POD_UID")]
    pod_uid: Option<String>,
    /// Name by which others reach it.
    #[arg(long, value_name = "HOST", env = "FORESHORE_HOST")]
    host: Option<String>,
    /// Directory of everything that is kept.
    #[arg(
        id = "role_data",
        long = "role-data",
        value_name = "DIR",
        env = "FORESHORE_DATA"
    )]
    data: Option<PathBuf>,
}

/// A southbound connector.
#[derive(clap::Args)]
pub(crate) struct Connector {
    /// What it speaks: opcua or onvif.
    #[arg(value_parser = parse_protocol)]
    protocol: Protocol,
    #[command(flatten)]
    role: Options,
}

fn parse_protocol(text: &str) -> Result<Protocol, String> {
    [Protocol::Opcua, Protocol::Onvif]
        .into_iter()
        .find(|protocol| protocol.as_str() == text)
        .ok_or_else(|| format!("found {text:?}, opcua and onvif are built in"))
}

impl Connector {
    /// Runs until it is told to end.
    pub(crate) async fn run(self) -> Result<()> {
        self.role
            .run(Role::Connector, Work::Connector(self.protocol))
            .await
    }
}

impl Options {
    /// Whether an operator is named, that tells the role what to do.
    pub(crate) fn has_operator(&self) -> bool {
        !self.control.is_empty()
    }

    /// Runs until it is told to end.
    ///
    /// # Errors
    /// When something of the environment is missing, or the role ends by itself.
    pub(crate) async fn run(self, role: Role, work: Work) -> Result<()> {
        self.run_encrypting(role, work, Encryption::default()).await
    }

    /// As [`Options::run`], with what a broker encrypts its store with.
    ///
    /// # Errors
    /// As [`Options::run`].
    pub(crate) async fn run_encrypting(self, role: Role, work: Work, encryption: Encryption) -> Result<()> {
        foreshore_tls::install_provider();
        let Self {
            control,
            token_file,
            trust_file,
            role_name,
            pod_uid,
            host,
            data,
        } = self;
        if control.is_empty() {
            bail!(
                "no operator is named: --control HOST:PORT; `foreshore up DIR` runs every role on one machine"
            );
        }
        let role_name = role_name.context("--role-name NAMESPACE/NAME is missing")?;
        let (namespace, name) = role_name
            .split_once('/')
            .with_context(|| format!("--role-name: found {role_name:?}, allowed is NAMESPACE/NAME"))?;
        let token_file = token_file.context("--token-file FILE is missing")?;
        let trust_file = trust_file.context("--trust-file FILE is missing")?;
        let trust = read_bounded(&trust_file, LARGEST_TRUST)
            .and_then(|pem| TrustBundle::from_pem(&pem))
            .with_context(|| format!("roots to trust in {}", trust_file.display()))?;
        let data = data.context("--role-data DIR is missing")?;
        let expected = pod_uid
            .map(|uid| RoleIdentity::new(role, namespace, name, uid))
            .transpose()
            .context("--pod-uid")?;

        let shutdown = Shutdown::new();
        let drain = if role == Role::Connector {
            CONNECTOR_DRAIN
        } else {
            DRAIN
        };
        shutdown.begin_on_signals(drain).context("listen for signals")?;
        let directory = Arc::new(Directory::default());
        let answerer = Answerer {
            operator: None,
            directory: Arc::clone(&directory),
        };
        answerer.serve_port(ADMIN, &shutdown).await?;
        let roles = Roles::new(data, Site::pod(host), directory).encrypting(encryption);
        let assignment = Assignment {
            name: RoleName::new(role, namespace, name),
            ordinal: 0,
            work,
            expected,
            credentials: Arc::new(CredentialFile(token_file)),
            control,
            trust,
            shutdown: shutdown.clone(),
        };
        let ended = roles.work(assignment).await;
        if shutdown.is_begun() {
            return ended.map_err(Into::into);
        }
        match ended {
            Err(error) => bail!("{}: {error}", error.reason),
            Ok(()) => bail!("the role ended by itself"),
        }
    }
}
