use super::*;
use crate::Formats;
use helix_layout::{LayoutSpec, QkvMode};

#[test]
fn a_gathered_projection_is_read_once_in_a_group() {
    let model = Model::named("llama-3.1-405b", Formats::default()).unwrap();
    let weights = |qkv| {
        let spec = LayoutSpec { qkv, ..LayoutSpec::new(Strategy::Helix, 8, 8) };
        let share = Share::busiest(&model.shape, &spec);
        Costs { model: &model, share, choices: Choices::default() }.qkv(1.0).weight_bytes
    };
    assert_eq!(weights(QkvMode::Replicate), 8.0 * weights(QkvMode::Gather));
}

/// By hand: of 2 own tokens each goes to 8 of 64 ranks, 63 of 64 elsewhere, and back.
#[test]
fn dispatched_tokens_go_to_their_experts_ranks_alone() {
    use crate::{Load, Routing};
    use helix_layout::LayoutSpec;
    let model = Model::named("deepseek-r1", Formats::default()).unwrap();
    let spec = LayoutSpec::read("dp-ep dp=64", &model.shape).unwrap();
    let share = Share::busiest(&model.shape, &spec);
    let told = |tokens| {
        let choices = Choices { tokens, ..Choices::default() };
        let costs = Costs { model: &model, share, choices };
        let load = Load::decode(&model, &share, 128, 1000, Routing { experts: 3.0, rows: 16.0 });
        let (mut gathers, mut messages, mut shared) = (0.0, Vec::new(), 0.0);
        costs.visit(&load, &mut |line: Line, layers: f64, work: Work, sent: Option<Message>| {
            if line == Line::OutAllReduce && sent.is_some() {
                gathers += layers;
            }
            if line == Line::FfnAllReduce && layers == 58.0 {
                messages.extend(sent);
            }
            if line == Line::FfnUp && layers == 58.0 {
                shared = work.weight_bytes - 3.0 * 2.0 * 2048.0 * 7168.0 / 2.0;
            }
        });
        (gathers, messages, shared)
    };
    let (gathers, messages, shared) = told(Tokens::Gathered);
    assert_eq!((gathers, messages[0].collective), (61.0, Collective::AllReduce));
    assert_eq!(shared, 2.0 * 2048.0 / 64.0 * 7168.0 / 2.0);
    let (gathers, messages, shared) = told(Tokens::Dispatched);
    // The dense layers, and the rows for the LM head.
    assert_eq!(gathers, 4.0);
    assert_eq!((messages[0].collective, messages[0].calls), (Collective::AllToAll, 2.0));
    assert_eq!(messages[0].bytes, 2.0 * 8.0 * 63.0 / 64.0 * 7168.0 * 2.0);
    assert_eq!(shared, 2.0 * 2048.0 * 7168.0 / 2.0);
}

/// A token's keys lie in as many cache lines as they have dimensions, where it is appended and where
/// each sequence's attention begins; few tokens stay on one thread, and latents lie in a row.
#[test]
fn keys_lie_dimension_by_dimension() {
    use crate::{Load, Routing};
    let told = |name: &str, batch| {
        let model = Model::named(name, Formats::default()).unwrap();
        let share = Share::busiest(&model.shape, &LayoutSpec::new(Strategy::Helix, 1, 1));
        let costs = Costs { model: &model, share, choices: Choices::default() };
        let load = Load::decode(&model, &share, batch, 100, Routing { experts: 8.0, rows: 8.0 });
        let mut found = Vec::new();
        costs.visit(&load, &mut |line: Line, _: f64, work: Work, _: Option<Message>| {
            if [Line::RopeAppend, Line::Attention].contains(&line) {
                found.push((work.lines, work.launches, work.passes, work.alone));
            }
        });
        found
    };
    let heads = 8.0 * 128.0;
    assert_eq!(
        told("llama-3.1-8b", 3),
        [(3.0 * heads, 1.0, 1.0, 2.0), (3.0 * heads, 1.0, 0.0, 0.0)]
    );
    assert_eq!(told("llama-3.1-8b", 4)[0], (4.0 * heads, 1.0, 1.0, 0.0));
    assert_eq!(told("deepseek-r1", 4), [(0.0, 1.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0)]);
}
