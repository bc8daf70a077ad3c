//! Reading a stream in order without taking from it. Input: where to start. Output: its messages, each once, in order,
//! across restarts of the broker: the broker's consumer is a throw-away, the last sequence read is the truth.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::jetstream::{field, is_transient, number};
use crate::job::Delivery;
use crate::{Bus, BusError, Headers, JetStreamError, Message, StoredMessage, Subscription};

/// The broker forgets a consumer whose reader is gone after this.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// How long one pull waits at the broker.
const PULL_EXPIRES: Duration = Duration::from_secs(20);
/// A living pull gives a sign this often.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Pause before opening again after a failure that passes by itself.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
/// Messages asked for at once.
const PULL_BATCH: u64 = 256;

/// Where reading starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// After this sequence.
    After(u64),
    /// With the last message of each subject.
    LastPerSubject,
}

/// What is read.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub(crate) stream: String,
    pub(crate) filter: Option<String>,
    pub(crate) headers_only: bool,
    /// What to do when the stream is shorter than what was read: start over, or say so.
    pub(crate) start_over: bool,
}

/// A message and how many come after it.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) message: StoredMessage,
    pub(crate) pending: u64,
}

/// What reading brings.
#[derive(Debug)]
pub(crate) enum Step {
    /// A message.
    Read(Read),
    /// A consumer was opened with this many messages before it.
    Opened {
        /// Messages waiting.
        pending: u64,
    },
}

#[derive(Debug)]
struct Live {
    subscription: Subscription,
    reply: String,
    consumer: String,
    outstanding: u64,
    next_consumer_sequence: u64,
    last_sign: Instant,
}

/// An ordered reader.
#[derive(Debug)]
pub(crate) struct Cursor {
    bus: Bus,
    epoch: watch::Receiver<u64>,
    scope: Scope,
    start: Start,
    /// Last sequence read, 0 = none yet.
    seen: u64,
    live: Option<Live>,
}

impl Cursor {
    pub(crate) fn new(bus: &Bus, scope: Scope, start: Start) -> Self {
        let seen = match start {
            Start::After(sequence) => sequence,
            Start::LastPerSubject => 0,
        };
        Self {
            bus: bus.clone(),
            epoch: bus.epoch(),
            scope,
            start,
            seen,
            live: None,
        }
    }

