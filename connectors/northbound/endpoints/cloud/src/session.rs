//! One life of the stream.

use std::{
    collections::{HashMap, VecDeque},
    sync::LazyLock,
    time::{Duration, Instant},
};

use foreshore_control::transport::{self, ConnectOptions, Keepalive, channel};
use foreshore_edgelink::{Refusal, command, limits, proto};
use foreshore_northbound::{Assets, SinkError};
use jiff::Timestamp;
use proto::{cloud_frame::Frame as Down, edge_frame::Frame as Up, edge_link_client::EdgeLinkClient};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::{
    credentials::{EdgeCredentials, Remedy},
    lanes::Sending,
    outbox::{Failure, Outbox, Reply},
    relay::{COMMAND_CREDIT, Relay, Results},
    settings::Settings,
    telling::Telling,
};

/// Frames that are handed to the transport ahead of time: few, so that an alarm overtakes late.
const AHEAD: usize = 1;

/// Longest wait for the cloud's first frame.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);

/// Frames of ours that wait to be sent before everything else; beyond it nothing more is read.
const MAX_CONTROL: usize = 64;

/// Which process this is: the cloud fences an older one by it, so it is drawn once and shared by all streams.
static BOOT: LazyLock<Uuid> = LazyLock::new(Uuid::new_v4);

/// Why a stream ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) error: SinkError,
    pub(crate) remedy: Remedy,
}

impl Ended {
    fn lost(cause: impl std::fmt::Display) -> Self {
        Self {
            error: SinkError::retryable("Unreachable", cause),
            remedy: Remedy::Wait,
        }
    }

    fn refused(status: &tonic::Status) -> Self {
        let refusal = Refusal::of(status);
        let error = match refusal {
            Some(refusal) if !refusal.is_transient() => SinkError::fatal(refusal.as_str(), status.message()),
            Some(refusal) => SinkError::retryable(refusal.as_str(), status.message()),
            None => SinkError::retryable("Unreachable", why_broken(status)),
        };
        let remedy = match refusal {
            Some(Refusal::EdgeUnknown | Refusal::KeyMismatch) => Remedy::Enroll,
            _ => Remedy::Wait,
        };
        Self { error, remedy }
    }

    fn unconnected(error: &transport::Error) -> Self {
        match error {
            // Our certificate, or our clock.
            transport::Error::Refused {
                refusal: foreshore_tls::Refusal::ByPeer { .. },
                ..
            } => Self {
                error: SinkError::fatal("CertificateRefused", error),
                remedy: Remedy::Renew,
            },
            transport::Error::Refused { .. } => Self {
                error: SinkError::fatal("CertificateUntrusted", error),
                remedy: Remedy::Wait,
            },
            _ => Self::lost(error),
        }
    }
}

/// Why a stream ended that the other side did not end: the deepest cause, such as `keep-alive timed out`, says most.
fn why_broken(status: &tonic::Status) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(
        || status.message().to_owned(),
        |cause| format!("the link broke: {cause}"),
    )
}

/// What a stream shares with those before and after it.
pub(crate) struct Shared<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) credentials: &'a EdgeCredentials,
    pub(crate) outbox: &'a Outbox,
    pub(crate) relay: &'a Relay,
    pub(crate) assets: &'a Assets,
}

