//! `config.json`, as transformers 4 and 5 write it.

use super::keys::MAX_HEAD;
use super::rope::{Factors, Llama3, Rope, Scaling, Yarn, mscale};
use super::{Activation, Config, Heads, MAX_SIZE, Mla, Sliding};
use crate::ModelError;
use crate::arch::Family;
use crate::huggingface::{Directory, Json};

pub(super) fn read(directory: &Directory) -> Result<Config, ModelError> {
    let root = directory.config()?;
    let model_type = root.string("model_type")?.ok_or_else(|| root.missing("model_type"))?;
    let family = Family::of_model_type(model_type)?;
    refuse_quantization(&root)?;
    // Models that see have a part for the text.
    let json = root.object("text_config")?.unwrap_or_else(|| root.clone());
    json.refuse_variants()?;

    let q_heads = json.size_or("num_attention_heads", 8, family)?;
    let hidden = json.size("hidden_size")?;
    let context = match json.integer("max_position_embeddings")? {
        Some(context) => json.in_range("max_position_embeddings", context, u32::MAX as usize)?,
        None if family.defaults() => 1 << 17,
        None => return Err(json.missing("max_position_embeddings")),
    };
    let mla = family.latent.then(|| json.mla(q_heads)).transpose()?;
    let heads = match &mla {
        Some(mla) => Heads::latent(mla),
        None => json.heads(hidden, q_heads, family)?,
    };
    let vocab = json.size_or("vocab_size", 262_208, family)?;
    let token = |key: &str| -> Result<Option<u32>, ModelError> {
        // A checkpoint of several parts has them outside of the text's.
        let ids = json.tokens(key)?;
        let ids = if ids.is_empty() { root.tokens(key)? } else { ids };
        Ok(ids.first().copied().filter(|&id| (id as usize) < vocab))
    };
    let mut config = Config {
        name: directory.name(),
        layers: json.size("num_hidden_layers")?,
        hidden,
        q_heads,
        ffn: json.size("intermediate_size")?,
        vocab,
        context,
        rms_eps: json.rms_eps(family)?,
        mla,
        activation: json.activation()?.unwrap_or(Activation::Silu),
        tied_head: directory.ties_head(&json, &root)?,
        bos: token("bos_token_id")?,
        eos: token("eos_token_id")?,
        ..Config::plain(family.arch, &heads)
    };
    config.ropes = vec![json.rope(heads.rotary, context, family)?];
    (family.huggingface.read)(&json, &mut config)?;
    config.check_angles()?;
    Ok(config)
}

/// FP8 in DeepSeek's blocks and gpt-oss's MXFP4 are read as they are; other schemes are not.
fn refuse_quantization(root: &Json<'_>) -> Result<(), ModelError> {
    let Some(json) = root.object("quantization_config")? else { return Ok(()) };
    let method = json.string("quant_method")?.ok_or_else(|| json.missing("quant_method"))?;
    match method {
        "mxfp4" => Ok(()),
        "fp8" => {
            if let Some(format) = json.string("fmt")?.filter(|format| *format != "e4m3") {
                return json.refuse("fmt", format!("{format:?}"), "Helix reads \"e4m3\"");
            }
            let block = json.list("weight_block_size")?;
            match block.map(|sides| sides.iter().map(|side| side.as_u64()).collect::<Vec<_>>()) {
                Some(sides) if sides == [Some(128), Some(128)] => Ok(()),
                sides => {
                    let problem = "Helix reads FP8 with a scale per block of [128, 128]";
                    json.refuse("weight_block_size", format!("{sides:?}"), problem)
                }
            }
        }
        other => {
            let problem = "Helix reads \"fp8\" in blocks of 128 x 128 and \"mxfp4\"; take the \
                           model without quantisation, and quantise it at load";
            json.refuse("quant_method", format!("{other:?}"), problem)
        }
    }
}

impl Family {
    /// Whether published configurations leave out what transformers knows (Gemma 3's).
    fn defaults(&self) -> bool {
        self.arch == crate::Arch::Gemma3
    }
}

