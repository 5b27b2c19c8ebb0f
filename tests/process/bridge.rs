//! Bridges to another broker, Debian's mosquitto, both ways.

use std::{collections::BTreeSet, fs, rc::Rc, thread::sleep, time::Duration};

use foreshore_peers::free_port;
use rand::Rng as _;
use serde_json::Value;

use crate::{
    alone::{Alone, random, seed},
    mosquitto::{Collector, Mosquitto},
    plant::{Plant, SOON, START},
    proxy::Proxy,
    publisher::{Load, Publisher},
    site::{Manifests, Site, is_full, wait_until},
};

const OUT: &str = "dataflow/site/out->other";

/// Long enough for a message that goes round in a loop.
const ROUND: Duration = Duration::from_secs(3);

/// A site of that name with a bridge to the broker at a port.
fn start(site: &Rc<Site>, name: &str, own: u16, other: u16, version: &str) -> Plant {
    let text = include_str!("bridge.yaml")
        .replace("OWN_PORT", &own.to_string())
        .replace("OTHER_PORT", &other.to_string())
        .replace("PREFIX", name)
        .replace("VERSION", version);
    let plant = up(site, name, &text);
    wait_until_healthy(&plant);
    plant
}

fn up(site: &Rc<Site>, name: &str, manifest: &str) -> Plant {
    let manifests = Manifests(site.path(name));
    fs::create_dir(&manifests.0).unwrap();
    manifests.write("bridge.yaml", manifest);
    Plant::at(site, &manifests, &format!("{name}-data"), &[])
}

fn wait_until_healthy(plant: &Plant) {
    wait_until_flows_are_healthy(plant, ["out", "in"]);
}

fn wait_until_flows_are_healthy(plant: &Plant, flows: [&str; 2]) {
    for flow in flows {
        plant.wait_until(&format!("bridge {flow} works"), START, || {
            plant.object("Dataflow", flow)["healthy"] == "True"
        });
    }
}

/// Everything that was acknowledged has come.
fn assert_arrived(collector: &mut Collector, publisher: &Publisher, topic: &str) {
    let missing = |collector: &mut Collector| {
        let numbers: BTreeSet<_> = collector.numbers(topic).into_iter().collect();
        publisher.acknowledged.difference(&numbers).count()
    };
    let all = wait_until(START, || missing(collector) == 0);
    assert!(
        all,
        "{} of {} acknowledged are missing at {topic}",
        missing(collector),
        publisher.acknowledged.len()
    );
    eprintln!(
        "{topic}: {} acknowledged, {} came, {} of them again",
        publisher.acknowledged.len(),
        collector.numbers(topic).len(),
        collector.numbers(topic).len() - first_arrivals(collector, topic).len()
    );
}

/// The numbers of a topic, each where it came first.
fn first_arrivals(collector: &mut Collector, topic: &str) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    let mut numbers = collector.numbers(topic);
    numbers.retain(|number| seen.insert(*number));
    numbers
}

/// What came first came in its order.
fn assert_ordered(collector: &mut Collector, topic: &str) {
    let numbers = first_arrivals(collector, topic);
    let wrong = numbers.windows(2).find(|pair| pair[1] < pair[0]);
    assert_eq!(wrong, None, "out of order at {topic}");
}

/// Ours is killed outright, theirs is started again, and the network between them swallows everything for a while: what
/// either broker has acknowledged is at the other one in the end.
#[test]
fn what_one_broker_acknowledged_comes_to_the_other_through_deaths_and_outages() {
    deaths_and_outages("V5");
}

#[test]
fn what_one_broker_acknowledged_comes_to_the_other_with_3_1_1_too() {
    deaths_and_outages("V311");
}

