//! Rotary position embedding as configured; input: `rope_parameters` or `rope_scaling` of `config.json`, output: one frequency per pair of elements.
//!
//! The formulas are those of the transformers library (`modeling_rope_utils.py`): types default, linear, llama3 and yarn.
//! The type `dynamic` is refused: its frequencies depend on the length, so a cached key would change while its sequence grows.

use std::f64::consts::TAU;

use serde::Deserialize;

/// Base of the wavelengths when a configuration names none, as in the first Llama.
const DEFAULT_THETA: f64 = 10_000.0;

/// Angles of a model: pair `i` at position `p` turns by `p * inv_freq[i]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rotary {
    pub(crate) inv_freq: Vec<f32>,
    /// Factor on cosines and sines (yarn's attention factor), else 1.
    pub(crate) scale: f32,
}

/// The fields of all rope types; newer configurations have the base in here, older ones beside it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct RopeParameters {
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    #[serde(rename = "type")]
    kind: Option<String>,
    pub(crate) rope_theta: Option<f64>,
    pub(crate) partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    pub(crate) original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    /// Parameters per kind of layer, which no served family has.
    full_attention: Option<serde_json::Value>,
    sliding_attention: Option<serde_json::Value>,
}

impl RopeParameters {
    /// Frequencies for heads of `dims` elements; `max_positions` is the configured context. The error is the reason of a refusal.
    pub(crate) fn rotary(&self, dims: usize, max_positions: usize) -> Result<Rotary, String> {
        if self.full_attention.is_some() || self.sliding_attention.is_some() {
            return Err("parameters per kind of layer are not served".to_owned());
        }
        if self.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return Err("a partial_rotary_factor other than 1 is not served".to_owned());
        }
        let theta = positive("rope_theta", self.rope_theta.unwrap_or(DEFAULT_THETA))?;
        let plain: Vec<f64> = (0..dims / 2)
            .map(|pair| theta.powf(-2.0 * pair as f64 / dims as f64))
            .collect();
        let name = self.rope_type.as_deref().or(self.kind.as_deref());
        let (inv_freq, scale) = match name.unwrap_or("default") {
            "default" => (plain, 1.0),
            "linear" => {
                let factor = self.required("factor", self.factor)?;
                (plain.iter().map(|freq| freq / factor).collect(), 1.0)
            }
            "llama3" => (self.llama3(&plain, max_positions)?, 1.0),
            "yarn" => self.yarn(&plain, theta, max_positions)?,
            other => {
                return Err(format!(
                    "rope type `{other}` is not one of default, linear, llama3, yarn"
                ));
            }
        };
        Ok(Rotary {
            inv_freq: inv_freq.iter().map(|freq| *freq as f32).collect(),
            scale: scale as f32,
        })
    }

    fn required(&self, name: &str, value: Option<f64>) -> Result<f64, String> {
        positive(name, value.ok_or_else(|| format!("`{name}` is missing"))?)
    }

    fn original_positions(&self, max_positions: usize) -> Result<f64, String> {
        let positions = self.original_max_position_embeddings.unwrap_or(max_positions as f64);
        positive("original_max_position_embeddings", positions)
    }

    /// Long waves are stretched by the factor, short ones kept, those between interpolated.
    fn llama3(&self, plain: &[f64], max_positions: usize) -> Result<Vec<f64>, String> {
        let factor = self.required("factor", self.factor)?;
        let low = self.required("low_freq_factor", self.low_freq_factor)?;
        let high = self.required("high_freq_factor", self.high_freq_factor)?;
        if high <= low {
            return Err("`high_freq_factor` must be above `low_freq_factor`".to_owned());
        }
        let positions = self.original_positions(max_positions)?;
        let scaled = |freq: &f64| {
            // Turns over the original context.
            let turns = positions * freq / TAU;
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - smooth) * freq / factor + smooth * freq
        };
        Ok(plain.iter().map(scaled).collect())
    }

    /// Interpolated frequencies where a wave turns seldom, plain ones where it turns often, a ramp between (<https://arxiv.org/abs/2309.00071>).
    fn yarn(&self, plain: &[f64], theta: f64, max_positions: usize) -> Result<(Vec<f64>, f64), String> {
        let factor = self.required("factor", self.factor)?;
        let positions = self.original_positions(max_positions)?;
        let dims = 2.0 * plain.len() as f64;
        let pair_of_turns = |turns: f64| dims * (positions / (turns * TAU)).ln() / (2.0 * theta.ln());
        let mut low = pair_of_turns(self.beta_fast.filter(|beta| *beta != 0.0).unwrap_or(32.0));
        let mut high = pair_of_turns(self.beta_slow.filter(|beta| *beta != 0.0).unwrap_or(1.0));
        if self.truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let scaled = plain.iter().enumerate().map(|(pair, freq)| {
            let interpolated = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            freq / factor * interpolated + freq * (1.0 - interpolated)
        });
        let grown = |mscale: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * mscale * factor.ln() + 1.0
            }
        };
        let ratio = match (self.mscale, self.mscale_all_dim) {
            (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => grown(mscale) / grown(all),
            _ => grown(1.0),
        };
        Ok((scaled.collect(), self.attention_factor.unwrap_or(ratio)))
    }
}

