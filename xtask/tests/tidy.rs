//! The rules of the house, run over the repository: input is every tracked file, output is a list of violations.
//!
//! Each test is one rule; the rules and their own tests are in `xtask/src/tidy/`.

use std::sync::LazyLock;

use xtask::tidy::{Repository, Violation, crates, documents, places, sources};
use xtask::{metadata, repo_root};

/// Read and scanned once for all rules.
#[expect(clippy::expect_used, reason = "without the repository no rule can be checked")]
static REPOSITORY: LazyLock<Repository> = LazyLock::new(|| {
    let root = repo_root().expect("the crate lies in the repository");
    let repository = Repository::load(&root).expect("git lists the files");
    // A list that lost its files would pass every rule.
    assert!(
        repository.file("xtask/tests/tidy.rs").is_some(),
        "git ls-files does not list this test"
    );
    repository
});

fn holds(violations: Vec<Violation>) {
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} violation(s):\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn source_files_open_with_their_job() {
    holds(sources::opens_with_its_job(&REPOSITORY));
}

#[test]
fn files_are_short() {
    for line in sources::long_files(&REPOSITORY) {
        eprintln!("warning: {line}");
    }
    holds(sources::files_are_short(&REPOSITORY));
}

#[test]
fn functions_are_short() {
    holds(sources::functions_are_short(&REPOSITORY));
}

#[test]
fn names_say_something() {
    holds(sources::names_say_something(&REPOSITORY));
}

#[test]
fn the_environment_is_read_in_one_place() {
    holds(places::environment_is_read_in_one_place(&REPOSITORY));
}

#[test]
fn status_codes_are_in_one_place() {
    holds(places::status_codes_are_in_one_place(&REPOSITORY));
}

#[test]
fn nothing_unwraps() {
    holds(places::nothing_unwraps(&REPOSITORY));
}

#[test]
fn subjects_are_in_schemas() {
    holds(places::subjects_are_in_schemas(&REPOSITORY));
}

#[test]
fn tests_do_not_sleep() {
    holds(places::tests_do_not_sleep(&REPOSITORY));
}

#[test]
fn arrows_point_one_way() {
    let root = repo_root().expect("the crate lies in the repository");
    let ours = metadata::ours(&root).expect("cargo knows the workspace");
    assert!(
        ours.packages.len() > 10,
        "cargo lists only {} packages",
        ours.packages.len()
    );
    holds(crates::arrows_point_one_way(&root, &ours));
}

#[test]
fn manifests_inherit() {
    holds(crates::manifests_inherit(&REPOSITORY));
}

#[test]
fn the_architecture_page_is_true() {
    holds(documents::architecture_is_true(&REPOSITORY));
}

#[test]
fn the_readme_names_the_commands() {
    holds(documents::readme_names_the_commands(&REPOSITORY));
}

#[test]
fn links_lead_somewhere() {
    holds(documents::links_lead_somewhere(&REPOSITORY));
}

#[test]
fn defaults_parse() {
    holds(documents::defaults_parse(&REPOSITORY));
}

#[test]
fn metrics_exist() {
    holds(documents::metrics_exist(&REPOSITORY));
}

#[test]
fn nothing_names_a_machine() {
    holds(documents::nothing_names_a_machine(&REPOSITORY));
}

#[test]
fn changelog_fragments_are_well_formed() {
    holds(documents::fragments_are_well_formed(&REPOSITORY));
}

#[test]
fn scripts_stop_at_failure() {
    holds(documents::scripts_stop_at_failure(&REPOSITORY));
}
