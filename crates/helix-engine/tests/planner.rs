//! The planner predicts what the engine counts, exactly: bytes of weights and of keys and values
//! read, bytes sent, collective calls, on every rank, for dense models, experts, latents and sliding
//! windows, over all strategies, whole and in pieces and slices.

mod common;

use common::{dense_specs, engine, fixture, layouts, open, precise};
use helix_comm::{Collective, Traffic};
use helix_engine::{EngineOptions, FfnReduce, HopB, MlaUp, RankCounters};
use helix_kernels::Format;
use helix_kernels::kv::KvType;
use helix_layout::{Layout, QkvMode, Rank};
use helix_model::synthetic::{Experts, Spec};
use helix_model::{Arch, Model};
use helix_plan::costs::{self, Choices, Costs, Message, Work};
use helix_plan::{Formats, Line, Load, Part, Routing, Share};
use helix_scheduler::{Step, Wanted};
use std::sync::Arc;

/// With experts, with latents, with both, and with latents that queries are not compressed to.
fn others() -> Vec<Spec> {
    let straight = Spec::tiny(Arch::DeepSeek);
    let mla = straight.mla.map(|mla| helix_model::config::Mla { q_lora: None, ..mla });
    let experts = straight.experts.map(|experts| Experts { count: 7, ffn: 40, ..experts });
    vec![
        Spec { layers: 3, ..Spec::tiny(Arch::Mixtral) },
        Spec::tiny(Arch::Qwen3Moe),
        Spec::tiny(Arch::DeepSeek),
        Spec { mla, experts, q_heads: 7, ..straight },
    ]
}

/// How a model's matrices are held.
#[derive(Clone, Copy)]
struct Held {
    plain: Format,
    down: Format,
    router: Format,
    head: Format,
}

impl Held {
    fn of(spec: &Spec) -> Held {
        let Spec { format, down_format, embedding_format, .. } = *spec;
        Held { plain: format, down: down_format, router: Format::F32, head: embedding_format }
    }

    fn all(format: Format) -> Held {
        Held { plain: format, down: format, router: format, head: format }
    }
}

/// The planner's view of the model, with the engine's formats.
fn planned(model: &Model, held: Held, kv_type: KvType) -> helix_plan::Model {
    let (kv, kv_scales) = match kv_type {
        KvType::Q8_0 => ("int8", Some((2.0, 32))),
        other => (other.name(), None),
    };
    let format = |name: &str| name.parse::<helix_plan::Format>().expect("a format");
    let of = |of: Format| format(of.name());
    let config = &model.config;
    let windowed = (0..config.layers).filter(|&layer| config.window(layer).is_some()).count();
    helix_plan::Model {
        name: config.name.clone(),
        source: "a test".to_owned(),
        shape: model.shape(),
        context: config.context,
        window: config
            .window
            .filter(|_| windowed > 0)
            .map(|positions| helix_plan::Window { layers: windowed, positions }),
        tied_head: config.tied_head,
        formats: Formats {
            kv_scales,
            message: size_of::<f32>() as f64,
            ..Formats::uniform(of(held.plain), format(kv))
                .with(&[Part::FfnDown, Part::SharedDown, Part::ExpertDown], of(held.down))
                .with(&[Part::Router], of(held.router))
                .with(&[Part::Head], of(held.head))
        },
    }
}

/// Three runs, then a decode without logits; `tokens` in the longest run.
fn steps(tokens: u32) -> [Step; 2] {
    let mut first = Step::default();
    first.push(1, 0, &[1, 2, 3, 4], Wanted::All);
    first.push(0, 0, &(5..5 + tokens).collect::<Vec<_>>(), Wanted::Last);
    first.push(2, 0, &[14], Wanted::None);
    let mut second = Step::default();
    second.push(0, tokens as usize, &[15], Wanted::None);
    [first, second]
}

