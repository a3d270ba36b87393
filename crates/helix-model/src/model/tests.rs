use helix_kernels::Format;

use super::*;
use crate::config::Arch;
use crate::gguf::{GgmlType, Value, Writer};
use crate::synthetic::{self, Spec};

fn open(spec: &Spec) -> Result<Model, ModelError> {
    Model::from_gguf_bytes(synthetic::gguf(spec, 1))
}

fn f32s() -> &'static GgmlType {
    GgmlType::from_name("F32").unwrap()
}

#[track_caller]
fn refused(writer: Writer, expected: &str) {
    let error = Model::from_gguf_bytes(writer.finish()).expect_err(expected).to_string();
    assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
}

#[test]
fn every_tensor_must_be_there() {
    for arch in Arch::DENSE {
        let spec = Spec { tied_head: false, ..Spec::tiny(arch) };
        let names: Vec<String> = open(&spec)
            .unwrap()
            .gguf()
            .unwrap()
            .tensors()
            .map(|tensor| tensor.name.clone())
            .collect();
        for name in names.iter().filter(|name| *name != HEAD) {
            let mut writer = synthetic::writer(&spec, 1);
            writer.remove_tensor(name);
            refused(writer, &format!("tensor {name:?} ["));
        }
        let mut tied = synthetic::writer(&spec, 1);
        tied.remove_tensor(HEAD);
        let model = Model::from_gguf_bytes(tied.finish()).unwrap();
        assert!(model.config.tied_head);
        assert_eq!(model.head_name(), EMBEDDING);
    }
}

#[test]
fn tensors_must_have_the_shapes_that_the_metadata_ask_for() {
    for (name, dims, expected) in [
        ("blk.1.attn_k.weight", vec![48, 8], "is [48, 8], and the metadata ask for [48, 16]"),
        ("blk.0.ffn_down.weight", vec![48, 80], "is [48, 80], and the metadata ask for [80, 48]"),
        ("blk.0.attn_norm.weight", vec![48, 1], "is [48, 1], and the metadata ask for [48]"),
        ("blk.0.attn_norm.weight", vec![24], "is [24], and the metadata ask for [48]"),
        (EMBEDDING, vec![48], "is [48], and the metadata ask for [48, vocabulary"),
        (EMBEDDING, vec![47, 300], "is [47, 300], and the metadata ask for [48, vocabulary"),
    ] {
        let mut writer = synthetic::writer(&Spec::tiny(Arch::Llama), 1);
        let data = vec![0; dims.iter().product::<usize>() * 4];
        writer.remove_tensor(name).tensor(name, &dims, f32s(), data);
        refused(writer, expected);
    }
}

#[test]
fn what_would_be_left_out_is_refused() {
    for name in ["blk.0.attn_output.bias", "blk.2.attn_q.weight", "rope_factors_long.weight"] {
        let mut writer = synthetic::writer(&Spec::tiny(Arch::Llama), 1);
        writer.tensor(name, &[4], f32s(), vec![0; 16]);
        refused(writer, &format!("tensor {name:?} is not part of architecture llama"));
    }
    let mut writer = synthetic::writer(&Spec::tiny(Arch::Llama), 1);
    writer.tensor("blk.0.attn_rot_embd", &[4], f32s(), vec![0; 16]);
    Model::from_gguf_bytes(writer.finish()).expect("frequencies that old converters left");
}

#[test]
fn types_that_no_kernel_reads_are_named() {
    let mut writer = synthetic::writer(&Spec { hidden: 256, ..Spec::tiny(Arch::Llama) }, 1);
    let (name, iq4) = ("blk.1.ffn_up.weight", GgmlType::from_name("IQ4_XS").unwrap());
    writer.remove_tensor(name).tensor(name, &[256, 80], iq4, vec![0; 80 * 136]);
    refused(
        writer,
        "tensor \"blk.1.ffn_up.weight\" is IQ4_XS, which Helix does not run; it runs F32, F16, \
         BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K",
    );
}

#[test]
fn llama_may_have_biases() {
    let model = open(&Spec { bias: true, ..Spec::tiny(Arch::Llama) }).unwrap();
    assert!(model.config.qkv_bias);
}

