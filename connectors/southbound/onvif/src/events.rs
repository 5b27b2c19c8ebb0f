//! Events: one pull point a camera, shared by all of its assets, since cameras have few (ONVIF Core, 9.2).

use std::{sync::Arc, time::Duration};

use foreshore_connector_sdk::{Event, Gap, Health, Member, Observation};
use foreshore_crds::v1alpha1::asset::AssetEvent;
use foreshore_crds::v1alpha1::device::OnvifEvents;
use jiff::Timestamp;
use parking_lot::Mutex;
use quick_xml::escape::escape;
use reqwest::Url;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tracing::{debug, info};

use crate::{
    camera::EVENTS,
    client::{Client, Error, Lockout},
    shared::Shared,
    xml::Element,
};

const NOTIFICATION: &str = "http://docs.oasis-open.org/wsn/b-2";
const PULL: &str = "http://www.onvif.org/ver10/events/wsdl/PullPointSubscription/PullMessagesRequest";
const CREATE: &str =
    "http://www.onvif.org/ver10/events/wsdl/EventPortType/CreatePullPointSubscriptionRequest";
const RENEW: &str = "http://docs.oasis-open.org/wsn/bw-2/SubscriptionManager/RenewRequest";
const UNSUBSCRIBE: &str = "http://docs.oasis-open.org/wsn/bw-2/SubscriptionManager/UnsubscribeRequest";

/// First wait after a pull point failed; doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait after a pull point failed.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for a camera to end a pull point.
const FAREWELL: Duration = Duration::from_secs(2);
/// Shortest time from one pull with messages to the next, and from one without: some cameras answer at once, whatever they
/// are asked to wait.
const PACE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Shortest lifetime of a pull point that is believed; some cameras tell none.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(2);

/// A pull point.
struct Point {
    address: Url,
    lifetime: Duration,
}

/// An event that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) member: Member,
    pub(crate) event: AssetEvent,
}

/// A message of a pull point.
#[derive(Clone, Debug, PartialEq)]
struct Message {
    topic: String,
    time: Option<Timestamp>,
    operation: String,
    source: Vec<(String, String)>,
    data: Vec<(String, String)>,
}

/// The pull point that there is, for ending it.
pub(crate) type Current = Arc<Mutex<Option<Url>>>;