/// Runs of one to `tokens` tokens, first and later ones, of sequences of all lengths.
fn ragged(tokens: u32) -> [Step; 3] {
    let [first, decode] = steps(tokens);
    let mut second = Step::default();
    second.push(2, 1, &(20..20 + tokens).collect::<Vec<_>>(), Wanted::Last);
    second.push(0, tokens as usize + 1, &[16, 17, 18], Wanted::All);
    second.push(1, 4, &[19], Wanted::Last);
    [first, decode, second]
}

/// Pieces and slices: none, some, and more than there is to cut.
const CUTS: [(HopB, usize); 3] = [(HopB::Off, 1), (HopB::Pieces(3), 2), (HopB::Pieces(64), 16)];

/// What a rank reads and sends, as the planner adds it up.
#[derive(Debug, Default, PartialEq)]
struct Planned {
    weight_bytes: f64,
    kv_bytes: f64,
    world: Traffic,
    kvp: Traffic,
    experts: [Traffic; 2],
}

/// A rank of a layout of a model, and how it is run.
struct Case<'a> {
    model: &'a helix_plan::Model,
    layout: &'a Layout,
    options: &'a EngineOptions,
}

impl Case<'_> {
    fn choices(&self) -> Choices {
        Choices {
            mla_up: match self.options.mla_up {
                MlaUp::Before => costs::MlaUp::Before,
                MlaUp::After | MlaUp::Auto => costs::MlaUp::After,
            },
            ffn_reduce: match self.options.ffn_reduce {
                FfnReduce::World => costs::FfnReduce::World,
                FfnReduce::Grid => costs::FfnReduce::Grid,
            },
            pieces: match self.options.hopb {
                HopB::Pieces(pieces) => pieces,
                HopB::Off | HopB::Auto => 1,
            },
            slices: self.options.reduce_slices,
            ..Choices::default()
        }
    }

    /// Adds a step of `rank`, where so many of its experts have tokens in each layer.
    fn add(&self, planned: &mut Planned, rank: usize, step: &Step, experts: f64) {
        let share = Share::of(self.layout, Rank(rank));
        let routing = Routing { experts, rows: experts };
        let choices = self.choices();
        let load = Load::of(self.model, self.layout, Rank(rank), step, routing, choices.pieces);
        let costs = Costs { model: self.model, share, choices };
        let mut stage = 0;
        costs.visit(&load, &mut |line: Line, layers: f64, work: Work, message: Option<Message>| {
            planned.weight_bytes += layers * work.weight_bytes;
            planned.kv_bytes += layers * work.kv_bytes;
            let Some(message) = message else { return };
            let grid = self.options.ffn_reduce == FfnReduce::Grid
                && message.ranks < share.ranks()
                && line == Line::FfnAllReduce;
            let at = Rank(rank);
            let (traffic, members) = match line {
                Line::QkvGather | Line::AllToAll => {
                    (&mut planned.kvp, self.layout.kvp_group(at).collect::<Vec<_>>())
                }
                Line::FfnAllReduce if grid => {
                    stage += 1;
                    let members = match stage % 2 {
                        1 => self.layout.expert_group(at).map(|rank| rank.0).collect(),
                        _ => self.layout.ep_peers(at).map(|rank| rank.0).collect(),
                    };
                    (&mut planned.experts[(stage - 1) % 2], members)
                }
                _ => (&mut planned.world, (0..self.layout.ranks()).collect()),
            };
            assert_eq!(message.ranks, members.len(), "{}, {line:?}", self.layout);
            if let [first, second, ..] = members[..] {
                assert_eq!(message.stride, second - first, "{}, {line:?}", self.layout);
            }
            let kind = match message.collective {
                costs::Collective::AllToAll => Collective::AllToAll,
                costs::Collective::AllGather => Collective::AllGather,
                costs::Collective::AllReduce => Collective::AllReduce,
                costs::Collective::Gather => Collective::Gather,
                costs::Collective::Send => unreachable!("the engine has one stage"),
            };
            // Whoever gathers hands nothing over.
            let root = kind == Collective::Gather && rank == 0;
            let bytes = if root { 0.0 } else { message.bytes };
            let calls = layers * message.calls;
            traffic.calls[kind as usize] += calls as u64;
            // A piece may have a part of a value on average; together they have whole ones.
            traffic.bytes[kind as usize] += (calls * bytes).round() as u64;
        });
    }
}

