//! Ports of one machine: where all roles share it, two can't listen on the same.

use std::net::IpAddr;

use foreshore_crds::conditions::reasons;

use crate::{object::ObjectKey, problem::Problem};

use super::Scope;

/// Ports that objects listen on.
#[derive(Default)]
pub(crate) struct Ports(Vec<Claim>);

/// One port that an object listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Who.
    pub(crate) object: ObjectKey,
    /// Field that says so.
    pub(crate) field: String,
    /// Address to bind; the loopback where it was left out.
    pub(crate) bind: Option<String>,
    /// Port; 0 takes a free one and is in nobody's way.
    pub(crate) port: u16,
}

impl Claim {
    fn meets(&self, other: &Self) -> bool {
        self.port == other.port
            && self.port != 0
            && (self.binds_all() || other.binds_all() || self.same_host(other))
    }

    fn host(&self) -> &str {
        self.bind.as_deref().unwrap_or("127.0.0.1")
    }

    fn binds_all(&self) -> bool {
        self.host()
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_unspecified())
    }

    fn same_host(&self, other: &Self) -> bool {
        let plain = |host: &str| {
            if host == "localhost" {
                "127.0.0.1".to_owned()
            } else {
                host.to_lowercase()
            }
        };
        plain(self.host()) == plain(other.host())
    }
}

impl Scope<'_> {
    /// Claims the ports of an object: all of them, or none when one is taken.
    pub(crate) fn claim(&mut self, claims: Vec<Claim>) -> Result<(), Vec<Problem>> {
        // Pods have addresses of their own.
        if self.platform.pods {
            return Ok(());
        }
        let mut problems = Vec::new();
        for (index, claim) in claims.iter().enumerate() {
            let own = claims.iter().take(index);
            if let Some(taken) = self.ports.0.iter().chain(own).find(|taken| taken.meets(claim)) {
                let message = format!("{} listens on that port already", taken.object);
                let problem = Problem::new(reasons::CONFLICT, message).field(&claim.field);
                problems.push(problem.found(claim.port.to_string()).allowed("a port of its own"));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        self.ports.0.extend(claims);
        Ok(())
    }
}
