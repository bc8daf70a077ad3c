//! A streamed answer as it comes. Input: a request. Output: server-sent events one by one, with the chunked transfer
//! encoding taken off.

use std::collections::VecDeque;

use serde_json::Value;
use testkit::{SseEvent, SseReader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::DEADLINE;
use super::http::{Client, Request};

/// A stream that is being read; dropping it is a client that leaves.
pub(crate) struct Stream {
    pub(crate) request_id: String,
    connection: TcpStream,
    unread: Vec<u8>,
    reader: SseReader,
    events: VecDeque<SseEvent>,
}

impl Stream {
    /// Sends a request whose answer is a stream, and reads its head.
    pub(crate) async fn open(client: &Client, request: &Request) -> Self {
        let mut stream = Self {
            request_id: String::new(),
            connection: client.begin(request).await.unwrap(),
            unread: Vec::new(),
            reader: SseReader::new(),
            events: VecDeque::new(),
        };
        let head = loop {
            if let Some(end) = find(&stream.unread, b"\r\n\r\n") {
                let head: Vec<u8> = stream.unread.drain(..end + 4).collect();
                break String::from_utf8(head).unwrap().to_ascii_lowercase();
            }
            assert!(stream.read().await, "the answer ended in its head");
        };
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: "));
        id.unwrap_or_else(|| panic!("no x-request-id: {head}"))
            .clone_into(&mut stream.request_id);
        stream
    }

    /// The next event; `None` at the end of the answer.
    pub(crate) async fn event(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            match self.take_chunk() {
                Some(chunk) if chunk.is_empty() => return None,
                Some(chunk) => self.events.extend(self.reader.push(&chunk)),
                None => {
                    if !self.read().await {
                        return None;
                    }
                }
            }
        }
    }

    /// The next event's data as JSON; `None` at `[DONE]`.
    #[track_caller]
    pub(crate) fn json(event: Option<SseEvent>) -> Option<Value> {
        let Some(event) = event else {
            panic!("the stream ended without [DONE]");
        };
        (event.data != "[DONE]")
            .then(|| serde_json::from_str(&event.data).unwrap_or_else(|error| panic!("{error}: {}", event.data)))
    }

    /// All that is left: the chunks up to `[DONE]`.
    pub(crate) async fn rest(mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        while let Some(chunk) = Self::json(self.event().await) {
            chunks.push(chunk);
        }
        assert!(self.event().await.is_none(), "something follows [DONE]");
        chunks
    }

    async fn read(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        let read = tokio::time::timeout(DEADLINE, self.connection.read(&mut bytes));
        let count = read
            .await
            .unwrap_or_else(|_| panic!("the stream fell silent"))
            .unwrap_or(0);
        self.unread.extend_from_slice(&bytes[..count]);
        count > 0
    }

    fn take_chunk(&mut self) -> Option<Vec<u8>> {
        let line = find(&self.unread, b"\r\n")?;
        let size = std::str::from_utf8(&self.unread[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let end = line + 2 + size;
        if self.unread.len() < end + 2 {
            return None;
        }
        let chunk = self.unread[line + 2..end].to_vec();
        self.unread.drain(..end + 2);
        Some(chunk)
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// The text of a choice over chunks of a chat.
pub(crate) fn chat_text(chunks: &[Value], choice: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    choices
        .filter(|found| found["index"] == choice)
        .filter_map(|found| found["delta"]["content"].as_str())
        .collect()
}
