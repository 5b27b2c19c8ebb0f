//! Queues of dataflows, through the suite that every implementation has to pass.

use std::sync::Arc;

use async_trait::async_trait;
use foreshore_broker::Handle;
use foreshore_control::queue::{
    Paths,
    testing::{self, Fixture},
};
use foreshore_record::{Record, TopicFilter};
use rmqtt_codec::types::QoS;

use crate::{
    TestBroker,
    client::{Client, publish},
    options_in,
};

struct Broker {
    handle: Handle,
}

#[async_trait]
impl Fixture for Broker {
    fn paths(&self) -> Arc<dyn Paths> {
        Arc::new(self.handle.paths())
    }

    async fn create(&self, path: &str) {
        put(
            &self.handle,
            path,
            &format!("{}/#", path.rsplit('>').next().unwrap()),
        )
        .await;
    }

    async fn delete(&self, path: &str) {
        self.handle.remove_path(path).await.unwrap();
    }

    async fn publish(&self, path: &str, record: Record) {
        let topic = record
            .topic
            .as_str()
            .replacen("sink", path.rsplit('>').next().unwrap(), 1);
        let record = Record {
            topic: foreshore_record::TopicName::new(topic).unwrap(),
            ..record
        };
        self.handle.publish(record).await.unwrap();
    }
}

async fn put(handle: &Handle, path: &str, topic: &str) {
    let limits = foreshore_store::Limits {
        max_attempts: Some(foreshore_store::Limits::DEFAULT_MAX_ATTEMPTS),
        ..foreshore_store::Limits::default()
    };
    handle
        .put_path(path, vec![TopicFilter::new(topic).unwrap()], limits)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_passes_the_suite_of_queues() {
    let broker = TestBroker::start().await;
    testing::run_suite(&Broker {
        handle: broker.handle.clone(),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_keeps_what_clients_publish_in_every_quality_and_across_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    put(&broker.handle, "dataflow/n/d->s", "line/+").await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for (index, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]
        .into_iter()
        .enumerate()
    {
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { 3 };
        publisher
            .publish_packet(publish("line/a", &index.to_string(), qos, packet_id))
            .await;
    }
    publisher.ping().await;
    broker.stop().await;
    // The topics are known before anybody says again what is wanted.
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("line/b", "3").await;
    let open = broker.handle.paths().open("dataflow/n/d->s").await.unwrap();
    let range = foreshore_control::queue::ReadRange {
        after: 0,
        before: None,
        max_entries: 100,
        max_bytes: 1 << 20,
        wait: crate::client::GENEROUS,
    };
    let batch = open.read(range).await.unwrap();
    let payloads: Vec<_> = batch
        .entries
        .iter()
        .map(|entry| entry.record.payload.clone())
        .collect();
    assert_eq!(payloads, ["0", "1", "2", "3"]);
}
