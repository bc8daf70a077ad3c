//! Load on the bare broker in a closed loop. Input: which loop, how many in flight. Output: one measured window.
//! One task does it all: a slot's answer sends the slot's next request, so the client adds as little as it can.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::http_load::Run;
use crate::nats_echo::{CORE_SUBJECT, QUEUE_SUBJECT, REPLY_HEADER};
use crate::probe::{Moment, Probe};
use crate::scenario::Times;
use crate::window::Recorder;

/// Payload in both directions, in bytes: about that of a small request.
const PAYLOAD: &[u8; 256] = &[b'x'; 256];
/// Longest wait for one answer.
const STALL: Duration = Duration::from_secs(10);

/// Which way a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// Request and reply.
    Core,
    /// Published to a memory stream without waiting for its acknowledgement (it is sent, as in the mesh), pulled, answered,
    /// acknowledged.
    Queue,
}

struct Slots<'a> {
    client: &'a Client,
    way: Loop,
    replies: Vec<Subject>,
    acknowledged: Subject,
    begun: Vec<Instant>,
    answers: Subscriber,
}

/// Runs load and measures one window.
///
/// # Errors
/// When an answer is missing.
pub async fn measure(client: &Client, way: Loop, in_flight: usize, times: Times, probe: &Probe) -> anyhow::Result<Run> {
    let prefix = client.new_inbox();
    let answers = client.subscribe(format!("{prefix}.*")).await?;
    let mut slots = Slots {
        client,
        way,
        replies: (0..in_flight).map(|slot| format!("{prefix}.{slot}").into()).collect(),
        acknowledged: format!("{prefix}.a").into(),
        begun: vec![Instant::now(); in_flight],
        answers,
    };
    for slot in 0..in_flight {
        slots.send(slot).await?;
    }
    let recorder = Recorder::new()?;
    let mut begin: Option<Moment> = None;
    let mut phase_ends = Instant::now() + times.warm_up;
    let run = loop {
        let slot = slots.next().await?;
        let now = Instant::now();
        recorder.note(200, now.duration_since(slots.begun[slot]));
        slots.send(slot).await?;
        if now < phase_ends {
            continue;
        }
        match &begin {
            None => {
                begin = Some(probe.now()?);
                recorder.open();
                phase_ends = now + times.window;
            }
            Some(begin) => {
                let seen = recorder.close();
                break Run {
                    seen,
                    cost: probe.since(begin)?,
                };
            }
        }
    };
    for _ in 0..in_flight {
        slots.next().await?;
    }
    Ok(run)
}

impl Slots<'_> {
    async fn send(&mut self, slot: usize) -> anyhow::Result<()> {
        let payload = Bytes::from_static(PAYLOAD);
        let reply = self.replies[slot].clone();
        self.begun[slot] = Instant::now();
        match self.way {
            Loop::Core => self.client.publish_with_reply(CORE_SUBJECT, reply, payload).await?,
            Loop::Queue => {
                let mut headers = HeaderMap::new();
                headers.insert(REPLY_HEADER, reply.as_str());
                let acknowledged = self.acknowledged.clone();
                self.client
                    .publish_with_reply_and_headers(QUEUE_SUBJECT, acknowledged, headers, payload)
                    .await?;
            }
        }
        Ok(())
    }

    /// The slot of the next answer.
    async fn next(&mut self) -> anyhow::Result<usize> {
        loop {
            let message = tokio::time::timeout(STALL, self.answers.next()).await;
            let message = message
                .context("the broker's answer is missing")?
                .context("the connection ended")?;
            if let Some(slot) = slot_of(&message)? {
                return Ok(slot);
            }
        }
    }
}

/// The slot that a message answers, `None` for the stream's acknowledgement.
fn slot_of(message: &Message) -> anyhow::Result<Option<usize>> {
    let name = message.subject.as_str().rsplit('.').next().unwrap_or_default();
    ensure!(message.status.is_none(), "nobody answers on the bare broker");
    if name == "a" {
        ensure!(
            message.payload.starts_with(br#"{"stream""#),
            "the stream refused: {:?}",
            message.payload
        );
        return Ok(None);
    }
    Ok(Some(name.parse().context("an answer to nobody")?))
}
