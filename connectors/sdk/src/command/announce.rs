//! Publishes the request schema of every action, for people, tools and the cloud endpoint.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use foreshore_control::{Aspect, AspectKind, PlanResource, ResourceKey, Schema, plan::AssetPlan};
use foreshore_mqtt::{Client, ConnectionState};
use foreshore_record::{Record, TopicName, topic};
use foreshore_runtime::Shutdown;
use tracing::warn;

use super::schemas::{ActionKey, ActionSchema, SchemaBook};
use crate::runner::reports::ReportSink;

/// Keeps the retained messages on `foreshore/schemas/{namespace}/{asset}/{group}/{action}`, and what the operator
/// knows, equal to the book.
pub(crate) async fn announce(
    book: Arc<SchemaBook>,
    client: Client,
    sink: Arc<dyn ReportSink>,
    shutdown: Shutdown,
) {
    let mut state = client.state();
    let mut announced: BTreeMap<ActionKey, Arc<ActionSchema>> = BTreeMap::new();
    let mut connection = 0;
    loop {
        // Nothing is sent into the void: what changes until there is a connection is sent once.
        let connected = state.wait_for(|state| matches!(state, ConnectionState::Connected { .. }));
        let number = match shutdown.or_begun(connected).await {
            Some(Ok(state)) => match *state {
                ConnectionState::Connected { number, .. } => number,
                _ => continue,
            },
            _ => return,
        };
        // A broker that began anew may have forgotten; what we announced is still ours to take back.
        let anew = number != std::mem::replace(&mut connection, number);
        let wanted = book.all();
        for (key, schema) in &wanted {
            if !anew && announced.get(key).is_some_and(|known| Arc::ptr_eq(known, schema)) {
                continue;
            }
            let document = Bytes::from(schema.document.to_string());
            sink.schema(Schema {
                object: ResourceKey::new(AssetPlan::KIND, key.namespace.clone(), key.asset.clone()),
                aspect: Aspect::new(AspectKind::Action, format!("{}/{}", key.group, key.action)),
                document: document.clone(),
            });
            retain(&client, key, document, &shutdown).await;
        }
        for key in announced.keys().filter(|key| !wanted.contains_key(*key)) {
            retain(&client, key, Bytes::new(), &shutdown).await;
        }
        announced = wanted;
        tokio::select! {
            () = book.changed() => {}
            changed = state.changed() => if changed.is_err() { return },
            () = shutdown.begun() => return,
        }
    }
}

/// Publishes one retained message; an empty one takes it away (MQTT 5.0, section 3.3.1.3).
async fn retain(client: &Client, key: &ActionKey, payload: Bytes, shutdown: &Shutdown) {
    let ActionKey {
        namespace,
        asset,
        group,
        action,
    } = key;
    let name = TopicName::new(format!(
        "{}/schemas/{namespace}/{asset}/{group}/{action}",
        topic::ROOT
    ));
    let Ok(name) = name else { return };
    let mut record = Record::new(name, payload);
    record.retain = true;
    record.properties.content_type = Some("application/schema+json".to_owned());
    record.properties.payload_is_utf8 = true;
    let publish = async { client.publish(&record).await?.await };
    if let Some(Err(error)) = shutdown.or_begun(publish).await {
        warn!(topic = %record.topic, %error, "request schema is not published");
    }
}
