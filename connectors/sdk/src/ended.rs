//! How a link's tasks tell that the link ended, and why.

use tokio::sync::watch;

use crate::contract::LinkError;

/// Tells why a link ended. When it is dropped without that, only the link itself can say.
#[derive(Debug)]
pub struct EndSender(watch::Sender<Option<LinkError>>);

impl EndSender {
    /// Ends the link.
    pub fn send(&self, why: LinkError) {
        self.0.send_replace(Some(why));
    }
}

/// Waits for a link's end, any number of times: what [`Link::ended`](crate::Link::ended) answers with.
#[derive(Clone, Debug)]
pub struct Ended(watch::Receiver<Option<LinkError>>);

impl Ended {
    /// A link that has not ended, and what ends it.
    #[must_use]
    pub fn channel() -> (EndSender, Self) {
        let (sender, ended) = watch::channel(None);
        (EndSender(sender), Self(ended))
    }

    /// Resolves when the link ended; `None` when nobody is left who could tell why.
    pub async fn why(&self) -> Option<LinkError> {
        let mut ended = self.0.clone();
        let why = ended.wait_for(Option::is_some).await.ok()?;
        why.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::LinkErrorClass;

    #[tokio::test]
    async fn the_reason_is_told_each_time_and_outlives_who_told_it() {
        let (end, ended) = Ended::channel();
        let why = LinkError::new(LinkErrorClass::Unreachable, "no answer");
        end.send(why.clone());
        drop(end);
        assert_eq!(ended.why().await, Some(why.clone()));
        assert_eq!(ended.why().await, Some(why));

        let (end, ended) = Ended::channel();
        drop(end);
        assert_eq!(ended.why().await, None);
    }
}
