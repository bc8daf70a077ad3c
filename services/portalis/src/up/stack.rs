//! The services of this process. Input: their settings and the broker's address. Output: running services, each with a
//! context of its own, that can be stopped one by one; and word of one that ends by itself.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use process::{Context, OpsServer, Service};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use toml::Value;

use super::settings::Settings;

/// After a forced stop: time for tasks to see it.
const FORCED_GRACE: Duration = Duration::from_millis(500);
/// Services that may end unasked before anyone looks: all of them.
const MAX_ENDS: usize = 16;

/// One running service.
#[derive(Debug)]
struct Running {
    context: Context,
    /// Ends when the service and all of its tasks have ended.
    task: JoinHandle<()>,
}

/// The services of this process.
#[derive(Debug)]
pub struct Stack {
    running: Vec<Running>,
    failures: (mpsc::Sender<anyhow::Error>, mpsc::Receiver<anyhow::Error>),
}

impl Default for Stack {
    fn default() -> Self {
        Self {
            running: Vec::new(),
            failures: mpsc::channel(MAX_ENDS),
        }
    }
}

impl Stack {
    /// Starts a service; it is at work when its health says so.
    ///
    /// # Errors
    /// When its configuration does not fit.
    pub fn launch<S: Service>(&mut self, settings: &Settings, needs: &[(&str, Value)]) -> anyhow::Result<()> {
        let loaded = settings.load::<S>(needs)?;
        let context = Context::new(S::NAME);
        let serving = S::serve(loaded.service, context.clone());
        self.run(context, serving);
        Ok(())
    }

    /// Takes over something that runs like a service.
    pub fn run<F>(&mut self, context: Context, serving: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let failures = self.failures.0.clone();
        let task = tokio::spawn({
            let context = context.clone();
            async move {
                if let Err(error) = serve_to_the_end(&context, serving).await {
                    let error = error.context(format!("{} failed", context.service));
                    tracing::error!(
                        service = context.service,
                        error = format!("{error:#}"),
                        "service failed"
                    );
                    // Full means that others failed before; the first is the one that is reported.
                    let _ = failures.try_send(error);
                }
            }
        });
        self.running.push(Running { context, task });
    }

    /// The contexts of all services, for health and metrics.
    #[must_use]
    pub fn contexts(&self) -> Vec<Context> {
        self.running.iter().map(|running| running.context.clone()).collect()
    }

    /// Waits for a service to fail. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.failures.1.recv().await {
            Some(error) => error,
            // This struct holds a sender.
            None => std::future::pending().await,
        }
    }

    /// A failure that has happened already.
    pub fn take_failure(&mut self) -> Option<anyhow::Error> {
        self.failures.1.try_recv().ok()
    }

    /// Stops some services at once and waits for their end; `forced` cuts the wait short.
    pub async fn stop(&mut self, names: &[&str], forced: &CancellationToken) {
        let (stopping, kept): (Vec<_>, Vec<_>) = self
            .running
            .drain(..)
            .partition(|running| names.contains(&running.context.service));
        self.running = kept;
        stopping.iter().for_each(|running| running.context.shutdown.start());
        for mut running in stopping {
            let ended = tokio::select! {
                biased;
                _ = &mut running.task => true,
                () = forced.cancelled() => false,
            };
            if !ended {
                running.context.shutdown.force();
                // It aborts by itself after the grace.
                let _ = running.task.await;
            }
            tracing::debug!(service = running.context.service, "stopped");
        }
    }

    /// Stops all that still run.
    pub async fn stop_all(&mut self, forced: &CancellationToken) {
        let names: Vec<&'static str> = self.running.iter().map(|running| running.context.service).collect();
        self.stop(&names, forced).await;
    }
}

