//! Clients that publish.

use std::{cell::Cell, rc::Rc, time::Duration};

use anyhow::{Result, bail};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, MissedTickBehavior, sleep},
};

use super::{
    Common, Published, READY, topic,
    wire::{Client, Hello, Inbox, Message, PUBACK, Publish, now},
};
use crate::process;

/// Messages that a client writes at once at QoS 0.
const BURST: u16 = 32;

/// What publishers are told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Bytes of a message's payload.
    #[arg(long)]
    payload: usize,
    /// Messages that a client may have unacknowledged at QoS 1.
    #[arg(long, default_value_t = 50)]
    window: u16,
    /// Messages a second of each client; as many as go through where it is left out.
    #[arg(long)]
    rate: Option<f64>,
    /// Topics that each client publishes to in turns, below its own; only its own where it is left out.
    #[arg(long, default_value_t = 0)]
    topics: usize,
}

/// Publishes for the time asked for.
pub(crate) async fn run(options: Options) -> Result<Published> {
    let mut clients = Vec::new();
    for index in 0..options.common.clients {
        let name = format!("bench-publisher-{index}");
        clients.push(Client::connect(&options.common.address, &Hello::clean(&name)).await?);
    }
    println!("{READY}");
    let broker = options.common.broker;
    let sent: Rc<[Cell<u64>]> = clients.iter().map(|_| Cell::new(0)).collect();
    let all = || sent.iter().map(Cell::get).sum::<u64>();
    let local = tokio::task::LocalSet::new();
    let mut tasks = Vec::new();
    for (index, client) in clients.into_iter().enumerate() {
        let (options, sent) = (options.clone(), Rc::clone(&sent));
        tasks.push(local.spawn_local(async move {
            let messages = Messages::new(index, &options);
            publish(client, messages, &options, &sent[index]).await
        }));
    }
    let measured = async {
        sleep(options.common.warmup()).await;
        let (began, before) = (Instant::now(), all());
        let (cpu, own) = (process::cpu_seconds(broker)?, process::own_cpu_seconds()?);
        sleep(options.common.measured()).await;
        let (seconds, count) = (began.elapsed().as_secs_f64(), all() - before);
        let cpu = process::cpu_seconds(broker)? - cpu;
        let published = Published {
            rate: count as f64 / seconds,
            acknowledged: Vec::new(),
            load: (process::own_cpu_seconds()? - own) / seconds,
            broker_cpu: cpu * 1e6 / count.max(1) as f64,
            broker_rss: process::memory(broker)?.resident,
        };
        // The subscribers' window ends a little later.
        sleep(Duration::from_millis(500)).await;
        Ok(published)
    };
    let published = local
        .run_until(async {
            tokio::select! {
                published = measured => published,
                // None ends by itself.
                failed = first(tasks) => failed,
            }
        })
        .await?;
    Ok(Published {
        acknowledged: sent.iter().map(Cell::get).collect(),
        ..published
    })
}

/// The first failure among tasks that never end well.
async fn first(tasks: Vec<tokio::task::JoinHandle<Result<()>>>) -> Result<Published> {
    let (failed, ..) = futures::future::select_all(tasks).await;
    failed??;
    bail!("publishers ended")
}

/// The messages of a client, one topic after the other.
struct Messages {
    packets: Vec<Publish>,
    next: usize,
    number: u64,
}

impl Messages {
    fn new(client: usize, options: &Options) -> Self {
        let own = topic(client);
        let topics = match options.topics {
            0 => vec![own],
            many => (0..many).map(|index| format!("{own}/{index}")).collect(),
        };
        let packet = |topic: &String| {
            Publish::new(&Message {
                topic,
                qos: options.common.qos,
                retain: false,
                expiry: None,
                payload: options.payload,
            })
        };
        Self {
            packets: topics.iter().map(packet).collect(),
            next: 0,
            number: 0,
        }
    }

    fn write(&mut self, out: &mut Vec<u8>, id: u16, time: u64) {
        self.number += 1;
        self.packets[self.next].write(out, id, time, self.number);
        self.next = (self.next + 1) % self.packets.len();
    }
}

async fn publish(
    mut client: Client,
    mut messages: Messages,
    options: &Options,
    sent: &Cell<u64>,
) -> Result<()> {
    match (options.rate, options.common.qos) {
        (Some(rate), _) => paced(client, messages, options, rate, sent).await,
        (None, 0) => {
            let mut out = Vec::new();
            loop {
                out.clear();
                let time = now();
                (0..BURST).for_each(|_| messages.write(&mut out, 0, time));
                client.stream.write_all(&out).await?;
                sent.set(sent.get() + u64::from(BURST));
                // Sockets that take everything at once would keep the others from their turn.
                tokio::task::yield_now().await;
            }
        }
        (None, _) => {
            let (mut unacknowledged, mut id, mut out) = (0, 0, Vec::new());
            loop {
                out.clear();
                let time = now();
                while unacknowledged < options.window {
                    id = next(id);
                    messages.write(&mut out, id, time);
                    unacknowledged += 1;
                }
                client.stream.write_all(&out).await?;
                client.read().await?;
                let count = acknowledged(&mut client.inbox)?;
                unacknowledged = unacknowledged.saturating_sub(count);
                sent.set(sent.get() + u64::from(count));
            }
        }
    }
}

/// Publishes in even steps, whether or not acknowledgements keep up.
async fn paced(
    client: Client,
    mut messages: Messages,
    options: &Options,
    rate: f64,
    sent: &Cell<u64>,
) -> Result<()> {
    let Client {
        stream, mut inbox, ..
    } = client;
    let (mut reader, mut writer) = stream.into_split();
    let acknowledging = async {
        loop {
            match tokio::io::AsyncReadExt::read(&mut reader, inbox.room()).await? {
                0 => bail!("the broker closed the connection"),
                count => inbox.filled(count),
            }
            let count = acknowledged(&mut inbox)?;
            sent.set(sent.get() + u64::from(count));
        }
    };
    let publishing = async {
        let mut steps = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
        steps.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut id, mut out) = (0, Vec::new());
        loop {
            steps.tick().await;
            id = next(id);
            out.clear();
            messages.write(&mut out, id, now());
            writer.write_all(&out).await?;
            if options.common.qos == 0 {
                sent.set(sent.get() + 1);
            }
        }
    };
    tokio::select! {
        ended = acknowledging => ended,
        ended = publishing => ended,
    }
}

/// The packet identifier after another one.
pub(crate) fn next(id: u16) -> u16 {
    if id == u16::MAX { 1 } else { id + 1 }
}

/// Counts acknowledgements.
fn acknowledged(inbox: &mut Inbox) -> Result<u16> {
    let mut count = 0;
    while let Some(packet) = inbox.next()? {
        match packet.kind() {
            PUBACK => match packet.refused() {
                None => count += 1,
                Some(code) => bail!("a publish was refused: {code:#x}"),
            },
            _ => return Err(packet.unexpected()),
        }
    }
    Ok(count)
}
