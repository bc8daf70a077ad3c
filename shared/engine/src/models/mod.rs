//! Model families, one file each: from named tensors to layers and from token ids to vectors or logits.

mod bert;
pub(crate) mod decoder;
pub(crate) mod encoder;
mod head;
pub(crate) mod linear;
mod nomic;

/// The first `len` elements, after growing when there are fewer.
fn grown(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
