//! What a protocol implements: a [`Connector`] that dials devices and a [`Link`] to each.
//!
//! Everything that does not depend on the protocol is the runner's: which devices and assets there are, credentials,
//! waiting between tries, messages and their numbers, durable hand-over to the broker, commands with their deadlines
//! and repeats, health, metrics. A protocol says what it can't do ([`Connector::check`]), dials
//! ([`Connector::connect`]), and keeps what is observed equal to what was asked for ([`Link::observe`]).
//!
//! The contract was drawn from two unlike protocols. OPC UA keeps one session in which the server pushes; after a cut
//! the link itself takes the session up again and asks for what was missed, and nobody outside notices more than a
//! [`Gap`](crate::Gap) or a health of the device. ONVIF polls: pictures over HTTP, events from a pull point; there is
//! nothing to lose but the next answer.

use std::sync::Arc;

use async_trait::async_trait;
use foreshore_crds::v1alpha1::asset::Action;
use foreshore_record::CommandOutcome;

use crate::{
    emitter::Emitter,
    endpoint::Endpoint,
    health::{Health, MemberHealth, reason},
    invocation::Invocation,
    plan::{AssetPlan, DevicePlan},
};

/// A southbound protocol.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Name of the protocol, as in `opcua`: that of its block in a Device, of its command and of its metrics.
    fn protocol(&self) -> &'static str;

    /// Says what of a device and its assets the protocol can't do.
    ///
    /// Pure and quick: no input or output. What depends on the device itself, such as an address that it does not
    /// know, is not refused here but told as health by [`Link::observe`].
    ///
    /// # Errors
    /// Every fault found, not only the first. A refused object keeps its last good version.
    fn check(&self, device: &DevicePlan, assets: &[Arc<AssetPlan>]) -> Result<(), Vec<Refusal>>;

    /// Whether two links to one device see the same values and events, each with the time that the device gave it: then
    /// another instance can subscribe before this one lets go, and leave out what comes twice. Otherwise a device is
    /// let go first, and the gap is told.
    fn overlaps(&self) -> bool {
        false
    }

    /// The JSON Schema (2020-12) that an action's input must satisfy. Pure and quick.
    ///
    /// It is published, and the runner refuses an input that breaks it before the link hears of the command. What holds
    /// for all protocols: a `Call` takes an object of its arguments by name, a `Read` nothing, a `Write` the value
    /// itself. Nothing is `null`, or an empty object.
    fn request_schema(&self, action: &Action) -> serde_json::Value {
        crate::schema::default_request(action)
    }

    /// Dials a device, once. The runner calls again, after a wait that depends on the [`LinkErrorClass`].
    ///
    /// The future may be dropped at any await when the plan changes; what was opened must close then.
    ///
    /// # Errors
    /// Why there is no link.
    async fn connect(&self, endpoint: Endpoint, out: Emitter) -> Result<Box<dyn Link>, LinkError>;
}

/// A link to one device: a session, or whatever the protocol has in its place.
///
/// A link that is dropped without [`close`](Link::close) ends what it runs.
#[async_trait]
pub trait Link: Send + Sync {
    /// Makes what is observed equal to `assets`: begins what is new, ends what is gone, and leaves alone what stays the
    /// same. Called once after connecting and at each change of the plan; never twice at once.
    ///
    /// Returns when everything was tried, with the health of every dataset, event and stream of `assets`; of those that
    /// are left out nothing changes, and a task of the link that speaks meanwhile is believed more. That some data
    /// points can't be observed is [`Health::of_points`] of their dataset, not an error; a link goes on trying them, and
    /// tells changes through [`Emitter::health`].
    ///
    /// # Errors
    /// When the link is lost.
    async fn observe(&self, assets: &[Arc<AssetPlan>]) -> Result<Vec<MemberHealth>, LinkError>;

    /// Resolves when the link is lost for good and the runner must connect again. A link that can resume by itself
    /// does so first, and tells meanwhile through [`Emitter::health`] of [`Member::Device`](crate::Member::Device).
    ///
    /// Resolves at once, with the same error, when called again.
    async fn ended(&self) -> LinkError;

    /// A narrower schema for an action's input than [`Connector::request_schema`] gives, once the device has told more,
    /// such as the arguments of a method. Asked for after [`observe`](Link::observe).
    async fn request_schema(
        &self,
        asset: &Arc<AssetPlan>,
        group: &str,
        action: &str,
    ) -> Option<serde_json::Value> {
        let _ = (asset, group, action);
        None
    }

