//! Computing a batch. Input: token ids. Output: vectors or scores and the time they took, off the event loop; a panic of the engine
//! is an error of the batch, not of the process.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use engine::{EmbeddingModel, Embeddings, TokenIds};

use crate::config::EchoConfig;
use crate::encoder::Encoder;

/// One text of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Whose.
    pub key: u64,
    /// Which of its inputs.
    pub index: usize,
    /// Its length.
    pub tokens: u64,
}

/// What came of a batch.
#[derive(Debug)]
pub struct Computed {
    /// The texts.
    pub items: Vec<Item>,
    /// Their vectors or scores in the same order, or why there are none.
    pub result: Result<Embeddings, String>,
    /// How long the device was busy.
    pub busy: Duration,
}

/// A batch that is being computed.
pub type Running = Pin<Box<dyn Future<Output = Computed> + Send>>;

/// What computes.
pub struct Device {
    model: Encoder,
    echo: Option<Echo>,
}

struct Echo {
    batch: Duration,
    abort_on: Option<Vec<u32>>,
}

impl Device {
    /// A device for a real model.
    #[must_use]
    pub(crate) fn real(model: Encoder) -> Self {
        Self { model, echo: None }
    }

    /// A device for the echo engine, with its drills.
    #[must_use]
    pub fn echo(model: EmbeddingModel, config: &EchoConfig) -> Self {
        let tokens = |text: &str| model.tokenize(engine::Input::Text(text), engine::Truncate::None).ok();
        let abort_on = tokens(&config.abort_on).map(TokenIds::into_vec);
        let echo = Echo {
            batch: Duration::from_micros(config.batch_us),
            abort_on,
        };
        Self {
            model: Encoder::Embedding(model),
            echo: Some(echo),
        }
    }

    /// The model.
    #[must_use]
    pub(crate) fn model(&self) -> &Encoder {
        &self.model
    }

    /// Whether a batch takes no time worth leaving the event loop for.
    #[must_use]
    pub fn is_instant(&self) -> bool {
        self.echo.as_ref().is_some_and(|echo| echo.batch.is_zero())
    }

    /// Computes at once, on this thread; for instant devices.
    #[must_use]
    pub fn compute_now(&self, items: Vec<Item>, tokens: &[TokenIds]) -> Computed {
        if self.is_poisoned(tokens) {
            abort();
        }
        let begun = Instant::now();
        let result = self.model.compute(tokens).map_err(|error| explain(&error));
        Computed {
            items,
            result,
            busy: begun.elapsed(),
        }
    }

    /// Computes off the event loop.
    #[must_use]
    pub fn compute(&self, items: Vec<Item>, tokens: Vec<TokenIds>) -> Running {
        let model = self.model.clone();
        let simulated = self.echo.as_ref().map(|echo| echo.batch);
        let is_poisoned = self.is_poisoned(&tokens);
        Box::pin(async move {
            let begun = Instant::now();
            if let Some(batch) = simulated {
                tokio::time::sleep(batch).await; // Simulated device time, see default.toml.
            }
            if is_poisoned {
                abort(); // Here a real engine would: while it computes.
            }
            let joined =
                tokio::task::spawn_blocking(move || model.compute(&tokens).map_err(|error| explain(&error))).await;
            let result = joined.unwrap_or_else(|error| Err(format!("the engine panicked: {error}")));
            Computed {
                items,
                result,
                busy: begun.elapsed(),
            }
        })
    }

    /// Whether a batch holds the text that kills its worker in drills.
    fn is_poisoned(&self, tokens: &[TokenIds]) -> bool {
        let poison = self.echo.as_ref().and_then(|echo| echo.abort_on.as_ref());
        poison.is_some_and(|poison| tokens.iter().any(|ids| ids.as_slice() == poison.as_slice()))
    }
}

/// Plays a message that kills its worker, see `echo.abort_on` in default.toml.
fn abort() -> ! {
    tracing::error!("echo engine met the text of echo.abort_on, aborting as asked");
    std::process::abort()
}

/// An error with its causes, in one line.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
