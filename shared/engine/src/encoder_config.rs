//! `config.json` of an encoder; input: the file, output: its sizes and kind, checked, in one spelling for all families.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::backend::Purpose;
use crate::error::LoadError;

/// What an encoder gives when its architecture's name ends so; a checkpoint without a name is a bare encoder.
const PURPOSES: [(&str, Purpose); 4] = [
    ("Model", Purpose::Embed),
    ("ForMaskedLM", Purpose::Embed),
    ("ForPreTraining", Purpose::Embed),
    ("ForSequenceClassification", Purpose::Rank),
];
/// Base of the rotary wavelengths when a nomic configuration names none.
const NOMIC_THETA: f64 = 1_000.0;
/// Nomic's gated layers are rounded up to this multiple.
const NOMIC_INNER_MULTIPLE: usize = 256;

/// Kinds of encoders, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EncoderFamily {
    Bert,
    Roberta,
    XlmRoberta,
    NomicBert,
}

impl EncoderFamily {
    const ALL: [Self; 4] = [Self::Bert, Self::Roberta, Self::XlmRoberta, Self::NomicBert];

    /// Its `model_type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::NomicBert => "nomic_bert",
        }
    }

    /// Whether it is RoBERTa or built like it: positions begin after that of padding, second texts have no type of their own,
    /// and the head that ranks looks at the first token itself.
    pub(crate) fn is_roberta(self) -> bool {
        matches!(self, Self::Roberta | Self::XlmRoberta)
    }
}

/// Sizes of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EncoderConfig {
    pub(crate) family: EncoderFamily,
    pub(crate) purpose: Purpose,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    /// Positions that sequences can have.
    pub(crate) max_position_embeddings: usize,
    /// Rows of the position table before that of the first token.
    pub(crate) position_offset: usize,
    pub(crate) vocab_size: usize,
    pub(crate) type_vocab_size: usize,
    pub(crate) layer_norm_eps: f64,
    /// Base of the rotary wavelengths; read only for families that have them.
    pub(crate) rope_theta: f64,
    pub(crate) biases: Biases,
}

/// Which layers of a nomic encoder have biases; those of the others always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Biases {
    pub(crate) attention: bool,
    pub(crate) up: bool,
    pub(crate) down: bool,
}

/// The file as it is. Nomic's checkpoints were published with names of their own (second in each pair) before the
/// transformers library took the family in.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    architectures: Vec<String>,
    model_type: String,
    hidden_size: Option<usize>,
    n_embd: Option<usize>,
    num_hidden_layers: Option<usize>,
    n_layer: Option<usize>,
    num_attention_heads: Option<usize>,
    n_head: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    n_inner: Option<usize>,
    max_position_embeddings: Option<usize>,
    n_positions: Option<usize>,
    max_trained_positions: Option<usize>,
    vocab_size: Option<usize>,
    pad_vocab_size_multiple: Option<usize>,
    type_vocab_size: Option<usize>,
    pad_token_id: Option<usize>,
    hidden_act: Option<String>,
    activation_function: Option<String>,
    layer_norm_eps: Option<f64>,
    layer_norm_epsilon: Option<f64>,
    position_embedding_type: Option<String>,
    id2label: Option<BTreeMap<String, Value>>,
    num_labels: Option<usize>,
    is_decoder: bool,
    causal: bool,
    prenorm: bool,
    parallel_block: bool,
    use_rms_norm: bool,
    qkv_proj_bias: bool,
    mlp_fc1_bias: bool,
    mlp_fc2_bias: bool,
    moe_every_n_layers: Option<usize>,
    rotary_emb_base: Option<f64>,
    rotary_emb_fraction: Option<f64>,
    rotary_emb_interleaved: bool,
    rotary_emb_scale_base: Option<f64>,
    rotary_scaling_factor: Option<f64>,
    rope_parameters: Option<Rope>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

impl EncoderConfig {
    /// Reads and checks the file.
    pub(crate) fn read(file: &Path) -> Result<Self, LoadError> {
        let raw: Raw = crate::model_files::read(file)?;
        raw.checked().map_err(|(field, reason)| LoadError::Field {
            file: file.to_owned(),
            field,
            reason,
        })
    }
}