fn deaths_and_outages(version: &str) {
    let rounds = if is_full() { 12 } else { 2 };
    let mut random = random(seed());
    let site = Rc::new(Site::new());
    let mut other = Mosquitto::start(&site);
    let network = Proxy::to(other.port);
    let own = site.ports.mqtt;
    let mut plant = start(&site, "site", own, network.port, version);
    let mut far = Collector::start(other.port, "out/#");
    let mut near = Collector::start(own, "in/#");
    let load = Load { rate: 300, size: 20 };
    let mut out = Publisher::start(own, "out/numbers", load);
    let mut back = Publisher::start(other.port, "in/numbers", load);

    for round in 0..rounds {
        out.wait_for(100, SOON);
        back.wait_for(100, SOON);
        sleep(Duration::from_millis(random.random_range(0..1000)));
        plant.kill();
        plant.restart();
        wait_until_healthy(&plant);
        other.restart();
        out.wait_for(100, SOON);
        if round > 0 && !is_full() {
            continue;
        }
        network.swallow(true);
        for (kind, name, reason) in [
            ("Dataflow", "out", None),
            ("Dataflow", "in", Some("QueueUnavailable")),
            ("DataflowEndpoint", "other", None),
        ] {
            plant.wait_until(&format!("{kind} {name} is told to be unhealthy"), SOON, || {
                plant.object(kind, name)["healthy"] == "False"
            });
            let row = plant.object(kind, name);
            let evidence = row["evidence"].as_str().unwrap_or_default();
            assert!(!evidence.is_empty(), "{row:#}");
            assert!(reason.is_none_or(|reason| row["reason"] == reason), "{row:#}");
        }
        assert_eq!(plant.object("Broker", "broker")["healthy"], "True");
        out.wait_for(100, SOON);
        network.swallow(false);
        wait_until_healthy(&plant);
    }
    out.finish();
    back.finish();
    assert_arrived(&mut far, &out, "out/numbers");
    assert_arrived(&mut near, &back, "in/numbers");
    // The other way, mosquitto 2.0 itself sends what is new before what waits, once it was started again.
    assert_ordered(&mut far, "out/numbers");
    plant.wait_until("nothing waits", SOON, || {
        plant.path(OUT).is_some_and(|path| path.waiting == 0)
    });
    plant.end_balanced();
}

/// A bridge between two brokers that keep what they acknowledge: whichever of the three is killed outright, whenever, each
/// has in the end what the other one has acknowledged.
#[test]
fn whoever_is_killed_what_a_broker_acknowledged_comes_to_the_other() {
    let rounds = if is_full() { 90 } else { 9 };
    let mut random = random(seed());
    let site = Rc::new(Site::new());
    let mut brokers = ["left", "right"].map(|name| {
        let mut broker = Alone::new(&site.path(name), &site.path(&format!("{name}.log")));
        broker.start();
        broker.wait_until_open();
        broker
    });
    let [left, right] = [brokers[0].port, brokers[1].port];
    let text = include_str!("bridge_between.yaml")
        .replace("LEFT_PORT", &left.to_string())
        .replace("RIGHT_PORT", &right.to_string());
    let mut plant = up(&site, "between", &text);
    let flows = ["to-right", "to-left"];
    wait_until_flows_are_healthy(&plant, flows);
    let mut at_right = Collector::start(right, "to-right/#");
    let mut at_left = Collector::start(left, "to-left/#");
    let mut shared = Collector::start(right, "shared/#");
    let load = Load { rate: 300, size: 20 };
    let mut from_left = Publisher::start(left, "to-right/numbers", load);
    let mut from_right = Publisher::start(right, "to-left/numbers", load);
    for round in 0..rounds {
        sleep(Duration::from_millis(random.random_range(100..2500)));
        match round % 3 {
            0 => {
                plant.kill();
                plant.restart();
            }
            broker => {
                brokers[broker - 1].kill();
                brokers[broker - 1].start();
            }
        }
        if round % 5 == 4 {
            from_left.wait_for(50, SOON);
            from_right.wait_for(50, SOON);
        }
    }
    wait_until_flows_are_healthy(&plant, flows);
    Mosquitto::publish(left, &["-t", "shared/a", "-m", "once"]);
    from_left.finish();
    from_right.finish();
    assert_arrived(&mut at_right, &from_left, "to-right/numbers");
    assert_arrived(&mut at_left, &from_right, "to-left/numbers");
    assert_ordered(&mut at_right, "to-right/numbers");
    assert_ordered(&mut at_left, "to-left/numbers");
    shared.wait_for("shared/a", "once", SOON);
    sleep(ROUND);
    assert_eq!(shared.count("shared/a", "once"), 1);
    plant.end();
}

/// What is not on its disk the other broker loses, session and all, when it is killed outright. The bridge goes on.
#[test]
fn a_broker_that_has_forgotten_everything_is_bridged_to_again() {
    let site = Rc::new(Site::new());
    let mut other = Mosquitto::start(&site);
    let own = site.ports.mqtt;
    let mut plant = start(&site, "site", own, other.port, "V5");
    let mut near = Collector::start(own, "in/#");
    for again in ["once", "twice"] {
        let mut far = Collector::start(other.port, "out/#");
        Mosquitto::publish(own, &["-t", "out/a", "-m", again]);
        Mosquitto::publish(other.port, &["-t", "in/a", "-m", again]);
        far.wait_for("out/a", again, SOON);
        near.wait_for("in/a", again, SOON);
        drop(far);
        if again == "once" {
            other.kill();
            other.start_again();
            plant.wait_until("the loss is told", SOON, || {
                plant.log().contains("the server has forgotten the session")
            });
            wait_until_healthy(&plant);
        }
    }
    plant.end_balanced();
}

