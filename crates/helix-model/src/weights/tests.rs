use std::cell::Cell;

use helix_kernels::{Activations, Format, SharedColumns, dequantize, matmul};
use helix_layout::{Degrees, LayoutSpec, QkvMode, Strategy};

use super::*;
use crate::config::Arch;
use crate::gguf::GgmlType;
use crate::synthetic::{self, Spec};

fn model(spec: &Spec) -> Model {
    Model::from_gguf_bytes(synthetic::gguf(spec, 7)).unwrap()
}

/// Every legal layout of up to 5 ranks, both QKV modes.
fn layouts(model: &Model) -> Vec<Layout> {
    let strategies = [Strategy::Helix, Strategy::Tp, Strategy::Medha];
    let mut all = Vec::new();
    for ranks in 1..=5 {
        for strategy in strategies {
            for qkv in [QkvMode::Replicate, QkvMode::Gather] {
                all.extend(Layout::candidates(&model.shape(), ranks, strategy, 16, qkv));
            }
        }
    }
    assert!(all.len() > 20);
    all
}

/// `w · x` for a few seeded x, `[probes, rows]`.
fn product(matrix: &Matrix, x: &[f32], probes: usize) -> Vec<f32> {
    let mut activations = Activations::new(probes, matrix.cols().max(1), Precision::Precise);
    activations.load(x, probes, matrix.cols());
    let mut out = vec![f32::NAN; probes * matrix.rows()];
    if matrix.rows() > 0 {
        let columns = SharedColumns::new(&mut out, matrix.rows(), 16);
        while let Some(mut tile) = columns.next() {
            matmul(&mut tile, 0, matrix, &activations);
        }
    }
    out
}

/// Asserts that `matrix` is rows `rows` and columns `cols` of a tensor.
#[track_caller]
fn assert_shard(
    model: &Model,
    name: &str,
    matrix: &Matrix,
    rows: Range<usize>,
    cols: Range<usize>,
) {
    const PROBES: usize = 2;
    assert_eq!((matrix.rows(), matrix.cols()), (rows.len(), cols.len()), "{name}");
    let tensor = model.tensor(name).unwrap();
    assert_eq!(matrix.format(), tensor.format, "{name}");
    let mut all = vec![0.0; tensor.rows * tensor.cols];
    dequantize(tensor.format, tensor.data, &mut all);

    let x: Vec<f32> =
        (0..PROBES * cols.len()).map(|i| ((i * 37 % 101) as f32) / 50.0 - 1.0).collect();
    let found = product(matrix, &x, PROBES);
    for probe in 0..PROBES {
        for (i, row) in rows.clone().enumerate() {
            let weights = &all[row * tensor.cols..][cols.clone()];
            let x = &x[probe * cols.len()..][..cols.len()];
            let terms = || weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let expected: f64 = terms().sum();
            let scale: f64 = terms().map(f64::abs).sum::<f64>() + 1e-9;
            let found = f64::from(found[probe * rows.len() + i]);
            assert!(
                (found - expected).abs() < 1e-5 * scale,
                "{name} row {row}: {found} {expected}"
            );
        }
    }
}

fn check(model: &Model, layout: &Layout, rank: Rank) {
    let done = Cell::new(0);
    let progress = |bytes| done.set(done.get() + bytes);
    let weights = RankWeights::load(model, layout, rank, Precision::Precise, &progress).unwrap();
    assert_eq!(done.get(), rank_bytes(model, layout, rank).unwrap(), "{layout} rank {rank}");

    let config = &model.config;
    let all = 0..config.hidden;
    let [q, k, v] = layout.qkv_share(rank);
    let (ffn, out) = (layout.ffn_cols(rank), layout.out_cols(rank));
    assert_eq!(weights.layers.len(), config.layers);
    for (i, layer) in weights.layers.iter().enumerate() {
        let shard = |suffix: &str, matrix: &Matrix, rows: &Range<usize>, cols: &Range<usize>| {
            assert_shard(model, &layer_tensor(i, suffix), matrix, rows.clone(), cols.clone());
        };
        shard("attn_q.weight", &layer.q, &q, &all);
        shard("attn_k.weight", &layer.k, &k, &all);
        shard("attn_v.weight", &layer.v, &v, &all);
        shard("attn_output.weight", &layer.out, &all, &out);
        shard("ffn_gate.weight", &layer.gate, &ffn, &all);
        shard("ffn_up.weight", &layer.up, &ffn, &all);
        shard("ffn_down.weight", &layer.down, &all, &ffn);
        let vector = |suffix: &str| {
            let tensor = model.tensor(&layer_tensor(i, suffix)).unwrap();
            tensor.vector(tensor.cols).unwrap()
        };
        assert_eq!(layer.attn_norm, vector("attn_norm.weight"));
        assert_eq!(layer.ffn_norm, vector("ffn_norm.weight"));
        assert_eq!(layer.q_norm.is_some(), config.arch == Arch::Qwen3);
        if config.arch == Arch::Qwen3 {
            assert_eq!(layer.q_norm, Some(vector("attn_q_norm.weight")));
            assert_eq!(layer.k_norm, Some(vector("attn_k_norm.weight")));
        }
        let slice = |suffix: &str, heads: Range<usize>| {
            vector(suffix)[heads.start * config.head_dim..heads.end * config.head_dim].to_vec()
        };
        let expected = config.qkv_bias.then(|| {
            let (q, kv) = (layout.q_heads(rank), layout.kv_heads(rank));
            let (k, v) = (slice("attn_k.bias", kv.clone()), slice("attn_v.bias", kv));
            [slice("attn_q.bias", q), k, v].concat()
        });
        assert_eq!(layer.qkv_bias, expected, "{layout} rank {rank}");
    }
    let rows = layout.vocab_rows(rank);
    assert_shard(model, model.head_name(), &weights.head, rows, all);
}

