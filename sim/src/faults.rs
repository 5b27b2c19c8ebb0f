//! Faults on demand: what a plant does at night.
//!
//! Every simulated device is reached through a [`Gate`], a TCP relay that can cut, refuse and delay. Faults of the
//! device itself (bad status codes, a restart) are carried out by the device.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A fault, as `POST /faults` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// For how long, in seconds; 0 for an instant.
    #[serde(default)]
    pub seconds: u32,
    /// How much later everything arrives, in milliseconds ([`FaultKind::Slow`]).
    #[serde(default)]
    pub delay_millis: u32,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    /// Every connection is cut and new ones are refused until the time is over.
    DropConnections,
    /// What is connected stays; new connections are refused.
    Refuse,
    /// Everything arrives later.
    Slow,
    /// Values carry a bad status code.
    BadStatus,
    /// The device stops and starts anew after the time, without memory of its sessions.
    Restart,
}

/// What the gate does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Passage {
    /// Rises when every connection is to be cut.
    cut: u64,
    refuse: bool,
    delay: Duration,
}

/// Switches a [`Gate`] from outside.
#[derive(Clone, Debug)]
pub struct GateControl {
    passage: Arc<watch::Sender<Passage>>,
}

impl Default for GateControl {
    fn default() -> Self {
        Self {
            passage: Arc::new(watch::Sender::new(Passage::default())),
        }
    }
}

impl GateControl {
    /// Cuts every connection now.
    pub fn cut(&self) {
        self.passage.send_modify(|passage| passage.cut += 1);
    }

    /// Refuses new connections, or accepts them again.
    pub fn refuse(&self, refuse: bool) {
        self.passage.send_modify(|passage| passage.refuse = refuse);
    }

    /// Delays everything that passes.
    pub fn delay(&self, delay: Duration) {
        self.passage.send_modify(|passage| passage.delay = delay);
    }
}

/// A TCP relay in front of a simulated device.
pub struct Gate {
    listener: TcpListener,
    /// Where the device listens; changes when it restarts.
    device: watch::Receiver<SocketAddr>,
    control: GateControl,
}

impl Gate {
    /// Makes a gate on a bound listener.
    #[must_use]
    pub fn new(listener: TcpListener, device: watch::Receiver<SocketAddr>, control: GateControl) -> Self {
        Self {
            listener,
            device,
            control,
        }
    }

    /// Relays until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((client, peer)) = accepted else {
                // Out of file descriptors: others will be closed meanwhile.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if self.control.passage.borrow().refuse {
                reset(client);
                continue;
            }
            let device = *self.device.borrow();
            let passage = self.control.passage.subscribe();
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                if let Err(error) = relay(client, device, passage, shutdown).await {
                    debug!(%peer, %error, "relay ended");
                }
            });
        }
    }
}

/// Closes a connection the hard way, as a machine that lost power or a firewall does.
fn reset(stream: TcpStream) {
    if let Err(error) = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
        debug!(%error, "linger was not set");
    }
    drop(stream);
}

async fn relay(
    client: TcpStream,
    device: SocketAddr,
    mut passage: watch::Receiver<Passage>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let server = TcpStream::connect(device).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let cut = passage.borrow().cut;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let delays = passage.clone();
    let pumps = async {
        tokio::try_join!(
            pump(&mut from_client, &mut to_server, &delays),
            pump(&mut from_server, &mut to_client, &delays)
        )
    };
    tokio::select! {
        ended = pumps => return ended.map(|_| ()),
        _ = passage.wait_for(|now| now.cut != cut) => {}
        () = shutdown.cancelled() => {}
    }
    if let Ok(client) = from_client.reunite(to_client) {
        reset(client);
    }
    Ok(())
}

async fn pump(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    passage: &watch::Receiver<Passage>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else {
            // One direction ended; the other may go on.
            return to.shutdown().await;
        };
        let delay = passage.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        to.write_all(read).await?;
    }
}
