//! A client that subscribes, leaves, and comes back for what waits: everything that is published meanwhile has to be kept.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};

use super::{
    Sequences, numbers,
    subscribe::{EXPIRY, RECEIVE_MAXIMUM},
    topic,
    wire::{Client, GOODBYE, Hello, PUBACK, PUBLISH, acknowledge},
};

/// Name of the client.
const NAME: &str = "bench-away";

/// Longest time without a message while some are missing.
const SILENCE: Duration = Duration::from_secs(30);

/// What the client is told when it leaves.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Leave {
    /// Where the broker listens.
    #[arg(long)]
    address: String,
}

/// What the client is told when it comes back.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Return {
    /// Where the broker listens.
    #[arg(long)]
    address: String,
    /// How many messages of each publisher were acknowledged, with commas between them.
    #[arg(long)]
    acknowledged: String,
}

/// What the client found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// Messages; those that came twice count once.
    pub(crate) count: u64,
    /// Messages a second.
    pub(crate) rate: f64,
}

fn hello() -> Hello<'static> {
    Hello {
        expiry: EXPIRY,
        receive_maximum: RECEIVE_MAXIMUM,
        ..Hello::clean(NAME)
    }
}

/// Subscribes and leaves.
pub(crate) async fn leave(options: Leave) -> Result<()> {
    let mut client = Client::connect(&options.address, &hello()).await?;
    client.subscribe(&["bench/#".to_owned()], 1).await?;
    client.stream.write_all(&GOODBYE).await?;
    // The broker closes the connection once the session is without a client.
    while client.read().await.is_ok() {}
    Ok(())
}

/// Comes back and takes what waits, until every message that was acknowledged is there.
pub(crate) async fn take(options: Return) -> Result<Taken> {
    let acknowledged = numbers(&options.acknowledged)?;
    let resume = Hello {
        resume: true,
        ..hello()
    };
    let began = Instant::now();
    let mut client = Client::connect(&options.address, &resume).await?;
    if !client.resumed {
        bail!(
            "the session is gone, and {} messages with it",
            acknowledged.iter().sum::<u64>()
        );
    }
    let (mut sequences, mut acknowledgements) = (Sequences::default(), Vec::new());
    while let Some(missing) = missing(&sequences, &acknowledged) {
        let read = timeout(SILENCE, client.read()).await;
        read.with_context(|| missing)??;
        while let Some(packet) = client.inbox.next()? {
            if packet.kind() != PUBLISH {
                return Err(packet.unexpected());
            }
            let delivery = packet.delivery()?;
            let (_, number) = delivery.stamp()?;
            sequences.take(delivery.topic, number)?;
            acknowledge(&mut acknowledgements, PUBACK, delivery.id);
        }
        client.stream.write_all(&acknowledgements).await?;
        acknowledgements.clear();
    }
    let count = sequences.count();
    Ok(Taken {
        count,
        rate: count as f64 / began.elapsed().as_secs_f64(),
    })
}

/// The first publisher of whose acknowledged messages some are not there.
fn missing(sequences: &Sequences, acknowledged: &[u64]) -> Option<String> {
    let found = acknowledged.iter().enumerate().map(|(client, count)| {
        let topic = topic(client);
        let last = sequences.last(&topic);
        (*count > last).then(|| format!("{topic}: {count} messages were acknowledged, {last} have come"))
    });
    found.flatten().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_and_did_not_come_is_missing() {
        let mut sequences = Sequences::default();
        for number in 1..=3 {
            sequences.take(b"bench/1", number).unwrap();
        }
        assert_eq!(missing(&sequences, &[0, 3]), None);
        assert_eq!(
            missing(&sequences, &[0, 4]).unwrap(),
            "bench/1: 4 messages were acknowledged, 3 have come"
        );
    }
}