/// Publishes with everything that a message can carry, and reads what is retained at the other broker.
fn carried(from: u16, to: u16, topic: &str) -> Value {
    let publish = ["-t", topic, "-r", "-m", "hot"];
    let properties = [
        "content-type text/plain",
        "message-expiry-interval 600",
        "user-property shift early",
    ];
    let mut arguments = publish.to_vec();
    for property in properties {
        arguments.extend(["-D", "publish"]);
        arguments.extend(property.split(' '));
    }
    Mosquitto::publish(from, &arguments);
    let mut found = None;
    wait_until(SOON, || {
        found = Mosquitto::retained(to, topic);
        found.is_some()
    });
    serde_json::from_str(&found.unwrap()).unwrap()
}

#[test]
fn a_message_keeps_what_it_carries_and_what_is_deleted_is_deleted_there_too() {
    let site = Rc::new(Site::new());
    let other = Mosquitto::start(&site);
    let own = site.ports.mqtt;
    let mut plant = start(&site, "site", own, other.port, "V5");
    for (from, to, topic) in [(own, other.port, "out/oven"), (other.port, own, "in/oven")] {
        let message = carried(from, to, topic);
        assert_eq!(
            (&message["payload"], &message["retain"]),
            (&"hot".into(), &1.into()),
            "{message:#}"
        );
        let properties = &message["properties"];
        assert_eq!(properties["content-type"], "text/plain", "{message:#}");
        let user = properties["user-properties"].to_string();
        assert!(user.contains("shift") && user.contains("early"), "{message:#}");
        let left = properties["message-expiry-interval"].as_u64().unwrap();
        assert!((400..=600).contains(&left), "{message:#}");

        Mosquitto::publish(from, &["-t", topic, "-r", "-n"]);
        let gone = wait_until(SOON, || Mosquitto::retained(to, topic).is_none());
        assert!(gone, "{topic} is deleted");
    }
    plant.end_balanced();
}

/// Two sites with bridges both ways to the same broker, for the same topics: nothing goes round.
#[test]
fn a_loop_of_bridges_brings_each_message_once() {
    let site = Rc::new(Site::new());
    let middle = Mosquitto::start(&site);
    let ports = [site.ports.mqtt, free_port()];
    let mut plants = ["one", "two"].map(|name| {
        let own = ports[usize::from(name == "two")];
        start(&site, name, own, middle.port, "V5")
    });
    let everywhere = [ports[0], ports[1], middle.port];
    let mut collectors = everywhere.map(|port| Collector::start(port, "shared/#"));
    for (port, payload) in everywhere.iter().zip(["from-one", "from-two", "from-middle"]) {
        let publish = ["-t", "shared/a", "-m", payload];
        Mosquitto::publish(*port, &publish);
    }
    for collector in &mut collectors {
        for payload in ["from-one", "from-two", "from-middle"] {
            collector.wait_for("shared/a", payload, SOON);
        }
    }
    sleep(ROUND);
    for collector in &mut collectors {
        collector.hear();
        let mut messages = collector.messages["shared/a"].clone();
        messages.sort();
        assert_eq!(messages, ["from-middle", "from-one", "from-two"]);
    }
    // What came from the middle is not sent back there, and the ledger tells.
    for plant in &mut plants {
        plant.wait_until("drops are told", SOON, || {
            plant
                .path(OUT)
                .is_some_and(|path| path.dropped.get("loop") == Some(&2))
        });
        plant.end_balanced();
    }
}

/// MQTT 3.1.1 carries no properties: what we sent comes back once, and no more.
#[test]
fn with_3_1_1_a_message_comes_back_once_and_does_not_go_round() {
    let site = Rc::new(Site::new());
    let other = Mosquitto::start(&site);
    let own = site.ports.mqtt;
    let mut plant = start(&site, "site", own, other.port, "V311");
    let (mut near, mut far) = (
        Collector::start(own, "shared/#"),
        Collector::start(other.port, "shared/#"),
    );
    Mosquitto::publish(own, &["-t", "shared/a", "-m", "ours"]);
    Mosquitto::publish(other.port, &["-t", "shared/a", "-m", "theirs"]);
    far.wait_for("shared/a", "ours", SOON);
    near.wait_for("shared/a", "theirs", SOON);
    let back = wait_until(SOON, || near.count("shared/a", "ours") == 2);
    assert!(back, "{:?}", near.messages);
    sleep(ROUND);
    for (collector, ours) in [(&mut near, 2), (&mut far, 1)] {
        assert_eq!(
            (
                collector.count("shared/a", "ours"),
                collector.count("shared/a", "theirs")
            ),
            (ours, 1)
        );
    }
    plant.end_balanced();
}
