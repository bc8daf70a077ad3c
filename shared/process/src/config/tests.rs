//! Tests of the configuration: layers in their order, errors that name key and origin, and no secret in any of them.

use proptest::prelude::*;

use super::*;
use crate::context::Context;

struct Sample;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    http: Http,
    price: Price,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Http {
    port: u16,
    host: String,
    secret: String,
    limits: Limits,
    #[serde(default)]
    names: Vec<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    body_bytes: u64,
    enabled: bool,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Price {
    factor: f64,
    models: BTreeMap<String, u64>,
}

impl Service for Sample {
    const NAME: &'static str = "sample";
    const DEFAULT_CONFIG: &'static str = r#"
        [process]
        ops_address = "127.0.0.1:9100"
        [http]
        port = 8000
        host = "localhost"
        secret = ""
        limits = { body_bytes = 1024, enabled = false }
        [price]
        factor = 1.0
        models = {}
    "#;
    type Config = Config;

    fn serve(config: Config, context: Context) -> crate::Serving {
        Box::pin(serve(config, context))
    }
}

async fn serve(_: Config, _: Context) -> anyhow::Result<()> {
    Ok(())
}

fn environment(variables: &[(&str, &str)]) -> Result<Layers, ConfigError> {
    Layers::new().environment(variables.iter().map(|(name, value)| (name.into(), value.into())))
}

fn load(layers: Layers) -> Result<Loaded<Config>, ConfigError> {
    layers.load::<Sample>()
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

fn message(result: Result<Loaded<Config>, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn each_layer_covers_the_one_below() {
    let (_folder, path) = file(
        "[process]\ndrain_ms = 1\n[http]\nport = 1\nhost = \"file\"\n[http.limits]\nbody_bytes = 1\n[price.models]\nMiniLM-v2 = 7",
    );
    let variables = [
        ("PORTALIS__HTTP__HOST", "variable"),
        ("PORTALIS__HTTP__PORT", "2"),
        ("PORTALIS__HTTP__LIMITS__ENABLED", "true"),
        ("PORTALIS__PRICE__FACTOR", "3"),
        ("PORTALIS__HTTP__NAMES", "[\"a\", \"b\"]"),
        ("PORTALIS_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("HOME", "/"),
    ];
    let layers = environment(&variables).unwrap().file(&path).unwrap();
    let layers = layers
        .assign("http.port=3")
        .unwrap()
        .set("process.log_format", "json".into())
        .unwrap();
    let loaded = load(layers).unwrap();
    assert_eq!(
        loaded.process,
        ProcessConfig {
            ops_address: "127.0.0.1:9100".into(),
            log: "info".into(),
            log_format: LogFormat::Json,
            drain_ms: 1,
            worker_threads: 1,
        }
    );
    let limits = Limits {
        body_bytes: 1,
        enabled: true,
    };
    let names = vec!["a".into(), "b".into()];
    let http = Http {
        port: 3,
        host: "variable".into(),
        secret: String::new(),
        limits,
        names,
    };
    let price = Price {
        factor: 3.0,
        models: BTreeMap::from([("MiniLM-v2".into(), 7)]),
    };
    assert_eq!(loaded.service, Config { http, price });
}

#[test]
fn a_text_stays_a_text_where_the_default_is_one() {
    let texts = [
        ("12345", "12345"),
        ("true", "true"),
        ("\"quoted\"", "quoted"),
        ("[::1]:80", "[::1]:80"),
        ("a\"b", "a\"b"),
        ("", ""),
    ];
    for (text, expected) in texts {
        let loaded = load(environment(&[("PORTALIS__HTTP__SECRET", text)]).unwrap()).unwrap();
        assert_eq!(loaded.service.http.secret, expected, "{text}");
    }
}

#[test]
fn an_unknown_key_or_a_wrong_value_names_key_and_origin() {
    let unknown = message(load(environment(&[("PORTALIS__HTTP__PROT", "1")]).unwrap()));
    assert!(
        unknown
            .starts_with("configuration key `http.prot` from environment variable PORTALIS__HTTP__PROT: unknown field"),
        "{unknown}"
    );
    let wrong = message(load(environment(&[("PORTALIS__HTTP__PORT", "70000")]).unwrap()));
    assert!(
        wrong
            .starts_with("configuration key `http.port` from environment variable PORTALIS__HTTP__PORT: invalid value"),
        "{wrong}"
    );

    let (_folder, path) = file("[htpp]\nport = 1");
    let section = message(load(Layers::new().file(&path).unwrap()));
    assert!(
        section.starts_with(&format!(
            "configuration key `htpp` from file {}: unknown field",
            path.display()
        )),
        "{section}"
    );
    let (_folder, path) = file("[process]\nlog_format = \"xml\"");
    let process = message(load(Layers::new().file(&path).unwrap()));
    assert!(
        process.starts_with(&format!(
            "configuration key `process.log_format` from file {}",
            path.display()
        )),
        "{process}"
    );

    let flag = message(load(Layers::new().assign("http.limits.nope=1").unwrap()));
    assert!(
        flag.starts_with("configuration key `http.limits.nope` from a --set flag: unknown field"),
        "{flag}"
    );
    let section = message(load(Layers::new().assign("http.port.x=1").unwrap()));
    assert_eq!(
        section,
        "configuration key `http.port.x` from a --set flag: `http.port` is a value, not a section"
    );
    let value = message(load(environment(&[("PORTALIS__HTTP", "1")]).unwrap()));
    assert!(
        value.starts_with("configuration key `http` from environment variable PORTALIS__HTTP: invalid type"),
        "{value}"
    );
}

#[test]
fn variables_of_other_services_are_noted_and_ignored() {
    let loaded = load(environment(&[("PORTALIS__LEDGER__PATH", "x"), ("PORTALIS__HTTP__PORT", "1")]).unwrap()).unwrap();
    assert_eq!(
        loaded.notes,
        ["PORTALIS__LEDGER__PATH is for another service and ignored"]
    );
    assert_eq!(loaded.service.http.port, 1);
}

#[test]
fn what_is_not_a_setting_is_refused() {
    for name in ["PORTALIS__", "PORTALIS__HTTP__", "PORTALIS____PORT"] {
        assert!(
            matches!(environment(&[(name, "1")]), Err(ConfigError::Variable { .. })),
            "{name}"
        );
    }
    for flag in ["", "http.port", "=1", ".port=1", "http..port=1"] {
        assert!(
            matches!(Layers::new().assign(flag), Err(ConfigError::Flag { .. })),
            "{flag}"
        );
    }
    let missing = Layers::new().file(Path::new("/nonexistent/portalis.toml"));
    assert!(matches!(missing, Err(ConfigError::ReadFile { .. })));
}

#[test]
fn no_error_and_no_print_shows_a_secret() {
    let (_folder, path) = file("[http]\nsecret = \"hunter2\" x");
    let syntax = Layers::new().file(&path).unwrap_err();
    let chain = format!("{:#}", anyhow::Error::from(syntax));
    assert!(
        chain.contains("not valid TOML at byte") && !chain.contains("hunter2"),
        "{chain}"
    );

    let typed = message(load(
        Layers::new()
            .set("http.secret", Value::Array(vec!["hunter2".into()]))
            .unwrap(),
    ));
    assert!(typed.contains("http.secret") && !typed.contains("hunter2"), "{typed}");
    let url = message(load(Layers::new().assign("http.port=nats://me:hunter2@h").unwrap()));
    assert!(url.contains("http.port") && !url.contains("hunter2"), "{url}");

    let layers = Layers::new()
        .assign("http.secret=hunter2")
        .unwrap()
        .assign("http.host=nats://me:hunter2@h:1")
        .unwrap();
    let shown = load(layers).unwrap().redacted().unwrap();
    assert!(!shown.contains("hunter2"), "{shown}");
    let table: Table = shown.parse().unwrap();
    assert_eq!(table["http"]["host"].as_str(), Some("nats://[redacted]@h:1"));
    assert_eq!(table["http"]["limits"]["body_bytes"].as_integer(), Some(1024));
    assert_eq!(table["process"]["drain_ms"].as_integer(), Some(25_000));
}

#[test]
fn a_broken_default_is_told_apart() {
    let broken = Layers::new().load_on::<Config>("sample", "[http");
    assert!(matches!(broken, Err(ConfigError::Defaults { service: "sample", .. })));
    let incomplete = Layers::new()
        .load_on::<Config>("sample", "[http]\nport = 1")
        .unwrap_err();
    assert!(
        incomplete
            .to_string()
            .contains("`http` from the default.toml of sample: missing field"),
        "{incomplete}"
    );
}

#[test]
fn a_byte_order_mark_is_a_part_of_the_text() {
    let text = "\u{feff}\"\"";
    let loaded = load(environment(&[("PORTALIS__HTTP__HOST", text)]).unwrap()).unwrap();
    assert_eq!(loaded.service.http.host, text);
}

proptest! {
    #[test]
    fn any_text_reaches_a_text_setting_unless_it_is_quoted(text in "[^\\x00]{0,40}") {
        let loaded = load(environment(&[("PORTALIS__HTTP__HOST", &text)]).unwrap()).unwrap();
        let quoted = text.trim().starts_with(['"', '\'']);
        prop_assert!(quoted || loaded.service.http.host == text);
    }

    #[test]
    fn no_variable_panics(name in "[A-Z_]{0,30}", text in "\\PC{0,30}") {
        let name = format!("PORTALIS__{name}");
        let _ = environment(&[(name.as_str(), text.as_str())]).and_then(load);
    }
}
