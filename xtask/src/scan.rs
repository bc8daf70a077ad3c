//! A small Rust scanner: input is source text, output is the same text with comments and literals blanked out,
//! and where functions and test-only items begin and end.
//!
//! Not a parser: it knows just enough of the lexical grammar that a brace inside a string, a comment or a character
//! literal never counts. Every blanked character becomes a space and newlines stay, so line numbers hold.

use std::ops::RangeInclusive;

/// One source text in three views with the same line numbers.
#[derive(Debug, Clone)]
pub struct Source {
    /// Comments and the insides of string and character literals are spaces.
    pub code: String,
    /// Only comments are spaces: literals can be searched.
    pub literals: String,
    /// Lines (from 1) that belong to `#[cfg(test)]` items or `#[test]` functions.
    pub test_lines: Vec<RangeInclusive<usize>>,
    /// Lines (from 1) of tests on tokio's paused clock: a sleep there takes no time.
    pub paused_lines: Vec<RangeInclusive<usize>>,
}

/// A function with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Line of the `fn` keyword, from 1.
    pub line: usize,
    /// Lines from `fn` to the closing brace that hold code: blank and comment-only lines are free.
    pub code_lines: usize,
}

impl Source {
    /// Scans `text`.
    pub fn new(text: &str) -> Self {
        let (code, literals) = mask(text);
        let test_lines = items(&code, is_test_only);
        let paused_lines = items(&code, |attribute| {
            attribute.starts_with("#[tokio::test(") && attribute.contains("start_paused=true")
        });
        Self {
            code,
            literals,
            test_lines,
            paused_lines,
        }
    }

    /// Is this line (from 1) inside a test-only item?
    pub fn is_test_line(&self, line: usize) -> bool {
        self.test_lines.iter().any(|range| range.contains(&line))
    }

    /// Is this line (from 1) inside a test on tokio's paused clock?
    pub fn is_paused_line(&self, line: usize) -> bool {
        self.paused_lines.iter().any(|range| range.contains(&line))
    }

    /// Number of lines outside test-only items.
    pub fn lines_without_tests(&self) -> usize {
        (1..=self.code.lines().count())
            .filter(|line| !self.is_test_line(*line))
            .count()
    }

    /// Lines (from 1) of `view` outside test-only items that satisfy `wanted`.
    pub fn find<'a>(view: &'a str, wanted: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = usize> + 'a {
        view.lines()
            .enumerate()
            .filter(move |(_, line)| wanted(line))
            .map(|(index, _)| index + 1)
    }

    /// All functions with a body, in order.
    pub fn functions(&self) -> Vec<Function> {
        let chars: Vec<char> = self.code.chars().collect();
        let mut found = Vec::new();
        for at in words(&chars, "fn") {
            let name_start = skip_spaces(&chars, at + 2);
            let name: String = chars[name_start..]
                .iter()
                .take_while(|c| is_word(**c) || **c == '#')
                .collect();
            // `fn(u8) -> u8` is a type, not a function.
            if name.is_empty() {
                continue;
            }
            let Some(open) = body_start(&chars, name_start) else {
                continue;
            };
            let end = matching_brace(&chars, open);
            let code_lines = chars[at..=end]
                .iter()
                .collect::<String>()
                .lines()
                .filter(|l| !l.trim().is_empty())
                .count();
            found.push(Function {
                name,
                line: line_of(&chars, at),
                code_lines,
            });
        }
        found
    }

    /// Names of modules that are declared as `#[cfg(test)] mod name;`: their files hold tests only.
    pub fn test_modules(&self) -> Vec<String> {
        let chars: Vec<char> = self.code.chars().collect();
        attributes(&chars, is_test_only)
            .into_iter()
            .filter_map(|(_, after)| {
                let item: String = chars[skip_attributes(&chars, after)..]
                    .iter()
                    .take_while(|c| !"{;".contains(**c))
                    .collect();
                let ends_in_semicolon = chars.get(skip_attributes(&chars, after) + item.chars().count()) == Some(&';');
                let name = item
                    .trim()
                    .strip_prefix("pub ")
                    .unwrap_or(item.trim())
                    .strip_prefix("mod ")?
                    .trim()
                    .to_owned();
                ends_in_semicolon.then_some(name)
            })
            .collect()
    }
}

/// Returns `text` with comments and literals blanked, and with comments only blanked.
fn mask(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let mut masker = Masker {
        code: String::with_capacity(text.len()),
        literals: String::with_capacity(text.len()),
    };
    let mut at = 0;
    while at < chars.len() {
        let (kind, end) = next_token(&chars, at);
        masker.push(&chars[at..end], kind);
        at = end;
    }
    (masker.code, masker.literals)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Code,
    Comment,
    Literal,
}

struct Masker {
    code: String,
    literals: String,
}

