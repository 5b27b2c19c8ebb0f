//! Clients that others wrote: Debian's mosquitto clients, paho-mqtt from PyPI, and the SDK of Azure IoT Operations in Go.

use std::process::Stdio;

use tokio::process::Command;

use crate::{TestBroker, client::GENEROUS, options, websocket::websocket};

async fn run(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(GENEROUS * 3, output)
        .await
        .expect("it ends in time")
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn mosquitto(program: &str, broker: &TestBroker, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-h", "127.0.0.1", "-p", &broker.address.port().to_string()])
        .args(arguments);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquittos_clients_speak_with_it_in_all_versions() {
    let broker = TestBroker::start().await;
    for version in ["mqttv31", "mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let topic = format!("mosquitto/{version}/{qos}");
            let publish = ["-V", version, "-q", qos, "-t", &topic, "-m", "hello", "-r"];
            run(mosquitto("mosquitto_pub", &broker, &publish)).await;
            let subscribe = ["-V", version, "-q", qos, "-t", &topic, "-C", "1", "-W", "60"];
            assert_eq!(
                run(mosquitto("mosquitto_sub", &broker, &subscribe)).await,
                "hello\n",
                "{topic}"
            );
        }
    }
    // A persistent session, a queue, and a message with properties.
    let session = ["-V", "mqttv311", "-i", "keeper", "-c", "-q", "1", "-t", "kept/#"];
    let once = [&session[..], &["-E"]].concat();
    run(mosquitto("mosquitto_sub", &broker, &once)).await;
    for index in 0..3 {
        let payload = index.to_string();
        let publish = [
            "-V",
            "mqttv5",
            "-q",
            "1",
            "-t",
            "kept/a",
            "-m",
            &payload,
            "-D",
            "publish",
            "user-property",
            "k",
            "v",
        ];
        run(mosquitto("mosquitto_pub", &broker, &publish)).await;
    }
    let all = [&session[..], &["-C", "3", "-W", "60"]].concat();
    assert_eq!(run(mosquitto("mosquitto_sub", &broker, &all)).await, "0\n1\n2\n");
}

const SCRIPT: &str = r#"
import sys, queue
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

def client(name, expiry):
    messages = queue.Queue()
    subscribed = queue.Queue()
    c = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5, transport=sys.argv[2])
    c.on_message = lambda c, u, message: messages.put(message)
    c.on_subscribe = lambda c, u, mid, codes, properties: subscribed.put(codes)
    connected = queue.Queue()
    c.on_connect = lambda c, u, flags, reason, properties: connected.put((flags, reason))
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = expiry
    c.connect("127.0.0.1", int(sys.argv[1]), clean_start=False, properties=properties)
    c.loop_start()
    flags, reason = connected.get(timeout=60)
    assert reason == 0, reason
    return c, messages, subscribed, flags

reader, messages, subscribed, flags = client("reader", 600)
assert not flags.session_present
identifier = Properties(PacketTypes.SUBSCRIBE)
identifier.SubscriptionIdentifier = 5
reader.subscribe("paho/#", options=SubscribeOptions(qos=2, retainAsPublished=True), properties=identifier)
assert [int(code.value) for code in subscribed.get(timeout=60)] == [2]
writer, *_ = client("writer", 0)
for qos in (0, 1, 2):
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = ("key", "value")
    properties.ContentType = "text/plain"
    properties.CorrelationData = b"\x00\x01"
    properties.ResponseTopic = "answers"
    properties.MessageExpiryInterval = 100
    writer.publish("paho/a", f"payload {qos}", qos=qos, properties=properties).wait_for_publish(60)
    message = messages.get(timeout=60)
    assert message.payload == f"payload {qos}".encode() and message.qos == qos, message
    got = message.properties
    assert got.UserProperty == [("key", "value")] and got.SubscriptionIdentifier == [5], got
    assert got.ContentType == "text/plain" and got.ResponseTopic == "answers", got
    assert got.CorrelationData == b"\x00\x01" and 0 < got.MessageExpiryInterval <= 100, got
reader.disconnect()
reader.loop_stop()
for index in range(50):
    writer.publish("paho/b", str(index), qos=1 + index % 2).wait_for_publish(60)
reader, messages, subscribed, flags = client("reader", 600)
assert flags.session_present
kept = [messages.get(timeout=60) for _ in range(50)]
# In order within each quality of service: this client hands a message of quality 2 on when it is released.
for qos in (1, 2):
    expected = [str(index).encode() for index in range(50) if 1 + index % 2 == qos]
    assert [message.payload for message in kept if message.qos == qos] == expected
print("done")
"#;

#[tokio::test(flavor = "multi_thread")]
async fn pahos_client_speaks_version_five_with_it_over_tcp_and_websocket() {
    let python = tokio::task::spawn_blocking(foreshore_peers::python)
        .await
        .unwrap();
    for (options, transport) in [(options(), "tcp"), (websocket(), "websockets")] {
        let broker = TestBroker::start_with(options).await;
        let mut script = Command::new(&python);
        script.args(["-c", SCRIPT, &broker.address.port().to_string(), transport]);
        assert_eq!(run(script).await, "done\n", "{transport}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_of_azure_iot_operations_works_unchanged() {
    let program = tokio::task::spawn_blocking(foreshore_peers::aio_client)
        .await
        .unwrap();
    let broker = TestBroker::start().await;
    let mut client = Command::new(program);
    client.arg(broker.address.port().to_string());
    assert_eq!(run(client).await, "done\n");
}
