//! The broker's own look at each of its listeners: it connects as any client does, publishes at quality of service 1,
//! and has to get that back.
//!
//! What it shows is what a client would meet: the socket is taken, TLS is agreed on with a certificate that is valid
//! today, a WebSocket is upgraded, and the threads that carry connections do their work. The message goes to the probe's
//! own session and to nobody else, whatever anybody subscribed to; it is in no durable queue, so that a probe costs no
//! write. No policy applies to it and no user can be it: it is let in by a [`ticket`] that is good for one connection.
//!
//! A listener that asks every client for a certificate of somebody else's authority is looked at as far as that: the probe
//! has none.

mod client;
pub(crate) mod ticket;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use foreshore_runtime::{
    Metrics,
    metrics::prometheus_client::{
        encoding::EncodeLabelSet,
        metrics::{counter::Counter, family::Family, gauge::Gauge},
    },
};
use serde::Serialize;
use tokio::sync::{Notify, watch};

use self::ticket::Tickets;
use crate::{engine::Engine, listener::Endpoint};

/// Where the probe publishes, with the name of the listener behind it.
const TOPIC: &str = "$SYS/probe/";

/// When listeners are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Time between two looks.
    pub interval: Duration,
    /// Longest time that a look may take.
    pub timeout: Duration,
}

/// What a look at a listener found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// Name of the listener.
    pub listener: String,
    /// Its URL.
    pub url: String,
    /// Time from the connection to the message that came back, in seconds; of a listener that asks for a certificate
    /// that the probe does not have, to that question.
    pub seconds: f64,
    /// How far the probe came, if not to the end for a reason that is none of the listener's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Labels of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    broker: Arc<str>,
    listener: String,
}

type SecondsGauge = Gauge<f64, AtomicU64>;

/// What is known of all listeners.
#[derive(Debug)]
pub(crate) struct Probes {
    pub(crate) tickets: Arc<Tickets>,
    schedule: parking_lot::Mutex<Option<Schedule>>,
    changed: Notify,
    latest: watch::Sender<BTreeMap<String, ProbeReport>>,
    broker: Arc<str>,
    round_trip: Family<Labels, SecondsGauge>,
    failures: Family<Labels, Counter>,
}

impl Probes {
    pub(crate) fn new(metrics: &Metrics, broker: Arc<str>) -> Self {
        Self {
            tickets: Arc::default(),
            schedule: parking_lot::Mutex::default(),
            changed: Notify::new(),
            latest: watch::Sender::default(),
            broker,
            round_trip: metrics.register(
                "broker_probe_seconds",
                "Time of the broker's last successful look at a listener, from the connection to the message that came back",
                Family::default(),
            ),
            failures: metrics.register(
                "broker_probe_failures",
                "Looks of the broker at a listener that failed",
                Family::default(),
            ),
        }
    }

    /// Changes when listeners are looked at; never with `None`.
    pub(crate) fn set_schedule(&self, schedule: Option<Schedule>) {
        *self.schedule.lock() = schedule;
        self.changed.notify_one();
    }

    /// What was found last, by listener, and each time that it changes.
    pub(crate) fn latest(&self) -> watch::Receiver<BTreeMap<String, ProbeReport>> {
        self.latest.subscribe()
    }

    /// Waits until listeners are to be looked at, and tells how long a look may take.
    pub(crate) async fn due(&self) -> Duration {
        loop {
            let schedule = *self.schedule.lock();
            let Some(Schedule { interval, timeout }) = schedule else {
                self.changed.notified().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep(interval) => return timeout,
                () = self.changed.notified() => {}
            }
        }
    }

    /// Shows what was found of all listeners.
    pub(crate) fn show(&self, reports: &[ProbeReport]) {
        let now: BTreeMap<_, _> = reports
            .iter()
            .map(|report| (report.listener.clone(), report.clone()))
            .collect();
        let before = self.latest.borrow().clone();
        for gone in before.keys().filter(|listener| !now.contains_key(*listener)) {
            self.round_trip.remove(&self.labels(gone));
            self.failures.remove(&self.labels(gone));
        }
        for report in reports {
            let labels = self.labels(&report.listener);
            let failures = self.failures.get_or_create(&labels).clone();
            let failed_before = before
                .get(&report.listener)
                .and_then(|before| before.failure.as_ref());
            match &report.failure {
                None => {
                    self.round_trip.get_or_create(&labels).set(report.seconds);
                    if failed_before.is_some() {
                        tracing::info!(listener = report.listener, "the listener can be used again");
                    }
                }
                Some(failure) => {
                    failures.inc();
                    if failed_before != Some(failure) {
                        let ProbeReport { listener, url, .. } = report;
                        tracing::warn!(listener, url, error = failure, "the listener can't be used");
                    }
                }
            }
        }
        self.latest.send_replace(now);
    }

    fn labels(&self, listener: &str) -> Labels {
        Labels {
            broker: Arc::clone(&self.broker),
            listener: listener.to_owned(),
        }
    }
}

/// Looks at a listener.
pub(crate) async fn probe(
    engine: &Engine,
    name: &str,
    endpoint: &Endpoint,
    timeout: Duration,
) -> ProbeReport {
    let address = dialled(endpoint.address);
    let ticket = engine.probes.tickets.issue();
    let topic = format!("{TOPIC}{name}");
    let begin = Instant::now();
    let looking = client::round_trip(address, &endpoint.protocol, &ticket, &topic);
    let looked = tokio::time::timeout(timeout, looking).await;
    let taken = begin.elapsed();
    let (note, failure) = match looked {
        // The timer looks only now and then.
        Ok(Ok(note)) if taken <= timeout => (note.map(str::to_owned), None),
        Ok(Err(failure)) => (None, Some(failure)),
        Ok(Ok(_)) | Err(_) => {
            let failure = format!("nothing came back within {} s", timeout.as_secs_f64());
            (None, Some(failure))
        }
    };
    ProbeReport {
        listener: name.to_owned(),
        url: endpoint.protocol.url(&address.to_string()),
        seconds: taken.as_secs_f64(),
        note,
        failure,
    }
}

/// Where a listener can be dialled from here.
fn dialled(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