/// A field and why it is refused.
type Refused = (&'static str, String);

impl Raw {
    fn checked(self) -> Result<EncoderConfig, Refused> {
        let family = self.family()?;
        let purpose = self.purpose(family)?;
        let config = match family {
            EncoderFamily::NomicBert => self.nomic(purpose)?,
            _ => self.bert(family, purpose)?,
        };
        config.check()?;
        Ok(config)
    }

    fn family(&self) -> Result<EncoderFamily, Refused> {
        let known = EncoderFamily::ALL
            .into_iter()
            .find(|family| family.name() == self.model_type);
        known.ok_or_else(|| {
            let served = EncoderFamily::ALL.map(EncoderFamily::name).join(", ");
            ("model_type", format!("`{}` is not one of {served}", self.model_type))
        })
    }

    fn purpose(&self, family: EncoderFamily) -> Result<Purpose, Refused> {
        let Some(name) = self.architectures.first() else {
            return Ok(Purpose::Embed);
        };
        let known = PURPOSES.into_iter().find(|(end, _)| name.ends_with(end));
        let refuse = |reason: &str| Err(("architectures", format!("`{name}` {reason}")));
        match known {
            None => refuse("is neither an encoder nor a classifier of text pairs"),
            Some((_, Purpose::Rank)) if family == EncoderFamily::NomicBert => refuse("is served for embeddings only"),
            Some((_, Purpose::Rank)) if self.labels() != 1 => {
                let labels = self.labels();
                Err((
                    "id2label",
                    format!("a model that ranks has 1 label, this one has {labels}"),
                ))
            }
            Some((_, purpose)) => Ok(purpose),
        }
    }

    /// Labels of a classifier; the transformers library takes 2 when nothing is said.
    fn labels(&self) -> usize {
        let listed = self.id2label.as_ref().map(BTreeMap::len);
        listed.or(self.num_labels).unwrap_or(2)
    }

    fn bert(self, family: EncoderFamily, purpose: Purpose) -> Result<EncoderConfig, Refused> {
        let act = needed("hidden_act", self.hidden_act)?;
        if act != "gelu" {
            return Err(("hidden_act", format!("`{act}` is not `gelu`")));
        }
        if let Some(kind) = self.position_embedding_type.filter(|kind| kind != "absolute") {
            return Err(("position_embedding_type", format!("`{kind}` is not `absolute`")));
        }
        if self.is_decoder {
            return Err(("is_decoder", "a decoder is not served as an encoder".to_owned()));
        }
        let positions = needed("max_position_embeddings", self.max_position_embeddings)?;
        let position_offset = if family.is_roberta() {
            self.pad_token_id.unwrap_or(1) + 1
        } else {
            0
        };
        if positions <= position_offset {
            let reason = format!("{positions} positions are too few for an offset of {position_offset}");
            return Err(("max_position_embeddings", reason));
        }
        Ok(EncoderConfig {
            family,
            purpose,
            hidden_size: needed("hidden_size", self.hidden_size)?,
            num_hidden_layers: needed("num_hidden_layers", self.num_hidden_layers)?,
            num_attention_heads: needed("num_attention_heads", self.num_attention_heads)?,
            intermediate_size: needed("intermediate_size", self.intermediate_size)?,
            max_position_embeddings: positions - position_offset,
            position_offset,
            vocab_size: needed("vocab_size", self.vocab_size)?,
            type_vocab_size: needed("type_vocab_size", self.type_vocab_size)?,
            layer_norm_eps: needed("layer_norm_eps", self.layer_norm_eps)?,
            rope_theta: 0.0,
            biases: Biases {
                attention: true,
                up: true,
                down: true,
            },
        })
    }

    fn nomic(self, purpose: Purpose) -> Result<EncoderConfig, Refused> {
        self.check_nomic()?;
        let heads = needed("num_attention_heads", self.num_attention_heads.or(self.n_head))?;
        let hidden_size = needed("hidden_size", self.hidden_size.or(self.n_embd))?;
        if let Some(dims) = self.head_dim.filter(|dims| dims * heads != hidden_size) {
            let reason = format!("{dims} times {heads} heads is not hidden_size {hidden_size}");
            return Err(("head_dim", reason));
        }
        // The published code rounds the gated layer up; the library has the rounded size in its own field.
        let published = self.n_inner.map(|inner| inner.next_multiple_of(NOMIC_INNER_MULTIPLE));
        let positions = self.max_position_embeddings.or(self.n_positions);
        // With a scaling factor the published code changes the wavelengths beyond the positions it was trained with.
        let trained = self
            .rotary_scaling_factor
            .and(self.max_trained_positions)
            .unwrap_or(usize::MAX);
        let multiple = self.pad_vocab_size_multiple.unwrap_or(1).max(1);
        let theta = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        Ok(EncoderConfig {
            family: EncoderFamily::NomicBert,
            purpose,
            hidden_size,
            num_hidden_layers: needed("num_hidden_layers", self.num_hidden_layers.or(self.n_layer))?,
            num_attention_heads: heads,
            intermediate_size: needed("intermediate_size", self.intermediate_size.or(published))?,
            max_position_embeddings: needed("max_position_embeddings", positions)?.min(trained),
            position_offset: 0,
            vocab_size: needed("vocab_size", self.vocab_size)?.next_multiple_of(multiple),
            type_vocab_size: needed("type_vocab_size", self.type_vocab_size)?,
            layer_norm_eps: needed("layer_norm_eps", self.layer_norm_eps.or(self.layer_norm_epsilon))?,
            rope_theta: theta.or(self.rotary_emb_base).unwrap_or(NOMIC_THETA),
            biases: Biases {
                attention: self.qkv_proj_bias,
                up: self.mlp_fc1_bias,
                down: self.mlp_fc2_bias,
            },
        })
    }

    /// Refuses the switches of the published code that no released text model sets.
    fn check_nomic(&self) -> Result<(), Refused> {
        let flags = [
            ("causal", self.causal),
            ("prenorm", self.prenorm),
            ("parallel_block", self.parallel_block),
            ("use_rms_norm", self.use_rms_norm),
            ("rotary_emb_interleaved", self.rotary_emb_interleaved),
            ("rotary_emb_scale_base", self.rotary_emb_scale_base.is_some()),
            (
                "moe_every_n_layers",
                self.moe_every_n_layers.is_some_and(|every| every > 0),
            ),
        ];
        if let Some((field, _)) = flags.into_iter().find(|(_, set)| *set) {
            return Err((field, "is set, which is not served for nomic_bert".to_owned()));
        }
        if let Some(fraction) = self.rotary_emb_fraction.filter(|fraction| *fraction != 1.0) {
            return Err(("rotary_emb_fraction", format!("{fraction} is not 1")));
        }
        let rope = self.rope_parameters.as_ref().and_then(|rope| rope.rope_type.as_deref());
        if let Some(kind) = rope.filter(|kind| *kind != "default") {
            return Err(("rope_parameters", format!("rope type `{kind}` is not `default`")));
        }
        match (self.hidden_act.as_deref(), self.activation_function.as_deref()) {
            (Some("silu"), _) | (None, Some("swiglu")) => Ok(()),
            (Some(other), _) => Err(("hidden_act", format!("`{other}` is not `silu`"))),
            (None, Some(other)) => Err(("activation_function", format!("`{other}` is not `swiglu`"))),
            (None, None) => Err(("hidden_act", "is missing".to_owned())),
        }
    }
}

impl EncoderConfig {
    fn check(&self) -> Result<(), Refused> {
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("vocab_size", self.vocab_size),
            ("type_vocab_size", self.type_vocab_size),
        ] {
            if value == 0 {
                return Err((field, "must not be 0".to_owned()));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let reason = format!("does not divide hidden_size {}", self.hidden_size);
            return Err(("num_attention_heads", reason));
        }
        let rotary = self.family == EncoderFamily::NomicBert;
        if rotary && !(self.hidden_size / self.num_attention_heads).is_multiple_of(2) {
            return Err((
                "num_attention_heads",
                "heads of an odd size cannot be rotated".to_owned(),
            ));
        }
        Ok(())
    }
}

fn needed<T>(field: &'static str, value: Option<T>) -> Result<T, Refused> {
    value.ok_or_else(|| (field, "is missing".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: &Value) -> Result<EncoderConfig, Refused> {
        serde_json::from_value::<Raw>(config.clone()).unwrap().checked()
    }

    fn bert(model_type: &str) -> Value {
        json!({
            "model_type": model_type, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 32, "vocab_size": 10, "type_vocab_size": 2,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12
        })
    }

    /// As published, before the library had the family.
    fn nomic() -> Value {
        json!({
            "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "n_embd": 8, "n_layer": 1, "n_head": 2,
            "n_inner": 300, "n_positions": 8192, "max_trained_positions": 2048, "vocab_size": 30, "type_vocab_size": 2,
            "pad_vocab_size_multiple": 64, "activation_function": "swiglu", "layer_norm_epsilon": 1e-12,
            "rotary_emb_base": 500, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false,
            "rotary_scaling_factor": null, "prenorm": false, "qkv_proj_bias": false
        })
    }

    fn with(mut config: Value, field: &str, value: Value) -> Value {
        config[field] = value;
        config
    }

    #[test]
    fn both_spellings_of_nomic_are_one_model() {
        let published = read(&nomic()).unwrap();
        let library = json!({
            "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "head_dim": 4, "intermediate_size": 512, "max_position_embeddings": 8192,
            "vocab_size": 64, "type_vocab_size": 2, "hidden_act": "silu", "layer_norm_eps": 1e-12,
            "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}
        });
        assert_eq!(read(&library).unwrap(), published);
        assert!(!published.biases.attention && published.rope_theta == 500.0);
        let scaled = read(&with(nomic(), "rotary_scaling_factor", json!(2))).unwrap();
        assert_eq!(scaled.max_position_embeddings, 2048, "beyond it the wavelengths change");
    }

    #[test]
    fn robertas_positions_begin_after_that_of_padding() {
        let roberta = read(&with(bert("xlm-roberta"), "pad_token_id", json!(1))).unwrap();
        assert_eq!((roberta.position_offset, roberta.max_position_embeddings), (2, 30));
        let plain = read(&bert("bert")).unwrap();
        assert_eq!((plain.position_offset, plain.max_position_embeddings), (0, 32));
    }

    #[test]
    fn the_architecture_says_what_it_is_for() {
        let named = |name: &str| with(bert("bert"), "architectures", json!([name]));
        assert_eq!(read(&named("BertModel")).unwrap().purpose, Purpose::Embed);
        assert_eq!(read(&bert("bert")).unwrap().purpose, Purpose::Embed);
        let ranker = with(
            named("BertForSequenceClassification"),
            "id2label",
            json!({"0": "LABEL_0"}),
        );
        assert_eq!(read(&ranker).unwrap().purpose, Purpose::Rank);
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let classifier = json!(["BertForSequenceClassification"]);
        for (config, field) in [
            (bert("deberta-v2"), "model_type"),
            (with(bert("bert"), "hidden_act", json!("relu")), "hidden_act"),
            (with(bert("bert"), "hidden_size", Value::Null), "hidden_size"),
            (
                with(bert("bert"), "num_attention_heads", json!(3)),
                "num_attention_heads",
            ),
            (with(bert("bert"), "intermediate_size", json!(0)), "intermediate_size"),
            (with(bert("bert"), "is_decoder", json!(true)), "is_decoder"),
            (
                with(bert("bert"), "position_embedding_type", json!("relative_key")),
                "position_embedding_type",
            ),
            (
                with(bert("bert"), "architectures", json!(["BertForTokenClassification"])),
                "architectures",
            ),
            (with(bert("bert"), "architectures", classifier), "id2label"),
            (
                with(bert("roberta"), "max_position_embeddings", json!(2)),
                "max_position_embeddings",
            ),
            (with(nomic(), "prenorm", json!(true)), "prenorm"),
            (with(nomic(), "causal", json!(true)), "causal"),
            (with(nomic(), "moe_every_n_layers", json!(2)), "moe_every_n_layers"),
            (with(nomic(), "rotary_emb_fraction", json!(0.5)), "rotary_emb_fraction"),
            (
                with(nomic(), "activation_function", json!("geglu")),
                "activation_function",
            ),
            (
                with(nomic(), "rope_parameters", json!({"rope_type": "yarn"})),
                "rope_parameters",
            ),
            (with(nomic(), "n_head", json!(8)), "num_attention_heads"),
            (
                with(nomic(), "architectures", json!(["NomicBertForSequenceClassification"])),
                "architectures",
            ),
        ] {
            let (found, reason) = read(&config).unwrap_err();
            assert_eq!(found, field, "{reason}");
        }
    }
}