    /// URI of the source of this link's messages, such as the application URI of an OPC UA server; the address that was
    /// dialled where it is left out. Asked for before [`observe`](Link::observe).
    fn source_uri(&self) -> Option<String> {
        None
    }

    /// Carries out an action. Several may run at once.
    ///
    /// The runner has checked that the action exists, that the input fits it, that the deadline is not past and that it
    /// is not a repeat. When the future is dropped, the outcome is unknown to the requester.
    async fn invoke(&self, invocation: Invocation) -> CommandOutcome;

    /// Ends the link in order, such as by closing the session. Returns soon, even when the device does not answer.
    async fn close(&self);
}

/// Something that a protocol can't do, or an object that makes no sense in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Refusal {
    /// The object at fault.
    pub subject: Subject,
    /// Path of the field, such as `spec.datasets[2].dataPoints[14].address`.
    pub field: String,
    /// What was found, and what is allowed.
    pub reason: String,
}

/// The object at fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The device, or the sum of its assets.
    Device,
    /// The asset of that name.
    Asset(String),
}

impl Refusal {
    /// A refusal of the device.
    pub fn device(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            subject: Subject::Device,
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A refusal of one asset.
    pub fn asset(asset: &AssetPlan, field: impl Into<String>, reason: impl Into<String>) -> Self {
        let subject = Subject::Asset(asset.object.name.clone());
        Self {
            subject,
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// Why there is no link, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LinkError {
    /// What kind of trouble; decides how long the runner waits.
    pub class: LinkErrorClass,
    /// What happened, for people.
    pub message: String,
    /// What the device or the network said, word for word: a status code, an error of the operating system. Never a
    /// password.
    pub evidence: String,
}

/// What kind of trouble a link has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkErrorClass {
    /// No answer, or no longer. Tried again soon.
    Unreachable,
    /// The device refused our credentials. Tried again slowly, so that no account is locked, or when the plan or the
    /// Secret changes.
    AuthenticationRefused,
    /// The device's certificate is not trusted by us, or ours not by the device. Tried again slowly.
    Untrusted,
    /// What is configured does not fit the device, such as a security policy that it does not offer. Tried again
    /// slowly.
    Configuration,
    /// The device answered something that the protocol does not allow. Tried again soon.
    Protocol,
}

impl LinkErrorClass {
    /// Whether trying again soon is of no use, or harmful.
    #[must_use]
    pub fn needs_a_change(self) -> bool {
        match self {
            Self::AuthenticationRefused | Self::Untrusted | Self::Configuration => true,
            Self::Unreachable | Self::Protocol => false,
        }
    }

    /// The class as it appears in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::AuthenticationRefused => "authentication_refused",
            Self::Untrusted => "untrusted",
            Self::Configuration => "configuration",
            Self::Protocol => "protocol",
        }
    }
}

impl LinkError {
    /// An error without evidence yet.
    pub fn new(class: LinkErrorClass, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            evidence: String::new(),
        }
    }

    /// Adds what the device or the network said.
    #[must_use]
    pub fn with_evidence(mut self, evidence: impl std::fmt::Display) -> Self {
        self.evidence = evidence.to_string();
        self
    }

    /// The health of a device that has this trouble.
    #[must_use]
    pub fn health(&self) -> Health {
        use foreshore_crds::conditions::reasons;
        let (reason, next_step) = match self.class {
            LinkErrorClass::Unreachable => (
                reasons::UNREACHABLE,
                "check that the device is on and that its address and the network are right",
            ),
            LinkErrorClass::AuthenticationRefused => (
                reasons::AUTHENTICATION_FAILED,
                "check user name and password in the Secret that the Device names",
            ),
            LinkErrorClass::Untrusted => (
                reasons::CERTIFICATE_UNTRUSTED,
                "add the device's certificate to spec.trust, or ours to the device's trust list",
            ),
            LinkErrorClass::Configuration => (
                reason::CONFIGURATION_REFUSED,
                "change the Device to what the device offers",
            ),
            LinkErrorClass::Protocol => (
                reason::PROTOCOL_ERROR,
                "look at the device's own log and its firmware",
            ),
        };
        let evidence = match self.evidence.as_str() {
            "" => self.message.clone(),
            evidence => format!("{}: {evidence}", self.message),
        };
        Health::unhealthy(reason, evidence).with_next_step(next_step)
    }
}
