//! Orders to this instance. Input: [`Control`] messages. Output: [`ControlReply`], and a soft stop when told to drain.

use bus::Message;
use process::Context;
use schemas::fleet::{Control, ControlReply};

use crate::answer::{Answer, read, unreadable, write};
use crate::metrics::{Kind, Metrics, Outcome};

/// Carries out one order.
pub(crate) fn obey(message: &Message, context: &Context, metrics: &Metrics) -> Answer {
    let began_us = context.clock.monotonic_us();
    let (reply, outcome) = match read(message) {
        Ok(Control::Drain) => {
            tracing::info!("told to drain");
            context.shutdown.start();
            (ControlReply::Accepted, Outcome::Granted)
        }
        Ok(_) => {
            let reason = "auth takes only drain".to_owned();
            (ControlReply::Refused(reason), Outcome::Denied)
        }
        Err(error) => {
            let failure = unreadable(message, &error);
            (ControlReply::Refused(failure.message), Outcome::Malformed)
        }
    };
    let elapsed_us = context.clock.monotonic_us().saturating_sub(began_us);
    metrics.done(Kind::Control, outcome, elapsed_us);
    write(message, &reply)
}
