//! The other end of the broker baselines, in a process of its own as the worker is. Input: messages on two subjects.
//! Output: the same payload back; from the queue also an acknowledgement. The client library directly, nothing of ours.

use std::io::Write;

use anyhow::{Context, bail};
use async_nats::{Client, Message, Subject};
use bus::{Bus, BusConfig};
use bytes::Bytes;
use futures_util::StreamExt;
use schemas::streams::{Ack, ConsumerSpec, Retention, Storage, StreamSpec};

use crate::nats_server::connect;

/// Environment variable with the broker's URL: it holds a password, which command lines show to everybody.
pub const URL_VARIABLE: &str = "LOADGEN_NATS_URL";
/// Subject of the request-reply baseline.
pub const CORE_SUBJECT: &str = "loadgen.core";
/// Subject of the queue baseline.
pub const QUEUE_SUBJECT: &str = "loadgen.queue";
/// Header that says where the answer of queued work goes; the message's own reply subject is the broker's there.
pub const REPLY_HEADER: &str = "Reply";

const STREAM: &str = "LOADGEN";
const CONSUMER: &str = "worker";
/// Credits at the broker: twice what 256 requests in flight need; refilled when half of them are used.
const CREDITS: u64 = 512;
/// Time a pull stays open, in nanoseconds.
const EXPIRES_NS: u64 = 30_000_000_000;
/// Where the broker takes pulls of our consumer.
const NEXT: &str = "$JS.API.CONSUMER.MSG.NEXT.LOADGEN.worker";

/// Answers until it is killed; says `ready` in one line.
///
/// # Errors
/// When the broker is not there.
pub async fn serve() -> anyhow::Result<()> {
    let url = std::env::var(URL_VARIABLE).with_context(|| format!("{URL_VARIABLE} is not set"))?;
    make_queue(&url).await?;
    let client = connect(&url).await?;
    let mut requests = client.subscribe(CORE_SUBJECT).await?;
    let inbox = client.new_inbox();
    let mut jobs = client.subscribe(inbox.clone()).await?;
    let mut pulls = Pulls {
        client: client.clone(),
        inbox: inbox.into(),
        credits: 0,
    };
    pulls.refill().await?;
    client.flush().await?;
    writeln!(std::io::stdout(), "ready")?;
    loop {
        tokio::select! {
            Some(request) = requests.next() => {
                if let Some(reply) = request.reply {
                    client.publish(reply, request.payload).await?;
                }
            }
            Some(job) = jobs.next() => pulls.take(job).await?,
            else => bail!("the connection ended"),
        }
    }
}

/// A queue like that of the mesh: in memory, removed when acknowledged, one durable pull consumer.
async fn make_queue(url: &str) -> anyhow::Result<()> {
    let bus = Bus::connect(&BusConfig::for_url(url), "loadgen", None).await?;
    let like_work = schemas::streams::work("loadgen", i64::from(u16::MAX));
    let stream = StreamSpec {
        name: STREAM.to_owned(),
        subjects: vec![QUEUE_SUBJECT.to_owned()],
        retention: Retention::WorkQueue,
        storage: Storage::Memory,
        ..like_work
    };
    let consumer = ConsumerSpec {
        stream: STREAM.to_owned(),
        name: CONSUMER.to_owned(),
        filter_subjects: vec![QUEUE_SUBJECT.to_owned()],
        ack: Ack::Explicit,
        ack_wait_ms: schemas::streams::WORK_ACK_WAIT_MS,
        max_deliver: None,
        max_ack_pending: 20_000,
        max_waiting: 64,
        memory: true,
        deliver_from_sequence: None,
        inactive_threshold_ms: None,
    };
    bus.ensure_stream(&stream).await?;
    bus.ensure_consumer(&consumer).await?;
    Ok(())
}

struct Pulls {
    client: Client,
    inbox: Subject,
    credits: u64,
}

impl Pulls {
    async fn take(&mut self, job: Message) -> anyhow::Result<()> {
        match job.reply {
            Some(ack) => {
                self.credits = self.credits.saturating_sub(1);
                let headers = job.headers.as_ref();
                let reply = headers
                    .and_then(|headers| headers.get(REPLY_HEADER))
                    .context("work without a reply header")?;
                self.client.publish(reply.as_str().to_owned(), job.payload).await?;
                self.client.publish(ack, Bytes::from_static(b"+ACK")).await?;
            }
            // A pull has ended; the broker says what is left of it.
            None => {
                let left = job
                    .headers
                    .as_ref()
                    .and_then(|headers| headers.get("Nats-Pending-Messages"));
                let left = left.and_then(|left| left.as_str().parse().ok()).unwrap_or(0);
                self.credits = self.credits.saturating_sub(left);
            }
        }
        self.refill().await
    }

    async fn refill(&mut self) -> anyhow::Result<()> {
        if self.credits > CREDITS / 2 {
            return Ok(());
        }
        let batch = CREDITS - self.credits;
        self.credits = CREDITS;
        let ask = format!(r#"{{"batch":{batch},"expires":{EXPIRES_NS}}}"#);
        self.client
            .publish_with_reply(NEXT, self.inbox.clone(), ask.into())
            .await?;
        Ok(())
    }
}
