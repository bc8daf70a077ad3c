//! Logs of this process: filter and format in, structured lines on standard error out; panics become log lines too.

use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;

use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::LogFormat;

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The directives cannot be read.
    #[error("process.log = \"{filter}\" is not a list of log directives such as \"info,gateway=debug\"")]
    Filter {
        /// The directives.
        filter: String,
        /// What is wrong with them.
        #[source]
        source: ParseError,
    },
    /// It runs already in this process.
    #[error("logging is already set up in this process")]
    AlreadySet(#[source] TryInitError),
}

/// Starts logging to standard error and takes over the reporting of panics; once per process.
///
/// # Errors
/// When the filter cannot be read or logging runs already.
pub fn init(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    init_to(filter, format, io::stderr().is_terminal(), io::stderr)
}

/// The same to another place, such as a file behind a mutex; with colours only where `ansi` says so.
///
/// # Errors
/// See [`init`].
pub fn init_to<W>(filter: &str, format: LogFormat, ansi: bool, writer: W) -> Result<(), TelemetryError>
where
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let directives = EnvFilter::builder().parse(filter);
    let filter = directives.map_err(|source| TelemetryError::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    let lines = fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => registry.with(lines.with_ansi(ansi)).try_init(),
        LogFormat::Json => registry
            .with(lines.json().flatten_event(true).with_span_list(false))
            .try_init(),
    };
    started.map_err(TelemetryError::AlreadySet)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// One line instead of the standard hook's several, so that a collector keeps it together.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let reason = panic.payload_as_str().unwrap_or("a panic without a text");
    tracing::error!(reason, location, thread, "panicked");
}
