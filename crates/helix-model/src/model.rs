//! An open model: everything about it is checked, nothing of it is loaded.

use std::collections::HashSet;
use std::path::Path;

use helix_layout::ModelShape;

use crate::tensor::Tensor;
use crate::{ChatTemplate, Config, Gguf, ModelError, Tokenizer};

pub(crate) const EMBEDDING: &str = "token_embd.weight";
pub(crate) const FINAL_NORM: &str = "output_norm.weight";
const HEAD: &str = "output.weight";

/// A model whose tensors are all there, of the right shape, in formats that are run.
#[derive(Debug)]
pub struct Model {
    /// Architecture and sizes.
    pub config: Config,
    gguf: Gguf,
}

impl Model {
    /// Opens a GGUF file: one that holds the whole model, or the first part of a split one.
    pub fn open(path: &Path) -> Result<Model, ModelError> {
        let gguf = Gguf::open(path)?;
        Model::new(gguf).map_err(|error| error.in_file(path))
    }

    /// Opens a model that is in memory.
    pub fn from_gguf_bytes(bytes: Vec<u8>) -> Result<Model, ModelError> {
        Model::new(Gguf::from_bytes(bytes)?)
    }

    fn new(gguf: Gguf) -> Result<Model, ModelError> {
        let model = Model { config: Config::read(&gguf)?, gguf };
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

    /// The file behind the model.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// A tensor by its name in the file.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, ModelError> {
        Tensor::of(&self.gguf, name)
    }

    /// The name of the tensor that is the LM head: `output.weight`, or the embedding.
    pub fn head_name(&self) -> &'static str {
        if self.config.tied_head { EMBEDDING } else { HEAD }
    }

    /// The embedding of a token, `[hidden]`. Errors: a token past the vocabulary, a damaged row.
    pub fn embedding_row(&self, token: u32, out: &mut [f32]) -> Result<(), ModelError> {
        let vocab = self.config.vocab;
        if token as usize >= vocab {
            return Err(ModelError::Token { token, vocab });
        }
        self.tensor(EMBEDDING)?.row(token as usize, out)
    }

    /// The tokenizer in the file's metadata.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        Tokenizer::from_gguf(&self.gguf)
    }

    /// The chat template in the file's metadata, if there is one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, ModelError> {
        ChatTemplate::from_gguf(&self.gguf)
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
        let mut check = |name: String, dims: &[usize]| -> Result<(), ModelError> {
            self.check_tensor(&name, dims)?;
            known.insert(name);
            Ok(())
        };
        check(EMBEDDING.to_owned(), &[config.hidden, config.vocab])?;
        check(FINAL_NORM.to_owned(), &[config.hidden])?;
        if !config.tied_head {
            check(HEAD.to_owned(), &[config.hidden, config.vocab])?;
        }
        // One missing tensor ends this, so that a lying layer count costs nothing.
        for layer in 0..config.layers {
            for (suffix, dims) in layer_dims(config) {
                check(layer_tensor(layer, suffix), &dims)?;
            }
        }
        let stray = |name: &&str| !known.contains(*name) && !is_ignored(name);
        match self.gguf.tensors().map(|tensor| tensor.name.as_str()).filter(stray).min() {
            Some(name) => {
                Err(ModelError::UnusedTensor { name: name.to_owned(), arch: config.arch.name() })
            }
            None => Ok(()),
        }
    }

    fn check_tensor(&self, name: &str, expected: &[usize]) -> Result<(), ModelError> {
        let tensor = self.gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor {
            name: name.to_owned(),
            expected: format!("{expected:?}"),
        })?;
        let equal = tensor.dims.iter().copied().eq(expected.iter().map(|&dim| dim as u64));
        if !equal {
            return Err(ModelError::TensorShape {
                name: name.to_owned(),
                found: tensor.shape(),
                expected: format!("{expected:?}"),
            });
        }
        self.tensor(name).map(drop)
    }
}

/// The name of a layer's tensor.
pub(crate) fn layer_tensor(layer: usize, suffix: &str) -> String {
    format!("blk.{layer}.{suffix}")
}

/// The tensors of one layer, with their extents as ggml writes them: `[cols, rows]`.
fn layer_dims(config: &Config) -> Vec<(&'static str, Vec<usize>)> {
    let &Config { hidden, ffn, head_dim, .. } = config;
    let (q, kv) = (config.q_heads * head_dim, config.kv_heads * head_dim);
    let mut dims = vec![
        ("attn_norm.weight", vec![hidden]),
        ("attn_q.weight", vec![hidden, q]),
        ("attn_k.weight", vec![hidden, kv]),
        ("attn_v.weight", vec![hidden, kv]),
        ("attn_output.weight", vec![q, hidden]),
        ("ffn_norm.weight", vec![hidden]),
        ("ffn_gate.weight", vec![hidden, ffn]),
        ("ffn_up.weight", vec![hidden, ffn]),
        ("ffn_down.weight", vec![ffn, hidden]),
    ];
    if config.qkv_bias {
        dims.push(("attn_q.bias", vec![q]));
        dims.push(("attn_k.bias", vec![kv]));
        dims.push(("attn_v.bias", vec![kv]));
    }
    if config.qk_norm {
        dims.push(("attn_q_norm.weight", vec![head_dim]));
        dims.push(("attn_k_norm.weight", vec![head_dim]));
    }
    dims
}

/// Frequencies that old converters wrote out although the metadata say the same.
fn is_ignored(name: &str) -> bool {
    name.ends_with(".attn_rot_embd") || name.ends_with(".attention.rotary_emb.inv_freq")
}

#[cfg(test)]
mod tests;
