//! An open model: everything about it is checked, nothing of it is loaded.

use std::collections::HashSet;
use std::path::Path;

use helix_kernels::Format;
use helix_layout::{MlaShape, ModelShape, MoeShape};

use crate::arch::tensors::{self, EMBEDDING, HEAD, layer_tensor};
use crate::config::Mla;
use crate::huggingface::Directory;
use crate::source::Source;
use crate::tensor::Tensor;
use crate::{ChatTemplate, Config, Gguf, ModelError, Tokenizer};

/// Bytes of a tensor that [`Model::digest`] looks at.
const DIGESTED: usize = 4096;

/// A model whose tensors are all there, of the right shape, in formats that are run.
#[derive(Debug)]
pub struct Model {
    /// Architecture and sizes.
    pub config: Config,
    source: Source,
    /// What matrices are quantised to at load, if at all.
    quantise: Option<Format>,
}

impl Model {
    /// Opens a GGUF file (one that holds the whole model, or the first part of a split one), or the
    /// directory of a Hugging Face model.
    pub fn open(path: &Path) -> Result<Model, ModelError> {
        if path.is_dir() {
            let directory = Directory::open(path)?;
            let config = Config::of_directory(&directory)?;
            return Model::new(config, Source::HuggingFace(directory))
                .map_err(|error| error.in_file(path));
        }
        let gguf = Gguf::open(path)?;
        Model::of_gguf(gguf).map_err(|error| error.in_file(path))
    }

    /// Opens a GGUF file that is in memory.
    pub fn from_gguf_bytes(bytes: Vec<u8>) -> Result<Model, ModelError> {
        Model::of_gguf(Gguf::from_bytes(bytes)?)
    }

    fn of_gguf(gguf: Gguf) -> Result<Model, ModelError> {
        Model::new(Config::read(&gguf)?, Source::Gguf(gguf))
    }

    fn new(config: Config, source: Source) -> Result<Model, ModelError> {
        let model = Model { config, source, quantise: None };
        model.check_tensors()?;
        Ok(model)
    }

    /// Quantises matrices at load: those that are stored as floats, 16 bits or FP8. Where rows are
    /// not whole blocks of `format` they take Q8_0, or stay as they are. Routers and what is read
    /// row by row stay, too.
    ///
    /// # Panics
    /// When `format` is none that can be quantised to.
    pub fn quantise_at_load(&mut self, format: Format) {
        assert!(format.is_quantized() && format != Format::Mxfp4, "{format} as a load format");
        self.quantise = Some(format);
    }

    /// The format that a tensor's shards are held in.
    pub(crate) fn packed_format(&self, name: &str, tensor: &Tensor<'_>) -> Format {
        let cut = tensor.cut_format();
        let Some(format) = self.quantise else { return cut };
        if cut.is_quantized() || name.ends_with("ffn_gate_inp.weight") {
            return cut;
        }
        let fits = |format: &Format| tensor.cols.is_multiple_of(format.block_len());
        [format, Format::Q8_0].into_iter().find(fits).unwrap_or(cut)
    }

