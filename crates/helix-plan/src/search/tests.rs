use super::*;
use crate::Formats;

fn query(ranks: Vec<usize>, context: usize) -> Query {
    Query {
        space: Space::new(ranks),
        batches: Batches::All,
        ttl_s: None,
        settings: Settings::new(context),
    }
}

/// Runs of placements come to threads in any order: backwards is one of them.
#[test]
fn what_is_found_does_not_depend_on_who_is_first() {
    for (name, context) in [("llama-3.1-405b", 1_000_000), ("deepseek-r1", 65536)] {
        let model = Model::named(name, Formats::default()).unwrap();
        let machine = Machine::named("gb200-nvl72").unwrap();
        let query = query((1..=16).collect(), context);
        let mut placements = query.space.placements(&model.shape);
        let find = |placements: &[Placement], threads| {
            of_placements(&model, &machine, &query, placements, threads).unwrap()
        };
        let one = find(&placements, 1);
        let three = find(&placements, 3);
        placements.reverse();
        let backwards = find(&placements, 1);
        for other in [three, backwards] {
            assert_eq!(other.by_strategy, one.by_strategy, "{name}");
            assert_eq!(other.lacking, one.lacking, "{name}");
            let counts = |of: &Found| (of.configs, of.too_large, of.largest);
            assert_eq!(counts(&other), counts(&one), "{name}");
        }
        let all = one.together(&Strategy::ALL);
        let mut reversed = Strategy::ALL;
        reversed.reverse();
        assert_eq!(one.together(&reversed), all, "{name}");
    }
}

/// Every batch, one by one, of every placement: whatever the budget, the answers are those.
#[test]
fn no_batch_gives_a_better_answer() {
    for (name, hardware, ranks, context) in [
        ("llama-3.1-8b", "hgx-h200", vec![1, 4, 6], 65536),
        ("deepseek-r1", "gb200-nvl72", vec![8, 12], 131_072),
        ("gpt-oss-120b", "epyc-9654-400g", vec![8], 131_072),
    ] {
        let model = Model::named(name, Formats::default()).unwrap();
        let machine = Machine::named(hardware).unwrap();
        for ttl_s in [None, Some(0.01), Some(0.03), Some(0.2)] {
            let ladder = Query { ttl_s, ..query(ranks.clone(), context) };
            let found = search(&model, &machine, &ladder).unwrap();
            let (_, most, _) = found.together(&Strategy::ALL).batch.best_y(0.0).unwrap();
            let past = (1.1 * most) as usize + 1;
            let every = Query { batches: Batches::Only((1..=past).collect()), ..ladder };
            let every = search(&model, &machine, &every).unwrap();
            for strategy in Strategy::ALL {
                let answers = |of: &Fronts| {
                    let most = |front: &Front<Point>| front.best_y(0.0).map(|(_, y, _)| y);
                    [&of.throughput, &of.users, &of.batch].map(most)
                };
                let (found, every) = (answers(found.of(strategy)), answers(every.of(strategy)));
                assert_eq!(found, every, "{name}, {strategy}, {ttl_s:?}");
            }
        }
    }
}
