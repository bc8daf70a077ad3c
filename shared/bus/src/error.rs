//! What can go wrong on the bus. Input: the client's and the broker's answers. Output: types that callers match on.

/// The connection or a single exchange failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The configured address cannot be read.
    #[error("bus url is not usable: {reason}")]
    Url {
        /// What is wrong with it, without credentials.
        reason: String,
    },
    /// No connection within the configured time.
    #[error("no connection to nats-server at {address} after {waited_ms} ms: {reason}")]
    Connect {
        /// Host and port, without credentials.
        address: String,
        /// How long was tried.
        waited_ms: u64,
        /// The last failure.
        reason: String,
    },
    /// The server refused the credentials.
    #[error("nats-server at {address} refused the credentials")]
    Unauthorized {
        /// Host and port.
        address: String,
    },
    /// The server is older than what the streams' settings need.
    #[error("nats-server {found} at {address} is too old: {needed} or newer is needed")]
    ServerTooOld {
        /// Version the server reports.
        found: String,
        /// Host and port.
        address: String,
        /// Oldest version that works.
        needed: String,
    },
    /// The server runs without JetStream.
    #[error("nats-server at {address} has JetStream switched off: start it with -js")]
    NoJetStream {
        /// Host and port.
        address: String,
    },
    /// There is no connection now; nothing was sent, or the answer was lost with the connection.
    #[error("not connected to nats-server")]
    Disconnected,
    /// No answer in time.
    #[error("no answer on {subject} within {after_ms} ms")]
    Timeout {
        /// Where the request went.
        subject: String,
        /// How long was waited.
        after_ms: u64,
    },
    /// Nobody listens on the subject.
    #[error("nobody answers on {subject}")]
    NoResponders {
        /// Where the request went.
        subject: String,
    },
    /// The message is larger than the server takes.
    #[error("message of {bytes} bytes on {subject} is over the server's limit of {limit_bytes}")]
    TooLarge {
        /// Where it was going.
        subject: String,
        /// Its payload.
        bytes: usize,
        /// The server's limit.
        limit_bytes: usize,
    },
    /// The subject has spaces or is empty.
    #[error("subject {subject:?} is not valid")]
    InvalidSubject {
        /// The subject.
        subject: String,
    },
    /// As many requests are in flight as one connection carries.
    #[error("{limit} requests are in flight already")]
    TooManyRequests {
        /// The limit.
        limit: usize,
    },
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
}

/// An administrative request to JetStream failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JetStreamError {
    /// The exchange itself failed.
    #[error("request to JetStream failed")]
    Bus(#[from] BusError),
    /// The broker keeps another setting than was asked for.
    #[error("{object}: asked for {field} = {asked}, the broker has {found}")]
    Mismatch {
        /// Which stream or consumer.
        object: String,
        /// The first setting that differs, by its JetStream name.
        field: String,
        /// What was asked for.
        asked: String,
        /// What the broker has.
        found: String,
    },
    /// The stream, consumer or message does not exist.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The broker refused.
    #[error("JetStream refused {operation}: {description} (error {err_code})")]
    Refused {
        /// API operation.
        operation: String,
        /// JetStream's own code.
        err_code: u64,
        /// JetStream's text, for people.
        description: String,
    },
    /// The stream is shorter than what was already read from it: it was lost or replaced.
    #[error("stream {stream} ends at {last_sequence}, but {seen_sequence} was read before: it was lost or replaced")]
    WentBack {
        /// Stream.
        stream: String,
        /// Its last sequence now.
        last_sequence: u64,
        /// The last sequence read.
        seen_sequence: u64,
    },
    /// The answer is not what the protocol says.
    #[error("answer to {operation} is malformed: {reason}")]
    Malformed {
        /// API operation.
        operation: String,
        /// What is wrong.
        reason: String,
    },
}

/// Which limit of a stream refused a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FullLimit {
    /// Messages on this subject: one tenant's lane is full, others are not.
    SubjectMessages,
    /// Messages of the whole stream.
    StreamMessages,
    /// Bytes of the whole stream.
    StreamBytes,
    /// Memory or disk of the server or account.
    Storage,
}

/// A message was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The exchange failed; the message may have been stored.
    #[error("publish failed")]
    Bus(#[from] BusError),
    /// No stream takes this subject.
    #[error("no stream takes {subject}")]
    NoStream {
        /// The subject.
        subject: String,
    },
    /// The stream is full; nothing was stored.
    #[error("stream {stream} is full ({limit:?})")]
    Full {
        /// Stream.
        stream: String,
        /// Which limit.
        limit: FullLimit,
    },
    /// The expected sequence is not the last one; nothing was stored.
    #[error("stream {stream} is at another sequence than expected")]
    WrongSequence {
        /// Stream.
        stream: String,
        /// Last sequence the broker names, if it does.
        last_sequence: Option<u64>,
    },
    /// The message is larger than the stream takes.
    #[error("message is over the size limit of stream {stream}")]
    TooLarge {
        /// Stream.
        stream: String,
    },
    /// Any other refusal.
    #[error("stream {stream} refused the message: {description} (error {err_code})")]
    Refused {
        /// Stream.
        stream: String,
        /// JetStream's own code.
        err_code: u64,
        /// JetStream's text, for people.
        description: String,
    },
    /// The answer is not a publish acknowledgement.
    #[error("publish acknowledgement is malformed")]
    Malformed,
}

/// A bucket operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The key has characters that no subject can carry.
    #[error("key {key:?} is not valid")]
    InvalidKey {
        /// The key.
        key: String,
    },
    /// The key has another revision than expected: somebody was faster.
    #[error("key {key} has another revision than expected")]
    WrongRevision {
        /// The key.
        key: String,
    },
    /// The value was not stored.
    #[error("bucket write failed")]
    Publish(#[source] PublishError),
    /// Reading failed.
    #[error("bucket request failed")]
    JetStream(#[from] JetStreamError),
}

impl From<BusError> for KvError {
    fn from(error: BusError) -> Self {
        Self::JetStream(JetStreamError::Bus(error))
    }
}
