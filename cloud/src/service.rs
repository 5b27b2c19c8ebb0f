//! The cloud endpoint as a whole: opened, served, ended.

use std::{net::SocketAddr, sync::Arc};

use foreshore_control::transport::{self, Keepalive, ServeOptions, serve_tls};
use foreshore_edgelink::{
    limits::MAX_FRAME_BYTES,
    proto::{edge_link_server::EdgeLinkServer, provisioning_server::ProvisioningServer},
};
use foreshore_runtime::{HealthHandle, HealthRegistry, Metrics, Shutdown, Task, TaskError};
use foreshore_tls::{
    AuthorityOptions, CertificateAuthority, ClientAuth, Credentials, Identity, Role, RoleIdentity,
    ServerName, TrustBundle,
};
use jiff::Timestamp;
use tokio::{net::TcpListener, task::spawn_blocking};
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tracing::info;

use crate::{
    api::{self, Api, Tokens},
    audit,
    commands::Commands,
    directory::Directory,
    link::{Budget, Ingest, LinkService, Sessions},
    metrics::{LinkMetrics, StoreMetrics},
    options::{ApiToken, InvalidOption, JoinToken, Options, TlsFiles},
    provisioning::{Nonces, Provisioner, token_hash},
    store::{
        Context, Priority, Store, StoreError,
        edges::{self, TokenRow},
        retention::Retention,
    },
    times::nanoseconds,
};

/// Folder of the authority in the data directory.
const AUTHORITY: &str = "authority";

