//! W3C trace context: a `traceparent` header in, the ids of this hop out, and the header for the next hop.

use std::fmt;

use crate::random;

/// The version byte that this code writes.
const VERSION: &str = "00";
/// `00-` + 32 + `-` + 16 + `-` + 2 characters.
const LENGTH_BYTES: usize = 55;
/// The bit of the flags that says the caller records this trace.
const SAMPLED_FLAG: u8 = 0x01;

/// Which trace a unit of work belongs to, and which span within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The same over all hops of one request; never all zero.
    pub trace_id: [u8; 16],
    /// This hop; never all zero.
    pub span_id: [u8; 8],
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// A new trace, for work that came without one. Nobody records it, and it says so: the broker examines each message
    /// whose trace is being recorded, at 5 % of its CPU time.
    #[must_use]
    pub fn new_root() -> Self {
        Self {
            trace_id: new_trace_id(),
            span_id: new_span_id(),
            sampled: false,
        }
    }

    /// The next hop of the same trace.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            span_id: new_span_id(),
            ..*self
        }
    }

    /// Reads a `traceparent` header as strictly as the standard asks; `None` means: start a new trace.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let bytes = header.as_bytes();
        if bytes.len() < LENGTH_BYTES || bytes[2] != b'-' || bytes[35] != b'-' || bytes[52] != b'-' {
            return None;
        }
        let [version] = hex::<1>(&bytes[..2])?;
        match version {
            0xff => return None,
            0x00 if bytes.len() != LENGTH_BYTES => return None,
            // A later version may append fields, set off by a dash; what we know stays in place.
            _ if bytes.len() > LENGTH_BYTES && bytes[LENGTH_BYTES] != b'-' => return None,
            _ => {}
        }
        let trace_id = hex::<16>(&bytes[3..35])?;
        let span_id = hex::<8>(&bytes[36..52])?;
        let [flags] = hex::<1>(&bytes[53..55])?;
        let valid = trace_id != [0; 16] && span_id != [0; 8];
        valid.then_some(Self {
            trace_id,
            span_id,
            sampled: flags & SAMPLED_FLAG != 0,
        })
    }

    /// The trace of a header, as a new hop of it; a new trace where the header is missing or invalid.
    #[must_use]
    pub fn continue_from(header: Option<&str>) -> Self {
        header
            .and_then(Self::parse)
            .map_or_else(Self::new_root, |parent| parent.child())
    }

    /// The trace id as 32 lowercase hexadecimal digits, as it stands in logs.
    #[must_use]
    pub fn trace_id_hex(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.trace_id))
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace = u128::from_be_bytes(self.trace_id);
        let span = u64::from_be_bytes(self.span_id);
        write!(
            formatter,
            "{VERSION}-{trace:032x}-{span:016x}-{:02x}",
            u8::from(self.sampled)
        )
    }
}

/// Decodes exactly `N` bytes of lowercase hexadecimal; the standard forbids capitals.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (hex_digit(pair[0])? << 4) | hex_digit(pair[1])?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn new_trace_id() -> [u8; 16] {
    // All zero means "no trace"; one in 2^128 draws.
    random::bits_128().max(1).to_be_bytes()
}

fn new_span_id() -> [u8; 8] {
    random::bits_64().max(1).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_the_example_of_the_standard() {
        let context = TraceContext::parse(VALID).unwrap();
        assert_eq!(context.trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
        assert!(context.sampled);
        assert_eq!(context.to_string(), VALID);
    }

    #[test]
    fn refuses_what_the_standard_refuses_and_reads_later_versions() {
        let refused = [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.what",
        ];
        for header in refused {
            assert_eq!(TraceContext::parse(header), None, "{header}");
        }
        let known = TraceContext::parse(VALID);
        for later in [
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            &format!("01{}-what", &VALID[2..]),
        ] {
            assert_eq!(TraceContext::parse(later), known, "{later}");
        }
        let unsampled = TraceContext::parse(&format!("{}02", &VALID[..53])).unwrap();
        assert!(!unsampled.sampled, "bit 1 is not the sampled bit");
    }

    #[test]
    fn a_missing_header_starts_a_trace_and_a_present_one_is_continued() {
        let continued = TraceContext::continue_from(Some(VALID));
        let parent = TraceContext::parse(VALID).unwrap();
        assert_eq!(continued.trace_id, parent.trace_id);
        assert_ne!(continued.span_id, parent.span_id);
        assert_ne!(
            TraceContext::continue_from(None).trace_id,
            TraceContext::continue_from(Some("?")).trace_id
        );
    }

    #[test]
    fn ids_of_several_threads_do_not_repeat() {
        let draw = || (0..1_000).map(|_| TraceContext::new_root()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(draw)).collect();
        let all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let traces: std::collections::HashSet<_> = all.iter().map(|context| context.trace_id).collect();
        let spans: std::collections::HashSet<_> = all.iter().map(|context| context.span_id).collect();
        assert_eq!((traces.len(), spans.len()), (4_000, 4_000));
    }

    proptest! {
        #[test]
        fn every_context_survives_its_header(trace_id in any::<[u8; 16]>(), span_id in any::<[u8; 8]>(), sampled: bool) {
            let context = TraceContext { trace_id, span_id, sampled };
            let valid = trace_id != [0; 16] && span_id != [0; 8];
            prop_assert_eq!(TraceContext::parse(&context.to_string()), valid.then_some(context));
        }

        #[test]
        fn no_text_panics(header in "\\PC{0,80}", noise in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceContext::parse(&header);
            let _ = TraceContext::parse(&String::from_utf8_lossy(&noise));
        }

        #[test]
        fn one_changed_character_is_still_valid_or_refused(at in 0usize..55, to in any::<char>()) {
            let mut header: Vec<char> = VALID.chars().collect();
            header[at] = to;
            let header: String = header.into_iter().collect();
            if let Some(context) = TraceContext::parse(&header) {
                prop_assert_eq!(&context.to_string()[3..52], &header[3..52]);
            }
        }
    }
}