fn check(counted: &RankCounters, planned: &Planned, place: &str) {
    assert_eq!(counted.weight_bytes as f64, planned.weight_bytes, "{place}: weights read");
    assert_eq!(counted.kv_bytes_read as f64, planned.kv_bytes, "{place}: KV read");
    assert_eq!(counted.world, planned.world, "{place}: over all ranks");
    assert_eq!(counted.kvp, planned.kvp, "{place}: in the KVP group");
    assert_eq!(counted.experts, planned.experts, "{place}: in the stages of the FFN");
}

/// Runs `steps` and compares what every rank counts; all of a rank's experts have tokens in each.
fn compare(
    model: &Arc<Model>,
    held: Held,
    layout: &Layout,
    options: EngineOptions,
    steps: &[Step],
) {
    let mut engine = engine(model, *layout, options);
    for step in steps {
        engine.step(step).expect("a step runs");
    }
    let planned_model = planned(model, held, options.kv_type);
    let case = Case { model: &planned_model, layout, options: &options };
    for (rank, counted) in engine.counters().expect("counters").iter().enumerate() {
        let mut planned = Planned::default();
        let experts = layout.experts(Rank(rank)).len() as f64;
        steps.iter().for_each(|step| case.add(&mut planned, rank, step, experts));
        let EngineOptions { mla_up, ffn_reduce, hopb, reduce_slices, .. } = options;
        let choices = format!("{mla_up:?}, {ffn_reduce:?}, {hopb:?}, {reduce_slices} slices");
        check(
            counted,
            &planned,
            &format!("{}, {layout}, {choices}, rank {rank}", model.config.name),
        );
    }
}

/// Every cut of every layout of up to `ranks` ranks, each with one of the types of keys and values.
fn options(
    model: &Model,
    ranks: usize,
    kv_blocks: &[usize],
) -> impl Iterator<Item = (Layout, EngineOptions)> {
    let all = layouts(&model.shape(), ranks, kv_blocks);
    let with_cuts = |layout| CUTS.map(|cuts| (layout, cuts));
    let all = all.into_iter().flat_map(with_cuts).zip(KvType::ALL.into_iter().cycle());
    all.map(|((layout, (hopb, reduce_slices)), kv_type)| {
        let options = EngineOptions { kv_type, max_sequences: 3, hopb, reduce_slices, ..precise() };
        (layout, options)
    })
}

#[test]
fn dense_models_on_every_layout() {
    for spec in dense_specs() {
        let model = open(&spec);
        for (layout, options) in options(&model, 5, &[1, 16]) {
            compare(&model, Held::of(&spec), &layout, options, &ragged(9));
        }
    }
}

/// Every way to run a model with experts or latents.
fn choices(mla: bool) -> Vec<(MlaUp, FfnReduce)> {
    let ups: &[MlaUp] = if mla { &[MlaUp::Before, MlaUp::After] } else { &[MlaUp::Auto] };
    let reduces = [FfnReduce::World, FfnReduce::Grid];
    ups.iter().flat_map(|&up| reduces.map(|reduce| (up, reduce))).collect()
}

/// A step in which every expert has tokens, so that what is read does not depend on the routing.
#[test]
fn experts_and_latents_on_every_layout() {
    for spec in others() {
        let model = open(&spec);
        for (layout, options) in options(&model, 4, &[3]) {
            for (mla_up, ffn_reduce) in choices(spec.mla.is_some()) {
                let options = EngineOptions { mla_up, ffn_reduce, ..options };
                let [step, ..] = steps(55);
                compare(&model, Held::of(&spec), &layout, options, &[step]);
            }
        }
    }
}

