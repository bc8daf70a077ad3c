//! Known inputs and outputs of functions. Input: lines of JSON as the benchmark of nano-translator has them. Output: calls in
//! Rust, and whether what they show is what Python gave.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Floats agree to this part of their size, or to [`FLOAT_ABSOLUTE`]; the order of additions may differ.
const FLOAT_RELATIVE: f64 = 1e-9;
const FLOAT_ABSOLUTE: f64 = 1e-12;

/// A file of cases that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CasesError {
    /// A line is no JSON, or not of the form.
    #[error("line {line} of the cases cannot be read")]
    Form {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A value that is not of the type it should have.
    #[error("line {line} of the cases: {value} is no {kind}")]
    Value {
        /// The line, from 1.
        line: usize,
        /// The value, as JSON.
        value: String,
        /// The type.
        kind: String,
    },
    /// A type without a counterpart.
    #[error("line {line} of the cases: the type `{kind}` is none of int, float, bool, str and list[int]")]
    Type {
        /// The line, from 1.
        line: usize,
        /// The type.
        kind: String,
    },
    /// A case with too few or too many arguments.
    #[error("line {line} of the cases: a case has {found} arguments, the function {wanted}")]
    Arguments {
        /// The line, from 1.
        line: usize,
        /// How many the case has.
        found: usize,
        /// How many the function has.
        wanted: usize,
    },
}

/// The cases of many functions.
#[derive(Debug, Clone, Default)]
pub struct Cases {
    by_name: BTreeMap<String, Vec<FunctionCases>>,
}

/// The cases of one function.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionCases {
    python: Option<String>,
    /// The calls, in the order of the file.
    pub calls: Vec<Call>,
}

/// One call and its result.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The arguments in Rust.
    pub rust: String,
    /// The arguments as JSON, for people.
    pub shown: String,
    /// What Python gave.
    pub expected: Expected,
}

/// What Python gave.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// Exactly this text of the runner.
    Text(String),
    /// This number, nearly.
    Float(f64),
}

#[derive(Deserialize)]
struct Row {
    name: String,
    python: Option<String>,
    /// Name, type, and perhaps the range that inputs were drawn from.
    params: Vec<Vec<Value>>,
    returns: String,
    cases: Vec<RawCase>,
}

#[derive(Deserialize)]
struct RawCase {
    args: Vec<Value>,
    out: Value,
}

#[derive(Debug, Clone, Copy)]
enum Type {
    Int,
    Float,
    Bool,
    Str,
    IntList,
}

impl Cases {
    /// Reads a file: one function per line.
    ///
    /// # Errors
    /// Names the line that cannot be used.
    pub fn parse(text: &str) -> Result<Self, CasesError> {
        let mut cases = Self::default();
        for (place, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let number = place + 1;
            let row: Row = serde_json::from_str(line).map_err(|source| CasesError::Form { line: number, source })?;
            let (name, function) = function(number, row)?;
            cases.by_name.entry(name).or_default().push(function);
        }
        Ok(cases)
    }

    /// The cases of a function: those made from the same source, else the only ones of its name.
    #[must_use]
    pub fn of(&self, name: &str, python: &str) -> Option<&FunctionCases> {
        let named = self.by_name.get(name)?;
        let same = |cases: &&FunctionCases| cases.python.as_deref().is_some_and(|text| text.trim() == python.trim());
        let only = || match named.as_slice() {
            [one] => Some(one),
            _ => None,
        };
        named.iter().find(same).or_else(only)
    }
}

fn function(line: usize, row: Row) -> Result<(String, FunctionCases), CasesError> {
    let types = row.params.iter().map(|parameter| {
        let kind = parameter.get(1).and_then(Value::as_str).unwrap_or_default();
        Type::parse(line, kind)
    });
    let types: Vec<Type> = types.collect::<Result<_, _>>()?;
    let returns = Type::parse(line, &row.returns)?;
    let calls = row.cases.iter().map(|case| {
        if case.args.len() != types.len() {
            return Err(CasesError::Arguments {
                line,
                found: case.args.len(),
                wanted: types.len(),
            });
        }
        let literals = case.args.iter().zip(&types).map(|(value, kind)| {
            let literal = kind.literal(value);
            literal.ok_or_else(|| kind.mismatch(line, value))
        });
        let literals: Vec<String> = literals.collect::<Result<_, _>>()?;
        let expected = returns.expected(&case.out);
        Ok(Call {
            rust: literals.join(", "),
            shown: Value::from(case.args.clone()).to_string(),
            expected: expected.ok_or_else(|| returns.mismatch(line, &case.out))?,
        })
    });
    let cases = FunctionCases {
        calls: calls.collect::<Result<_, _>>()?,
        python: row.python,
    };
    Ok((row.name, cases))
}

impl Type {
    fn parse(line: usize, kind: &str) -> Result<Self, CasesError> {
        match kind {
            "int" => Ok(Self::Int),
            "float" => Ok(Self::Float),
            "bool" => Ok(Self::Bool),
            "str" => Ok(Self::Str),
            "list[int]" => Ok(Self::IntList),
            other => Err(CasesError::Type {
                line,
                kind: other.to_owned(),
            }),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Int => "int of 64 bits",
            Self::Float => "float",
            Self::Bool => "bool",
            Self::Str => "str",
            Self::IntList => "list of ints of 64 bits",
        }
    }

