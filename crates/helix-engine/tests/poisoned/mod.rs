//! Models with a token whose keys and values overflow: the poison.
//!
//! It has the only embedding with a first element, which meets weights near f32's largest. Nothing
//! else ever gets a first element.
#![allow(dead_code, reason = "each test file uses some of it")]

use crate::common::directories::path;
use helix_model::gguf::GgmlType;
use helix_model::synthetic::{Spec, writer};
use helix_model::{Arch, Model};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::sync::Arc;

pub const POISON: u32 = 0;
/// Ids below are tokens of all models here.
pub const VOCAB: usize = 60;

/// A dense model.
pub fn synthetic(arch: Arch) -> Arc<Model> {
    let spec = Spec { q_heads: 9, kv_heads: 3, vocab: VOCAB, ..Spec::tiny(arch) };
    let plain = Model::from_gguf_bytes(writer(&spec, 11).finish()).unwrap();
    let mut writer = writer(&spec, 11);
    let mut replace = |name: &str, change: &dyn Fn(usize, usize, &mut f32)| {
        let tensor = plain.tensor(name).unwrap();
        let words = tensor.data.as_chunks::<4>().0.iter().enumerate();
        let data = words.flat_map(|(index, word)| {
            let mut value = f32::from_le_bytes(*word);
            change(index / tensor.cols, index % tensor.cols, &mut value);
            value.to_le_bytes()
        });
        let data = data.collect();
        let dims = [tensor.cols, tensor.rows];
        writer.remove_tensor(name);
        writer.tensor(name, &dims, GgmlType::from_name("F32").unwrap(), data);
    };
    replace("token_embd.weight", &|row, col, value| {
        if row == POISON as usize || col == 0 {
            *value = f32::from(u8::from(row == POISON as usize && col == 0));
        }
    });
    for layer in 0..spec.layers {
        for name in ["attn_k", "attn_v"] {
            replace(&format!("blk.{layer}.{name}.weight"), &|row, col, value| {
                if col == 0 {
                    *value = if row % 2 == 0 { 3e38 } else { -3e38 };
                }
            });
        }
        for name in ["attn_output", "ffn_down"] {
            replace(&format!("blk.{layer}.{name}.weight"), &|row, _, value| {
                if row == 0 {
                    *value = 0.0;
                }
            });
        }
    }
    Arc::new(Model::from_gguf_bytes(writer.finish()).expect("a poisoned model opens"))
}

/// One of the fixtures' directories, which are checkpoints of Hugging Face.
pub fn fixture(name: &str) -> Arc<Model> {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(path(name)).expect("a fixture") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).expect("a copy");
    }
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let poisoned: Vec<_> = tensors.iter().map(|(name, view)| (name, floats(name, &view))).collect();
    let views = tensors.iter().zip(&poisoned).map(|((name, view), (_, floats))| match floats {
        None => (name, view),
        Some(data) => {
            let view = TensorView::new(Dtype::F32, view.shape().to_vec(), data);
            (name, view.expect("as many values as before"))
        }
    });
    let poisoned = safetensors::serialize(views, None).expect("safetensors");
    std::fs::write(&file, poisoned).expect("poisoned weights");
    Arc::new(Model::open(folder.path()).expect("a poisoned model opens"))
}

/// A tensor's values as f32, if it has part in the poison.
fn floats(name: &str, view: &TensorView<'_>) -> Option<Vec<u8>> {
    let ends = |names: &[&str]| names.iter().any(|end| name.ends_with(end));
    let cols = *view.shape().last()?;
    let change: &dyn Fn(usize, usize) -> Option<f32> = if ends(&["embed_tokens.weight"]) {
        &|row, col| {
            let poison = (row == POISON as usize, col == 0);
            (poison.0 || poison.1).then(|| f32::from(u8::from(poison == (true, true))))
        }
    } else if ends(&["k_proj.weight", "v_proj.weight", "kv_a_proj_with_mqa.weight"]) {
        &|row, col| (col == 0).then_some(if row % 2 == 0 { 3e38 } else { -3e38 })
    } else if ends(&["o_proj.weight", "down_proj.weight", "w2.weight"]) {
        &|row, _| (row == 0).then_some(0.0)
    } else if ends(&["o_proj.bias", "experts.down_proj", "down_proj_bias"]) {
        // Biases, and experts that are stored the other way round.
        &|_, col| (col == 0).then_some(0.0)
    } else {
        return None;
    };
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => words(view.data(), f32::from_le_bytes),
        Dtype::BF16 => words(view.data(), |word: [u8; 2]| {
            f32::from_bits(u32::from(u16::from_le_bytes(word)) << 16)
        }),
        Dtype::F16 => words(view.data(), |word| half::f16::from_le_bytes(word).to_f32()),
        other => panic!("{name} is {other:?}"),
    };
    let values = values.iter().enumerate();
    let values = values.map(|(at, &value)| change(at / cols, at % cols).unwrap_or(value));
    Some(values.flat_map(f32::to_le_bytes).collect())
}

fn words<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks().0.iter().map(|word| value(*word)).collect()
}
