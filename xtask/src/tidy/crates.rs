//! Rules about crates and their arrows: input is cargo's view of the workspace and the manifests, output is violations.

use std::collections::BTreeSet;
use std::path::Path;

use super::{File, Repository, Violation};
use crate::metadata::{Metadata, Package};

/// External crates that only these crates of ours may use, and why.
const RESERVED: &[(&str, &[&str], &str)] = &[
    (
        "async-nats",
        &["bus", "loadgen"],
        "the bus is the only user of the broker; loadgen measures the bare client as baseline",
    ),
    (
        "cudarc",
        &["kernels", "engine"],
        "raw device calls stay in the kernels and the engine's CUDA backend",
    ),
];

/// The only service that may depend on services: it is the local stack.
const STACK: &str = "portalis";

/// The layer of one of our crates, by its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Schemas,
    Kernels,
    Shared,
    Service,
    Loadtest,
    Xtask,
}

fn layer(folder: &str) -> Option<Layer> {
    Some(match folder.split('/').next()? {
        "schemas" => Layer::Schemas,
        "kernels" => Layer::Kernels,
        "shared" => Layer::Shared,
        "services" => Layer::Service,
        "loadtests" => Layer::Loadtest,
        "xtask" => Layer::Xtask,
        _ => return None,
    })
}

/// May `from` use `to`? Names matter where a layer has one exception.
fn arrow_is_allowed(from: (&str, Layer), to: (&str, Layer), is_dev: bool) -> bool {
    // Fakes and test servers never ship.
    if to.0 == "testkit" && !is_dev {
        return from.1 == Layer::Loadtest;
    }
    match (from.1, to.1) {
        (Layer::Schemas | Layer::Kernels | Layer::Xtask, _) => is_dev && to.0 == "testkit",
        (Layer::Shared, Layer::Schemas | Layer::Shared) => true,
        (Layer::Shared, Layer::Kernels) => from.0 == "engine",
        (Layer::Service, Layer::Schemas | Layer::Shared) => true,
        (Layer::Service, Layer::Service) => from.0 == STACK && to.0 != STACK,
        (Layer::Loadtest, to) => to != Layer::Xtask,
        _ => false,
    }
}

/// Arrows point one way, and reserved crates stay where they belong.
pub fn arrows_point_one_way(root: &Path, ours: &Metadata) -> Vec<Violation> {
    let mut violations = Vec::new();
    for package in &ours.packages {
        let folder = folder_of(root, package);
        let path = format!("{folder}/Cargo.toml");
        let complain = |rule, message| Violation {
            path: path.clone(),
            line: 1,
            rule,
            message,
        };
        let Some(from) = layer(&folder) else {
            violations.push(complain("arrow", "a crate outside the map of the house".to_owned()));
            continue;
        };
        if folder.rsplit('/').next() != Some(package.name.as_str()) {
            violations.push(complain(
                "name",
                format!("package `{}` is not named after its folder", package.name),
            ));
        }
        for dependency in &package.dependencies {
            let is_dev = dependency.kind.as_deref() == Some("dev");
            let target = dependency.path.as_deref().map(|path| relative(root, path));
            if let Some(to) = target.as_deref().and_then(layer)
                && !arrow_is_allowed((&package.name, from), (&dependency.name, to), is_dev)
            {
                let message = format!("`{}` may not depend on `{}`", package.name, dependency.name);
                violations.push(complain("arrow", message));
            }
            let reserved = RESERVED
                .iter()
                .find(|(krate, users, _)| *krate == dependency.name && !users.contains(&package.name.as_str()));
            if let Some((krate, _, reason)) = reserved {
                violations.push(complain(
                    "reserved",
                    format!("`{}` may not use `{krate}`: {reason}", package.name),
                ));
            }
        }
    }
    violations
}

fn folder_of(root: &Path, package: &Package) -> String {
    relative(root, package.manifest_path.parent().unwrap_or(root))
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root)
        .unwrap_or(path)
        .to_string_lossy()
        .replace('\\', "/")
}

/// Dependencies are written `workspace = true`, and the workspace's lints apply everywhere.
pub fn manifests_inherit(repository: &Repository) -> Vec<Violation> {
    let manifests = repository.ending("Cargo.toml").filter(|file| file.path != "Cargo.toml");
    manifests.flat_map(manifest_violations).collect()
}

