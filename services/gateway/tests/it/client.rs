//! A client that sees every byte. Input: requests in JSON. Output: whole answers, or events one by one as they come.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use serde_json::Value;
use testkit::{SseEvent, SseReader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::mesh::DEADLINE;

/// What the system keeps for a client that does not read.
const RECEIVE_BUFFER_BYTES: u32 = 16 * 1024;

#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Value,
}

impl Answer {
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.body);
        self
    }

    pub(crate) fn error(&self, name: &str) -> &str {
        self.body["error"][name].as_str().unwrap_or_default()
    }
}

/// A streamed answer; dropping it is a client that leaves.
pub(crate) struct Stream {
    socket: TcpStream,
    pub(crate) headers: BTreeMap<String, String>,
    raw: Vec<u8>,
    reader: SseReader,
    events: VecDeque<SseEvent>,
    ended: bool,
}

impl Client {
    async fn send(&self, path: &str, body: &Value, header: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        // Small, so that a client that does not read is soon felt by the other side.
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
        let mut socket = socket.connect(self.address).await.unwrap();
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n{header}\r\n{body}",
            self.key,
            body.len()
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        socket
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, body, "").await
    }

    /// The same with one more header line.
    pub(crate) async fn post_with(&self, path: &str, body: &Value, header: &str) -> Answer {
        let mut socket = self.send(path, body, header).await;
        let mut bytes = Vec::new();
        let read = socket.read_to_end(&mut bytes);
        tokio::time::timeout(DEADLINE, read).await.expect("an answer").unwrap();
        let end = head_end(&bytes).unwrap();
        let (status, headers) = parse_head(&bytes[..end]);
        Answer {
            status,
            headers,
            body: serde_json::from_slice(&bytes[end..]).unwrap(),
        }
    }

    /// Sends a request whose answer is a stream, and waits for its head.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Stream {
        let mut socket = self.send(path, body, "").await;
        let mut raw = Vec::new();
        let end = loop {
            if let Some(end) = head_end(&raw) {
                break end;
            }
            let count = tokio::time::timeout(DEADLINE, socket.read_buf(&mut raw))
                .await
                .expect("a head");
            assert!(count.unwrap() > 0, "no head: {}", String::from_utf8_lossy(&raw));
        };
        let (status, headers) = parse_head(&raw[..end]);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&raw));
        raw.drain(..end);
        Stream {
            socket,
            headers,
            raw,
            reader: SseReader::new(),
            events: VecDeque::new(),
            ended: false,
        }
    }
}

impl Stream {
    /// The next event; `None` at the end of the body.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event.data);
            }
            if self.ended {
                assert!(!self.reader.is_cut(), "the stream stops inside an event");
                return None;
            }
            self.read().await;
        }
    }

    /// The next event as JSON.
    pub(crate) async fn json(&mut self) -> Value {
        let data = self.next().await.expect("an event");
        serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {data}"))
    }

    /// All events to the end, and the text of each choice.
    pub(crate) async fn rest(&mut self) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    /// Waits until so many comments were read.
    pub(crate) async fn comments(&mut self, count: usize) {
        while self.reader.comments() < count {
            assert!(!self.ended, "the stream ended");
            self.read().await;
        }
    }

    async fn read(&mut self) {
        while !self.take_chunk() {
            let count = tokio::time::timeout(DEADLINE, self.socket.read_buf(&mut self.raw)).await;
            let count = count.expect("more of the stream").unwrap();
            assert!(count > 0, "the connection ended inside the body");
        }
    }

    /// Takes one chunk of the body's coding, if it is there whole.
    fn take_chunk(&mut self) -> bool {
        let Some(line) = self.raw.windows(2).position(|two| two == b"\r\n") else {
            return false;
        };
        let size = std::str::from_utf8(&self.raw[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let start = line + 2;
        if self.raw.len() < start + size + 2 {
            return false;
        }
        let chunk: Vec<u8> = self.raw.drain(..start + size + 2).skip(start).take(size).collect();
        self.ended = size == 0;
        self.events.extend(self.reader.push(&chunk));
        true
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn parse_head(head: &[u8]) -> (u16, BTreeMap<String, String>) {
    let head = std::str::from_utf8(head).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    (status, headers)
}

/// What the chunks of a chat stream say: the text of each choice, and why it ended.
pub(crate) fn chat_texts(events: &[String]) -> BTreeMap<u64, (String, Option<String>)> {
    let mut texts: BTreeMap<u64, (String, Option<String>)> = BTreeMap::new();
    for event in events.iter().filter(|event| *event != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        for choice in event["choices"].as_array().unwrap() {
            let (text, finish) = texts.entry(choice["index"].as_u64().unwrap()).or_default();
            text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
            if let Some(reason) = choice["finish_reason"].as_str() {
                assert_eq!(finish.replace(reason.to_owned()), None, "ended twice");
            }
        }
    }
    texts
}