/// Layers that see a window beside layers that see everything, in steps that the windows pass by.
#[test]
fn windows_on_every_layout() {
    for (name, windowed) in [("mistral", 2), ("gemma3", 4), ("gpt-oss", 2)] {
        let model = fixture(name);
        let window = planned(&model, Held::all(Format::BF16), KvType::F32).window;
        assert_eq!(window.expect(name).layers, windowed, "{name}");
        for (layout, options) in options(&model, 4, &[1, 5]) {
            let [first, _, second] = ragged(45);
            // Without the decode, in which some of gpt-oss's experts have no tokens.
            let mut second = second;
            second.runs[1].start -= 1;
            compare(&model, Held::all(Format::BF16), &layout, options, &[first, second]);
        }
    }
}

/// What the tests above rest on: the layouts have both ways to project, and more pieces than one
/// are made of what they run.
#[test]
fn the_layouts_have_pieces_and_gather() {
    let spec = &dense_specs()[0];
    let model = open(spec);
    let mut calls = [0, 0];
    for (layout, options) in options(&model, 4, &[1]) {
        if layout.degrees().kvp == 1 {
            continue;
        }
        let planned_model = planned(&model, Held::of(spec), options.kv_type);
        let case = Case { model: &planned_model, layout: &layout, options: &options };
        let mut planned = Planned::default();
        ragged(9).iter().for_each(|step| case.add(&mut planned, 0, step, 0.0));
        let (exchanges, _) = planned.kvp.of(Collective::AllToAll);
        let whole = 3 * spec.layers as u64;
        assert_eq!(exchanges > whole, options.hopb != HopB::Off, "{layout}: {exchanges}");
        let (gathers, _) = planned.kvp.of(Collective::AllGather);
        assert_eq!(gathers > 0, layout.qkv() == QkvMode::Gather, "{layout}");
        calls[usize::from(gathers > 0)] += 1;
    }
    assert!(calls.iter().all(|&count| count > 0), "{calls:?}");
}

/// One token: each rank reads a whole number of experts, those that it goes to in all.
#[test]
fn a_token_reads_whole_experts_beside_what_is_planned() {
    for spec in others() {
        let Some(experts) = spec.experts else { continue };
        let model = open(&spec);
        let moe_layers = spec.layers - experts.dense_layers;
        for layout in layouts(&model.shape(), 4, &[3]) {
            let options = precise();
            let mut engine = engine(&model, layout, options);
            let mut step = Step::default();
            step.push(0, 0, &[17], Wanted::None);
            engine.step(&step).expect("a step runs");
            let planned_model = planned(&model, Held::of(&spec), options.kv_type);
            let case = Case { model: &planned_model, layout: &layout, options: &options };
            let mut of_slices = vec![0.0; layout.degrees().tpf];
            for (rank, counted) in engine.counters().expect("counters").iter().enumerate() {
                let weights = |experts| {
                    let mut planned = Planned::default();
                    case.add(&mut planned, rank, &step, experts);
                    planned.weight_bytes
                };
                let (none, one) = (weights(0.0), weights(1.0) - weights(0.0));
                let read = counted.weight_bytes as f64 - none;
                let Some(coord) = layout.ffn(Rank(rank)).filter(|_| one > 0.0) else {
                    assert_eq!(read, 0.0, "{}, {layout}, rank {rank}", spec.name);
                    continue;
                };
                let whole = read / one * moe_layers as f64;
                assert_eq!(whole.fract(), 0.0, "{}, {layout}, rank {rank}", spec.name);
                of_slices[coord.tpf] += whole;
            }
            let expected = (experts.top_k * moe_layers) as f64;
            let cut = of_slices.iter().filter(|&&experts| experts > 0.0);
            for found in cut {
                assert_eq!(*found, expected, "{}, {layout}", spec.name);
            }
        }
    }
}
