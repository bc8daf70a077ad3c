//! The configuration of a decoder; input: `config.json` and `generation_config.json` of a Hugging Face directory, output: checked sizes and rules.
//!
//! Served: `LlamaForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM` and `MistralForCausalLM`.
//! What is left out takes the value that the transformers library takes; what is not served is refused by name, before any weight is read.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::quantization::Quantization;
use super::rotary::{RopeParameters, Rotary};
use crate::error::LoadError;
use crate::model_files::{read, read_optional};

/// Families that share this decoder; they differ in biases, head normalization and windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Mistral,
}

impl Family {
    const ALL: [(&'static str, Self); 4] = [
        ("LlamaForCausalLM", Self::Llama),
        ("Qwen2ForCausalLM", Self::Qwen2),
        ("Qwen3ForCausalLM", Self::Qwen3),
        ("MistralForCausalLM", Self::Mistral),
    ];

    /// Its name in logs and model cards.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Mistral => "mistral",
        }
    }
}

/// Sizes and rules of a decoder, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DecoderConfig {
    pub(crate) family: Family,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Elements of one head; `heads * head_dims` need not be `hidden_size`.
    pub(crate) head_dims: usize,
    pub(crate) vocab_size: usize,
    pub(crate) max_positions: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) rotary: Rotary,
    /// How far back each layer looks, its own token included; `None` is to the start.
    pub(crate) windows: Vec<Option<u32>>,
    /// Whether the output layer uses the word table.
    pub(crate) tied: bool,
    pub(crate) bias: Biases,
    /// Whether queries and keys are normalized per head.
    pub(crate) head_norms: bool,
    /// How the checkpoint's weights are quantized, if they are.
    pub(crate) quantization: Option<Quantization>,
    /// Tokens that end an answer, rising.
    pub(crate) eos: Vec<u32>,
}

/// Which products have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Biases {
    pub(crate) qkv: bool,
    pub(crate) attention_out: bool,
    pub(crate) mlp: bool,
}

/// `config.json` as it is written.
#[derive(Debug, Deserialize)]
struct RawConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    #[serde(default = "silu")]
    hidden_act: String,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    original_max_position_embeddings: Option<f64>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    sliding_window: Option<u32>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<serde_json::Value>,
    eos_token_id: Option<TokenList>,
}

fn silu() -> String {
    "silu".to_owned()
}

/// What a model's card says about how to sample; all of it may be absent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct SamplingDefaults {
    /// Whether to sample at all; greedy otherwise.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Smallest probability mass to keep.
    pub top_p: Option<f32>,
    /// Most tokens to keep.
    pub top_k: Option<u32>,
    /// Smallest probability to keep, relative to the largest.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that are already there.
    pub repetition_penalty: Option<f32>,
    /// Most tokens of an answer.
    pub max_new_tokens: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<TokenList>,
    #[serde(flatten)]
    defaults: SamplingDefaults,
}

/// One id or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum TokenList {
    One(u32),
    Several(Vec<u32>),
}

impl TokenList {
    fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids,
        }
    }
}

impl DecoderConfig {
    /// Reads and checks the configuration of a directory.
    pub(crate) fn load(directory: &Path) -> Result<Self, LoadError> {
        let file = directory.join("config.json");
        // The architecture first: another one may lack fields, and then the field would be named instead of the reason.
        let family = family(&file)?;
        let raw: RawConfig = read(&file)?;
        let generation: GenerationConfig =
            read_optional(&directory.join("generation_config.json"))?.unwrap_or_default();
        raw.check(&file)?;
        let quantization = raw.quantization_config.as_ref().map(Quantization::parse).transpose();
        let windows = raw.windows(family).map_err(refusal(&file, "layer_types"))?;
        Ok(Self {
            family,
            rotary: raw.rotary().map_err(refusal(&file, "rope_parameters"))?,
            windows,
            quantization: quantization.map_err(refusal(&file, "quantization_config"))?,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads: raw.kv_heads(),
            head_dims: raw.head_dims(),
            vocab_size: raw.vocab_size,
            max_positions: raw.max_position_embeddings,
            norm_epsilon: raw.rms_norm_eps as f32,
            tied: raw.tie_word_embeddings,
            bias: raw.biases(family),
            head_norms: family == Family::Qwen3,
            eos: end_tokens(raw.eos_token_id.as_ref(), generation.eos_token_id.as_ref()),
        })
    }

