//! The parts of a Python module. Input: source. Output: its top-level functions with what they need of each other, the
//! statements that are not translated, with the reason, and the comments between them.
//!
//! Source may be anything. The parser has a stack that grows, but what walks its tree and drops it calls itself at each
//! level: the nesting is bounded before, from the tokens, and both have a stack that holds the worst.

use std::collections::BTreeSet;

use ruff_python_ast::token::TokenKind;
use ruff_python_ast::{Stmt, StmtFunctionDef};
use ruff_python_parser::{Mode, lexer};
use ruff_text_size::Ranged;

use crate::bindings::{Bindings, Names};

pub use schemas::http::TranslationKind as Kind;

/// Most tokens of one expression between commas, those of the brackets around it included, and of indentations: so deep
/// its tree may be. People write a hundred.
const MAX_NESTING: usize = 1_000;
/// Stack for the tree, of which only what is used is ever touched: 16 KiB for each level.
const STACK_BYTES: usize = MAX_NESTING * 16 * 1024;

/// Source that cannot be split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It is not Python.
    #[error("line {line}, column {column} is not Python: {message}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The character in the line, from 1.
        column: usize,
        /// The parser's words.
        message: String,
    },
    /// It is no code that anybody wrote.
    #[error("an expression is nested deeper than {MAX_NESTING} levels")]
    Nested,
}

/// One top-level statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// The name of a function or class.
    pub name: Option<String>,
    /// The line it begins on, from 1.
    pub line: usize,
    /// Its text, without the line break at the end.
    pub source: String,
    /// The comments above it, without their signs.
    pub comment: Option<String>,
    /// Other functions of the module that it uses, by name.
    pub calls: BTreeSet<String>,
    /// Why it is not translated, known without asking.
    pub unsupported: Option<String>,
    /// A later function has its name.
    pub replaced: bool,
}

/// A module, in source order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its documentation.
    pub docstring: Option<String>,
    /// Its statements.
    pub items: Vec<Item>,
    /// The comments at its end, without their signs.
    pub last_comment: Option<String>,
}

impl Module {
    /// Parses and splits a module.
    ///
    /// # Errors
    /// When the source is not Python, with the place.
    pub fn parse(source: &str) -> Result<Self, SourceError> {
        let source = source.trim_start_matches('\u{feff}').replace("\r\n", "\n");
        if is_nested_deeply(&source) {
            return Err(SourceError::Nested);
        }
        stacker::grow(STACK_BYTES, || split(&source))
    }

    /// How many functions it has, not counting those in classes.
    #[must_use]
    pub fn functions(&self) -> usize {
        self.items.iter().filter(|item| item.kind == Kind::Function).count()
    }
}

/// Whether the tree of this source could be too deep: every level of it has a token of its own.
fn is_nested_deeply(source: &str) -> bool {
    let mut tokens = lexer::lex(source, Mode::Module);
    // Tokens since the last comma, of each open bracket, and their sum.
    let (mut open, mut sum) = (vec![0_usize], 0_usize);
    let mut indents = 0_usize;
    loop {
        let innermost = open.len() - 1;
        match tokens.next_token() {
            TokenKind::EndOfFile => return false,
            TokenKind::Indent => indents += 1,
            TokenKind::Dedent => indents = indents.saturating_sub(1),
            TokenKind::Newline | TokenKind::Semi => (open, sum) = (vec![0], 0),
            TokenKind::Comment | TokenKind::NonLogicalNewline => {}
            TokenKind::Comma => {
                sum -= open[innermost];
                open[innermost] = 0;
            }
            TokenKind::Lpar
            | TokenKind::Lsqb
            | TokenKind::Lbrace
            | TokenKind::FStringStart
            | TokenKind::TStringStart => {
                open[innermost] += 1;
                sum += 1;
                open.push(0);
            }
            TokenKind::Rpar | TokenKind::Rsqb | TokenKind::Rbrace | TokenKind::FStringEnd | TokenKind::TStringEnd => {
                if innermost > 0 {
                    sum -= open.pop().unwrap_or_default();
                }
            }
            _ => {
                open[innermost] += 1;
                sum += 1;
            }
        }
        if indents + sum > MAX_NESTING {
            return true;
        }
    }
}

