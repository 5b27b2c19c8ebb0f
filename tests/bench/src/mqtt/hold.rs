//! Clients that only are there: idle connections, and subscriptions that nothing matches.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::{
    READY,
    wire::{Client, Hello},
};

/// Connections that are made at the same time: less than what listeners let wait.
const AT_ONCE: usize = 64;

/// Connections from one loopback address, which has some 28,000 ports for them.
const FROM_ONE_ADDRESS: usize = 5_000;

/// Name that the broker's certificate is for.
pub(crate) const SERVER: &str = "localhost";

/// What the clients are told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the broker listens.
    #[arg(long)]
    address: String,
    /// Clients.
    #[arg(long)]
    clients: usize,
    /// Subscriptions of each client.
    #[arg(long, default_value_t = 0)]
    filters: usize,
    /// Certificate that the broker shows; without it connections are not encrypted.
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Seconds to stay after all are there.
    #[arg(long)]
    seconds: f64,
}

/// What became of the clients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Seconds until all were there.
    pub(crate) took: f64,
    /// Connections that the broker ended.
    pub(crate) lost: usize,
}

/// A connection, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// Connects, subscribes, stays, and counts who is still there.
pub(crate) async fn run(options: Options) -> Result<Held> {
    let connector = options.certificate.as_ref().map(connector).transpose()?;
    let began = Instant::now();
    let joining = (0..options.clients).map(|index| join(&options, connector.as_ref(), index));
    let joined: Vec<Box<dyn Stream>> = stream::iter(joining)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let took = began.elapsed().as_secs_f64();
    println!("{READY}");
    sleep(Duration::from_secs_f64(options.seconds)).await;
    let mut lost = 0;
    for mut stream in joined {
        // Nothing is sent to who is idle: what can be read is an end.
        let mut byte = [0];
        lost += usize::from(timeout(Duration::ZERO, stream.read(&mut byte)).await.is_ok());
    }
    Ok(Held { took, lost })
}

async fn join(options: &Options, connector: Option<&TlsConnector>, index: usize) -> Result<Box<dyn Stream>> {
    let name = format!("bench-idle-{index}");
    let hello = Hello {
        // Nobody says a word for as long as it takes until all are there.
        keep_alive: 1_200,
        ..Hello::clean(&name)
    };
    let stream = open(&options.address, index).await?;
    let filters: Vec<String> = (0..options.filters)
        .map(|filter| self::filter(index, filter))
        .collect();
    let joined: Result<Box<dyn Stream>> = async {
        Ok(match connector {
            None => {
                let mut client = Client::over(stream, &hello).await?;
                client.subscribe(&filters, 1).await?;
                Box::new(client.stream) as Box<dyn Stream>
            }
            Some(connector) => {
                let stream = connector.connect(ServerName::try_from(SERVER)?, stream).await?;
                let mut client = Client::over(stream, &hello).await?;
                client.subscribe(&filters, 1).await?;
                Box::new(client.stream)
            }
        })
    }
    .await;
    joined.with_context(|| format!("client {index} of {}", options.clients))
}

/// Opens a connection from one of several loopback addresses, so that ports do not run out.
async fn open(address: &str, index: usize) -> Result<TcpStream> {
    let Some(last) = u8::try_from(1 + index / FROM_ONE_ADDRESS).ok() else {
        bail!("there are too many clients for one machine");
    };
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    let stream = socket.connect(address.parse()?).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A filter with a wildcard that looks like the topics of publishers for as long as can be, and matches none.
fn filter(client: usize, index: usize) -> String {
    if index.is_multiple_of(2) {
        format!("bench/+/{client}-{index}/#")
    } else {
        format!("+/{client}-{index}/+")
    }
}

fn connector(certificate: &PathBuf) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
