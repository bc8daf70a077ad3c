//! Answers for the shared tier. Input: answers as they are computed. Output: messages to the cache, each with all answers
//! of one shard and moment. The client has its answer by then; what is lost here is computed again one day.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bus::Headers;
use process::CancellationToken;
use schemas::cache::{CacheKey, CachePut, KeptAnswer};
use schemas::{subjects, wire};
use serde_bytes::ByteBuf;
use tokio::sync::mpsc;

use crate::Gateway;
use crate::answer::Answer;

/// Answers that may wait; beyond it they are not shared.
const QUEUE: usize = 4_096;
/// Bytes of answers that may wait, as the local tier counts them; the same.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// A message is sent when its bodies reach this, in bytes; well below what the broker takes.
const MESSAGE_BYTES: usize = 512 * 1024;

/// An answer on its way to the shared tier.
#[derive(Debug)]
pub(crate) struct Kept {
    key: CacheKey,
    answer: Arc<Answer>,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.answer.weight_bytes() as usize
    }
}

/// Answers that wait.
#[derive(Debug)]
pub(crate) struct Sharing {
    queue: mpsc::Sender<Kept>,
    bytes: AtomicUsize,
}

impl Sharing {
    /// Nothing waits yet; the second is for [`run`].
    pub(crate) fn new() -> (Self, mpsc::Receiver<Kept>) {
        let (queue, taken) = mpsc::channel(QUEUE);
        let bytes = AtomicUsize::new(0);
        (Self { queue, bytes }, taken)
    }

    fn offer(&self, kept: Kept) -> bool {
        let bytes = kept.bytes();
        // The sum may pass the bound by what a few requests add at the same moment.
        if self.bytes.load(Ordering::Relaxed) + bytes > QUEUE_BYTES {
            return false;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let taken = self.queue.try_send(kept).is_ok();
        if !taken {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }

    fn on_taken(&self, kept: &[Kept]) {
        let bytes = kept.iter().map(Kept::bytes).sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Gateway {
    /// Leaves an answer for the shared tier; never waits.
    pub(crate) fn share(&self, key: CacheKey, answer: Arc<Answer>) {
        if !self.sharing.offer(Kept { key, answer }) {
            self.metrics.unshared.inc();
        }
    }

    async fn put_shared(&self, kept: Vec<Kept>) {
        let mut shards: BTreeMap<u32, Vec<Kept>> = BTreeMap::new();
        for kept in kept {
            shards.entry(kept.key.shard()).or_default().push(kept);
        }
        for (shard, kept) in shards {
            let subject = subjects::cache_put(shard);
            let (mut answers, mut bytes) = (Vec::with_capacity(kept.len()), 0);
            for kept in kept {
                let Ok(body) = kept.answer.to_cached() else {
                    continue;
                };
                if bytes > 0 && bytes + body.len() > MESSAGE_BYTES {
                    self.send_shared(&subject, std::mem::take(&mut answers)).await;
                    bytes = 0;
                }
                bytes += body.len();
                answers.push(KeptAnswer {
                    key: kept.key,
                    body: ByteBuf::from(body),
                    ttl_ms: self.config.cache.ttl_ms,
                });
            }
            self.send_shared(&subject, answers).await;
        }
    }

    async fn send_shared(&self, subject: &str, answers: Vec<KeptAnswer>) {
        let Ok(payload) = wire::encode(&CachePut { answers }) else {
            return;
        };
        if let Err(error) = self.bus.publish(subject, Headers::new(), payload.into()).await {
            tracing::debug!(%error, "answers not put into the shared cache");
        }
    }
}

/// Hands answers on until the gateway stops, then what is left.
///
/// # Errors
/// Never; the signature is that of a task.
pub(crate) async fn run(
    gateway: Arc<Gateway>,
    mut queue: mpsc::Receiver<Kept>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let interval = Duration::from_millis(gateway.config.cache.share_interval_ms);
    loop {
        let mut kept = Vec::new();
        let stopping = tokio::select! {
            () = collect(&mut queue, &mut kept, interval) => false,
            () = stop.cancelled() => true,
        };
        if stopping {
            take_all(&mut queue, &mut kept);
        }
        gateway.sharing.on_taken(&kept);
        gateway.put_shared(kept).await;
        if stopping {
            return Ok(());
        }
    }
}

/// Waits for one answer, then for what comes until the interval is over.
async fn collect(queue: &mut mpsc::Receiver<Kept>, kept: &mut Vec<Kept>, interval: Duration) {
    if queue.recv_many(kept, QUEUE).await == 0 {
        // The gateway holds the other end, so this is its end.
        return std::future::pending().await;
    }
    // The queue is left alone meanwhile: waking for each answer would cost what collecting saves.
    tokio::time::sleep(interval).await;
    take_all(queue, kept);
}

fn take_all(queue: &mut mpsc::Receiver<Kept>, kept: &mut Vec<Kept>) {
    while kept.len() < QUEUE
        && let Ok(one) = queue.try_recv()
    {
        kept.push(one);
    }
}

#[cfg(test)]
mod tests {
    use schemas::reply::Usage;
    use schemas::vector::Vector;

    use super::*;
    use crate::received::Content;

    fn kept(values: usize) -> Kept {
        let key = CacheKey {
            tenant: "t".to_owned(),
            digest: ByteBuf::from(vec![0; 32]),
        };
        let content = Content::Vectors(vec![Vector(vec![0.0; values])]);
        let answer = Arc::new(Answer::new("m".to_owned(), content, Usage::default()));
        Kept { key, answer }
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_number_and_bytes() {
        let (sharing, mut queue) = Sharing::new();
        while sharing.offer(kept(1_000_000)) {}
        let bytes = sharing.bytes.load(Ordering::Relaxed);
        assert!(bytes > 0 && bytes <= QUEUE_BYTES, "{bytes}");
        let mut taken = Vec::new();
        collect(&mut queue, &mut taken, Duration::from_millis(1)).await;
        sharing.on_taken(&taken);
        assert_eq!(sharing.bytes.load(Ordering::Relaxed), 0);
        let count = std::iter::from_fn(|| sharing.offer(kept(1)).then_some(())).count();
        assert_eq!(count, QUEUE);
    }
}
