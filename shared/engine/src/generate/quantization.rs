//! How a checkpoint says that its weights are quantized; input: `quantization_config` of `config.json`, output: one of the served forms or a reason.
//!
//! Served: GPTQ and AWQ (gemm) with 4 bits, and compressed-tensors with int8 weights per output or per matrix.
//! Which matrices are quantized is seen from the tensors: those left out by the checkpoint are stored as plain weights.

use kernels::gemm_i4::GroupSize;
use serde::Deserialize;
use serde_json::Value;

use crate::backend::Precision;

/// A form of quantized weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantization {
    Gptq {
        /// None: one group for the whole depth.
        group: Option<GroupSize>,
        /// What is added to a stored zero: the first version of the format stores them less one.
        zero_offset: u8,
    },
    Awq {
        group: Option<GroupSize>,
    },
    /// compressed-tensors `int-quantized`; activations are quantized per token here, whatever the checkpoint says of them.
    Int8,
}

#[derive(Debug, Deserialize)]
struct Packed {
    #[serde(alias = "w_bit")]
    bits: u32,
    #[serde(alias = "q_group_size")]
    group_size: i64,
    checkpoint_format: Option<String>,
    version: Option<String>,
    zero_point: Option<bool>,
    #[serde(default)]
    dynamic: Option<serde_json::Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct Compressed {
    format: Option<String>,
    config_groups: std::collections::BTreeMap<String, CompressedGroup>,
}

#[derive(Debug, Deserialize)]
struct CompressedGroup {
    weights: CompressedWeights,
}

#[derive(Debug, Deserialize)]
struct CompressedWeights {
    num_bits: u32,
    #[serde(rename = "type")]
    kind: String,
    strategy: String,
    #[serde(default = "yes")]
    symmetric: bool,
}

fn yes() -> bool {
    true
}

impl Quantization {
    /// Reads and checks it.
    pub(crate) fn parse(config: &Value) -> Result<Self, String> {
        let method = config.get("quant_method").and_then(Value::as_str);
        match method {
            Some("gptq") => gptq(&read(config)?),
            Some("awq") => awq(&read(config)?),
            Some("compressed-tensors") => compressed(&read(config)?),
            other => Err(format!("`{}` weights are not served", other.unwrap_or("quantized"))),
        }
    }

    /// What the products of quantized weights are computed in.
    pub(crate) fn precision(self) -> Precision {
        match self {
            Self::Gptq { .. } | Self::Awq { .. } => Precision::Int4,
            Self::Int8 => Precision::Int8,
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T, String> {
    T::deserialize(config).map_err(|error| error.to_string())
}

fn gptq(packed: &Packed) -> Result<Quantization, String> {
    let zero_offset = match packed.checkpoint_format.as_deref() {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(other) => return Err(format!("checkpoint_format `{other}` is not gptq or gptq_v2")),
    };
    if packed.dynamic.as_ref().is_some_and(|rules| !rules.is_empty()) {
        return Err("rules for single modules (`dynamic`) are not served".to_owned());
    }
    Ok(Quantization::Gptq {
        group: group(packed)?,
        zero_offset,
    })
}

fn awq(packed: &Packed) -> Result<Quantization, String> {
    let version = packed.version.as_deref().unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(format!("awq version `{version}` is not gemm"));
    }
    if packed.zero_point == Some(false) {
        return Err("awq without zero points is not served".to_owned());
    }
    Ok(Quantization::Awq { group: group(packed)? })
}

fn group(packed: &Packed) -> Result<Option<GroupSize>, String> {
    if packed.bits != 4 {
        return Err(format!("{} bits are not served, only 4", packed.bits));
    }
    if packed.group_size == -1 {
        return Ok(None);
    }
    let size = usize::try_from(packed.group_size).ok().and_then(GroupSize::of);
    size.map(Some)
        .ok_or_else(|| format!("group_size {} is not 32, 64, 128 or -1", packed.group_size))
}

fn compressed(config: &Compressed) -> Result<Quantization, String> {
    let format = config.format.as_deref().unwrap_or("none");
    if format != "int-quantized" {
        return Err(format!("compressed-tensors format `{format}` is not int-quantized"));
    }
    for (name, CompressedGroup { weights }) in &config.config_groups {
        let CompressedWeights {
            num_bits,
            kind,
            strategy,
            symmetric,
        } = weights;
        if (*num_bits, kind.as_str(), *symmetric) != (8, "int", true) {
            return Err(format!("weights of `{name}` are not symmetric int8"));
        }
        if !matches!(strategy.as_str(), "channel" | "tensor") {
            return Err(format!("strategy `{strategy}` of `{name}` is not channel or tensor"));
        }
    }
    Ok(Quantization::Int8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(base: &Value, fields: Value) -> Value {
        let mut config = base.clone();
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        config
    }

    #[test]
    fn served_forms_are_read() {
        let gptq = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": false });
        let of = |group, zero_offset| Ok(Quantization::Gptq { group, zero_offset });
        assert_eq!(Quantization::parse(&gptq), of(Some(GroupSize::G128), 1));
        let second = with(
            &gptq,
            json!({ "group_size": -1, "checkpoint_format": "gptq_v2", "dynamic": {} }),
        );
        assert_eq!(Quantization::parse(&second), of(None, 0));
        let awq =
            json!({ "quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": true });
        let group = Some(GroupSize::G64);
        assert_eq!(Quantization::parse(&awq), Ok(Quantization::Awq { group }));
        assert_eq!(Quantization::Awq { group }.precision(), Precision::Int4);
    }

    #[test]
    fn other_forms_are_refused_with_a_reason() {
        let gptq = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128 });
        let awq = json!({ "quant_method": "awq", "bits": 4, "group_size": 128 });
        let weights = json!({ "num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true });
        let compressed = |weights: Value| {
            let groups = json!({ "group_0": { "weights": weights, "targets": ["Linear"] } });
            json!({ "quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups })
        };
        assert_eq!(
            Quantization::parse(&compressed(weights.clone())),
            Ok(Quantization::Int8)
        );
        for (config, reason) in [
            (with(&gptq, json!({ "bits": 8 })), "8 bits"),
            (with(&gptq, json!({ "group_size": 96 })), "group_size 96"),
            (with(&gptq, json!({ "checkpoint_format": "marlin" })), "marlin"),
            (with(&gptq, json!({ "dynamic": { "+:a": {} } })), "dynamic"),
            (with(&gptq, json!({ "quant_method": "fp8" })), "`fp8` weights"),
            (json!({ "quant_method": "gptq", "bits": 4 }), "group_size"),
            (json!({}), "`quantized` weights"),
            (with(&awq, json!({ "version": "gemv" })), "gemv"),
            (with(&awq, json!({ "zero_point": false })), "zero points"),
            (
                with(&compressed(weights.clone()), json!({ "format": "pack-quantized" })),
                "pack-quantized",
            ),
            (compressed(with(&weights, json!({ "type": "float" }))), "symmetric int8"),
            (
                compressed(with(&weights, json!({ "symmetric": false }))),
                "symmetric int8",
            ),
            (compressed(with(&weights, json!({ "strategy": "group" }))), "`group`"),
        ] {
            let error = Quantization::parse(&config).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