/// Runs a service to its end, its tasks included; a forced stop ends both soon after.
async fn serve_to_the_end<F>(context: &Context, serving: F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    // A task of its own, so that a panic is an outcome like any other.
    let mut serving = tokio::spawn(serving);
    let outcome = tokio::select! {
        biased;
        served = &mut serving => served,
        () = forced(context) => {
            serving.abort();
            serving.await
        }
    };
    let asked = context.shutdown.is_stopping();
    context.shutdown.start();
    tokio::select! {
        biased;
        _ = context.tasks.close_and_wait(Duration::MAX) => {}
        () = forced(context) => {
            let stuck = context.tasks.running();
            if !stuck.is_empty() {
                bail!("{} did not end in time", stuck.join(", "));
            }
        }
    }
    match outcome {
        Ok(served) => served?,
        Err(error) if error.is_cancelled() => bail!("it did not stop in time"),
        Err(_) => bail!("it panicked"),
    }
    if context.tasks.failed() {
        bail!("one of its tasks failed, see the log");
    }
    if asked {
        Ok(())
    } else {
        Err(anyhow!("it ended without being asked to"))
    }
}

async fn forced(context: &Context) {
    context.shutdown.forced().await;
    tokio::time::sleep(FORCED_GRACE).await;
}

/// Health and metrics of all services on one port.
#[derive(Debug)]
pub struct Ops {
    /// Where they are served.
    pub address: std::net::SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), process::OpsError>>,
}

impl Ops {
    /// Takes the port.
    ///
    /// # Errors
    /// When it is taken.
    pub async fn bind(port: u16) -> anyhow::Result<OpsServer> {
        OpsServer::bind(&format!("127.0.0.1:{port}")).await.with_context(|| {
            format!("port {port} for health and metrics cannot be had: choose another with --ops-port")
        })
    }

    /// Serves until stopped.
    #[must_use]
    pub fn serve(server: OpsServer, contexts: Vec<Context>) -> Self {
        let stop = CancellationToken::new();
        Self {
            address: server.address(),
            task: tokio::spawn(server.serve(contexts, stop.clone())),
            stop,
        }
    }

    /// Stops; a client that holds its connection open is cut off.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(FORCED_GRACE, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn polite(stack: &mut Stack, name: &'static str) -> Context {
        let context = Context::new(name);
        let shutdown = context.shutdown.clone();
        stack.run(context.clone(), async move {
            shutdown.stopping().await;
            Ok(())
        });
        context
    }

    #[tokio::test]
    async fn services_stop_one_by_one() {
        let mut stack = Stack::default();
        let (first, second) = (polite(&mut stack, "first"), polite(&mut stack, "second"));
        let never = CancellationToken::new();
        tokio::time::timeout(LIMIT, stack.stop(&["first"], &never))
            .await
            .unwrap();
        assert!(first.shutdown.is_stopping() && !second.shutdown.is_stopping());
        assert_eq!(stack.contexts().len(), 1);
        tokio::time::timeout(LIMIT, stack.stop_all(&never)).await.unwrap();
        assert!(stack.contexts().is_empty() && stack.take_failure().is_none());
    }

    #[tokio::test]
    async fn a_service_that_ends_or_panics_is_reported_with_its_name() {
        for (fails, expected) in [
            (false, "broken failed: it ended without being asked to"),
            (true, "broken failed: it panicked"),
        ] {
            let mut stack = Stack::default();
            stack.run(Context::new("broken"), async move {
                assert!(!fails, "this panic is part of the test");
                Ok(())
            });
            let error = tokio::time::timeout(LIMIT, stack.failed()).await.unwrap();
            assert_eq!(format!("{error:#}"), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn force_ends_a_service_that_hangs() {
        let mut stack = Stack::default();
        let context = Context::new("stuck");
        context.tasks.spawn("also stuck", std::future::pending());
        stack.run(context, std::future::pending());
        let forced = CancellationToken::new();
        forced.cancel();
        tokio::time::timeout(LIMIT, stack.stop_all(&forced)).await.unwrap();
        assert!(stack.take_failure().unwrap().to_string().contains("stuck failed"));
    }
}