/// Why a cloud endpoint does not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options can't be used.
    #[error(transparent)]
    Options(#[from] InvalidOption),
    /// The store can't be opened, or can't go on.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates or keys can't be used.
    #[error(transparent)]
    Tls(#[from] foreshore_tls::Error),
    /// An address can't be listened on.
    #[error("can't listen on {address} for {what}: {source}")]
    Listen {
        /// What for.
        what: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The server of edges' streams ended.
    #[error(transparent)]
    Link(#[from] transport::Error),
    /// A task ended unexpectedly, which is a fault of ours.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// A cloud endpoint that is ready to serve: everything is opened, and both ports are taken.
pub struct Cloud {
    handle: Handle,
    options: Options,
    authority: Arc<CertificateAuthority>,
    identity: Identity,
    own: Own,
    edge_link: TcpListener,
    http: TcpListener,
    http_tls: Option<TlsAcceptor>,
    sessions: Sessions,
    commands: Commands,
    metrics: LinkMetrics,
    health: Health,
}

/// What the server shows to edges.
enum Own {
    /// A certificate of its own authority for these names, renewed by itself.
    Issued(RoleIdentity, Vec<ServerName<'static>>),
    /// One that it was given.
    Given,
}

struct Health {
    store: HealthHandle,
    edge_link: HealthHandle,
    http: HealthHandle,
}

/// A cloud endpoint that runs. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    store: Store,
    directory: Directory,
    authority: Arc<CertificateAuthority>,
    edge_link: SocketAddr,
    http: SocketAddr,
    tokens: Tokens,
}

impl Handle {
    /// Where edges connect.
    #[must_use]
    pub fn edge_link_address(&self) -> SocketAddr {
        self.edge_link
    }

    /// Where the JSON API answers.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// Roots of its own authority: what an edge must trust to enroll, unless the server was given a certificate of
    /// another.
    #[must_use]
    pub fn trust_bundle(&self) -> TrustBundle {
        self.authority.bundle()
    }

    /// Takes a set of join tokens in the place of the present one. One that stays keeps the key that it is bound to.
    ///
    /// # Errors
    /// [`Error::Options`] when a token can't be used; then none is changed. [`Error::Store`].
    pub async fn set_join_tokens(&self, tokens: &[JoinToken]) -> Result<(), Error> {
        tokens.iter().try_for_each(JoinToken::validate)?;
        let rows: Vec<TokenRow> = tokens
            .iter()
            .map(|token| TokenRow {
                hash: token_hash(token.token.expose()),
                edge: token.edge.clone(),
                ends_at: token.expires_at.map(nanoseconds),
            })
            .collect();
        let set = move |context: &mut Context<'_>| edges::set_tokens(context, &rows);
        Ok(self.store.write(Priority::Control, 1, set).await?)
    }

    /// Takes a set of tokens of the JSON API in the place of the present one.
    ///
    /// # Errors
    /// [`Error::Options`] when a token can't be used; then none is changed.
    pub fn set_api_tokens(&self, tokens: &[ApiToken]) -> Result<(), Error> {
        tokens.iter().try_for_each(ApiToken::validate)?;
        self.tokens.set(tokens);
        Ok(())
    }

    /// Revokes an edge and ends its stream; `false` when none of that name was admitted.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn revoke(&self, edge: &str) -> Result<bool, Error> {
        Ok(self.directory.revoke(edge).await?)
    }
}

impl Cloud {
    /// Opens store and authority, and takes both ports.
    ///
    /// # Errors
    /// [`Error`]: what can't be used, or is used by another process.
    pub async fn open(options: Options, health: &HealthRegistry, metrics: &Metrics) -> Result<Self, Error> {
        options.validate()?;
        let health = Health {
            store: health.component("store"),
            edge_link: health.component("edge-link"),
            http: health.component("http"),
        };
        let (store, authority) = open_files(&options, StoreMetrics::new(metrics)).await?;
        let opened = Self::open_on(store.clone(), authority, options, health, metrics).await;
        if opened.is_err() {
            // The next try finds it free.
            store.close().await;
        }
        opened
    }

    /// Takes both ports, on what the files hold.
    async fn open_on(
        store: Store,
        authority: Arc<CertificateAuthority>,
        options: Options,
        health: Health,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        store
            .write(Priority::Control, 1, |context| {
                audit::end_interrupted(context, Timestamp::now())
            })
            .await?;
        health.store.ok();
        let edge_link = listen("edges", options.edge_link.address).await?;
        let http = listen("the API", options.http.address).await?;
        let (edge_link_address, http_address) = (local(&edge_link)?, local(&http)?);
        let (identity, own) = identity(&options, &authority, edge_link_address)?;
        let http_tls = options
            .http
            .tls
            .as_ref()
            .map(|files| http_acceptor(files, &authority))
            .transpose()?;
        let directory = Directory::load(store.clone()).await?;
        let metrics = LinkMetrics::new(metrics);
        let sessions = Sessions::new(metrics.clone());
        let commands = Commands::new(store.clone(), sessions.clone(), metrics.clone());
        let handle = Handle {
            store,
            directory,
            authority: Arc::clone(&authority),
            edge_link: edge_link_address,
            http: http_address,
            tokens: Tokens::new(&options.api_tokens),
        };
        handle.set_join_tokens(&options.join_tokens).await?;
        Ok(Self {
            handle,
            options,
            authority,
            identity,
            own,
            edge_link,
            http,
            http_tls,
            sessions,
            commands,
            metrics,
            health,
        })
    }

    /// A handle of it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Opens a cloud endpoint and serves in a task of its own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn start(
        options: Options,
        health: &HealthRegistry,
        metrics: &Metrics,
        shutdown: Shutdown,
    ) -> Result<(Handle, Task<Result<(), Error>>), Error> {
        let cloud = Self::open(options, health, metrics).await?;
        let handle = cloud.handle();
        Ok((handle, foreshore_runtime::spawn("cloud", cloud.run(shutdown))))
    }

    /// Serves until the shutdown begins, then commits what has arrived and closes the store.
    ///
    /// # Errors
    /// [`Error::Store`] when nothing can be committed any more, [`Error::Link`], [`Error::Task`].
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Error> {
        let store = self.handle.store.clone();
        // Whatever ends first ends the others.
        let own = shutdown.child();
        let served = self.serve(own.clone()).await;
        own.begin(std::time::Duration::from_secs(1));
        store.close().await;
        served
    }

    async fn serve(self, shutdown: Shutdown) -> Result<(), Error> {
        let Self {
            handle,
            options,
            authority,
            identity,
            own,
            sessions,
            commands,
            metrics,
            health,
            ..
        } = self;
        let store = handle.store.clone();
        let link = options.link;
        let ingest = Ingest::new(
            store.clone(),
            metrics.clone(),
            link.max_batch_bytes,
            link.max_record_bytes,
        );
        let service = LinkService {
            store: store.clone(),
            directory: handle.directory.clone(),
            sessions: sessions.clone(),
            commands: commands.clone(),
            ingest,
            budget: Budget::new(link.buffered_bytes),
            options: link,
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
        };
        let provisioner = Provisioner {
            authority: Arc::clone(&authority),
            directory: handle.directory.clone(),
            namespace: options.namespace.clone(),
            renewal_grace: options.renewal_grace,
            nonces: Nonces::new()?,
            metrics,
        };
        let routes = Routes::new(ProvisioningServer::new(provisioner))
            .add_service(EdgeLinkServer::new(service).max_decoding_message_size(MAX_FRAME_BYTES));
        let serve_options = ServeOptions {
            client_auth: ClientAuth::Optional,
            max_connections: link.max_connections,
            keepalive: Keepalive {
                interval: link.keep_alive / 2,
                timeout: link.keep_alive / 2,
            },
            ..ServeOptions::default()
        };
        let api = Api {
            store: store.clone(),
            directory: handle.directory.clone(),
            sessions,
            commands,
            command_options: options.commands,
            tokens: handle.tokens.clone(),
        };
        let retention = Retention {
            max_age: options.history.max_age,
            max_bytes: options.history.max_bytes,
            audit_max_age: options.commands.audit_max_age,
            interval: options.history.interval,
        };
        let retaining = foreshore_runtime::spawn("retention", retention.run(store.clone(), shutdown.clone()));
        let answering = api::serve(self.http, self.http_tls, api::router(api), shutdown.clone());
        let answering = foreshore_runtime::spawn("http api", answering);
        let linking = serve_tls(self.edge_link, &identity, &serve_options, routes, &shutdown);
        info!(edge_link = %handle.edge_link, http = %handle.http, "cloud endpoint serves");
        health.edge_link.ok();
        health.http.ok();
        let served = tokio::select! {
            served = linking => served.map_err(Error::from),
            fault = store.fault() => {
                health.store.failed(fault.to_string());
                Err(Error::Store(fault))
            }
            () = keep_fresh(&identity, &authority, &own) => Ok(()),
        };
        drop(retaining);
        shutdown.begin(std::time::Duration::from_secs(1));
        answering.await?;
        served
    }
}

/// Renews the server's certificate, or follows the authority's roots. Never returns.
async fn keep_fresh(identity: &Identity, authority: &CertificateAuthority, own: &Own) {
    match own {
        Own::Issued(role, names) => identity.keep_fresh(authority, role, names).await,
        Own::Given => {
            let mut view = authority.subscribe();
            loop {
                let bundle = view.borrow_and_update().bundle.clone();
                if let Err(error) = identity.set_bundle(bundle) {
                    tracing::warn!(%error, "trust bundle can't be used");
                }
                if view.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

async fn open_files(
    options: &Options,
    metrics: StoreMetrics,
) -> Result<(Store, Arc<CertificateAuthority>), Error> {
    let directory = options.data_directory.clone();
    let limit = options.history.limit_bytes;
    let lifetimes = AuthorityOptions {
        leaf_lifetime: options.certificate_lifetime,
        ..AuthorityOptions::default()
    };
    let open = move || {
        // The store first: its lock keeps a second process from the authority too.
        let store = Store::open(&directory, limit, metrics)?;
        let authority = CertificateAuthority::open(&directory.join(AUTHORITY), lifetimes, Timestamp::now())?;
        Ok::<_, Error>((store, Arc::new(authority)))
    };
    match spawn_blocking(open).await {
        Ok(opened) => opened,
        Err(_) => Err(Error::Store(StoreError::Closed)),
    }
}

fn identity(
    options: &Options,
    authority: &CertificateAuthority,
    bound: SocketAddr,
) -> Result<(Identity, Own), Error> {
    if let Some(TlsFiles { certificate, key }) = &options.edge_link.tls {
        let credentials = Credentials::from_pem(certificate, key)?;
        return Ok((Identity::new(&credentials, authority.bundle())?, Own::Given));
    }
    let names = options.edge_link.server_names(bound)?;
    let role = RoleIdentity::new(Role::Cloud, &options.namespace, &options.name, "server")?;
    let credentials = authority.issue_credentials(&role, &names, Timestamp::now())?;
    Ok((
        Identity::new(&credentials, authority.bundle())?,
        Own::Issued(role, names),
    ))
}

fn http_acceptor(files: &TlsFiles, authority: &CertificateAuthority) -> Result<TlsAcceptor, Error> {
    let credentials = Credentials::from_pem(&files.certificate, &files.key)?;
    // Nobody is asked for a certificate, so that the bundle verifies nobody.
    let identity = Identity::new(&credentials, authority.bundle())?;
    let mut config = identity.server_config(ClientAuth::None)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen {
        what,
        address,
        source,
    })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(|source| {
        Error::Store(StoreError::Failed {
            cause: source.to_string(),
        })
    })
}
