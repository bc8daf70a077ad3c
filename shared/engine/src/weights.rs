//! Tensors of a safetensors file as f32; input: a path, output: slices (borrowed from the mapped file where its type is f32) or a named error.

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};

use crate::error::LoadError;

/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;

/// An open weights file.
#[derive(Debug)]
pub(crate) struct Weights {
    file: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where tensor data starts.
    data: usize,
}

impl Weights {
    pub(crate) fn open(file: &Path) -> Result<Self, LoadError> {
        let unreadable = |source| LoadError::Read {
            file: file.to_owned(),
            source,
        };
        let handle = File::open(file).map_err(unreadable)?;
        // SAFETY: the map is read only. Should another process cut the file while it is loaded, the read faults;
        // the map lives only as long as loading takes, and model files are replaced, not rewritten.
        let map = unsafe { Mmap::map(&handle) }.map_err(unreadable)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| LoadError::Format {
            file: file.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            file: file.to_owned(),
            data: LENGTH_BYTES + header,
            map,
            metadata,
        })
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Whether the file has this tensor.
    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.metadata.info(tensor).is_some()
    }

    /// Elements of all floating-point tensors.
    pub(crate) fn parameters(&self) -> u64 {
        let tensors = self.metadata.tensors();
        let is_weight = |info: &&&TensorInfo| matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let count = |info: &&TensorInfo| info.shape.iter().product::<usize>() as u64;
        tensors.values().filter(is_weight).map(count).sum()
    }

    /// Adds what identifies the file cheaply: its length, its header and samples of its data.
    pub(crate) fn fingerprint(&self, hasher: &mut blake3::Hasher) {
        /// Samples over the data; with their size about 256 KiB, read in well under a millisecond.
        const SAMPLES: usize = 64;
        const SAMPLE_BYTES: usize = 4_096;
        hasher.update(&(self.map.len() as u64).to_le_bytes());
        hasher.update(&self.map[..self.data]);
        let data = &self.map[self.data..];
        for sample in 0..SAMPLES {
            let start = data.len() / SAMPLES * sample;
            hasher.update(&data[start..data.len().min(start + SAMPLE_BYTES)]);
        }
    }

    /// A tensor of the given shape.
    pub(crate) fn f32(&self, tensor: &str, shape: &[usize]) -> Result<Cow<'_, [f32]>, LoadError> {
        let refuse = |reason: String| LoadError::Tensor {
            file: self.file.clone(),
            tensor: tensor.to_owned(),
            reason,
        };
        let info = self
            .metadata
            .info(tensor)
            .ok_or_else(|| refuse("is missing".to_owned()))?;
        if info.shape != shape {
            return Err(refuse(format!("has shape {:?}, expected {shape:?}", info.shape)));
        }
        let (start, end) = info.data_offsets;
        let bytes = &self.map[self.data + start..self.data + end];
        match info.dtype {
            Dtype::F32 => Ok(f32_values(bytes)),
            Dtype::F16 => Ok(halves(bytes, f32_from_f16)),
            Dtype::BF16 => Ok(halves(bytes, |bits| f32::from_bits(u32::from(bits) << 16))),
            other => Err(refuse(format!("has type {other:?}, expected F32, F16 or BF16"))),
        }
    }
}

/// Little-endian f32: in place where the machine reads them so, else converted.
fn f32_values(bytes: &[u8]) -> Cow<'_, [f32]> {
    #[cfg(target_endian = "little")]
    {
        // SAFETY: every bit pattern is an f32.
        let (before, values, after) = unsafe { bytes.align_to::<f32>() };
        if before.is_empty() && after.is_empty() {
            return Cow::Borrowed(values);
        }
    }
    let (quads, _) = bytes.as_chunks::<4>();
    Cow::Owned(quads.iter().map(|quad| f32::from_le_bytes(*quad)).collect())
}

fn halves(bytes: &[u8], widen: impl Fn(u16) -> f32) -> Cow<'_, [f32]> {
    let (pairs, _) = bytes.as_chunks::<2>();
    let values = pairs.iter().map(|pair| widen(u16::from_le_bytes(*pair)));
    Cow::Owned(values.collect())
}

/// IEEE half precision to f32, exact.
fn f32_from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits) & 0x3ff;
    let magnitude = match exponent {
        // Subnormal: a multiple of 2^-24.
        0 => (fraction as f32 * 2_f32.powi(-24)).to_bits(),
        0x1f => 0x7f80_0000 | (fraction << 13),
        // The exponent's bias goes from 15 to 127.
        _ => ((exponent + 112) << 23) | (fraction << 13),
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize_to_file};

    fn write(directory: &Path, dtype: Dtype, data: &[u8]) -> PathBuf {
        let file = directory.join("w.safetensors");
        let view = TensorView::new(dtype, vec![2, 2], data).unwrap();
        serialize_to_file([("w", view)], None, &file).unwrap();
        file
    }

    #[test]
    fn all_float_types_are_widened() {
        let directory = tempfile::tempdir().unwrap();
        let values = [1.0_f32, -2.0, 0.5, 65_504.0];
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let f16: Vec<u8> = [0x3c00_u16, 0xc000, 0x3800, 0x7bff]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        for (dtype, data) in [(Dtype::F32, &bytes), (Dtype::F16, &f16)] {
            let weights = Weights::open(&write(directory.path(), dtype, data)).unwrap();
            assert_eq!(weights.f32("w", &[2, 2]).unwrap()[..], values);
            assert_eq!(weights.parameters(), 4);
        }
        let bf16: Vec<u8> = [0x3f80_u16, 0xc000, 0x3f00, 0x0000]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let weights = Weights::open(&write(directory.path(), Dtype::BF16, &bf16)).unwrap();
        assert_eq!(weights.f32("w", &[2, 2]).unwrap()[..], [1.0, -2.0, 0.5, 0.0]);
    }

    #[test]
    fn half_precision_corners_are_exact() {
        assert_eq!(f32_from_f16(0x0001), 2_f32.powi(-24));
        assert_eq!(f32_from_f16(0x03ff), 1_023.0 * 2_f32.powi(-24));
        assert_eq!(f32_from_f16(0x0400), 2_f32.powi(-14));
        assert_eq!(f32_from_f16(0x8000).to_bits(), (-0.0_f32).to_bits());
        assert_eq!(f32_from_f16(0xfc00), f32::NEG_INFINITY);
        assert!(f32_from_f16(0x7e00).is_nan());
    }

    #[test]
    fn errors_name_the_file_and_the_tensor() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Weights::open(&directory.path().join("none.safetensors"));
        assert!(matches!(missing, Err(LoadError::Read { .. })));
        let file = write(directory.path(), Dtype::F32, &[0; 16]);
        let weights = Weights::open(&file).unwrap();
        let absent = weights.f32("v", &[2, 2]).unwrap_err().to_string();
        assert!(absent.ends_with("w.safetensors: tensor `v`: is missing"), "{absent}");
        let shape = weights.f32("w", &[4]).unwrap_err().to_string();
        assert!(shape.contains("has shape [2, 2], expected [4]"), "{shape}");
        let integers = Weights::open(&write(directory.path(), Dtype::I32, &[0; 16])).unwrap();
        let dtype = integers.f32("w", &[2, 2]).unwrap_err().to_string();
        assert!(dtype.contains("has type I32"), "{dtype}");
        drop((weights, integers));
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(Weights::open(&file), Err(LoadError::Format { .. })));
    }
}
