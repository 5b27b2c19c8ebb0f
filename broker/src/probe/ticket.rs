//! What lets the probe in: a secret that is made for one connection, is never written anywhere, and is gone with it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

/// User name of the probe. A user may be called so too: without a ticket it is judged as any other.
pub(crate) const USERNAME: &str = "$probe";

/// Tickets that were issued and neither used nor given back, by client identifier.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<HashMap<String, Secret>>);

#[derive(Clone)]
struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret")
    }
}

/// The right to connect once; it ends when it is used or dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    tickets: Arc<Tickets>,
    /// Client identifier that it is for.
    pub(crate) client_id: String,
    secret: Secret,
}

impl Tickets {
    /// Makes a ticket.
    pub(crate) fn issue(self: &Arc<Self>) -> Ticket {
        let client_id = format!("$probe-{}", uuid::Uuid::new_v4().simple());
        let secret = Secret(rand::random());
        self.0.lock().insert(client_id.clone(), secret.clone());
        Ticket {
            tickets: Arc::clone(self),
            client_id,
            secret,
        }
    }

    /// Takes a ticket: whether it is one that was not used before. Whoever shows a wrong one leaves the right one good.
    pub(crate) fn redeem(&self, client_id: &str, username: Option<&str>, password: Option<&[u8]>) -> bool {
        if username != Some(USERNAME) {
            return false;
        }
        let (mut tickets, password) = (self.0.lock(), password.unwrap_or_default());
        let known = tickets.get(client_id);
        let good = known.is_some_and(|Secret(secret)| bool::from(secret[..].ct_eq(password)));
        if good {
            tickets.remove(client_id);
        }
        good
    }
}

impl Ticket {
    /// What is shown as the password.
    pub(crate) fn password(&self) -> &[u8] {
        &self.secret.0
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tickets.0.lock().remove(&self.client_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once_and_for_its_client_only() {
        let tickets = Arc::<Tickets>::default();
        let (ticket, other) = (tickets.issue(), tickets.issue());
        let shown = Some(ticket.password());
        assert!(!tickets.redeem(&other.client_id, Some(USERNAME), shown));
        assert!(!tickets.redeem(&ticket.client_id, Some("alice"), shown));
        assert!(!tickets.redeem(&ticket.client_id, Some(USERNAME), None));
        assert!(tickets.redeem(&ticket.client_id, Some(USERNAME), shown));
        assert!(!tickets.redeem(&ticket.client_id, Some(USERNAME), shown));
        let (id, secret) = (other.client_id.clone(), other.password().to_vec());
        drop((ticket, other));
        assert!(!tickets.redeem(&id, Some(USERNAME), Some(&secret)));
        assert!(tickets.0.lock().is_empty());
    }
}