/// Where the lines of a source begin.
struct Lines<'s> {
    source: &'s str,
    starts: Vec<usize>,
}

impl<'s> Lines<'s> {
    fn of(source: &'s str) -> Self {
        let breaks = source.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            source,
            starts: std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect(),
        }
    }

    /// The line of an offset, from 1.
    fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// The character of an offset in its line, from 1.
    fn column(&self, offset: usize) -> usize {
        let start = self.starts[self.line(offset) - 1];
        let before = self.source.get(start..offset).unwrap_or_default();
        before.chars().count() + 1
    }

    /// What follows an offset on its line, when that is a comment: where it ends.
    fn comment_end(&self, offset: usize) -> Option<usize> {
        let rest = self.source[offset..].split('\n').next()?;
        rest.trim_start().starts_with('#').then_some(offset + rest.len())
    }
}

fn split(source: &str) -> Result<Module, SourceError> {
    let lines = Lines::of(source);
    let parsed = ruff_python_parser::parse_module(source).map_err(|error| {
        let at = error.location.start().to_usize().min(source.len());
        SourceError::Syntax {
            line: lines.line(at),
            column: lines.column(at),
            message: error.error.to_string(),
        }
    })?;
    let statements: &[Stmt] = parsed.suite();
    let docstring = statements.first().and_then(documentation);
    let with_lines = statements
        .iter()
        .map(|statement| (statement, lines.line(statement.start().to_usize())));
    let with_lines = with_lines.skip(usize::from(docstring.is_some()));
    let bindings = Bindings::of(with_lines.clone());
    let (mut end, mut first_comment) = (0, None);
    if let (Some(_), Some(first)) = (&docstring, statements.first()) {
        first_comment = comments(&source[..first.start().to_usize()]);
        end = end_of(&lines, first);
    }
    let mut items = Vec::new();
    for (statement, line) in with_lines {
        let above = comments(&source[end..statement.start().to_usize()]);
        end = end_of(&lines, statement);
        let mut item = item(source, statement, line, &bindings);
        if item.kind != Kind::Function {
            source[statement.start().to_usize()..end].clone_into(&mut item.source);
        }
        item.comment = joined(first_comment.take(), above);
        items.push(item);
    }
    let last = comments(&source[end..]);
    Ok(Module {
        docstring,
        items,
        last_comment: joined(first_comment, last),
    })
}

fn joined(one: Option<String>, two: Option<String>) -> Option<String> {
    match (one, two) {
        (Some(one), Some(two)) => Some(format!("{one}\n{two}")),
        (one, two) => one.or(two),
    }
}

/// Where a statement ends, a comment on its last line included.
fn end_of(lines: &Lines<'_>, statement: &Stmt) -> usize {
    let end = statement.end().to_usize();
    lines.comment_end(end).unwrap_or(end)
}

