//! GGUF files as converters wrote them when an architecture was new.

use helix_kernels::quantize;

use super::*;
use crate::config::Mla;
use crate::gguf::Writer;
use crate::synthetic::Experts;

/// Four heads whose latents are whole blocks of every format, and whose queries are none of some.
const MLA: Mla = Mla { q_lora: Some(24), kv_lora: 256, nope: 32, rope: 8, value: 48 };
const HEADS: usize = 4;

fn spec() -> Spec {
    Spec { mla: Some(MLA), q_heads: HEADS, ..Spec::tiny(Arch::DeepSeek) }
}

fn ggml(format: Format) -> &'static GgmlType {
    GgmlType::from_name(format.name()).unwrap()
}

/// W_UK and W_UV of a layer as one, `[heads, nope + value, kv_lora]`.
fn kv_b(layer: usize, format: Format) -> Vec<u8> {
    let len = HEADS * (MLA.nope + MLA.value) * MLA.kv_lora;
    let value = |i: usize| ((i * 7919 + layer * 31) % 1009) as f32 / 504.5 - 1.0;
    let values: Vec<f32> = (0..len).map(value).collect();
    let mut data = vec![0; format.row_bytes(len).unwrap()];
    quantize(format, &values, &mut data);
    data
}

/// A model with `kv_b` for all layers, in one tensor.
fn whole(format: Format) -> Writer {
    let spec = spec();
    let mut writer = synthetic::writer(&spec, 3);
    let key = |key: &str| format!("deepseek2.attention.{key}");
    writer.unset(&key("key_length_mla")).unset(&key("value_length_mla"));
    writer.set(key("key_length"), (MLA.nope + MLA.rope) as u32);
    writer.set(key("value_length"), MLA.value as u32);
    writer.set(key("head_count_kv"), HEADS as u32);
    for layer in 0..spec.layers {
        let name = |suffix: &str| format!("blk.{layer}.{suffix}.weight");
        let dims = [MLA.kv_lora, HEADS * (MLA.nope + MLA.value)];
        writer.remove_tensor(&name("attn_k_b")).remove_tensor(&name("attn_v_b"));
        writer.tensor(name("attn_kv_b"), &dims, ggml(format), kv_b(layer, format));
    }
    writer
}

/// The same model with W_UK turned by hand, in `keys`, and the rows of W_UV as they are.
fn parted(format: Format, keys: Format) -> Writer {
    let spec = spec();
    let mut writer = synthetic::writer(&spec, 3);
    let row_bytes = format.row_bytes(MLA.kv_lora).unwrap();
    for layer in 0..spec.layers {
        let all = kv_b(layer, format);
        let (mut turned, mut values) = (Vec::new(), Vec::new());
        for head in all.chunks_exact((MLA.nope + MLA.value) * row_bytes) {
            let (k, v) = head.split_at(MLA.nope * row_bytes);
            let mut rows = vec![0.0; MLA.nope * MLA.kv_lora];
            dequantize(format, k, &mut rows);
            for latent in 0..MLA.kv_lora {
                turned.extend((0..MLA.nope).map(|key| rows[key * MLA.kv_lora + latent]));
            }
            values.extend(v);
        }
        let mut data = vec![0; keys.row_bytes(turned.len()).unwrap()];
        quantize(keys, &turned, &mut data);
        let name = |suffix: &str| format!("blk.{layer}.{suffix}.weight");
        writer.remove_tensor(&name("attn_k_b")).remove_tensor(&name("attn_v_b"));
        let (k, v) = ([MLA.nope, MLA.kv_lora, HEADS], [MLA.kv_lora, MLA.value, HEADS]);
        writer.tensor(name("attn_k_b"), &k, ggml(keys), data);
        writer.tensor(name("attn_v_b"), &v, ggml(format), values);
    }
    writer
}

fn open(writer: Writer) -> Model {
    Model::from_gguf_bytes(writer.finish()).unwrap()
}

