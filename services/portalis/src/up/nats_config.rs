//! The configuration file of our nats-server. Input: folder, port, password. Output: its text. Pure.

use std::path::Path;

/// User name of the mesh at its own broker.
pub const USER: &str = "portalis";

/// What the file says.
#[derive(Debug, Clone)]
pub struct NatsConfig<'a> {
    /// Port, `None` = any free one.
    pub port: Option<u16>,
    /// Password of [`USER`]: without it, every user of this machine could publish work.
    pub password: &'a str,
    /// Folder of its data, its log and its notes.
    pub folder: &'a Path,
    /// Its log file.
    pub log_file: &'a Path,
}

impl NatsConfig<'_> {
    /// The text of the file.
    #[must_use]
    pub fn render(&self) -> String {
        // -1 makes the server take a free port and write it to a file in `ports_file_dir`.
        let port = self.port.map_or(-1, i32::from);
        let folder = quoted(self.folder);
        let store = quoted(&self.folder.join("store"));
        let log = quoted(self.log_file);
        let password = self.password;
        format!(
            "# Written by `portalis up` at each start; changes are lost.\n\
             server_name: \"portalis-local\"\n\
             host: \"127.0.0.1\"\n\
             port: {port}\n\
             ports_file_dir: {folder}\n\
             # Above the largest message that any service reads (6 MiB).\n\
             max_payload: 8MB\n\
             # A client that takes nothing for this long is cut off; its socket buffer is full by then.\n\
             write_deadline: \"10s\"\n\
             log_file: {log}\n\
             log_size_limit: 64MB\n\
             log_max_num: 2\n\
             jetstream {{\n  store_dir: {store}\n}}\n\
             authorization {{\n  user: \"{USER}\"\n  password: \"{password}\"\n}}\n"
        )
    }

    /// Where clients connect once the port is known.
    #[must_use]
    pub fn url(&self, port: u16) -> String {
        format!("nats://{USER}:{}@127.0.0.1:{port}", self.password)
    }
}

/// A path as a string of the configuration language, which escapes with a backslash.
fn quoted(path: &Path) -> String {
    let mut text = String::from('"');
    for c in path.to_string_lossy().chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            _ => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_what_the_mesh_needs() {
        let config = NatsConfig {
            port: None,
            password: "secret",
            folder: Path::new("/data dir/\"x\\y\""),
            log_file: Path::new("/logs/nats.log"),
        };
        let text = config.render();
        let lines = [
            "host: \"127.0.0.1\"",
            "port: -1",
            "max_payload: 8MB",
            "write_deadline: \"10s\"",
            "ports_file_dir: \"/data dir/\\\"x\\\\y\\\"\"",
            "  store_dir: \"/data dir/\\\"x\\\\y\\\"/store\"",
            "log_file: \"/logs/nats.log\"",
            "  user: \"portalis\"",
            "  password: \"secret\"",
        ];
        for line in lines {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(
            NatsConfig {
                port: Some(4222),
                ..config.clone()
            }
            .render()
            .contains("port: 4222\n")
        );
        assert_eq!(config.url(4222), "nats://portalis:secret@127.0.0.1:4222");
    }
}
