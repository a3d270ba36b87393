//! What kind of model it is: architecture, sizes, rotary embedding.

mod huggingface;
mod keys;
mod moe;
mod rope;

pub use moe::{GroupScore, Groups, Mla, Moe, Routing, Scoring};
pub use rope::{Llama3, Rope, RopeStyle, Scaling, Yarn};

pub use crate::arch::Arch;
pub(crate) use keys::Keys;

use std::path::Path;

use crate::arch::Family;
use crate::huggingface::Directory;
use crate::{Gguf, ModelError};

/// A model's architecture and sizes, checked against each other and against its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The architecture.
    pub arch: Arch,
    /// `general.name`, or the directory's, or the file's of a configuration alone that is not called
    /// `config.json`, or the architecture's.
    pub name: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads per layer; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// KV heads per layer: 1 with `mla`, whose latent all query heads share.
    pub kv_heads: usize,
    /// Elements per head of Q and K as attention sees them; need not be `hidden / q_heads`. With
    /// `mla` those of the latent and its rotary part.
    pub head_dim: usize,
    /// Elements per head that the output projection takes: `head_dim`, or `mla`'s `value`.
    pub value_dim: usize,
    /// Width of the FFN in dense layers.
    pub ffn: usize,
    /// Rows of the embedding and of the LM head.
    pub vocab: usize,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Added to the mean square in RMS norms.
    pub rms_eps: f32,
    /// Rotary embeddings: that of all layers; or that of layers that see everything, and that of
    /// layers with a window. See [`Config::rope`].
    pub ropes: Vec<Rope>,
    /// Positions that layers with a window see, their own included; never less than `context`.
    pub window: Option<usize>,
    /// Which layers have the window.
    pub sliding: Sliding,
    /// What scores are multiplied by: `1/√head_dim` in most models.
    pub attention_scale: f32,
    /// Latent attention.
    pub mla: Option<Mla>,
    /// Experts, in the layers that have them.
    pub moe: Option<Moe>,
    /// Between the two halves of an FFN.
    pub activation: Activation,
    /// Whether Q, K and V have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub out_bias: bool,
    /// Whether each query and key head is RMS-normalised before the rotary embedding.
    pub qk_norm: bool,
    /// Whether each query head has a sink: a logit that takes part in its softmax, without a value.
    pub sinks: bool,
    /// Whether the results of attention and FFN are RMS-normalised before they are added.
    pub post_norms: bool,
    /// What is added to the weights of norms when they are loaded: 1 in Gemma's safetensors.
    pub norm_offset: f32,
    /// What rows of the embedding are multiplied by; [`crate::Model::embedding_row`] does.
    pub embedding_scale: f32,
    /// Whether the LM head is the embedding.
    pub tied_head: bool,
    /// The token that starts a text, if the file names one.
    pub bos: Option<u32>,
    /// The token that ends a text, if the file names one.
    pub eos: Option<u32>,
}

/// What becomes of an FFN's `gate` and `up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `silu(gate) · up`
    Silu,
    /// `gelu(gate) · up`, in its approximation by tanh.
    GeluTanh,
    /// gpt-oss's: `g·sigmoid(1.702·g)·(u + 1)`, g at most 7 and u within ±7.
    ClampedSwiglu,
}

/// Which layers have a sliding window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sliding {
    /// None.
    Never,
    /// All.
    Always,
    /// Those from this one on.
    From(usize),
    /// All but every n-th: layers n − 1, 2n − 1, …
    ExceptEvery(usize),
    /// Those that are listed as `true`.
    Listed(Vec<bool>),
}

/// Largest value of any size; see [`helix_layout::ModelShape::MAX_SIZE`].
pub(crate) const MAX_SIZE: usize = helix_layout::ModelShape::MAX_SIZE;

/// Largest factor of scores, of what is rotated, or of what experts make: far past any model's, and
/// far from where products are infinite.
pub(crate) const MAX_FACTOR: f32 = 1e6;

impl Config {
    /// Reads and checks the metadata of a GGUF file. Tensors are looked at for what metadata do
    /// not say: the vocabulary, a separate LM head, biases, rotary factors.
    pub fn read(gguf: &Gguf) -> Result<Config, ModelError> {
        let keys = Keys::new(gguf)?;
        let arch = keys.family().arch;
        keys.refuse_variants()?;

        let layers = keys.size("block_count")?;
        let hidden = keys.size("embedding_length")?;
        let ffn = keys.per_layer("feed_forward_length", layers)?;
        let context = keys.size_up_to("context_length", u32::MAX as usize)?;
        let q_heads = keys.per_layer("attention.head_count", layers)?;
        let mla = keys.family().latent.then(|| keys.mla()).transpose()?;
        let heads = match &mla {
            Some(mla) => Heads::latent(mla),
            None => {
                let kv_heads = keys.kv_heads(q_heads, layers)?;
                Heads::grouped(kv_heads, keys.head_dim(hidden, q_heads)?)
            }
        };
        let vocab = keys.vocab(hidden)?;
        let mut config = Config {
            name: gguf.string("general.name")?.unwrap_or(arch.name()).to_owned(),
            layers,
            hidden,
            q_heads,
            ffn,
            vocab,
            context,
            rms_eps: keys.rms_eps()?,
            ropes: vec![keys.rope(heads.rotary, context)?],
            mla,
            qkv_bias: arch == Arch::Qwen2 || gguf.tensor("blk.0.attn_q.bias").is_some(),
            tied_head: gguf.tensor("output.weight").is_none(),
            bos: keys.token("tokenizer.ggml.bos_token_id", vocab)?,
            eos: keys.token("tokenizer.ggml.eos_token_id", vocab)?,
            ..Config::plain(arch, &heads)
        };
        (keys.family().gguf.read)(&keys, &mut config)?;
        config.check_angles()?;
        Ok(config)
    }

