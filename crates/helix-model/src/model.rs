//! An open model: everything about it is checked, nothing of it is loaded.

use std::collections::HashSet;
use std::path::Path;

use helix_layout::ModelShape;

use crate::arch::tensors::{self, EMBEDDING, HEAD, layer_tensor};
use crate::huggingface::Directory;
use crate::source::Source;
use crate::tensor::Tensor;
use crate::{ChatTemplate, Config, Gguf, ModelError, Tokenizer};

/// A model whose tensors are all there, of the right shape, in formats that are run.
#[derive(Debug)]
pub struct Model {
    /// Architecture and sizes.
    pub config: Config,
    source: Source,
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
        let model = Model { config, source };
        model.check_tensors()?;
        Ok(model)
    }

    /// The sizes that decide how the model can be cut.
    ///
    /// Blocks are those of the formats on disk, the largest where layers differ: a cut at their
    /// multiples is a cut between blocks in every layer.
    pub fn shape(&self) -> ModelShape {
        let Config { layers, hidden, q_heads, kv_heads, head_dim, ffn, vocab, .. } = self.config;
        let out_block = self.largest_block("attn_output.weight");
        let ffn_block = self.largest_block("ffn_down.weight");
        ModelShape {
            layers,
            hidden,
            q_heads,
            kv_heads,
            head_dim,
            value_dim: head_dim,
            ffn,
            vocab,
            out_block,
            ffn_block,
            mla: None,
            moe: None,
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
        let Config { vocab, embedding_scale, .. } = self.config;
        if token as usize >= vocab {
            return Err(ModelError::Token { token, vocab });
        }
        self.tensor(EMBEDDING)?.row(token as usize, out)?;
        if embedding_scale != 1.0 {
            out.iter_mut().for_each(|value| *value *= embedding_scale);
        }
        Ok(())
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

    fn largest_block(&self, suffix: &str) -> usize {
        let block = |layer: usize| {
            let tensor = self.tensor(&layer_tensor(layer, suffix));
            tensor.expect("checked when the model was opened").format.block_len()
        };
        (0..self.config.layers).map(block).max().unwrap_or(1)
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

/// Frequencies that old converters wrote out although the metadata say the same.
fn is_ignored(name: &str) -> bool {
    name.ends_with(".attn_rot_embd") || name.ends_with(".attention.rotary_emb.inv_freq")
}

#[cfg(test)]
mod tests;
