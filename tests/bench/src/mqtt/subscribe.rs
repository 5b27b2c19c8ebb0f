//! Clients that subscribe.

use std::{cell::RefCell, rc::Rc};

use anyhow::{Context, Result};
use tokio::{
    io::AsyncWriteExt,
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{
    Common, Delivered, READY,
    latencies::Latencies,
    topic,
    wire::{ANSWER, Client, Hello, PUBACK, PUBLISH, acknowledge, now},
};
use crate::process;

/// Deliveries that a client takes unacknowledged.
pub(crate) const RECEIVE_MAXIMUM: u16 = 1_000;

/// Seconds that a persistent session outlives its connection.
pub(crate) const EXPIRY: u32 = 3_600;

/// What subscribers are told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Whether sessions outlive their connections, so that a broker has to keep what is published at QoS 1.
    #[arg(long)]
    persistent: bool,
    /// Let each client take the messages of the publisher with the same number only, instead of all.
    #[arg(long)]
    pairs: bool,
}

/// What has arrived.
struct Arrived {
    begun: bool,
    measuring: bool,
    count: u64,
    latencies: Latencies,
}

/// Takes what arrives, for the time asked for from the first message on.
pub(crate) async fn run(options: Options) -> Result<Delivered> {
    let Options {
        common,
        persistent,
        pairs,
    } = options;
    let broker = common.broker;
    let mut clients = Vec::new();
    for index in 0..common.clients {
        let name = format!("bench-subscriber-{index}");
        let hello = Hello {
            expiry: if persistent { EXPIRY } else { 0 },
            receive_maximum: RECEIVE_MAXIMUM,
            ..Hello::clean(&name)
        };
        let mut client = Client::connect(&common.address, &hello).await?;
        let filter = if pairs {
            format!("{}/#", topic(index))
        } else {
            "bench/#".to_owned()
        };
        client.subscribe(&[filter], common.qos).await?;
        clients.push(client);
    }
    println!("{READY}");
    let arrived = Rc::new(RefCell::new(Arrived {
        begun: false,
        measuring: false,
        count: 0,
        latencies: Latencies::new(),
    }));
    let first = Rc::new(Notify::new());
    let (failed, mut failure) = tokio::sync::mpsc::channel(1);
    let local = tokio::task::LocalSet::new();
    for client in clients {
        let (arrived, first, failed) = (Rc::clone(&arrived), Rc::clone(&first), failed.clone());
        local.spawn_local(async move {
            if let Err(error) = take(client, &arrived, &first).await {
                // One failure is enough to tell.
                drop(failed.try_send(error));
            }
        });
    }
    let measured = async {
        let begun = timeout(ANSWER, first.notified());
        begun.await.context("no message arrived in time")?;
        sleep(common.warmup()).await;
        arrived.borrow_mut().measuring = true;
        let (began, cpu, own) = (
            Instant::now(),
            process::cpu_seconds(broker)?,
            process::own_cpu_seconds()?,
        );
        sleep(common.measured()).await;
        let arrived = arrived.borrow();
        let seconds = began.elapsed().as_secs_f64();
        let cpu = process::cpu_seconds(broker)? - cpu;
        Ok(Delivered {
            rate: arrived.count as f64 / seconds,
            p50: arrived.latencies.percentile(0.5),
            p99: arrived.latencies.percentile(0.99),
            load: (process::own_cpu_seconds()? - own) / seconds,
            broker_cpu: cpu * 1e6 / (arrived.count.max(1)) as f64,
            broker_rss: process::memory(broker)?.resident,
        })
    };
    local
        .run_until(async {
            tokio::select! {
                delivered = measured => delivered,
                error = failure.recv() => Err(error.context("subscribers ended")?),
            }
        })
        .await
}

async fn take(mut client: Client, arrived: &RefCell<Arrived>, first: &Notify) -> Result<()> {
    let mut acknowledgements = Vec::new();
    loop {
        client.read().await?;
        let time = now();
        {
            let mut arrived = arrived.borrow_mut();
            while let Some(packet) = client.inbox.next()? {
                if packet.kind() != PUBLISH {
                    return Err(packet.unexpected());
                }
                let delivery = packet.delivery()?;
                let (sent, _) = delivery.stamp()?;
                if delivery.qos > 0 {
                    acknowledge(&mut acknowledgements, PUBACK, delivery.id);
                }
                if arrived.measuring {
                    arrived.count += 1;
                    arrived.latencies.add(time.saturating_sub(sent));
                } else if !arrived.begun {
                    arrived.begun = true;
                    first.notify_one();
                }
            }
        }
        if !acknowledgements.is_empty() {
            client.stream.write_all(&acknowledgements).await?;
            acknowledgements.clear();
        }
    }
}
