use std::cell::Cell;
use std::ops::Range;

use helix_kernels::{Activations, Format, OutOfMemory, SharedColumns, dequantize, matmul};
use helix_layout::{Degrees, LayoutSpec, QkvMode, Strategy};

use super::*;
use crate::arch::tensors::layer_tensor;
use crate::config::{Arch, Config};
use crate::gguf::GgmlType;
use crate::synthetic::{self, Spec};
use crate::tensor::{Order, ScaleGrid, Tensor};

#[path = "../../../helix-engine/tests/fixtures/directories.rs"]
mod directories;
mod older;

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
    let mut activations = Activations::new(probes, matrix.cols().max(1), matrix.wants());
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

/// Every element, row by row.
fn values(tensor: &Tensor<'_>) -> Vec<f32> {
    let mut all = vec![0.0; tensor.rows * tensor.cols];
    for (row, out) in all.chunks_exact_mut(tensor.cols).enumerate() {
        tensor.row(row, out).unwrap();
    }
    all
}

/// Asserts that `matrix` is rows `rows` and columns `cols` of a tensor.
#[track_caller]
fn assert_shard(
    model: &Model,
    name: &str,
    part: Option<usize>,
    matrix: &Matrix,
    rows: Range<usize>,
    cols: Range<usize>,
) {
    const PROBES: usize = 2;
    assert_eq!((matrix.rows(), matrix.cols()), (rows.len(), cols.len()), "{name}");
    let tensor = match part {
        Some(part) => model.part(name, part).unwrap(),
        None => model.tensor(name).unwrap(),
    };
    let all = values(&tensor);

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

/// The parts of a layer of heads and a dense FFN.
fn plain(layer: &LayerWeights) -> (&HeadsWeights, &DenseWeights) {
    match (&layer.attention, &layer.ffn) {
        (AttentionWeights::Heads(heads), FfnWeights::Dense(dense)) => (heads, dense),
        other => panic!("{other:?}"),
    }
}

fn check(model: &Model, layout: &Layout, rank: Rank) {
    let done = Cell::new(0);
    let progress = |bytes| done.set(done.get() + bytes);
    let weights = RankWeights::load(model, layout, rank, Precision::Precise, &progress).unwrap();
    assert_eq!(done.get(), rank_bytes(model, layout, rank).unwrap(), "{layout} rank {rank}");

    let config = &model.config;
    let all = 0..config.hidden;
    assert_eq!(weights.layers.len(), config.layers);
    for (i, layer) in weights.layers.iter().enumerate() {
        let at = Place { model, layout, rank, layer: i };
        match &layer.attention {
            AttentionWeights::Heads(heads) => at.check_heads(heads),
            AttentionWeights::Latent(latent) => at.check_latent(latent),
        }
        at.shard("attn_output.weight", None, &layer.out, &all, &layout.out_cols(rank));
        assert_eq!(layer.attn_norm, at.norm("attn_norm.weight"));
        assert_eq!(layer.ffn_norm, at.norm("ffn_norm.weight"));
        let post = config.post_norms.then(|| at.norm("post_attention_norm.weight"));
        assert_eq!(layer.attn_post_norm, post);
        assert_eq!(layer.ffn_post_norm, config.post_norms.then(|| at.norm("post_ffw_norm.weight")));
        assert_eq!(layer.out_bias, config.out_bias.then(|| at.vector("attn_output.bias", None)));
        let sinks = || at.vector("attn_sinks.weight", None)[layout.out_heads(rank)].to_vec();
        assert_eq!(layer.sinks, config.sinks.then(sinks));
        match &layer.ffn {
            FfnWeights::Dense(dense) => {
                assert!(config.moe(i).is_none());
                at.check_ffn(dense, "", &layout.ffn_cols(rank));
            }
            FfnWeights::Moe(moe) => at.check_moe(moe),
        }
    }
    let rows = layout.vocab_rows(rank);
    assert_shard(model, model.head_name(), None, &weights.head, rows, all);
}

/// A layer of a rank.
struct Place<'a> {
    model: &'a Model,
    layout: &'a Layout,
    rank: Rank,
    layer: usize,
}

