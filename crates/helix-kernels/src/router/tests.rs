use super::*;
use crate::arch::lanes::dispatch_on;
use crate::formats::tests::noise;
use crate::isa::Isa;

/// The papers' formulas in f64, by sorting.
fn naive(logits: &[f32], bias: Option<&[f32]>, rule: &Routing) -> Vec<(usize, f64)> {
    let experts = logits.len();
    let e: Vec<f64> = logits.iter().map(|x| f64::from(*x).exp()).collect();
    let score: Vec<f64> = match rule.scoring {
        Scoring::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-f64::from(*x)).exp())).collect(),
        Scoring::SoftmaxAfterTopK => logits.iter().map(|x| f64::from(*x)).collect(),
        Scoring::Softmax => e.iter().map(|x| x / e.iter().sum::<f64>()).collect(),
    };
    let choice: Vec<f64> =
        score.iter().enumerate().map(|(i, s)| s + bias.map_or(0.0, |b| f64::from(b[i]))).collect();
    let descending = |values: &[f64], mut which: Vec<usize>| {
        which.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
        which
    };
    let mut allowed: Vec<usize> = (0..experts).collect();
    if let Some(groups) = rule.groups {
        let size = experts / groups.count;
        let total = |g: usize| {
            let mut own = choice[g * size..(g + 1) * size].to_vec();
            own.sort_by(|a, b| b.total_cmp(a));
            own.iter().take(if groups.by == GroupScore::Max { 1 } else { 2 }).sum::<f64>()
        };
        let totals: Vec<f64> = (0..groups.count).map(total).collect();
        let best = descending(&totals, (0..groups.count).collect());
        allowed.retain(|i| best[..groups.kept].contains(&(i / size)));
    }
    let mut chosen = descending(&choice, allowed);
    chosen.truncate(rule.top_k);
    chosen.sort();
    let weight = if rule.scoring == Scoring::SoftmaxAfterTopK { &e } else { &score };
    let sum: f64 = chosen.iter().map(|i| weight[*i]).sum();
    let divide = rule.normalise || rule.scoring == Scoring::SoftmaxAfterTopK;
    let weigh = |i| weight[i] / if divide { sum } else { 1.0 } * f64::from(rule.scale);
    chosen.into_iter().map(|i| (i, weigh(i))).collect()
}

fn routed(logits: &[f32], bias: Option<&[f32]>, rule: &Routing) -> Vec<Choice> {
    let mut out = vec![Choice::default(); rule.top_k];
    route(logits, bias, rule, &mut out);
    out
}

fn plain(scoring: Scoring, top_k: usize) -> Routing {
    Routing { scoring, top_k, normalise: false, scale: 1.0, groups: None }
}

/// Every combination of settings that can route `experts`.
fn rules(experts: usize) -> Vec<Routing> {
    let mut rules = Vec::new();
    for scoring in [Scoring::Softmax, Scoring::SoftmaxAfterTopK, Scoring::Sigmoid] {
        for top_k in [1, 2, 3, 4, 6, 8] {
            for (normalise, scale) in [(false, 1.0), (true, 2.5), (false, 16.0)] {
                let mut groups = vec![None];
                for by in [GroupScore::Max, GroupScore::SumOfTop2] {
                    for (count, kept) in [(1, 1), (2, 1), (4, 3), (8, 4)] {
                        groups.push(Some(Groups { count, kept, by }));
                    }
                }
                for groups in groups {
                    rules.push(Routing { scoring, top_k, normalise, scale, groups });
                }
            }
        }
    }
    rules.retain(|rule| rule.check(experts).is_ok());
    rules
}

fn compare(logits: &[f32], bias: Option<&[f32]>, rule: &Routing) {
    let (got, want) = (routed(logits, bias, rule), naive(logits, bias, rule));
    assert_eq!(got.len(), want.len());
    for (got, (expert, weight)) in got.iter().zip(&want) {
        assert_eq!(got.expert as usize, *expert, "{rule:?} {got:?} {want:?} of {logits:?}");
        let error = (f64::from(got.weight) - weight).abs();
        assert!(error <= 1e-6 * weight + 1e-12, "{rule:?}: {got:?}, not {weight}");
    }
}

#[test]
fn choices_and_weights_are_the_papers() {
    let mut seen = 0;
    for experts in [1, 3, 7, 8, 16, 24, 33, 64, 128, 256, 384] {
        for (i, rule) in rules(experts).iter().enumerate() {
            let seed = (experts * 1000 + i) as u64;
            let logits: Vec<f32> = noise(experts, seed).iter().map(|x| 4.0 * x).collect();
            let bias: Vec<f32> = noise(experts, seed + 7).iter().map(|x| 0.3 * x).collect();
            compare(&logits, None, rule);
            compare(&logits, Some(&bias), rule);
            seen += 1;
        }
    }
    assert!(seen > 2000, "{seen} rules");
}