    /// The sizes that decide how the model can be cut.
    ///
    /// Blocks are those of the formats that matrices are held in, the largest where layers differ:
    /// a cut at their multiples is a cut between blocks in every layer.
    pub fn shape(&self) -> ModelShape {
        let config = &self.config;
        let &Config { layers, hidden, q_heads, kv_heads, head_dim, value_dim, vocab, .. } = config;
        let (experts, dense): (Vec<usize>, Vec<usize>) =
            (0..layers).partition(|&layer| config.moe(layer).is_some());
        let block_of = |layers: &[usize], suffix: &str, part: Option<usize>| {
            let block = |&layer: &usize| {
                let name = layer_tensor(layer, suffix);
                let tensor = self.source.tensor(config, &name, part);
                let tensor = tensor.expect("checked when the model was opened");
                self.packed_format(&name, &tensor).block_len()
            };
            layers.iter().map(block).max().unwrap_or(1)
        };
        let block = |layers: &[usize], suffix: &str| block_of(layers, suffix, None);
        let out_block = block(&dense, "attn_output.weight");
        let moe = config.moe.as_ref().filter(|_| !experts.is_empty()).map(|moe| MoeShape {
            layers: experts.len(),
            experts: moe.experts,
            top_k: moe.routing.top_k,
            ffn: moe.ffn,
            // Experts that have tensors of their own may be of several formats.
            block: (0..moe.experts)
                .map(|expert| block_of(&experts, "ffn_down_exps.weight", Some(expert)))
                .max()
                .unwrap_or(1),
            shared_ffn: moe.shared_ffn,
            shared_block: match moe.shared_ffn {
                0 => 1,
                _ => block(&experts, "ffn_down_shexp.weight"),
            },
        });
        let mla = config.mla.map(|mla| {
            let Mla { q_lora, kv_lora, nope, rope, .. } = mla;
            MlaShape { q_lora, kv_lora, nope, rope }
        });
        ModelShape {
            layers,
            hidden,
            q_heads,
            kv_heads,
            head_dim,
            value_dim,
            ffn: if dense.is_empty() { 0 } else { config.ffn },
            vocab,
            out_block: out_block.max(block(&experts, "attn_output.weight")),
            ffn_block: block(&dense, "ffn_down.weight"),
            mla,
            moe,
        }
    }

