//! One stream of one edge: who may open it, what arrives, what is sent, how it ends.

use std::{collections::VecDeque, time::Duration};

use foreshore_control::transport::Peer;
use foreshore_edgelink::{
    Refusal,
    command::result_from_proto,
    limits::common_protocol,
    proto::{self, cloud_frame, edge_frame, edge_link_server::EdgeLink},
    registry::{Assembly, Whole},
};
use foreshore_record::Lane;
use foreshore_runtime::{Shutdown, Task};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    batch::{Deliverer, Done, Ingest},
    lanes::{Budget, Complete, Reception, Violation},
    registry::describe_assets,
    sessions::{Connected, Place, Sessions},
};
use crate::{
    commands::Commands,
    directory::Directory,
    metrics::LinkMetrics,
    options::LinkOptions,
    provisioning::{edge_of, refuse, unavailable},
    store::{Priority, Store, edges, edges::EdgeRow, registry},
    times::timestamp,
};

/// How long the first frame of a stream may take.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// Frames that wait to be sent; beyond it nothing more is read from the edge.
const MAX_OUTGOING: usize = 128;

/// Batches of a lane that wait to be committed, and how many of them are worked on at a time.
const WAITING_BATCHES: usize = 128;
const BATCHES_AT_A_TIME: usize = 4;

/// Bytes of a boot id.
const BOOT_LEN: usize = 16;

type Outbound = mpsc::Sender<Result<proto::CloudFrame, Status>>;

/// The service `EdgeLink`.
#[derive(Clone)]
pub(crate) struct LinkService {
    pub(crate) store: Store,
    pub(crate) directory: Directory,
    pub(crate) sessions: Sessions,
    pub(crate) commands: Commands,
    pub(crate) ingest: Ingest,
    pub(crate) budget: Budget,
    pub(crate) options: LinkOptions,
    pub(crate) metrics: LinkMetrics,
    pub(crate) shutdown: Shutdown,
}

#[tonic::async_trait]
impl EdgeLink for LinkService {
    type ConnectStream = ReceiverStream<Result<proto::CloudFrame, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<proto::EdgeFrame>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (edge, peer) = self.authenticate(&request)?;
        let mut inbound = request.into_inner();
        let hello = first_frame(&mut inbound)
            .await
            .map_err(|words| self.refuse(Refusal::ProtocolError, words))?;
        let row = edge.borrow().clone();
        let protocol = self.judge(&hello, &row.name)?;
        let boot = self.boot(&row, &hello).await?;
        let registry_version = self.registry_version(&row).await?;
        let connected = Connected {
            boot,
            since: Timestamp::now(),
            address: peer.address,
            software: hello.software.chars().take(64).collect(),
            command_credit: hello.command_credit as usize,
        };
        let place = self
            .sessions
            .enter(row.id, connected)
            .map_err(|_| self.refuse(Refusal::Superseded, "a newer process of this edge is connected"))?;
        info!(edge = row.name, address = %peer.address, boot, protocol, "edge connected");
        let (outbound, frames) = mpsc::channel(8);
        let session = Session::new(self.clone(), edge, boot, place, outbound);
        foreshore_runtime::spawn("edge link", session.run(inbound, protocol, registry_version)).detach();
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}

