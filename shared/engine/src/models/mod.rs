//! Model families, one file each: from named tensors to layers and from token ids to vectors.

pub(crate) mod bert;
