//! Answers as JSON. Input: vectors and usage. Output: the bytes of an embeddings response.
//! Written by hand because the vectors are nearly all of it and most answers leave the cache already rendered.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemas::http::EncodingFormat;
use schemas::vector::Vector;

/// Bytes of the longest shortest-form f32, its comma included.
const FLOAT_BYTES: usize = 16;

/// The body of an embeddings response.
#[must_use]
pub fn embeddings(model: &str, vectors: &[Vector], input_tokens: u64, format: EncodingFormat) -> Bytes {
    let values: usize = vectors.iter().map(|vector| vector.0.len()).sum();
    let mut out = Vec::with_capacity(values * FLOAT_BYTES + vectors.len() * 64 + 160);
    out.extend_from_slice(br#"{"object":"list","data":["#);
    let mut number = itoa::Buffer::new();
    for (index, vector) in vectors.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(br#"{"object":"embedding","index":"#);
        out.extend_from_slice(number.format(index).as_bytes());
        out.extend_from_slice(br#","embedding":"#);
        match format {
            EncodingFormat::Float => push_floats(&mut out, &vector.0),
            EncodingFormat::Base64 => push_base64(&mut out, vector),
        }
        out.push(b'}');
    }
    out.extend_from_slice(br#"],"model":"#);
    push_string(&mut out, model);
    let tokens = number.format(input_tokens);
    out.extend_from_slice(br#","usage":{"prompt_tokens":"#);
    out.extend_from_slice(tokens.as_bytes());
    out.extend_from_slice(br#","total_tokens":"#);
    out.extend_from_slice(tokens.as_bytes());
    out.extend_from_slice(b"}}");
    Bytes::from(out)
}

fn push_floats(out: &mut Vec<u8>, values: &[f32]) {
    let mut buffer = zmij::Buffer::new();
    out.push(b'[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        // JSON has no word for NaN or infinity; engines refuse them, so this is never seen.
        let text = if value.is_finite() {
            buffer.format_finite(*value)
        } else {
            "null"
        };
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b']');
}

fn push_base64(out: &mut Vec<u8>, vector: &Vector) {
    out.push(b'"');
    out.extend_from_slice(STANDARD.encode(vector.to_le_bytes()).as_bytes());
    out.push(b'"');
}

fn push_string(out: &mut Vec<u8>, text: &str) {
    let quoted = serde_json::Value::String(text.to_owned()).to_string();
    out.extend_from_slice(quoted.as_bytes());
}

#[cfg(test)]
mod tests {
    use schemas::http::{EmbeddingsResponse, EncodedVector};

    use super::*;

    #[test]
    fn both_encodings_are_the_documented_shape() {
        let vectors = [
            Vector(vec![0.1, -2.5e-8, 3.0]),
            Vector(vec![f32::MIN_POSITIVE, f32::MAX, -0.0]),
        ];
        let name = "quote\"and\\slash";
        let float = embeddings(name, &vectors, 7, EncodingFormat::Float);
        let parsed: EmbeddingsResponse = serde_json::from_slice(&float).unwrap();
        assert_eq!((parsed.object.as_str(), parsed.model.as_str()), ("list", name));
        assert_eq!((parsed.usage.prompt_tokens, parsed.usage.total_tokens), (7, 7));
        for (index, (object, vector)) in parsed.data.iter().zip(&vectors).enumerate() {
            assert_eq!((object.object.as_str(), object.index as usize), ("embedding", index));
            assert_eq!(object.embedding, EncodedVector::Float(vector.0.clone()));
        }
        let base64 = embeddings(name, &vectors, 7, EncodingFormat::Base64);
        let parsed: EmbeddingsResponse = serde_json::from_slice(&base64).unwrap();
        for (object, vector) in parsed.data.iter().zip(&vectors) {
            let EncodedVector::Base64(text) = &object.embedding else {
                panic!("not base64")
            };
            assert_eq!(STANDARD.decode(text).unwrap(), vector.to_le_bytes());
        }
    }
}