async fn first_frame(inbound: &mut Streaming<proto::EdgeFrame>) -> Result<proto::Hello, String> {
    match timeout(HELLO_TIME, inbound.message()).await {
        Ok(Ok(Some(proto::EdgeFrame {
            frame: Some(edge_frame::Frame::Hello(hello)),
        }))) => Ok(hello),
        Ok(Ok(_)) => Err("the first frame must be a Hello".to_owned()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no frame came within {HELLO_TIME:?}")),
    }
}

impl LinkService {
    fn refuse(&self, refusal: Refusal, words: impl Into<String>) -> Status {
        refuse(&self.metrics, refusal, words)
    }

    fn authenticate<T>(&self, request: &Request<T>) -> Result<(watch::Receiver<EdgeRow>, Peer), Status> {
        let not_an_edge = || self.refuse(Refusal::NotAnEdge, "the peer showed no certificate of an edge");
        let peer = Peer::of(request).ok_or_else(not_an_edge)?;
        let (name, key) = edge_of(peer).ok_or_else(not_an_edge)?;
        let Some(edge) = self.directory.get(name) else {
            return Err(self.refuse(Refusal::EdgeUnknown, "no edge of that name was admitted here"));
        };
        let refusal = {
            let row = edge.borrow();
            if row.revoked_at.is_some() {
                Some((
                    Refusal::EdgeRevoked,
                    "the edge was revoked; a new join token admits it again",
                ))
            } else if row.key != key {
                Some((
                    Refusal::KeyMismatch,
                    "the key is not the one that the edge was admitted with last",
                ))
            } else {
                None
            }
        };
        match refusal {
            Some((refusal, words)) => Err(self.refuse(refusal, words)),
            None => Ok((edge, peer.clone())),
        }
    }

    fn judge(&self, hello: &proto::Hello, edge: &str) -> Result<u32, Status> {
        if hello.edge != edge {
            let words =
                format!("the certificate is for the edge {edge:?}, which is not the one of the first frame");
            return Err(self.refuse(Refusal::NotAnEdge, words));
        }
        if hello.boot.len() != BOOT_LEN {
            let words = format!(
                "the boot id has {} bytes, {BOOT_LEN} are allowed",
                hello.boot.len()
            );
            return Err(self.refuse(Refusal::ProtocolError, words));
        }
        let (min, max) = (hello.protocol_min, hello.protocol_max);
        common_protocol(min, max).ok_or_else(|| {
            let words = format!(
                "the edge speaks versions {min} to {max} of the protocol, none of which is known here"
            );
            self.refuse(Refusal::ProtocolUnsupported, words)
        })
    }

    async fn boot(&self, row: &EdgeRow, hello: &proto::Hello) -> Result<i64, Status> {
        let (edge, boot) = (row.id, hello.boot.clone());
        let ordinal = self.store.write(Priority::Control, 1, move |context| {
            edges::boot_ordinal(context, edge, &boot)
        });
        ordinal.await.map_err(|error| unavailable(&self.metrics, &error))
    }

    async fn registry_version(&self, row: &EdgeRow) -> Result<Vec<u8>, Status> {
        let edge = row.id;
        let version = self
            .store
            .read(move |connection| registry::version(connection, edge));
        version.await.map_err(|error| unavailable(&self.metrics, &error))
    }
}

/// A stream that is open.
struct Session {
    service: LinkService,
    edge: watch::Receiver<EdgeRow>,
    place: Place,
    outbound: Outbound,
    outgoing: VecDeque<proto::CloudFrame>,
    reception: Reception,
    lanes: [mpsc::Sender<Complete>; Lane::COUNT],
    done: mpsc::Receiver<Done>,
    /// The registry, as far as it has arrived, and as it was when it was whole.
    assembly: Assembly,
    registry: watch::Sender<Option<Whole>>,
    last_heard: Instant,
    last_said: Instant,
    pings: u64,
    /// Ended with the session.
    _workers: Vec<Task<()>>,
}

impl Session {
    fn new(
        service: LinkService,
        edge: watch::Receiver<EdgeRow>,
        boot: i64,
        place: Place,
        outbound: Outbound,
    ) -> Self {
        let id = edge.borrow().id;
        let (done_sender, done) = mpsc::channel(MAX_OUTGOING);
        let mut workers = Vec::new();
        let lanes = std::array::from_fn(|_| {
            let (sender, batches) = mpsc::channel(WAITING_BATCHES);
            let deliverer = Deliverer { edge: id, boot };
            let work = commit_batches(service.ingest.clone(), deliverer, batches, done_sender.clone());
            workers.push(foreshore_runtime::spawn("edge link lane", work));
            sender
        });
        let registry = watch::Sender::new(None);
        let describing = describe_assets(service.store.clone(), id, registry.subscribe());
        workers.push(foreshore_runtime::spawn("edge link registry", describing));
        let LinkOptions {
            lane_credit,
            max_batch_bytes,
            ..
        } = service.options;
        let reception = Reception::new(lane_credit, max_batch_bytes, service.budget.clone());
        let now = Instant::now();
        Self {
            service,
            edge,
            place,
            outbound,
            outgoing: VecDeque::new(),
            reception,
            lanes,
            done,
            assembly: Assembly::default(),
            registry,
            last_heard: now,
            last_said: now,
            pings: 0,
            _workers: workers,
        }
    }

    async fn run(
        mut self,
        mut inbound: Streaming<proto::EdgeFrame>,
        protocol: u32,
        registry_version: Vec<u8>,
    ) {
        let row = self.edge.borrow().clone();
        self.welcome(protocol, registry_version, &row);
        self.note_seen(&row).await;
        let ended = self.serve(&mut inbound).await;
        match &ended {
            Ok(()) => info!(edge = row.name, "edge disconnected"),
            Err(status) => {
                let reason = Refusal::of(status).map_or("Disconnected", Refusal::as_str);
                warn!(edge = row.name, reason, "edge disconnected: {}", status.message());
            }
        }
        if let Err(status) = ended {
            // An edge that does not read any more hears it by the end of the connection.
            drop(timeout(Duration::from_secs(1), self.outbound.send(Err(status))).await);
        }
        self.note_seen(&row).await;
    }

    fn welcome(&mut self, protocol: u32, registry_version: Vec<u8>, row: &EdgeRow) {
        let LinkOptions {
            max_batch_bytes,
            max_record_bytes,
            keep_alive,
            ..
        } = self.service.options;
        let bytes = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        self.say(cloud_frame::Frame::Welcome(proto::Welcome {
            protocol,
            credit: self.reception.opening(),
            max_batch_bytes: bytes(max_batch_bytes),
            max_record_bytes: bytes(max_record_bytes),
            keep_alive_ms: u32::try_from(keep_alive.as_millis()).unwrap_or(u32::MAX),
            registry_version: registry_version.into(),
        }));
        // What was sent over a stream that broke is sent again: the edge recognises it.
        let now = Timestamp::now();
        for command in self.service.commands.pending(row.id) {
            self.say(cloud_frame::Frame::Command(command.to_proto(now)));
        }
    }

    fn say(&mut self, frame: cloud_frame::Frame) {
        self.outgoing.push_back(proto::CloudFrame { frame: Some(frame) });
    }

    async fn note_seen(&self, row: &EdgeRow) {
        if let Err(error) = self.service.directory.saw(row).await {
            debug!(edge = row.name, %error, "last time of connection not kept");
        }
    }

    /// Until the edge goes (`Ok`) or is told to, with the reason.
    async fn serve(&mut self, inbound: &mut Streaming<proto::EdgeFrame>) -> Result<(), Status> {
        let keep_alive = self.service.options.keep_alive;
        let mut tick = tokio::time::interval((keep_alive / 4).max(Duration::from_millis(10)));
        let (shutdown, outbound) = (self.service.shutdown.clone(), self.outbound.clone());
        loop {
            for flow in self.reception.news() {
                self.say(cloud_frame::Frame::Flow(flow));
            }
            let has_room = self.outgoing.len() < MAX_OUTGOING;
            tokio::select! {
                biased;
                () = shutdown.begun() => return Err(self.refuse(Refusal::Unavailable, "the cloud endpoint ends")),
                () = self.place.superseded.cancelled() => {
                    return Err(self.refuse(Refusal::Superseded, "another stream of this edge took the place"));
                }
                _ = self.edge.changed() => self.judge_edge()?,
                permit = outbound.reserve(), if !self.outgoing.is_empty() => {
                    // Without a permit nobody reads any more.
                    let (Ok(permit), Some(frame)) = (permit, self.outgoing.pop_front()) else { return Ok(()) };
                    permit.send(Ok(frame));
                    self.last_said = Instant::now();
                }
                Some(done) = self.done.recv(), if has_room => {
                    self.reception.done(done.lane, done.held);
                    self.say(done.answer);
                }
                Some(command) = self.place.commands.recv(), if has_room => {
                    self.say(cloud_frame::Frame::Command(command.to_proto(Timestamp::now())));
                }
                _ = tick.tick() => self.look_at_the_time(keep_alive)?,
                frame = inbound.message(), if has_room => match frame {
                    Ok(Some(frame)) => self.hear(frame)?,
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(status),
                },
            }
        }
    }

    fn refuse(&self, refusal: Refusal, words: impl Into<String>) -> Status {
        self.service.refuse(refusal, words)
    }

    fn judge_edge(&self) -> Result<(), Status> {
        if self.edge.borrow().revoked_at.is_some() {
            return Err(self.refuse(
                Refusal::EdgeRevoked,
                "the edge was revoked; a new join token admits it again",
            ));
        }
        Ok(())
    }

    fn look_at_the_time(&mut self, keep_alive: Duration) -> Result<(), Status> {
        // Certificates end with a whole second.
        let ends_at = timestamp(self.edge.borrow().certificate_ends_at);
        if Timestamp::now().duration_since(ends_at) > SignedDuration::from_secs(1) {
            let words = format!("the edge's certificate ended at {ends_at} and was not renewed");
            return Err(self.refuse(Refusal::Unavailable, words));
        }
        if self.last_heard.elapsed() > keep_alive {
            return Err(self.refuse(
                Refusal::Unavailable,
                format!("nothing was heard for {keep_alive:?}"),
            ));
        }
        if self.last_said.elapsed() > keep_alive / 3 && self.outgoing.is_empty() {
            self.pings += 1;
            self.say(cloud_frame::Frame::Ping(proto::Ping { number: self.pings }));
        }
        Ok(())
    }

    fn hear(&mut self, frame: proto::EdgeFrame) -> Result<(), Status> {
        use edge_frame::Frame;
        self.last_heard = Instant::now();
        match frame.frame {
            Some(Frame::Batch(batch)) => {
                let received = self.reception.begin(batch);
                self.received(received)?;
            }
            Some(Frame::Part(part)) => {
                let received = self.reception.part(&part);
                self.received(received)?;
            }
            Some(Frame::CommandResult(result)) => {
                let (id, outcome) = result_from_proto(result);
                let row = self.edge.borrow().clone();
                self.service.commands.answered(row.id, &row.name, id, outcome);
            }
            Some(Frame::Registry(part)) => {
                let arrived = self.assembly.take(part);
                let whole =
                    arrived.map_err(|error| self.refuse(Refusal::ProtocolError, error.to_string()))?;
                // The newest counts; one that is not written yet is replaced.
                if whole.is_some() {
                    self.registry.send_replace(whole);
                }
            }
            Some(Frame::Ping(proto::Ping { number })) => {
                self.say(cloud_frame::Frame::Pong(proto::Pong { number }));
            }
            // A frame of a later version is not for us.
            Some(Frame::Pong(_)) | None => {}
            Some(Frame::Hello(_)) => return Err(self.refuse(Refusal::ProtocolError, "a second Hello came")),
        }
        Ok(())
    }

    fn received(&self, received: Result<Option<Complete>, Violation>) -> Result<(), Status> {
        let complete =
            received.map_err(|violation| self.refuse(Refusal::ProtocolError, violation.to_string()))?;
        let Some(complete) = complete else { return Ok(()) };
        let lane = complete.lane;
        self.lanes[lane.index()].try_send(complete).map_err(|_| {
            let words = format!("more than {WAITING_BATCHES} batches wait on lane {lane}");
            self.refuse(Refusal::ProtocolError, words)
        })
    }
}

/// Commits the batches of one lane, and passes on what the edge is to hear.
async fn commit_batches(
    ingest: Ingest,
    deliverer: Deliverer,
    batches: mpsc::Receiver<Complete>,
    done: mpsc::Sender<Done>,
) {
    let working = ReceiverStream::new(batches)
        .map(|complete| ingest.process(deliverer, complete))
        .buffered(BATCHES_AT_A_TIME);
    let mut working = std::pin::pin!(working);
    while let Some(batch) = working.next().await {
        if done.send(batch).await.is_err() {
            return;
        }
    }
}
