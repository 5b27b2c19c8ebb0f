//! Listeners: they take connections, bound their number and rate, and hand each to a shard.

pub(crate) mod manifest;
pub(crate) mod placement;

use std::{
    io,
    mem::discriminant,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use foreshore_runtime::Task;
use foreshore_tls::Identity;
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use tokio::net::TcpListener;

use self::placement::Place;
use crate::{
    audit::{self, Event, Key, What},
    auth::Method,
    connection::Accepted,
    engine::{
        Engine,
        pace::Pace,
        shard::{Control, ShardItem},
    },
    options::{Limits, ListenerOptions, Protocol},
};

/// Connections that may wait to be taken: as many as Linux allows, beyond which clients try again after seconds.
const BACKLOG: i32 = 4096;

/// How long to wait after the system gave no connection, for want of file descriptors for example.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// A place where clients connect.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Its name.
    pub(crate) name: Arc<str>,
    settings: ArcSwap<Settings>,
    connections: Arc<AtomicUsize>,
}

/// What can change while a listener is open.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// What it speaks below MQTT.
    pub(crate) protocol: Protocol,
    /// Ways to prove who a client is.
    pub(crate) authentication: Vec<Method>,
    /// What the certificates of clients are verified by.
    pub(crate) clients: Option<Identity>,
    max_connections: Option<u32>,
}

impl Listener {
    /// Its settings as they are now.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// New connections that it takes in a second.
    fn connection_rate(&self, limits: &Limits) -> u32 {
        match self.settings.load().protocol.tls() {
            Some(_) => limits.max_tls_connection_rate,
            None => limits.max_connection_rate,
        }
    }

    /// Whether only our own roles can come in: they are let in however short something is.
    pub(crate) fn is_for_roles(&self) -> bool {
        let settings = self.settings.load();
        let mut methods = settings.authentication.iter();
        methods.any(|method| matches!(method, Method::Role))
    }
}

impl From<&ListenerOptions> for Settings {
    fn from(options: &ListenerOptions) -> Self {
        Self {
            protocol: options.protocol.clone(),
            authentication: options.authentication.clone(),
            clients: options.clients.clone(),
            max_connections: options.max_connections,
        }
    }
}

/// A listener that can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("listener {name:?} can't be opened at {address}: {source}")]
pub struct ListenError {
    /// Name of the listener.
    pub name: String,
    /// Where.
    pub address: SocketAddr,
    /// Why not; `AddrInUse` when the port is taken.
    #[source]
    pub source: io::Error,
}

/// A listener as clients find it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it really listens.
    pub address: SocketAddr,
    /// What it speaks below MQTT.
    pub protocol: Protocol,
}

/// A connection's place among all connections, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    place: Place,
    of_listener: Arc<AtomicUsize>,
}

impl ConnectionPermit {
    fn new(engine: &Engine, listener: &Listener) -> Option<Self> {
        let permit = Self {
            place: engine.placement.place(),
            of_listener: Arc::clone(&listener.connections),
        };
        let own = permit.of_listener.fetch_add(1, Ordering::Relaxed);
        let fits = permit.place.others < engine.limits.load().max_connections
            && listener
                .settings()
                .max_connections
                .is_none_or(|max| own < max as usize);
        fits.then_some(permit)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.of_listener.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A listener that is open, until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenListener {
    /// What it was opened with.
    pub(crate) options: ListenerOptions,
    /// Where it really listens.
    pub(crate) address: SocketAddr,
    listener: Arc<Listener>,
    _accepting: Task<()>,
}

impl OpenListener {
    /// Opens a listener.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub(crate) fn open(engine: &Arc<Engine>, options: ListenerOptions) -> Result<Self, ListenError> {
        let failed = |source| ListenError {
            name: options.name.clone(),
            address: options.address,
            source,
        };
        let socket = bind(options.address).map_err(failed)?;
        let _runtime = engine.runtime.enter();
        let socket = TcpListener::from_std(socket).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let listener = Arc::new(Listener {
            name: options.name.as_str().into(),
            settings: ArcSwap::from_pointee(Settings::from(&options)),
            connections: Arc::default(),
        });
        let accepting = accept(Arc::clone(engine), Arc::clone(&listener), socket);
        let name = format!("listener {}", options.name);
        tracing::info!(listener = options.name, %address, "listening");
        Ok(Self {
            options,
            address,
            listener,
            _accepting: foreshore_runtime::spawn(name, accepting),
        })
    }

    /// Changes what can be changed without closing it; tells whether that is all. Only clients that could not come in
    /// any more have to leave.
    pub(crate) fn change(&mut self, engine: &Engine, options: &ListenerOptions) -> bool {
        let same_place = self.options.name == options.name
            && self.options.address == options.address
            && discriminant(&self.options.protocol) == discriminant(&options.protocol);
        if same_place {
            self.listener.settings.store(Arc::new(options.into()));
            self.options = options.clone();
            engine.control_all(&Control::ListenerChanged(Arc::clone(&self.listener)));
        }
        same_place
    }

    /// Ends its connections, beside taking no more.
    pub(crate) fn disconnect(&self, engine: &Engine) {
        engine.control_all(&Control::ListenerClosed(Arc::clone(&self.listener)));
        engine.stats.by_client.forget(&self.listener.name);
    }
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(SocketProtocol::TCP),
    )?;
    // A restart must not wait for connections of the last life to time out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn accept(engine: Arc<Engine>, listener: Arc<Listener>, socket: TcpListener) {
    let mut pace = Pace::default();
    loop {
        let allowed = listener.connection_rate(&engine.limits.load());
        if let Some(until) = pace.count(allowed, Instant::now()) {
            // The system keeps the rest waiting.
            tokio::time::sleep_until(until.into()).await;
        }
        let (stream, peer) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(listener = %listener.name, %error, "no connection could be taken");
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        let Some(permit) = ConnectionPermit::new(&engine, &listener) else {
            engine.stats.not_connected.inc();
            tracing::warn!(listener = %listener.name, %peer, "connection refused: there are too many");
            let detail = "there are too many connections";
            engine.audit.tell_of(
                Key::Address(peer.ip()),
                Event {
                    event: What::Refused,
                    listener: Some(&listener.name),
                    peer: audit::peer(peer),
                    detail: Some(detail),
                    ..Event::default()
                },
            );
            continue;
        };
        let prepared = stream.set_nodelay(true).and_then(|()| stream.into_std());
        let Ok(stream) = prepared else { continue };
        let shard = &engine.shards[permit.place.shard];
        let accepted = Accepted {
            stream,
            peer,
            listener: Arc::clone(&listener),
            permit,
        };
        shard.send(ShardItem::Accept(Box::new(accepted)), 0);
    }
}
