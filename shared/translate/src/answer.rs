//! A look at what a model answered. Input: its text. Output: one Rust function of the right name, or what is wrong.
//!
//! The text may be anything. The parser and what drops its tree call themselves at each level of nesting, so the text's
//! size is bounded and both have a stack that holds the worst of that size.

use proc_macro2::{TokenStream, TokenTree};
use syn::ext::IdentExt;

/// What an answer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// One function of the right name.
    Function(Candidate),
    /// The model says that it cannot.
    Unsupported(String),
    /// Not what was asked for, with the reason.
    Invalid(String),
}

/// A function that parses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its text, with one line break at the end.
    pub rust: String,
    /// Its name as it is written in Rust: `r#match` for `match`.
    pub ident: String,
    /// What it reaches for beyond computing; such a function is not run here.
    pub reach: Option<Reach>,
}

/// Something beyond computing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// What, for people.
    pub what: String,
    /// Whether it may read files or the environment already while it is compiled.
    pub while_compiling: bool,
}

/// Most tokens of an answer, brackets counted as one: a function of 400 lines.
const MAX_TOKENS: usize = 4_000;
/// How much is shown of an answer that has no tokens.
const SHOWN_CHARACTERS: usize = 60;
/// Deepest brackets of an answer.
const MAX_DEPTH: usize = 128;
/// Stack of the parser, of which only what is used is ever touched: 32 KiB for each token, should each nest.
const STACK_BYTES: usize = MAX_TOKENS * 32 * 1024;

/// How a model says that it cannot.
const UNSUPPORTED: &str = "// unsupported";
/// Macros that read files or the environment while compiling, or could hide one that does.
const READING: &[&str] = &[
    "include",
    "include_str",
    "include_bytes",
    "env",
    "option_env",
    "asm",
    "global_asm",
    "naked_asm",
    "macro_rules",
];
/// Keywords that lead out of the function: `mod` may name a file.
const LEADING_OUT: &[&str] = &["extern", "mod", "crate"];
/// Modules of the standard library that reach beyond computing, but not before they run.
const ACTING: &[&str] = &[
    "any", "cell", "env", "error", "ffi", "fs", "io", "net", "os", "panic", "path", "process", "ptr", "sync", "thread",
    "time",
];
/// Attributes that change nothing about what runs; documentation comments are attributes, too.
const HARMLESS: &[&str] = &["doc", "allow", "inline", "must_use"];
/// Modules of the standard library that only compute.
const COMPUTING: &[&str] = &[
    "array",
    "borrow",
    "char",
    "clone",
    "cmp",
    "collections",
    "convert",
    "default",
    "f32",
    "f64",
    "fmt",
    "hash",
    "i32",
    "i64",
    "i8",
    "iter",
    "mem",
    "num",
    "ops",
    "option",
    "primitive",
    "rc",
    "result",
    "slice",
    "str",
    "string",
    "u64",
    "vec",
];

/// Reads an answer that should be the function `name`.
#[must_use]
pub fn read(text: &str, name: &str) -> Answer {
    let text = without_fence(text);
    if let Some(reason) = text.trim_start().strip_prefix(UNSUPPORTED) {
        let reason = reason.lines().next().unwrap_or_default();
        let reason = reason.trim_matches(|c: char| c == ':' || c.is_whitespace());
        return Answer::Unsupported(format!("the model does not translate it: {reason}"));
    }
    let Ok(tokens) = text.parse::<TokenStream>() else {
        let beginning: String = text.chars().take(SHOWN_CHARACTERS).collect();
        return Answer::Invalid(format!("the answer is not Rust, it begins with {beginning:?}"));
    };
    if is_too_large(tokens.clone()) {
        return Answer::Invalid("the answer is longer or nested deeper than a function should be".to_owned());
    }
    stacker::grow(STACK_BYTES, || match parsed(tokens.clone(), name) {
        Ok(ident) => Answer::Function(Candidate {
            reach: reach(tokens),
            rust: text,
            ident,
        }),
        Err(problem) => Answer::Invalid(problem),
    })
}

/// What code reaches for beyond computing that was read by [`read`] before.
pub(crate) fn reach_of(rust: &str) -> Option<Reach> {
    rust.parse()
        .map_or_else(|_| Some(compiling("unknown tokens".to_owned())), reach)
}

