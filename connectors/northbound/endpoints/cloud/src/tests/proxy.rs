//! A network that can be cut, made mute towards the edge, or slow.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use foreshore_runtime::{Task, spawn};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

#[derive(Clone, Default)]
pub(super) struct Conditions {
    /// Nothing reaches the edge.
    pub(super) is_mute: Arc<AtomicBool>,
    /// Bytes a second from the edge; 0 for no bound.
    pub(super) uplink: Arc<AtomicU64>,
}

pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    pub(super) conditions: Conditions,
    cuts: watch::Sender<u64>,
    _task: Task<()>,
}

impl Proxy {
    pub(super) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (conditions, cuts) = (Conditions::default(), watch::Sender::new(0));
        let task = {
            let (conditions, cuts) = (conditions.clone(), cuts.clone());
            spawn("proxy", async move {
                while let Ok((edge, _)) = listener.accept().await {
                    let Ok(cloud) = TcpStream::connect(target).await else {
                        continue;
                    };
                    let (conditions, mut cut) = (conditions.clone(), cuts.subscribe());
                    let carrying = async move {
                        tokio::select! {
                            () = carry(edge, cloud, conditions) => {}
                            _ = cut.changed() => {}
                        }
                    };
                    spawn("proxied", carrying).detach();
                }
            })
        };
        Self {
            address,
            conditions,
            cuts,
            _task: task,
        }
    }

    /// Breaks every connection.
    pub(super) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn carry(edge: TcpStream, cloud: TcpStream, conditions: Conditions) {
    let ((from_edge, to_edge), (from_cloud, to_cloud)) = (edge.into_split(), cloud.into_split());
    let (up, down) = (conditions.clone(), conditions);
    tokio::join!(
        pump(from_edge, to_cloud, move |bytes| {
            let uplink = up.uplink.load(Ordering::Relaxed);
            Some(if uplink == 0 {
                Duration::ZERO
            } else {
                Duration::from_secs_f64(bytes as f64 / uplink as f64)
            })
        }),
        pump(from_cloud, to_edge, move |_| (!down
            .is_mute
            .load(Ordering::Relaxed))
        .then_some(Duration::ZERO)),
    );
}

/// Carries bytes, each piece after the time that `judge` says, or never.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    judge: impl Fn(usize) -> Option<Duration>,
) {
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        match judge(length) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => continue,
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
