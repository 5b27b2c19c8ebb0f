//! Who reads during a soak: quickly and slowly, for ever and for a moment.

use std::{cell::RefCell, collections::HashSet, io::Write, process::ChildStdin, rc::Rc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::AsyncWriteExt,
    sync::{mpsc, watch},
    task::{JoinHandle, LocalSet},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::publish::{Published, topic};
use crate::mqtt::{
    Sequences,
    wire::{
        Client, Disconnected, GOODBYE, Hello, PING, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL,
        Packet, acknowledge,
    },
};

/// Client of the session that misses nothing.
pub(super) const READER: &str = "soak-reader";

/// Client of the session that takes what has not expired.
pub(super) const SLOW: &str = "soak-slow";

/// How long the reader stays, and how long it is away.
const STAY: Duration = Duration::from_secs(10);
const AWAY: Duration = Duration::from_secs(1);

/// Pause of a slow reader after each read.
const PAUSE: Duration = Duration::from_millis(50);

/// How long clients that come and go stay, and the time between two of them.
const MOMENT: Duration = Duration::from_millis(500);

/// Seconds that the sessions of some of them outlive their connections.
const EXPIRY: u32 = 2;

/// Time without a message after which nothing is on its way any more.
const QUIET: Duration = Duration::from_secs(5);

/// Longest time that a client says nothing; a third of what it promised.
const SAY: Duration = Duration::from_secs(20);

/// Time between two words to the publishers.
const TELL: Duration = Duration::from_millis(20);

/// Longest time without a message while some are missing.
const SILENCE: Duration = Duration::from_secs(60);

/// MQTT 5.0 section 3.14.2.1: what our broker tells a client that is too slow and has no durable queue.
const QUOTA_EXCEEDED: u8 = 0x97;

/// What readers found.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Messages at QoS 1 and 2 of the reader that misses nothing.
    pub(super) one: Sequences,
    pub(super) two: Sequences,
    /// Messages at QoS 0 of the quick and the slow reader.
    pub(super) zero: [u64; 2],
    /// Sessions that came and went, and left something behind.
    pub(super) sessions: u64,
    /// Clients that took what is retained, and how much that was.
    pub(super) fleeting: u64,
    pub(super) retained: u64,
    /// Messages of the slow sessions.
    pub(super) slow: u64,
    /// How often a slow client without a queue was disconnected for it.
    pub(super) too_slow: u64,
    /// How often the reader that misses nothing was away.
    pub(super) away: u64,
}

/// Readers that run on this thread.
pub(super) struct Readers {
    tasks: Vec<JoinHandle<()>>,
    found: Rc<RefCell<Found>>,
    published: watch::Sender<Option<Published>>,
    failures: mpsc::Receiver<anyhow::Error>,
}

/// What each reader shares with the others.
#[derive(Clone)]
struct Shared {
    address: Rc<str>,
    found: Rc<RefCell<Found>>,
    /// What was published, once that is all.
    published: watch::Receiver<Option<Published>>,
}

impl Shared {
    fn has_ended(&self) -> bool {
        self.published.borrow().is_some()
    }
}

impl Readers {
    /// Starts all readers; returns when those are subscribed whose messages are counted.
    pub(super) async fn start(local: &LocalSet, address: &str) -> Result<Self> {
        let (published, receiver) = watch::channel(None);
        let found = Rc::<RefCell<Found>>::default();
        let shared = Shared {
            address: address.into(),
            found: Rc::clone(&found),
            published: receiver,
        };
        let reader = Reader::new(&shared).await?;
        let zero = zero_client(&shared, "soak-zero-quick").await?;
        let zero_slow = zero_client(&shared, "soak-zero-slow").await?;
        let slow = slow_client(&shared).await?;
        let (failed, failures) = mpsc::channel(8);
        let tasks = [
            task(local, &failed, READER, reader.run(shared.clone())),
            task(
                local,
                &failed,
                "soak-zero-quick",
                zero_run(shared.clone(), zero, 0),
            ),
            task(
                local,
                &failed,
                "soak-zero-slow",
                zero_run(shared.clone(), zero_slow, 1),
            ),
            task(local, &failed, SLOW, slow_run(shared.clone(), slow)),
            task(local, &failed, "soak-live", live_run(shared.clone())),
            task(local, &failed, "soak-session", sessions_run(shared.clone())),
            task(local, &failed, "soak-fleeting", fleeting_run(shared)),
        ];
        Ok(Self {
            tasks: tasks.into(),
            found,
            published,
            failures,
        })
    }