impl Place<'_> {
    #[track_caller]
    fn shard(
        &self,
        suffix: &str,
        part: Option<usize>,
        matrix: &Matrix,
        rows: &Range<usize>,
        cols: &Range<usize>,
    ) {
        let name = layer_tensor(self.layer, suffix);
        assert_shard(self.model, &name, part, matrix, rows.clone(), cols.clone());
    }

    fn vector(&self, suffix: &str, part: Option<usize>) -> Vec<f32> {
        let name = layer_tensor(self.layer, suffix);
        let tensor = match part {
            Some(part) => self.model.part(&name, part).unwrap(),
            None => self.model.tensor(&name).unwrap(),
        };
        assert_eq!(tensor.rows, 1, "{name}");
        values(&tensor)
    }

    fn norm(&self, suffix: &str) -> Vec<f32> {
        let offset = self.model.config.norm_offset;
        self.vector(suffix, None).into_iter().map(|weight| weight + offset).collect()
    }

    fn check_heads(&self, heads: &HeadsWeights) {
        let Place { model, layout, rank, .. } = *self;
        let config = &model.config;
        let all = 0..config.hidden;
        let [q, k, v] = layout.qkv_share(rank);
        self.shard("attn_q.weight", None, &heads.q, &q, &all);
        self.shard("attn_k.weight", None, &heads.k, &k, &all);
        self.shard("attn_v.weight", None, &heads.v, &v, &all);
        assert_eq!(heads.q_norm, config.qk_norm.then(|| self.norm("attn_q_norm.weight")));
        assert_eq!(heads.k_norm, config.qk_norm.then(|| self.norm("attn_k_norm.weight")));
        let slice = |suffix: &str, heads: Range<usize>| {
            let whole = self.vector(suffix, None);
            whole[heads.start * config.head_dim..heads.end * config.head_dim].to_vec()
        };
        let expected = config.qkv_bias.then(|| {
            let (q, kv) = (layout.q_heads(rank), layout.kv_heads(rank));
            let (k, v) = (slice("attn_k.bias", kv.clone()), slice("attn_v.bias", kv));
            [slice("attn_q.bias", q), k, v].concat()
        });
        assert_eq!(heads.bias, expected, "{layout} rank {rank}");
    }

    fn check_latent(&self, latent: &LatentWeights) {
        let Place { model, layout, rank, .. } = *self;
        let mla = model.config.mla.unwrap();
        let all = 0..model.config.hidden;
        let share = layout.q_share(rank);
        let q = share.start * (mla.nope + mla.rope)..share.end * (mla.nope + mla.rope);
        match (&latent.q_a, mla.q_lora) {
            (None, None) => self.shard("attn_q.weight", None, &latent.q_b, &q, &all),
            (Some((q_a, norm)), Some(q_lora)) => {
                self.shard("attn_q_a.weight", None, q_a, &(0..q_lora), &all);
                self.shard("attn_q_b.weight", None, &latent.q_b, &q, &(0..q_lora));
                assert_eq!(*norm, self.norm("attn_q_a_norm.weight"));
            }
            other => panic!("{other:?}"),
        }
        let kv_a = 0..mla.kv_lora + mla.rope;
        self.shard("attn_kv_a_mqa.weight", None, &latent.kv_a, &kv_a, &all);
        assert_eq!(latent.kv_a_norm, self.norm("attn_kv_a_norm.weight"));
        assert_eq!(latent.k_up.len(), share.len());
        let (kv_lora, nope, value) = (0..mla.kv_lora, 0..mla.nope, 0..mla.value);
        for (head, matrix) in share.zip(&latent.k_up) {
            self.shard("attn_k_b.weight", Some(head), matrix, &kv_lora, &nope);
        }
        assert_eq!(latent.v_up.len(), layout.q_heads(rank).len());
        for (head, matrix) in layout.q_heads(rank).zip(&latent.v_up) {
            self.shard("attn_v_b.weight", Some(head), matrix, &value, &kv_lora);
        }
    }

    fn check_ffn(&self, ffn: &DenseWeights, kind: &str, cols: &Range<usize>) {
        let all = 0..self.model.config.hidden;
        self.shard(&format!("ffn_gate{kind}.weight"), None, &ffn.gate, cols, &all);
        self.shard(&format!("ffn_up{kind}.weight"), None, &ffn.up, cols, &all);
        self.shard(&format!("ffn_down{kind}.weight"), None, &ffn.down, &all, cols);
    }

    fn check_moe(&self, weights: &MoeWeights) {
        let Place { model, layout, rank, layer } = *self;
        let moe = model.config.moe(layer).unwrap();
        let all = 0..model.config.hidden;
        let at = layout.ffn(rank);
        let rows = 0..at.map_or(0, |_| moe.experts);
        self.shard("ffn_gate_inp.weight", None, &weights.router, &rows, &all);
        let bias = |has: bool, suffix| has.then(|| self.vector(suffix, None));
        assert_eq!(weights.router_bias, bias(moe.bias, "ffn_gate_inp.bias"));
        assert_eq!(weights.selection_bias, bias(moe.selection_bias, "exp_probs_b.bias"));
        let (experts, cols) = (layout.experts(rank), layout.expert_cols(rank));
        assert_eq!(weights.experts.len(), experts.len());
        for (index, expert) in experts.zip(&weights.experts) {
            let part = Some(index);
            self.shard("ffn_gate_exps.weight", part, &expert.gate, &cols, &all);
            self.shard("ffn_up_exps.weight", part, &expert.up, &cols, &all);
            self.shard("ffn_down_exps.weight", part, &expert.down, &all, &cols);
            let bias = |suffix| moe.expert_bias.then(|| self.vector(suffix, part));
            let own = |suffix| bias(suffix).map(|whole| whole[cols.clone()].to_vec());
            assert_eq!(expert.gate_bias, own("ffn_gate_exps.bias"));
            assert_eq!(expert.up_bias, own("ffn_up_exps.bias"));
            let down = bias("ffn_down_exps.bias").filter(|_| at.unwrap().tpf == 0);
            assert_eq!(expert.down_bias, down);
        }
        match &weights.shared {
            None => assert_eq!(moe.shared_ffn, 0),
            Some(shared) => self.check_ffn(shared, "_shexp", &layout.shared_cols(rank)),
        }
    }
}

