//! `POST /v1/translations` on a running mesh. Input: modules of the small model's benchmark. Output: reports and Rust, whole
//! and as events; failures that name their field; nothing in flight when a client has left or its time is over.

use std::collections::BTreeSet;

use schemas::policy::{CreateKey, RequestLimit};
use serde_json::{Value, json};
use testkit::eventually;

use crate::mesh::http::Request;
use crate::mesh::stream::Stream;
use crate::mesh::worker::{TRANSLATOR, WorkerSpec};
use crate::mesh::{DEADLINE, Mesh, MeshOptions, ordinary};
use crate::translation::python;

/// So many that no machine translates them in the time of these tests' waits.
const MANY: usize = 200;

async fn mesh() -> Mesh {
    Mesh::start(MeshOptions {
        workers: vec![WorkerSpec::translator()],
        ..MeshOptions::default()
    })
    .await
}

fn translation(source: &str, more: Value) -> Request {
    let mut body = json!({ "model": TRANSLATOR, "source": source });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    Request::post("/v1/translations", body.to_string())
}

fn many() -> String {
    python(MANY).join("\n\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_is_translated_whole_and_as_events_and_kept() {
    const FUNCTIONS: usize = 12;
    /// The card: 98 % compile, which is more than to parse.
    const MOST_LOST: u64 = 1;
    let mesh = mesh().await;
    let client = mesh.client(&mesh.key("t").await);
    let functions = python(FUNCTIONS).join("\n\n# The next.\n");
    let source = format!("\"\"\"A module.\"\"\"\nimport math\n\n{functions}\nclass Point:\n    pass\n");
    let first = client.send(translation(&source, json!({}))).await.ok();
    assert_eq!(first.cache(), "miss");
    let whole = first.json();
    assert_eq!(
        (&whole["object"], &whole["model"]),
        (&json!("translation"), &json!(TRANSLATOR))
    );
    assert_eq!(whole["complete"], false, "there is a class");
    let count = |status: &str| whole["summary"][status].as_u64().unwrap();
    assert_eq!(count("functions"), FUNCTIONS as u64);
    assert!(count("unverified") + MOST_LOST >= FUNCTIONS as u64, "{whole:#}");
    let items = whole["items"].as_array().unwrap();
    assert_eq!(items.len(), FUNCTIONS + 2);
    assert_eq!(
        (&items[0]["kind"], &items[FUNCTIONS + 1]["name"]),
        (&json!("import"), &json!("Point"))
    );
    let rust = whole["rust"].as_str().unwrap();
    assert_eq!(
        rust.lines().filter(|line| line.starts_with("pub fn ")).count() as u64,
        count("unverified")
    );
    for part in [
        "// A module.",
        "// The next.",
        "// Not translated: import of line 2",
        "// Not translated: class `Point`",
    ] {
        assert!(rust.contains(part), "{part}: {rust}");
    }
    let usage = |body: &Value, field: &str| body["usage"][field].as_u64().unwrap();
    assert!(usage(&whole, "prompt_tokens") > 100 && usage(&whole, "completion_tokens") > 100);
    let computed = mesh.books("t").await.usage.computed;
    let asked: u64 = items.iter().map(|item| item["attempts"].as_u64().unwrap()).sum();
    assert_eq!(computed, asked, "each question is charged as a request of its own");

    let again = client.send(translation(&source, json!({ "verify": false }))).await.ok();
    assert_eq!(again.cache(), "hit");
    let again = again.json();
    assert_eq!(
        (&again["rust"], usage(&again, "total_tokens")),
        (&whole["rust"], usage(&whole, "total_tokens"))
    );
    let cached = again["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item["cached"] == true);
    assert_eq!(cached.count(), FUNCTIONS);
    eventually("what came from the cache is booked as such", DEADLINE, || async {
        let usage = mesh.usage("t").await;
        usage.is_some_and(|usage| (usage.computed, usage.cached) == (computed, asked))
    })
    .await;

    // The same as a chat request would have: one cache for both.
    let question = python(1)[0].trim_end().to_owned();
    let chat = json!({ "model": TRANSLATOR, "temperature": 0, "messages": [{ "role": "user", "content": question }] });
    let chat = client
        .send(Request::post("/v1/chat/completions", chat.to_string()))
        .await;
    assert_eq!(chat.ok().cache(), "hit");

    let stream = Stream::open(&client, &translation(&source, json!({ "stream": true }))).await;
    let mut events = stream.rest().await;
    let last = events.pop().unwrap();
    assert_eq!(
        (&last["object"], &last["rust"]),
        (&json!("translation"), &whole["rust"])
    );
    let places: BTreeSet<u64> = events.iter().map(|event| event["index"].as_u64().unwrap()).collect();
    assert_eq!((events.len(), places.len()), (FUNCTIONS + 2, FUNCTIONS + 2));
    for event in &events {
        let place = usize::try_from(event["index"].as_u64().unwrap()).unwrap();
        assert_eq!(
            (&event["object"], &event["id"]),
            (&json!("translation.item"), &last["id"])
        );
        assert_eq!(event["item"], last["items"][place]);
    }
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_translated_at_all_is_told_with_the_field() {
    let mesh = mesh().await;
    let client = mesh.client(&mesh.key("t").await);
    let good = "def f(a: int) -> int:\n    return a\n";
    let cases = [
        (
            translation("a = 1\ndef f(:\n    pass\n", json!({})),
            400,
            "source",
            "line 2, column 7",
        ),
        (translation(" ", json!({ "stream": true })), 400, "source", "empty"),
        (translation(&"(".repeat(100_000), json!({})), 400, "source", "nested"),
        (
            translation(&"a\n".repeat(5_000), json!({})),
            400,
            "source",
            "at most 4096",
        ),
        (translation(&good.repeat(300), json!({})), 400, "source", "at most 256"),
        (
            translation(&"#".repeat(300_000), json!({})),
            400,
            "source",
            "at most 262144",
        ),
        (translation(good, json!({ "verify": true })), 400, "verify", "--verify"),
        (translation(good, json!({ "retries": 4 })), 400, "retries", "0 to 3"),
        (translation(good, json!({ "model": "nobody" })), 404, "model", "nobody"),
        (
            translation(good, json!({ "temperature": 1 })),
            422,
            "temperature",
            "unknown field",
        ),
        (translation(good, json!({ "source": 1 })), 400, "source", "string"),
    ];
    for (request, status, param, hint) in cases {
        let answer = client.send(request).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (status, &json!(param)), "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(hint), "{hint}: {message}");
        assert!(answer.header("x-request-id").is_some());
    }
    let large = client.send(translation(&"#".repeat(3_000_000), json!({}))).await;
    assert_eq!((large.status, large.error_code().as_str()), (413, "body_too_large"));
    let wrong = mesh.client("wrong").send(translation(good, json!({}))).await;
    assert_eq!(wrong.status, 401);
    assert_eq!(client.get("/v1/translations").await.status, 405);
    let done = mesh.workers[0].metric("batch_processing_requests_total", "").await;
    assert!(done == 0.0 && mesh.events().await.is_empty(), "nothing was asked");
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_and_limits_hold_for_all_questions_together() {
    let mesh = mesh().await;
    let client = mesh.client(&mesh.key("t").await);
    let soon = |stream: bool| {
        let request = translation(&many(), json!({ "stream": stream })).header("x-request-timeout-ms", "300");
        request.header("cache-control", "no-cache")
    };
    let late = client.send(soon(false)).await;
    assert_eq!((late.status, late.error_code().as_str()), (504, "deadline_exceeded"));
    let mut stream = Stream::open(&client, &soon(true)).await;
    let mut last = Value::Null;
    while let Some(event) = stream.event().await {
        last = serde_json::from_str(&event.data).unwrap();
    }
    assert_eq!(last["error"]["code"], "deadline_exceeded", "{last}");
    assert_eq!(last["error"]["object"], "error");

    // One question in ten seconds, after the first two.
    let limited = CreateKey {
        request_limit: Some(RequestLimit {
            per_minute: 6,
            burst: 2,
        }),
        ..ordinary("limited")
    };
    let (key, _) = mesh.create_key(&limited).await;
    let request = translation(&many(), json!({})).header("x-request-timeout-ms", "5000");
    let refused = mesh.client(&key).send(request).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "rate_limited"));
    assert!(refused.header("retry-after").is_some());
    let books = mesh.books("limited").await;
    assert!(books.usage.computed <= 2, "{:?}", books.usage);
    mesh.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_stops_the_rest() {
    let mesh = mesh().await;
    for stream in [true, false] {
        let tenant = format!("t-{stream}");
        let client = mesh.client(&mesh.key(&tenant).await);
        let request = translation(&many(), json!({ "stream": stream })).header("cache-control", "no-cache");
        if stream {
            let mut stream = Stream::open(&client, &request).await;
            let event = Stream::json(stream.event().await).expect("more was to come");
            assert_eq!(
                event["item"]["status"], "unverified",
                "functions come as they are known: {event}"
            );
        } else {
            let connection = client.begin(&request).await.unwrap();
            eventually("a question is being answered", DEADLINE, || async {
                mesh.workers[0].in_hand().await > 0.0
            })
            .await;
            drop(connection);
        }
        eventually("nothing is in hand", DEADLINE, || async {
            mesh.workers[0].in_hand().await == 0.0 && mesh.gateway_metric("portalis_gateway_streams_open", "") == 0.0
        })
        .await;
        let computed = mesh.books(&tenant).await.usage.computed;
        assert!(
            computed < MANY as u64 / 2,
            "{computed} of {MANY} were computed for nobody"
        );
    }
    mesh.finish().await;
}