    /// The file behind the model, if it is a GGUF file.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf(gguf) => Some(gguf),
            Source::HuggingFace(_) => None,
        }
    }

    /// The directory behind the model, if it is a Hugging Face model.
    pub fn directory(&self) -> Option<&Directory> {
        match &self.source {
            Source::Gguf(_) => None,
            Source::HuggingFace(directory) => Some(directory),
        }
    }

    /// Every tensor of the model's files, used or not: name, format and bytes, in no particular
    /// order.
    pub fn stored(&self) -> Vec<(&str, &'static str, usize)> {
        match &self.source {
            Source::Gguf(gguf) => gguf
                .tensors()
                .map(|tensor| (tensor.name.as_str(), tensor.ggml_type.name, tensor.bytes()))
                .collect(),
            Source::HuggingFace(directory) => directory.tensors().collect(),
        }
    }

    /// Length of the files that hold the weights.
    pub fn file_bytes(&self) -> usize {
        match &self.source {
            Source::Gguf(gguf) => gguf.file_bytes(),
            Source::HuggingFace(directory) => directory.file_bytes(),
        }
    }

    /// A number that tells models apart: of its configuration, of its files' tensors, and of how
    /// each tensor of a layer begins (of experts the first one's), so that it costs a page of
    /// reading each.
    pub fn digest(&self) -> u64 {
        // Hosts may have other names for the same files.
        let config = Config { name: String::new(), ..self.config.clone() };
        let mut stored = self.stored();
        stored.sort_unstable();
        let mut text = format!("{config:?} {:?} {stored:?}", self.quantise).into_bytes();
        let outer = tensors::outer(&config).into_iter().map(|slot| (slot.suffix.to_owned(), None));
        let in_layers = (0..config.layers).flat_map(|layer| {
            let slots = tensors::layer(&config, layer).into_iter();
            slots.map(move |slot| (layer_tensor(layer, slot.suffix), slot.parts.map(|_| 0)))
        });
        for (name, part) in outer.chain(in_layers) {
            let tensor = self.source.tensor(&config, &name, part);
            let data = tensor.map_or(&[][..], |tensor| tensor.data);
            text.extend_from_slice(&data[..data.len().min(DIGESTED)]);
        }
        digest(&text)
    }

    /// A tensor by its name in GGUF files, whatever the model's own files call it.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, ModelError> {
        self.source.tensor(&self.config, name, None)
    }

    /// The matrix or vector of one expert or head, by the name of the tensor of all.
    pub fn part(&self, name: &str, part: usize) -> Result<Tensor<'_>, ModelError> {
        self.source.tensor(&self.config, name, Some(part))
    }

    /// The name of the tensor that is the LM head: `output.weight`, or the embedding.
    pub fn head_name(&self) -> &'static str {
        if self.config.tied_head { EMBEDDING } else { HEAD }
    }

    /// The embedding of a token, `[hidden]`, scaled if the model does so. Errors: a token past the
    /// vocabulary, a damaged row.
    pub fn embedding_row(&self, token: u32, out: &mut [f32]) -> Result<(), ModelError> {
        self.check_tokens(&[token])?;
        self.tensor(EMBEDDING)?.row(token as usize, out)?;
        let embedding_scale = self.config.embedding_scale;
        if embedding_scale != 1.0 {
            out.iter_mut().for_each(|value| *value *= embedding_scale);
        }
        Ok(())
    }

    /// Refuses tokens past the vocabulary. A tokenizer may make some: that of Gemma 3 1B knows the
    /// images' of its larger relatives, for which it has no row.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<(), ModelError> {
        let vocab = self.config.vocab;
        match tokens.iter().find(|&&token| token as usize >= vocab) {
            Some(&token) => Err(ModelError::Token { token, vocab }),
            None => Ok(()),
        }
    }

    /// The tokenizer beside the weights.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        match &self.source {
            Source::Gguf(gguf) => Tokenizer::from_gguf(gguf),
            Source::HuggingFace(directory) => Tokenizer::from_directory(directory),
        }
    }

    /// The chat template beside the weights, if there is one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, ModelError> {
        match &self.source {
            Source::Gguf(gguf) => ChatTemplate::from_gguf(gguf),
            Source::HuggingFace(directory) => ChatTemplate::from_directory(directory),
        }
    }

    /// Every tensor that the architecture has must be there in its shape, and no other.
    fn check_tensors(&self) -> Result<(), ModelError> {
        let config = &self.config;
        let mut known = HashSet::from(["rope_freqs.weight".to_owned()]);
        let mut know = |name: &str| {
            known.insert(name.to_owned());
        };
        for slot in tensors::outer(config) {
            self.source.check(config, slot.suffix, &slot, &mut know)?;
        }
        // One missing tensor ends this, so that a lying layer count costs nothing.
        for layer in 0..config.layers {
            for slot in tensors::layer(config, layer) {
                let name = layer_tensor(layer, slot.suffix);
                self.source.check(config, &name, &slot, &mut know)?;
            }
        }
        let stray = match &self.source {
            Source::Gguf(gguf) => {
                let names = gguf.tensors().map(|tensor| tensor.name.as_str());
                names.filter(|name| !known.contains(*name) && !is_ignored(name)).min()
            }
            Source::HuggingFace(directory) => {
                let names = directory.tensors().map(|(name, ..)| name);
                names.filter(|name| !directory.accounts_for(name, config, &known)).min()
            }
        };
        match stray {
            Some(name) => {
                Err(ModelError::UnusedTensor { name: name.to_owned(), arch: config.arch.name() })
            }
            None => Ok(()),
        }
    }
}

/// A number that tells bytes apart, if nobody means to deceive: FNV-1a over words of 8 bytes.
pub fn digest(bytes: &[u8]) -> u64 {
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    let mut words = bytes.chunks_exact(8);
    let start = step(0xcbf2_9ce4_8422_2325, bytes.len() as u64);
    let hash = words.by_ref().fold(start, |hash, word| {
        step(hash, u64::from_le_bytes(word.try_into().expect("8 bytes")))
    });
    words.remainder().iter().fold(hash, |hash, &byte| step(hash, u64::from(byte)))
}

/// Frequencies that old converters wrote out although the metadata say the same.
fn is_ignored(name: &str) -> bool {
    name.ends_with(".attn_rot_embd") || name.ends_with(".attention.rotary_emb.inv_freq")
}

#[cfg(test)]
mod tests;
