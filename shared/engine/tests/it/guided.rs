//! Structured output and calls of the real tokenizer with a model that knows nothing of either; input: `models/nano-translator` at high temperatures,
//! output: texts that conform every time, and the same texts for those beside them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use engine::Precision;
use engine::generate::scheduler::SeqId;
use engine::generate::{
    AddSpecial, ChatRequest, CpuGenerateBackend, FinishReason, GenerateOptions, Generation, Generator,
    GeneratorOptions, Grammar, SpecialTokens, TextModel, ToolCall, ToolSpec, sampling::SamplingParams,
};
use serde_json::{Value, json};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano-translator")
}

/// The model with a chat template of Hermes' kind.
fn caller() -> TextModel {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(directory().join(file), folder.path().join(file)).unwrap();
    }
    let template = include_str!("../fixtures/chat/hermes.jinja");
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    TextModel::load(folder.path()).unwrap()
}

fn generator() -> Generator {
    let options = GenerateOptions {
        precision: Precision::F32,
        ..GenerateOptions::default()
    };
    let backend = CpuGenerateBackend::load(&directory(), options).unwrap();
    Generator::new(Box::new(backend), GeneratorOptions::default())
}

fn wild(text: &TextModel, seed: u64) -> Generation {
    let prompt = text.encode("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", AddSpecial::No);
    Generation {
        sampling: SamplingParams {
            temperature: 0.5 + 0.1 * seed as f32,
            seed,
            ..SamplingParams::default()
        },
        max_tokens: Some(700),
        ..Generation::new(prompt.unwrap(), text.detokenizer(SpecialTokens::Skip))
    }
}

/// A complete answer.
#[derive(Debug, Default, PartialEq)]
struct Whole {
    text: String,
    calls: Vec<ToolCall>,
    finish: Option<FinishReason>,
}

fn answers(generator: &mut Generator, generations: Vec<Generation>) -> Vec<Whole> {
    let ids: Vec<SeqId> = generations
        .into_iter()
        .map(|made| generator.add(made).unwrap())
        .collect();
    let mut wholes: HashMap<SeqId, Whole> = HashMap::new();
    while !generator.is_idle() {
        for progress in generator.step().unwrap().progress {
            let whole = wholes.entry(progress.id).or_default();
            whole.text.push_str(&progress.text);
            whole.calls.extend(progress.calls);
            whole.finish = progress.finish;
        }
    }
    ids.iter().map(|id| wholes.remove(id).unwrap()).collect()
}

