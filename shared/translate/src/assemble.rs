//! The Rust file. Input: a module and its report. Output: the functions in source order, and comments for what is missing.

use crate::python::{Kind, Module};
use crate::report::{ItemReport, Report, Status};

/// Writes the file.
#[must_use]
pub fn assemble(module: &Module, report: &Report) -> String {
    let mut parts = Vec::new();
    if let Some(docstring) = &module.docstring {
        parts.push(comment(docstring.trim()));
    }
    for (item, outcome) in module.items.iter().zip(&report.items) {
        let mut lines: Vec<String> = item.comment.iter().map(|text| comment(text)).collect();
        match &outcome.rust {
            Some(rust) if outcome.is_written() => {
                if report.verified && outcome.status == Status::Unverified {
                    let reason = outcome.reason.as_deref().unwrap_or_default();
                    lines.push(comment(&format!("Not verified: {reason}")));
                }
                lines.push(rust.trim_end().to_owned());
            }
            _ => lines.push(missing(&item.source, outcome)),
        }
        parts.push(lines.join("\n"));
    }
    parts.extend(module.last_comment.iter().map(|text| comment(text)));
    let mut text = parts.join("\n\n");
    text.push('\n');
    text
}

fn missing(source: &str, outcome: &ItemReport) -> String {
    let what = match (outcome.kind, &outcome.name) {
        (Kind::Function, Some(name)) => format!("function `{name}`"),
        (Kind::Class, Some(name)) => format!("class `{name}`"),
        (Kind::Import, _) => "import".to_owned(),
        _ => "statement".to_owned(),
    };
    let reason = outcome.reason.as_deref().unwrap_or("no reason is known");
    let head = format!("Not translated: {what} of line {}: {reason}", outcome.line);
    format!("{}\n//\n{}", comment(&head), comment(source))
}

/// Characters that change the direction of text, which rustc refuses in comments.
const TURNING: [char; 9] = [
    '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
];

fn comment(text: &str) -> String {
    let shown = text.chars().map(|character| match character {
        turning if TURNING.contains(&turning) => turning.escape_unicode().to_string(),
        other => other.to_string(),
    });
    let text: String = shown.collect();
    let lines = text.lines().map(|line| format!("// {line}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_stand_in_order_and_the_rest_in_comments() {
        let source = "'''Doc.'''\nimport math\n# Turned: \u{202e}\ndef f(a: int) -> int:\n\n    return a\ndef g() -> int:\n    return 1\n";
        let module = Module::parse(source).unwrap();
        let outcome = |place: usize, status, reason: Option<&str>, rust: Option<&str>| ItemReport {
            kind: module.items[place].kind,
            name: module.items[place].name.clone(),
            line: module.items[place].line as u64,
            status,
            reason: reason.map(str::to_owned),
            attempts: 1,
            cached: false,
            compiles: None,
            behaves: None,
            rust: rust.map(str::to_owned),
        };
        let items = vec![
            outcome(0, Status::Unsupported, Some("imports"), None),
            outcome(1, Status::Failed, Some("error:\nbad"), Some("fn f() {}\n")),
            outcome(2, Status::Translated, None, Some("fn g() -> i64 {\n    1\n}\n")),
        ];
        let text = assemble(&module, &Report::new(items, true, None));
        let expected = "// Doc.\n\n\
            // Not translated: import of line 2: imports\n//\n// import math\n\n\
            // Turned: \\u{202e}\n// Not translated: function `f` of line 4: error:\n// bad\n//\n\
            // def f(a: int) -> int:\n//\n//     return a\n\n\
            fn g() -> i64 {\n    1\n}\n";
        assert_eq!(text, expected);
    }
}
