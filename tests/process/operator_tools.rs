//! What an operator sees and repairs of a broker from the command line.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Output, Stdio},
};

use serde_json::Value;

use crate::{
    plant::{START, foreshore, signal},
    site::{Site, wait_until},
};

fn run(arguments: &[&str], directory: &Path) -> Output {
    foreshore().args(arguments).arg(directory).output().unwrap()
}

fn told(output: &Output) -> String {
    let (out, errors) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(errors)
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", told(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A broker alone, on a store of its own.
struct Broker(Child);

impl Broker {
    fn start(site: &Site, data: &Path) -> Self {
        let child = foreshore()
            .args(["broker", "--anonymous", "--set", "sysInterval=1s", "--listen"])
            .arg(format!("127.0.0.1:{}", site.ports.mqtt))
            .arg("--data")
            .arg(data)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut broker = Self(child);
        let answers = || run(&["broker", "sessions", "--data"], data).status.success();
        assert!(wait_until(START, answers), "{:?}", broker.0.try_wait());
        broker
    }

    fn end(mut self) {
        signal(self.0.id(), "TERM");
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // After a failure: nobody else ends it.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_broker_alone_is_looked_at_and_its_store_is_proved() {
    let site = Site::new();
    let data = site.path("store");
    let nobody = run(&["broker", "backlog", "--data"], &data);
    assert!(
        !nobody.status.success() && told(&nobody).contains("no foreshore runs"),
        "{nobody:?}"
    );
    let broker = Broker::start(&site, &data);
    let mode = fs::metadata(data.join("admin.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let backlog = json(&run(
        &["broker", "backlog", "--interval", "10ms", "-o", "json", "--data"],
        &data,
    ));
    assert!(backlog["queues"].as_array().unwrap().is_empty());
    assert!(
        backlog["shards"]
            .as_array()
            .unwrap()
            .iter()
            .all(|shard| shard["answers"] == true)
    );
    let connect = run(
        &["broker", "explain", "--client", "c", "--connect", "--data"],
        &data,
    );
    assert!(
        told(&connect).contains("allowed: no BrokerPolicy is for this broker"),
        "{connect:?}"
    );
    probes(&data);
    traces(&data);
    for command in ["verify", "dump", "compact"] {
        let refused = run(&["store", command], &data);
        assert!(
            !refused.status.success() && told(&refused).contains("in use by another process"),
            "{refused:?}"
        );
    }
    broker.end();

    let sound = json(&run(&["store", "verify", "-o", "json"], &data));
    assert_eq!(
        (&sound["closedInOrder"], &sound["damage"]),
        (&true.into(), &0.into())
    );
    let dump = run(&["store", "dump"], &data);
    let first: Value = serde_json::from_str(told(&dump).lines().next().unwrap()).unwrap();
    assert_eq!(first["kind"], "store");
    let compacted = json(&run(&["store", "compact", "-o", "json"], &data));
    assert!(compacted["bytesAfter"].is_u64());

    for keyspace in fs::read_dir(data.join("data/keyspaces")).unwrap() {
        fs::write(keyspace.unwrap().path().join("current"), b"nonsense").unwrap();
    }
    let damaged = run(&["store", "verify"], &data);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(told(&damaged).contains("DAMAGE  data: "), "{damaged:?}");
    let elsewhere = run(&["store", "verify"], &site.path("nothing"));
    assert!(told(&elsewhere).contains("is no store"), "{elsewhere:?}");
    assert!(!site.path("nothing").exists());
}

/// Every listener can be used, as the broker finds by doing so.
fn probes(data: &Path) {
    let probed = json(&run(&["broker", "probe", "-o", "json", "--data"], data));
    let listener = &probed.as_array().unwrap()[0];
    assert_eq!(listener["listener"], "listener-0");
    assert!(
        listener["failure"].is_null() && listener["seconds"].as_f64().unwrap() > 0.0,
        "{probed}"
    );
    let text = run(&["broker", "probe", "--data"], data);
    assert!(
        text.status.success() && told(&text).contains("mqtt://127.0.0.1:"),
        "{text:?}"
    );
    // One that is given no time can't be used.
    let late = run(&["broker", "probe", "--timeout", "0s", "--data"], data);
    assert_eq!(late.status.code(), Some(1), "{late:?}");
    assert!(told(&late).contains("nothing came back within 0 s"), "{late:?}");
}

/// Where messages are: what the broker itself publishes is watched, and what is not there is said not to be.
fn traces(data: &Path) {
    let asked = ["trace", "--topic", "$SYS/#", "--messages", "2", "--for", "60s"];
    let tracing = json(&run(&[&asked[..], &["-o", "json", "--data"]].concat(), data));
    let messages = tracing["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 2, "{tracing}");
    let topic = messages[0]["topic"].as_str().unwrap();
    assert!(topic.starts_with("$SYS/broker/"), "{tracing}");
    assert_eq!(messages[0]["hops"][0]["hop"], "received");
    let text = run(&[&asked[..], &["--data"]].concat(), data);
    assert!(
        told(&text).contains("received       from the broker itself, QoS 0"),
        "{text:?}"
    );
    let nothing = run(&["trace", "--id", "4711", "--data"], data);
    assert!(
        told(&nothing).contains("there was no entry 4711 yet"),
        "{nothing:?}"
    );
    let neither = run(&["trace", "--data"], data);
    assert_eq!(neither.status.code(), Some(2), "{neither:?}");
    let wrong = run(&["trace", "--topic", "a/#/b", "--data"], data);
    assert!(told(&wrong).contains("--topic: found \"a/#/b\""), "{wrong:?}");
}

#[test]
fn manifests_explain_who_may_do_what() {
    let site = Site::new();
    let manifests = site.example("manifests");
    let ask = |more: &[&str]| {
        let asked = [&["broker", "explain", "--client", "panel-1"], more].concat();
        run(&asked, &manifests.0)
    };
    let operator = ["--user", "operator", "--group", "operators"];
    let start = [
        "--publish",
        "foreshore/commands/bottling/filler/control/set-speed",
    ];
    let allowed = ask(&[&operator[..], &start[..]].concat());
    assert!(
        told(&allowed).contains("allowed by plant/operators-act (Allow)"),
        "{allowed:?}"
    );
    assert_eq!(allowed.status.code(), Some(0));
    let refused = ask(&[&start[..], &["-o", "json"]].concat());
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let refused: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(
        (&refused["allowed"], &refused["nearest"][0]["rule"]),
        (&false.into(), &"plant/operators-act".into())
    );
    let stop = ["--publish", "foreshore/commands/bottling/line/control/stop"];
    let denied = ask(&[&operator[..], &stop[..]].concat());
    assert!(
        told(&denied).contains("refused by plant/nobody-stops-the-line-from-afar (Deny)"),
        "{denied:?}"
    );
    let own = ask(&[&operator[..], &["--subscribe", "foreshore/responses/panel-1/#"]].concat());
    assert!(
        told(&own).contains("which is \"foreshore/responses/${clientid}/#\" filled in"),
        "{own:?}"
    );
}