impl Masker {
    fn push(&mut self, chars: &[char], kind: Token) {
        for (index, c) in chars.iter().enumerate() {
            // The quotes of a literal stay, so that `""` is still seen as an expression.
            let edge = index == 0 || index + 1 == chars.len();
            let blank = if *c == '\n' { '\n' } else { ' ' };
            self.code
                .push(if kind == Token::Code || (kind == Token::Literal && edge) {
                    *c
                } else {
                    blank
                });
            self.literals.push(if kind == Token::Comment { blank } else { *c });
        }
    }
}

/// The token that starts at `at`: its kind and its end (exclusive, always after `at`).
fn next_token(chars: &[char], at: usize) -> (Token, usize) {
    let next = chars.get(at + 1).copied();
    let after_word = at > 0 && is_word(chars[at - 1]);
    match chars[at] {
        '/' if next == Some('/') => (Token::Comment, line_end(chars, at)),
        '/' if next == Some('*') => (Token::Comment, block_comment_end(chars, at)),
        '"' => (Token::Literal, string_end(chars, at + 1)),
        '\'' => match char_literal_end(chars, at) {
            Some(end) => (Token::Literal, end),
            // A lifetime or a label.
            None => (Token::Code, at + 1),
        },
        'r' | 'b' | 'c' if !after_word => match raw_string_end(chars, at) {
            Some(end) => (Token::Literal, end),
            None => (Token::Code, at + 1),
        },
        _ => (Token::Code, at + 1),
    }
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..]
        .iter()
        .position(|c| *c == '\n')
        .map_or(chars.len(), |offset| at + offset)
}

/// Block comments nest in Rust.
fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0usize;
    let mut at = start;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => {
                depth += 1;
                at += 2;
            }
            ('*', '/') => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    chars.len()
}

/// End of a string with escapes whose first inner character is at `at`.
fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `'x'`, `'\n'`, `'\u{1F600}'`, `'\''`; `None` for a lifetime.
fn char_literal_end(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at + 1) == Some(&'\\') {
        // The escaped character itself may be a quote, so the search begins behind it.
        let close = chars.get(at + 3..)?.iter().position(|c| *c == '\'')?;
        return Some(at + 3 + close + 1);
    }
    (chars.get(at + 2) == Some(&'\'') && chars.get(at + 1) != Some(&'\'')).then_some(at + 3)
}

/// End of `r"…"`, `r#"…"#`, `br"…"`, `cr#"…"#`; `None` where no raw string starts (also for `b"…"`, whose quote is
/// seen next, and for raw identifiers such as `r#fn`).
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let mut at = start;
    if matches!(chars[at], 'b' | 'c') {
        at += 1;
    }
    if chars.get(at) != Some(&'r') {
        return None;
    }
    at += 1;
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    at += hashes;
    if chars.get(at) != Some(&'"') {
        return None;
    }
    at += 1;
    while at < chars.len() {
        let closes = chars[at] == '"' && chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
        if closes {
            return Some((at + 1 + hashes).min(chars.len()));
        }
        at += 1;
    }
    Some(chars.len())
}

/// Is this character part of an identifier?
pub fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Does `line` contain `word` with no identifier character on either side?
pub fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

fn words(chars: &[char], word: &str) -> Vec<usize> {
    let word: Vec<char> = word.chars().collect();
    (0..chars.len().saturating_sub(word.len()))
        .filter(|at| {
            let end = at + word.len();
            // A raw identifier `r#fn` is a name.
            let free_before = *at == 0 || !(is_word(chars[at - 1]) || chars[at - 1] == '#');
            chars[*at..end] == word[..] && free_before && !is_word(chars[end])
        })
        .collect()
}

fn skip_spaces(chars: &[char], at: usize) -> usize {
    chars[at..]
        .iter()
        .position(|c| !c.is_whitespace())
        .map_or(chars.len(), |offset| at + offset)
}

fn line_of(chars: &[char], at: usize) -> usize {
    chars[..at].iter().filter(|c| **c == '\n').count() + 1
}

/// The brace that opens a body, or `None` when a semicolon comes first (a declaration).
fn body_start(chars: &[char], from: usize) -> Option<usize> {
    let mut depth = 0i32;
    for (at, c) in chars.iter().enumerate().skip(from) {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' if depth == 0 => return Some(at),
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn matching_brace(chars: &[char], open: usize) -> usize {
    let mut depth = 0i32;
    for (at, c) in chars.iter().enumerate().skip(open) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len() - 1
}

/// Does this attribute, written without spaces, make its item test-only?
fn is_test_only(attribute: &str) -> bool {
    ["#[cfg(test)]", "#[test]"].contains(&attribute)
        || attribute.starts_with("#[cfg(all(test,")
        || attribute.starts_with("#[tokio::test")
}

/// Start and end (exclusive) of every outer attribute that is `wanted`.
fn attributes(chars: &[char], wanted: impl Fn(&str) -> bool) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + 1 < chars.len() {
        if chars[at] != '#' || chars[at + 1] != '[' {
            at += 1;
            continue;
        }
        let end = attribute_end(chars, at);
        let text: String = chars[at..end].iter().filter(|c| !c.is_whitespace()).collect();
        if wanted(&text) {
            found.push((at, end));
        }
        at = end;
    }
    found
}

/// End (exclusive) of the attribute whose `#` is at `at`.
fn attribute_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0i32;
    for (end, c) in chars.iter().enumerate().skip(at + 1) {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return end + 1;
        }
    }
    chars.len()
}