fn fixture(name: &str) -> Model {
    Model::open(&directories::path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_rank_of_every_directory_holds_its_shards() {
    for name in directories::names() {
        let model = fixture(&name);
        let strategies = [Strategy::Helix, Strategy::Tp, Strategy::Medha, Strategy::DpEp];
        let mut seen = 0;
        for strategy in strategies {
            for qkv in [QkvMode::Replicate, QkvMode::Gather] {
                for layout in Layout::candidates(&model.shape(), 3, strategy, 16, qkv) {
                    layout.all_ranks().for_each(|rank| check(&model, &layout, rank));
                    seen += 1;
                }
            }
        }
        assert!(seen > 3, "{name}");
    }
}

/// ggml's files of the same weights, which llama.cpp has read, say the same.
#[test]
fn directories_and_gguf_files_hold_the_same_weights() {
    for name in ["deepseek-v3", "gemma3", "gpt-oss-mxfp4", "mixtral", "qwen3-moe"] {
        let (directory, gguf) = (fixture(name), fixture(&format!("{name}.gguf")));
        let (ours, theirs) = (&directory.config, &gguf.config);
        let expected = Config {
            name: ours.name.clone(),
            ropes: ours.ropes.clone(),
            norm_offset: ours.norm_offset,
            bos: ours.bos,
            eos: ours.eos,
            sliding: ours.sliding.clone(),
            // GGUF has no key for it.
            attention_scale: match ours.arch {
                Arch::Gemma3 => ours.attention_scale,
                _ => theirs.attention_scale,
            },
            ..theirs.clone()
        };
        assert_eq!(*ours, expected, "{name}");
        for layer in 0..ours.layers {
            let (rope, other) = (ours.rope(layer), theirs.rope(layer));
            assert_eq!(rope.frequencies, other.frequencies, "{name} layer {layer}");
            assert_eq!(rope.magnitude, other.magnitude, "{name} layer {layer}");
            assert_eq!(ours.window(layer), theirs.window(layer), "{name} layer {layer}");
        }
        let slots = |layer| crate::arch::tensors::layer(ours, layer);
        let all = (0..ours.layers).flat_map(|layer| {
            slots(layer).into_iter().map(move |slot| (layer_tensor(layer, slot.suffix), slot.parts))
        });
        let outer = crate::arch::tensors::outer(ours);
        for (tensor, parts) in all.chain(outer.into_iter().map(|slot| (slot.suffix.into(), None))) {
            for part in 0..parts.unwrap_or(1) {
                let read = |model: &Model| match parts {
                    Some(_) => values(&model.part(&tensor, part).unwrap()),
                    None => values(&model.tensor(&tensor).unwrap()),
                };
                let (mut found, expected) = (read(&directory), read(&gguf));
                if tensor.ends_with("_norm.weight") {
                    found.iter_mut().for_each(|weight| *weight += ours.norm_offset);
                }
                // Converters reorder the rows of Llama's W_q and W_k for their rotary pairs.
                let permuted =
                    tensor.ends_with("attn_q.weight") || tensor.ends_with("attn_k.weight");
                if ours.arch == Arch::Gemma3 && tensor.ends_with("attn_q_norm.weight") {
                    // The scale of scores that GGUF has no key for is in these norms instead.
                    let ratio = ours.attention_scale / theirs.attention_scale;
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found * ratio - expected).abs() < 1e-6, "{name}: {tensor}");
                    }
                } else if ours.arch == Arch::Mixtral && permuted {
                    let sorted = |mut values: Vec<f32>| {
                        values.sort_by(f32::total_cmp);
                        values
                    };
                    assert_eq!(sorted(found), sorted(expected), "{name}: {tensor}");
                } else {
                    assert_eq!(found, expected, "{name}: {tensor} {part}");
                }
            }
        }
    }
}