#[test]
fn shape_has_the_largest_blocks_of_all_layers() {
    let spec = Spec {
        hidden: 256,
        head_dim: 64,
        rope_dims: 64,
        q_heads: 8,
        ffn: 512,
        format: Format::Q8_0,
        down_format: Format::F16,
        ..Spec::tiny(Arch::Qwen3)
    };
    let shape = open(&spec).unwrap().shape();
    let expected = ModelShape {
        layers: 2,
        hidden: 256,
        q_heads: 8,
        kv_heads: 2,
        head_dim: 64,
        value_dim: 64,
        ffn: 512,
        vocab: 300,
        out_block: 32,
        ffn_block: 1,
        mla: None,
        moe: None,
    };
    assert_eq!(shape, expected);

    let mut writer = synthetic::writer(&spec, 1);
    let (name, q6) = ("blk.1.ffn_down.weight", GgmlType::from_name("Q6_K").unwrap());
    writer.remove_tensor(name).tensor(name, &[512, 256], q6, vec![0; 512 * 210]);
    let mixed = Model::from_gguf_bytes(writer.finish()).unwrap();
    assert_eq!(mixed.shape().ffn_block, 256);
}

#[test]
fn embedding_rows_are_read_one_by_one() {
    let spec = Spec { vocab: 5, ..Spec::tiny(Arch::Llama) };
    let mut data: Vec<u8> = (0..5 * 48).flat_map(|i| (i as f32).to_le_bytes()).collect();
    data[4 * 48 * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut writer = synthetic::writer(&spec, 1);
    writer.remove_tensor(EMBEDDING).tensor(EMBEDDING, &[48, 5], f32s(), data);
    let model = Model::from_gguf_bytes(writer.finish()).unwrap();

    let mut row = [0.0; 48];
    model.embedding_row(3, &mut row).unwrap();
    assert!(row.iter().enumerate().all(|(i, x)| *x == (3 * 48 + i) as f32), "{row:?}");
    let error = model.embedding_row(5, &mut row).unwrap_err().to_string();
    assert_eq!(error, "token 5 is not one of the model's 5: ids go from 0 to 4");
    let error = model.embedding_row(4, &mut row).unwrap_err().to_string();
    assert!(error.contains("\"token_embd.weight\" holds a value that is not finite, in row 4"));
}

/// Of several hosts' files only one may have been fine-tuned, or converted by another hand.
#[test]
fn a_digest_tells_every_tensor_and_every_setting() {
    let digest = |writer: Writer| Model::from_gguf_bytes(writer.finish()).unwrap().digest();
    for spec in [Spec::tiny(Arch::Llama), Spec::tiny(Arch::Qwen3Moe)] {
        let whole = digest(synthetic::writer(&spec, 1));
        let gguf = Gguf::from_bytes(synthetic::gguf(&spec, 1)).unwrap();
        for tensor in gguf.tensors() {
            let mut data = gguf.data(tensor).to_vec();
            data[0] ^= 1;
            let dims: Vec<usize> = tensor.dims.iter().map(|&dim| dim as usize).collect();
            let mut writer = synthetic::writer(&spec, 1);
            writer.remove_tensor(&tensor.name);
            writer.tensor(&*tensor.name, &dims, tensor.ggml_type, data);
            assert_ne!(digest(writer), whole, "{}", tensor.name);
        }
        let set = |key: &str, value: Value| {
            let mut writer = synthetic::writer(&spec, 1);
            writer.set(key, value);
            digest(writer)
        };
        let base = format!("{}.rope.freq_base", spec.arch.gguf_name());
        assert_ne!(set(&base, Value::F32(12_345.0)), whole);
        assert_eq!(set("general.name", Value::String("another".into())), whole);
    }
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut writer = synthetic::writer(&Spec::tiny(Arch::Llama), 1);
    writer.unset("llama.block_count");
    std::fs::write(&path, writer.finish()).unwrap();
    let error = Model::open(&path).unwrap_err().to_string();
    assert!(error.contains("model.gguf: metadata key \"llama.block_count\" is missing"), "{error}");
}

/// The real file, where the environment says where it is.
#[test]
fn smollm2_opens() {
    let Some(path) = std::env::var_os("HELIX_TEST_MODEL") else {
        println!("skipped: HELIX_TEST_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let model = Model::open(Path::new(&path)).unwrap();
    let Config { arch, layers, hidden, ffn, vocab, context, tied_head, .. } = model.config;
    assert_eq!((arch, layers, hidden, ffn), (Arch::Llama, 30, 576, 1536));
    assert_eq!((vocab, context, tied_head), (49152, 8192, true));
    assert_eq!((model.shape().out_block, model.shape().ffn_block), (32, 32));
    let mut row = vec![0.0; hidden];
    model.embedding_row(0, &mut row).unwrap();
    assert!(row.iter().any(|x| *x != 0.0));
}
