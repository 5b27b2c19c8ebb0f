//! One life of the stream: lanes by urgency and credit.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use foreshore_control::transport::{self, ConnectOptions, Keepalive, channel};
use foreshore_edgelink::{Lane, Refusal, command, limits, proto};
use foreshore_northbound::SinkError;
use jiff::Timestamp;
use proto::{
    cloud_frame::Frame as Down, edge_frame::Frame as Up, edge_link_client::EdgeLinkClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use crate::{
    credentials::EdgeCredentials,
    factory::Settings,
    outbox::{Failure, Outbox, Outgoing, Reply},
    relay::Relay,
};

/// Frames that are handed to the transport ahead of time: few, so that an alarm overtakes late.
const AHEAD: usize = 2;
/// Commands that the edge takes at a time.
const COMMAND_CREDIT: u32 = 32;
/// Longest wait for the cloud's first frame.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);

/// How a stream ended.
pub(crate) enum Ended {
    /// The certificate is new; open the stream again with it.
    Renewed,
    /// It is gone.
    Failed(SinkError),
}

/// Credit and progress of one lane.
#[derive(Default)]
struct Progress {
    sent: u64,
    received: u64,
    granted: u64,
    /// The batch whose parts are on the way.
    current: Option<Outgoing>,
    number: u64,
}

struct Session<'a> {
    lanes: [Progress; Lane::COUNT],
    outbox: &'a Outbox,
    /// Batches without an answer, by number.
    waiting: HashMap<u64, tokio::sync::oneshot::Sender<Reply>>,
    next_number: u64,
}

