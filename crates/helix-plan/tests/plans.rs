//! Plans as a whole: against bytes counted another way, against each other, and by brute force.

use helix_layout::{Layout, QkvMode, Reads, Strategy};
use helix_plan::costs::Choices;
use helix_plan::{
    Batches, Exchange, Fixed, Formats, Front, Machine, Model, Placement, PlanError, Point, Query,
    Report, Settings, Space, predict, search,
};

const CONTEXT: usize = 65536;

fn model(name: &str) -> Model {
    Model::named(name, Formats::default()).expect("a preset")
}

fn gb200() -> Machine {
    Machine::named("gb200-nvl72").expect("a preset")
}

fn placement(model: &Model, layout: &str, pp: usize, hopb: bool) -> Placement {
    let spec = helix_layout::LayoutSpec::read(layout, &model.shape).expect("a layout");
    Placement { spec, pp, choices: Choices::default(), hopb }
}

fn ttl(model: &Model, machine: &Machine, layout: &str, pp: usize, batch: usize) -> f64 {
    let placement = placement(model, layout, pp, false);
    predict(model, machine, placement, batch, &Settings::new(CONTEXT)).expect("it fits").0.ttl_s
}

/// What the busiest rank holds, by `Reads`, which counts elements its own way.
#[test]
fn held_bytes_are_those_of_the_layouts_shards() {
    for name in ["llama-3.1-8b", "deepseek-r1", "qwen3-235b-a22b"] {
        let model = model(name);
        for ranks in [8, 16, 64] {
            for strategy in Strategy::ALL {
                for layout in
                    Layout::candidates(&model.shape, ranks, strategy, 16, QkvMode::Replicate)
                {
                    let (spec, choices) = (layout.spec(), Choices::default());
                    let placement = Placement { spec, pp: 1, choices, hopb: false };
                    if placement.check(&model.shape).is_err() {
                        continue; // more groups than experts
                    }
                    let held = match predict(
                        &model,
                        &gb200(),
                        placement,
                        layout.degrees().dp,
                        &Settings::new(CONTEXT),
                    ) {
                        Ok((_, held)) => held,
                        Err(PlanError::Memory(shortage)) => shortage.held,
                        Err(error) => panic!("{layout}: {error}"),
                    };
                    let counted = layout.all_ranks().map(|rank| {
                        let reads = Reads::held(&layout, rank, CONTEXT);
                        (reads.layer_weights() + 2 * reads.head, reads.kv)
                    });
                    let (weights, kv) = counted
                        .reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))
                        .expect("a layout has a rank");
                    // FP4: two elements in a byte. Kernels read whole granules of rows: up to 32
                    // for 24 columns of an expert.
                    let off = held.weight_bytes / (weights as f64 / 2.0) - 1.0;
                    let cols = layout.expert_cols(helix_layout::Rank(0)).len();
                    let most = if cols.is_multiple_of(16) { 0.01 } else { 0.34 };
                    assert!((0.0..most).contains(&off), "{name}, {layout}: {off}");
                    assert_eq!(held.kv_bytes, kv as f64 / 2.0, "{name}, {layout}");
                }
            }
        }
    }
}

/// One rank is a roofline: its bytes at the machine's bandwidth are most of the time, and the rest
/// is operations.
#[test]
fn one_rank_reads_at_the_machines_bandwidth() {
    let (model, machine) = (model("llama-3.1-8b"), gb200());
    let seconds = ttl(&model, &machine, "helix", 1, 1);
    let layout = Layout::new(&model.shape, "helix".parse().unwrap()).unwrap();
    let reads = Reads::of(&layout, helix_layout::Rank(0), CONTEXT);
    let bytes = (reads.layer_weights() + reads.head + reads.kv) as f64 / 2.0;
    let profile = machine.profile();
    let rate = profile.memory.bandwidth_gb_s.value * 1e9 * profile.memory.reachable.value;
    let operations = 32.0 * 9.0 * profile.overhead.operation_us.value * 1e-6;
    let rest = seconds - bytes / rate;
    assert!(rest > 0.7 * operations && rest < 1.3 * operations, "{rest} s beside {operations}");
}

#[test]
fn more_users_or_positions_never_take_less() {
    let machine = gb200();
    for (name, layout) in [
        ("llama-3.1-405b", "helix kvp=8 tpa=8"),
        ("llama-3.1-405b", "tp tpa=16"),
        ("deepseek-r1", "helix kvp=16 tpf=4 ep=4 qkv=gather"),
        ("deepseek-r1", "dp-ep dp=16"),
        ("gpt-oss-120b", "medha kvp=2 tpa=4"),
    ] {
        let model = model(name);
        let mut last = 0.0;
        for batch in [1, 2, 3, 5, 16, 17, 64] {
            let seconds = ttl(&model, &machine, layout, 1, batch);
            assert!(seconds >= last, "{name}, {layout}, {batch}: {seconds} after {last}");
            last = seconds;
        }
        let at = |context| {
            let placement = placement(&model, layout, 1, false);
            predict(&model, &machine, placement, 2, &Settings::new(context)).unwrap().0.ttl_s
        };
        assert!(at(1000) <= at(10_000) && at(10_000) < at(1_000_000), "{name}, {layout}");
    }
}