    /// Resolves with the first failure of a reader; never, as long as there is none.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Tells publishers how many messages the reader that misses nothing has taken, again and again; never ends.
    pub(super) fn tell(&self, mut publishers: ChildStdin) -> impl Future<Output = ()> + use<> {
        let found = Rc::clone(&self.found);
        async move {
            loop {
                sleep(TELL).await;
                let taken = {
                    let found = found.borrow();
                    found.one.count() + found.two.count()
                };
                if writeln!(publishers, "{taken}").is_err() {
                    // They have ended, and say so themselves.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Tells all readers what was published; returns when each has got what it should.
    pub(super) async fn finish(mut self, published: Published) -> Result<Found> {
        self.published.send_replace(Some(published));
        for task in std::mem::take(&mut self.tasks) {
            task.await?;
            if let Ok(failure) = self.failures.try_recv() {
                return Err(failure);
            }
        }
        Ok(self.found.take())
    }
}

fn task(
    local: &LocalSet,
    failed: &mpsc::Sender<anyhow::Error>,
    name: &'static str,
    reading: impl Future<Output = Result<()>> + 'static,
) -> JoinHandle<()> {
    let failed = failed.clone();
    local.spawn_local(async move {
        if let Err(error) = reading.await {
            // One failure is enough to tell.
            drop(failed.try_send(error.context(name)));
        }
    })
}

/// Reads what arrives until then; whether something did.
async fn read_until(client: &mut Client, until: Instant) -> Result<bool> {
    match timeout_at(until, client.read()).await {
        Ok(read) => read.map(|()| true),
        Err(_) => Ok(false),
    }
}

/// A persistent session that misses nothing: the numbers of each publisher are without gap, and at QoS 2 without repeat.
/// Its client leaves now and then, every other time without a word.
struct Reader {
    client: Client,
    /// Packet identifiers of messages at QoS 2 that were taken and not yet released (MQTT 5.0 section 4.3.3).
    taken: HashSet<u16>,
}

impl Reader {
    fn hello() -> Hello<'static> {
        Hello {
            expiry: 3_600,
            receive_maximum: 200,
            ..Hello::clean(READER)
        }
    }

    async fn new(shared: &Shared) -> Result<Self> {
        let mut client = Client::connect(&shared.address, &Self::hello()).await?;
        let filters = ["one", "two"].map(|group| format!("soak/{group}/#"));
        client.subscribe(&filters, 2).await?;
        Ok(Self {
            client,
            taken: HashSet::new(),
        })
    }

    async fn run(mut self, mut shared: Shared) -> Result<()> {
        while !shared.has_ended() {
            let until = Instant::now() + STAY;
            while Instant::now() < until && !shared.has_ended() {
                tokio::select! {
                    read = read_until(&mut self.client, until) => {
                        read?;
                    }
                    ended = shared.published.changed() => ended?,
                }
                self.answer(&shared).await?;
            }
            let away = {
                let mut found = shared.found.borrow_mut();
                found.away += 1;
                found.away
            };
            if away.is_multiple_of(2) {
                self.client.stream.write_all(&GOODBYE).await?;
            }
            drop(self.client);
            sleep(AWAY).await;
            let resume = Hello {
                resume: true,
                ..Self::hello()
            };
            self.client = Client::connect(&shared.address, &resume).await?;
            ensure!(self.client.resumed, "the session is gone");
            // What came along with CONNACK may be all that the broker sends before it is answered.
            self.answer(&shared).await?;
        }
        self.finish(&shared).await
    }

    /// Takes the rest.
    async fn finish(mut self, shared: &Shared) -> Result<()> {
        let published = shared.published.borrow().clone().unwrap_or_default();
        while let Some(missing) = self.missing(shared, &published) {
            let read = timeout(SILENCE, self.client.read()).await;
            read.context(missing)??;
            self.answer(shared).await?;
        }
        // Anything else that comes would be too much.
        while read_until(&mut self.client, Instant::now() + QUIET).await? {
            self.answer(shared).await?;
        }
        self.client.stream.write_all(&GOODBYE).await?;
        while self.client.read().await.is_ok() {}
        Ok(())
    }

    /// What has not come yet.
    fn missing(&self, shared: &Shared, published: &Published) -> Option<String> {
        let missing = missing(&shared.found.borrow(), published);
        // What waits to be released holds entries too.
        missing.or_else(|| (!self.taken.is_empty()).then(|| "messages at QoS 2 are not released".to_owned()))
    }

    async fn answer(&mut self, shared: &Shared) -> Result<()> {
        let mut out = Vec::new();
        {
            let mut found = shared.found.borrow_mut();
            while let Some(packet) = self.client.inbox.next()? {
                take(&mut found, &mut self.taken, &packet, &mut out)?;
            }
        }
        Ok(self.client.stream.write_all(&out).await?)
    }
}

/// Takes a packet for the reader that misses nothing.
fn take(found: &mut Found, taken: &mut HashSet<u16>, packet: &Packet<'_>, out: &mut Vec<u8>) -> Result<()> {
    match packet.kind() {
        PUBLISH => {
            let delivery = packet.delivery()?;
            let (_, number) = delivery.stamp()?;
            match delivery.qos {
                1 => {
                    found.one.take(delivery.topic, number)?;
                    acknowledge(out, PUBACK, delivery.id);
                }
                2 => {
                    if taken.insert(delivery.id) && !found.two.take(delivery.topic, number)? {
                        let topic = String::from_utf8_lossy(delivery.topic);
                        bail!("{topic}: message {number} came twice at QoS 2");
                    }
                    acknowledge(out, PUBREC, delivery.id);
                }
                qos => bail!("a message came at QoS {qos}"),
            }
        }
        PUBREL => {
            let id = packet.id()?;
            taken.remove(&id);
            acknowledge(out, PUBCOMP, id);
        }
        _ => return Err(packet.unexpected()),
    }
    Ok(())
}

/// The first publisher of whose messages some are not there.
fn missing(found: &Found, published: &Published) -> Option<String> {
    let groups = [
        ("one", &found.one, &published.one),
        ("two", &found.two, &published.two),
    ];
    groups.into_iter().find_map(|(group, sequences, counts)| {
        counts.iter().enumerate().find_map(|(client, count)| {
            let topic = topic(group, client);
            let last = sequences.last(&topic);
            (last < *count).then(|| format!("{topic}: {count} messages were acknowledged, {last} have come"))
        })
    })
}

async fn zero_client(shared: &Shared, name: &str) -> Result<Client> {
    let mut client = Client::connect(&shared.address, &Hello::clean(name)).await?;
    client.subscribe(&["soak/zero/#".to_owned()], 0).await?;
    Ok(client)
}

/// Counts messages at QoS 0, of which a slow reader may miss some.
async fn zero_run(shared: Shared, mut client: Client, place: usize) -> Result<()> {
    let is_slow = place == 1;
    let (mut last, mut said) = (0, Instant::now());
    loop {
        let ended = shared.has_ended();
        // Nothing that comes at QoS 0 is answered, and who says nothing for long is given up.
        if said.elapsed() > SAY {
            client.stream.write_all(&PING).await?;
            said = Instant::now();
        }
        let read = read_until(&mut client, Instant::now() + QUIET).await?;
        while let Some(packet) = client.inbox.next()? {
            if packet.kind() == PINGRESP {
                continue;
            }
            if packet.kind() != PUBLISH {
                return Err(packet.unexpected());
            }
            let (_, number) = packet.delivery()?.stamp()?;
            ensure!(number > last, "message {number} came after {last}");
            last = number;
            shared.found.borrow_mut().zero[place] += 1;
        }
        if ended && !read {
            return Ok(());
        }
        if is_slow && !ended {
            sleep(PAUSE).await;
        }
    }
}

async fn slow_client(shared: &Shared) -> Result<Client> {
    let hello = Hello {
        expiry: 3_600,
        receive_maximum: 20,
        ..Hello::clean(SLOW)
    };
    let mut client = Client::connect(&shared.address, &hello).await?;
    client.subscribe(&["soak/slow/#".to_owned()], 1).await?;
    Ok(client)
}

/// A persistent session that is slower than what is published for it: what is too old expires in its queue.
async fn slow_run(shared: Shared, mut client: Client) -> Result<()> {
    loop {
        let ended = shared.has_ended();
        let read = read_until(&mut client, Instant::now() + QUIET).await?;
        let count = acknowledge_all(&mut client).await?;
        shared.found.borrow_mut().slow += count;
        if ended && !read {
            client.stream.write_all(&GOODBYE).await?;
            while client.read().await.is_ok() {}
            return Ok(());
        }
        if !ended {
            sleep(PAUSE).await;
        }
    }
}

/// A session without a queue that is too slow at QoS 1: the broker may disconnect it, and say for what.
async fn live_run(shared: Shared) -> Result<()> {
    while !shared.has_ended() {
        let mut client = Client::connect(&shared.address, &Hello::clean("soak-live")).await?;
        client.subscribe(&["soak/slow/#".to_owned()], 1).await?;
        let failure = loop {
            if shared.has_ended() {
                return Ok(());
            }
            let until = Instant::now() + QUIET;
            let read = async {
                read_until(&mut client, until).await?;
                acknowledge_all(&mut client).await
            };
            if let Err(error) = read.await {
                break error;
            }
            sleep(PAUSE).await;
        };
        match failure.downcast_ref() {
            Some(Disconnected(reason)) if *reason != QUOTA_EXCEEDED => return Err(failure),
            // So slow that the word did not get through counts too.
            _ => shared.found.borrow_mut().too_slow += 1,
        }
    }
    Ok(())
}

/// Sessions that come, subscribe, leave without a word, and end some seconds later with what waits for them.
async fn sessions_run(shared: Shared) -> Result<()> {
    while !shared.has_ended() {
        let count = shared.found.borrow().sessions + 1;
        let name = format!("soak-session-{count}");
        let hello = Hello {
            expiry: EXPIRY,
            receive_maximum: 100,
            ..Hello::clean(&name)
        };
        let mut client = Client::connect(&shared.address, &hello).await?;
        shared.found.borrow_mut().sessions = count;
        client.subscribe(&["soak/one/#".to_owned()], 1).await?;
        let until = Instant::now() + MOMENT;
        while read_until(&mut client, until).await? {
            acknowledge_all(&mut client).await?;
        }
        drop(client);
        sleep(MOMENT).await;
    }
    Ok(())
}

/// Clients that come, take what is retained, and say good-bye.
async fn fleeting_run(shared: Shared) -> Result<()> {
    while !shared.has_ended() {
        let mut client = Client::connect(&shared.address, &Hello::clean("soak-fleeting")).await?;
        // QoS 0: whoever does not read for a while misses something, and is not disconnected for it.
        client.subscribe(&["soak/retained/#".to_owned()], 0).await?;
        let until = Instant::now() + MOMENT;
        let mut count = acknowledge_all(&mut client).await?;
        while read_until(&mut client, until).await? {
            count += acknowledge_all(&mut client).await?;
        }
        client.stream.write_all(&GOODBYE).await?;
        let mut found = shared.found.borrow_mut();
        found.fleeting += 1;
        found.retained += count;
    }
    Ok(())
}

/// Takes every message that has come, and acknowledges those at QoS 1; returns how many these are.
async fn acknowledge_all(client: &mut Client) -> Result<u64> {
    let (mut count, mut out) = (0, Vec::new());
    while let Some(packet) = client.inbox.next()? {
        if packet.kind() != PUBLISH {
            return Err(packet.unexpected());
        }
        let delivery = packet.delivery()?;
        count += 1;
        if delivery.qos > 0 {
            acknowledge(&mut out, PUBACK, delivery.id);
        }
    }
    client.stream.write_all(&out).await?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::wire::{Inbox, Message, Publish};

    /// Gives the reader a message, as the broker would.
    fn give(found: &mut Found, taken: &mut HashSet<u16>, qos: u8, id: u16, number: u64) -> Result<Vec<u8>> {
        let (mut bytes, mut inbox, mut out) = (Vec::new(), Inbox::new(), Vec::new());
        let message = Message {
            topic: "soak/two/0",
            qos,
            retain: false,
            expiry: None,
            payload: 32,
        };
        Publish::new(&message).write(&mut bytes, id, 0, number);
        inbox.room()[..bytes.len()].copy_from_slice(&bytes);
        inbox.filled(bytes.len());
        take(found, taken, &inbox.next().unwrap().unwrap(), &mut out)?;
        Ok(out)
    }

    #[test]
    fn a_repeat_before_its_release_is_answered_and_one_after_it_is_an_error() {
        let (mut found, mut taken) = (Found::default(), HashSet::new());
        let received = [0x50, 2, 0, 9];
        assert_eq!(give(&mut found, &mut taken, 2, 9, 1).unwrap(), received);
        assert_eq!(give(&mut found, &mut taken, 2, 9, 1).unwrap(), received);
        assert_eq!((found.two.count(), found.two.repeated), (1, 0));
        taken.clear();
        let twice = give(&mut found, &mut taken, 2, 9, 1).unwrap_err();
        assert_eq!(twice.to_string(), "soak/two/0: message 1 came twice at QoS 2");
        assert!(give(&mut found, &mut taken, 2, 10, 3).is_err());
    }

    #[test]
    fn what_was_acknowledged_and_did_not_come_is_missing() {
        let (mut found, mut taken) = (Found::default(), HashSet::new());
        let published = Published {
            one: vec![0; 4],
            two: vec![2, 0],
            ..Published::default()
        };
        give(&mut found, &mut taken, 2, 1, 1).unwrap();
        assert_eq!(
            missing(&found, &published).unwrap(),
            "soak/two/0: 2 messages were acknowledged, 1 have come"
        );
        give(&mut found, &mut taken, 2, 2, 2).unwrap();
        assert_eq!(missing(&found, &published), None);
    }
}
