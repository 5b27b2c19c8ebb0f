//! The network between connector and server, which fails on demand.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// How the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    /// Connections are reset, and new ones too.
    Down,
    /// Connections are open, new ones too, and carry nothing ever again.
    Frozen,
}

/// A network that carries connections to one server.
pub(crate) struct Proxy {
    port: u16,
    state: Arc<watch::Sender<(u64, State)>>,
    /// Bytes that the client may still send before one connection is reset.
    left: Arc<AtomicU64>,
    listening: JoinHandle<()>,
}

/// No bound.
const UNBOUNDED: u64 = u64::MAX;

impl Proxy {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(watch::Sender::new((0, State::Up)));
        let left = Arc::new(AtomicU64::new(UNBOUNDED));
        let (watched, bound) = (Arc::clone(&state), Arc::clone(&left));
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, watched.subscribe(), Arc::clone(&bound)));
            }
        });
        Self {
            port,
            state,
            left,
            listening,
        }
    }

    pub(crate) fn address(&self) -> String {
        format!("opc.tcp://127.0.0.1:{}", self.port)
    }

    /// Resets the connection on which the client will have sent so many bytes, all connections counted, once.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Relaxed);
    }

    /// Whether what [`cut_after`](Self::cut_after) asked for happened.
    pub(crate) fn was_cut(&self) -> bool {
        self.left.load(Ordering::Relaxed) == UNBOUNDED
    }

    /// Resets all connections, and every new one until [`mend`](Self::mend).
    pub(crate) fn cut(&self) {
        self.set(State::Down);
    }

    /// Carries nothing and says so to nobody; what is open now, or is opened until [`mend`](Self::mend), stays so.
    pub(crate) fn freeze(&self) {
        self.set(State::Frozen);
    }

    /// Carries again.
    pub(crate) fn mend(&self) {
        self.set(State::Up);
    }

    fn set(&self, state: State) {
        self.state.send_modify(|(change, present)| {
            *change += 1;
            *present = state;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn carry(
    mut client: TcpStream,
    server: u16,
    mut state: watch::Receiver<(u64, State)>,
    left: Arc<AtomicU64>,
) {
    let reset = |stream: TcpStream| {
        // A reset, as a switch or a firewall that lost the connection makes it.
        drop(stream.set_zero_linger());
    };
    let present = state.borrow_and_update().1;
    match present {
        State::Up => {}
        State::Down => return reset(client),
        State::Frozen => return std::future::pending().await,
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return reset(client);
    };
    tokio::select! {
        () = pass(&mut client, &mut server, &left) => {}
        _ = state.changed() => {}
    }
    if state.borrow().1 == State::Frozen {
        return std::future::pending().await;
    }
    reset(client);
    reset(server);
}

/// Carries both ways until one side ends, or the client has sent what it may.
async fn pass(client: &mut TcpStream, server: &mut TcpStream, left: &AtomicU64) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = async {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            let may = left.load(Ordering::Relaxed);
            let sent = u64::try_from(count).unwrap();
            if may != UNBOUNDED && sent >= may {
                left.store(UNBOUNDED, Ordering::Relaxed);
                return;
            }
            if may != UNBOUNDED {
                left.store(may - sent, Ordering::Relaxed);
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        done = copy(&mut from_server, &mut to_client) => drop(done),
    }
}
