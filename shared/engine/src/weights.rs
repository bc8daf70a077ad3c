//! Tensors of a model directory as f32; input: its safetensors file or files, output: slices (borrowed from the mapped file where its type is f32)
//! or a named error. A sharded checkpoint names the file of each tensor in `model.safetensors.index.json`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use kernels::half::f32_from_f16;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::Deserialize;

use crate::error::LoadError;

/// A checkpoint in one file.
const SINGLE_FILE: &str = "model.safetensors";
/// The table of a checkpoint in several files.
const INDEX_FILE: &str = "model.safetensors.index.json";
/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;

/// The open weights of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The one file, or the index of several.
    file: PathBuf,
    shards: Vec<Shard>,
    /// Which shard has a tensor; only for several files.
    places: HashMap<String, usize>,
}

/// One mapped safetensors file.
#[derive(Debug)]
struct Shard {
    file: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where tensor data starts.
    data: usize,
}

#[derive(Debug, Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Opens `model.safetensors`, or, where there is none, the files that `model.safetensors.index.json` names.
    pub(crate) fn open(directory: &Path) -> Result<Self, LoadError> {
        let index = directory.join(INDEX_FILE);
        if !directory.join(SINGLE_FILE).exists() && index.exists() {
            return Self::open_sharded(directory, index);
        }
        let file = directory.join(SINGLE_FILE);
        Ok(Self {
            shards: vec![Shard::open(&file)?],
            places: HashMap::new(),
            file,
        })
    }

    fn open_sharded(directory: &Path, file: PathBuf) -> Result<Self, LoadError> {
        let damaged = |reason: String| LoadError::Format {
            file: file.clone(),
            reason,
        };
        let bytes = std::fs::read(&file).map_err(|source| LoadError::Read {
            file: file.clone(),
            source,
        })?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        let mut shards = Vec::with_capacity(names.len());
        for name in &names {
            // A file of this directory and nothing else: the index came with a download.
            if Path::new(name).file_name().is_none_or(|plain| plain != name.as_str()) {
                return Err(damaged(format!("`{name}` is not a plain file name")));
            }
            shards.push(Shard::open(&directory.join(name))?);
        }
        let place = |name: &String| names.binary_search(&name).unwrap_or(0);
        let places = index
            .weight_map
            .iter()
            .map(|(tensor, name)| (tensor.clone(), place(name)));
        Ok(Self {
            places: places.collect(),
            shards,
            file,
        })
    }

    /// What to name when the weights as a whole are at fault.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Whether there is such a tensor.
    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.find(tensor).is_some()
    }

    /// Whether a tensor is stored as bf16, so that keeping it as bf16 loses nothing.
    pub(crate) fn is_bf16(&self, tensor: &str) -> bool {
        self.find(tensor).is_some_and(|(_, info)| info.dtype == Dtype::BF16)
    }

    /// Whether a tensor is stored as int8.
    pub(crate) fn is_i8(&self, tensor: &str) -> bool {
        self.find(tensor).is_some_and(|(_, info)| info.dtype == Dtype::I8)
    }

    /// The sizes of a tensor, when there is one.
    pub(crate) fn shape(&self, tensor: &str) -> Option<&[usize]> {
        self.find(tensor).map(|(_, info)| &info.shape[..])
    }

    fn find(&self, tensor: &str) -> Option<(&Shard, &TensorInfo)> {
        let place = if self.places.is_empty() {
            0
        } else {
            *self.places.get(tensor)?
        };
        let shard = self.shards.get(place)?;
        Some((shard, shard.metadata.info(tensor)?))
    }

    /// Elements of all weights: floating-point tensors but the scales of quantized ones, int8 tensors, and words of eight 4-bit values.
    pub(crate) fn parameters(&self) -> u64 {
        let is_scale = |name: &str| name.ends_with(".scales") || name.ends_with("_scale");
        let count = |(name, info): (&String, &&TensorInfo)| -> u64 {
            let elements = info.shape.iter().product::<usize>() as u64;
            match info.dtype {
                Dtype::F32 | Dtype::F16 | Dtype::BF16 if !is_scale(name) => elements,
                Dtype::I8 => elements,
                Dtype::I32 if name.ends_with(".qweight") => 8 * elements,
                _ => 0,
            }
        };
        let of_shard = |shard: &Shard| -> u64 { shard.metadata.tensors().iter().map(count).sum() };
        self.shards.iter().map(of_shard).sum()
    }

    /// Adds what identifies the files cheaply: length, header and samples of the data of each.
    pub(crate) fn fingerprint(&self, hasher: &mut blake3::Hasher) {
        for shard in &self.shards {
            shard.fingerprint(hasher);
        }
    }

    /// An error that names a tensor.
    pub(crate) fn refuse(&self, tensor: &str, reason: String) -> LoadError {
        let file = self.find(tensor).map_or(&self.file, |(shard, _)| &shard.file);
        LoadError::Tensor {
            file: file.clone(),
            tensor: tensor.to_owned(),
            reason,
        }
    }

    /// A tensor of the given shape: its type and its bytes.
    fn bytes(&self, tensor: &str, shape: &[usize]) -> Result<(Dtype, &[u8]), LoadError> {
        let Some((shard, info)) = self.find(tensor) else {
            return Err(self.refuse(tensor, "is missing".to_owned()));
        };
        if info.shape != shape {
            let reason = format!("has shape {:?}, expected {shape:?}", info.shape);
            return Err(self.refuse(tensor, reason));
        }
        Ok((info.dtype, shard.bytes(info)))
    }

    /// A floating-point tensor of the given shape.
    pub(crate) fn f32(&self, tensor: &str, shape: &[usize]) -> Result<Cow<'_, [f32]>, LoadError> {
        let (dtype, bytes) = self.bytes(tensor, shape)?;
        match dtype {
            Dtype::F32 => Ok(f32_values(bytes)),
            Dtype::F16 => Ok(halves(bytes, f32_from_f16)),
            Dtype::BF16 => Ok(halves(bytes, |bits| f32::from_bits(u32::from(bits) << 16))),
            other => Err(self.refuse(tensor, format!("has type {other:?}, expected F32, F16 or BF16"))),
        }
    }

    /// A tensor of 32-bit words of the given shape.
    pub(crate) fn i32(&self, tensor: &str, shape: &[usize]) -> Result<Vec<i32>, LoadError> {
        let (dtype, bytes) = self.bytes(tensor, shape)?;
        if dtype != Dtype::I32 {
            return Err(self.refuse(tensor, format!("has type {dtype:?}, expected I32")));
        }
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|word| i32::from_le_bytes(*word)).collect())
    }

    /// A tensor of int8 of the given shape.
    pub(crate) fn i8(&self, tensor: &str, shape: &[usize]) -> Result<Vec<i8>, LoadError> {
        let (dtype, bytes) = self.bytes(tensor, shape)?;
        if dtype != Dtype::I8 {
            return Err(self.refuse(tensor, format!("has type {dtype:?}, expected I8")));
        }
        Ok(bytes.iter().map(|byte| byte.cast_signed()).collect())
    }
}