/// What one element of each reordered tensor is, spelt out.
#[test]
fn turned_tensors_have_their_elements_in_place() {
    let raw = |model: &Model, name: &str| -> Vec<f32> {
        let directory = model.directory().unwrap();
        let (_, located) = directory.tensor(name).unwrap();
        let mut out = vec![0.0; located.entry.bytes.len() / 2];
        dequantize(Format::BF16, directory.data(located), &mut out);
        out
    };
    let model = fixture("deepseek-v3");
    let kv_b = raw(&model, "model.layers.1.self_attn.kv_b_proj.weight");
    let mla = model.config.mla.unwrap();
    for head in 0..model.config.q_heads {
        let first = head * (mla.nope + mla.value);
        let keys = values(&model.part("blk.1.attn_k_b.weight", head).unwrap());
        let found = values(&model.part("blk.1.attn_v_b.weight", head).unwrap());
        for latent in 0..mla.kv_lora {
            for key in 0..mla.nope {
                let expected = kv_b[(first + key) * mla.kv_lora + latent];
                assert_eq!(keys[latent * mla.nope + key], expected);
            }
            for value in 0..mla.value {
                let expected = kv_b[(first + mla.nope + value) * mla.kv_lora + latent];
                assert_eq!(found[value * mla.kv_lora + latent], expected);
            }
        }
    }
    let model = fixture("gpt-oss");
    let fused = raw(&model, "model.layers.2.mlp.experts.gate_up_proj");
    let down = raw(&model, "model.layers.2.mlp.experts.down_proj");
    let bias = raw(&model, "model.layers.2.mlp.experts.gate_up_proj_bias");
    let (hidden, ffn) = (model.config.hidden, model.config.moe.as_ref().unwrap().ffn);
    for expert in 0..7 {
        let read = |suffix: &str| values(&model.part(&layer_tensor(2, suffix), expert).unwrap());
        let (gate, up) = (read("ffn_gate_exps.weight"), read("ffn_up_exps.weight"));
        let (out, up_bias) = (read("ffn_down_exps.weight"), read("ffn_up_exps.bias"));
        for column in 0..ffn {
            for input in 0..hidden {
                let pair = ((expert * hidden + input) * ffn + column) * 2;
                assert_eq!(gate[column * hidden + input], fused[pair]);
                assert_eq!(up[column * hidden + input], fused[pair + 1]);
                let expected = down[(expert * ffn + column) * hidden + input];
                assert_eq!(out[input * ffn + column], expected);
            }
            assert_eq!(up_bias[column], bias[(expert * ffn + column) * 2 + 1]);
        }
    }
}