fn manifest_violations(file: &File) -> Vec<Violation> {
    let manifest: toml::Table = match toml::from_str(&file.text) {
        Ok(manifest) => manifest,
        Err(error) => {
            return file.violation(1, "manifest", error.to_string()).into_iter().collect();
        }
    };
    let mut violations = Vec::new();
    let inherits = |value: &toml::Value| value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
    if !manifest.get("lints").is_some_and(inherits) {
        violations.extend(file.violation(1, "lints", "write `[lints]` with `workspace = true`"));
    }
    let names: BTreeSet<String> = dependency_tables(&manifest)
        .flat_map(|table| {
            table
                .iter()
                .filter(|(_, value)| !inherits(value))
                .map(|(name, _)| name.clone())
        })
        .collect();
    for name in names {
        let line = file
            .text
            .lines()
            .position(|line| line.trim_start().starts_with(&name))
            .map_or(1, |index| index + 1);
        let message = format!("write `{name} = {{ workspace = true }}` and its version in the root Cargo.toml");
        violations.extend(file.violation(line, "workspace", message));
    }
    violations
}

/// `[dependencies]` and its dev, build and per-target forms.
fn dependency_tables(manifest: &toml::Table) -> impl Iterator<Item = &toml::Table> {
    let targets = manifest
        .get("target")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(|targets| targets.values());
    let holders = std::iter::once(manifest).chain(targets.filter_map(toml::Value::as_table));
    holders.flat_map(|holder| {
        let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
        kinds
            .into_iter()
            .filter_map(|kind| holder.get(kind).and_then(toml::Value::as_table))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    #[test]
    fn arrows_follow_the_map() {
        let (schemas, kernels) = (("schemas", Layer::Schemas), ("kernels", Layer::Kernels));
        let (bus, engine, testkit) = (
            ("bus", Layer::Shared),
            ("engine", Layer::Shared),
            ("testkit", Layer::Shared),
        );
        let (auth, gateway, stack) = (
            ("auth", Layer::Service),
            ("gateway", Layer::Service),
            ("portalis", Layer::Service),
        );
        let (mesh, xtask) = (("mesh", Layer::Loadtest), ("xtask", Layer::Xtask));
        for (from, to, is_dev, expected) in [
            (auth, bus, false, true),
            (auth, schemas, false, true),
            (auth, gateway, false, false),
            (auth, gateway, true, false),
            (auth, kernels, false, false),
            (stack, gateway, false, true),
            (gateway, stack, false, false),
            (bus, schemas, false, true),
            (schemas, bus, false, false),
            (bus, auth, true, false),
            (engine, kernels, false, true),
            (bus, kernels, false, false),
            (kernels, engine, false, false),
            (auth, testkit, true, true),
            (auth, testkit, false, false),
            (stack, testkit, false, false),
            (mesh, testkit, false, true),
            (mesh, stack, false, true),
            (xtask, schemas, false, false),
        ] {
            assert_eq!(
                arrow_is_allowed(from, to, is_dev),
                expected,
                "{from:?} to {to:?}, dev {is_dev}"
            );
        }
    }

    #[test]
    fn arrows_and_reserved_crates_are_read_from_metadata() {
        let dependency = |name: &str, path: Option<&str>| Dependency {
            name: name.to_owned(),
            kind: None,
            path: path.map(Into::into),
        };
        let package = Package {
            name: "auth".to_owned(),
            version: "0.1.0".to_owned(),
            license: None,
            source: None,
            manifest_path: "/r/services/auth/Cargo.toml".into(),
            dependencies: vec![
                dependency("gateway", Some("/r/services/gateway")),
                dependency("bus", Some("/r/shared/bus")),
                dependency("async-nats", None),
            ],
        };
        let ours = Metadata {
            packages: vec![package],
            target_directory: "/r/target".into(),
        };
        let rules: Vec<_> = arrows_point_one_way(Path::new("/r"), &ours)
            .into_iter()
            .map(|v| (v.rule, v.path))
            .collect();
        let path = || "services/auth/Cargo.toml".to_owned();
        assert_eq!(rules, [("arrow", path()), ("reserved", path())]);
    }

    #[test]
    fn manifests_that_do_not_inherit_are_found() {
        let text = "[package]\nname = \"a\"\n[dependencies]\nbus.workspace = true\nserde = \"1\"\n\
                    [target.'cfg(unix)'.dependencies]\nlibc = { version = \"0.2\" }\n[dev-dependencies]\ntestkit = { workspace = true, features = [\"x\"] }\n";
        let repository = Repository::new(vec![
            File::new("a/Cargo.toml", text),
            File::new("Cargo.toml", "[workspace]\n"),
        ]);
        let found: Vec<_> = manifests_inherit(&repository)
            .into_iter()
            .map(|v| (v.rule, v.line))
            .collect();
        assert_eq!(found, [("lints", 1), ("workspace", 7), ("workspace", 5)]);
    }
}
