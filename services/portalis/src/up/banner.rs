//! What `portalis up` says when it is ready. Input: where things are. Output: text for people, JSON for programs.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

/// Where things are.
#[derive(Debug, Clone, Serialize)]
pub struct Ready<'a> {
    /// What an OpenAI client takes as base URL.
    pub base_url: String,
    /// The demo key.
    pub api_key: String,
    /// The broker, credentials included.
    pub nats_url: String,
    /// Health and metrics.
    pub ops_url: String,
    /// Names of the models.
    pub models: Vec<&'a str>,
    /// Where everything is kept.
    pub data_dir: &'a Path,
    /// Processes.
    pub pids: Pids,
    /// From start to ready, in milliseconds.
    pub ready_ms: u64,
}

/// Processes.
#[derive(Debug, Clone, Serialize)]
pub struct Pids {
    /// This one.
    pub portalis: u32,
    /// The broker, if it is ours.
    pub nats_server: Option<u32>,
    /// Workers.
    pub workers: Vec<u32>,
}

impl Ready<'_> {
    /// For programs: one line.
    ///
    /// # Errors
    /// When a path is not Unicode.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// For people.
    #[must_use]
    pub fn text(&self, logs: Option<&Path>) -> String {
        let Self {
            base_url,
            api_key,
            ops_url,
            data_dir,
            ..
        } = self;
        let ready_s = Duration::from_millis(self.ready_ms).as_secs_f64();
        let logs = logs.map_or_else(|| "this terminal".to_owned(), |logs| logs.display().to_string());
        let models = self.models.join(", ");
        let model = serde_json::Value::from(*self.models.first().unwrap_or(&""));
        let data = data_dir.display();
        // The body stands in single quotes: the only character that ends them is written as an escape.
        let body = format!("{{\"model\":{model},\"input\":\"Hello, mesh\"}}").replace('\'', "\\u0027");
        format!(
            "Portalis is ready after {ready_s:.1} s. Ctrl-C stops it.\n\n  \
             base URL  {base_url}\n  \
             API key   {api_key}  (also in {data}/demo-key)\n  \
             NATS URL  in {data}/nats-url\n  \
             models    {models}\n  \
             metrics   {ops_url}/metrics\n  \
             logs      {logs}\n\n\
             Try it:\n\n  \
             curl {base_url}/embeddings -H 'Authorization: Bearer {api_key}' -H 'Content-Type: application/json' -d '{body}'\n\n{}",
            self.translation()
        )
    }

    /// A line that translates a function, when the model for it is served.
    fn translation(&self) -> String {
        if !self.models.contains(&super::plan::TRANSLATOR) {
            return String::new();
        }
        let Self { base_url, api_key, .. } = self;
        let body = serde_json::json!({
            "model": super::plan::TRANSLATOR,
            "temperature": 0,
            "messages": [{ "role": "user", "content": "def add(a: int, b: int) -> int:\n    return a + b" }],
        });
        format!(
            "  curl {base_url}/chat/completions -H 'Authorization: Bearer {api_key}' -H 'Content-Type: application/json' -d '{body}'\n\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(models: Vec<&'static str>) -> Ready<'static> {
        Ready {
            base_url: "http://127.0.0.1:8000/v1".to_owned(),
            api_key: "ptl_live_a_b".to_owned(),
            nats_url: "nats://portalis:secret@127.0.0.1:1".to_owned(),
            ops_url: "http://127.0.0.1:9464".to_owned(),
            models,
            data_dir: Path::new("/data"),
            pids: Pids {
                portalis: 1,
                nats_server: Some(2),
                workers: vec![3],
            },
            ready_ms: 1_234,
        }
    }

    #[test]
    fn people_get_a_line_to_paste() {
        let text = ready(vec!["it's", "m2"]).text(Some(Path::new("/data/logs")));
        assert!(
            text.contains("http://127.0.0.1:8000/v1/embeddings -H 'Authorization: Bearer ptl_live_a_b'"),
            "{text}"
        );
        assert!(
            text.contains(r#"-d '{"model":"it\u0027s","input":"Hello, mesh"}'"#),
            "{text}"
        );
        assert!(text.contains("after 1.2 s") && text.contains("it's, m2"), "{text}");
        assert!(!text.contains("secret"), "the broker's password stays in its file");
    }

    #[test]
    fn programs_get_everything_on_one_line() {
        let text = ready(vec!["m"]).json().unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (value["pids"]["workers"][0].as_u64(), value["api_key"].as_str()),
            (Some(3), Some("ptl_live_a_b"))
        );
        assert!(!text.contains('\n'));
    }
}
