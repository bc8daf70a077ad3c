//! A plain HTTP/1.1 client, one connection per request. Input: method, path, headers, body. Output: status, headers, body
//! exactly as they came.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::DEADLINE;

/// Somebody with a key, or without.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) key: Option<String>,
}

/// A request on its way.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn get(path: &str) -> Self {
        Self::new("GET", path, Vec::new())
    }

    pub(crate) fn post(path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", path, body.into()).header("content-type", "application/json")
    }

    pub(crate) fn new(method: &'static str, path: &str, body: Vec<u8>) -> Self {
        Self {
            method,
            path: path.to_owned(),
            headers: Vec::new(),
            body,
        }
    }

    /// An embeddings request.
    pub(crate) fn embed(model: &str, input: impl Into<Value>) -> Self {
        let body = json!({"model": model, "input": input.into()});
        Self::post("/v1/embeddings", body.to_string())
    }

    /// Adds a header, in place of one of the same name.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    fn head(&self, client: &Client) -> String {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n",
            self.method, self.path, client.address
        );
        if let Some(key) = &client.key {
            head += &format!("authorization: Bearer {key}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.method != "GET" {
            head += &format!("content-length: {}\r\n", self.body.len());
        }
        head + "\r\n"
    }
}

impl Client {
    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&self, request: Request) -> Answer {
        match self.try_send(&request).await {
            Ok(answer) => answer,
            Err(error) => panic!("{} {} was not answered: {error}", request.method, request.path),
        }
    }

    /// The same, for requests that may meet a closed port.
    pub(crate) async fn try_send(&self, request: &Request) -> io::Result<Answer> {
        let exchange = async {
            let stream = self.begin(request).await?;
            read_answer(stream).await
        };
        tokio::time::timeout(DEADLINE, exchange)
            .await
            .unwrap_or_else(|_| panic!("{} {}: no answer in {DEADLINE:?}", request.method, request.path))
    }

    /// Sends a request and gives the connection, to be dropped by a client that leaves.
    pub(crate) async fn begin(&self, request: &Request) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await?;
        let mut bytes = request.head(self).into_bytes();
        bytes.extend_from_slice(&request.body);
        // A server that refuses early may stop reading: its answer still counts.
        match stream.write_all(&bytes).await {
            Err(error)
                if error.kind() != io::ErrorKind::BrokenPipe && error.kind() != io::ErrorKind::ConnectionReset =>
            {
                Err(error)
            }
            _ => Ok(stream),
        }
    }

    pub(crate) async fn embed(&self, model: &str, input: impl Into<Value>) -> Answer {
        self.send(Request::embed(model, input)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path)).await
    }
}

async fn read_answer(mut stream: TcpStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes).await
        && bytes.is_empty()
    {
        return Err(error);
    }
    parse(&bytes).ok_or_else(|| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        io::Error::new(io::ErrorKind::UnexpectedEof, format!("no whole answer: {text:?}"))
    })
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = bytes[end + 4..].to_vec();
    let announced = headers.get("content-length").map(|length| length.parse().ok());
    if let Some(length) = announced
        && length != Some(body.len())
    {
        return None;
    }
    Some(Answer { status, headers, body })
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The same, if it is a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.text());
        self
    }

    /// The vectors of an embeddings answer in `float`.
    pub(crate) fn vectors(&self) -> Vec<Vec<f32>> {
        let body = self.json();
        let data = body["data"].as_array().unwrap_or_else(|| panic!("no data: {body}"));
        let vector = |object: &Value| serde_json::from_value(object["embedding"].clone()).unwrap();
        data.iter().map(vector).collect()
    }

    pub(crate) fn request_id(&self) -> String {
        self.header("x-request-id")
            .unwrap_or_else(|| panic!("no x-request-id: {self:?}"))
            .to_owned()
    }

    pub(crate) fn cache(&self) -> &str {
        self.header("x-portalis-cache").unwrap_or("absent")
    }

    pub(crate) fn error_code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or("absent").to_owned()
    }
}
