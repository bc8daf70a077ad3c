//! Configuration: compiled-in defaults, a file, `PORTALIS__SECTION__KEY` variables and flags in; the typed configuration out, or an error that names key and origin.

mod error;
mod merge;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use self::error::key_error;
pub use self::error::{ConfigError, Origin};
use self::merge::{Merge, Setting};
use crate::redact;
use crate::run::Service;

/// What a variable for us begins with: double underscores, because Kubernetes injects `PORTALIS_…` names of its own.
const VARIABLE_PREFIX: &str = "PORTALIS__";
/// The section of this crate; every service has it.
const PROCESS_SECTION: &str = "process";
/// The defaults of that section.
const PROCESS_DEFAULTS: &str = include_str!("../default.toml");

/// The section `[process]`, the same for every service; see this crate's `default.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessConfig {
    /// Where health and metrics are served, HOST:PORT; empty for none.
    pub ops_address: String,
    /// Log directives.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Time from the soft to the hard stop in milliseconds.
    pub drain_ms: u64,
    /// Threads for asynchronous work; 0 is one per core.
    pub worker_threads: usize,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A complete configuration.
#[derive(Debug)]
pub struct Loaded<C> {
    /// The section `[process]`.
    pub process: ProcessConfig,
    /// The rest.
    pub service: C,
    /// What was ignored, for the debug log.
    pub notes: Vec<String>,
    merged: Table,
}

impl<C> Loaded<C> {
    /// Everything as TOML, secrets replaced.
    ///
    /// # Errors
    /// When a value has no form in TOML.
    pub fn redacted(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(&redact::table(&self.merged)).map_err(ConfigError::Print)
    }
}

/// What comes on top of a service's defaults: first the file, then variables, then flags.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    file: Option<(PathBuf, Table)>,
    variables: Vec<(String, Vec<String>, String)>,
    flags: Vec<(Vec<String>, Setting)>,
}

impl Layers {
    /// Nothing on top.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a TOML file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(mut self, path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::ReadFile {
            path: path.to_owned(),
            source,
        })?;
        let parsed = text.parse::<Table>().map_err(|error| ConfigError::ParseFile {
            path: path.to_owned(),
            at_byte: error.span().map_or(0, |span| span.start),
            reason: error.message().to_owned(),
        });
        self.file = Some((path.to_owned(), parsed?));
        Ok(self)
    }

    /// Adds what was read from a file already, such as one service's part of it; replaces a file added before.
    #[must_use]
    pub fn table(mut self, path: &Path, table: Table) -> Self {
        self.file = Some((path.to_owned(), table));
        self
    }

    /// Adds the variables of this process; the only place that reads them.
    ///
    /// # Errors
    /// When one that is meant for us cannot be read.
    pub fn real_environment(self) -> Result<Self, ConfigError> {
        self.environment(env::vars_os())
    }

    /// Adds those of the variables that are meant for us.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn environment(
        mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            let Some(key) = name.strip_prefix(VARIABLE_PREFIX) else {
                continue;
            };
            let path: Vec<String> = key.to_ascii_lowercase().split("__").map(str::to_owned).collect();
            match value.into_string() {
                Ok(value) if path.iter().all(|part| !part.is_empty()) => self.variables.push((name, path, value)),
                _ => return Err(ConfigError::Variable { name }),
            }
        }
        // The system's order is arbitrary; a section set as a whole must come before its keys.
        self.variables.sort();
        Ok(self)
    }

    /// Adds a flag, `section.key=value`.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn assign(mut self, assignment: &str) -> Result<Self, ConfigError> {
        // Without the part behind the equals sign, which may be secret.
        let malformed = |key: &str| ConfigError::Flag { key: key.to_owned() };
        let (key, value) = assignment.split_once('=').ok_or_else(|| malformed(assignment))?;
        let path = key_path(key).ok_or_else(|| malformed(key))?;
        self.flags.push((path, Setting::Text(value.to_owned())));
        Ok(self)
    }

    /// Adds a value under a key, `section.key`, as strong as a flag.
    ///
    /// # Errors
    /// When the key has an empty part.
    pub fn set(mut self, key: &str, value: Value) -> Result<Self, ConfigError> {
        let path = key_path(key).ok_or_else(|| ConfigError::Flag { key: key.to_owned() })?;
        self.flags.push((path, Setting::Value(value)));
        Ok(self)
    }

    /// Puts the layers on the defaults of a service and checks the result.
    ///
    /// # Errors
    /// When a key is unknown or a value does not fit.
    pub fn load<S: Service>(&self) -> Result<Loaded<S::Config>, ConfigError> {
        self.load_on(S::NAME, S::DEFAULT_CONFIG)
    }

    fn load_on<C: DeserializeOwned>(&self, service: &'static str, defaults: &str) -> Result<Loaded<C>, ConfigError> {
        let parse = |text: &str| {
            text.parse::<Table>().map_err(|source| ConfigError::Defaults {
                service,
                source: Box::new(source),
            })
        };
        let mut merge = Merge {
            table: parse(PROCESS_DEFAULTS)?,
            origins: BTreeMap::new(),
            service,
        };
        merge.overlay(parse(defaults)?, &Origin::Default(service))?;
        let notes = self.apply(&mut merge)?;
        let Merge {
            table: merged, origins, ..
        } = &merge;
        let mut rest = merged.clone();
        let process = rest.remove(PROCESS_SECTION).unwrap_or(Value::Table(Table::new()));
        let typed = |error, section| key_error(error, section, origins, service);
        let process = serde_path_to_error::deserialize(process).map_err(|error| typed(error, Some(PROCESS_SECTION)))?;
        let service = serde_path_to_error::deserialize(Value::Table(rest)).map_err(|error| typed(error, None))?;
        Ok(Loaded {
            process,
            service,
            notes,
            merged: merge.table,
        })
    }

    /// Puts file, variables and flags on the defaults; gives notes on what was not for this service.
    fn apply(&self, merge: &mut Merge) -> Result<Vec<String>, ConfigError> {
        // Services of one process tree share their variables: a section that we do not have is another's.
        let ours: Vec<String> = merge.table.keys().cloned().collect();
        let (for_us, for_others): (Vec<_>, Vec<_>) = self
            .variables
            .iter()
            .partition(|(_, path, _)| path.first().is_some_and(|section| ours.contains(section)));
        if let Some((path, table)) = &self.file {
            merge.overlay(table.clone(), &Origin::File(path.clone()))?;
        }
        for (name, path, text) in for_us {
            merge.set(path, Setting::Text(text.clone()), &Origin::Variable(name.clone()))?;
        }
        for (path, setting) in &self.flags {
            merge.set(path, setting.clone(), &Origin::Flag)?;
        }
        Ok(for_others
            .iter()
            .map(|(name, ..)| format!("{name} is for another service and ignored"))
            .collect())
    }
}

/// The configuration of a service from its defaults, this process's variables, and overrides on top of them.
///
/// # Errors
/// When a variable cannot be read, a key is unknown or a value does not fit.
pub fn load<S: Service>(overrides: &[(String, Value)]) -> Result<(ProcessConfig, S::Config), ConfigError> {
    let layers = Layers::new().real_environment()?;
    let layers = overrides
        .iter()
        .try_fold(layers, |layers, (key, value)| layers.set(key, value.clone()))?;
    let Loaded { process, service, .. } = layers.load::<S>()?;
    Ok((process, service))
}

fn key_path(key: &str) -> Option<Vec<String>> {
    let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
    path.iter().all(|part| !part.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests;
