//! The whole job with a scripted model and the real rustc. Input: modules and answers. Output: what the reports say.

#![expect(clippy::unwrap_used, reason = "what the tests share fails like the tests")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use translate::{
    AskError, Cases, JobError, Limits, Message, Module, Options, Report, Role, Said, Status, Verifier, assemble,
    translate,
};

/// A model that answers from a list, by the function it is asked for.
#[derive(Default)]
struct Script {
    answers: RefCell<BTreeMap<String, Vec<String>>>,
    asked: RefCell<Vec<Vec<Message>>>,
}

impl Script {
    fn new(answers: &[(&str, &[&str])]) -> Self {
        let answers = answers.iter().map(|(name, texts)| {
            let texts = texts.iter().rev().map(ToString::to_string).collect();
            ((*name).to_owned(), texts)
        });
        Self {
            answers: RefCell::new(answers.collect()),
            ..Self::default()
        }
    }

    fn answer(&self, messages: Vec<Message>) -> Result<Said, AskError> {
        let name = messages[0].content.strip_prefix("def ").unwrap();
        let name = name.split('(').next().unwrap().to_owned();
        self.asked.borrow_mut().push(messages);
        let text = self.answers.borrow_mut().get_mut(&name).and_then(Vec::pop);
        let said = text.map(|text| Said { text, cached: false });
        said.ok_or_else(|| AskError {
            message: format!("no answer for {name}"),
            fatal: false,
        })
    }

    async fn run(&self, module: &Module, options: &Options) -> Report {
        let done = Cell::new(0);
        let ask = |messages| std::future::ready(self.answer(messages));
        let report = translate(module, options, ask, |_, _| done.set(done.get() + 1))
            .await
            .unwrap();
        assert_eq!(
            (done.get(), report.items.len()),
            (module.items.len(), module.items.len())
        );
        report
    }

    fn asked_for(&self, name: &str) -> usize {
        let start = format!("def {name}(");
        let asked = self.asked.borrow();
        asked
            .iter()
            .filter(|messages| messages[0].content.starts_with(&start))
            .count()
    }
}

fn options(cases: Option<&str>) -> Options {
    Options {
        parallel: 4,
        retries: 1,
        verifier: Some(Verifier::new("rustc", Limits::default())),
        cases: cases.map(|text| Cases::parse(text).unwrap()),
    }
}

fn statuses(report: &Report) -> Vec<(&str, Status)> {
    let items = report.items.iter();
    items
        .map(|item| (item.name.as_deref().unwrap_or("-"), item.status))
        .collect()
}

fn item<'r>(report: &'r Report, name: &str) -> &'r translate::ItemReport {
    let mut items = report.items.iter();
    items.find(|item| item.name.as_deref() == Some(name)).unwrap()
}

const FUNCTIONS: &str = "
import os
def good(a: int) -> int:
    return a
def mended(a: int) -> int:
    return a + 1
def slow_learner(a: int) -> int:
    return a + 2
def stubborn(a: int) -> int:
    return a + 3
def refused(a: int) -> int:
    return a + 4
def uncased(a: int) -> int:
    return a + 5
def reaching(a: int) -> int:
    return a + 6
def silent(a: int) -> int:
    return a + 7
def garbled(a: int) -> int:
    return a + 8
";

fn cases() -> String {
    let row = |name: &str, more: i64| {
        format!(
            r#"{{"name": "{name}", "params": [["a", "int"]], "returns": "int", "cases": [{{"args": [1], "out": {}}}]}}"#,
            1 + more
        )
    };
    let rows = [
        ("good", 0),
        ("mended", 1),
        ("slow_learner", 2),
        ("stubborn", 3),
        ("reaching", 6),
    ];
    rows.map(|(name, more)| row(name, more)).join("\n")
}