/// Pulls until dropped; creates the pull point anew whenever it fails, as after a restart of the camera.
pub(crate) async fn run(shared: Arc<Shared>, address: Url, current: Current) {
    let settings = shared.settings.events.clone().unwrap_or_default();
    let (mut wait, mut lockout) = (FIRST_WAIT, Lockout::default());
    let mut seen = None;
    loop {
        let error = match create(&shared, &address, &settings).await {
            Ok(point) => {
                *current.lock() = Some(point.address.clone());
                (wait, lockout) = (FIRST_WAIT, Lockout::default());
                if tell_gap(&shared, seen).await.is_err() {
                    return;
                }
                tell(&shared, &Health::healthy());
                let error = pull(&shared, &point, &settings, &mut seen).await;
                info!(%error, "pull point failed, creating another");
                // It may still be there and take one of the few places.
                let point = current.lock().take();
                end(&shared.client, point).await;
                error
            }
            Err(error) => {
                debug!(%error, "no pull point");
                let next_step = match error {
                    Error::Refused => "check whether the user may subscribe to events",
                    _ => "look whether the camera has too many subscribers, or no events at all",
                };
                let health = Health::unhealthy(error.reason(), error.to_string()).with_next_step(next_step);
                tell(&shared, &health);
                error
            }
        };
        lockout.wait_after(&error).await;
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Ends a pull point: cameras have few, and keep those of clients that went without a word.
pub(crate) async fn end(client: &Client, point: Option<Url>) {
    let Some(point) = point else {
        return;
    };
    let body = format!("<Unsubscribe xmlns=\"{NOTIFICATION}\"/>");
    let header = addressing(UNSUBSCRIBE, &point);
    if let Err(error) = client
        .call_action(&point, UNSUBSCRIBE, &header, &body, Some(FAREWELL))
        .await
    {
        debug!(%error, "pull point was not ended");
    }
}

/// Tells of the time between two pull points: nobody has the events of it.
async fn tell_gap(shared: &Shared, seen: Option<Timestamp>) -> Result<(), foreshore_connector_sdk::Closed> {
    let Some(since) = seen else {
        return Ok(());
    };
    let until = Timestamp::now();
    for Wanted { member, .. } in shared.wanted_events().iter() {
        let gap = Gap {
            member: member.clone(),
            since,
            until,
            cause: "pull point lost".to_owned(),
        };
        shared.out.emit(Observation::Gap(gap)).await?;
    }
    Ok(())
}

fn tell(shared: &Shared, health: &Health) {
    for wanted in shared.wanted_events().iter() {
        shared.out.health(&wanted.member, health.clone());
    }
}

async fn create(shared: &Shared, address: &Url, settings: &OnvifEvents) -> Result<Point, Error> {
    let asked = settings.effective_termination();
    let seconds = asked.as_secs();
    // Some cameras fail without a time, however optional it is.
    let body = format!(
        "<CreatePullPointSubscription xmlns=\"{EVENTS}\"><InitialTerminationTime>PT{seconds}S</InitialTerminationTime>\
         </CreatePullPointSubscription>"
    );
    let answer = shared
        .client
        .call_action(address, CREATE, &addressing(CREATE, address), &body, None)
        .await?;
    let reference = answer
        .descendant("SubscriptionReference")
        .and_then(|reference| reference.text_at(&["Address"]));
    let reference = reference.unwrap_or_default();
    let url = Url::parse(reference)
        .map_err(|error| Error::Protocol(format!("address of the pull point {reference:?}: {error}")))?;
    Ok(Point {
        address: shared.camera.reach.here(&url),
        lifetime: granted(&answer).map_or(asked, |granted| granted.min(asked)),
    })
}

/// The lifetime that a camera grants, by its own clock.
fn granted(answer: &Element) -> Option<Duration> {
    let time = |name| answer.text_at(&[name])?.parse::<Timestamp>().ok();
    let lifetime = time("TerminationTime")?.duration_since(time("CurrentTime")?);
    let lifetime = Duration::try_from(lifetime).ok()?;
    (lifetime >= SHORTEST_LIFETIME).then_some(lifetime)
}

/// WS-Addressing header; required by the specification, and by some cameras.
fn addressing(action: &str, to: &Url) -> String {
    format!(
        "<wsa:Action xmlns:wsa=\"http://www.w3.org/2005/08/addressing\" s:mustUnderstand=\"1\">{action}</wsa:Action>\
         <wsa:To xmlns:wsa=\"http://www.w3.org/2005/08/addressing\" s:mustUnderstand=\"1\">{}</wsa:To>",
        escape(to.as_str())
    )
}

async fn pull(
    shared: &Shared,
    Point { address, lifetime }: &Point,
    settings: &OnvifEvents,
    seen: &mut Option<Timestamp>,
) -> Error {
    let patience = settings.effective_pull_timeout();
    let body = format!(
        "<PullMessages xmlns=\"{EVENTS}\"><Timeout>PT{}S</Timeout><MessageLimit>{}</MessageLimit></PullMessages>",
        patience.as_secs_f64(),
        settings.effective_message_limit()
    );
    let header = addressing(PULL, address);
    let limit = patience + shared.settings.effective_request_timeout();
    let mut renew_at = Instant::now() + *lifetime / 2;
    loop {
        let asked = Instant::now();
        let pulled = shared
            .client
            .call_action(address, PULL, &header, &body, Some(limit))
            .await;
        let messages = match &pulled {
            Ok(answer) => answer.descendants("NotificationMessage"),
            Err(error) => return error.clone(),
        };
        *seen = Some(Timestamp::now());
        let pace = if messages.is_empty() { PACE.1 } else { PACE.0 };
        for message in messages.into_iter().filter_map(Message::read) {
            if deliver(shared, &message).await.is_err() {
                return Error::Unreachable("the link is no longer wanted".to_owned());
            }
        }
        if Instant::now() >= renew_at {
            renew(&shared.client, address, settings).await;
            renew_at = Instant::now() + *lifetime / 2;
        }
        tokio::time::sleep_until(asked + pace.min(patience)).await;
    }
}

async fn renew(client: &Client, address: &Url, settings: &OnvifEvents) {
    let seconds = settings.effective_termination().as_secs();
    let body =
        format!("<Renew xmlns=\"{NOTIFICATION}\"><TerminationTime>PT{seconds}S</TerminationTime></Renew>");
    let header = addressing(RENEW, address);
    // A camera that can't renew prolongs with every pull, or ends; then there will be another pull point.
    if let Err(error) = client.call_action(address, RENEW, &header, &body, None).await {
        debug!(%error, "pull point was not renewed");
    }
}

async fn deliver(shared: &Shared, message: &Message) -> Result<(), foreshore_connector_sdk::Closed> {
    let wanted = shared.wanted_events();
    for Wanted { member, event } in wanted.iter().filter(|wanted| message.fits(&wanted.event)) {
        let Member::Event {
            asset,
            group,
            event: name,
        } = member
        else {
            continue;
        };
        let observation = Observation::Event(Event {
            asset: Arc::clone(asset),
            group: Arc::clone(group),
            event: Arc::clone(name),
            time: message.time.unwrap_or_else(Timestamp::now),
            source: message
                .source
                .first()
                .map(|(_, value)| value.clone())
                .unwrap_or_default(),
            body: message.body(),
        });
        debug!(topic = message.topic, event = event.name.as_str(), "event");
        shared.out.emit(observation).await?;
    }
    Ok(())
}

impl Message {
    fn read(element: &Element) -> Option<Self> {
        let topic = element.text_at(&["Topic"])?.to_owned();
        // The outer Message is WS-BaseNotification's, the inner one ONVIF's.
        let message = element
            .child("Message")
            .and_then(|outer| outer.child("Message").or(Some(outer)))?;
        let items = |name: &str| {
            let items = message
                .child(name)
                .map(|part| part.descendants("SimpleItem"))
                .unwrap_or_default();
            let items = items.into_iter().filter_map(|item| {
                Some((
                    item.attribute("Name")?.to_owned(),
                    item.attribute("Value")?.to_owned(),
                ))
            });
            items.collect()
        };
        Some(Self {
            topic,
            time: message.attribute("UtcTime").and_then(|time| time.parse().ok()),
            operation: message
                .attribute("PropertyOperation")
                .unwrap_or_default()
                .to_owned(),
            source: items("Source"),
            data: items("Data"),
        })
    }

    fn fits(&self, event: &AssetEvent) -> bool {
        let Some(filter) = &event.address else {
            return false;
        };
        let onvif = event.onvif.clone().unwrap_or_default();
        let initial = self.operation == "Initialized" && onvif.effective_skip_initialized();
        let source = onvif.source.iter().all(|(name, value)| {
            self.source
                .iter()
                .any(|(known, found)| known == name && found == value.as_str())
        });
        !initial && source && topic_fits(filter.as_str(), &self.topic)
    }

    fn body(&self) -> Map<String, Value> {
        let object = |items: &[(String, String)]| {
            items
                .iter()
                .map(|(name, value)| (name.clone(), typed(value)))
                .collect::<Map<_, _>>()
        };
        let mut body = Map::new();
        body.insert("Topic".to_owned(), json!(self.topic));
        body.insert("PropertyOperation".to_owned(), json!(self.operation));
        body.insert("Source".to_owned(), Value::Object(object(&self.source)));
        body.insert("Data".to_owned(), Value::Object(object(&self.data)));
        body
    }
}

/// Truth values and numbers as such; cameras send everything as text.
fn typed(text: &str) -> Value {
    match text {
        "true" => return json!(true),
        "false" => return json!(false),
        _ => {}
    }
    // A token such as `007` is a name.
    let number = serde_json::from_str::<Value>(text).ok().filter(Value::is_number);
    number.unwrap_or_else(|| json!(text))
}

/// Compares a topic with a filter, prefixes left out: makers choose their own. `//.` means everything below.
fn topic_fits(filter: &str, topic: &str) -> bool {
    fn local(level: &str) -> &str {
        level.rsplit(':').next().unwrap_or(level)
    }
    let (filter, below) = filter
        .strip_suffix("//.")
        .map_or((filter, false), |filter| (filter, true));
    let mut topic = topic.trim().split('/').map(local);
    let matched = filter
        .split('/')
        .map(local)
        .all(|level| topic.next() == Some(level));
    matched && (below || topic.next().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn topics_match_whatever_their_prefixes() {
        assert!(topic_fits(
            "tns1:VideoSource/MotionAlarm",
            "tns1:VideoSource/MotionAlarm"
        ));
        assert!(topic_fits(
            "VideoSource/MotionAlarm",
            "a:VideoSource/b:MotionAlarm"
        ));
        assert!(topic_fits("tns1:VideoSource//.", "tns1:VideoSource/MotionAlarm"));
        assert!(!topic_fits("tns1:VideoSource", "tns1:VideoSource/MotionAlarm"));
        assert!(!topic_fits("tns1:VideoSource/MotionAlarm", "tns1:VideoSource"));
    }

    #[test]
    fn values_get_their_types() {
        assert_eq!(typed("true"), json!(true));
        assert_eq!(typed("1.5"), json!(1.5));
        assert_eq!(typed("007"), json!("007"));
        assert_eq!(typed("[1]"), json!("[1]"));
    }

    #[test]
    fn a_lifetime_is_believed_where_it_makes_sense() {
        let answer = |current: &str, termination: &str| {
            let text = format!(
                "<R><CurrentTime>{current}</CurrentTime><TerminationTime>{termination}</TerminationTime></R>"
            );
            granted(&Element::parse(&text).unwrap())
        };
        let now = "2026-01-01T00:00:00Z";
        assert_eq!(answer(now, "2026-01-01T00:01:00Z"), Some(Duration::from_secs(60)));
        for odd in [now, "2025-01-01T00:00:00Z", "soon", ""] {
            assert_eq!(answer(now, odd), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn no_message_panics(
            parts in proptest::collection::vec(prop_oneof![
                Just("<Topic>a:b/c</Topic>"), Just("<Topic/>"), Just("<Message>"), Just("</Message>"),
                Just("<Message UtcTime='-9999-01-01T00:00:00Z' PropertyOperation='Initialized'>"), Just("<Source>"),
                Just("</Source>"), Just("<Data>"), Just("</Data>"), Just("<SimpleItem Name='a' Value='1e999'/>"),
                Just("<SimpleItem Name='a'/>"), Just("<SimpleItem Value='[[['/>"),
            ], 0..16),
        ) {
            if let Some(message) = Element::parse(&format!("<M>{}</M>", parts.concat())).ok().as_ref().and_then(Message::read) {
                let _body = message.body();
            }
        }

        #[test]
        fn no_topic_panics(filter in "[a-z:/.*]{0,12}", topic in "[a-z:/.* ]{0,12}") {
            let _fits = topic_fits(&filter, &topic);
        }
    }
}
