//! Orders to one instance. Input: `Control` messages on the instance's own subject. Output: `ControlReply`; a soft stop when
//! told to drain. Services with orders of their own (the local supervisor) listen themselves.

use bytes::Bytes;
use process::{CancellationToken, Context};
use schemas::fleet::{Control, ControlReply};
use schemas::{subjects, wire};

use crate::{Bus, Headers, Message, ServeOptions};

/// Obeys until `stop`; calls `malformed` for each order that cannot be read.
///
/// # Errors
/// When the subscription cannot be made.
pub async fn run<M>(bus: Bus, context: Context, malformed: M, stop: CancellationToken) -> anyhow::Result<()>
where
    M: Fn() + Send + Sync,
{
    let subject = subjects::control(context.service, &context.instance);
    let orders = bus.subscribe(&subject, None).await?;
    // One at a time: orders are rare, and their order matters.
    let options = ServeOptions {
        concurrency: 1,
        ..ServeOptions::default()
    };
    let obey = |message: Message| {
        let reply = obey(&context, &malformed, &message);
        async move { reply }
    };
    bus.serve(orders, options, stop, obey).await;
    Ok(())
}

fn obey(context: &Context, malformed: &impl Fn(), message: &Message) -> Option<(Headers, Bytes)> {
    let reply = match wire::decode::<Control>(&message.payload) {
        Ok(Control::Drain) => {
            tracing::info!("told to drain");
            context.shutdown.start();
            ControlReply::Accepted
        }
        Ok(_) => ControlReply::Refused(format!("{} takes only drain", context.service)),
        Err(error) => {
            malformed();
            tracing::warn!(%error, "order cannot be read");
            ControlReply::Refused("the order cannot be read".to_owned())
        }
    };
    match wire::encode(&reply) {
        Ok(payload) => Some((Headers::new(), payload.into())),
        Err(error) => {
            tracing::error!(%error, "reply to an order cannot be encoded");
            None
        }
    }
}