    /// Reads a Hugging Face model's configuration from its JSON file alone, as `config.json` is
    /// downloaded without the weights.
    pub fn of_json(path: &Path) -> Result<Config, ModelError> {
        Config::of_directory(&Directory::without_weights(path)?)
    }

    /// Reads and checks `config.json`.
    pub(crate) fn of_directory(directory: &Directory) -> Result<Config, ModelError> {
        huggingface::read(directory).map_err(|error| directory.in_config(error))
    }

    /// A Llama of no size, with these heads: what reading starts from.
    fn plain(arch: Arch, heads: &Heads) -> Config {
        Config {
            arch,
            name: String::new(),
            layers: 0,
            hidden: 0,
            q_heads: 0,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            value_dim: heads.value_dim,
            ffn: 0,
            vocab: 0,
            context: 0,
            rms_eps: 0.0,
            ropes: Vec::new(),
            window: None,
            sliding: Sliding::Never,
            attention_scale: 1.0 / (heads.scored as f32).sqrt(),
            mla: None,
            moe: None,
            activation: Activation::Silu,
            qkv_bias: false,
            out_bias: false,
            qk_norm: false,
            sinks: false,
            post_norms: false,
            norm_offset: 0.0,
            embedding_scale: 1.0,
            tied_head: false,
            bos: None,
            eos: None,
        }
    }

    /// The family whose member this is.
    pub(crate) fn family(&self) -> &'static Family {
        Family::of(self.arch)
    }

    /// How many positions a layer's queries see, their own included; `None` for all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| self.sliding.contains(layer))
    }

    /// A layer's rotary embedding.
    pub fn rope(&self, layer: usize) -> &Rope {
        &self.ropes[self.rope_index(layer)]
    }

    /// Which of `ropes` a layer has.
    pub fn rope_index(&self, layer: usize) -> usize {
        usize::from(self.ropes.len() > 1 && self.sliding.contains(layer))
    }

    /// The experts of a layer, if it has any.
    pub fn moe(&self, layer: usize) -> Option<&Moe> {
        self.moe.as_ref().filter(|moe| moe.contains(layer))
    }

    /// Refuses settings that are in their ranges one by one, and whose combination makes scores
    /// infinite or nothing: a stretching of a context by 1e-40, a magnitude of 1e30.
    fn check_angles(&self) -> Result<(), ModelError> {
        let refuse = |key: &str, value: f32, problem: &str| {
            let (key, value) = (key.to_owned(), value.to_string());
            Err(ModelError::Setting { key, value, problem: problem.to_owned() })
        };
        let scale = self.attention_scale;
        if !(f32::MIN_POSITIVE..=MAX_FACTOR).contains(&scale) {
            return refuse("attention scale", scale, "scores cannot be multiplied by it");
        }
        for Rope { frequencies, magnitude, .. } in &self.ropes {
            let infinite = |frequency: &&f32| !(**frequency * self.context as f32).is_finite();
            if let Some(&frequency) = frequencies.iter().find(infinite) {
                let problem =
                    "radians per position of a rotary embedding; check its base and factor";
                return refuse("rotary frequency", frequency, problem);
            }
            if !(f32::MIN_POSITIVE..=MAX_FACTOR).contains(magnitude) {
                let problem = "a rotary embedding cannot be multiplied by it";
                return refuse("rotary magnitude", *magnitude, problem);
            }
        }
        Ok(())
    }

    /// A window as long as the context is none.
    pub(crate) fn set_window(&mut self, window: Option<usize>, sliding: Sliding) {
        self.window = window.filter(|window| *window < self.context);
        self.sliding = sliding;
        if self.window.is_none() && self.ropes.len() == 1 {
            self.sliding = Sliding::Never;
        }
    }
}

impl Sliding {
    fn contains(&self, layer: usize) -> bool {
        match self {
            Sliding::Never => false,
            Sliding::Always => true,
            Sliding::From(first) => layer >= *first,
            Sliding::ExceptEvery(period) => !(layer + 1).is_multiple_of(*period),
            Sliding::Listed(layers) => layers[layer],
        }
    }
}

/// Extents of heads.
pub(crate) struct Heads {
    kv_heads: usize,
    head_dim: usize,
    value_dim: usize,
    /// Elements that are rotated at most.
    rotary: usize,
    /// Elements that scores are the products of in the model's own terms.
    scored: usize,
}

impl Heads {
    fn grouped(kv_heads: usize, head_dim: usize) -> Heads {
        let [value_dim, rotary, scored] = [head_dim; 3];
        Heads { kv_heads, head_dim, value_dim, rotary, scored }
    }

    fn latent(mla: &Mla) -> Heads {
        Heads {
            kv_heads: 1,
            head_dim: mla.kv_lora + mla.rope,
            value_dim: mla.value,
            rotary: mla.rope,
            scored: mla.nope + mla.rope,
        }
    }
}

#[cfg(test)]
mod tests;