impl Directory {
    /// The name of the model: that of the directory, or of the model whose snapshot it is; or of a
    /// configuration with a name of its own.
    fn name(&self) -> String {
        let name = |path: &std::path::Path| {
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        if let Some(own) = self.own_config_name() {
            return own;
        }
        let path = std::fs::canonicalize(self.path()).unwrap_or_else(|_| self.path().to_owned());
        let parents: Vec<String> = path.ancestors().take(3).map(name).collect();
        match parents.as_slice() {
            [_, snapshots, model] if snapshots == "snapshots" => {
                model.trim_start_matches("models--").replace("--", "/")
            }
            [name, ..] => name.clone(),
            [] => String::new(),
        }
    }

    /// Where nothing says whether the LM head is the embedding, it is if it is not there.
    fn ties_head(&self, json: &Json<'_>, root: &Json<'_>) -> Result<bool, ModelError> {
        const KEY: &str = "tie_word_embeddings";
        let said = json.boolean(KEY)?.or(root.boolean(KEY)?);
        Ok(said.unwrap_or_else(|| !self.has_head()))
    }
}

/// What all architectures have.
impl Json<'_> {
    fn refuse_variants(&self) -> Result<(), ModelError> {
        for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
            if let Some(cap) = self.float(key)?.filter(|cap| *cap != 0.0) {
                return self.refuse(key, cap, "Helix does not run capped scores or logits yet");
            }
        }
        if self.flag("mlp_bias")? {
            return self.refuse("mlp_bias", true, "Helix does not run FFNs with biases yet");
        }
        Ok(())
    }

    fn size_or(&self, key: &str, default: usize, family: &Family) -> Result<usize, ModelError> {
        match self.optional_size(key)? {
            None if family.defaults() => Ok(default),
            size => size.ok_or_else(|| self.missing(key)),
        }
    }

    fn heads(&self, hidden: usize, q_heads: usize, family: &Family) -> Result<Heads, ModelError> {
        const HEADS: &str = "num_attention_heads";
        let kv_heads = match self.optional_size("num_key_value_heads")? {
            None if family.defaults() => 4,
            kv_heads => kv_heads.unwrap_or(q_heads),
        };
        if !q_heads.is_multiple_of(kv_heads) {
            let problem = format!("it does not divide the {q_heads} query heads");
            return self.refuse("num_key_value_heads", kv_heads, problem);
        }
        let head_dim = match self.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if family.defaults() => 256,
            None if hidden.is_multiple_of(q_heads) => hidden / q_heads,
            None => {
                let problem =
                    format!("it does not divide hidden_size {hidden}, and head_dim is not given");
                return self.refuse(HEADS, q_heads, problem);
            }
        };
        if head_dim > MAX_HEAD || q_heads.saturating_mul(head_dim) > MAX_SIZE {
            let problem = format!(
                "{q_heads} heads of {head_dim} are past the limits {MAX_HEAD} of a head and \
                 {MAX_SIZE} of all"
            );
            return self.refuse(HEADS, q_heads, problem);
        }
        Ok(Heads::grouped(kv_heads, head_dim))
    }

    fn mla(&self, q_heads: usize) -> Result<Mla, ModelError> {
        let extent = |key: &str| self.in_range(key, self.size(key)? as u64, MAX_HEAD);
        let mla = Mla {
            q_lora: self.optional_size("q_lora_rank")?,
            kv_lora: extent("kv_lora_rank")?,
            nope: extent("qk_nope_head_dim")?,
            rope: extent("qk_rope_head_dim")?,
            value: extent("v_head_dim")?,
        };
        mla.check(q_heads)?;
        Ok(mla)
    }

    fn rms_eps(&self, family: &Family) -> Result<f32, ModelError> {
        const KEY: &str = "rms_norm_eps";
        match self.float(KEY)?.unwrap_or(family.huggingface.rms_eps) {
            eps if eps > 0.0 && eps < 1.0 => Ok(eps),
            eps => self.refuse(KEY, eps, "it must be between 0 and 1"),
        }
    }

    pub(crate) fn activation(&self) -> Result<Option<Activation>, ModelError> {
        for key in ["hidden_act", "hidden_activation"] {
            match self.string(key)? {
                None => {}
                Some("silu") => return Ok(Some(Activation::Silu)),
                Some("gelu_pytorch_tanh") => return Ok(Some(Activation::GeluTanh)),
                Some(other) => {
                    let problem = "Helix runs \"silu\" and \"gelu_pytorch_tanh\"";
                    return self.refuse(key, format!("{other:?}"), problem);
                }
            }
        }
        Ok(None)
    }

    /// `sliding_window`: none where it is null, and `absent` where nothing is said of it.
    pub(crate) fn window(&self, absent: Option<usize>) -> Result<Option<usize>, ModelError> {
        const KEY: &str = "sliding_window";
        if self.has(KEY) { self.optional_size(KEY) } else { Ok(absent) }
    }

    /// `layer_types`: which layers have the window, if there is such a list.
    pub(crate) fn layer_types(&self, layers: usize) -> Result<Option<Sliding>, ModelError> {
        const KEY: &str = "layer_types";
        let Some(list) = self.list(KEY)? else { return Ok(None) };
        if list.len() != layers {
            let listed = format!("a list of {}", list.len());
            return self.refuse(KEY, listed, format!("the model has {layers} layers"));
        }
        let slides = list.iter().map(|layer| match layer.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => {
                let problem = "Helix runs \"full_attention\" and \"sliding_attention\"";
                self.refuse(KEY, layer, problem)
            }
        });
        Ok(Some(Sliding::Listed(slides.collect::<Result<_, _>>()?)))
    }

    /// A list of layers.
    pub(crate) fn layers(&self, key: &str, layers: usize) -> Result<Vec<usize>, ModelError> {
        let list = self.list(key)?.unwrap_or_default();
        let layer = |value: &serde_json::Value| {
            let layer = value.as_u64().and_then(|layer| usize::try_from(layer).ok());
            match layer.filter(|&layer| layer < layers) {
                Some(layer) => Ok(layer),
                None => self.refuse(key, value, format!("the model has {layers} layers")),
            }
        };
        list.iter().map(layer).collect()
    }
}

