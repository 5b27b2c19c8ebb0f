//! One leader among several operators, by a Lease of the Kubernetes API.
//!
//! A lease is advisory: nothing stops a former leader that has not noticed yet, so that every write has to be safe to
//! repeat. Roles are not left to that: each change of the holder raises the epoch, which stands in the lease itself, and
//! a role does not listen to a smaller one.
//!
//! Clocks of other machines are not believed: a lease has expired when it was not renewed for its duration by the clock
//! of whoever looks at it.

use std::time::Duration;

use foreshore_runtime::Shutdown;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube_client::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{Error, MANAGER, within};

/// Name of the lease.
pub(super) const NAME: &str = "foreshore-operator";
/// Annotation with the epoch of the holder.
const EPOCH: &str = "foreshore.dev/epoch";
/// Life of the lease without renewal.
const DURATION: Duration = Duration::from_secs(10);
/// A leader that could not renew for so long gives up, before another one may begin.
const RENEW_DEADLINE: Duration = Duration::from_secs(7);
/// Time between two looks, and between two renewals.
const INTERVAL: Duration = Duration::from_secs(2);

/// Time after which a renewal that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Takes part in the election.
pub struct Election {
    api: Api<Lease>,
    /// Tells this operator from others: the name of its pod.
    identity: String,
    /// The last version of the lease that was seen, and since when it has not changed.
    seen: Option<(String, Instant)>,
}

/// A lease that is held.
pub struct Leadership {
    api: Api<Lease>,
    lease: Lease,
    /// Larger than that of every leader before.
    epoch: u64,
}

impl Election {
    /// Takes part as `identity`, in the namespace of the operator.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: impl Into<String>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity: identity.into(),
            seen: None,
        }
    }

    /// Waits until the lease is held.
    pub async fn win(&mut self) -> Leadership {
        loop {
            match self.try_once().await {
                Ok(Some(leadership)) => {
                    info!(
                        epoch = leadership.epoch,
                        identity = self.identity,
                        "lease is held"
                    );
                    return leadership;
                }
                Ok(None) => {}
                Err(error) if error.is_conflict() => debug!(%error, "another one was first"),
                Err(error) => warn!(%error, "lease can't be had, and is tried again"),
            }
            sleep(INTERVAL).await;
        }
    }

    async fn try_once(&mut self) -> Result<Option<Leadership>, Error> {
        let present = within(self.api.get_opt(NAME)).await?;
        let Some(present) = present else {
            let lease = within(self.api.create(&post(), &claim(None, &self.identity, clock()))).await?;
            return Ok(Some(self.leadership(lease)));
        };
        if !self.is_free(&present) {
            return Ok(None);
        }
        let epoch = epoch(&present).map_or_else(clock, |before| before.saturating_add(1).max(clock()));
        // The version of what was seen goes with it, so that of several only one succeeds.
        let lease = claim(Some(&present), &self.identity, epoch);
        let lease = within(self.api.replace(NAME, &post(), &lease)).await?;
        Ok(Some(self.leadership(lease)))
    }

    /// Whether nobody else holds a lease: it was given back, has not been renewed for too long, or is one's own from
    /// before a restart.
    fn is_free(&mut self, lease: &Lease) -> bool {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((version, now));
                now
            }
        };
        let seconds = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        since.elapsed() >= seconds.map_or(DURATION, Duration::from_secs)
    }

    fn leadership(&self, lease: Lease) -> Leadership {
        Leadership {
            api: self.api.clone(),
            epoch: epoch(&lease).unwrap_or_else(clock),
            lease,
        }
    }
}

impl Leadership {
    /// The epoch of this leader.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Renews the lease until it is lost, and tells why; gives it back when the shutdown begins, and resolves with
    /// `None`.
    pub async fn hold(mut self, shutdown: Shutdown) -> Option<String> {
        let mut renewed = Instant::now();
        let mut wait = INTERVAL;
        loop {
            if shutdown.or_begun(sleep(wait)).await.is_none() {
                self.give_back().await;
                return None;
            }
            match self.renew().await {
                Ok(()) => {
                    renewed = Instant::now();
                    wait = INTERVAL;
                }
                Err(error) if error.is_conflict() || error.is_not_found() => {
                    return Some(format!("the lease was taken away: {error}"));
                }
                Err(error) => {
                    warn!(%error, "lease can't be renewed, and is tried again");
                    wait = RETRY;
                    if renewed.elapsed() >= RENEW_DEADLINE {
                        return Some(format!("the lease could not be renewed: {error}"));
                    }
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let mut lease = self.lease.clone();
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(now());
        }
        // A call that takes longer would be of no use.
        let params = post();
        let call = within(self.api.replace(NAME, &params, &lease));
        let renewed = tokio::time::timeout(RENEW_DEADLINE / 2, call).await;
        self.lease = renewed.unwrap_or(Err(Error::TimedOut))?;
        Ok(())
    }

    /// Another one may begin at once.
    async fn give_back(mut self) {
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = None;
        }
        match within(self.api.replace(NAME, &post(), &self.lease)).await {
            Ok(_) => info!("lease is given back"),
            Err(error) => warn!(%error, "lease can't be given back, and expires"),
        }
    }
}

fn claim(before: Option<&Lease>, identity: &str, epoch: u64) -> Lease {
    let mut metadata = before.map_or_else(
        || ObjectMeta {
            name: Some(NAME.to_owned()),
            ..ObjectMeta::default()
        },
        |before| before.metadata.clone(),
    );
    metadata.managed_fields = None;
    metadata
        .annotations
        .get_or_insert_default()
        .insert(EPOCH.to_owned(), epoch.to_string());
    let transitions = before
        .and_then(|before| before.spec.as_ref()?.lease_transitions)
        .map_or(0, |transitions| transitions.saturating_add(1));
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            acquire_time: Some(now()),
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(transitions),
            renew_time: Some(now()),
            ..LeaseSpec::default()
        }),
    }
}

fn epoch(lease: &Lease) -> Option<u64> {
    lease.metadata.annotations.as_ref()?.get(EPOCH)?.parse().ok()
}

/// Seconds since 1970: more than any count of leaders.
fn clock() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

fn post() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        let mut lease = claim(None, holder, 7);
        lease.metadata.resource_version = Some(version.to_owned());
        lease
    }

    fn election() -> Election {
        foreshore_tls::install_provider();
        let nowhere = kube_client::Config::new("http://127.0.0.1:9".parse().unwrap());
        Election::new(Client::try_from(nowhere).unwrap(), "plant", "me")
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_free_when_it_was_not_renewed_for_its_duration() {
        let mut election = election();
        assert!(!election.is_free(&lease("other", "1")), "just seen");
        tokio::time::advance(DURATION - Duration::from_millis(1)).await;
        assert!(!election.is_free(&lease("other", "1")));
        assert!(!election.is_free(&lease("other", "2")), "it was renewed");
        tokio::time::advance(DURATION).await;
        assert!(election.is_free(&lease("other", "2")));
    }

    #[tokio::test]
    async fn a_lease_that_was_given_back_or_is_ones_own_is_free_at_once() {
        let mut election = election();
        assert!(election.is_free(&lease("", "1")));
        assert!(election.is_free(&lease("me", "2")));
    }

    #[test]
    fn a_claim_carries_version_and_epoch() {
        let before = lease("other", "41");
        let after = claim(Some(&before), "me", 8);
        assert_eq!(after.metadata.resource_version.as_deref(), Some("41"));
        assert_eq!(epoch(&after), Some(8));
        assert_eq!(after.spec.unwrap().lease_transitions, Some(1));
    }
}
