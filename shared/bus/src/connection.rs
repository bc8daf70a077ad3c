//! The connection. Input: where the broker is. Output: `Bus`, a handle that fails fast while disconnected,
//! reconnects by itself for ever, and tells who asks how it is.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::{Credentials, Endpoint, endpoint};
use crate::link::{BusStats, EventHook, Link};
use crate::{BusConfig, BusError, Headers, Message, version};

/// Longest pause between two attempts to reconnect: a restarted broker is found within this.
const MAX_RECONNECT_DELAY_MS: u64 = 1_000;
/// One attempt to connect may take this long, in milliseconds: a host that drops packets must not eat the whole budget.
const ATTEMPT_TIMEOUT_MS: u64 = 2_000;
/// How often the client's own state is compared with the events seen, in milliseconds: it drops events when many come.
const RECONCILE_MS: u64 = 250;

pub(crate) struct Inner {
    pub(crate) client: async_nats::Client,
    pub(crate) link: Arc<Link>,
    /// Replies come to `<inbox>.<token>`.
    pub(crate) inbox: String,
    pub(crate) request_timeout: Duration,
    address: String,
    receiver: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.receiver.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

/// A connection to the broker. Cloning shares it.
#[derive(Clone)]
pub struct Bus {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus")
            .field("address", &self.inner.address)
            .field("stats", &self.stats())
            .finish()
    }
}

impl Bus {
    /// Connects, trying until `connect_timeout_ms`, and proves that the server is new enough and has JetStream.
    ///
    /// # Errors
    /// [`BusError::Connect`], [`BusError::Unauthorized`], [`BusError::ServerTooOld`], [`BusError::NoJetStream`],
    /// [`BusError::Url`]: each says what to do.
    pub async fn connect(config: &BusConfig, client_name: &str, hook: Option<EventHook>) -> Result<Self, BusError> {
        let target = endpoint(&config.url)?;
        let link = Arc::new(Link::new(hook));
        let deadline = Instant::now() + Duration::from_millis(config.connect_timeout_ms);
        let client = dial(config, client_name, &target, &link, deadline).await?;
        let reported = client.server_info().version;
        version::check(&reported, &target.address)?;
        if !client.server_info().jetstream {
            return Err(BusError::NoJetStream {
                address: target.address,
            });
        }
        let bus = Self::start(config, client, link, target.address).await?;
        // The connected event may still be on its way through the client's queue.
        let mut connected = bus.connected();
        tokio::time::timeout(bus.inner.request_timeout, connected.wait_for(|up| *up))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(BusError::Disconnected)?;
        bus.round_trip(bus.inner.request_timeout).await?;
        bus.require_jetstream().await?;
        tracing::debug!(address = %bus.inner.address, version = %reported, "connected to nats-server");
        Ok(bus)
    }

    async fn start(
        config: &BusConfig,
        client: async_nats::Client,
        link: Arc<Link>,
        address: String,
    ) -> Result<Self, BusError> {
        let inbox = client.new_inbox();
        let replies = client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(|_| BusError::InvalidSubject { subject: inbox.clone() })?;
        let receiver = tokio::spawn(receive_replies(
            client.clone(),
            replies,
            Arc::clone(&link),
            inbox.len() + 1,
        ));
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                link,
                inbox,
                request_timeout: config.request_timeout(),
                address,
                receiver: Mutex::new(Some(receiver)),
            }),
        })
    }

    /// The account may lack JetStream even where the server has it.
    async fn require_jetstream(&self) -> Result<(), BusError> {
        let no_jetstream = || BusError::NoJetStream {
            address: self.inner.address.clone(),
        };
        match self
            .request(
                "$JS.API.INFO",
                Headers::new(),
                bytes::Bytes::new(),
                self.inner.request_timeout,
            )
            .await
        {
            Ok(answer) => {
                let body: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
                if body.get("error").is_some() {
                    Err(no_jetstream())
                } else {
                    Ok(())
                }
            }
            Err(BusError::NoResponders { .. }) => Err(no_jetstream()),
            Err(error) => Err(error),
        }
    }

    /// Whether there is a connection now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.client.connection_state() == State::Connected
    }

    /// Follows the connection: `true` while there is one.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.inner.link.connected.subscribe()
    }

    /// Counts losses of the connection; a change means that everything in flight is gone.
    pub(crate) fn epoch(&self) -> watch::Receiver<u64> {
        self.inner.link.epoch.subscribe()
    }

    /// Host and port of the broker, without credentials.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// Largest payload the server takes, in bytes.
    #[must_use]
    pub fn max_payload_bytes(&self) -> usize {
        self.inner.client.max_payload()
    }

    /// Longest wait where a call names none.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        self.inner.request_timeout
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> BusStats {
        self.inner.link.stats()
    }

    /// Ends the connection after everything sent before has reached the server (or `timeout` has passed).
    /// Other clones of this handle get [`BusError::Disconnected`] for what is in flight.
    pub async fn close(self, timeout: Duration) {
        if let Err(error) = self.round_trip(timeout).await {
            tracing::warn!(%error, "bus closed without knowing that everything was sent");
        }
        let task = self
            .inner
            .receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            task.abort();
            // The only error is the abort itself.
            let _ = task.await;
        }
        self.inner.link.pending.fail_all();
    }
}