/// Any part of a matrix in FP8 that lies turned has the elements of the whole, scales included.
#[test]
fn fp8_stays_fp8_where_it_is_turned() {
    let (rows, of, first) = (400, 300, 100);
    let codes: Vec<u8> = (0..rows * of).map(|at| (at * 7919 % 127) as u8).collect();
    let grid: Vec<f32> = (0..4 * 3).map(|at| 0.5 + at as f32).collect();
    let scales: Vec<u8> = grid.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let mut plain = vec![0.0; codes.len()];
    dequantize(Format::F8E4M3, &codes, &mut plain);
    let tensor = Tensor {
        name: "turned",
        format: Format::F8E4M3,
        rows: of,
        cols: 250,
        data: &codes,
        order: Order::Strided { start: first * of, row: 1, col: of, of },
        scales: Some(ScaleGrid { format: Format::F32, data: &scales, cols: 3 }),
    };
    let expected = |row: usize, col: usize| {
        let down = first + col;
        plain[down * of + row] * grid[down / 128 * 3 + row / 128]
    };
    for (part_rows, part_cols) in
        [(0..of, 0..250), (130..260, 29..250), (7..8, 28..29), (256..300, 3..30)]
    {
        let cut = tensor.cut(part_rows.clone(), part_cols.clone());
        let weights = cut.weights();
        assert_eq!(weights.format, tensor.cut_format());
        assert_eq!(weights.format, Format::F8E4M3);
        let mut line = vec![0.0; weights.cols];
        for (row, at) in part_rows.zip(cut.rows.clone()) {
            weights.row(at, &mut line);
            let found = &line[cut.cols.clone()];
            let wanted: Vec<f32> = part_cols.clone().map(|col| expected(row, col)).collect();
            assert_eq!(found, wanted, "row {row}");
        }
        Matrix::pack(weights, cut.rows.clone(), cut.cols.clone(), Precision::Fast).unwrap();
    }
    let mut line = vec![0.0; 250];
    tensor.row(200, &mut line).unwrap();
    assert_eq!(line, (0..250).map(|col| expected(200, col)).collect::<Vec<_>>());

    let model = fixture("deepseek-v3-fp8");
    let layout = Layout::new(&model.shape(), LayoutSpec::new(Strategy::Helix, 1, 1)).unwrap();
    let load = RankWeights::load(&model, &layout, Rank(0), Precision::Fast, &|_| ()).unwrap();
    for layer in load.layers {
        let AttentionWeights::Latent(latent) = layer.attention else { panic!("no latents") };
        for matrix in latent.k_up.iter().chain(&latent.v_up) {
            assert_eq!(matrix.format(), Format::F8E4M3);
        }
    }
}

#[test]
fn matrices_are_quantised_at_load() {
    for name in ["gpt-oss-mxfp4", "deepseek-v3-fp8", "qwen3"] {
        let mut model = fixture(name);
        model.quantise_at_load(Format::Q4K);
        let quantised = |matrix: &Matrix| matrix.cols().is_multiple_of(32) && matrix.cols() > 0;
        for layout in Layout::candidates(&model.shape(), 2, Strategy::Helix, 16, QkvMode::Gather) {
            for rank in layout.all_ranks() {
                let load = RankWeights::load(&model, &layout, rank, Precision::Fast, &|_| ());
                for layer in load.unwrap().layers {
                    let router = match &layer.ffn {
                        FfnWeights::Moe(moe) => Some(Arc::as_ptr(&moe.router)),
                        FfnWeights::Dense(_) => None,
                    };
                    for matrix in layer.matrices().filter(|matrix| quantised(matrix)) {
                        let expected = match matrix.format() {
                            Format::Mxfp4 => Format::Mxfp4,
                            _ if Some(std::ptr::from_ref(matrix)) == router => Format::BF16,
                            // No row here is as long as a block of Q4_K.
                            _ => Format::Q8_0,
                        };
                        // A shard of 32 columns of a matrix whose rows are no blocks stays.
                        let float = !matrix.format().is_quantized();
                        assert!(float || matrix.format() == expected, "{name}: {matrix:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_rank_of_every_layout_holds_its_shards() {
    for arch in Arch::DENSE {
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
            degrees: Degrees { kvp: 2, tpa: 1, dp: 1, tpf: 2, ep: 1 },
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
        let ((a, a_ffn), (b, b_ffn)) = (plain(a), plain(b));
        for (a, b) in [(&a.q, &b.q), (&a.k, &b.k), (&a.v, &b.v)] {
            assert!(Arc::ptr_eq(a, b));
        }
        assert!(!Arc::ptr_eq(&a_ffn.gate, &b_ffn.gate));
    }
    spec.qkv = QkvMode::Gather;
    let ranks = load(spec);
    let [(a, _), (b, _)] = [0, 1].map(|rank| plain(&ranks[rank].layers[0]));
    assert!(!Arc::ptr_eq(&a.q, &b.q));
}

#[test]
fn weights_that_have_no_room_are_named() {
    let error = not_packed(OutOfMemory { bytes: 7 }.into(), "blk.1.ffn_up.weight", |row| row);
    let expected = "no memory for a rank's part of tensor \"blk.1.ffn_up.weight\": the system \
        refused 7 bytes of memory";
    assert!(error.to_string().contains(expected), "{error}");
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