fn skip_attributes(chars: &[char], from: usize) -> usize {
    let mut at = skip_spaces(chars, from);
    while chars.get(at) == Some(&'#') && chars.get(at + 1) == Some(&'[') {
        at = skip_spaces(chars, attribute_end(chars, at));
    }
    at
}

/// Lines of the items that carry an attribute that is `wanted`.
fn items(code: &str, wanted: impl Fn(&str) -> bool) -> Vec<RangeInclusive<usize>> {
    let chars: Vec<char> = code.chars().collect();
    attributes(&chars, wanted)
        .into_iter()
        .map(|(start, after)| {
            let end = body_start(&chars, skip_attributes(&chars, after))
                .map(|open| matching_brace(&chars, open))
                // A declaration such as `mod tests;` or `use …;` ends at its semicolon.
                .or_else(|| {
                    chars[after..]
                        .iter()
                        .position(|c| *c == ';')
                        .map(|offset| after + offset)
                })
                .unwrap_or(chars.len().saturating_sub(1));
            line_of(&chars, start)..=line_of(&chars, end)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new(text).code
    }

    #[test]
    fn comments_and_literals_are_blank_and_lines_stay() {
        let cases = [
            ("let a = \"}\\\"}\"; }", "let a = \"    \"; }"),
            ("a // } \"\n}", "a       \n}"),
            ("a /* } /* { */ } */ b", "a                   b"),
            ("let c = '}'; {", "let c = ' '; {"),
            ("let c = '\\''; {", "let c = '  '; {"),
            ("let c = '\\u{7D}'; {", "let c = '      '; {"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("'outer: loop { break 'outer }", "'outer: loop { break 'outer }"),
            ("let s = r\"\\\"; }", "let s = r  \"; }"),
            ("let s = br##\"}\"#{\"##; }", "let s = b          #; }"),
            ("let r#fn = b'{'; }", "let r#fn = b' '; }"),
            ("let x = b\"{\"; }", "let x = b\" \"; }"),
            ("let x = bar\"{\"; }", "let x = bar\" \"; }"),
            ("let x = \"{\n}\"; }", "let x = \" \n \"; }"),
            ("let x = '\u{e9}'; '{'", "let x = ' '; ' '"),
        ];
        for (text, expected) in cases {
            assert_eq!(code(text), expected, "source {text:?}");
        }
        assert_eq!(Source::new("f(\"a // b\"); // c").literals, "f(\"a // b\");     ");
    }

    #[test]
    fn unterminated_input_ends_the_scan_without_a_panic() {
        for text in [
            "\"abc",
            "r#\"abc",
            "/* /* */",
            "'",
            "'\\",
            "b",
            "r",
            "br",
            "fn",
            "fn f",
            "fn f(",
            "#[",
            "#[cfg(test)]",
            "\\",
        ] {
            let source = Source::new(text);
            source.functions();
            source.test_modules();
            assert_eq!(source.code.chars().count(), text.chars().count(), "source {text:?}");
        }
    }

    #[test]
    fn functions_are_found_with_their_length() {
        let text = "trait T { fn declared(&self) -> [u8; 4]; }\n\
                    type F = fn(u8) -> u8;\n\
                    fn one() {}\n\
                    impl A {\n    pub fn two<'a>(x: [u8; 2]) -> Option<&'a str>\n    where X: Y,\n    {\n        // }\n\n        let s = \"}\";\n    }\n}\n";
        let found: Vec<_> = Source::new(text)
            .functions()
            .into_iter()
            .map(|f| (f.name, f.line, f.code_lines))
            .collect();
        assert_eq!(found, [("one".to_owned(), 3, 1), ("two".to_owned(), 5, 5)]);
    }

    #[test]
    fn test_items_are_told_from_code() {
        let text = "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod more;\n#[cfg(not(test))]\nfn d() {}\n\
                    #[test]\nfn e() {\n}\n#[cfg(all(test, unix))]\nuse x::{y};\n";
        let source = Source::new(text);
        assert_eq!(source.test_lines, [2..=6, 8..=9, 12..=14, 15..=16]);
        assert_eq!(source.lines_without_tests(), 4);
        assert_eq!(source.test_modules(), ["more"]);
    }

    #[test]
    fn words_stand_alone() {
        assert!(has_word("a StatusCode::OK", "StatusCode"));
        assert!(!has_word("MyStatusCode", "StatusCode"));
        assert!(!has_word("StatusCodes", "StatusCode"));
    }
}