    fn mismatch(self, line: usize, value: &Value) -> CasesError {
        CasesError::Value {
            line,
            value: value.to_string(),
            kind: self.name().to_owned(),
        }
    }

    /// A value as an argument in Rust.
    fn literal(self, value: &Value) -> Option<String> {
        match self {
            Self::Int => value.as_i64().map(|number| format!("({number}_i64)")),
            Self::Float => value.as_f64().map(|number| format!("({number:?}_f64)")),
            Self::Bool => value.as_bool().map(|truth| truth.to_string()),
            Self::Str => value.as_str().map(|text| format!("{text:?}")),
            Self::IntList => {
                let numbers: Option<Vec<i64>> = value.as_array()?.iter().map(Value::as_i64).collect();
                let numbers = numbers?
                    .iter()
                    .map(|number| format!("{number}_i64"))
                    .collect::<Vec<_>>();
                Some(format!("&[{}]", numbers.join(", ")))
            }
        }
    }

    /// What the runner shows for a value; see `SHOW` in `verify.rs`.
    fn expected(self, value: &Value) -> Option<Expected> {
        let text = match self {
            Self::Float => return value.as_f64().map(Expected::Float),
            Self::Int => format!("i{}", value.as_i64()?),
            Self::Bool => format!("b{}", value.as_bool()?),
            Self::Str => format!("s{}", value.as_str()?),
            Self::IntList => {
                let numbers: Option<Vec<i64>> = value.as_array()?.iter().map(Value::as_i64).collect();
                format!("l{:?}", numbers?)
            }
        };
        Some(Expected::Text(text))
    }
}

impl Expected {
    /// Whether the runner showed this, or something as good.
    #[must_use]
    pub fn is_met_by(&self, shown: &str) -> bool {
        match self {
            Self::Text(text) => text == shown,
            Self::Float(wanted) => {
                let found = shown.strip_prefix('f').and_then(|number| number.parse::<f64>().ok());
                found.is_some_and(|found| nearly(found, *wanted))
            }
        }
    }
}

fn nearly(a: f64, b: f64) -> bool {
    let tolerance = (FLOAT_RELATIVE * a.abs().max(b.abs())).max(FLOAT_ABSOLUTE);
    // Infinite differences are those of infinities; equal ones are equal.
    a == b || ((a - b).is_finite() && (a - b).abs() <= tolerance)
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text.get(1..).unwrap_or_default()),
            Self::Float(number) => write!(f, "{number:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = r#"{"name": "f", "params": [["a", "int", [0, 9]], ["b", "list[int]"], ["c", "str"], ["d", "float"], ["e", "bool"]],
        "returns": "float", "cases": [{"args": [-1, [2, -3], "é\"\n", 2, true], "out": 0.5}]}"#;

    fn row() -> String {
        ROW.replace('\n', "")
    }

    #[test]
    fn arguments_are_written_in_rust() {
        let cases = Cases::parse(&format!("\n{}\n", row())).unwrap();
        let calls = &cases.of("f", "def f()").unwrap().calls;
        assert_eq!(calls[0].rust, r#"(-1_i64), &[2_i64, -3_i64], "é\"\n", (2.0_f64), true"#);
        assert_eq!(calls[0].expected, Expected::Float(0.5));
        assert!(cases.of("g", "").is_none());
    }

    #[test]
    fn the_source_decides_between_functions_of_one_name() {
        let line = |python: &str, out: i64| {
            format!(
                r#"{{"name": "f", "python": "{python}", "params": [], "returns": "int", "cases": [{{"args": [], "out": {out}}}]}}"#
            )
        };
        let cases = Cases::parse(&format!("{}\n{}", line("one", 1), line("two\\n", 2))).unwrap();
        let expected = |python| cases.of("f", python).map(|cases| cases.calls[0].expected.to_string());
        assert_eq!(expected("two").as_deref(), Some("2"));
        assert_eq!(expected("three"), None);
    }

    #[test]
    fn bad_lines_are_named() {
        let cases = [
            (row().replace("true]", "1]"), "1 is no bool"),
            (row().replace("[-1, [2", "[-1.5, [2"), "-1.5 is no int"),
            (row().replace(", true]", "]"), "4 arguments"),
            (row().replace(r#""returns": "float""#, r#""returns": "dict""#), "`dict`"),
            ("{".to_owned(), "line 1"),
        ];
        for (text, hint) in cases {
            let error = Cases::parse(&text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn floats_are_compared_nearly_and_the_rest_exactly() {
        let float = Expected::Float(1e6);
        assert!(float.is_met_by("f1000000.0") && float.is_met_by("f1000000.0001"));
        assert!(!float.is_met_by("f1000000.1") && !float.is_met_by("i1000000") && !float.is_met_by("PANIC"));
        assert!(!float.is_met_by("finf") && !float.is_met_by("fNaN"));
        let text = Expected::Text("sa".to_owned());
        assert!(text.is_met_by("sa") && !text.is_met_by("sa "));
    }
}
