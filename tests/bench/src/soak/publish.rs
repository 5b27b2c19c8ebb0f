//! What a soak publishes, in a process of its own: every client has a window of messages that are not acknowledged, so that
//! all together publish as quickly as the broker takes them and no quicker. Those for the reader that misses nothing wait for
//! it, too, when it falls behind for longer than it is away: the load is one that the host sustains, and what piles up in its
//! queue says nothing of the store.

use std::{
    io::BufRead,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep, timeout},
};

use crate::mqtt::{
    publish::next,
    wire::{
        Client, Hello, Message, PING, PINGRESP, PUBACK, PUBCOMP, PUBREC, PUBREL, Publish, acknowledge, now,
    },
};

/// Clients that publish at QoS 1 and at QoS 2, for a reader that misses nothing.
pub(crate) const ONE: usize = 4;
pub(crate) const TWO: usize = 2;

/// Topics that hold a retained message, or held one.
pub(crate) const RETAINED: usize = 500;

/// Every so many messages to them remove what is retained instead. It has no factor in common with their number, so
/// that each topic has its turn.
const REMOVE_EVERY: u64 = 7;

/// Seconds after which what a slow reader has not got is worthless.
const EXPIRY: u32 = 5;

/// Messages that a client has unacknowledged.
const WINDOW: u16 = 50;

/// Messages that the reader may be behind, and how long to wait when it is.
const MOST_BEHIND: u64 = 50_000;
const WAIT: Duration = Duration::from_millis(10);

/// Messages between two questions at QoS 0, which is not acknowledged.
const BURST: u64 = 32;

/// Bytes of a payload.
const PAYLOAD: usize = 256;

/// Longest time without an acknowledgement: a broker that is slower than this is taken for stuck.
const SILENCE: Duration = Duration::from_secs(60);

/// What publishers are told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the broker listens.
    #[arg(long)]
    address: String,
    /// Seconds to publish; what is unacknowledged then is waited for.
    #[arg(long)]
    seconds: f64,
}

/// Messages that were published, all of which were acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Published {
    /// Of each client at QoS 1.
    pub(crate) one: Vec<u64>,
    /// Of each client at QoS 2.
    pub(crate) two: Vec<u64>,
    /// At QoS 0.
    pub(crate) zero: u64,
    /// For slow readers.
    pub(crate) slow: u64,
    /// Retained, and removals.
    pub(crate) retained: u64,
    /// Number of the message that each topic retains at the end.
    pub(crate) left: Vec<Option<u64>>,
}

impl Published {
    /// All messages together.
    pub(crate) fn sum(&self) -> u64 {
        self.for_the_reader() + self.zero + self.slow + self.retained
    }

    /// Those of which the reader misses none.
    pub(crate) fn for_the_reader(&self) -> u64 {
        self.one.iter().chain(&self.two).sum()
    }
}

/// Topic of the clients at a quality of service.
pub(crate) fn topic(group: &str, client: usize) -> String {
    format!("soak/{group}/{client}")
}

/// How far publishers are ahead of the reader that misses nothing.
#[derive(Debug, Default)]
struct Lead {
    published: AtomicU64,
    taken: AtomicU64,
}

impl Lead {
    /// A lead that shrinks by what is told on standard input: how many messages were taken, line by line.
    fn told() -> Arc<Self> {
        let lead = Arc::<Self>::default();
        let shared = Arc::clone(&lead);
        // Nobody waits for it: it ends with the process.
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if let Ok(taken) = line.parse() {
                    shared.taken.store(taken, Ordering::Relaxed);
                }
            }
        });
        lead
    }

    /// Takes the lead one message further, if that is not too far.
    fn try_extend(&self) -> bool {
        let published = self.published.load(Ordering::Relaxed);
        let is_short = published < self.taken.load(Ordering::Relaxed) + MOST_BEHIND;
        if is_short {
            self.published.store(published + 1, Ordering::Relaxed);
        }
        is_short
    }
}

/// Publishes for the time asked for.
pub(crate) async fn run(options: Options) -> Result<Published> {
    let until = Instant::now() + Duration::from_secs_f64(options.seconds);
    let lead = Lead::told();
    let window = |group: &'static str, client: usize, qos, expiry: Option<u32>| {
        let address = &options.address;
        // What expires may pile up: that is bounded by time.
        let lead = expiry.is_none().then_some(&*lead);
        async move {
            let message = Message {
                topic: &topic(group, client),
                qos,
                retain: false,
                expiry,
                payload: PAYLOAD,
            };
            let packet = Publish::new(&message);
            let write = |out: &mut Vec<u8>, id, number| packet.write(out, id, now(), number);
            window(address, &format!("soak-{group}-{client}"), until, lead, write).await
        }
    };
    let (one, two, slow, zero, retained) = futures::try_join!(
        futures::future::try_join_all((0..ONE).map(|client| window("one", client, 1, None))),
        futures::future::try_join_all((0..TWO).map(|client| window("two", client, 2, None))),
        window("slow", 0, 1, Some(EXPIRY)),
        zero(&options.address, until),
        retained(&options.address, until),
    )?;
    Ok(Published {
        one,
        two,
        zero,
        slow,
        left: left(retained),
        retained,
    })
}

