//! Metadata keys of one architecture, read with their rules.

use super::rope::{Factors, Rope, Scaling, Yarn, mscale};
use super::{MAX_SIZE, Mla, Moe, Routing, Sliding};
use crate::arch::{Arch, Family};
use crate::{Gguf, ModelError, Value};

/// Keys that change the arithmetic of a layer, and the value at which they do not. A model that
/// sets one otherwise would run and answer wrongly, so it is refused.
const NEUTRAL: [(&str, f64, &str); 18] = [
    ("logit_scale", 1.0, "scaled logits"),
    ("embedding_scale", 1.0, "scaled embeddings"),
    ("residual_scale", 1.0, "scaled residuals"),
    ("attention.output_scale", 1.0, "scaled attention outputs"),
    ("attention.temperature_scale", 0.0, "attention temperature"),
    ("attention.max_alibi_bias", 0.0, "ALiBi"),
    ("attention.clamp_kqv", 0.0, "clamped Q, K and V"),
    ("attention.causal", 1.0, "attention that is not causal"),
    ("attn_logit_softcapping", 0.0, "capped attention scores"),
    ("final_logit_softcapping", 0.0, "capped logits"),
    ("use_parallel_residual", 0.0, "parallel residuals"),
    ("expert_count", 0.0, "a mixture of experts"),
    ("leading_dense_block_count", 0.0, "a mixture of experts"),
    ("nextn_predict_layers", 0.0, "layers that predict several tokens"),
    ("rope.scaling.alpha", 1.0, "NTK-alpha rotary scaling"),
    ("rope.scaling.yarn_log_multiplier", 0.0, "a YaRN logarithm multiplier"),
    ("rope.scaling.yarn_attn_factor", 1.0, "a YaRN attention factor of its own"),
    ("rope.scaling.yarn_ext_factor", 1.0, "a YaRN extrapolation factor"),
];

/// Largest head: far past any model's, and small enough to compute its frequencies unasked.
pub(super) const MAX_HEAD: usize = 1 << 16;

/// The metadata of a file, read as its architecture writes them.
pub(crate) struct Keys<'a> {
    gguf: &'a Gguf,
    family: &'static Family,
}

