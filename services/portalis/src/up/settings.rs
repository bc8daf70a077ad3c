//! The `--config` file of `portalis up`. Input: a TOML file with one table per service. Output: each service's part.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use process::{Layers, Loaded, Service};
use toml::{Table, Value};

/// Services that may have a table.
const SERVICES: [&str; 6] = [
    "gateway",
    "auth",
    "cache",
    "cost-accounting",
    "autoscaler",
    "gpu-worker",
];

/// What the file says.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    file: Option<(PathBuf, Table)>,
}

impl Settings {
    /// Reads the file, if one is named.
    ///
    /// # Errors
    /// When it cannot be read or names no service.
    pub fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // The parser's full text spans lines and quotes what may be a secret.
        let table = text
            .parse::<Table>()
            .map_err(|error| anyhow::anyhow!("{} is not valid TOML: {}", path.display(), error.message()))?;
        for (name, value) in &table {
            if !SERVICES.contains(&name.as_str()) || !value.is_table() {
                bail!(
                    "{}: `{name}` is no table of a service; there are {}",
                    path.display(),
                    SERVICES.join(", ")
                );
            }
        }
        Ok(Self {
            file: Some((path.to_owned(), table)),
        })
    }

    /// A service's configuration: its defaults, its table, the environment, and on top what this run needs.
    ///
    /// # Errors
    /// When a key is unknown or a value does not fit.
    pub fn load<S: Service>(&self, needs: &[(&str, Value)]) -> anyhow::Result<Loaded<S::Config>> {
        let mut layers = Layers::new().real_environment()?;
        if let Some((path, table)) = &self.file
            && let Some(Value::Table(table)) = table.get(S::NAME)
        {
            layers = layers.table(path, table.clone());
        }
        for (key, value) in needs {
            layers = layers.set(key, value.clone())?;
        }
        Ok(layers.load::<S>()?)
    }

    /// A service's table as a file of its own, for a service that runs as a process of its own.
    #[must_use]
    pub fn file_of(&self, service: &str) -> Option<String> {
        let (_, table) = self.file.as_ref()?;
        Some(table.get(service)?.as_table()?.to_string())
    }
}

#[cfg(test)]
mod tests {
    use autoscaler::Autoscaler;

    use super::*;

    fn settings(text: &str) -> anyhow::Result<Settings> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::read(Some(file.path()))
    }

    #[test]
    fn each_service_gets_its_table_and_what_the_run_needs() {
        let settings = settings("[autoscaler.policy]\nup_hold_ms = 7\n[gateway.http]\nnonsense = 1\n").unwrap();
        let needs = [("bus.url", Value::from("nats://h:1"))];
        let config = settings.load::<Autoscaler>(&needs).unwrap().service;
        assert_eq!((config.policy.up_hold_ms, config.bus.url.as_str()), (7, "nats://h:1"));
        assert_eq!(
            Settings::default()
                .load::<Autoscaler>(&needs)
                .unwrap()
                .service
                .policy
                .up_hold_ms,
            5_000
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, hint) in [("[gatway]", "gatway"), ("gateway = 1", "gateway"), ("[", "TOML")] {
            let text = settings(text).unwrap_err().to_string();
            assert!(text.contains(hint) && !text.contains('\n'), "{text}");
        }
        let wrong = settings("[autoscaler.policy]\nnonsense = 1")
            .unwrap()
            .load::<Autoscaler>(&[])
            .unwrap_err();
        assert!(format!("{wrong:#}").contains("policy.nonsense"), "{wrong:#}");
        assert!(Settings::read(Some(Path::new("/no/such"))).is_err());
    }

    #[test]
    fn a_process_of_its_own_gets_a_file() {
        let settings = settings("[gpu-worker.batch]\nmax_items = 8\n").unwrap();
        let file = settings.file_of("gpu-worker").unwrap();
        assert_eq!(file.parse::<Table>().unwrap()["batch"]["max_items"], Value::from(8));
        assert_eq!(settings.file_of("gateway"), None);
    }
}
