//! The wire, spoken by hand: what no edge of ours sends, and what it must be answered.

use std::time::Duration;

use bytes::Bytes;
use foreshore_control::transport::{ConnectOptions, channel};
use foreshore_edgelink::{
    Body, Codec, Entry, Refusal,
    lane::to_proto,
    proto::{
        self, NackReason, cloud_frame::Frame as Down, edge_frame::Frame as Up,
        edge_link_client::EdgeLinkClient, provisioning_client::ProvisioningClient,
    },
    registry::Cut,
};
use foreshore_record::{Lane, Record, TopicName};
use foreshore_runtime::{HealthRegistry, Metrics, Shutdown, Task};
use foreshore_tls::{CertificateChain, CertificateDer, Credentials, Identity, KeyPair, ServerName};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{Cloud, Error, Handle, JoinToken, Options, Secret, StoreError};

const TOKEN: &str = "join-token-of-the-plant";
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    handle: Handle,
    metrics: Metrics,
    health: HealthRegistry,
    options: Options,
    _task: Task<Result<(), Error>>,
    _directory: TempDir,
}

impl Running {
    async fn start() -> Self {
        foreshore_tls::install_provider();
        let directory = TempDir::new().unwrap();
        let mut options = Options::new(directory.path(), Secret::new("token-of-the-json-api"));
        let token = Secret::new(TOKEN);
        options.join_tokens = vec![JoinToken {
            edge: "plant".to_owned(),
            token,
            expires_at: None,
        }];
        options.link.lane_credit = 64 << 10;
        options.link.max_batch_bytes = 256 << 10;
        options.link.max_record_bytes = 128 << 10;
        let (health, metrics) = (HealthRegistry::new(), Metrics::new());
        let started = Cloud::start(options.clone(), &health, &metrics, Shutdown::new()).await;
        let (handle, task) = started.unwrap();
        Self {
            handle,
            metrics,
            health,
            options,
            _task: task,
            _directory: directory,
        }
    }

    async fn channel(&self, identity: &Identity) -> tonic::transport::Channel {
        let address = self.handle.edge_link_address().to_string();
        let name = ServerName::try_from("localhost".to_owned()).unwrap();
        channel(&address, identity, name, &ConnectOptions::default())
            .await
            .unwrap()
    }

    fn anonymous(&self) -> Identity {
        Identity::anonymous(self.handle.trust_bundle()).unwrap()
    }

    async fn enroll(&self, key: &KeyPair, edge: &str) -> Result<Identity, Status> {
        let mut client = ProvisioningClient::new(self.channel(&self.anonymous()).await);
        let request = proto::EnrollRequest {
            join_token: TOKEN.to_owned(),
            edge: edge.to_owned(),
            request: key.request().unwrap().into(),
        };
        let reply = client.enroll(request).await?.into_inner();
        let chain = reply
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.to_vec()))
            .collect();
        let credentials = Credentials::new(CertificateChain::from_der(chain).unwrap(), key).unwrap();
        Ok(Identity::new(&credentials, self.handle.trust_bundle()).unwrap())
    }

    async fn connect(&self, identity: &Identity, first: Up) -> Result<Wire, Status> {
        let (frames, outgoing) = mpsc::channel(16);
        frames
            .send(proto::EdgeFrame { frame: Some(first) })
            .await
            .unwrap();
        let mut client = EdgeLinkClient::new(self.channel(identity).await);
        let incoming = client.connect(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Wire { frames, incoming })
    }
}

struct Wire {
    frames: mpsc::Sender<proto::EdgeFrame>,
    incoming: Streaming<proto::CloudFrame>,
}

impl Wire {
    async fn send(&self, frame: Up) {
        self.frames
            .send(proto::EdgeFrame { frame: Some(frame) })
            .await
            .unwrap();
    }