impl Shard {
    fn open(file: &Path) -> Result<Self, LoadError> {
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

    fn bytes(&self, info: &TensorInfo) -> &[u8] {
        let (start, end) = info.data_offsets;
        &self.map[self.data + start..self.data + end]
    }

    fn fingerprint(&self, hasher: &mut blake3::Hasher) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize_to_file};

    fn write<'a>(directory: &'a Path, dtype: Dtype, data: &[u8]) -> &'a Path {
        write_as(directory, SINGLE_FILE, "w", (dtype, data));
        directory
    }

    fn write_as(directory: &Path, file: &str, tensor: &str, (dtype, data): (Dtype, &[u8])) {
        let view = TensorView::new(dtype, vec![2, 2], data).unwrap();
        serialize_to_file([(tensor, view)], None, &directory.join(file)).unwrap();
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
            let weights = Weights::open(write(directory.path(), dtype, data)).unwrap();
            assert_eq!(weights.f32("w", &[2, 2]).unwrap()[..], values);
            assert_eq!(weights.parameters(), 4);
        }
        let bf16: Vec<u8> = [0x3f80_u16, 0xc000, 0x3f00, 0x0000]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let weights = Weights::open(write(directory.path(), Dtype::BF16, &bf16)).unwrap();
        assert_eq!(weights.f32("w", &[2, 2]).unwrap()[..], [1.0, -2.0, 0.5, 0.0]);
    }

    #[test]
    fn errors_name_the_file_and_the_tensor() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Weights::open(&directory.path().join("none"));
        assert!(matches!(missing, Err(LoadError::Read { .. })));
        let weights = Weights::open(write(directory.path(), Dtype::F32, &[0; 16])).unwrap();
        let absent = weights.f32("v", &[2, 2]).unwrap_err().to_string();
        assert!(
            absent.ends_with("model.safetensors: tensor `v`: is missing"),
            "{absent}"
        );
        let shape = weights.f32("w", &[4]).unwrap_err().to_string();
        assert!(shape.contains("has shape [2, 2], expected [4]"), "{shape}");
        let integers = Weights::open(write(directory.path(), Dtype::I32, &[0; 16])).unwrap();
        let dtype = integers.f32("w", &[2, 2]).unwrap_err().to_string();
        assert!(dtype.contains("has type I32"), "{dtype}");
        assert_eq!(integers.i32("w", &[2, 2]).unwrap(), [0; 4]);
        let dtype = integers.i8("w", &[2, 2]).unwrap_err().to_string();
        assert!(dtype.contains("has type I32, expected I8"), "{dtype}");
        assert_eq!((integers.shape("w"), integers.parameters()), (Some(&[2, 2][..]), 0));
        drop((weights, integers));
        let file = directory.path().join(SINGLE_FILE);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        let cut = Weights::open(directory.path());
        assert!(matches!(cut, Err(LoadError::Format { .. })));
    }

    fn write_index(directory: &Path, places: &[(&str, &str)]) {
        let map: HashMap<&str, &str> = places.iter().copied().collect();
        let index = serde_json::json!({ "metadata": { "total_size": 32 }, "weight_map": map });
        std::fs::write(directory.join(INDEX_FILE), index.to_string()).unwrap();
    }

    #[test]
    fn tensors_are_found_in_their_shards() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        write_as(directory.path(), first, "a", (Dtype::F32, &[0; 16]));
        write_as(directory.path(), second, "b", (Dtype::BF16, &[0x80, 0x3f].repeat(4)));
        write_index(directory.path(), &[("a", first), ("b", second), ("c", first)]);
        let weights = Weights::open(directory.path()).unwrap();
        assert_eq!(weights.f32("a", &[2, 2]).unwrap()[..], [0.0; 4]);
        assert_eq!(weights.f32("b", &[2, 2]).unwrap()[..], [1.0; 4]);
        assert_eq!(weights.parameters(), 8);
        assert_eq!((weights.is_bf16("a"), weights.is_bf16("b")), (false, true));
        // In the index but not in its file, and in neither.
        for absent in ["c", "d"] {
            assert!(!weights.has(absent));
            let error = weights.f32(absent, &[2, 2]).unwrap_err().to_string();
            assert!(
                error.ends_with(&format!("index.json: tensor `{absent}`: is missing")),
                "{error}"
            );
        }
        let shape = weights.f32("b", &[4]).unwrap_err().to_string();
        assert!(shape.contains(second), "{shape}");
    }

    #[test]
    fn a_damaged_index_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        write_index(directory.path(), &[("a", "model-00001-of-00001.safetensors")]);
        let missing = Weights::open(directory.path()).unwrap_err();
        assert!(matches!(missing, LoadError::Read { .. }), "{missing}");
        for outside in ["../model.safetensors", "/etc/passwd", ".."] {
            write_index(directory.path(), &[("a", outside)]);
            let error = Weights::open(directory.path()).unwrap_err();
            assert!(matches!(error, LoadError::Format { .. }), "{error}");
        }
        std::fs::write(directory.path().join(INDEX_FILE), "{}").unwrap();
        let error = Weights::open(directory.path()).unwrap_err();
        assert!(matches!(error, LoadError::Format { .. }), "{error}");
    }
}
