//! The event service: pull points (ONVIF Core, 9.2).

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    time::Duration,
};

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Camera,
    soap::{Fault, Request},
};

/// Most pull points at a time; real cameras allow few.
const MAX_PULL_POINTS: usize = 5;
/// Most events that a pull point keeps; older ones go.
const MAX_QUEUED: usize = 100;
/// Lifetime of a pull point for which the client asks none.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Longest that `PullMessages` waits.
const MAX_WAIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
struct Motion {
    at: Timestamp,
    moving: bool,
    /// `Initialized` for the state at subscription, `Changed` after that.
    operation: &'static str,
}

#[derive(Debug)]
struct PullPoint {
    expires: Timestamp,
    queue: VecDeque<Motion>,
}

/// All pull points.
#[derive(Debug, Default)]
pub(super) struct Hub {
    points: Mutex<HashMap<u64, PullPoint>>,
    next: Mutex<u64>,
    moving: Mutex<bool>,
    arrived: Notify,
}

impl Hub {
    /// Tells every pull point that motion began or ended.
    pub(super) fn motion(&self, moving: bool, at: Timestamp) {
        *self.moving.lock() = moving;
        for point in self.points.lock().values_mut() {
            if point.queue.len() >= MAX_QUEUED {
                point.queue.pop_front();
            }
            point.queue.push_back(Motion {
                at,
                moving,
                operation: "Changed",
            });
        }
        self.arrived.notify_waiters();
    }

    /// Forgets all pull points, as a restart does.
    pub(super) fn forget(&self) {
        self.points.lock().clear();
        self.arrived.notify_waiters();
    }

    fn create(&self, now: Timestamp, lifetime: Duration) -> Result<u64, Fault> {
        let mut points = self.points.lock();
        points.retain(|_, point| point.expires > now);
        if points.len() >= MAX_PULL_POINTS {
            return Err(Fault::sender(
                "ter:MaxPullPoints",
                format!("{MAX_PULL_POINTS} pull points are allowed"),
            ));
        }
        let mut next = self.next.lock();
        *next += 1;
        let initial = Motion {
            at: now,
            moving: *self.moving.lock(),
            operation: "Initialized",
        };
        points.insert(
            *next,
            PullPoint {
                expires: later(now, lifetime),
                queue: VecDeque::from([initial]),
            },
        );
        Ok(*next)
    }

    /// Takes events; `None` when there is no such pull point.
    fn take(&self, id: u64, now: Timestamp, limit: usize) -> Option<Vec<Motion>> {
        let mut points = self.points.lock();
        let point = points.get_mut(&id).filter(|point| point.expires > now)?;
        let count = limit.min(point.queue.len());
        Some(point.queue.drain(..count).collect())
    }
}

/// A time after another.
pub(super) fn later(now: Timestamp, duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::from_secs(60));
    now.saturating_add(duration).unwrap_or(now)
}

/// Reads an XML duration such as `PT60S`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let span: Span = text.parse().ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(duration).ok()
}

/// Reads an XML duration, or an absolute time.
fn lifetime(text: Option<&str>, now: Timestamp) -> Duration {
    let absolute = |text: &str| {
        let at: Timestamp = text.parse().ok()?;
        Duration::try_from(at.duration_since(now)).ok()
    };
    text.and_then(|text| duration(text).or_else(|| absolute(text)))
        .unwrap_or(DEFAULT_LIFETIME)
        .min(Duration::from_secs(3600))
}

/// Answers a request.
pub(super) async fn answer(camera: &Camera, request: &Request, path: &str) -> Result<String, Fault> {
    let now = camera.now();
    let point = path
        .rsplit('/')
        .next()
        .and_then(|id| id.parse::<u64>().ok())
        .unwrap_or_default();
    match request.operation.as_str() {
        "CreatePullPointSubscription" => {
            let lifetime = lifetime(request.value("InitialTerminationTime"), now);
            let id = camera.events.create(now, lifetime)?;
            Ok(format!(
                "<tev:CreatePullPointSubscriptionResponse><tev:SubscriptionReference><wsa:Address>{}/onvif/subscription/{id}\
                 </wsa:Address></tev:SubscriptionReference><wsnt:CurrentTime>{now}</wsnt:CurrentTime>\
                 <wsnt:TerminationTime>{}</wsnt:TerminationTime></tev:CreatePullPointSubscriptionResponse>",
                camera.base(),
                later(now, lifetime)
            ))
        }
        "PullMessages" => pull(camera, request, point).await,
        "Renew" => {
            let lifetime = lifetime(request.value("TerminationTime"), now);
            let mut points = camera.events.points.lock();
            let point = points.get_mut(&point).ok_or_else(unknown)?;
            point.expires = later(now, lifetime);
            Ok(format!(
                "<wsnt:RenewResponse><wsnt:TerminationTime>{}</wsnt:TerminationTime><wsnt:CurrentTime>{now}\
                 </wsnt:CurrentTime></wsnt:RenewResponse>",
                point.expires
            ))
        }
        "Unsubscribe" => {
            camera.events.points.lock().remove(&point).ok_or_else(unknown)?;
            Ok("<wsnt:UnsubscribeResponse/>".to_owned())
        }
        "SetSynchronizationPoint" => {
            let moving = *camera.events.moving.lock();
            let mut points = camera.events.points.lock();
            let point = points.get_mut(&point).ok_or_else(unknown)?;
            point.queue.push_back(Motion {
                at: now,
                moving,
                operation: "Initialized",
            });
            camera.events.arrived.notify_waiters();
            Ok("<tev:SetSynchronizationPointResponse/>".to_owned())
        }
        "GetEventProperties" => Ok(PROPERTIES.to_owned()),
        "GetServiceCapabilities" => Ok(
            "<tev:GetServiceCapabilitiesResponse><tev:Capabilities WSSubscriptionPolicySupport=\
             \"false\" WSPullPointSupport=\"true\" MaxPullPoints=\"5\"/></tev:GetServiceCapabilitiesResponse>"
                .to_owned(),
        ),
        operation => Err(Fault::not_supported(operation)),
    }
}