#[test]
fn json_conforms_to_its_schema_every_time() {
    let text = TextModel::load(&directory()).unwrap();
    let schema = json!({
        "$defs": { "kind": { "enum": ["a", "b", "\u{e4}"] } },
        "type": "object",
        "properties": {
            "kind": { "$ref": "#/$defs/kind" },
            "numbers": { "type": "array", "items": { "type": "integer", "minimum": -20, "maximum": 300 }, "maxItems": 3 },
            "name": { "type": "string", "maxLength": 8 },
            "maybe": { "anyOf": [{ "type": "null" }, { "type": "boolean" }] },
        },
        "required": ["kind", "numbers", "name", "maybe"],
        "additionalProperties": false,
    });
    let constraint = text.constraint(&Grammar::JsonSchema(schema.to_string())).unwrap();
    let guided = |seed| Generation {
        constraint: Some(constraint.clone()),
        ..wild(&text, seed)
    };
    let mut generator = generator();
    let free: Vec<Generation> = (0..8).map(|seed| wild(&text, seed)).collect();
    let beside = answers(&mut generator, free.clone());
    let mixed = (0..16).map(guided).chain(free).collect();
    let mixed = answers(&mut generator, mixed);
    for whole in &mixed[..16] {
        assert_eq!(whole.finish, Some(FinishReason::Stop), "{whole:?}");
        let value: Value = serde_json::from_str(&whole.text).unwrap_or_else(|error| panic!("{error}: {}", whole.text));
        assert!(["a", "b", "\u{e4}"].contains(&value["kind"].as_str().unwrap()));
        let numbers = value["numbers"].as_array().unwrap();
        assert!(
            numbers.len() <= 3
                && numbers
                    .iter()
                    .all(|number| (-20..=300).contains(&number.as_i64().unwrap()))
        );
        assert!(value["name"].as_str().unwrap().chars().count() <= 8);
        assert!(value["maybe"].is_null() || value["maybe"].is_boolean());
        assert_eq!(value.as_object().unwrap().len(), 4);
    }
    assert_eq!(&mixed[16..], beside, "those beside them see no difference");
    assert!(mixed[..16].windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn whole_texts_of_expressions_and_choices() {
    let text = TextModel::load(&directory()).unwrap();
    let choices = ["fn", "fn main", "let \u{fc} = \"q\\\";\n"];
    let regex = text
        .constraint(&Grammar::Regex("[a-c]{2,5}-[0-9]+x".to_owned()))
        .unwrap();
    let choice = text
        .constraint(&Grammar::Choice(choices.map(str::to_owned).to_vec()))
        .unwrap();
    let object = text.constraint(&Grammar::JsonObject).unwrap();
    let with = |constraint: &engine::generate::Constraint, seed| Generation {
        constraint: Some(constraint.clone()),
        ..wild(&text, seed)
    };
    let generations = (0..8).flat_map(|seed| [with(&regex, seed), with(&choice, seed), with(&object, seed)]);
    for three in answers(&mut generator(), generations.collect()).chunks(3) {
        let (letters, rest) = three[0].text.split_once('-').unwrap();
        assert!((2..=5).contains(&letters.len()) && letters.bytes().all(|byte| (b'a'..=b'c').contains(&byte)));
        if three[0].finish == Some(FinishReason::Stop) {
            let digits = rest.strip_suffix('x').unwrap();
            assert!(!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
        }
        assert!(choices.contains(&three[1].text.as_str()), "{:?}", three[1]);
        let value: Result<Value, _> = serde_json::from_str(&three[2].text);
        match three[2].finish {
            Some(FinishReason::Stop) => assert!(value.unwrap().is_object()),
            // A string or a number may go on for ever.
            other => assert_eq!(
                (other, three[2].text.starts_with('{')),
                (Some(FinishReason::Length), true)
            ),
        }
    }
}

#[test]
fn forced_calls_are_always_read() {
    let text = caller();
    let style = text.tool_style().unwrap();
    let parameters = json!({
        "type": "object", "properties": { "city": { "enum": ["Oslo", "Rome"] } }, "required": ["city"], "additionalProperties": false,
    });
    let tool = |name| ToolSpec {
        name,
        parameters: Some(&parameters),
    };
    let (one, several) = (
        style.grammar(&[tool("f")], false),
        style.grammar(&[tool("f"), tool("g")], true),
    );
    let made = |grammar: &Grammar, seed| Generation {
        constraint: Some(text.constraint(grammar).unwrap()),
        calls: Some(style.reader(true)),
        detokenizer: text.detokenizer_of_calls(style),
        max_tokens: Some(900),
        ..wild(&text, seed)
    };
    let generations = (0..12).flat_map(|seed| [made(&one, seed), made(&several, seed)]);
    for pair in answers(&mut generator(), generations.collect()).chunks(2) {
        assert_eq!(
            (pair[0].calls.len(), pair[0].finish),
            (1, Some(FinishReason::ToolCalls)),
            "{pair:?}"
        );
        assert!(!pair[1].calls.is_empty());
        for whole in pair
            .iter()
            .filter(|whole| whole.finish == Some(FinishReason::ToolCalls))
        {
            assert_eq!(whole.text, "", "{whole:?}");
        }
        for call in pair.iter().flat_map(|whole| &whole.calls) {
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
            assert!(
                ["f", "g"].contains(&call.name.as_str())
                    && ["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap())
            );
        }
    }
}

#[test]
fn the_template_shows_functions_calls_and_their_answers() {
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }]);
    let messages = json!([
        { "role": "user", "content": "go" },
        { "role": "assistant", "content": null, "tool_calls": [{ "function": { "name": "f", "arguments": { "a": 1 } } }] },
        { "role": "tool", "content": "12" },
    ]);
    let rendered = caller()
        .render_chat(&ChatRequest::new(&messages, 0).with_tools(&tools))
        .unwrap();
    for part in [
        "\n<tools>\n{\"type\": \"function\"",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        "<tool_response>\n12\n",
    ] {
        assert!(rendered.contains(part), "{rendered}");
    }
    assert!(TextModel::load(&directory()).unwrap().tool_style().is_none());
}
