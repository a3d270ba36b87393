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
            assert_eq!(other.nearest, one.nearest, "{name}");
            assert_eq!((other.configs, other.too_large), (one.configs, one.too_large), "{name}");
        }
        let all = one.together(&Strategy::ALL);
        let mut reversed = Strategy::ALL;
        reversed.reverse();
        assert_eq!(one.together(&reversed), all, "{name}");
    }
}