impl<'a> Keys<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Result<Keys<'a>, ModelError> {
        const KEY: &str = "general.architecture";
        let name = gguf.string(KEY)?.ok_or_else(|| missing(KEY))?;
        // Settled by a number that is there and not 0; of another type it is refused below.
        let experts = gguf.metadata(&format!("{name}.expert_count")).and_then(Value::as_u64);
        let family = Family::of_gguf(name, experts.is_some_and(|experts| experts > 0))?;
        Ok(Keys { gguf, family })
    }

    pub(super) fn family(&self) -> &'static Family {
        self.family
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.family.gguf.name)
    }

    pub(crate) fn refuse<T>(
        &self,
        suffix: &str,
        value: impl ToString,
        problem: String,
    ) -> Result<T, ModelError> {
        Err(ModelError::Setting { key: self.key(suffix), value: value.to_string(), problem })
    }

    /// Refuses models whose layers compute something else than ours.
    pub(super) fn refuse_variants(&self) -> Result<(), ModelError> {
        let unknown = |suffix: &str| !self.family.gguf.reads.contains(&suffix);
        for (suffix, neutral, meaning) in NEUTRAL.into_iter().filter(|key| unknown(key.0)) {
            let key = self.key(suffix);
            let Some(value) = self.gguf.metadata(&key) else { continue };
            let found = number(value).ok_or_else(|| ModelError::KeyType {
                key,
                expected: "a number or bool",
                found: value.kind(),
            })?;
            if found != neutral {
                return self.refuse(suffix, found, format!("Helix does not run {meaning} yet"));
            }
        }
        Ok(())
    }

    /// A sliding window changes nothing as long as the context fits in it.
    pub(crate) fn refuse_window(&self, context: usize) -> Result<(), ModelError> {
        const SUFFIX: &str = "attention.sliding_window";
        match self.gguf.unsigned(&self.key(SUFFIX))? {
            Some(window) if window != 0 && (window as usize) < context => self.refuse(
                SUFFIX,
                window,
                format!(
                    "each token attends to the last {window} of up to {context}, and Helix \
                     attends to all of them; take a model without sliding-window attention"
                ),
            ),
            _ => Ok(()),
        }
    }

    /// A required size.
    pub(crate) fn size(&self, suffix: &str) -> Result<usize, ModelError> {
        self.size_up_to(suffix, MAX_SIZE)
    }

    pub(super) fn size_up_to(&self, suffix: &str, max: usize) -> Result<usize, ModelError> {
        let key = self.key(suffix);
        let value = self.gguf.unsigned(&key)?.ok_or_else(|| missing(&key))?;
        self.in_range(suffix, value.into(), max)
    }

    pub(crate) fn optional_size(&self, suffix: &str) -> Result<Option<usize>, ModelError> {
        let value = self.gguf.unsigned(&self.key(suffix))?;
        value.map(|value| self.in_range(suffix, value.into(), MAX_SIZE)).transpose()
    }

    pub(crate) fn in_range(
        &self,
        suffix: &str,
        value: u64,
        max: usize,
    ) -> Result<usize, ModelError> {
        match usize::try_from(value) {
            Ok(value) if (1..=max).contains(&value) => Ok(value),
            _ => self.refuse(suffix, value, format!("it must be from 1 to {max}")),
        }
    }

    /// A required size that may be given once for all layers, or per layer and then all the same.
    pub(super) fn per_layer(&self, suffix: &str, layers: usize) -> Result<usize, ModelError> {
        let key = self.key(suffix);
        if !matches!(self.gguf.metadata(&key), Some(Value::Array(_))) {
            return self.size(suffix);
        }
        let values = self.gguf.integers(&key)?.ok_or_else(|| missing(&key))?;
        let listed = format!("an array of {}", values.len());
        if values.len() != layers {
            return self.refuse(suffix, listed, format!("the model has {layers} layers"));
        }
        match values.iter().position(|value| *value != values[0]) {
            Some(layer) => {
                let (first, other) = (values[0], values[layer]);
                let problem = format!(
                    "layer 0 has {first} and layer {layer} has {other}; Helix runs models \
                     whose layers are all alike"
                );
                self.refuse(suffix, listed, problem)
            }
            None => self.in_range(suffix, values[0], MAX_SIZE),
        }
    }

    pub(super) fn kv_heads(&self, q_heads: usize, layers: usize) -> Result<usize, ModelError> {
        const SUFFIX: &str = "attention.head_count_kv";
        let kv_heads = match self.gguf.metadata(&self.key(SUFFIX)) {
            None => q_heads,
            Some(_) => self.per_layer(SUFFIX, layers)?,
        };
        if !q_heads.is_multiple_of(kv_heads) {
            let problem = format!("it does not divide the {q_heads} query heads");
            return self.refuse(SUFFIX, kv_heads, problem);
        }
        Ok(kv_heads)
    }

    pub(super) fn head_dim(&self, hidden: usize, q_heads: usize) -> Result<usize, ModelError> {
        const KEY: &str = "attention.key_length";
        const VALUE: &str = "attention.value_length";
        const HEADS: &str = "attention.head_count";
        let key = self.optional_size(KEY)?;
        let value = self.optional_size(VALUE)?;
        if (key.is_none() || value.is_none()) && !hidden.is_multiple_of(q_heads) {
            let problem = format!(
                "it does not divide embedding_length {hidden}, and {KEY} and {VALUE} are not both \
                 given"
            );
            return self.refuse(HEADS, q_heads, problem);
        }
        let head_dim = self.in_range(KEY, key.unwrap_or(hidden / q_heads) as u64, MAX_HEAD)?;
        let value = value.unwrap_or(hidden / q_heads);
        if value != head_dim {
            let problem = format!("keys have {head_dim} elements; Helix runs equal lengths only");
            return self.refuse(VALUE, value, problem);
        }
        if q_heads.saturating_mul(head_dim) > MAX_SIZE {
            let problem = format!("{q_heads} heads of {head_dim} are past the limit {MAX_SIZE}");
            return self.refuse(HEADS, q_heads, problem);
        }
        self.check_attention_scale(head_dim)?;
        Ok(head_dim)
    }

    /// Scores are divided by the square root of the head's size, and by nothing else.
    fn check_attention_scale(&self, head_dim: usize) -> Result<(), ModelError> {
        const SUFFIX: &str = "attention.scale";
        let usual = 1.0 / (head_dim as f32).sqrt();
        match self.gguf.float(&self.key(SUFFIX))? {
            Some(scale) if scale != 0.0 && (scale / usual - 1.0).abs() > 1e-4 => {
                self.refuse(SUFFIX, scale, format!("Helix runs 1/sqrt({head_dim}) = {usual} only"))
            }
            Some(scale) if scale.is_nan() => self.refuse(SUFFIX, scale, "not a number".to_owned()),
            _ => Ok(()),
        }
    }

    /// Rows of the embedding, which the other mentions of the vocabulary must fit in.
    pub(super) fn vocab(&self, hidden: usize) -> Result<usize, ModelError> {
        const EMBEDDING: &str = "token_embd.weight";
        let tensor = self.gguf.tensor(EMBEDDING).ok_or_else(|| ModelError::MissingTensor {
            name: EMBEDDING.to_owned(),
            expected: format!("[{hidden}, vocabulary]"),
        })?;
        let vocab = match tensor.dims[..] {
            [cols, rows] if cols == hidden as u64 && rows <= MAX_SIZE as u64 => rows as usize,
            _ => {
                return Err(ModelError::TensorShape {
                    name: EMBEDDING.to_owned(),
                    found: tensor.shape(),
                    expected: format!("[{hidden}, vocabulary up to {MAX_SIZE}]"),
                });
            }
        };
        if let Some(said) = self.gguf.unsigned(&self.key("vocab_size"))?
            && said as usize > vocab
        {
            let problem = format!("{EMBEDDING} has {vocab} rows");
            return self.refuse("vocab_size", said, problem);
        }
        const TOKENS: &str = "tokenizer.ggml.tokens";
        match self.gguf.strings(TOKENS)? {
            Some(tokens) if tokens.len() > vocab => Err(ModelError::Setting {
                key: TOKENS.to_owned(),
                value: format!("{} tokens", tokens.len()),
                problem: format!("{EMBEDDING} has {vocab} rows"),
            }),
            _ => Ok(vocab),
        }
    }

    /// A token id of the vocabulary.
    pub(super) fn token(&self, key: &str, vocab: usize) -> Result<Option<u32>, ModelError> {
        match self.gguf.unsigned(key)? {
            Some(token) if token as usize >= vocab => Err(ModelError::Setting {
                key: key.to_owned(),
                value: token.to_string(),
                problem: format!("the vocabulary has {vocab} tokens"),
            }),
            token => Ok(token),
        }
    }

    pub(super) fn rms_eps(&self) -> Result<f32, ModelError> {
        const SUFFIX: &str = "attention.layer_norm_rms_epsilon";
        let key = self.key(SUFFIX);
        let eps = self.gguf.float(&key)?.ok_or_else(|| missing(&key))?;
        if !(eps > 0.0 && eps < 1.0) {
            return self.refuse(SUFFIX, eps, "it must be between 0 and 1".to_owned());
        }
        Ok(eps)
    }

    pub(super) fn rope(&self, head_dim: usize, context: usize) -> Result<Rope, ModelError> {
        const DIMS: &str = "rope.dimension_count";
        const BASE: &str = "rope.freq_base";
        let dims = self.optional_size(DIMS)?.unwrap_or(head_dim);
        if dims > head_dim || !dims.is_multiple_of(2) {
            let problem = format!("it must be even, and at most the head's {head_dim} elements");
            return self.refuse(DIMS, dims, problem);
        }
        let base = self.gguf.float(&self.key(BASE))?.unwrap_or(10_000.0);
        if !(base > 1.0 && base.is_finite()) {
            return self.refuse(BASE, base, "it must be more than 1".to_owned());
        }
        let scaling = self.scaling(context)?;
        let factors = match self.family.arch {
            Arch::Llama | Arch::Mixtral => Factors::read(self.gguf, dims)?,
            _ => Factors::none(),
        };
        let magnitude = self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let style = self.family.gguf.rope_style;
        Ok(Rope::new(dims, base, style, &scaling, &factors, magnitude))
    }

    /// llama.cpp's reading: a factor without a type is linear; `rope.scale_linear` is its old name.
    fn scaling(&self, context: usize) -> Result<Scaling, ModelError> {
        const TYPE: &str = "rope.scaling.type";
        const FACTOR: &str = "rope.scaling.factor";
        const ORIGINAL: &str = "rope.scaling.original_context_length";
        let kind = self.gguf.string(&self.key(TYPE))?;
        if kind == Some("none") {
            return Ok(Scaling::None);
        }
        let factor = match self.positive(FACTOR)? {
            None => self.positive("rope.scale_linear")?,
            factor => factor,
        };
        match (kind, factor) {
            (None | Some("linear"), None) => Ok(Scaling::None),
            (None | Some("linear"), Some(factor)) => Ok(Scaling::Linear { factor }),
            (Some("yarn"), Some(factor)) => Ok(Scaling::Yarn(Yarn {
                factor,
                original_context: self.optional_size(ORIGINAL)?.unwrap_or(context),
                beta_fast: self.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                // gpt-oss was trained with a ramp that does not start and end at whole pairs, as
                // its config.json says. GGUF has no key for that; ggml rounds: another model.
                truncate: self.family.arch != Arch::GptOss,
                // Latent attention has its factor in the scores' scale, and there alone.
                attention_factor: self.family.latent.then_some(1.0),
            })),
            (Some("yarn"), None) => Err(missing(&self.key(FACTOR))),
            (Some(kind), _) => {
                let problem = "Helix runs none, linear and yarn, and llama3 by rope_freqs.weight";
                self.refuse(TYPE, format!("{kind:?}"), problem.to_owned())
            }
        }
    }

    /// Which layers have a window: all but every n-th.
    pub(crate) fn sliding_pattern(&self, default: usize) -> Result<Sliding, ModelError> {
        const SUFFIX: &str = "attention.sliding_window_pattern";
        if let Some(Value::Array(_)) = self.gguf.metadata(&self.key(SUFFIX)) {
            return self.refuse(SUFFIX, "an array", "Helix reads a number".to_owned());
        }
        Ok(Sliding::ExceptEvery(self.optional_size(SUFFIX)?.unwrap_or(default)))
    }

    /// Latent attention.
    pub(super) fn mla(&self) -> Result<Mla, ModelError> {
        const HEADS: [&str; 2] = ["attention.key_length_mla", "attention.value_length_mla"];
        // Older files, where W_UK and W_UV are one, have the heads' own lengths under the keys that
        // say how long the cache's are in current ones.
        const OLDER: [&str; 2] = ["attention.key_length", "attention.value_length"];
        let older = self.gguf.metadata(&self.key(HEADS[0])).is_none()
            && self.has_tensor("blk.0.attn_kv_b.weight");
        let [key_length, value_length] = if older { OLDER } else { HEADS };
        let key = self.size(key_length)?;
        let rope = self.size("rope.dimension_count")?;
        let kv_lora = self.size("attention.kv_lora_rank")?;
        let value = self.size(value_length)?;
        if key <= rope || key.max(value).max(kv_lora) > MAX_HEAD {
            let problem = format!(
                "it must be more than its {rope} rotary elements, and no extent of a head more \
                 than {MAX_HEAD}"
            );
            return self.refuse(key_length, key, problem);
        }
        let q_lora = self.optional_size("attention.q_lora_rank")?;
        Ok(Mla { q_lora, kv_lora, nope: key - rope, rope, value })
    }

    /// What YaRN's stretching multiplies queries and keys by in latent attention.
    pub(crate) fn mla_magnitude(&self) -> Result<f32, ModelError> {
        let Some(factor) = self.positive("rope.scaling.factor")? else { return Ok(1.0) };
        // Converters write a tenth of `mscale_all_dim`.
        let weight = self.positive("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
        Ok(mscale(factor, 10.0 * weight))
    }

    /// Experts of `ffn` columns in every layer.
    pub(crate) fn moe(&self, ffn: usize, routing: Routing) -> Result<Moe, ModelError> {
        let top_k = self.size("expert_used_count")?;
        let moe = Moe {
            experts: self.size("expert_count")?,
            ffn,
            shared_ffn: 0,
            first_layer: 0,
            every: 1,
            dense: Vec::new(),
            routing: Routing { top_k, ..routing },
            bias: false,
            selection_bias: false,
            expert_bias: false,
        };
        moe.check()?;
        Ok(moe)
    }

    /// A number of things that may be absent: then 0.
    pub(crate) fn optional_count(&self, suffix: &str) -> Result<usize, ModelError> {
        Ok(self.gguf.unsigned(&self.key(suffix))?.unwrap_or(0) as usize)
    }

    /// `count` times `size`, unless that is no size any more.
    pub(crate) fn in_range_or_0(
        &self,
        suffix: &str,
        count: usize,
        size: usize,
    ) -> Result<usize, ModelError> {
        match count.saturating_mul(size) {
            0 => Ok(0),
            product => self.in_range(suffix, product as u64, MAX_SIZE),
        }
    }

    /// A bool that is false where it is absent.
    pub(crate) fn flag(&self, suffix: &str) -> Result<bool, ModelError> {
        Ok(self.gguf.boolean(&self.key(suffix))?.unwrap_or(false))
    }

    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// A float that must be positive and finite if it is there.
    pub(crate) fn positive(&self, suffix: &str) -> Result<Option<f32>, ModelError> {
        match self.gguf.float(&self.key(suffix))? {
            Some(value) if !(value > 0.0 && value.is_finite()) => {
                self.refuse(suffix, value, "it must be more than 0".to_owned())
            }
            value => Ok(value),
        }
    }
}

fn missing(key: &str) -> ModelError {
    ModelError::MissingKey { key: key.to_owned() }
}

fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::Bool(flag) => Some(flag.into()),
        Value::F64(number) => Some(number),
        _ => value.as_f32().map(f64::from).or_else(|| value.as_u64().map(|n| n as f64)),
    }
}