#[test]
fn of_equals_the_lower_expert_and_group_are_chosen() {
    for experts in [8, 16, 64] {
        for rule in rules(experts) {
            for levels in [1, 2, 3] {
                // Few distinct logits, and a bias whose sums with their scores are exact.
                let logits: Vec<f32> =
                    noise(experts, 3).iter().map(|x| (x * levels as f32).round()).collect();
                compare(&logits, None, &rule);
                compare(&logits, Some(&vec![0.0; experts]), &rule);
            }
        }
    }
    let chosen = routed(&[1.0; 9], None, &plain(Scoring::Softmax, 4));
    assert_eq!(chosen.iter().map(|c| c.expert).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn the_bias_chooses_but_does_not_weigh() {
    let rule = plain(Scoring::Sigmoid, 1);
    let chosen = routed(&[2.0, 0.0, 1.0], Some(&[0.0, 1.0, 0.0]), &rule);
    assert_eq!(chosen, [Choice { expert: 1, weight: 0.5 }]);
}

#[test]
fn experts_of_dropped_groups_stay_out_even_if_the_rest_score_below_zero() {
    let groups = Some(Groups { count: 2, kept: 1, by: GroupScore::SumOfTop2 });
    let rule = Routing { groups, ..plain(Scoring::Sigmoid, 2) };
    let chosen = routed(&[0.0; 4], Some(&[-3.0, -3.0, -2.0, -2.5]), &rule);
    assert_eq!(chosen.iter().map(|c| c.expert).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn far_logits_keep_their_order() {
    // Their softmax is 0 or the same tiny number in f32.
    let logits = [0.0, -500.0, -400.0, -300.0];
    for scoring in [Scoring::Softmax, Scoring::SoftmaxAfterTopK, Scoring::Sigmoid] {
        let chosen = routed(&logits, None, &plain(scoring, 2));
        assert_eq!((chosen[0].expert, chosen[1].expert), (0, 3), "{scoring:?}");
        assert!(chosen.iter().all(|c| (0.0..=1.0).contains(&c.weight)), "{chosen:?}");
    }
}

#[test]
fn logits_that_are_not_numbers_show_and_do_not_break_the_choice() {
    for rule in rules(16) {
        for bad in [f32::NAN, -f32::NAN] {
            let mut logits = noise(16, 5);
            logits[11] = bad;
            let chosen = routed(&logits, None, &rule);
            assert!(chosen.is_sorted_by(|a, b| a.expert < b.expert), "{chosen:?}");
            assert!(chosen.iter().any(|c| c.weight.is_nan()), "{rule:?}: {chosen:?}");
        }
        for bad in [f32::INFINITY, f32::NEG_INFINITY] {
            let chosen = routed(&[bad; 16], None, &rule);
            assert!(chosen.is_sorted_by(|a, b| a.expert < b.expert), "{chosen:?}");
        }
    }
}

#[test]
fn every_instruction_set_scores_alike() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        for experts in [1, 15, 16, 17, 256] {
            let logits: Vec<f32> = noise(experts, 9).iter().map(|x| 20.0 * x).collect();
            let scores = |isa| {
                let mut scores = vec![f32::NAN; experts];
                dispatch_on(isa, Score { scores: &mut scores, logits: &logits, scoring });
                scores.iter().map(|s| s.to_bits()).collect::<Vec<_>>()
            };
            for isa in Isa::available() {
                assert_eq!(scores(isa), scores(Isa::Scalar), "{isa} {scoring:?} {experts}");
            }
        }
    }
}

#[test]
fn rules_that_cannot_route_are_refused() {
    let grouped = |top_k, count, kept| {
        let groups = Some(Groups { count, kept, by: GroupScore::Max });
        Routing { groups, ..plain(Scoring::Softmax, top_k) }
    };
    let check = |rule: Routing, experts| rule.check(experts).unwrap_err();
    assert_eq!(check(plain(Scoring::Softmax, 1), 0), RoutingError::Experts(0));
    assert_eq!(check(plain(Scoring::Softmax, 1), 1025), RoutingError::Experts(1025));
    assert_eq!(check(plain(Scoring::Softmax, 0), 8), RoutingError::TopK { top_k: 0, experts: 8 });
    assert_eq!(check(plain(Scoring::Softmax, 9), 8), RoutingError::TopK { top_k: 9, experts: 8 });
    assert_eq!(check(grouped(5, 4, 2), 8), RoutingError::TopK { top_k: 5, experts: 4 });
    for (count, kept) in [(0, 0), (3, 1), (4, 0), (4, 5), (16, 1)] {
        let error = RoutingError::Groups { experts: 8, count, kept };
        assert_eq!(check(grouped(1, count, kept), 8), error);
    }
    assert!(grouped(4, 4, 2).check(8).is_ok());
}