#[tokio::test]
async fn each_function_ends_as_its_answers_deserve() {
    let wrong = "fn stubborn(a: i64) -> i64 { a }";
    let model = Script::new(&[
        ("good", &["```rust\npub fn good(a: i64) -> i64 {\n    a\n}\n```"]),
        (
            "mended",
            &[
                "fn mended(a: i64) -> bool { a + 1 }",
                "fn mended(a: i64) -> i64 { a + 1 }",
            ],
        ),
        (
            "slow_learner",
            &["fn other() {}", "fn slow_learner(a: i64) -> i64 { a + 2 }"],
        ),
        ("stubborn", &[wrong, wrong]),
        ("refused", &["// unsupported: addition"]),
        ("uncased", &["fn uncased(a: i64) -> i64 { a + 5 }"]),
        ("reaching", &["fn reaching(a: i64) -> i64 { std::process::exit(1) }"]),
        ("garbled", &["fn garbled(a: i64) -> bool { a + 8 }", "'"]),
    ]);
    let module = Module::parse(FUNCTIONS).unwrap();
    let report = model.run(&module, &options(Some(&cases()))).await;
    let expected = [
        ("-", Status::Unsupported),
        ("good", Status::Translated),
        ("mended", Status::Repaired),
        ("slow_learner", Status::Repaired),
        ("stubborn", Status::Failed),
        ("refused", Status::Unsupported),
        ("uncased", Status::Unverified),
        ("reaching", Status::Unverified),
        ("silent", Status::Failed),
        ("garbled", Status::Failed),
    ];
    assert_eq!(statuses(&report), expected);
    assert!(!report.complete && report.verified);
    assert_eq!(report.summary.functions, 9);

    let proved = |name: &str| {
        (
            item(&report, name).compiles,
            item(&report, name).behaves,
            item(&report, name).attempts,
        )
    };
    assert_eq!(proved("good"), (Some(true), Some(true), 1));
    assert_eq!(proved("mended"), (Some(true), Some(true), 2));
    assert_eq!(proved("stubborn"), (Some(true), Some(false), 2));
    assert_eq!(proved("uncased"), (Some(true), None, 1));
    assert_eq!(proved("reaching"), (Some(true), None, 1));
    let reason = |name: &str| item(&report, name).reason.clone().unwrap();
    assert!(
        reason("stubborn").contains("for [1] Python gives 4, this 1"),
        "{}",
        reason("stubborn")
    );
    assert!(reason("refused").ends_with("addition") && reason("silent").contains("no answer for silent"));

    assert_eq!(proved("garbled"), (Some(false), None, 2));
    assert!(reason("garbled").contains("mismatched types"), "{}", reason("garbled"));

    let asked = model.asked.borrow();
    let second = asked
        .iter()
        .find(|messages| messages.len() > 1 && messages[0].content.contains("mended"));
    let second = second.unwrap();
    assert_eq!(second[1].role, Role::Assistant);
    assert!(second[2].content.contains("mismatched types"), "{}", second[2].content);

    let rust = assemble(&module, &report);
    let file = syn::parse_file(&rust).unwrap();
    assert_eq!(file.items.len(), 5, "{rust}");
    assert!(
        rust.contains("// Not translated: function `stubborn` of line 9: for [1]"),
        "{rust}"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["items"][2]["status"], "repaired");
    assert_eq!(
        (&json["summary"]["failed"], &json["complete"]),
        (&3.into(), &false.into())
    );
}

#[tokio::test]
async fn callees_come_first_and_take_their_callers_with_them() {
    let source = "
def top(a: int) -> int:
    return middle(a) + 1
def middle(a: int) -> int:
    return bottom(a) + 1
def bottom(a: int) -> int:
    return a
def above_lost(a: int) -> int:
    return on_lost(a)
def on_lost(a: int) -> int:
    return lost(a)
def lost(a: int) -> int:
    return a
def even(a: int) -> bool:
    return a == 0 or odd(a - 1)
def odd(a: int) -> bool:
    return a != 0 and even(a - 1)
";
    let model = Script::new(&[
        ("top", &["fn top(a: i64) -> i64 { middle(a) + 1 }"]),
        ("middle", &["fn middle(a: i64) -> i64 { bottom(a) + 1 }"]),
        ("bottom", &["fn bottom(a: i64) -> i64 { a }"]),
        ("lost", &["// unsupported: it"]),
        ("even", &["fn even(a: i64) -> bool { a == 0 || odd(a - 1) }"]),
        ("odd", &["fn odd(a: i64) -> bool { a != 0 && even(a - 1) }"]),
    ]);
    let row = r#"{"name": "top", "params": [["a", "int"]], "returns": "int", "cases": [{"args": [1], "out": 3}]}"#;
    let mut options = options(None);
    let module = Module::parse(source).unwrap();
    let report = model.run(&module, &options).await;
    let expected = [
        ("top", Status::Translated),
        ("middle", Status::Translated),
        ("bottom", Status::Translated),
        ("above_lost", Status::Failed),
        ("on_lost", Status::Failed),
        ("lost", Status::Unsupported),
        ("even", Status::Translated),
        ("odd", Status::Translated),
    ];
    assert_eq!(statuses(&report), expected);
    assert_eq!(
        item(&report, "on_lost").reason.as_deref(),
        Some("it calls `lost`, which is not translated")
    );
    assert_eq!((model.asked_for("on_lost"), model.asked_for("above_lost")), (0, 0));

    // What it calls is compiled and run with it.
    options.cases = Some(Cases::parse(row).unwrap());
    let model = Script::new(&[
        ("top", &["fn top(a: i64) -> i64 { middle(a) + 1 }"]),
        ("middle", &["fn middle(a: i64) -> i64 { bottom(a) + 1 }"]),
        ("bottom", &["fn bottom(a: i64) -> i64 { a }"]),
    ]);
    let report = model.run(&module, &options).await;
    assert_eq!(item(&report, "top").behaves, Some(true));
}