    /// Last sequence read.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// The next message, or `None` at the deadline. Failures that pass by themselves are waited out. Cancel-safe.
    pub(crate) async fn next(&mut self, deadline: Instant) -> Result<Option<Step>, JetStreamError> {
        loop {
            if self.epoch.has_changed().unwrap_or(false) {
                self.epoch.mark_unchanged();
                self.drop_live();
            }
            if self.live.is_none() {
                match self.open(deadline).await {
                    Ok(Some(pending)) => return Ok(Some(Step::Opened { pending })),
                    Ok(None) => return Ok(None),
                    Err(error) if is_transient(&error) => {
                        tracing::debug!(stream = %self.scope.stream, %error, "stream not readable yet");
                        let resume = Instant::now() + REOPEN_PAUSE;
                        if resume >= deadline {
                            tokio::time::sleep_until(deadline).await;
                            return Ok(None);
                        }
                        tokio::time::sleep_until(resume).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            if self.pull().await.is_err() {
                self.drop_live();
                continue;
            }
            let Some(live) = &mut self.live else { continue };
            let silent_at = live.last_sign + HEARTBEAT * 2 + Duration::from_secs(1);
            tokio::select! {
                biased;
                message = live.subscription.next() => match message {
                    Some(message) => if let Some(read) = self.take(message) {
                        return Ok(Some(Step::Read(read)));
                    },
                    None => return Err(BusError::Closed.into()),
                },
                _ = self.epoch.changed() => self.epoch.mark_changed(),
                () = tokio::time::sleep_until(deadline) => return Ok(None),
                () = tokio::time::sleep_until(silent_at) => self.drop_live(),
            }
        }
    }

    /// Makes a consumer after the last message read; `None` when the deadline came first.
    async fn open(&mut self, deadline: Instant) -> Result<Option<u64>, JetStreamError> {
        let mut connected = self.bus.connected();
        match tokio::time::timeout_at(deadline, connected.wait_for(|up| *up)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(BusError::Closed.into()),
            Err(_) => return Ok(None),
        }
        self.check_not_shorter().await?;
        let inbox = self.bus.new_inbox();
        let subscription = self.bus.subscribe_unproved(&inbox, None).await?;
        // The inbox's last token is unique: good for a name too.
        let name = format!("read_{}", inbox.rsplit('.').next().unwrap_or_default());
        let operation = format!("CONSUMER.CREATE.{}.{name}", self.scope.stream);
        let answer = self.bus.api(&operation, Some(self.consumer_config(&name))).await?;
        field(&answer, "config", &operation)?;
        self.live = Some(Live {
            subscription,
            reply: inbox,
            consumer: name,
            outstanding: 0,
            next_consumer_sequence: 1,
            last_sign: Instant::now(),
        });
        Ok(Some(number(&answer, "num_pending")))
    }

    fn consumer_config(&self, name: &str) -> Value {
        let mut config = json!({
            "name": name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": u64::try_from(FORGET_AFTER.as_nanos()).unwrap_or_default(),
            "mem_storage": true,
            "num_replicas": 1,
            "headers_only": self.scope.headers_only,
        });
        match (self.start, self.seen) {
            (Start::LastPerSubject, 0) => config["deliver_policy"] = "last_per_subject".into(),
            (_, 0) => config["deliver_policy"] = "all".into(),
            (_, seen) => {
                config["deliver_policy"] = "by_start_sequence".into();
                config["opt_start_seq"] = (seen + 1).into();
            }
        }
        match &self.scope.filter {
            Some(filter) => config["filter_subjects"] = json!([filter]),
            // The broker wants a filter for the last message of each subject.
            None if config["deliver_policy"] == "last_per_subject" => config["filter_subjects"] = json!([">"]),
            None => {}
        }
        json!({ "stream_name": self.scope.stream, "config": config, "action": "create" })
    }

    /// A stream that ends before what was read from it was lost (memory) or replaced.
    async fn check_not_shorter(&mut self) -> Result<(), JetStreamError> {
        if self.seen == 0 {
            return Ok(());
        }
        let last_sequence = self.bus.stream_info(&self.scope.stream).await?.last_sequence;
        if last_sequence >= self.seen {
            return Ok(());
        }
        if self.scope.start_over {
            self.seen = 0;
            return Ok(());
        }
        let stream = self.scope.stream.clone();
        Err(JetStreamError::WentBack {
            stream,
            last_sequence,
            seen_sequence: self.seen,
        })
    }

    /// Asks for more when everything asked for has come.
    async fn pull(&mut self) -> Result<(), BusError> {
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        if live.outstanding > 0 {
            return Ok(());
        }
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.scope.stream, live.consumer);
        let (expires, heartbeat) = (PULL_EXPIRES.as_nanos(), HEARTBEAT.as_nanos());
        let payload = format!(r#"{{"batch":{PULL_BATCH},"expires":{expires},"idle_heartbeat":{heartbeat}}}"#);
        // Counted first: cancelled in between, the missing heartbeats show that nothing was asked.
        live.outstanding = PULL_BATCH;
        live.last_sign = Instant::now();
        let reply = live.reply.as_str().into();
        self.bus
            .send_in_time(subject.into(), Some(reply), Headers::new(), payload.into())
            .await
    }

    fn take(&mut self, message: Message) -> Option<Read> {
        let live = self.live.as_mut()?;
        live.last_sign = Instant::now();
        let Some(delivery) = message.reply.as_ref().and_then(Delivery::parse) else {
            match message.status() {
                Some(100) => {}
                Some(404 | 408) => live.outstanding = 0,
                // The consumer is gone, or the broker moved it: make another.
                _ => self.drop_live(),
            }
            return None;
        };
        if delivery.consumer() != live.consumer || delivery.consumer_sequence != live.next_consumer_sequence {
            // A message was dropped on the way: go back to the last one read.
            tracing::warn!(stream = %self.scope.stream, "gap while reading, reading again from the last message");
            self.drop_live();
            return None;
        }
        live.next_consumer_sequence += 1;
        live.outstanding = live.outstanding.saturating_sub(1);
        self.seen = delivery.stream_sequence;
        Some(Read {
            pending: delivery.pending,
            message: StoredMessage {
                sequence: delivery.stream_sequence,
                subject: message.subject.as_str().to_owned(),
                headers: message.headers,
                payload: message.payload,
                time: Some(delivery.published_at()),
            },
        })
    }

    fn drop_live(&mut self) {
        if let Some(live) = self.live.take() {
            // Best effort: the broker forgets it by itself as well.
            let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", self.scope.stream, live.consumer);
            self.bus.send_at_once(subject.into(), Bytes::new());
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.drop_live();
    }
}