    /// The next answer to a batch, or how the stream ends.
    async fn answer(&mut self) -> Result<Down, Status> {
        let answer = async {
            loop {
                match self.incoming.message().await?.and_then(|frame| frame.frame) {
                    Some(frame @ (Down::Ack(_) | Down::Nack(_))) => return Ok(frame),
                    Some(_) => {}
                    None => return Err(Status::cancelled("ended")),
                }
            }
        };
        timeout(PATIENCE, answer).await.unwrap()
    }

    async fn nacked(&mut self, batch: proto::Batch) -> NackReason {
        self.send(Up::Batch(batch)).await;
        match self.answer().await.unwrap() {
            Down::Nack(nack) => nack.reason(),
            other => panic!("{other:?}"),
        }
    }

    async fn ended(&mut self) -> Option<Refusal> {
        Refusal::of(&self.answer().await.unwrap_err())
    }
}

fn hello(edge: &str, boot: u8) -> proto::Hello {
    proto::Hello {
        edge: edge.to_owned(),
        boot: vec![boot; 16].into(),
        protocol_min: 1,
        protocol_max: 1,
        command_credit: 1,
        software: "by hand".to_owned(),
    }
}

fn batch(number: u64, id: u64) -> proto::Batch {
    let topic = TopicName::new("foreshore/data/bottling/filler/process").unwrap();
    let record = Record::new(topic, r#"{"speed":{"Value":1}}"#);
    let entry = Entry {
        store_epoch: 7,
        id,
        index: 0,
        record,
    };
    let body = Body::encode(&[entry], Codec::Zstd).unwrap();
    proto::Batch {
        number,
        lane: to_proto(Lane::Live),
        path: "dataflow/bottling/telemetry->cloud".to_owned(),
        path_epoch: 1,
        settles: vec![proto::Interval {
            store_epoch: 7,
            first: id,
            last: id,
        }],
        codec: body.codec.to_proto(),
        length: body.length,
        crc: body.crc,
        body: body.bytes,
        more: false,
    }
}

#[tokio::test]
async fn bad_batches_are_refused_one_by_one_and_the_stream_goes_on() {
    let cloud = Running::start().await;
    let identity = cloud
        .enroll(&KeyPair::generate().unwrap(), "plant")
        .await
        .unwrap();
    let mut wire = cloud
        .connect(&identity, Up::Hello(hello("plant", 1)))
        .await
        .unwrap();
    let good = || batch(1, 1);
    assert_eq!(
        wire.nacked(proto::Batch {
            crc: good().crc ^ 1,
            ..good()
        })
        .await,
        NackReason::Malformed
    );
    assert_eq!(
        wire.nacked(proto::Batch {
            path: String::new(),
            ..good()
        })
        .await,
        NackReason::Malformed
    );
    assert_eq!(
        wire.nacked(proto::Batch {
            settles: Vec::new(),
            ..good()
        })
        .await,
        NackReason::Malformed
    );
    assert_eq!(
        wire.nacked(proto::Batch { codec: 99, ..good() }).await,
        NackReason::Malformed
    );
    assert_eq!(
        wire.nacked(proto::Batch {
            length: 300 << 10,
            ..good()
        })
        .await,
        NackReason::TooLarge
    );
    // A bomb: a few bytes that would become far more than is declared.
    let (id, body) = (
        4,
        Bytes::from_static(&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x40, 0x03, 0, 0, 0]),
    );
    assert_eq!(
        wire.nacked(proto::Batch {
            body,
            ..batch(id, id)
        })
        .await,
        NackReason::Malformed
    );

    wire.send(Up::Batch(good())).await;
    let Down::Ack(ack) = wire.answer().await.unwrap() else {
        panic!("no acknowledgement")
    };
    assert_eq!((ack.number, ack.committed.len(), ack.refused.len()), (1, 1, 0));
    assert!(cloud.health.health().ok);
    let metrics = cloud.metrics.encode().unwrap();
    for line in [
        "foreshore_cloud_outputs_total{lane=\"live\",outcome=\"committed\"} 1",
        "foreshore_cloud_refused_batches_total{reason=\"NACK_REASON_MALFORMED\"} 5",
        "foreshore_cloud_connected_edges 1",
        "foreshore_cloud_commit_age_seconds_count{lane=\"live\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

/// A registry, which takes more than one part.
fn registry() -> Cut {
    let asset = |number: usize| proto::Asset {
        namespace: "bottling".to_owned(),
        name: format!("asset-{number}"),
        description: serde_json::json!({ "text": "x".repeat(1000) }).to_string().into(),
    };
    let cut = foreshore_edgelink::registry::cut((0..100).map(asset));
    assert!(cut.parts.len() > 1);
    cut
}

#[tokio::test]
async fn the_edge_is_told_which_registry_the_cloud_holds() {
    let cloud = Running::start().await;
    let identity = cloud
        .enroll(&KeyPair::generate().unwrap(), "plant")
        .await
        .unwrap();
    let held = async || {
        let hello = Up::Hello(hello("plant", 1));
        let mut wire = cloud.connect(&identity, hello).await.unwrap();
        let welcome = wire.incoming.message().await.unwrap().unwrap().frame;
        match welcome {
            Some(Down::Welcome(welcome)) => (wire, welcome.registry_version),
            other => panic!("{other:?}"),
        }
    };
    let (wire, version) = held().await;
    assert_eq!(version, Bytes::new());
    // A link that breaks midway leaves nothing behind.
    let registry = registry();
    wire.send(Up::Registry(registry.parts[0].clone())).await;
    drop(wire);
    let sent_until_held = async {
        loop {
            let (mut wire, version) = held().await;
            if version == registry.version {
                return;
            }
            assert_eq!(version, Bytes::new());
            for part in registry.parts.clone() {
                wire.send(Up::Registry(part)).await;
            }
            // Heard, and written soon after.
            wire.send(Up::Ping(proto::Ping { number: 1 })).await;
            while !matches!(
                wire.incoming.message().await.unwrap().unwrap().frame,
                Some(Down::Pong(_))
            ) {}
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, sent_until_held).await.unwrap();
}

#[tokio::test]
async fn whoever_breaks_the_protocol_is_cut_off() {
    let cloud = Running::start().await;
    let identity = cloud
        .enroll(&KeyPair::generate().unwrap(), "plant")
        .await
        .unwrap();
    let part = |bytes: usize, more| proto::Part {
        lane: to_proto(Lane::Live),
        body: vec![0; bytes].into(),
        more,
    };
    let begin = proto::Batch {
        length: 200 << 10,
        more: true,
        body: vec![0; 40 << 10].into(),
        ..batch(1, 1)
    };
    let breaches = [
        vec![Up::Hello(hello("plant", 1))],
        vec![Up::Registry(proto::Registry::default())],
        vec![Up::Part(part(1, false))],
        vec![Up::Batch(proto::Batch {
            lane: 0,
            ..batch(1, 1)
        })],
        vec![Up::Batch(begin.clone()), Up::Batch(begin)],
        // More than the credit while a batch before it may still be held.
        vec![
            Up::Batch(proto::Batch {
                body: vec![0; 60 << 10].into(),
                length: 60 << 10,
                ..batch(1, 1)
            }),
            Up::Batch(proto::Batch {
                body: vec![0; 100 << 10].into(),
                length: 100 << 10,
                ..batch(2, 2)
            }),
        ],
    ];
    for breach in breaches {
        let described: String = format!("{breach:?}").chars().take(60).collect();
        let mut wire = cloud
            .connect(&identity, Up::Hello(hello("plant", 1)))
            .await
            .unwrap();
        for frame in breach {
            wire.send(frame).await;
        }
        let ended = timeout(PATIENCE, async {
            loop {
                if let Err(status) = wire.answer().await {
                    return Refusal::of(&status);
                }
            }
        });
        assert_eq!(ended.await.unwrap(), Some(Refusal::ProtocolError), "{described}");
    }
}

#[tokio::test]
async fn only_an_edge_may_open_a_stream_and_only_for_itself() {
    let cloud = Running::start().await;
    let identity = cloud
        .enroll(&KeyPair::generate().unwrap(), "plant")
        .await
        .unwrap();
    let refused = async |identity: &Identity, first| {
        let status = cloud.connect(identity, first).await.err().unwrap();
        Refusal::of(&status).unwrap()
    };
    assert_eq!(
        refused(&cloud.anonymous(), Up::Hello(hello("plant", 1))).await,
        Refusal::NotAnEdge
    );
    assert_eq!(
        refused(&identity, Up::Hello(hello("other", 1))).await,
        Refusal::NotAnEdge
    );
    assert_eq!(
        refused(&identity, Up::Batch(batch(1, 1))).await,
        Refusal::ProtocolError
    );
    let short = proto::Hello {
        boot: Bytes::new(),
        ..hello("plant", 1)
    };
    assert_eq!(refused(&identity, Up::Hello(short)).await, Refusal::ProtocolError);
    let newer = proto::Hello {
        protocol_min: 98,
        protocol_max: 99,
        ..hello("plant", 1)
    };
    assert_eq!(
        refused(&identity, Up::Hello(newer)).await,
        Refusal::ProtocolUnsupported
    );
}

#[tokio::test]
async fn a_newer_process_takes_over_and_the_older_stays_out() {
    let cloud = Running::start().await;
    let identity = cloud
        .enroll(&KeyPair::generate().unwrap(), "plant")
        .await
        .unwrap();
    let mut old = cloud
        .connect(&identity, Up::Hello(hello("plant", 1)))
        .await
        .unwrap();
    let mut new = cloud
        .connect(&identity, Up::Hello(hello("plant", 2)))
        .await
        .unwrap();
    assert_eq!(old.ended().await, Some(Refusal::Superseded));
    let back = cloud
        .connect(&identity, Up::Hello(hello("plant", 1)))
        .await
        .err()
        .unwrap();
    assert_eq!(Refusal::of(&back), Some(Refusal::Superseded));
    new.send(Up::Batch(batch(1, 1))).await;
    assert!(matches!(new.answer().await, Ok(Down::Ack(_))));
}

#[tokio::test]
async fn a_join_token_admits_its_first_key_as_often_as_it_asks() {
    let cloud = Running::start().await;
    let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    cloud.enroll(&first, "plant").await.unwrap();
    // The reply was lost.
    let identity = cloud.enroll(&first, "plant").await.unwrap();
    let refused = Refusal::of(&cloud.enroll(&second, "plant").await.unwrap_err());
    assert_eq!(refused, Some(Refusal::TokenUsed));

    // A renewal for another key is refused, over mutual TLS too; and without any proof.
    let renew = |request: Vec<u8>| proto::RenewRequest {
        request: request.into(),
        possession: None,
    };
    let mut client = ProvisioningClient::new(cloud.channel(&identity).await);
    let status = client.renew(renew(second.request().unwrap())).await.unwrap_err();
    assert_eq!(Refusal::of(&status), Some(Refusal::KeyMismatch));
    assert!(client.renew(renew(first.request().unwrap())).await.is_ok());
    let mut client = ProvisioningClient::new(cloud.channel(&cloud.anonymous()).await);
    let status = client.renew(renew(first.request().unwrap())).await.unwrap_err();
    assert_eq!(Refusal::of(&status), Some(Refusal::NotAnEdge));
    // Neither the token nor anything like it is in the database.
    let database = std::fs::read(cloud.options.data_directory.join("cloud.db-wal")).unwrap();
    assert!(
        !database
            .windows(TOKEN.len())
            .any(|window| window == TOKEN.as_bytes())
    );
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_is_refused() {
    let cloud = Running::start().await;
    let second = Cloud::open(cloud.options.clone(), &HealthRegistry::new(), &Metrics::new()).await;
    assert!(matches!(
        second.err(),
        Some(Error::Store(StoreError::Locked { .. }))
    ));
}
