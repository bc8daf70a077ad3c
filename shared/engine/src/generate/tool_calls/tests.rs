//! Calls in every format, however the text is cut, and the grammars that force them.

use serde_json::json;

use super::*;

fn style(format: ToolFormat) -> ToolStyle {
    ToolStyle::new(format, |_| None)
}

fn call(name: &str, arguments: &str) -> ToolCall {
    ToolCall {
        name: name.to_owned(),
        arguments: arguments.to_owned(),
    }
}

/// Reads a text cut into pieces of so many characters.
fn read(format: ToolFormat, several: bool, text: &str, step: usize) -> (String, Vec<ToolCall>) {
    let mut reader = style(format).reader(several);
    let chars: Vec<char> = text.chars().collect();
    let (mut said, mut calls) = (String::new(), Vec::new());
    let mut take = |read: Read| {
        said.push_str(&read.text);
        calls.extend(read.calls);
    };
    for piece in chars.chunks(step) {
        take(reader.push(&piece.iter().collect::<String>()));
    }
    take(reader.finish());
    (said, calls)
}

#[test]
fn calls_are_found_however_the_text_is_cut() {
    let f = || call("f", r#"{"a":1}"#);
    let g = || call("g", r#"{"b":"</tool_call>","a":[2]}"#);
    let cases = [
        (
            ToolFormat::Hermes,
            "Let me look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {\"b\": \"</tool_call>\", \"a\": [2]}}\n</tool_call>\n",
            "Let me look.",
            vec![f(), g()],
        ),
        (
            ToolFormat::Hermes,
            "a < b\n<tool> and <tool_cal",
            "a < b\n<tool> and <tool_cal",
            vec![],
        ),
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\": oops}</tool_call> so",
            "<tool_call>{\"name\": oops}</tool_call> so",
            vec![],
        ),
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"f\"",
            "<tool_call>{\"name\": \"f\"",
            vec![],
        ),
        (
            ToolFormat::Llama,
            " {\"name\": \"f\", \"parameters\": {\"a\": 1}}",
            "",
            vec![f()],
        ),
        (
            ToolFormat::Llama,
            "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"a\": 1}}; {\"name\": \"g\", \"parameters\": {\"b\": \"</tool_call>\", \"a\": [2]}}",
            "",
            vec![f(), g()],
        ),
        (ToolFormat::Llama, "{\"a\": 1}", "{\"a\": 1}", vec![]),
        (ToolFormat::Llama, "No {\"name\": 1}", "No {\"name\": 1}", vec![]),
        (
            ToolFormat::MistralList,
            "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": \"{\\\"a\\\":[]}\"}]",
            "",
            vec![f(), call("g", r#"{"a":[]}"#)],
        ),
        (ToolFormat::MistralList, "see [TOOL] [1]", "see [TOOL] [1]", vec![]),
        (
            ToolFormat::MistralNamed,
            "Hm [TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[ARGS]{\"b\": \"</tool_call>\", \"a\": [2]}",
            "Hm",
            vec![f(), g()],
        ),
    ];
    for (format, text, said, calls) in cases {
        for step in [1, 2, 3, 7, 1_000] {
            assert_eq!(
                read(format, true, text, step),
                (said.to_owned(), calls.clone()),
                "{text} by {step}"
            );
        }
    }
}

#[test]
fn only_the_first_call_counts_when_one_is_wanted() {
    let text = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>";
    for step in [1, 1_000] {
        let (said, calls) = read(ToolFormat::Hermes, false, text, step);
        assert_eq!((said.as_str(), calls), ("", vec![call("f", "{}")]));
    }
    let mut reader = style(ToolFormat::Hermes).reader(false);
    assert!(reader.push(text).is_over && reader.push("more").is_over && reader.has_called());
}

#[test]
fn the_format_is_read_off_the_template() {
    let of = ToolFormat::of_template;
    assert_eq!(of("{% if tools %}<tool_call>{% endif %}"), Some(ToolFormat::Hermes));
    assert_eq!(of("{{ tools }}[TOOL_CALLS]"), Some(ToolFormat::MistralList));
    assert_eq!(of("{{ tools }}[TOOL_CALLS]x[ARGS]"), Some(ToolFormat::MistralNamed));
    assert_eq!(
        of("{{ tools }}{\"name\": f, \"parameters\": p}"),
        Some(ToolFormat::Llama)
    );
    assert_eq!(of("{{ messages }}<tool_call>"), None);
    assert_eq!(of("{{ tools }}"), None);
}

#[test]
fn marks_that_are_special_tokens_are_named_by_number() {
    let special = ToolStyle::new(ToolFormat::MistralList, |mark| (mark == "[TOOL_CALLS]").then_some(5));
    assert_eq!(special.kept_tokens(), [5]);
    let tool = ToolSpec {
        name: "f",
        parameters: None,
    };
    let Grammar::Lark(text) = special.grammar(&[tool], false) else {
        panic!("not a grammar of ours")
    };
    assert!(text.starts_with("start: <[5]> \" \"? \"[\" call \"]\"\n"), "{text}");
}

/// The grammar of each format allows what its reader reads, character by character, and nothing with another name or other arguments.
#[test]
fn what_a_grammar_allows_is_read_as_calls() {
    use crate::generate::generator::toy;

    let parameters = json!({
        "type": "object", "properties": { "p": { "$ref": "#/$defs/point" } }, "required": ["p"], "additionalProperties": false,
        "$defs": { "point": { "type": "array", "items": { "type": "integer" }, "maxItems": 2 } },
    });
    let (f, g) = (
        ToolSpec {
            name: "f",
            parameters: Some(&parameters),
        },
        ToolSpec {
            name: "g-1",
            parameters: None,
        },
    );
    let grammars = toy::byte_grammars();
    let complete = |grammar: &Grammar, text: &str| {
        let mut constraint = grammars.constraint(grammar).unwrap();
        for byte in text.bytes() {
            let id = u32::from(byte);
            if constraint.is_complete() || !constraint.mask().unwrap().is_allowed(id) {
                return false;
            }
            constraint.accept(id).unwrap();
        }
        constraint.is_complete() || constraint.mask().unwrap().is_allowed(toy::BYTE_EOS)
    };
    let formats = [
        (
            ToolFormat::Hermes,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"p\": [1, 2]}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"g-1\", \"arguments\": {\"x\": null}}\n</tool_call>",
            "\n",
        ),
        (
            ToolFormat::Llama,
            "{\"name\": \"f\", \"parameters\": {\"p\": [1, 2]}}",
            "{\"name\": \"g-1\", \"parameters\": {\"x\": null}}",
            "",
        ),
        (
            ToolFormat::MistralNamed,
            "[TOOL_CALLS]f[ARGS]{\"p\": [1, 2]}",
            "[TOOL_CALLS]g-1[ARGS]{\"x\": null}",
            "",
        ),
    ];
    for (format, first, second, between) in formats {
        let style = style(format);
        let (one, several) = (style.grammar(&[f, g], false), style.grammar(&[f, g], true));
        for text in [first, second] {
            assert!(complete(&one, text), "{text}");
            assert_eq!(read(format, true, text, 1).1.len(), 1, "{text}");
        }
        let both = [first, between, second].concat();
        if format != ToolFormat::Llama {
            assert!(complete(&several, &both) && !complete(&one, &both), "{both}");
            assert_eq!(read(format, true, &both, 1).1.len(), 2, "{both}");
        }
        let only_g = style.grammar(&[g], true);
        assert!(!complete(&only_g, first) && complete(&only_g, second));
        for broken in [
            first.replace("[1, 2]", "[1, 2, 3]"),
            first.replace("\"p\"", "\"q\""),
            first.replace('f', "h"),
        ] {
            assert!(!complete(&one, &broken), "{broken}");
        }
    }
    let list = style(ToolFormat::MistralList);
    let text = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"p\": []}}, {\"name\": \"g-1\", \"arguments\": {}}]";
    assert!(complete(&list.grammar(&[f, g], true), text) && !complete(&list.grammar(&[f, g], false), text));
}
