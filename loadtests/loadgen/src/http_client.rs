//! A lean HTTP/1.1 client. Input: the bytes of a request. Output: status, head and body of its answer, over one connection
//! that stays open. It knows only what our servers send: answers with a content length. Lean because it shares its cores
//! with what it measures; a general client costs as much as the server.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Room for a usual answer; the buffer grows for larger ones.
const BUFFER_BYTES: usize = 8 * 1024;
/// Largest answer that is read: a server that sends more is broken.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One open connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// An answer; borrows the connection's buffer.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: &'a [u8],
    /// Body.
    pub body: &'a [u8],
}

impl Answer<'_> {
    /// Value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(self.head, name.as_bytes())
    }
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// What the system said.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; BUFFER_BYTES],
            filled: 0,
        })
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// When the connection ends or the answer cannot be understood.
    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.send(request).await?;
        self.receive().await
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.filled = 0;
        self.stream.write_all(request).await.context("cannot send the request")
    }

    /// Reads the answer to the one request that was sent.
    ///
    /// # Errors
    /// When the connection ends or the answer cannot be understood.
    pub async fn receive(&mut self) -> anyhow::Result<Answer<'_>> {
        let mut searched = 0;
        let head_end = loop {
            if let Some(at) = end_of_head(&self.buffer[..self.filled], searched) {
                break at;
            }
            searched = self.filled.saturating_sub(3);
            self.read_more(1).await?;
        };
        let head = &self.buffer[..head_end];
        let status = status(head)?;
        let length: usize = match header(head, b"content-length") {
            Some(length) => length.parse().context("content-length is no number")?,
            None => {
                bail!("status {status} without content-length: this client reads no other answers")
            }
        };
        let whole = head_end.checked_add(length).filter(|whole| *whole <= ANSWER_BYTES_MAX);
        let whole = whole.with_context(|| format!("an answer of {length} bytes is too large"))?;
        while self.filled < whole {
            self.read_more(whole - self.filled).await?;
        }
        ensure!(self.filled == whole, "{} bytes follow the answer", self.filled - whole);
        Ok(Answer {
            status,
            head: &self.buffer[..head_end],
            body: &self.buffer[head_end..whole],
        })
    }

    async fn read_more(&mut self, wanted: usize) -> anyhow::Result<()> {
        let room = self.filled + wanted;
        if self.buffer.len() < room {
            ensure!(room <= ANSWER_BYTES_MAX, "the head of the answer does not end");
            self.buffer.resize(room.max(self.buffer.len() * 2), 0);
        }
        let read = self
            .stream
            .read(&mut self.buffer[self.filled..])
            .await
            .context("cannot read the answer")?;
        ensure!(read > 0, "the server closed the connection");
        self.filled += read;
        Ok(())
    }
}

/// The first byte after the empty line, searched from a position on.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    bytes
        .get(from..)?
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| from + at + 4)
}

fn status(head: &[u8]) -> anyhow::Result<u16> {
    let digits = head.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let text = digits.and_then(|digits| std::str::from_utf8(digits).ok());
    text.and_then(|text| text.parse().ok())
        .context("the server does not speak HTTP/1.1")
}

fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let lines = head.split(|byte| *byte == b'\n').skip(1);
    for line in lines {
        if line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name) {
            return std::str::from_utf8(&line[name.len() + 1..]).ok().map(str::trim);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The answers of a server that sends these pieces, each on its own.
    async fn answer_of(pieces: &'static [&'static str]) -> Result<(u16, Option<String>, String), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).await.unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut connection = Connection::open(address).await.unwrap();
        let answer = connection.exchange(b"x").await;
        let answer = answer
            .map(|answer| {
                let body = String::from_utf8(answer.body.to_vec()).unwrap();
                (answer.status, answer.header("X-Two").map(str::to_owned), body)
            })
            .map_err(|error| format!("{error:#}"));
        server.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_are_read_whole_however_they_are_cut() {
        let whole = &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-two:  b \r\n\r\nhello"];
        let cut = &[
            "HTTP/1.1 200 O",
            "K\r\nContent-Length: 5\r",
            "\nx-two: b\r\n\r",
            "\nhe",
            "llo",
        ];
        let expected = Ok((200, Some("b".to_owned()), "hello".to_owned()));
        assert_eq!(answer_of(whole).await, expected);
        assert_eq!(answer_of(cut).await, expected);
        let empty = &["HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"];
        assert_eq!(answer_of(empty).await, Ok((503, None, String::new())));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        let ended = &["HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel"];
        assert!(answer_of(ended).await.unwrap_err().contains("closed"));
        let chunked = &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"];
        assert!(answer_of(chunked).await.unwrap_err().contains("without content-length"));
        assert!(answer_of(&["SSH-2.0\r\n\r\n"]).await.unwrap_err().contains("HTTP/1.1"));
        assert!(
            answer_of(&["HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab"])
                .await
                .unwrap_err()
                .contains("follow")
        );
    }
}