/// The function's name as it is written, or what is wrong.
fn parsed(tokens: TokenStream, name: &str) -> Result<String, String> {
    let file: syn::File = syn::parse2(tokens).map_err(|error| format!("the answer is not Rust: {error}"))?;
    let function = match file.items.as_slice() {
        [syn::Item::Fn(function)] if file.attrs.is_empty() => function,
        [] => return Err("the answer holds no function".to_owned()),
        _ => return Err("the answer holds more than one function".to_owned()),
    };
    let named = function.sig.ident.unraw();
    if named != name {
        return Err(format!("the answer is the function `{named}`, not `{name}`"));
    }
    Ok(function.sig.ident.to_string())
}

/// Whether a tree of these tokens could be too deep. Does not call itself.
fn is_too_large(tokens: TokenStream) -> bool {
    let (mut open, mut count) = (vec![tokens.into_iter()], 0);
    while let Some(level) = open.last_mut() {
        match level.next() {
            None => drop(open.pop()),
            Some(token) => {
                count += 1;
                if let TokenTree::Group(group) = token {
                    open.push(group.stream().into_iter());
                }
            }
        }
        if count > MAX_TOKENS || open.len() > MAX_DEPTH {
            return true;
        }
    }
    false
}

/// The text inside a code fence, if there is one.
fn without_fence(text: &str) -> String {
    let text = text.trim();
    let inner = match text.strip_prefix("```") {
        Some(rest) => {
            let body = rest.split_once('\n').map_or("", |(_, body)| body);
            body.rsplit_once("```").map_or(body, |(body, _)| body)
        }
        None => text,
    };
    format!("{}\n", inner.trim_end())
}

fn compiling(what: String) -> Reach {
    Reach {
        what,
        while_compiling: true,
    }
}

fn running(what: String) -> Reach {
    Reach {
        what,
        while_compiling: false,
    }
}

/// The worst thing in the code that reaches beyond computing.
fn reach(tokens: TokenStream) -> Option<Reach> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut worst = None;
    for (place, token) in tokens.iter().enumerate() {
        let after = &tokens[place + 1..];
        let found = match token {
            TokenTree::Group(group) => reach(group.stream()),
            TokenTree::Ident(ident) => reaching_word(&ident.unraw().to_string(), after),
            TokenTree::Punct(punct) if punct.as_char() == '#' => reaching_attribute(after.first()),
            _ => None,
        };
        match found {
            Some(found) if found.while_compiling => return Some(found),
            Some(found) => worst = worst.or(Some(found)),
            None => {}
        }
    }
    worst
}

/// Attributes can change how code is linked and run; documentation and a few others do not.
fn reaching_attribute(after: Option<&TokenTree>) -> Option<Reach> {
    let inner = match after {
        Some(TokenTree::Group(group)) => group.stream().into_iter().next(),
        _ => None,
    };
    let name = inner.map_or_else(String::new, |token| token.to_string());
    (!HARMLESS.contains(&name.as_str())).then(|| compiling(format!("the attribute `{name}`")))
}