/// Rotary embeddings.
impl Json<'_> {
    /// That of all layers, or of those without a window.
    fn rope(&self, head_dim: usize, context: usize, family: &Family) -> Result<Rope, ModelError> {
        let parameters = self.rope_parameters("full_attention")?;
        let base = parameters.as_ref().map_or(Ok(None), |json| json.positive("rope_theta"))?;
        let base = base.or(self.positive("rope_theta")?).unwrap_or(family.huggingface.rope_theta);
        self.rope_of(parameters.as_ref(), head_dim, base, context, family)
    }

    /// That of layers with a window, where they have one of their own.
    pub(crate) fn local_rope(&self, head_dim: usize, base: f32) -> Result<Rope, ModelError> {
        let family = Family::of(crate::Arch::Gemma3);
        let nested = self.object("rope_parameters")?;
        let nested = nested.map_or(Ok(None), |json| json.object("sliding_attention"))?;
        let given = nested.as_ref().map_or(Ok(None), |json| json.positive("rope_theta"))?;
        let base = given.or(self.positive("rope_local_base_freq")?).unwrap_or(base);
        self.rope_of(nested.as_ref(), head_dim, base, MAX_SIZE, family)
    }

    /// transformers 5 has `rope_parameters`, for each kind of layers where there are two; 4 had
    /// `rope_scaling`, with the base beside it.
    fn rope_parameters(&self, kind: &str) -> Result<Option<Self>, ModelError> {
        let Some(json) = self.object("rope_parameters")? else {
            return self.object("rope_scaling");
        };
        match json.object(kind)? {
            None => Ok(Some(json)),
            nested => Ok(nested),
        }
    }

    fn rope_of(
        &self,
        parameters: Option<&Self>,
        head_dim: usize,
        base: f32,
        context: usize,
        family: &Family,
    ) -> Result<Rope, ModelError> {
        if base <= 1.0 {
            return self.refuse("rope_theta", base, "it must be more than 1");
        }
        const PARTIAL: &str = "partial_rotary_factor";
        let nested = parameters.map_or(Ok(None), |json| json.positive(PARTIAL))?;
        let partial = nested.or(self.positive(PARTIAL)?).unwrap_or(1.0);
        // The rotary part of latent attention is whole already.
        let partial = if family.latent { 1.0 } else { partial };
        let dims = (head_dim as f32 * partial) as usize;
        if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
            let problem = format!("{dims} of {head_dim} elements cannot be rotated in pairs");
            return self.refuse(PARTIAL, partial, problem);
        }
        let scaling = match parameters {
            None => Scaling::None,
            Some(parameters) => parameters.scaling(self, context)?,
        };
        let style = family.huggingface.rope_style;
        Ok(Rope::new(dims, base, style, &scaling, &Factors::none(), 1.0))
    }

    /// `self` are the parameters, which lie in `config`.
    fn scaling(&self, config: &Self, context: usize) -> Result<Scaling, ModelError> {
        let key = if self.get("rope_type").is_some() { "rope_type" } else { "type" };
        match self.string(key)? {
            None | Some("default") => Ok(Scaling::None),
            Some("linear") => Ok(Scaling::Linear { factor: self.require_positive("factor")? }),
            Some("llama3") => Ok(Scaling::Llama3(self.llama3()?)),
            Some("yarn") => Ok(Scaling::Yarn(self.yarn(config, context)?)),
            Some(other) => {
                let problem = "Helix runs default, linear, llama3 and yarn";
                self.refuse(key, format!("{other:?}"), problem)
            }
        }
    }

    fn llama3(&self) -> Result<Llama3, ModelError> {
        let llama3 = Llama3 {
            factor: self.require_positive("factor")?,
            low_freq_factor: self.require_positive("low_freq_factor")?,
            high_freq_factor: self.require_positive("high_freq_factor")?,
            original_context: self.size("original_max_position_embeddings")?,
        };
        let Llama3 { low_freq_factor: low, high_freq_factor: high, .. } = llama3;
        if low >= high {
            return self.refuse("low_freq_factor", low, format!("high_freq_factor is {high}"));
        }
        Ok(llama3)
    }

    fn yarn(&self, config: &Self, context: usize) -> Result<Yarn, ModelError> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let original = match self.optional_size(ORIGINAL)? {
            None => config.optional_size(ORIGINAL)?,
            original => original,
        };
        let original_context = original.unwrap_or(context);
        let factor = match self.positive("factor")? {
            Some(factor) => factor,
            None => context as f32 / original_context as f32,
        };
        // 0 is as good as absent.
        let weight = |key: &str| -> Result<Option<f32>, ModelError> {
            Ok(self.float(key)?.filter(|weight| *weight > 0.0))
        };
        let weights = (weight("mscale")?, weight("mscale_all_dim")?);
        let attention_factor = match (self.positive("attention_factor")?, weights) {
            (None, (Some(own), Some(all))) => Some(mscale(factor, own) / mscale(factor, all)),
            (given, _) => given,
        };
        Ok(Yarn {
            factor,
            original_context,
            beta_fast: self.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.positive("beta_slow")?.unwrap_or(1.0),
            truncate: self.boolean("truncate")?.unwrap_or(true),
            attention_factor,
        })
    }

    /// What YaRN's stretching multiplies queries and keys by in latent attention.
    pub(crate) fn mla_magnitude(&self) -> Result<f32, ModelError> {
        let Some(json) = self.rope_parameters("full_attention")? else { return Ok(1.0) };
        let kind = json.string("rope_type")?.or(json.string("type")?);
        if matches!(kind, None | Some("default")) {
            return Ok(1.0);
        }
        let weight = json.float("mscale_all_dim")?.unwrap_or(0.0).max(0.0);
        Ok(mscale(json.positive("factor")?.unwrap_or(1.0), weight))
    }
}