/// Publishes at QoS 1 or 2 until then, no further ahead than it may be, waits for all acknowledgements, and returns how many
/// messages these were.
async fn window(
    address: &str,
    name: &str,
    until: Instant,
    lead: Option<&Lead>,
    write: impl Fn(&mut Vec<u8>, u16, u64),
) -> Result<u64> {
    let published = async {
        let mut client = Client::connect(address, &Hello::clean(name)).await?;
        let (mut number, mut id, mut unacknowledged, mut out) = (0, 0, 0, Vec::new());
        loop {
            while unacknowledged < WINDOW && Instant::now() < until && lead.is_none_or(Lead::try_extend) {
                (number, id) = (number + 1, next(id));
                write(&mut out, id, number);
                unacknowledged += 1;
            }
            client.stream.write_all(&out).await?;
            out.clear();
            if unacknowledged == 0 {
                if Instant::now() >= until {
                    return Ok(number);
                }
                sleep(WAIT).await;
                continue;
            }
            let read = timeout(SILENCE, client.read()).await;
            read.context("nothing is acknowledged any more")??;
            while let Some(packet) = client.inbox.next()? {
                let kind = packet.kind();
                if ![PUBACK, PUBREC, PUBCOMP].contains(&kind) {
                    return Err(packet.unexpected());
                }
                if let Some(code) = packet.refused() {
                    bail!("a publish was refused: {code:#x}");
                }
                if kind == PUBREC {
                    acknowledge(&mut out, PUBREL, packet.id()?);
                } else {
                    let left = u16::checked_sub(unacknowledged, 1);
                    unacknowledged = left.context("more is acknowledged than was published")?;
                }
            }
        }
    };
    published.await.with_context(|| name.to_owned())
}

/// Publishes at QoS 0, and asks after each burst whether the broker has come so far.
async fn zero(address: &str, until: Instant) -> Result<u64> {
    let published = async {
        let mut client = Client::connect(address, &Hello::clean("soak-zero")).await?;
        let packet = Publish::new(&Message {
            topic: &topic("zero", 0),
            qos: 0,
            retain: false,
            expiry: None,
            payload: PAYLOAD,
        });
        let (mut number, mut out) = (0, Vec::new());
        while Instant::now() < until {
            out.clear();
            for _ in 0..BURST {
                number += 1;
                packet.write(&mut out, 0, now(), number);
            }
            out.extend(PING);
            client.stream.write_all(&out).await?;
            loop {
                if let Some(packet) = client.inbox.next()? {
                    if packet.kind() == PINGRESP {
                        break;
                    }
                    return Err(packet.unexpected());
                }
                let read = timeout(SILENCE, client.read()).await;
                read.context("nothing is answered any more")??;
            }
        }
        Ok(number)
    };
    published.await.context("soak-zero")
}

/// Publishes retained messages to one topic after the other, and removes some.
async fn retained(address: &str, until: Instant) -> Result<u64> {
    let packet = |topic: usize, payload| {
        Publish::new(&Message {
            topic: &self::topic("retained", topic),
            qos: 1,
            retain: true,
            expiry: None,
            payload,
        })
    };
    let packets: Vec<_> = (0..RETAINED)
        .map(|topic| [packet(topic, PAYLOAD), packet(topic, 0)])
        .collect();
    let write = |out: &mut Vec<u8>, id, number| {
        let (topic, removes) = retained_as(number);
        packets[topic][usize::from(removes)].write(out, id, now(), number);
    };
    window(address, "soak-retained", until, None, write).await
}

/// Topic of a retained message, by its number, and whether it removes what is there.
fn retained_as(number: u64) -> (usize, bool) {
    let topic = usize::try_from(number % RETAINED as u64).unwrap_or(0);
    (topic, number.is_multiple_of(REMOVE_EVERY))
}

/// Numbers of the messages that stay retained, when so many were published.
fn left(published: u64) -> Vec<Option<u64>> {
    let mut left = vec![None; RETAINED];
    for number in published.saturating_sub(RETAINED as u64 - 1).max(1)..=published {
        let (topic, removes) = retained_as(number);
        left[topic] = (!removes).then_some(number);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_wait_for_a_reader_that_falls_behind() {
        let lead = Lead::default();
        let extend = || (0..2 * MOST_BEHIND).filter(|_| lead.try_extend()).count() as u64;
        assert_eq!((extend(), extend()), (MOST_BEHIND, 0));
        lead.taken.store(7, Ordering::Relaxed);
        assert_eq!(extend(), 7);
    }

    #[test]
    fn what_stays_retained_is_the_last_of_each_topic_unless_that_removed_it() {
        assert!(left(0).iter().all(Option::is_none));
        assert_eq!(left(8)[6..9], [Some(6), None, Some(8)]);
        let many = left(10_000);
        let mut expected = vec![None; RETAINED];
        for number in 1..=10_000 {
            let (topic, removes) = retained_as(number);
            expected[topic] = if removes { None } else { Some(number) };
        }
        assert_eq!(many, expected);
        assert!(many.contains(&None) && many.iter().flatten().count() > RETAINED / 2);
    }
}