fn unknown() -> Fault {
    Fault::sender(
        "wsnt:ResourceUnknownFault",
        "pull point does not exist or expired",
    )
}

const PROPERTIES: &str = "<tev:GetEventPropertiesResponse>\
    <tev:TopicNamespaceLocation>http://www.onvif.org/onvif/ver10/topics/topicns.xml</tev:TopicNamespaceLocation>\
    <wsnt:FixedTopicSet>true</wsnt:FixedTopicSet><wstop:TopicSet xmlns:wstop=\"http://docs.oasis-open.org/wsn/t-1\">\
    <tns1:VideoSource><MotionAlarm wstop:topic=\"true\"><tt:MessageDescription IsProperty=\"true\">\
    <tt:Source><tt:SimpleItemDescription Name=\"Source\" Type=\"tt:ReferenceToken\"/></tt:Source>\
    <tt:Data><tt:SimpleItemDescription Name=\"State\" Type=\"xs:boolean\"/></tt:Data></tt:MessageDescription>\
    </MotionAlarm></tns1:VideoSource></wstop:TopicSet>\
    <wsnt:TopicExpressionDialect>http://www.onvif.org/ver10/tev/topicExpression/ConcreteSet</wsnt:TopicExpressionDialect>\
    <wsnt:TopicExpressionDialect>http://docs.oasis-open.org/wsn/t-1/TopicExpression/Concrete</wsnt:TopicExpressionDialect>\
    <tev:MessageContentFilterDialect>http://www.onvif.org/ver10/tev/messageContentFilter/ItemFilter\
    </tev:MessageContentFilterDialect>\
    <tev:MessageContentSchemaLocation>http://www.onvif.org/onvif/ver10/schema/onvif.xsd</tev:MessageContentSchemaLocation>\
    </tev:GetEventPropertiesResponse>";

async fn pull(camera: &Camera, request: &Request, point: u64) -> Result<String, Fault> {
    let wait = lifetime(request.value("Timeout"), camera.now()).min(MAX_WAIT);
    let limit = request.number("MessageLimit").unwrap_or(10.0).clamp(1.0, 100.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped just before"
    )]
    let limit = limit as usize;
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        // Ask to be woken before looking, so that nothing falls between.
        let arrived = camera.events.arrived.notified();
        let taken = camera
            .events
            .take(point, camera.now(), limit)
            .ok_or_else(unknown)?;
        let late = tokio::time::timeout_at(deadline, async {
            if taken.is_empty() {
                arrived.await
            }
        })
        .await
        .is_err();
        if !taken.is_empty() || late {
            return Ok(messages(camera, &taken));
        }
    }
}

fn messages(camera: &Camera, motions: &[Motion]) -> String {
    let now = camera.now();
    let mut text = format!(
        "<tev:PullMessagesResponse><tev:CurrentTime>{now}</tev:CurrentTime><tev:TerminationTime>{}</tev:TerminationTime>",
        later(now, DEFAULT_LIFETIME)
    );
    for Motion {
        at,
        moving,
        operation,
    } in motions
    {
        let written = write!(
            text,
            "<wsnt:NotificationMessage><wsnt:Topic Dialect=\"http://www.onvif.org/ver10/tev/topicExpression/ConcreteSet\">\
             tns1:VideoSource/MotionAlarm</wsnt:Topic><wsnt:Message><tt:Message UtcTime=\"{at}\" \
             PropertyOperation=\"{operation}\"><tt:Source><tt:SimpleItem Name=\"Source\" Value=\"source_1\"/></tt:Source>\
             <tt:Data><tt:SimpleItem Name=\"State\" Value=\"{moving}\"/></tt:Data></tt:Message></wsnt:Message>\
             </wsnt:NotificationMessage>"
        );
        debug_assert!(written.is_ok(), "writing to a string can't fail");
    }
    text.push_str("</tev:PullMessagesResponse>");
    text
}
