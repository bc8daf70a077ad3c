//! What can be wrong with a configuration: a failure of any layer in; key, origin and reason out, and no secret.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use serde_path_to_error::Segment;

use crate::redact;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The compiled-in `default.toml` of the service.
    Default(&'static str),
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A `--set` flag, or an override by the program that starts the service.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default(service) => write!(formatter, "the default.toml of {service}"),
            Self::File(path) => write!(formatter, "file {}", path.display()),
            Self::Variable(name) => write!(formatter, "environment variable {name}"),
            Self::Flag => formatter.write_str("a --set flag"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The compiled-in text is not TOML.
    #[error("the default.toml of {service} is not valid TOML")]
    Defaults {
        /// Whose.
        service: &'static str,
        /// Where it breaks.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The file cannot be read.
    #[error("cannot read configuration file {}", path.display())]
    ReadFile {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML. The parser's own text would quote the line, and with it a secret.
    #[error("configuration file {} is not valid TOML at byte {}: {}", path.display(), at_byte, reason)]
    ParseFile {
        /// Its path.
        path: PathBuf,
        /// Where it breaks.
        at_byte: usize,
        /// How it breaks.
        reason: String,
    },
    /// A variable has an empty part in its name or a value that is not Unicode.
    #[error("environment variable {name} is not PORTALIS__SECTION__KEY with a Unicode value")]
    Variable {
        /// Its name.
        name: String,
    },
    /// A flag is not an assignment.
    #[error("--set {key} is not of the form SECTION.KEY=VALUE")]
    Flag {
        /// What stands where the key should be.
        key: String,
    },
    /// A key is unknown, or its value has the wrong type or is not allowed.
    #[error("configuration key `{key}` from {origin}: {reason}")]
    Key {
        /// The key with its sections.
        key: String,
        /// Who set it.
        origin: Origin,
        /// What is wrong.
        reason: String,
    },
    /// The configuration cannot be shown as TOML.
    #[error("cannot print the configuration as TOML")]
    Print(#[source] toml::ser::Error),
}

/// Says which key is wrong, who set it, and what is wrong with it, without showing a secret.
pub(super) fn key_error(
    error: serde_path_to_error::Error<toml::de::Error>,
    section: Option<&str>,
    origins: &BTreeMap<Vec<String>, Origin>,
    service: &'static str,
) -> ConfigError {
    let below = error.path().iter().map_while(|segment| match segment {
        Segment::Map { key } => Some(key.clone()),
        _ => None,
    });
    let path: Vec<String> = section.map(str::to_owned).into_iter().chain(below).collect();
    // Who set this key, or the section around it, or something below it.
    let around = (0..=path.len()).rev().find_map(|depth| origins.get(&path[..depth]));
    let within = || {
        origins
            .iter()
            .find(|(key, _)| !path.is_empty() && key.starts_with(&path))
            .map(|(_, origin)| origin)
    };
    let origin = around.or_else(within).cloned().unwrap_or(Origin::Default(service));
    let secret = path.iter().any(|part| redact::is_secret(part));
    let reason = if secret {
        "unknown, or its value has the wrong form (not shown, as it may be a secret)".to_owned()
    } else {
        redact::urls(error.inner().message())
    };
    ConfigError::Key {
        key: path.join("."),
        origin,
        reason,
    }
}
