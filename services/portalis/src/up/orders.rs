//! Orders over the bus. Input: `Control` messages on the supervisor's subject. Output: a queue of orders, each with a way
//! back for its answer.

use anyhow::Context as _;
use bus::{Bus, Headers, ServeOptions, Subscription};
use process::Context;
use schemas::fleet::{Control, ControlReply};
use schemas::{subjects, wire};
use tokio::sync::{mpsc, oneshot};

/// Orders that wait for the supervisor; it answers from memory, so few ever do.
const MAX_WAITING_ORDERS: usize = 64;

/// One order that waits for its answer.
pub type Asked = (Control, oneshot::Sender<ControlReply>);

/// Listens until the shutdown; when this returns, the broker knows.
///
/// # Errors
/// When the broker does not take the subscription.
pub async fn listen(bus: &Bus, context: &Context) -> anyhow::Result<mpsc::Receiver<Asked>> {
    let (asker, asked) = mpsc::channel(MAX_WAITING_ORDERS);
    let subject = subjects::control(context.service, &context.instance);
    let orders = bus
        .subscribe(&subject, None)
        .await
        .context("cannot listen for orders")?;
    spawn_answering(bus, context, orders, asker);
    Ok(asked)
}

/// Takes orders from the bus to the supervisor and its answers back.
fn spawn_answering(bus: &Bus, context: &Context, orders: Subscription, asker: mpsc::Sender<Asked>) {
    let (bus, stop) = (bus.clone(), context.shutdown.soft().clone());
    context.tasks.spawn("orders", async move {
        let answer = |message: bus::Message| {
            let asker = asker.clone();
            async move {
                let reply = match wire::decode::<Control>(&message.payload) {
                    Err(error) => ControlReply::Refused(error.to_string()),
                    Ok(order) => ask(&asker, order).await,
                };
                let body = wire::encode(&reply).inspect_err(|error| tracing::error!(%error, "answer not encoded"));
                Some((Headers::new(), body.ok()?.into()))
            }
        };
        bus.serve(orders, ServeOptions::default(), stop, answer).await;
        Ok(())
    });
}

async fn ask(asker: &mpsc::Sender<Asked>, order: Control) -> ControlReply {
    let (sender, answer) = oneshot::channel();
    if asker.try_send((order, sender)).is_err() {
        return ControlReply::Refused("the supervisor is busy or stopping".to_owned());
    }
    answer
        .await
        .unwrap_or_else(|_| ControlReply::Refused("the supervisor is stopping".to_owned()))
}
