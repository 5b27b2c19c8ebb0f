//! Waiting for a time that there may be none of.

use tokio::time::{Instant, sleep_until};

/// Resolves then; never without a time. For a branch of a `select!`.
pub async fn due(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_time_comes_and_none_does_not() {
        let began = Instant::now();
        due(Some(began + Duration::from_secs(5))).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let never = tokio::time::timeout(Duration::from_secs(3600), due(None)).await;
        assert!(never.is_err());
    }
}
