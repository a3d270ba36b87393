//! The planner predicts what the engine counts, exactly: bytes of weights and of keys and values
//! read, bytes sent, collective calls, on every rank, for dense models, experts and latents, over
//! all strategies.

mod common;

use common::{dense_specs, engine, layouts, open, precise};
use helix_comm::{Collective, Traffic};
use helix_engine::{EngineOptions, FfnReduce, MlaUp, RankCounters};
use helix_kernels::Format;
use helix_kernels::kv::KvType;
use helix_layout::{Layout, Rank};
use helix_model::synthetic::{Experts, Spec};
use helix_model::{Arch, Model};
use helix_plan::costs::{self, Choices, Costs, Message, Work};
use helix_plan::{Formats, Line, Load, Routing, Share};
use helix_scheduler::{Step, Wanted};

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

/// The planner's view of the model, with the engine's formats.
fn planned(spec: &Spec, model: &Model, kv_type: KvType) -> helix_plan::Model {
    let bytes = |format: Format| format.block_bytes() as f64 / format.block_len() as f64;
    let (plain, down) = (bytes(spec.format), bytes(spec.down_format));
    let (kv, kv_scales) = match kv_type {
        KvType::Q8_0 => ("int8", Some((2.0, 32))),
        other => (other.name(), None),
    };
    let format = |name: &str| name.parse::<helix_plan::Format>().expect("a format");
    helix_plan::Model {
        name: spec.name.clone(),
        source: "synthetic".to_owned(),
        shape: model.shape(),
        context: spec.context,
        window: None,
        tied_head: spec.tied_head,
        formats: Formats {
            qkv: plain,
            out: plain,
            ffn: [plain, down],
            shared: [plain, down],
            experts: [plain, down],
            router: bytes(Format::F32),
            head: bytes(spec.embedding_format),
            kv_scales,
            message: size_of::<f32>() as f64,
            ..Formats::uniform(format("f32"), format(kv))
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
            ..Choices::default()
        }
    }

    /// Adds a step of `rank`, where so many of its experts have tokens in each layer.
    fn add(&self, planned: &mut Planned, rank: usize, step: &Step, experts: f64) {
        let share = Share::of(self.layout, Rank(rank));
        let routing = Routing { experts, rows: experts };
        let load = Load::of(self.model, self.layout, Rank(rank), step, routing);
        let costs = Costs { model: self.model, share, choices: self.choices() };
        let mut stage = 0;
        costs.visit(&load, &mut |line: Line, layers: f64, work: Work, message: Option<Message>| {
            planned.weight_bytes += layers * work.weight_bytes;
            planned.kv_bytes += layers * work.kv_bytes;
            let Some(message) = message else { return };
            let grid = self.options.ffn_reduce == FfnReduce::Grid
                && message.ranks < share.ranks()
                && line == Line::FfnAllReduce;
            let traffic = match line {
                Line::QkvGather | Line::AllToAll => &mut planned.kvp,
                Line::FfnAllReduce if grid => {
                    stage += 1;
                    &mut planned.experts[(stage - 1) % 2]
                }
                _ => &mut planned.world,
            };
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
            traffic.bytes[kind as usize] += (calls * bytes) as u64;
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

#[test]
fn dense_models_on_every_layout() {
    for spec in dense_specs() {
        let model = open(&spec);
        let all = layouts(&model.shape(), 5, &[1, 16]);
        for (index, layout) in all.iter().enumerate() {
            let kv_type = KvType::ALL[index % 4];
            let options = EngineOptions { kv_type, max_sequences: 3, ..precise() };
            let mut engine = engine(&model, *layout, options);
            let steps = steps(9);
            for step in &steps {
                engine.step(step).expect("a step runs");
            }
            let planned_model = planned(&spec, &model, kv_type);
            let case = Case { model: &planned_model, layout, options: &options };
            for (rank, counted) in engine.counters().expect("counters").iter().enumerate() {
                let mut planned = Planned::default();
                steps.iter().for_each(|step| case.add(&mut planned, rank, step, 0.0));
                check(counted, &planned, &format!("{}, {layout}, rank {rank}", spec.name));
            }
        }
    }
}

/// Every way to run a model with experts or latents.
fn choices(spec: &Spec) -> Vec<(MlaUp, FfnReduce)> {
    let ups: &[MlaUp] =
        if spec.mla.is_some() { &[MlaUp::Before, MlaUp::After] } else { &[MlaUp::Auto] };
    let reduces = [FfnReduce::World, FfnReduce::Grid];
    ups.iter().flat_map(|&up| reduces.map(|reduce| (up, reduce))).collect()
}

/// A step in which every expert has tokens, so that what is read does not depend on the routing.
#[test]
fn experts_and_latents_on_every_layout() {
    for spec in others() {
        let model = open(&spec);
        for (index, layout) in layouts(&model.shape(), 4, &[3]).iter().enumerate() {
            for (mla_up, ffn_reduce) in choices(&spec) {
                let kv_type = KvType::ALL[index % 4];
                let options =
                    EngineOptions { kv_type, max_sequences: 3, mla_up, ffn_reduce, ..precise() };
                let mut engine = engine(&model, *layout, options);
                let [step, _] = steps(55);
                engine.step(&step).expect("a step runs");
                let planned_model = planned(&spec, &model, kv_type);
                let case = Case { model: &planned_model, layout, options: &options };
                for (rank, counted) in engine.counters().expect("counters").iter().enumerate() {
                    let mut planned = Planned::default();
                    let experts = layout.experts(Rank(rank)).len() as f64;
                    case.add(&mut planned, rank, &step, experts);
                    let place =
                        format!("{}, {layout}, {mla_up:?}, {ffn_reduce:?}, rank {rank}", spec.name);
                    check(counted, &planned, &place);
                }
            }
        }
    }
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
            let planned_model = planned(&spec, &model, options.kv_type);
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