#[tokio::test]
async fn a_circle_stands_or_falls_together() {
    let source = "
def even(a: int) -> bool:
    return a == 0 or odd(a - 1)
def odd(a: int) -> bool:
    return a != 0 and even(a - one())
def one() -> int:
    return 1
def user(a: int) -> bool:
    return even(a)
";
    let row = r#"{"name": "odd", "params": [["a", "int"]], "returns": "bool", "cases": [{"args": [3], "out": true}]}"#;
    let module = Module::parse(source).unwrap();
    let answers = |odd: &'static str| {
        Script::new(&[
            ("even", &["fn even(a: i64) -> bool { a == 0 || odd(a - 1) }"]),
            ("odd", &[odd]),
            ("one", &["fn one() -> i64 { 1 }"]),
            ("user", &["fn user(a: i64) -> bool { even(a) }"]),
        ])
    };
    let options = options(Some(row));
    let report = answers("fn odd(a: i64) -> bool { a != 0 && even(a - one()) }")
        .run(&module, &options)
        .await;
    let behaves = |report: &Report, name: &str| (item(report, name).compiles, item(report, name).behaves);
    assert_eq!(behaves(&report, "odd"), (Some(true), Some(true)));
    assert_eq!(behaves(&report, "even"), (Some(true), None));
    assert_eq!(item(&report, "user").status, Status::Unverified, "it has no cases");
    let report = answers("fn odd(a: i64) -> bool { a + even(a) }")
        .run(&module, &options)
        .await;
    for name in ["even", "odd", "user"] {
        assert_eq!(item(&report, name).status, Status::Failed, "{name}");
    }
    let reason = item(&report, "even").reason.clone().unwrap();
    assert!(reason.contains("in a circle") && reason.contains("error"), "{reason}");
    let report = answers("// unsupported: it").run(&module, &options).await;
    let reason = item(&report, "even").reason.clone();
    assert_eq!(reason.as_deref(), Some("it calls `odd`, which is not translated"));
}

#[tokio::test]
async fn what_reads_while_it_is_compiled_is_not_compiled_and_who_acts_is_not_run() {
    let source = "
def reads() -> str:
    return ''
def acts() -> int:
    return 1
def calls() -> int:
    return acts()
";
    let row = |name: &str| {
        format!(r#"{{"name": "{name}", "params": [], "returns": "int", "cases": [{{"args": [], "out": 1}}]}}"#)
    };
    let reading = "fn reads() -> String { include_str!(\"/etc/hostname\").to_string() }";
    let model = Script::new(&[
        ("reads", &[reading, reading]),
        ("acts", &["fn acts() -> i64 { std::process::exit(1) }"]),
        ("calls", &["fn calls() -> i64 { acts() }"]),
    ]);
    let module = Module::parse(source).unwrap();
    let rows = [row("acts"), row("calls")].join("\n");
    let report = model.run(&module, &options(Some(&rows))).await;
    let reads = item(&report, "reads");
    assert_eq!((reads.status, reads.compiles), (Status::Failed, None));
    assert!(reads.reason.as_deref().unwrap().contains("`include_str`"));
    for name in ["acts", "calls"] {
        let item = item(&report, name);
        let found = (item.status, item.compiles, item.behaves);
        assert_eq!(found, (Status::Unverified, Some(true), None));
        assert!(item.reason.as_deref().unwrap().contains("`std::process`"), "{item:?}");
    }
    assert!(assemble(&module, &report).contains("// Not verified: it compiles"));
}

#[tokio::test]
async fn without_verification_nothing_is_claimed_and_without_a_model_nothing_is_done() {
    let module = Module::parse("def f(a: int) -> int:\n    return a\n").unwrap();
    let options = Options {
        verifier: None,
        ..options(None)
    };
    let model = Script::new(&[("f", &["fn f(a: i64) -> bool { a }"])]);
    let report = model.run(&module, &options).await;
    assert_eq!(statuses(&report), [("f", Status::Unverified)]);
    assert!(report.complete && !report.verified);

    let gone = || {
        Err(AskError {
            message: "gone".to_owned(),
            fatal: true,
        })
    };
    let outcome = translate(&module, &options, |_| std::future::ready(gone()), |_, _| ()).await;
    assert!(matches!(outcome, Err(JobError::Model(error)) if error.message == "gone"));
}

#[tokio::test]
async fn no_more_functions_are_asked_for_at_once_than_wanted() {
    const PARALLEL: usize = 3;
    let functions: Vec<String> = (0..12)
        .map(|n| format!("def f{n}(a: int) -> int:\n    return a\n"))
        .collect();
    let module = Module::parse(&functions.concat()).unwrap();
    let options = Options {
        parallel: PARALLEL,
        verifier: None,
        ..options(None)
    };
    let (now, most) = (Cell::new(0), Cell::new(0));
    let ask = |messages: Vec<Message>| {
        let (now, most) = (&now, &most);
        async move {
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            tokio::task::yield_now().await;
            now.set(now.get() - 1);
            let name = messages[0].content["def ".len()..]
                .split('(')
                .next()
                .unwrap()
                .to_owned();
            let text = format!("fn {name}(a: i64) -> i64 {{ a }}");
            Ok(Said { text, cached: true })
        }
    };
    let report = translate(&module, &options, ask, |_, _| ()).await.unwrap();
    assert!(report.complete);
    assert_eq!(most.get(), PARALLEL);
    assert!(report.items.iter().all(|item| item.cached));
}
