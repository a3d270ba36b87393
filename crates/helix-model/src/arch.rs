//! The architectures, each described in one place.
//!
//! A [`Family`] says what an architecture is called in GGUF and in Hugging Face directories, which
//! settings it reads beyond those that all have, and where its tensors' names differ from the
//! usual ones. What its layers consist of follows from the [`Config`] that it fills in
//! ([`tensors`]). How to add one: `docs/adding-an-architecture.md`.

mod deepseek;
mod dense;
mod gemma;
mod gpt_oss;
mod moe;
pub(crate) mod names;
pub(crate) mod tensors;

use std::fmt;

use crate::ModelError;
use crate::config::{Config, Keys, RopeStyle};
use crate::huggingface::Json;

/// A family of decoders whose layers Helix knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Llama, Mistral, SmolLM.
    Llama,
    /// Qwen2 and Qwen2.5: biases on Q, K and V.
    Qwen2,
    /// Qwen3: an RMS norm on each query and key head.
    Qwen3,
    /// Mixtral: Llama with experts.
    Mixtral,
    /// Qwen3-MoE: Qwen3 with experts.
    Qwen3Moe,
    /// DeepSeek-V2, V3 and R1, Kimi-K2: latent attention, experts in groups, shared experts.
    DeepSeek,
    /// gpt-oss: sinks, every other layer with a window, biases everywhere.
    GptOss,
    /// Gemma 3: five of six layers with a window, norms after attention and FFN too.
    Gemma3,
}

impl Arch {
    /// Every architecture.
    pub const ALL: [Arch; 8] = [
        Arch::Llama,
        Arch::Qwen2,
        Arch::Qwen3,
        Arch::Mixtral,
        Arch::Qwen3Moe,
        Arch::DeepSeek,
        Arch::GptOss,
        Arch::Gemma3,
    ];

    /// Those whose layers are all Llama's, with biases or head norms.
    pub const DENSE: [Arch; 3] = [Arch::Llama, Arch::Qwen2, Arch::Qwen3];

    /// Its name here.
    pub const fn name(self) -> &'static str {
        Family::of(self).name
    }

    /// The value of `general.architecture` in GGUF files, and the prefix of their keys.
    pub const fn gguf_name(self) -> &'static str {
        Family::of(self).gguf.name
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An architecture: its names, and how its settings are read.
pub(crate) struct Family {
    pub arch: Arch,
    pub name: &'static str,
    /// Whether attention is latent ([`crate::config::Mla`]).
    pub latent: bool,
    pub gguf: GgufFamily,
    pub huggingface: HuggingFaceFamily,
}

/// An architecture in GGUF files. Source: llama.cpp's `llama-arch.cpp` and `llama-model.cpp`.
pub(crate) struct GgufFamily {
    /// `general.architecture`.
    pub name: &'static str,
    pub rope_style: RopeStyle,
    /// Keys that would be refused if this architecture did not know what to do with them.
    pub reads: &'static [&'static str],
    /// Tensors whose suffix differs from [`tensors`]': `(ours, the file's)`.
    pub renames: &'static [(&'static str, &'static str)],
    /// Reads what is its own into a configuration that has all that is common.
    pub read: fn(&Keys<'_>, &mut Config) -> Result<(), ModelError>,
}

/// An architecture in Hugging Face directories. Source: transformers' `configuration_*.py` and
/// `modeling_*.py`.
pub(crate) struct HuggingFaceFamily {
    /// Values of `model_type`.
    pub model_types: &'static [&'static str],
    pub rope_style: RopeStyle,
    /// The rotary base where none is given.
    pub rope_theta: f32,
    /// The epsilon of norms where none is given.
    pub rms_eps: f32,
    /// Tensors that are not where [`names::USUAL`] says.
    pub places: &'static [(&'static str, names::Place)],
    /// As [`GgufFamily::read`].
    pub read: fn(&Json<'_>, &mut Config) -> Result<(), ModelError>,
}

impl Family {
    pub const fn of(arch: Arch) -> &'static Family {
        match arch {
            Arch::Llama => &dense::LLAMA,
            Arch::Qwen2 => &dense::QWEN2,
            Arch::Qwen3 => &dense::QWEN3,
            Arch::Mixtral => &moe::MIXTRAL,
            Arch::Qwen3Moe => &moe::QWEN3_MOE,
            Arch::DeepSeek => &deepseek::DEEPSEEK,
            Arch::GptOss => &gpt_oss::GPT_OSS,
            Arch::Gemma3 => &gemma::GEMMA3,
        }
    }

    /// The family of `general.architecture`; one with experts if the file says that it has some.
    pub fn of_gguf(name: &str, has_experts: bool) -> Result<&'static Family, ModelError> {
        let mut found = Arch::ALL.into_iter().filter(|arch| arch.gguf_name() == name);
        let found = if has_experts { found.next_back() } else { found.next() };
        found.map(Family::of).ok_or_else(|| {
            let mut known = Arch::ALL.map(Arch::gguf_name).to_vec();
            known.sort_unstable();
            known.dedup();
            ModelError::UnknownArch { arch: name.to_owned(), known: known.join(", ") }
        })
    }

    /// The family of `model_type`.
    pub fn of_model_type(name: &str) -> Result<&'static Family, ModelError> {
        let types = |arch: Arch| Family::of(arch).huggingface.model_types;
        let found = Arch::ALL.into_iter().find(|&arch| types(arch).contains(&name));
        found.map(Family::of).ok_or_else(|| {
            let known: Vec<&str> = Arch::ALL.into_iter().flat_map(types).copied().collect();
            ModelError::UnknownArch { arch: name.to_owned(), known: known.join(", ") }
        })
    }
}