/// Opens a stream and keeps it until it ends.
pub(crate) async fn run(
    shared: &Shared<'_>,
    results: &mut Results,
    connected: impl FnOnce(),
    lost: impl FnOnce(&SinkError),
) -> Ended {
    let settings = shared.settings;
    let half = settings.keep_alive / 2;
    let keepalive = Keepalive {
        interval: half,
        timeout: half,
    };
    let options = ConnectOptions {
        keepalive,
        ..ConnectOptions::default()
    };
    let identity = &shared.credentials.identity;
    let channel = match channel(
        &settings.address,
        identity,
        settings.server_name.clone(),
        &options,
    )
    .await
    {
        Ok(channel) => channel,
        Err(error) => return Ended::unconnected(&error),
    };
    let (frames, outgoing) = mpsc::channel(AHEAD);
    if frames.send(frame(Up::Hello(hello(settings)))).await.is_err() {
        return Ended::lost("the stream ended at once");
    }
    let mut client = EdgeLinkClient::new(channel)
        .max_decoding_message_size(limits::MAX_FRAME_BYTES)
        .max_encoding_message_size(limits::MAX_FRAME_BYTES);
    let opening = async {
        let mut incoming = client.connect(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = incoming.message().await?;
        Ok::<_, tonic::Status>((incoming, first))
    };
    let (mut incoming, welcome) = match tokio::time::timeout(WELCOME_TIMEOUT, opening).await {
        Err(_) => return Ended::lost("the cloud endpoint does not answer"),
        Ok(Err(status)) => return Ended::refused(&status),
        Ok(Ok((
            incoming,
            Some(proto::CloudFrame {
                frame: Some(Down::Welcome(welcome)),
            }),
        ))) => (incoming, welcome),
        Ok(Ok(_)) => return Ended::lost("the cloud endpoint did not begin with a welcome"),
    };
    let mut session = Session {
        shared,
        sending: Sending::default(),
        control: VecDeque::new(),
        telling: Telling::new(
            shared.assets,
            &settings.namespace,
            welcome.registry_version.clone(),
        ),
        is_lanes_turn: false,
        waiting: HashMap::new(),
        last_heard: Instant::now(),
    };
    for flow in &welcome.credit {
        session.sending.flow(flow, Instant::now());
    }
    connected();
    let ended = session.carry(results, &frames, &mut incoming).await;
    // Before anybody hears that a batch failed, and asks whether the link is open.
    lost(&ended.error);
    session.fail(&ended.error.to_string());
    ended
}

fn hello(settings: &Settings) -> proto::Hello {
    proto::Hello {
        edge: settings.edge.clone(),
        boot: BOOT.as_bytes().to_vec().into(),
        protocol_min: *limits::PROTOCOLS.start(),
        protocol_max: *limits::PROTOCOLS.end(),
        command_credit: u32::try_from(COMMAND_CREDIT).unwrap_or(u32::MAX),
        software: concat!("foreshore ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

fn frame(frame: Up) -> proto::EdgeFrame {
    proto::EdgeFrame { frame: Some(frame) }
}

struct Session<'a> {
    shared: &'a Shared<'a>,
    sending: Sending,
    /// Frames that go before all lanes.
    control: VecDeque<Up>,
    /// What the cloud is told of assets; it takes turns with the lanes.
    telling: Telling,
    is_lanes_turn: bool,
    /// Batches without an answer, by number.
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
    last_heard: Instant,
}

impl Session<'_> {
    async fn carry(
        &mut self,
        results: &mut Results,
        frames: &mpsc::Sender<proto::EdgeFrame>,
        incoming: &mut tonic::Streaming<proto::CloudFrame>,
    ) -> Ended {
        let shared = self.shared;
        let keep_alive = shared.settings.keep_alive;
        let mut tick = tokio::time::interval(keep_alive / 3);
        let mut pings = 0;
        loop {
            let has_parts = self.sending.is_ready(|lane| shared.outbox.take(lane));
            let (has_work, has_room) = (
                has_parts || self.telling.has_parts() || !self.control.is_empty(),
                self.control.len() < MAX_CONTROL,
            );
            tokio::select! {
                biased;
                message = incoming.message(), if has_room => match message {
                    Ok(Some(proto::CloudFrame { frame })) => self.hear(frame),
                    Ok(None) => return Ended::lost("the cloud endpoint closed the link"),
                    Err(status) => return Ended::refused(&status),
                },
                Some((id, outcome)) = results.recv(), if has_room => {
                    self.control.push_back(Up::CommandResult(command::result_to_proto(id, &outcome)));
                }
                permit = frames.reserve(), if has_work => match permit {
                    Ok(permit) => self.say(permit),
                    Err(_) => return Ended::lost("the stream ended"),
                },
                () = self.telling.due() => self.telling.look(),
                () = shared.outbox.arrived() => {}
                _ = tick.tick() => {
                    if self.last_heard.elapsed() > keep_alive {
                        return Ended::lost(format!("the cloud endpoint was silent for {keep_alive:?}"));
                    }
                    if has_room {
                        pings += 1;
                        self.control.push_back(Up::Ping(proto::Ping { number: pings }));
                    }
                }
            }
        }
    }

    fn hear(&mut self, frame: Option<Down>) {
        self.last_heard = Instant::now();
        match frame {
            Some(Down::Command(message)) => match command::Command::from_proto(message, Timestamp::now()) {
                Ok(command) => self.shared.relay.carry_out(command),
                Err(error) => warn!(%error, "command from the cloud endpoint is malformed"),
            },
            Some(Down::Ping(proto::Ping { number })) => {
                self.control.push_back(Up::Pong(proto::Pong { number }))
            }
            Some(Down::Ack(ack)) => self.answer(ack.number, Ok(ack)),
            Some(Down::Nack(nack)) => self.answer(nack.number, Err(Failure::Nack(nack))),
            Some(Down::Flow(flow)) => self.sending.flow(&flow, Instant::now()),
            // A frame of a later version is not for us.
            Some(Down::Pong(_) | Down::Welcome(_)) | None => {}
        }
    }

    fn say(&mut self, permit: mpsc::Permit<'_, proto::EdgeFrame>) {
        if let Some(next) = self.control.pop_front() {
            return permit.send(frame(next));
        }
        self.is_lanes_turn = !self.is_lanes_turn;
        let next = if self.is_lanes_turn {
            self.next_of_lanes().or_else(|| self.next_of_registry())
        } else {
            self.next_of_registry().or_else(|| self.next_of_lanes())
        };
        if let Some(next) = next {
            permit.send(frame(next));
        }
    }

    fn next_of_lanes(&mut self) -> Option<Up> {
        let next = self.sending.next(Instant::now())?;
        // The answer can't come before the last part has gone.
        self.waiting.extend(next.complete);
        Some(next.frame)
    }

    fn next_of_registry(&mut self) -> Option<Up> {
        self.telling.next().map(Up::Registry)
    }

    fn answer(&mut self, number: u64, reply: Reply) {
        match self.waiting.remove(&number) {
            // Nobody may be waiting any more: the batch will be sent again, and recognised.
            Some(waiting) => drop(waiting.send(reply)),
            None => debug!(number, "answer to a batch that is not known"),
        }
    }

    fn fail(&mut self, cause: &str) {
        let begun = self.sending.give_up();
        for reply in self.waiting.drain().map(|(_, reply)| reply).chain(begun) {
            drop(reply.send(Err(Failure::LinkLost(cause.to_owned()))));
        }
    }
}