/// Opens a stream and keeps it.
pub(crate) async fn run(
    settings: &Settings,
    credentials: &EdgeCredentials,
    outbox: &Outbox,
    relay: &Arc<Relay>,
    connected: impl FnOnce(),
) -> Ended {
    let failed = |reason: &'static str, cause: String| Ended::Failed(SinkError::retryable(reason, cause));
    let options = ConnectOptions {
        keepalive: Keepalive { interval: settings.keep_alive / 2, timeout: settings.keep_alive / 2 },
        ..ConnectOptions::default()
    };
    let channel =
        match channel(&settings.address, &credentials.identity, settings.server_name.clone(), &options).await {
            Ok(channel) => channel,
            Err(error @ transport::Error::Refused { .. }) => {
                return Ended::Failed(SinkError::fatal("CertificateUntrusted", error));
            }
            Err(error) => return failed("Unreachable", error.to_string()),
        };
    let (frames, outgoing) = mpsc::channel(AHEAD);
    let hello = proto::Hello {
        edge: settings.edge.clone(),
        boot: uuid::Uuid::new_v4().as_bytes().to_vec().into(),
        protocol_min: *limits::PROTOCOLS.start(),
        protocol_max: *limits::PROTOCOLS.end(),
        command_credit: COMMAND_CREDIT,
        software: concat!("foreshore ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    if frames.send(frame(Up::Hello(hello))).await.is_err() {
        return failed("Unreachable", "the stream ended at once".to_owned());
    }
    let mut client = EdgeLinkClient::new(channel)
        .max_decoding_message_size(limits::MAX_FRAME_BYTES)
        .max_encoding_message_size(limits::MAX_FRAME_BYTES);
    let opening = client.connect(ReceiverStream::new(outgoing));
    let mut incoming = match tokio::time::timeout(WELCOME_TIMEOUT, opening).await {
        Err(_) => return failed("Unreachable", "the cloud endpoint does not answer".to_owned()),
        Ok(Err(status)) => return Ended::Failed(refused(&status)),
        Ok(Ok(response)) => response.into_inner(),
    };
    let welcome = match tokio::time::timeout(WELCOME_TIMEOUT, incoming.message()).await {
        Err(_) => return failed("Unreachable", "the cloud endpoint does not welcome us".to_owned()),
        Ok(Err(status)) => return Ended::Failed(refused(&status)),
        Ok(Ok(Some(proto::CloudFrame { frame: Some(Down::Welcome(welcome)) }))) => welcome,
        Ok(Ok(_)) => return failed("ProtocolError", "the cloud endpoint did not begin with a welcome".to_owned()),
    };
    let mut session = Session { lanes: Default::default(), outbox, waiting: HashMap::new(), next_number: 1 };
    for flow in welcome.credit {
        session.flow(flow);
    }
    connected();
    let ended = session.carry(settings, credentials, relay, &frames, &mut incoming).await;
    session.fail(match &ended {
        Ended::Renewed => "the certificate was renewed",
        Ended::Failed(_) => "the link was lost",
    });
    ended
}

fn frame(frame: Up) -> proto::EdgeFrame {
    proto::EdgeFrame { frame: Some(frame) }
}

/// What a refusal of the whole stream means.
fn refused(status: &tonic::Status) -> SinkError {
    match Refusal::of(status) {
        Some(refusal) if !refusal.is_transient() => SinkError::fatal(refusal.as_str(), status.message()),
        Some(refusal) => SinkError::retryable(refusal.as_str(), status.message()),
        None => SinkError::retryable("Unreachable", status.message()),
    }
}

impl Session<'_> {
    async fn carry(
        &mut self,
        settings: &Settings,
        credentials: &EdgeCredentials,
        relay: &Arc<Relay>,
        frames: &mpsc::Sender<proto::EdgeFrame>,
        incoming: &mut tonic::Streaming<proto::CloudFrame>,
    ) -> Ended {
        let lost = |cause: &str| Ended::Failed(SinkError::retryable("Unreachable", cause));
        let (results, mut finished) = mpsc::channel(usize::try_from(COMMAND_CREDIT).unwrap_or(32));
        let mut control: Option<proto::EdgeFrame> = None;
        let mut renewed = false;
        loop {
            if renewed && self.waiting.is_empty() && self.lanes.iter().all(|lane| lane.current.is_none()) {
                return Ended::Renewed;
            }
            // With a new certificate at hand nothing more begins on this stream.
            let ready = control.is_some() || self.ready(!renewed).is_some();
            tokio::select! {
                biased;
                message = incoming.message() => match message {
                    Ok(Some(proto::CloudFrame { frame: Some(down) })) => match down {
                        Down::Command(message) => match command::Command::from_proto(message, Timestamp::now()) {
                            Ok(command) => relay.carry_out(command, results.clone()),
                            Err(error) => warn!(%error, "command from the cloud endpoint is malformed"),
                        },
                        Down::Ping(ping) => control = Some(frame(Up::Pong(proto::Pong { number: ping.number }))),
                        Down::Ack(ack) => self.answer(ack.number, Ok(ack)),
                        Down::Nack(nack) => self.answer(nack.number, Err(Failure::Nack(nack))),
                        Down::Flow(flow) => self.flow(flow),
                        Down::Pong(_) | Down::Welcome(_) => {}
                    },
                    Ok(Some(proto::CloudFrame { frame: None })) => {}
                    Ok(None) => return lost("the cloud endpoint closed the link"),
                    Err(status) => return Ended::Failed(refused(&status)),
                },
                Some((id, outcome)) = finished.recv(), if control.is_none() => {
                    control = Some(frame(Up::CommandResult(command::result_to_proto(id, &outcome))));
                }
                permit = frames.reserve(), if ready => match permit {
                    Ok(permit) => match control.take().or_else(|| self.next_part(!renewed)) {
                        Some(next) => permit.send(next),
                        None => drop(permit),
                    },
                    Err(_) => return lost("the stream ended"),
                },
                () = self.outbox.arrived() => {}
                () = until(credentials.renew_at()), if !renewed => {
                    match credentials.renew(settings).await {
                        Ok(()) => renewed = true,
                        Err(error) => return Ended::Failed(error.to_sink_error()),
                    }
                }
            }
        }
    }

    /// The most urgent lane that may send now; fills lanes from the outbox on the way.
    fn ready(&mut self, begin: bool) -> Option<Lane> {
        Lane::ALL.into_iter().find(|lane| {
            let Some(progress) = self.lanes.get_mut(lane.index()) else { return false };
            if progress.current.is_none() && begin {
                progress.current = self.outbox.take(*lane);
                progress.number = 0;
            }
            let Some(current) = &progress.current else { return false };
            let length = current.parts.front().map_or(0, |part| part.len() as u64);
            let rest: u64 = current.parts.iter().map(|part| part.len() as u64).sum();
            let credit = progress.granted.saturating_sub(progress.received);
            let fits = progress.sent + length <= progress.granted;
            // A batch larger than the whole credit goes alone (`Flow.granted`).
            let alone = rest > credit && (progress.number != 0 || progress.sent == progress.received);
            fits || alone
        })
    }

    /// The next part of the most urgent lane that may send.
    fn next_part(&mut self, begin: bool) -> Option<proto::EdgeFrame> {
        let lane = self.ready(begin)?;
        let progress = self.lanes.get_mut(lane.index())?;
        let mut current = progress.current.take()?;
        let body = current.parts.pop_front().unwrap_or_default();
        let more = !current.parts.is_empty();
        progress.sent += body.len() as u64;
        let first = progress.number == 0;
        if first {
            progress.number = self.next_number;
            self.next_number += 1;
        }
        let number = progress.number;
        let next = if first {
            frame(Up::Batch(proto::Batch { number, body, more, ..current.header.clone() }))
        } else {
            frame(Up::Part(proto::Part { lane: lane.to_proto(), body, more }))
        };
        if more {
            progress.current = Some(current);
        } else {
            progress.number = 0;
            self.waiting.insert(number, current.reply);
        }
        Some(next)
    }

    fn flow(&mut self, flow: proto::Flow) {
        let progress = Lane::from_proto(flow.lane).and_then(|lane| self.lanes.get_mut(lane.index()));
        if let Some(progress) = progress {
            progress.granted = progress.granted.max(flow.granted);
            progress.received = progress.received.max(flow.received);
        }
    }

    fn answer(&mut self, number: u64, reply: Reply) {
        match self.waiting.remove(&number) {
            // Nobody may be waiting any more: the batch will be sent again, and recognised.
            Some(waiting) => drop(waiting.send(reply)),
            None => debug!(number, "answer to a batch that is not known"),
        }
    }

    fn fail(&mut self, cause: &str) {
        let current = self.lanes.iter_mut().filter_map(|lane| lane.current.take()).map(|current| current.reply);
        for reply in self.waiting.drain().map(|(_, reply)| reply).chain(current) {
            drop(reply.send(Err(Failure::LinkLost(cause.to_owned()))));
        }
    }
}

/// Resolves at a time of the wall clock.
async fn until(time: Option<Timestamp>) {
    let Some(time) = time else { return pending().await };
    loop {
        let left = time.duration_since(Timestamp::now());
        let Ok(left) = Duration::try_from(left) else { return };
        if left.is_zero() {
            return;
        }
        // Timers stand still while a machine sleeps.
        tokio::time::sleep(left.min(Duration::from_secs(60))).await;
    }
}