/// Asserts that every rank of every layout holds the same bits of W_UK and W_UV, in these formats.
fn assert_same(ours: &Model, theirs: &Model, keys: Format, values: Format) {
    assert_eq!(ours.config, theirs.config);
    assert_eq!(ours.shape(), theirs.shape());
    let mut seen = 0;
    for qkv in [QkvMode::Replicate, QkvMode::Gather] {
        for layout in Layout::candidates(&ours.shape(), 2, Strategy::Helix, 16, qkv) {
            for rank in layout.all_ranks() {
                let load = |model| {
                    let precision = Precision::Precise;
                    RankWeights::load(model, &layout, rank, precision, &|_| ()).unwrap()
                };
                let holds = |model| Holdings::of(model, &layout, rank).unwrap();
                assert_eq!(holds(ours), holds(theirs), "{layout} rank {rank}");
                for (a, b) in load(ours).layers.iter().zip(load(theirs).layers) {
                    let latents = (&a.attention, &b.attention);
                    let (AttentionWeights::Latent(a), AttentionWeights::Latent(b)) = latents else {
                        panic!("{latents:?}")
                    };
                    let formats = [(&a.k_up, &b.k_up, keys), (&a.v_up, &b.v_up, values)];
                    for (a, b, format) in formats {
                        assert_eq!(a.len(), b.len());
                        for (a, b) in a.iter().zip(b) {
                            let x: Vec<f32> = (0..a.cols()).map(|i| (i % 7) as f32 - 3.0).collect();
                            assert_eq!((a.format(), b.format()), (format, format));
                            assert_eq!(product(a, &x, 1), product(b, &x, 1));
                            seen += a.rows();
                        }
                    }
                }
            }
        }
    }
    assert!(seen > 4 * MLA.kv_lora);
}

#[test]
fn undivided_keys_and_values_are_divided() {
    for format in Format::GGML {
        let keys = if format.is_quantized() { Format::F16 } else { format };
        assert_same(&open(whole(format)), &open(parted(format, keys)), keys, format);
    }
}

#[test]
fn turned_keys_may_be_quantised_at_load() {
    let (mut ours, mut theirs) = (open(whole(Format::Q4K)), open(parted(Format::Q4K, Format::F32)));
    ours.quantise_at_load(Format::Q8_0);
    theirs.quantise_at_load(Format::Q8_0);
    assert_same(&ours, &theirs, Format::Q8_0, Format::Q4K);
}

/// Bytes on disk, which progress counts, are each counted once.
#[test]
fn both_parts_together_are_the_whole_on_disk() {
    for format in Format::GGML {
        let model = open(whole(format));
        let layout = Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, 1, 1)).unwrap();
        let shards = layer_shards(&model, &layout, Rank(0), 0);
        let parts = shards.iter().filter(|shard| {
            shard.name.ends_with("attn_k_b.weight") || shard.name.ends_with("attn_v_b.weight")
        });
        let bytes: u64 = parts.map(|shard| shard.bytes(&model).unwrap()).sum();
        assert_eq!(bytes, kv_b(0, format).len() as u64, "{format}");
    }
}

/// A Mixtral with a tensor per expert, whose down-projections are of these formats.
fn each(down: [Format; 2]) -> Writer {
    let tiny = Spec::tiny(Arch::Mixtral);
    let experts = Experts { ffn: 96, ..tiny.experts.unwrap() };
    let spec = Spec { hidden: 64, experts: Some(experts), ..tiny };
    let mut writer = synthetic::writer(&spec, 5);
    for layer in 0..spec.layers {
        for (matrix, cols, rows) in
            [("gate", 64, experts.ffn), ("up", 64, experts.ffn), ("down", experts.ffn, 64)]
        {
            writer.remove_tensor(&format!("blk.{layer}.ffn_{matrix}_exps.weight"));
            for expert in 0..experts.count {
                let format = if matrix == "down" { down[expert % 2] } else { Format::F32 };
                let value = |i| ((i * 37 + expert * 5) % 101) as f32 / 50.0 - 1.0;
                let values: Vec<f32> = (0..cols * rows).map(value).collect();
                let mut data = vec![0; format.row_bytes(values.len()).unwrap()];
                quantize(format, &values, &mut data);
                let name = format!("blk.{layer}.ffn_{matrix}.{expert}.weight");
                writer.tensor(name, &[cols, rows], ggml(format), data);
            }
        }
    }
    writer
}

