//! Orders to one instance. Input: `Control` messages on the instance's own subject. Output: `ControlReply`; a soft stop when
//! told to drain. Services with orders of their own (the local supervisor) listen themselves.

use bytes::Bytes;
use process::{CancellationToken, Context};
use schemas::fleet::{Control, ControlReply};
use schemas::headers::CONTENT_TYPE;
use schemas::subjects;
use schemas::wire::{self, Format};

use crate::{Bus, BusError, Headers, Message, ServeOptions, Subscription};

/// Orders that are heard; they wait until they are obeyed.
#[derive(Debug)]
pub struct Orders {
    bus: Bus,
    context: Context,
    subscription: Subscription,
}

/// Hears and obeys until `stop`; calls `malformed` for each order that cannot be read.
///
/// # Errors
/// When the subscription cannot be made, or ends before the stop.
pub async fn run<M>(bus: Bus, context: Context, malformed: M, stop: CancellationToken) -> anyhow::Result<()>
where
    M: Fn() + Send + Sync,
{
    listen(&bus, &context).await?.obey(malformed, stop).await
}

/// Hears from now on: for a service that calls itself ready only when every subject of its own is answered.
///
/// # Errors
/// As [`Bus::subscribe`].
pub async fn listen(bus: &Bus, context: &Context) -> Result<Orders, BusError> {
    let subject = subjects::control(context.service, &context.instance);
    Ok(Orders {
        subscription: bus.subscribe(&subject, None).await?,
        bus: bus.clone(),
        context: context.clone(),
    })
}

impl Orders {
    /// Obeys until `stop`; calls `malformed` for each order that cannot be read.
    ///
    /// # Errors
    /// When the subscription ends before the stop.
    pub async fn obey<M>(self, malformed: M, stop: CancellationToken) -> anyhow::Result<()>
    where
        M: Fn() + Send + Sync,
    {
        // One at a time: orders are rare, and their order matters.
        let options = ServeOptions {
            concurrency: 1,
            ..ServeOptions::default()
        };
        let context = &self.context;
        let obey = |message: Message| {
            let reply = obey(context, &malformed, &message);
            async move { reply }
        };
        self.bus.serve(self.subscription, options, stop.clone(), obey).await;
        anyhow::ensure!(stop.is_cancelled(), "orders ended before the service");
        Ok(())
    }
}

/// Carries one order out; the answer is in the format of the order.
fn obey(context: &Context, malformed: &impl Fn(), message: &Message) -> Option<(Headers, Bytes)> {
    let format = Format::from_content_type(message.headers.get(CONTENT_TYPE));
    let answered_in = *format.as_ref().unwrap_or(&Format::MessagePack);
    let reply = match format.and_then(|format| wire::decode_as(format, &message.payload)) {
        Ok(Control::Drain) => {
            tracing::info!("told to drain");
            context.shutdown.start();
            ControlReply::Accepted
        }
        Ok(_) => ControlReply::Refused(format!("{} takes only drain", context.service)),
        Err(error) => {
            malformed();
            tracing::warn!(%error, bytes = message.payload.len(), "order cannot be read");
            ControlReply::Refused("the order cannot be read".to_owned())
        }
    };
    let headers = match answered_in {
        Format::MessagePack => Headers::new(),
        Format::Json => Headers::new().with(CONTENT_TYPE, Format::JSON),
    };
    match wire::encode_as(answered_in, &reply) {
        Ok(payload) => Some((headers, payload.into())),
        Err(error) => {
            tracing::error!(%error, "reply to an order cannot be encoded");
            None
        }
    }
}