/// The comments in what lies between statements, without their signs.
fn comments(between: &str) -> Option<String> {
    let lines = between.lines().filter_map(|line| line.trim().strip_prefix('#'));
    let lines: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn item(source: &str, statement: &Stmt, line: usize, bindings: &Bindings) -> Item {
    let mut item = Item {
        kind: Kind::Statement,
        name: None,
        line,
        source: source[statement.range()].to_owned(),
        comment: None,
        calls: BTreeSet::new(),
        unsupported: None,
        replaced: false,
    };
    let reason = match statement {
        Stmt::FunctionDef(function) => {
            describe(&mut item, function, bindings);
            return item;
        }
        Stmt::ClassDef(class) => {
            item.kind = Kind::Class;
            item.name = Some(class.name.to_string());
            "classes are not translated, only functions"
        }
        Stmt::Import(_) | Stmt::ImportFrom(_) => {
            item.kind = Kind::Import;
            "imports are not translated"
        }
        _ => "statements outside functions are not translated",
    };
    item.unsupported = Some(reason.to_owned());
    item
}

fn describe(item: &mut Item, function: &StmtFunctionDef, bindings: &Bindings) {
    let name = function.name.to_string();
    let names = Names::of(function);
    let used = names.used.difference(&names.bound).filter(|used| **used != name);
    let used: BTreeSet<String> = used.cloned().collect();
    let calls = used.iter().filter(|used| bindings.functions.contains_key(*used));
    let last = bindings.functions.get(&name).copied();
    let last = last.filter(|last| *last != item.line);
    let missing = used.iter().find_map(|name| Some((name, bindings.others.get(name)?)));
    item.kind = Kind::Function;
    item.calls = calls.cloned().collect();
    item.replaced = last.is_some();
    item.unsupported = refusal(function, &names)
        .or_else(|| last.map(|last| format!("it is defined again on line {last}")))
        .or_else(|| missing.map(|(name, line)| format!("it uses `{name}` of line {line}, which is not translated")));
    item.name = Some(name);
}

/// Why a function has no counterpart as one Rust function.
fn refusal(function: &StmtFunctionDef, names: &Names) -> Option<String> {
    let parameters = &function.parameters;
    let mut with_default = parameters.posonlyargs.iter().chain(parameters.args.iter());
    let fixed = [
        (function.is_async, "it is asynchronous"),
        (!function.decorator_list.is_empty(), "it is decorated"),
        (names.yields, "it is a generator"),
        (
            parameters.vararg.is_some() || parameters.kwarg.is_some() || !parameters.kwonlyargs.is_empty(),
            "it has starred or keyword-only parameters",
        ),
        (
            with_default.any(|parameter| parameter.default.is_some()),
            "it has parameters with default values",
        ),
    ];
    if let Some((_, reason)) = fixed.iter().find(|(applies, _)| *applies) {
        return Some((*reason).to_owned());
    }
    let global = names.globals.iter().next();
    global.map(|name| format!("it changes the module's `{name}`"))
}

/// The text of a statement that is only a text.
fn documentation(statement: &Stmt) -> Option<String> {
    let Stmt::Expr(expression) = statement else {
        return None;
    };
    let literal = expression.value.as_string_literal_expr()?;
    Some(literal.value.to_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = r#""""What it does."""
import math
from a.b import c as d

LIMIT = 3

def add(a: int, b: int) -> int:
    # Both.
    return a + b

def twice(a: int) -> int:
    LIMIT = 2
    return add(a, a) + LIMIT + twice(a)

def area(r: float) -> float:
    return math.pi * r

def capped(a: int) -> int:
    return min(a, LIMIT)

@decorated
def one(a: int) -> int:
    return a

def two(a: int = 3) -> int:
    return a

def three(*a: int) -> int:
    return 1

async def four(a: int) -> int:
    return a

def five(a: int):
    yield a

def add(a: int, b: int) -> int:
    return b + a

class Point:
    def x(self) -> int:
        return 1

if __name__ == "__main__":
    print(add(1, 2))
"#;

    #[test]
    fn a_module_is_split_and_every_refusal_has_its_reason() {
        let module = Module::parse(&MODULE.replace('\n', "\r\n")).unwrap();
        assert_eq!(module.docstring.as_deref(), Some("What it does."));
        let told: Vec<_> = module
            .items
            .iter()
            .map(|item| {
                (
                    item.line,
                    item.name.as_deref(),
                    item.unsupported.as_deref().unwrap_or(""),
                )
            })
            .collect();
        let expected = [
            (2, None, "imports"),
            (3, None, "imports"),
            (5, None, "outside functions"),
            (7, Some("add"), "again on line 37"),
            (11, Some("twice"), ""),
            (15, Some("area"), "uses `math` of line 2"),
            (18, Some("capped"), "uses `LIMIT` of line 5"),
            (21, Some("one"), "decorated"),
            (25, Some("two"), "default"),
            (28, Some("three"), "starred"),
            (31, Some("four"), "asynchronous"),
            (34, Some("five"), "generator"),
            (37, Some("add"), ""),
            (40, Some("Point"), "classes"),
            (44, None, "outside functions"),
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (told, expected) in told.iter().zip(&expected) {
            assert_eq!((told.0, told.1), (expected.0, expected.1));
            assert!(told.2.contains(expected.2), "{told:?} {expected:?}");
            assert_eq!(told.2.is_empty(), expected.2.is_empty(), "{told:?}");
        }
        assert_eq!(module.items[4].calls, BTreeSet::from(["add".to_owned()]));
        assert_eq!(
            module.items[3].source,
            "def add(a: int, b: int) -> int:\n    # Both.\n    return a + b"
        );
        assert_eq!((module.functions(), module.items[3].replaced), (10, true));
        let global = Module::parse("A = 1\ndef f() -> int:\n    global A\n    A = 2\n    return A\n").unwrap();
        let reason = global.items[1].unsupported.as_deref().unwrap();
        assert!(reason.contains("`A`"), "{reason}");
    }

    #[test]
    fn comments_between_statements_are_kept() {
        let source = "#!python\n'Doc.'  # why\n# one\n#two\nA = 1  # three\n\n# four\ndef f() -> int:\n    return 1  # five\n    # six\n# seven\n";
        let module = Module::parse(source).unwrap();
        let comments: Vec<_> = module.items.iter().map(|item| item.comment.as_deref()).collect();
        assert_eq!(comments, [Some("!python\none\ntwo"), Some("four")]);
        assert_eq!(module.items[0].source, "A = 1  # three");
        assert!(module.items[1].source.ends_with("return 1"));
        assert_eq!(module.last_comment.as_deref(), Some("six\nseven"));
        let only = Module::parse("# one\n'Doc.'\n").unwrap();
        assert_eq!(only.last_comment.as_deref(), Some("one"));
    }

    #[test]
    fn what_nests_is_split_or_refused() {
        let nests = [
            ("(", "1", ")"),
            ("f(", "1", ")"),
            ("[", "1", "]"),
            ("{", "1", "}"),
            ("-", "1", ""),
            ("not ", "a", ""),
            ("1 + ", "1", ""),
            ("1 ** ", "1", ""),
            ("lambda: ", "1", ""),
            ("1 if a else ", "1", ""),
            ("", "a", ".b"),
            ("", "a", "[0]"),
            ("f'{", "1", "}'"),
            ("a = ", "1", ""),
        ];
        for (before, middle, after) in nests {
            let text = |levels: usize| format!("x = {}{middle}{}\n", before.repeat(levels), after.repeat(levels));
            // As deep as each may be: a level has up to five tokens.
            for levels in [100, 190, 300, 450, 990] {
                let outcome = Module::parse(&text(levels));
                assert!(
                    outcome.is_ok() || levels > 190,
                    "{before} {after} {levels}: {outcome:?}"
                );
            }
            for levels in [MAX_NESTING, 100 * MAX_NESTING] {
                assert!(Module::parse(&text(levels)).is_err(), "{before} {after} {levels}");
            }
        }
        let block = |levels: usize| {
            let lines = (0..levels).map(|level| format!("{}if a:\n", " ".repeat(level)));
            lines.chain([format!("{}a\n", " ".repeat(levels))]).collect::<String>()
        };
        assert!(Module::parse(&block(90)).is_ok());
        let _ = Module::parse(&block(MAX_NESTING - 10));
        assert!(Module::parse(&block(MAX_NESTING + 1)).is_err());
        let long = format!("x = [{}]\n", "1, ".repeat(10 * MAX_NESTING));
        assert_eq!(Module::parse(&long).unwrap().items.len(), 1);
    }

    #[test]
    fn what_is_not_python_is_told_with_its_line() {
        let error = Module::parse("a = 1\nb = 'é' +\n").unwrap_err();
        assert!(
            matches!(
                error,
                SourceError::Syntax {
                    line: 2,
                    column: 10,
                    ..
                }
            ),
            "{error}"
        );
        assert!(Module::parse("").unwrap().items.is_empty());
    }
}