fn positive(name: &str, value: f64) -> Result<f64, String> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(format!("`{name}` must be above 0, not {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotary(json: &str) -> Result<Rotary, String> {
        let parameters: RopeParameters = serde_json::from_str(json).unwrap();
        parameters.rotary(64, 131_072)
    }

    fn assert_close(actual: &[f32], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (a, b) in actual.iter().zip(expected) {
            assert!((f64::from(*a) - b).abs() <= 1e-6 * b, "{a} {b}");
        }
    }

    #[test]
    fn without_a_type_the_waves_are_plain() {
        let rotary = rotary("{}").unwrap();
        let expected: Vec<f64> = (0..32).map(|pair| 10_000_f64.powf(-f64::from(pair) / 32.0)).collect();
        assert_close(&rotary.inv_freq, &expected);
        assert_eq!(rotary.scale, 1.0);
    }

    #[test]
    fn the_older_name_of_the_type_is_read() {
        let linear = rotary(r#"{"type":"linear","factor":4.0,"rope_theta":500000}"#).unwrap();
        let plain = rotary(r#"{"rope_theta":500000}"#).unwrap();
        let expected: Vec<f64> = plain.inv_freq.iter().map(|freq| f64::from(*freq) / 4.0).collect();
        assert_close(&linear.inv_freq, &expected);
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaled = rotary(
            r#"{"rope_type":"llama3","rope_theta":500000,"factor":8,"low_freq_factor":1,"high_freq_factor":4,
                "original_max_position_embeddings":8192}"#,
        )
        .unwrap();
        let plain = rotary(r#"{"rope_theta":500000}"#).unwrap();
        assert_eq!(scaled.inv_freq[0], plain.inv_freq[0]);
        assert_close(&scaled.inv_freq[31..], &[f64::from(plain.inv_freq[31]) / 8.0]);
        let ratios: Vec<f32> = scaled
            .inv_freq
            .iter()
            .zip(&plain.inv_freq)
            .map(|(a, b)| a / b)
            .collect();
        assert!(ratios.windows(2).all(|pair| pair[0] >= pair[1]));
        assert!(ratios.iter().any(|ratio| (0.2..0.9).contains(ratio)), "{ratios:?}");
    }

    #[test]
    fn yarn_scales_the_cosines_too() {
        let base = r#""rope_type":"yarn","factor":4.0,"original_max_position_embeddings":32768,"rope_theta":1000000"#;
        let yarn = rotary(&format!("{{{base}}}")).unwrap();
        assert!((yarn.scale - (0.1 * 4_f32.ln() + 1.0)).abs() < 1e-6);
        let plain = rotary(r#"{"rope_theta":1000000}"#).unwrap();
        assert_eq!(yarn.inv_freq[0], plain.inv_freq[0]);
        assert_close(&yarn.inv_freq[31..], &[f64::from(plain.inv_freq[31]) / 4.0]);
        let given = rotary(&format!("{{{base},\"attention_factor\":1.5}}")).unwrap();
        assert_eq!(given.scale, 1.5);
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        for (json, named) in [
            (r#"{"rope_type":"dynamic","factor":2}"#, "`dynamic`"),
            (r#"{"rope_type":"llama3","factor":2}"#, "`low_freq_factor` is missing"),
            (r#"{"rope_type":"linear"}"#, "`factor` is missing"),
            (r#"{"rope_type":"yarn","factor":0}"#, "`factor` must be above 0"),
            (r#"{"rope_theta":-1}"#, "`rope_theta`"),
            (r#"{"partial_rotary_factor":0.5}"#, "partial_rotary_factor"),
            (r#"{"full_attention":{"rope_theta":1}}"#, "per kind of layer"),
        ] {
            let reason = rotary(json).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
    }
}