    /// Elements of all query heads of a token.
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_dims
    }

    /// Elements of all key heads of a token; the values have as many.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dims
    }
}

/// What `generation_config.json` says about sampling; nothing when there is none.
pub(crate) fn sampling_defaults(directory: &Path) -> Result<SamplingDefaults, LoadError> {
    let config: Option<GenerationConfig> = read_optional(&directory.join("generation_config.json"))?;
    Ok(config.unwrap_or_default().defaults)
}

/// The files that decide what a model generates, for its revision; those that are absent are skipped.
pub(crate) fn deciding_files(directory: &Path) -> Vec<PathBuf> {
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    .iter()
    .map(|name| directory.join(name))
    .filter(|file| file.is_file())
    .collect()
}

/// Whether a directory holds a model that generates, by its architecture; other directories hold something else.
pub fn is_generative(directory: &Path) -> Result<bool, LoadError> {
    let names: Architectures = read(&directory.join("config.json"))?;
    Ok(names.architectures.iter().any(|name| name.ends_with("ForCausalLM")))
}

#[derive(Debug, Deserialize)]
struct Architectures {
    #[serde(default)]
    architectures: Vec<String>,
}

fn family(file: &Path) -> Result<Family, LoadError> {
    let names: Architectures = read(file)?;
    let name = names.architectures.first().map_or("", String::as_str);
    let known = Family::ALL.iter().find(|(known, _)| *known == name);
    known.map(|(_, family)| *family).ok_or_else(|| {
        let served: Vec<&str> = Family::ALL.iter().map(|(known, _)| *known).collect();
        refusal(file, "architectures")(format!("`{name}` is not one of {}", served.join(", ")))
    })
}

fn refusal<'a>(file: &'a Path, field: &'static str) -> impl Fn(String) -> LoadError + 'a {
    move |reason| LoadError::Field {
        file: file.to_owned(),
        field,
        reason,
    }
}

