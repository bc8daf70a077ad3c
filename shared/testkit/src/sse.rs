//! Server-sent events. Input: bytes as they arrive, cut anywhere. Output: events.

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SseEvent {
    /// `event:` field, empty when there is none.
    pub event: String,
    /// `data:` lines, joined with line breaks.
    pub data: String,
    /// `id:` field.
    pub id: String,
}

/// Reads events out of a stream of bytes.
#[derive(Debug, Default)]
pub struct SseReader {
    unread: Vec<u8>,
    event: SseEvent,
    has_data: bool,
    comments: usize,
}

impl SseReader {
    /// A reader at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes; gives the events that are complete now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        self.unread.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(event) = self.line(line.trim_end_matches(['\r', '\n'])) {
                events.push(event);
            }
        }
        events
    }

    /// Comment lines seen (keep-alives).
    #[must_use]
    pub fn comments(&self) -> usize {
        self.comments
    }

    /// Whether the stream stops inside an event.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        !self.unread.is_empty() || self.has_data
    }

    fn line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => self.comments += 1,
            "event" => value.clone_into(&mut self.event.event),
            "id" => value.clone_into(&mut self.event.id),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_wherever_the_bytes_are_cut() {
        let stream =
            ": hello\r\nevent: chunk\r\ndata: {\"a\":1}\r\ndata: b\u{e4}r\r\n\r\ndata:[DONE]\n\nid: 7\n\ndata: cut";
        let expected = vec![
            SseEvent {
                event: "chunk".into(),
                data: "{\"a\":1}\nb\u{e4}r".into(),
                id: String::new(),
            },
            SseEvent {
                data: "[DONE]".into(),
                ..SseEvent::default()
            },
        ];
        for size in 1..stream.len() {
            let mut reader = SseReader::new();
            let events: Vec<_> = stream
                .as_bytes()
                .chunks(size)
                .flat_map(|bytes| reader.push(bytes))
                .collect();
            assert_eq!(events, expected, "cut every {size} bytes");
            assert_eq!(reader.comments(), 1);
            assert!(reader.is_cut());
        }
    }
}
