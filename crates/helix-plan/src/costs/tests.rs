use super::*;
use crate::Formats;
use crate::load::Routing;
use helix_layout::{Degrees, LayoutSpec, ModelShape, QkvMode};

/// Figure 1's model: H = Q·Hsz = 16384, F = 65536, FP4 for weights and KV.
fn figure_1() -> Model {
    let shape = ModelShape {
        layers: 1,
        hidden: 16384,
        q_heads: 128,
        kv_heads: 8,
        head_dim: 128,
        value_dim: 128,
        ffn: 65536,
        vocab: 128_256,
        out_block: 1,
        ffn_block: 1,
        mla: None,
        moe: None,
    };
    Model {
        name: "figure 1".to_owned(),
        source: "arXiv 2507.07120, appendix A".to_owned(),
        shape,
        context: 1_000_000,
        window: None,
        tied_head: false,
        formats: Formats::default(),
    }
}

/// Microseconds to read one layer's KV and weights at 8000 GB/s, with B = 8 and S = 10^6.
fn roofline(tpa: usize, tpf: usize, kvp: usize, formulas: Formulas) -> (f64, f64) {
    let model = figure_1();
    // The figure's rows need not be layouts: TP 64 in the FFN beside KVP x TPA of 64, or 8 of 64.
    let degrees = Degrees { kvp, tpa, dp: 1, tpf, ep: 1 };
    let strategy = if tpa > 8 { Strategy::Tp } else { Strategy::Helix };
    // S/KVP without a remainder of blocks.
    let spec = LayoutSpec { degrees, kv_block: 1, ..LayoutSpec::new(strategy, kvp, tpa) };
    let share = Share::busiest(&model.shape, &spec);
    let costs = Costs { model: &model, share, choices: Choices { formulas, ..Default::default() } };
    let load = Load::decode(&model, &share, 8, 1_000_000, Routing { experts: 0.0, rows: 0.0 });
    let (mut kv, mut weights) = (0.0, 0.0);
    let mut add = |_: Line, layers: f64, work: Work, _: Option<Message>| {
        kv += layers * work.kv_bytes;
        weights += layers * work.weight_bytes;
    };
    costs.attention_phase(&load, &mut add);
    costs.ffn_phase(&load, &mut add);
    (kv / 8e6, weights / 8e6)
}

/// HELIX.md's section 5, all seven rows to the digits given.
#[test]
fn figure_1_is_the_papers() {
    let rows = [
        (1, 1, 1, 1024.0, 236.98),
        (8, 8, 1, 128.0, 29.62),
        (64, 64, 1, 128.0, 3.93),
        (8, 64, 8, 16.0, 7.60),
        (8, 8, 8, 16.0, 29.62),
        (8, 32, 4, 32.0, 10.75),
        (1, 64, 64, 16.0, 38.80),
    ];
    for (tpa, tpf, kvp, kv, weights) in rows {
        let found = roofline(tpa, tpf, kvp, Formulas::PaperAppendix);
        let name = format!("tpa={tpa} tpf={tpf} kvp={kvp}: {found:?}");
        assert!((found.0 - kv).abs() < 0.005, "{name} for {kv}");
        assert!((found.1 - weights).abs() < 0.005, "{name} for {weights}");
    }
}

/// By hand: W_O is 16384 x 16384 at half a byte, 134 MB; a 1/64 of it instead of a 1/8.
#[test]
fn the_output_projection_is_cut_over_all_ranks() {
    let appendix = roofline(8, 64, 8, Formulas::PaperAppendix).1;
    let corrected = roofline(8, 64, 8, Formulas::Corrected).1;
    let whole = 16384.0 * 16384.0 * 0.5 / 8e6;
    assert!((appendix - corrected - whole * (1.0 / 8.0 - 1.0 / 64.0)).abs() < 1e-9);
}

#[test]
fn a_gathered_projection_is_read_once_in_a_group() {
    let model = figure_1();
    let weights = |qkv| {
        let spec = LayoutSpec { qkv, ..LayoutSpec::new(Strategy::Helix, 8, 8) };
        let share = Share::busiest(&model.shape, &spec);
        Costs { model: &model, share, choices: Choices::default() }.qkv(1.0).weight_bytes
    };
    assert_eq!(weights(QkvMode::Replicate), 8.0 * weights(QkvMode::Gather));
}