/// Both files may name end tokens, and chat models often name the end of a turn in one and the end of a text in the other: either ends an answer.
fn end_tokens(config: Option<&TokenList>, generation: Option<&TokenList>) -> Vec<u32> {
    let lists = config.into_iter().chain(generation);
    let mut ids: Vec<u32> = lists.flat_map(TokenList::as_slice).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

impl RawConfig {
    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dims(&self) -> usize {
        let shared = self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0);
        self.head_dim.unwrap_or(shared)
    }

    fn check(&self, file: &Path) -> Result<(), LoadError> {
        let refuse = |field, reason: String| Err(refusal(file, field)(reason));
        if self.hidden_act != "silu" {
            return refuse("hidden_act", format!("`{}` is not `silu`", self.hidden_act));
        }
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dims()),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 {
                return refuse(field, "must not be 0".to_owned());
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            let reason = format!("does not divide the {} attention heads", self.num_attention_heads);
            return refuse("num_key_value_heads", reason);
        }
        if !self.head_dims().is_multiple_of(2) {
            return refuse("head_dim", format!("{} is odd", self.head_dims()));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return refuse("rms_norm_eps", format!("{} is not a small number", self.rms_norm_eps));
        }
        Ok(())
    }

    /// The newer field before the older one; what stands beside them fills what they leave out.
    fn rotary(&self) -> Result<Rotary, String> {
        let mut parameters = self
            .rope_parameters
            .clone()
            .or_else(|| self.rope_scaling.clone())
            .unwrap_or_default();
        parameters.rope_theta = parameters.rope_theta.or(self.rope_theta);
        parameters.partial_rotary_factor = parameters.partial_rotary_factor.or(self.partial_rotary_factor);
        parameters.original_max_position_embeddings = self
            .original_max_position_embeddings
            .or(parameters.original_max_position_embeddings);
        parameters.rotary(self.head_dims(), self.max_position_embeddings)
    }

    fn biases(&self, family: Family) -> Biases {
        let (qkv, attention_out, mlp) = match family {
            Family::Llama => (self.attention_bias, self.attention_bias, self.mlp_bias),
            // Not configurable there: the attention has them, but not its output.
            Family::Qwen2 => (true, false, false),
            Family::Qwen3 => (self.attention_bias, self.attention_bias, false),
            Family::Mistral => (false, false, false),
        };
        Biases {
            qkv,
            attention_out,
            mlp,
        }
    }

    /// Mistral has one window for all layers, Qwen one for those from a layer on or for those listed, and only when it is switched on.
    fn windows(&self, family: Family) -> Result<Vec<Option<u32>>, String> {
        /// Layers without a window in Qwen when the configuration does not say, as in the transformers library.
        const MAX_WINDOW_LAYERS: usize = 28;
        let layers = self.num_hidden_layers;
        let window = match family {
            Family::Llama => None,
            Family::Mistral => self.sliding_window,
            Family::Qwen2 | Family::Qwen3 => self.sliding_window.filter(|_| self.use_sliding_window),
        };
        if window == Some(0) {
            return Err("a sliding_window of 0 tokens shows nothing".to_owned());
        }
        let listed = self.layer_types.as_ref().filter(|_| family != Family::Mistral);
        let Some(kinds) = listed else {
            let first = match family {
                Family::Llama | Family::Mistral => 0,
                Family::Qwen2 | Family::Qwen3 => self.max_window_layers.unwrap_or(MAX_WINDOW_LAYERS),
            };
            return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
        };
        if kinds.len() != layers {
            return Err(format!("{} layers are listed, there are {layers}", kinds.len()));
        }
        let of_kind = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(None),
            "sliding_attention" => Ok(window),
            other => Err(format!("`{other}` is not full_attention or sliding_attention")),
        };
        kinds.iter().map(of_kind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn base(architecture: &str) -> Value {
        json!({
            "architectures": [architecture], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "eos_token_id": 2
        })
    }

    fn load(config: &Value, generation: Option<Value>) -> Result<DecoderConfig, LoadError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        if let Some(generation) = generation {
            std::fs::write(directory.path().join("generation_config.json"), generation.to_string()).unwrap();
        }
        DecoderConfig::load(directory.path())
    }

    fn with(architecture: &str, fields: Value) -> Value {
        let mut config = base(architecture);
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        config
    }

    #[test]
    fn families_differ_in_biases_and_head_norms() {
        let biases = |config: &DecoderConfig| (config.bias.qkv, config.bias.attention_out, config.bias.mlp);
        let llama = load(&base("LlamaForCausalLM"), None).unwrap();
        assert_eq!((llama.head_dims, llama.query_width(), llama.kv_width()), (16, 64, 32));
        assert_eq!((biases(&llama), llama.head_norms), ((false, false, false), false));
        let biased = json!({ "attention_bias": true, "mlp_bias": true, "head_dim": 32 });
        let biased = load(&with("LlamaForCausalLM", biased), None).unwrap();
        assert_eq!((biases(&biased), biased.query_width()), ((true, true, true), 128));
        let qwen2 = load(&base("Qwen2ForCausalLM"), None).unwrap();
        assert_eq!(biases(&qwen2), (true, false, false));
        let qwen3 = load(&base("Qwen3ForCausalLM"), None).unwrap();
        assert_eq!((biases(&qwen3), qwen3.head_norms), ((false, false, false), true));
        let mistral = load(&base("MistralForCausalLM"), None).unwrap();
        assert_eq!(
            (biases(&mistral), mistral.family.name()),
            ((false, false, false), "mistral")
        );
    }

    #[test]
    fn windows_follow_the_rules_of_their_family() {
        let windows = |architecture, fields| load(&with(architecture, fields), None).unwrap().windows;
        let on = Some(8);
        let plain = json!({ "sliding_window": 8 });
        assert_eq!(windows("MistralForCausalLM", plain.clone()), [on, on, on]);
        assert_eq!(windows("LlamaForCausalLM", plain.clone()), [None; 3]);
        assert_eq!(windows("Qwen2ForCausalLM", plain), [None; 3]);
        let from_one = json!({ "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1 });
        assert_eq!(windows("Qwen2ForCausalLM", from_one), [None, on, on]);
        let kinds = ["sliding_attention", "full_attention", "sliding_attention"];
        let listed = json!({ "sliding_window": 8, "use_sliding_window": true, "layer_types": kinds });
        assert_eq!(windows("Qwen3ForCausalLM", listed), [on, None, on]);
    }

    #[test]
    fn either_place_of_the_rope_is_read() {
        let linear = json!({ "type": "linear", "factor": 2.0 });
        let older = json!({ "rope_theta": 5e5, "rope_scaling": linear });
        let newer = json!({ "rope_parameters": { "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 } });
        let older = load(&with("LlamaForCausalLM", older), None).unwrap();
        let newer = load(&with("LlamaForCausalLM", newer), None).unwrap();
        assert_eq!(older.rotary, newer.rotary);
        let plain = load(&base("LlamaForCausalLM"), None).unwrap();
        assert_ne!(older.rotary, plain.rotary);
    }

    #[test]
    fn end_tokens_come_from_both_files() {
        let eos = |config: Value, generation| load(&config, generation).unwrap().eos;
        let llama = |ids: Value| with("LlamaForCausalLM", json!({ "eos_token_id": ids }));
        assert_eq!(eos(llama(json!(2)), None), [2]);
        assert!(eos(llama(json!(null)), None).is_empty());
        let both = eos(
            llama(json!([9, 2])),
            Some(json!({ "eos_token_id": [2, 7], "top_p": 0.9 })),
        );
        assert_eq!(both, [2, 7, 9]);
    }

    #[test]
    fn sampling_defaults_are_optional() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            sampling_defaults(directory.path()).unwrap(),
            SamplingDefaults::default()
        );
        let file = directory.path().join("generation_config.json");
        std::fs::write(
            file,
            r#"{"do_sample":false,"eos_token_id":2,"temperature":0.6,"other":1}"#,
        )
        .unwrap();
        let defaults = sampling_defaults(directory.path()).unwrap();
        assert_eq!((defaults.do_sample, defaults.temperature), (Some(false), Some(0.6)));
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        for (fields, field) in [
            (json!({ "architectures": ["GemmaForCausalLM"] }), "architectures"),
            (json!({ "architectures": [] }), "architectures"),
            (json!({ "hidden_act": "gelu" }), "hidden_act"),
            (json!({ "num_key_value_heads": 3 }), "num_key_value_heads"),
            (json!({ "vocab_size": 0 }), "vocab_size"),
            (json!({ "head_dim": 15 }), "head_dim"),
            (
                json!({ "rope_scaling": { "rope_type": "longrope" } }),
                "rope_parameters",
            ),
            (
                json!({ "quantization_config": { "quant_method": "fp8" } }),
                "quantization_config",
            ),
            (json!({ "layer_types": ["full_attention"] }), "layer_types"),
            (json!({ "layer_types": ["a", "b", "c"] }), "layer_types"),
        ] {
            let error = load(&with("LlamaForCausalLM", fields), None).unwrap_err();
            assert!(
                matches!(error, LoadError::Field { field: f, .. } if f == field),
                "{error}"
            );
        }
        let missing = load(&json!({ "architectures": ["LlamaForCausalLM"] }), None).unwrap_err();
        assert!(matches!(missing, LoadError::Format { .. }), "{missing}");
    }
}