/// Tries to connect until the deadline; what cannot get better by waiting fails at once.
async fn dial(
    config: &BusConfig,
    client_name: &str,
    target: &Endpoint,
    link: &Arc<Link>,
    deadline: Instant,
) -> Result<async_nats::Client, BusError> {
    let mut attempt = 0;
    loop {
        let error = match options(config, client_name, target, link)
            .connect(&target.servers[..])
            .await
        {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        use async_nats::ConnectErrorKind as Kind;
        match error.kind() {
            Kind::Authentication | Kind::AuthorizationViolation => {
                return Err(BusError::Unauthorized {
                    address: target.address.clone(),
                });
            }
            Kind::ServerParse => {
                return Err(BusError::Url {
                    reason: error.to_string(),
                });
            }
            _ => {}
        }
        attempt += 1;
        let pause = reconnect_delay(attempt);
        if Instant::now() + pause >= deadline {
            return Err(BusError::Connect {
                address: target.address.clone(),
                waited_ms: config.connect_timeout_ms,
                reason: error.to_string(),
            });
        }
        tokio::time::sleep(pause).await;
    }
}

fn options(config: &BusConfig, client_name: &str, target: &Endpoint, link: &Arc<Link>) -> async_nats::ConnectOptions {
    let link = Arc::clone(link);
    let attempt_ms = config.connect_timeout_ms.clamp(1, ATTEMPT_TIMEOUT_MS);
    let options = async_nats::ConnectOptions::new()
        .name(client_name)
        .connection_timeout(Duration::from_millis(attempt_ms))
        .ping_interval(Duration::from_millis(config.ping_interval_ms.max(1)))
        .subscription_capacity(config.subscription_capacity.max(1))
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            link.on_event(&event);
            std::future::ready(())
        });
    match &target.credentials {
        Credentials::None => options,
        Credentials::Token(token) => options.token(token.clone()),
        Credentials::User { name, password } => options.user_and_password(name.clone(), password.clone()),
    }
}

/// Pause before an attempt: doubles from 10 ms to a second, and anywhere in its upper half, so that a fleet does not
/// come back in step.
fn reconnect_delay(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(7);
    let most = (10_u64 << doublings).min(MAX_RECONNECT_DELAY_MS);
    // Each `RandomState` is seeded anew: enough for jitter, no dependency.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    Duration::from_millis(most / 2 + random % (most / 2 + 1))
}

/// Hands answers to the requests that wait for them; lives as long as the bus.
async fn receive_replies(
    client: async_nats::Client,
    mut replies: async_nats::Subscriber,
    link: Arc<Link>,
    prefix_length: usize,
) {
    let mut reconcile = tokio::time::interval(Duration::from_millis(RECONCILE_MS));
    reconcile.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut differed = false;
    loop {
        tokio::select! {
            biased;
            reply = replies.next() => {
                let Some(reply) = reply else {
                    link.on_disconnected();
                    return;
                };
                let token = reply.subject.as_str().get(prefix_length..).and_then(|hex| u64::from_str_radix(hex, 16).ok());
                let delivered = token.is_some_and(|token| link.pending.deliver(token, Message::from(reply)));
                if !delivered {
                    link.on_late_answer();
                }
            }
            _ = reconcile.tick() => {
                let up = client.connection_state() == State::Connected;
                let differs = up != *link.connected.borrow();
                // Twice in a row: the event was lost, not just late.
                if differs && differed {
                    if up { link.on_connected() } else { link.on_disconnected() }
                }
                differed = differs;
            }
        }
    }
}

/// Runs a future that is ready at once, or gives it up: for `Drop`, which cannot wait.
pub(crate) fn at_once<F: Future>(future: F) -> Option<F::Output> {
    tokio::task::unconstrained(future).now_or_never()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_no_further() {
        for attempt in 0..100 {
            let pause = reconnect_delay(attempt);
            assert!(pause >= Duration::from_millis(5), "{attempt}: {pause:?}");
            assert!(
                pause <= Duration::from_millis(MAX_RECONNECT_DELAY_MS),
                "{attempt}: {pause:?}"
            );
        }
        assert!(reconnect_delay(1) <= Duration::from_millis(10));
        assert!(reconnect_delay(50) >= Duration::from_millis(MAX_RECONNECT_DELAY_MS / 2));
    }
}