fn reaching_word(word: &str, after: &[TokenTree]) -> Option<Reach> {
    let is =
        |token: Option<&TokenTree>, wanted| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted);
    if LEADING_OUT.contains(&word) || (READING.contains(&word) && is(after.first(), '!')) {
        return Some(compiling(format!("`{word}`")));
    }
    if word == "unsafe" {
        return Some(running("`unsafe`".to_owned()));
    }
    if !["std", "core", "alloc"].contains(&word) {
        return None;
    }
    let part = match after {
        [one, two, TokenTree::Ident(part), ..] if is(Some(one), ':') && is(Some(two), ':') => part.unraw().to_string(),
        // A list, a rename, or a name of its own: what it means is not followed.
        _ => return Some(compiling(format!("`{word}` without a module of it"))),
    };
    if COMPUTING.contains(&part.as_str()) {
        return None;
    }
    let what = format!("`{word}::{part}`");
    Some(if ACTING.contains(&part.as_str()) {
        running(what)
    } else {
        compiling(what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a body reaches beyond computing, and whether it does so while it is compiled.
    fn reach_of(body: &str) -> Option<bool> {
        match read(&format!("fn f() {{ {body} }}"), "f") {
            Answer::Function(candidate) => candidate.reach.map(|reach| reach.while_compiling),
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn one_function_of_the_name_is_taken_fenced_or_not() {
        for text in [
            "pub fn f(a: i64) -> i64 { a }",
            "```rust\npub fn f(a: i64) -> i64 { a }\n```\n",
        ] {
            let expected = Candidate {
                rust: "pub fn f(a: i64) -> i64 { a }\n".to_owned(),
                ident: "f".to_owned(),
                reach: None,
            };
            assert_eq!(read(text, "f"), Answer::Function(expected));
        }
        assert!(matches!(read("fn r#match() {}", "match"), Answer::Function(_)));
        let unsupported = "the model does not translate it: classes";
        assert_eq!(
            read("// unsupported: classes", "f"),
            Answer::Unsupported(unsupported.to_owned())
        );
    }

    #[test]
    fn what_is_wrong_is_told() {
        let cases = [
            ("", "no function"),
            ("fn f( {", "not Rust"),
            ("fn g() {}", "`g`"),
            ("fn f() {} fn g() {}", "more than one"),
            ("struct F;", "more than one function"),
        ];
        for (text, hint) in cases {
            match read(text, "f") {
                Answer::Invalid(reason) => assert!(reason.contains(hint), "{text}: {reason}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn code_that_reaches_beyond_computing_is_marked() {
        for body in [
            "let a = std::cmp::max(1, 2);",
            "use std::collections::HashMap;",
            "vec![1]; i64::MAX;",
            "let env = 1; let include = env;",
            "/** One. */ let a = 1;",
        ] {
            assert_eq!(reach_of(body), None, "{body}");
        }
        for body in [
            "std::fs::remove_file(\"a\");",
            "if true { vec![::std::process::id()]; }",
            "unsafe { }",
            "r#std::net::TcpStream::connect(\"a\");",
        ] {
            assert_eq!(reach_of(body), Some(false), "{body}");
        }
        for body in [
            "use std::{fs, env};",
            "use std as s;",
            "include_str!(\"/etc/passwd\");",
            "unsafe { } env!(\"HOME\");",
            "use std::include_str as s; s!(\"/etc/passwd\");",
            "macro_rules! m { ($a:ident) => { $a!(\"a\") } } m!(include_str);",
            "mod a;",
            "#[link_section = \"a\"] static A: u8 = 0;",
        ] {
            assert_eq!(reach_of(body), Some(true), "{body}");
        }
    }

    #[test]
    fn whatever_a_model_says_is_read_or_refused() {
        let wrap = |body: String| format!("fn f() {{ {body} }}");
        let many = MAX_TOKENS;
        let deep = [
            format!("{}1{}", "(".repeat(many), ")".repeat(many)),
            format!("{}1{}", "(".repeat(MAX_DEPTH - 3), ")".repeat(MAX_DEPTH - 3)),
            format!("{}1", "-".repeat(many - 10)),
            format!("{}1", "&".repeat(many - 10)),
            format!("{}1", "1 + ".repeat((many - 10) / 2)),
            format!("a{}", ".b".repeat((many - 10) / 2)),
            format!("{}1", "return ".repeat(many - 10)),
            format!("{}1", "|| ".repeat((many - 10) / 2)),
            format!("{}1", "a = ".repeat((many - 10) / 2)),
            format!("if a {{}} {}", "else if a {} ".repeat((many - 10) / 4)),
            format!(
                "let a: {}i64{} = 1;",
                "Vec<".repeat((many - 10) / 3),
                ">".repeat((many - 10) / 3)
            ),
            format!("let a: {}i64 = 1;", "&".repeat(many - 20)),
            format!("let {}a = 1;", "&".repeat(many - 20)),
        ];
        for body in deep {
            let answer = read(&wrap(body), "f");
            assert!(matches!(answer, Answer::Function(_) | Answer::Invalid(_)));
        }
        for text in [
            "\"",
            "/*",
            "fn f() { 'a }",
            "fn f() { \u{0} }",
            "``````",
            "```",
            "#!/bin/sh",
        ] {
            assert!(matches!(read(text, "f"), Answer::Invalid(_)), "{text}");
        }
    }
}