#[test]
fn every_rank_of_every_layout_holds_its_shards() {
    for arch in Arch::ALL {
        let spec = Spec { layers: 1, vocab: 70, ..Spec::tiny(arch) };
        let model = model(&spec);
        for layout in layouts(&model) {
            layout.all_ranks().for_each(|rank| check(&model, &layout, rank));
        }
    }
}

#[test]
fn every_format_is_cut_between_blocks() {
    for format in Format::GGML {
        let spec = Spec {
            layers: 1,
            hidden: 256,
            q_heads: 9,
            kv_heads: 3,
            head_dim: 256,
            rope_dims: 256,
            ffn: 768,
            vocab: 40,
            format,
            down_format: Format::Q6K,
            embedding_format: Format::Q8_0,
            ..Spec::tiny(Arch::Llama)
        };
        let model = model(&spec);
        let spec = LayoutSpec {
            degrees: Degrees { kvp: 2, tpa: 1, tpf: 2, ep: 1 },
            ..LayoutSpec::new(Strategy::Helix, 2, 1)
        };
        let layout = Layout::new(&model.shape(), spec).unwrap();
        layout.all_ranks().for_each(|rank| check(&model, &layout, rank));
    }
}

#[test]
fn ranks_of_a_process_hold_what_they_share_once() {
    let model = model(&Spec::tiny(Arch::Qwen2));
    let mut spec = LayoutSpec::new(Strategy::Helix, 2, 1);
    let load = |spec| {
        let layout = Layout::new(&model.shape(), spec).unwrap();
        let shards = SharedShards::default();
        let load = |rank| {
            let precision = Precision::Fast;
            RankWeights::load_shared(&model, &layout, rank, precision, &shards, &|_| ()).unwrap()
        };
        std::thread::scope(|scope| {
            let load = &load;
            let ranks: Vec<_> =
                layout.all_ranks().map(|rank| scope.spawn(move || load(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        })
    };
    spec.qkv = QkvMode::Replicate;
    let ranks = load(spec);
    for (a, b) in ranks[0].layers.iter().zip(&ranks[1].layers) {
        for (a, b) in [(&a.q, &b.q), (&a.k, &b.k), (&a.v, &b.v)] {
            assert!(Arc::ptr_eq(a, b));
        }
        assert!(!Arc::ptr_eq(&a.gate, &b.gate));
    }
    spec.qkv = QkvMode::Gather;
    let ranks = load(spec);
    assert!(!Arc::ptr_eq(&ranks[0].layers[0].q, &ranks[1].layers[0].q));
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let f32s = GgmlType::from_name("F32").unwrap();
    for (name, dims, at, row) in [
        ("blk.1.attn_v.weight", vec![48, 16], 48 * 9 + 5, 9),
        ("blk.0.ffn_down.weight", vec![80, 48], 80 * 47 + 79, 47),
        ("blk.0.ffn_norm.weight", vec![48], 3, 0),
        ("output_norm.weight", vec![48], 47, 0),
    ] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = vec![0.5_f32; dims.iter().product()];
            values[at] = bad;
            let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let mut writer = synthetic::writer(&Spec::tiny(Arch::Llama), 1);
            writer.remove_tensor(name).tensor(name, &dims, f32s, data);
            let model = Model::from_gguf_bytes(writer.finish()).unwrap();
            let layout =
                Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, 1, 1)).unwrap();
            let error = RankWeights::load(&model, &layout, Rank(0), Precision::Fast, &|_| ());
            let error = error.unwrap_err().to_string();
            let expected =
                format!("tensor {name:?} holds a value that is not finite, in row {row}");
            assert!(error.contains(&expected), "{error}");
        }
    }
}

/// The real file, where the environment says where it is.
#[test]
fn smollm2_loads_over_two_ranks() {
    let Some(path) = std::env::var_os("HELIX_TEST_MODEL") else {
        println!("skipped: HELIX_TEST_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let model = Model::open(std::path::Path::new(&path)).unwrap();
    let layout = Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, 2, 1)).unwrap();
    let shards = SharedShards::default();
    let total: usize = layout
        .all_ranks()
        .map(|rank| {
            RankWeights::load_shared(&model, &layout, rank, Precision::Fast, &shards, &|_| ())
                .unwrap()
                .bytes()
        })
        .sum();
    assert!(total > 90_000_000, "{total}");
}
