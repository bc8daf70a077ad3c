//! The command line that every service understands: arguments in, the layers of its configuration out.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command, value_parser};

use crate::config::{ConfigError, Layers};

/// What the command line asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    /// A file on top of the compiled-in defaults.
    pub config: Option<PathBuf>,
    /// `section.key=value`, on top of everything.
    pub set: Vec<String>,
    /// Print the configuration and end.
    pub print_config: bool,
}

impl Args {
    /// Reads arguments, the program's name first.
    ///
    /// # Errors
    /// Holds the text to print and the exit code, for `--help` and `--version` too.
    pub fn parse(service: &str, arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut matches = command(service).try_get_matches_from(arguments)?;
        Ok(Self {
            config: matches.remove_one("config"),
            set: matches.remove_many("set").map(Iterator::collect).unwrap_or_default(),
            print_config: matches.get_flag("print-config"),
        })
    }

    /// The layers of configuration that these arguments and the environment add to the defaults.
    ///
    /// # Errors
    /// When the file, a variable or a flag cannot be read.
    pub fn layers(&self) -> Result<Layers, ConfigError> {
        let mut layers = Layers::new().real_environment()?;
        if let Some(path) = &self.config {
            layers = layers.file(path)?;
        }
        self.set
            .iter()
            .try_fold(layers, |layers, assignment| layers.assign(assignment))
    }
}

fn command(service: &str) -> Command {
    let binary = format!("portalis-{service}");
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf));
    let set = Arg::new("set")
        .long("set")
        .value_name("SECTION.KEY=VALUE")
        .action(ArgAction::Append);
    let print = Arg::new("print-config").long("print-config").action(ArgAction::SetTrue);
    Command::new("portalis")
        .display_name(&binary)
        .bin_name(&binary)
        .version(env!("CARGO_PKG_VERSION"))
        .arg(config.help("TOML file on top of the compiled-in defaults"))
        .arg(set.help("Set one key, on top of file and environment (PORTALIS__SECTION__KEY); repeatable"))
        .arg(print.help("Print the merged configuration with secrets redacted, and exit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        Args::parse("gateway", arguments.iter().map(OsString::from))
    }

    #[test]
    fn reads_flags_and_tells_its_version() {
        let args = parse(&[
            "x",
            "--config",
            "a.toml",
            "--set",
            "http.port=1",
            "--set",
            "a.b=c=d",
            "--print-config",
        ])
        .unwrap();
        let set = vec!["http.port=1".to_owned(), "a.b=c=d".to_owned()];
        assert_eq!(
            args,
            Args {
                config: Some("a.toml".into()),
                set,
                print_config: true
            }
        );
        let version = parse(&["x", "--version"]).unwrap_err();
        assert_eq!(
            version.to_string(),
            format!("portalis-gateway {}\n", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(version.exit_code(), 0);
        let unknown = parse(&["x", "--nope"]).unwrap_err();
        assert_eq!(unknown.exit_code(), 2);
        assert!(unknown.to_string().contains("--nope"));
    }
}
