//! Licences, bans and sources, offline: input is `deny.toml` and the dependency graph, output is a list of complaints.
//!
//! Reads cargo-deny's format, so the same file serves both; what is read here is a part of what cargo-deny knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::metadata::{self, Package};

/// The public registry, as cargo writes it in the lock file.
const PUBLIC_REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The part of `deny.toml` that is checked here.
#[derive(Debug, Clone, Deserialize)]
pub struct Policy {
    /// `[licenses]`.
    pub licenses: Licenses,
    /// `[bans]`.
    pub bans: Bans,
}

/// `[licenses]` of `deny.toml`.
#[derive(Debug, Clone, Deserialize)]
pub struct Licenses {
    /// Licences any crate may carry.
    pub allow: BTreeSet<String>,
    /// Licences that one crate may carry.
    #[serde(default)]
    pub exceptions: Vec<Exception>,
}

/// One entry of `licenses.exceptions`.
#[derive(Debug, Clone, Deserialize)]
pub struct Exception {
    /// The crate.
    #[serde(rename = "crate")]
    pub krate: String,
    /// What it may carry on top.
    pub allow: BTreeSet<String>,
}

/// `[bans]` of `deny.toml`.
#[derive(Debug, Clone, Deserialize)]
pub struct Bans {
    /// Crates that may not appear, or not twice.
    #[serde(default)]
    pub deny: Vec<Ban>,
}

/// One entry of `bans.deny`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ban {
    /// The crate.
    #[serde(rename = "crate")]
    pub krate: String,
    /// Why.
    pub reason: String,
    /// The only crates that may depend on it.
    #[serde(default)]
    pub wrappers: BTreeSet<String>,
    /// It may appear, but in one version only.
    #[serde(default)]
    pub deny_multiple_versions: bool,
}

/// Checks the repository against its `deny.toml`.
pub fn check_repository(root: &Path) -> Result<()> {
    let file = root.join("deny.toml");
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let policy: Policy = toml::from_str(&text).with_context(|| format!("read {}", file.display()))?;
    let graph = metadata::whole_graph(root)?;
    let complaints = check(&policy, &graph.packages);
    if complaints.is_empty() {
        println!(
            "{} packages, licences and sources as deny.toml allows",
            graph.packages.len()
        );
        return Ok(());
    }
    bail!("{}\nrepeat it with: cargo xtask licences", complaints.join("\n"))
}

/// All complaints about `packages`, sorted.
pub fn check(policy: &Policy, packages: &[Package]) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in packages.iter().filter(|package| package.source.is_some()) {
        complaints.extend(source_complaint(package));
        complaints.extend(licence_complaint(&policy.licenses, package));
    }
    for ban in &policy.bans.deny {
        complaints.extend(ban_complaints(ban, packages));
    }
    complaints.sort();
    complaints
}

fn source_complaint(package: &Package) -> Option<String> {
    let source = package.source.as_deref()?;
    (source != PUBLIC_REGISTRY).then(|| {
        format!(
            "{} {} comes from {source}; only the public registry is allowed",
            package.name, package.version
        )
    })
}

fn licence_complaint(licenses: &Licenses, package: &Package) -> Option<String> {
    let of_package = |what: String| Some(format!("{} {}: {what}", package.name, package.version));
    let Some(expression) = &package.license else {
        return of_package("names no licence".to_owned());
    };
    let exception = licenses
        .exceptions
        .iter()
        .find(|exception| exception.krate == package.name);
    let allowed =
        |licence: &str| licenses.allow.contains(licence) || exception.is_some_and(|e| e.allow.contains(licence));
    match is_allowed(expression, &allowed) {
        Ok(true) => None,
        Ok(false) => of_package(format!("licence `{expression}` is not in the allow list of deny.toml")),
        Err(error) => of_package(format!("licence `{expression}` cannot be read: {error}")),
    }
}

fn ban_complaints(ban: &Ban, packages: &[Package]) -> Vec<String> {
    let found: Vec<&Package> = packages.iter().filter(|package| package.name == ban.krate).collect();
    if ban.deny_multiple_versions {
        let versions: Vec<&str> = found.iter().map(|package| package.version.as_str()).collect();
        let twice = versions.len() > 1;
        let text = || {
            format!(
                "{} is there in versions {}: {}",
                ban.krate,
                versions.join(", "),
                ban.reason
            )
        };
        return twice.then(text).into_iter().collect();
    }
    if found.is_empty() {
        return Vec::new();
    }
    let users = packages
        .iter()
        .filter(|package| package.dependencies.iter().any(|d| d.name == ban.krate));
    let users: BTreeMap<&str, bool> = users
        .map(|package| (package.name.as_str(), ban.wrappers.contains(&package.name)))
        .collect();
    // Optional dependencies that are switched off are declared too; they do no harm beside a known user.
    let known_user = users.values().any(|known| *known);
    let ours = |name: &str| {
        packages
            .iter()
            .any(|package| package.name == name && package.source.is_none())
    };
    let unknown: Vec<&str> = users
        .iter()
        .filter(|(name, known)| !**known && (!known_user || ours(name)))
        .map(|(name, _)| *name)
        .collect();
    if unknown.is_empty() && known_user {
        return Vec::new();
    }
    vec![format!(
        "{} is banned: {} (used by: {})",
        ban.krate,
        ban.reason,
        unknown.join(", ")
    )]
}

/// Is a licence expression satisfied by the licences that `allowed` accepts?
///
/// `OR` (also spelled `/`) needs one side, `AND` both and binds tighter; `X WITH Y` is one licence of its own.
pub fn is_allowed(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut parser = Parser {
        words: spaced.split_whitespace().collect(),
        at: 0,
        allowed,
    };
    let result = parser.any_of()?;
    match parser.peek() {
        None => Ok(result),
        Some(word) => bail!("unexpected `{word}`"),
    }
}