/// Stages share the memory and not the time: a token goes through all of them.
#[test]
fn stages_add_memory_and_no_speed() {
    let (model, machine) = (model("llama-3.1-8b"), gb200());
    let one = ttl(&model, &machine, "tp tpa=2", 1, 4);
    let four = ttl(&model, &machine, "tp tpa=2", 4, 16);
    assert!(four > one && four < 1.1 * one, "{four} over 4 stages, {one} over 1");
    let held = |pp, batch| {
        let placement = placement(&model, "tp tpa=2", pp, false);
        predict(&model, &machine, placement, batch, &Settings::new(CONTEXT)).unwrap().1
    };
    let (whole, stage) = (held(1, 16), held(4, 16));
    assert_eq!(stage.kv_bytes * 4.0, whole.kv_bytes);
    assert!(stage.weight_bytes < 0.4 * whole.weight_bytes);
}

#[test]
fn hopb_is_never_slower_than_one_message_nor_that_than_lockstep() {
    let (model, machine) = (model("llama-3.1-405b"), gb200());
    let placement = |hopb| placement(&model, "helix kvp=8 tpa=8", 1, hopb);
    for batch in [1, 2, 7, 32] {
        let seconds = |hopb, unhidden| {
            let settings = Settings { unhidden, ..Settings::new(CONTEXT) };
            predict(&model, &machine, placement(hopb), batch, &settings).unwrap().0.ttl_s
        };
        let on = seconds(true, Exchange::Whole);
        let whole = seconds(false, Exchange::Whole);
        let lockstep = seconds(false, Exchange::Lockstep);
        assert!(on <= whole && whole <= lockstep, "{batch}: {on}, {whole}, {lockstep}");
        assert_eq!(batch == 1, on == lockstep, "{batch}: {on}, {lockstep}");
    }
}

/// Every placement at every batch, one by one.
#[test]
fn the_search_finds_what_brute_force_finds() {
    let (model, machine) = (model("mixtral-8x22b"), gb200());
    let batches = vec![1, 3, 8, 40, 200];
    let space = Space::new(vec![1, 4, 6]);
    let settings = Settings::new(CONTEXT);
    let mut fronts: [Front<usize>; 2] = Default::default();
    let (mut fit, mut lack) = (0, 0);
    for (index, placement) in space.placements(&model.shape).into_iter().enumerate() {
        for &batch in &batches {
            match predict(&model, &machine, placement, batch, &settings) {
                Ok((found, _)) => {
                    fit += 1;
                    let users = batch as f64 / placement.ranks() as f64;
                    fronts[0].add(found.tokens_per_s_user(), found.tokens_per_s_rank, index);
                    fronts[1].add(found.tokens_per_s_user(), users, index);
                }
                Err(PlanError::Memory(_)) => lack += 1,
                Err(error) => panic!("{placement}: {error}"),
            }
        }
    }
    assert!(fit > 100 && lack > 0, "{fit} fit, {lack} do not");
    let query = Query { space, batches: Batches::Only(batches), ttl_s: None, settings };
    let found = search(&model, &machine, &query).unwrap();
    assert_eq!(found.configs, fit);
    let all = found.together(&Strategy::ALL);
    let coordinates = |front: &Front<Point>| front.points().map(|(x, y, _)| (x, y)).collect();
    let found: [Vec<(f64, f64)>; 2] = [coordinates(&all.throughput), coordinates(&all.users)];
    let expected = fronts.map(|front| front.points().map(|(x, y, _)| (x, y)).collect::<Vec<_>>());
    assert_eq!(found, expected);
}

#[test]
fn a_report_is_one_serialisable_document() {
    let (model, machine) = (model("llama-3.1-8b"), gb200());
    let fixed = Fixed { kvp: Some(2), ..Fixed::default() };
    let query = Query {
        space: Space { fixed, ..Space::new(vec![2, 4]) },
        batches: Batches::All,
        ttl_s: Some(0.02),
        settings: Settings::new(CONTEXT),
    };
    let report = Report::new(&model, &machine, &query).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    for row in json["front"].as_array().unwrap() {
        assert_eq!(row["kvp"], 2);
        for field in ["strategy", "tpa", "tpf", "ep", "pp", "dp", "batch", "ttl_ms"] {
            assert!(!row[field].is_null(), "{field} of {row}");
        }
    }
    let questions: Vec<&str> = report.answers.iter().map(|a| a.question.as_str()).collect();
    assert_eq!(questions[2], "most users within 20 ms per token");
}