#[test]
fn a_tensor_per_expert_may_be_of_another_format_than_its_neighbours() {
    let down = [Format::F32, Format::Q8_0];
    let model = open(each(down));
    assert_eq!(model.shape().moe.unwrap().block, 32);
    for layout in Layout::candidates(&model.shape(), 2, Strategy::Helix, 16, QkvMode::Replicate) {
        for rank in layout.all_ranks() {
            check(&model, &layout, rank);
            let weights = RankWeights::load(&model, &layout, rank, Precision::Fast, &|_| ());
            for layer in weights.unwrap().layers {
                let FfnWeights::Moe(moe) = layer.ffn else { panic!("{:?}", layer.ffn) };
                for (expert, weights) in layout.experts(rank).zip(moe.experts) {
                    assert_eq!(weights.down.format(), down[expert % 2]);
                }
            }
        }
    }
}

#[test]
fn older_files_of_fixtures_hold_what_current_ones_hold() {
    for name in ["deepseek-v3", "mixtral"] {
        let (older, current) =
            (fixture(&format!("{name}-older.gguf")), fixture(&format!("{name}.gguf")));
        assert_eq!(older.config, current.config, "{name}");
        assert_eq!(older.shape(), current.shape(), "{name}");
        for layer in 0..older.config.layers {
            for slot in crate::arch::tensors::layer(&older.config, layer) {
                let name = layer_tensor(layer, slot.suffix);
                for part in 0..slot.parts.unwrap_or(1) {
                    let read = |model: &Model| match slot.parts {
                        Some(_) => values(&model.part(&name, part).unwrap()),
                        None => values(&model.tensor(&name).unwrap()),
                    };
                    assert_eq!(read(&older), read(&current), "{name} {part}");
                }
            }
        }
    }
}

#[test]
fn older_files_must_be_whole() {
    let refused = |mut writer: Writer, change: &dyn Fn(&mut Writer), expected: &str| {
        change(&mut writer);
        let found = Model::from_gguf_bytes(writer.finish()).map(|_| "a model");
        let error = found.expect_err(expected).to_string();
        assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
    };
    let (kv_b, down) = ("blk.1.attn_kv_b.weight", "blk.1.ffn_down.2.weight");
    let f32s = ggml(Format::F32);
    let without = |name: &'static str| {
        move |writer: &mut Writer| {
            writer.remove_tensor(name);
        }
    };
    let latents = || whole(Format::Q8_0);
    let experts = || each([Format::F32; 2]);
    refused(latents(), &without(kv_b), "tensor \"blk.1.attn_k_b.weight\" [32, 256, 4] is missing");
    let short = |writer: &mut Writer| {
        writer.remove_tensor(kv_b).tensor(kv_b, &[256, 319], f32s, vec![0; 256 * 319 * 4]);
    };
    let expected = format!("{kv_b:?} is [256, 319], and the metadata ask for [256, 320]");
    refused(latents(), &short, &expected);
    let both = |writer: &mut Writer| {
        for (name, dims) in [("attn_k_b", [32, 256, 4]), ("attn_v_b", [256, 48, 4])] {
            let data = vec![0; dims.iter().product::<usize>() * 4];
            writer.tensor(format!("blk.1.{name}.weight"), &dims, f32s, data);
        }
    };
    refused(latents(), &both, &format!("{kv_b:?} is not part of architecture deepseek2"));
    let unset = |writer: &mut Writer| {
        writer.unset("deepseek2.attention.key_length");
    };
    refused(latents(), &unset, "metadata key \"deepseek2.attention.key_length\" is missing");
    let rotary = |writer: &mut Writer| {
        writer.set("deepseek2.attention.key_length", 8_u32);
    };
    refused(latents(), &rotary, "deepseek2.attention.key_length = 8: it must be more than its 8");

    refused(experts(), &without(down), &format!("tensor {down:?}"));
    let narrow = |writer: &mut Writer| {
        writer.remove_tensor(down).tensor(down, &[32, 64], f32s, vec![0; 32 * 64 * 4]);
    };
    refused(experts(), &narrow, &format!("{down:?} is [32, 64], and the metadata ask for"));
    let more = |writer: &mut Writer| {
        writer.tensor("blk.0.ffn_down.99.weight", &[4], f32s, vec![0; 16]);
    };
    refused(experts(), &more, "\"blk.0.ffn_down.99.weight\" is not part of architecture");
}
