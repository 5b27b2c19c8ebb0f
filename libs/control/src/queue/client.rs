//! Queues of a broker in another process, over gRPC.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use foreshore_tls::{Identity, ServerName};
use tonic::{Request, Response, Status, transport::Channel};
use tracing::debug;

use super::{
    DeadLetter, EntryId, Error, OpenPath, PathTotals, Paths, ReadBatch, ReadRange, Settlement, convert, proto,
};
use crate::transport::{self, ConnectOptions, lazy_channel};

type Client = proto::queues_client::QueuesClient<Channel>;

/// How long an answer may take, beyond the wait that a read asks for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest message of the protocol, in bytes: the largest MQTT packet with room for what surrounds it.
pub(super) const MAX_MESSAGE_LEN: usize = 272 << 20;

/// Queues of a broker, at one of several addresses. Cheap to clone.
///
/// It connects with the first request. An address that does not answer is left for the next one.
#[derive(Clone, Debug)]
pub struct RemotePaths {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clients: Vec<Client>,
    /// Which address answered last.
    present: AtomicUsize,
}

impl RemotePaths {
    /// Queues at the addresses (`host:port`) of one broker, whose certificate is for `server_name`.
    ///
    /// # Errors
    /// [`transport::Error::Address`] when there is no address or one is malformed, [`transport::Error::Tls`].
    pub fn new(
        addresses: &[String],
        identity: &Identity,
        server_name: &ServerName<'static>,
        options: &ConnectOptions,
    ) -> Result<Self, transport::Error> {
        if addresses.is_empty() {
            return Err(transport::Error::Address { found: String::new() });
        }
        let clients = addresses.iter().map(|address| {
            let channel = lazy_channel(address, identity, server_name.clone(), options)?;
            let client = Client::new(channel);
            Ok(client
                .max_decoding_message_size(MAX_MESSAGE_LEN)
                .max_encoding_message_size(MAX_MESSAGE_LEN))
        });
        let clients = clients.collect::<Result<Vec<_>, transport::Error>>()?;
        Ok(Self {
            shared: Arc::new(Shared {
                clients,
                present: AtomicUsize::new(0),
            }),
        })
    }

    /// Asks the address that answered last, and turns to the next one when it does not.
    async fn ask<M, A, F>(&self, path: &str, message: M, timeout: Duration, call: F) -> Result<A, Error>
    where
        F: AsyncFnOnce(Client, Request<M>) -> Result<Response<A>, Status>,
    {
        let present = self.shared.present.load(Ordering::Relaxed);
        let clients = &self.shared.clients;
        let Some(client) = clients.get(present % clients.len().max(1)) else {
            return Err(Error::Unavailable {
                cause: "no address is known".to_owned(),
            });
        };
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        let answer = match tokio::time::timeout(timeout, call(client.clone(), request)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => convert::error_of(&status, path),
            Err(_) => Error::Unavailable {
                cause: format!("no answer within {} s", timeout.as_secs()),
            },
        };
        if matches!(answer, Error::Unavailable { .. }) {
            // Of several callers that fail at a time, only the first moves on.
            let next = present.wrapping_add(1);
            let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
            if self
                .shared
                .present
                .compare_exchange(present, next, set, fetch)
                .is_ok()
            {
                debug!(%answer, "broker does not answer, its next address is tried");
            }
        }
        Err(answer)
    }
}

#[async_trait]
impl Paths for RemotePaths {
    async fn open(&self, path: &str) -> Result<Box<dyn OpenPath>, Error> {
        let request = proto::OpenRequest {
            path: path.to_owned(),
        };
        let opened = self.ask(path, request, ANSWER_TIMEOUT, async |mut client, request| {
            client.open(request).await
        });
        let opened = opened.await?;
        Ok(Box::new(RemotePath {
            paths: self.clone(),
            path: path.to_owned(),
            epoch: opened.epoch,
            tail: opened.tail,
        }))
    }

    async fn totals(&self) -> Result<Vec<PathTotals>, Error> {
        let request = proto::TotalsRequest {};
        let totals = self.ask("", request, ANSWER_TIMEOUT, async |mut client, request| {
            client.totals(request).await
        });
        Ok(totals
            .await?
            .totals
            .into_iter()
            .map(convert::totals_from_proto)
            .collect())
    }

    async fn dead_letters(&self, path: &str, after: EntryId, max: u32) -> Result<Vec<DeadLetter>, Error> {
        let request = proto::DeadLettersRequest {
            path: path.to_owned(),
            after,
            max_entries: max,
        };
        let letters = self.ask(path, request, ANSWER_TIMEOUT, async |mut client, request| {
            client.dead_letters(request).await
        });
        let letters = letters.await?.letters.into_iter().map(convert::letter_from_proto);
        Ok(letters.collect::<Result<_, _>>()?)
    }

    async fn replay(&self, path: &str, ids: &[EntryId]) -> Result<u64, Error> {
        let request = proto::ReplayRequest {
            path: path.to_owned(),
            ids: ids.to_vec(),
        };
        let replayed = self.ask(path, request, ANSWER_TIMEOUT, async |mut client, request| {
            client.replay(request).await
        });
        Ok(replayed.await?.replayed)
    }
}

/// A path that is open at the broker.
struct RemotePath {
    paths: RemotePaths,
    path: String,
    epoch: u64,
    tail: EntryId,
}

#[async_trait]
impl OpenPath for RemotePath {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn opening_tail(&self) -> EntryId {
        self.tail
    }

    async fn read(&self, range: ReadRange) -> Result<ReadBatch, Error> {
        let request = convert::range_to_proto(&self.path, self.epoch, range);
        let timeout = ANSWER_TIMEOUT + range.wait.min(convert::MAX_WAIT);
        let read = self
            .paths
            .ask(&self.path, request, timeout, async |mut client, request| {
                client.read(request).await
            });
        Ok(convert::batch_from_proto(read.await?)?)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), Error> {
        let request = proto::SettleRequest {
            path: self.path.clone(),
            epoch: self.epoch,
            settlements: settlements
                .into_iter()
                .map(convert::settlement_to_proto)
                .collect(),
        };
        let settled = self.paths.ask(
            &self.path,
            request,
            ANSWER_TIMEOUT,
            async |mut client, request| client.settle(request).await,
        );
        settled.await.map(|proto::SettleResponse {}| ())
    }
}
