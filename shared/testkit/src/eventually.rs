//! Waiting for a condition. Input: what is awaited, the longest wait, a check. Output: returns when it holds.

use std::time::Duration;

use tokio::time::Instant;

/// How often the check runs; short against anything a test waits for.
const EVERY: Duration = Duration::from_millis(5);

/// Waits until `check` says yes; fails the test with `what` when `deadline` has passed. The deadline is a limit for a
/// broken build, not a measurement: make it generous.
pub async fn eventually<C, F>(what: &str, deadline: Duration, mut check: C)
where
    C: FnMut() -> F,
    F: Future<Output = bool>,
{
    let ends_at = Instant::now() + deadline;
    while !check().await {
        if Instant::now() >= ends_at {
            crate::fail(&format!("not within {deadline:?}: {what}"));
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn returns_as_soon_as_it_holds() {
        let mut left = 3;
        eventually("counts down", Duration::from_secs(10), || {
            left -= 1;
            std::future::ready(left == 0)
        })
        .await;
        assert_eq!(left, 0);
    }

    #[tokio::test]
    #[should_panic(expected = "the moon is full")]
    async fn fails_with_what_was_awaited() {
        eventually("the moon is full", Duration::from_millis(1), || {
            std::future::ready(false)
        })
        .await;
    }
}
