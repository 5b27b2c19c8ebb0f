//! The handle through which a role publishes and subscribes.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use foreshore_record::{Qos, Record, TopicFilter};
use tokio::sync::{mpsc, oneshot, watch};

pub use crate::connection::Service;
use crate::{
    error::{ConnectError, Ended, PublishError, SubscribeError},
    inflight::Answer,
    options::{Options, Target},
    packet::EncodedPublish,
    reason::ReasonCode,
    subscriptions::{Subscriber, SubscriberId},
};

/// Messages that wait for a place in the window.
const PUBLISH_QUEUE: usize = 64;

/// Changes of subscriptions that wait for the connection.
const CONTROL_QUEUE: usize = 64;

/// Publishes and subscribes over one connection that mends itself. Cheap to clone.
///
/// [`Client::new`] makes it together with the [`Service`] that owns the connection and must be run.
#[derive(Clone, Debug)]
pub struct Client {
    publishes: mpsc::Sender<Publication>,
    control: mpsc::Sender<Control>,
    state: watch::Receiver<ConnectionState>,
    target: Arc<watch::Sender<Target>>,
    next_subscriber: Arc<AtomicU32>,
    receive_maximum: u16,
}

/// A message on its way to the connection.
#[derive(Debug)]
pub(crate) struct Publication {
    pub(crate) publish: EncodedPublish,
    pub(crate) answer: Answer,
}

/// A change of subscriptions on its way to the connection.
#[derive(Debug)]
pub(crate) enum Control {
    Begin {
        subscriber: SubscriberId,
        deliveries: mpsc::Sender<crate::Delivery>,
        reserved: usize,
    },
    Add {
        subscriber: SubscriberId,
        filter: TopicFilter,
        qos: Qos,
        reply: oneshot::Sender<Result<(), SubscribeError>>,
    },
    Remove {
        subscriber: SubscriberId,
        filter: TopicFilter,
    },
    End {
        subscriber: SubscriberId,
    },
}

/// How the connection is.
#[derive(Clone, Debug)]
pub enum ConnectionState {
    /// There is none; it is being made.
    Connecting {
        /// Tries that failed since the last connection.
        failures: u32,
        /// Why the last try failed, or the connection before ended.
        error: Option<Arc<ConnectError>>,
    },
    /// There is one.
    Connected {
        /// The address that answered.
        address: Arc<str>,
        /// Counts connections, from 1.
        number: u64,
    },
    /// The client has ended.
    Ended,
}

/// The server's answer to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// [`ReasonCode::SUCCESS`], or [`ReasonCode::NO_MATCHING_SUBSCRIBERS`] if the server says so.
    pub reason: ReasonCode,
}

/// Resolves when the server has answered a message: with quality of service 0, when it was written.
///
/// It may be dropped; the message is sent all the same.
#[must_use = "whether the server took the message is known only from its receipt"]
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<Acknowledgement, PublishError>>);

impl Future for Receipt {
    type Output = Result<Acknowledgement, PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|answer| answer.unwrap_or(Err(PublishError::Ended)))
    }
}

impl Client {
    /// Makes a client and the service that owns its connection.
    #[must_use]
    pub fn new(options: Options) -> (Self, Service) {
        let (publishes, publications) = mpsc::channel(PUBLISH_QUEUE);
        let (control, controls) = mpsc::channel(CONTROL_QUEUE);
        let (state_sender, state) = watch::channel(ConnectionState::Connecting {
            failures: 0,
            error: None,
        });
        let (target, target_receiver) = watch::channel(options.target.clone());
        let client = Self {
            publishes,
            control,
            state,
            target: Arc::new(target),
            next_subscriber: Arc::new(AtomicU32::new(1)),
            receive_maximum: options.receive_maximum,
        };
        (
            client,
            Service::new(options, publications, controls, state_sender, target_receiver),
        )
    }

    /// Makes a client for a session that the server keeps while we are away (MQTT 5.0, section 4.1), with the one subscriber
    /// that receives its messages. The options should say that the session has a memory: no clean start, an expiry.
    ///
    /// The subscriber knows its filters before the first connection, so nothing that the server kept is taken for
    /// unwanted; from `former` filters, which the session may still have, it is unsubscribed. A filter that the server refuses ends the connection, and is told as its error. What comes again after a
    /// break is not handed out again while the subscriber has it. Dropping the subscriber unsubscribes nothing; the client
    /// has to be dropped with it.
    #[must_use]
    pub fn with_session(
        options: Options,
        filters: Vec<(TopicFilter, Qos)>,
        former: Vec<TopicFilter>,
    ) -> (Self, Service, Subscriber) {
        let (client, mut service) = Self::new(options);
        let id = client.next_subscriber.fetch_add(1, Ordering::Relaxed);
        let reserved = usize::from(client.receive_maximum.max(1));
        let (deliveries, receiver) = mpsc::channel(reserved * 2);
        service.begin_session(id, deliveries, reserved, filters, former);
        let subscriber = Subscriber::new(id, receiver, client.control.clone());
        (client, service, subscriber)
    }

    /// Publishes a record, number and all. Waits while the window is full; resolves when the record has its place in
    /// the order, before the server has answered.
    ///
    /// # Errors
    /// When the record can't be written as a packet, or the client has ended.
    pub async fn publish(&self, record: &Record) -> Result<Receipt, PublishError> {
        let (answer, receipt) = oneshot::channel();
        let publication = Publication {
            publish: EncodedPublish::new(record)?,
            answer,
        };
        self.publishes
            .send(publication)
            .await
            .map_err(|_| PublishError::Ended)?;
        Ok(Receipt(receipt))
    }

    /// Makes a subscriber, which has no filters yet.
    ///
    /// # Errors
    /// When the client has ended.
    pub async fn subscriber(&self) -> Result<Subscriber, Ended> {
        let id = self.next_subscriber.fetch_add(1, Ordering::Relaxed);
        let reserved = usize::from(self.receive_maximum.max(1));
        let (deliveries, receiver) = mpsc::channel(reserved * 2);
        let begin = Control::Begin {
            subscriber: id,
            deliveries,
            reserved,
        };
        self.control.send(begin).await.map_err(|_| Ended)?;
        Ok(Subscriber::new(id, receiver, self.control.clone()))
    }

    /// How the connection is, and every change of it.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// Whether there is a connection now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(*self.state.borrow(), ConnectionState::Connected { .. })
    }

    /// Goes to other addresses of the same server, secured as before; see [`set_target`](Self::set_target).
    pub fn set_addresses(&self, addresses: Vec<String>) {
        let security = self.target.borrow().security.clone();
        self.set_target(Target { addresses, security });
    }

    /// Goes to another server. A connection to an address that is no longer among the target's ends; what was not
    /// answered is sent again to the new one.
    pub fn set_target(&self, target: Target) {
        self.target.send_if_modified(|present| {
            let changed = *present != target;
            *present = target;
            changed
        });
    }
}

#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod tests;