struct Parser<'a> {
    words: Vec<&'a str>,
    at: usize,
    allowed: &'a dyn Fn(&str) -> bool,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn take(&mut self, word: &str) -> bool {
        let here = self.peek() == Some(word);
        self.at += usize::from(here);
        here
    }

    fn any_of(&mut self) -> Result<bool> {
        let mut result = self.all_of()?;
        while self.take("OR") {
            result |= self.all_of()?;
        }
        Ok(result)
    }

    fn all_of(&mut self) -> Result<bool> {
        let mut result = self.one()?;
        while self.take("AND") {
            result &= self.one()?;
        }
        Ok(result)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let result = self.any_of()?;
            if !self.take(")") {
                bail!("a parenthesis stays open");
            }
            return Ok(result);
        }
        let licence = self.name()?;
        if self.take("WITH") {
            let exception = self.name()?;
            return Ok((self.allowed)(&format!("{licence} WITH {exception}")));
        }
        // `GPL-2.0+` means that version or a later one.
        Ok((self.allowed)(licence.trim_end_matches('+')))
    }

    fn name(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(word) if !["(", ")", "OR", "AND", "WITH"].contains(&word) => {
                self.at += 1;
                Ok(word)
            }
            Some(word) => bail!("expected a licence, found `{word}`"),
            None => bail!("expected a licence, found the end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    fn package(name: &str, version: &str, license: Option<&str>, uses: &[&str]) -> Package {
        let dependencies = uses
            .iter()
            .map(|name| Dependency {
                name: (*name).to_owned(),
                kind: None,
                path: None,
            })
            .collect();
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            license: license.map(str::to_owned),
            source: Some(PUBLIC_REGISTRY.to_owned()),
            manifest_path: "Cargo.toml".into(),
            dependencies,
        }
    }

    fn policy(text: &str) -> Policy {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn expressions_follow_spdx_precedence() {
        let allowed = |licence: &str| ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&licence);
        let cases = [
            ("MIT", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("GPL-3.0 / MIT", true),
            ("GPL-3.0 AND MIT", false),
            ("MIT OR GPL-3.0 AND GPL-2.0", true),
            ("(MIT OR GPL-3.0) AND GPL-2.0", false),
            ("(MIT OR GPL-3.0) AND ISC", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("MIT WITH LLVM-exception", false),
            ("MIT+", true),
        ];
        for (expression, expected) in cases {
            assert_eq!(is_allowed(expression, &allowed).unwrap(), expected, "{expression}");
        }
        for broken in ["", "MIT OR", "(MIT", "MIT)", "OR MIT", "MIT ISC", "MIT WITH"] {
            assert!(is_allowed(broken, &allowed).is_err(), "{broken}");
        }
    }

    #[test]
    fn licences_sources_and_exceptions_are_checked() {
        let policy = policy(
            "[licenses]\nallow = [\"MIT\"]\nexceptions = [{ crate = \"odd\", allow = [\"ISC\"] }]\n[bans]\ndeny = []\n",
        );
        let mut elsewhere = package("elsewhere", "1.0.0", Some("MIT"), &[]);
        elsewhere.source = Some("git+https://example.org/x".to_owned());
        let mut ours = package("ours", "1.0.0", None, &[]);
        ours.source = None;
        let packages = [
            package("fine", "1.0.0", Some("MIT OR GPL-3.0"), &[]),
            package("odd", "1.0.0", Some("ISC"), &[]),
            package("other", "1.0.0", Some("ISC"), &[]),
            package("unnamed", "1.0.0", None, &[]),
            elsewhere,
            ours,
        ];
        let complaints = check(&policy, &packages);
        assert_eq!(complaints.len(), 3, "{complaints:?}");
        assert!(complaints[0].starts_with("elsewhere 1.0.0 comes from"));
        assert!(complaints[1].starts_with("other 1.0.0: licence `ISC` is not"));
        assert_eq!(complaints[2], "unnamed 1.0.0: names no licence");
    }

    #[test]
    fn bans_name_the_user_and_wrappers_are_let_through() {
        let policy = policy(
            "[licenses]\nallow = [\"MIT\"]\n[[bans.deny]]\ncrate = \"bad\"\nreason = \"because\"\nwrappers = [\"old\"]\n\
             [[bans.deny]]\ncrate = \"once\"\nreason = \"types\"\ndeny-multiple-versions = true\n",
        );
        let bad = package("bad", "1.0.0", Some("MIT"), &[]);
        let user = package("user", "1.0.0", Some("MIT"), &["bad"]);
        let old = package("old", "1.0.0", Some("MIT"), &["bad"]);
        assert_eq!(
            check(&policy, &[bad.clone(), user.clone()]),
            ["bad is banned: because (used by: user)"]
        );
        assert_eq!(
            check(&policy, &[bad.clone(), old.clone(), user.clone()]),
            Vec::<String>::new()
        );
        // Only the switched-off optional dependency of somebody: not in the graph, no complaint.
        assert_eq!(check(&policy, std::slice::from_ref(&user)), Vec::<String>::new());
        let mut ours = user;
        ours.source = None;
        assert_eq!(
            check(&policy, &[bad, old, ours]),
            ["bad is banned: because (used by: user)"]
        );
        let once = |version| package("once", version, Some("MIT"), &[]);
        assert_eq!(check(&policy, &[once("1.0.0")]), Vec::<String>::new());
        assert_eq!(
            check(&policy, &[once("1.0.0"), once("2.0.0")]),
            ["once is there in versions 1.0.0, 2.0.0: types"]
        );
    }
}
