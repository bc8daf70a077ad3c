//! Pages for people. Input: the tables of errors and subjects. Output: Markdown.

use std::fmt::Write as _;

use super::asyncapi::message_names;
use crate::error::{ERRORS, ErrorCode};
use crate::subjects::{Kind, TABLE};

const GENERATED: &str =
    "<!-- Made by portalis-schemas from the types in schemas/src. Do not edit: change the types. -->\n";

pub(super) fn errors() -> String {
    let mut page = format!(
        "{GENERATED}# Errors\n\n\
         Every failure has one of these codes, over HTTP in `error.code` of the body and on the bus in `Failure.code`.\n\
         The HTTP status of each code is in `openapi.json`.\n\
         A code that a program does not know is one of a newer version: treat it as `internal`.\n\n\
         | Code | Meaning | Type | Retry | What to do |\n| --- | --- | --- | --- | --- |\n"
    );
    for row in ERRORS {
        let retry = if row.retryable { "yes" } else { "no" };
        line(
            &mut page,
            &[
                &format!("`{}`", row.code.as_str()),
                &meaning(row.code),
                &format!("`{}`", row.kind),
                retry,
                row.help,
            ],
        );
    }
    page
}

pub(super) fn subjects() -> String {
    let mut page = format!(
        "{GENERATED}# Subjects\n\n\
         Every subject of the bus; `asyncapi.json` has the bodies.\n\
         `publisher` is any internal program with a key.\n\n\
         | Subject | Kind | From | To | Body | Reply | What for |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for row in TABLE {
        let kind = match row.kind {
            Kind::Stream => "stream",
            Kind::Publish => "core",
            Kind::Request => "core request",
        };
        line(
            &mut page,
            &[
                &format!("`{}`", row.subject),
                kind,
                &row.publishers.join(", "),
                &row.listeners.join(", "),
                &code_list(&message_names(row)),
                &code_list(row.reply.as_slice()),
                &about(row.about),
            ],
        );
    }
    page
}

fn code_list(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Markdown takes `<model>` for HTML.
fn about(text: &str) -> String {
    text.replace('<', "&lt;").replace('>', "&gt;")
}

fn line(page: &mut String, cells: &[&str]) {
    for cell in cells {
        // Writing to a string cannot fail.
        let _ = write!(page, "| {} ", cell.replace('|', "\\|"));
    }
    page.push_str("|\n");
}

/// The doc comment of a code, which its schema carries.
pub(super) fn meaning(code: ErrorCode) -> String {
    let schema = schemars::schema_for!(ErrorCode).to_value();
    let variants = schema.get("oneOf").and_then(|value| value.as_array());
    variants
        .into_iter()
        .flatten()
        .find(|variant| {
            let name = variant.get("const");
            name.and_then(|name| name.as_str()) == Some(code.as_str())
        })
        .and_then(|variant| variant.get("description")?.as_str())
        .unwrap_or_default()
        .replace('\n', " ")
}
