//! Rotation of the own authority, in order: the new root into every bundle, then the switch.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use foreshore_tls::{CertificateAuthority, Error, Fingerprint, RootState};
use jiff::Timestamp;
use tracing::{info, warn};

/// Time between two looks at whether a rotation is due: roots live for years.
pub(super) const INTERVAL: Duration = Duration::from_secs(3600);

/// One step of the rotation, if there is one to be taken. `trusted` are the bundles that the roles that run have
/// acknowledged, `None` for one that has not told.
pub(super) async fn step(authority: Arc<CertificateAuthority>, trusted: BTreeSet<Option<Fingerprint>>) {
    let taken = tokio::task::spawn_blocking(move || advance(&authority, &trusted)).await;
    match taken {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "rotation of the authority can't go on now"),
        Err(error) => warn!(%error, "rotation of the authority failed"),
    }
}

/// Whether a rotation waits for roles.
pub(super) fn is_under_way(authority: &CertificateAuthority) -> bool {
    authority.roots().iter().any(|root| root.state == RootState::Next)
}

fn advance(authority: &CertificateAuthority, trusted: &BTreeSet<Option<Fingerprint>>) -> Result<(), Error> {
    let now = Timestamp::now();
    let pruned = authority.prune(now)?;
    if pruned > 0 {
        info!(roots = pruned, "retired roots are no longer trusted");
    }
    if is_under_way(authority) {
        let bundle = authority.bundle().fingerprint();
        if trusted.iter().all(|trusts| *trusts == Some(bundle)) {
            authority.complete_rotation(now)?;
            info!("every role trusts the new root, which signs from now on");
        }
    } else if authority.rotation_is_due(now) {
        let root = authority.begin_rotation(now)?;
        info!(%root, "a new root is handed out to every role");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use foreshore_tls::AuthorityOptions;

    use super::*;

    #[test]
    fn the_new_root_signs_when_everybody_trusts_it() {
        foreshore_tls::install_provider();
        let options = AuthorityOptions {
            root_lifetime: Duration::from_secs(1),
            ..AuthorityOptions::default()
        };
        let long_ago = Timestamp::now() - Duration::from_secs(3600);
        let authority = CertificateAuthority::create(options, long_ago).unwrap();
        let old = authority.bundle().fingerprint();
        advance(&authority, &BTreeSet::from([Some(old)])).unwrap();
        assert!(is_under_way(&authority));
        let new = authority.bundle().fingerprint();
        for trusted in [
            BTreeSet::from([Some(old), Some(new)]),
            BTreeSet::from([None, Some(new)]),
        ] {
            advance(&authority, &trusted).unwrap();
            assert!(is_under_way(&authority), "switched before {trusted:?}");
        }
        advance(&authority, &BTreeSet::from([Some(new)])).unwrap();
        assert!(!is_under_way(&authority));
        assert_eq!(authority.roots().len(), 2);
    }
}
