//! Every command on Hugging Face directories of every architecture, and the choices that only some
//! of them have.

mod common;

use common::directories::names;
use common::{array, file, fixture, json, number, run, run_with, stderr, stdout};
use safetensors::SafeTensors;
use serde_json::Value;

fn sum(ranks: &[Value], of: impl Fn(&Value) -> f64) -> f64 {
    ranks.iter().map(of).sum()
}

#[test]
fn logits_are_those_of_transformers() {
    for name in names() {
        let model = fixture(&name);
        let answers = std::fs::read(format!("{model}.safetensors")).unwrap();
        let answers = SafeTensors::deserialize(&answers).unwrap();
        let words = |tensors: &SafeTensors<'_>, name: &str| -> Vec<u32> {
            let data = tensors.tensor(name).unwrap().data();
            data.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
        };
        let tokens: Vec<String> = words(&answers, "tokens.0").iter().map(u32::to_string).collect();
        let out = file(&format!("{name}.logits"), "");
        let tokens = tokens.join(",");
        let line = format!("logits {model} --tokens {tokens} --out {} --precise", out.display());
        json(&format!("{line} --kvp 2 --kv-block 1 -t 1"));
        let found = std::fs::read(out).unwrap();
        let found = SafeTensors::deserialize(&found).unwrap();
        let (found, expected) = (words(&found, "logits"), words(&answers, "logits.0"));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (index, (&a, &b)) in found.iter().zip(&expected).enumerate() {
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            assert!((a - b).abs() < 1e-3, "{name}: logit {index} is {a}, not {b}");
        }
    }
}

#[test]
fn texts_chats_and_measurements() {
    let text = file("times.txt", "It was the best of times, it was the worst of times. ".repeat(4));
    for name in names() {
        let model = fixture(&name);
        let made = json(&format!("run {model} -p hello -n 6 --ignore-eos --ranks 2 -t 1"));
        assert_eq!(array(&made, "tokens").len(), 6, "{name}");
        let chat = json(&format!("run {model} -p hello -n 2 --chat"));
        let raw = json(&format!("run {model} -p hello -n 2"));
        assert!(number(&chat, "prompt_tokens") > number(&raw, "prompt_tokens"), "{name}");
        let path = text.display();
        let perplexity = json(&format!("perplexity {model} -f {path} -c 32 --kvp 2 -t 1"));
        assert!(number(&perplexity, "perplexity") > 1.0, "{name}");
        let verified = json(&format!("verify {model} --ranks 2 -n 4 -p 'a few words'"));
        assert_eq!(verified["ok"], true, "{name}: {verified}");
    }
}

#[test]
fn windows_that_have_passed_stop_neither_benches_nor_chats() {
    for name in ["gpt-oss", "gemma3", "mistral"] {
        let model = fixture(name);
        // Longer than the engine keeps behind windows unless told.
        let report = json(&format!("bench {model} -p 900 -n 700 -d 0,50 -r 2"));
        assert_eq!(array(&report, "runs").len(), 4, "{name}");
        // The second question shares a short prefix with a cache that is far past it.
        let line = format!("run {model} -i -n 700 --ignore-eos -c 1024 -q");
        let output = run_with(&line, "hello\n/clear\nbye\n");
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
    }
}

#[test]
fn choices_are_told_and_do_what_they_say() {
    let words = "-p 'some words to begin with' -n 8 --ignore-eos --precise --kvp 2 -t 1";
    let model = fixture("deepseek-v3");
    let line = format!("run {model} {words}");
    let sent = |report: &Value| {
        sum(array(report, "ranks"), |rank| number(&rank["collectives"]["all-to-all"], "bytes"))
    };
    let (before, after, auto) = (
        json(&format!("{line} --mla-up before")),
        json(&format!("{line} --mla-up after")),
        json(&line),
    );
    assert_eq!(before["tokens"], after["tokens"]);
    assert_eq!(
        [&before["mla_up"], &after["mla_up"], &auto["mla_up"]],
        ["before", "after", "after"]
    );
    // 14 elements of a value are fewer than 20 of a latent.
    assert!(sent(&before) < sent(&after), "{} and {}", sent(&before), sent(&after));
    assert_eq!(sent(&auto), sent(&after));

    // Over links the planner weighs bytes sent against bytes read.
    let over = |gbit: &str| {
        let links = format!("--link-us 1 --link-gbit {gbit}");
        json(&format!("bench {model} -p 0 -n 2 -d 8 -r 1 --kvp 2 -t 1 {links}"))["mla_up"].clone()
    };
    assert_eq!([over("0.001"), over("100000")], ["before", "after"]);

    let line = format!("run {model} {words} --kvp 4 --tpf 2 --ep 2");
    let line = line.replace("--kvp 2", "");
    let world = json(&format!("{line} --ffn-reduce world"));
    let grid = json(&format!("{line} --ffn-reduce grid"));
    assert_eq!(world["tokens"], grid["tokens"]);
    assert_eq!([&world["ffn_reduce"], &grid["ffn_reduce"]], ["world", "grid"]);
    let calls = |report: &Value| {
        sum(array(report, "ranks"), |rank| number(&rank["collectives"]["all-reduce"], "calls"))
    };
    assert!(calls(&grid) > calls(&world), "{} and {}", calls(&grid), calls(&world));
}

#[test]
fn weights_are_quantised_at_load() {
    let held = |flags: &str| {
        let report = json(&format!("inspect {} {flags}", fixture("gpt-oss-mxfp4")));
        (number(&report["ranks"][0], "weight_bytes"), report["weights"].clone())
    };
    let (as_is, q8_0) = (held(""), held("--weights q8_0"));
    assert_eq!(as_is.1, "as-is");
    assert_eq!(q8_0.1, "q8_0");
    assert!(q8_0.0 < 0.85 * as_is.0, "{} of {}", q8_0.0, as_is.0);
    let model = fixture("gpt-oss-mxfp4");
    for weights in ["q8_0", "q4_k"] {
        let flags = format!("-p hello -n 6 --ignore-eos --weights {weights} --precise");
        let one = json(&format!("run {model} {flags}"));
        let two = json(&format!("run {model} {flags} --kvp 2 --kv-block 1 -t 1"));
        assert_eq!(one["tokens"], two["tokens"], "{weights}");
        assert_eq!(one["weights"], weights);
    }
    let output = run(&format!("run {} -p x -n 1 --weights q8_0", common::model()));
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("changes nothing"), "{}", stderr(&output));
}

#[test]
fn choices_of_other_models_are_refused() {
    let (dense, experts) = (fixture("qwen3"), fixture("mixtral"));
    let cases = [
        (format!("run {dense} -p x --mla-up before"), "--mla-up is about latent attention"),
        (format!("bench {dense} --ffn-reduce grid"), "--ffn-reduce is about experts"),
        (format!("inspect {experts} --mla-up auto"), "mixtral models do not have"),
        (format!("run {experts} -p x --ffn-reduce half"), "world, grid"),
        (format!("run {experts} -p x --weights q2"), "as-is, q8_0, q4_k"),
    ];
    for (line, words) in cases {
        let output = run(&line);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{line}: {text}");
        assert!(text.contains(words) && !text.contains("panicked"), "{line}: {text}");
    }
}

#[test]
fn inspect_splits_bytes_of_experts() {
    let model = fixture("deepseek-v3");
    let one = json(&format!("inspect {model}"));
    let four = json(&format!("inspect {model} --kvp 4 --tpf 2 --ep 2"));
    let whole = &array(&one, "ranks")[0];
    let ranks = array(&four, "ranks");
    let parts = ["attention", "dense_ffn", "routers", "shared_experts", "experts", "lm_head"];
    for rank in ranks.iter().chain([whole]) {
        let total: f64 = parts.iter().map(|part| number(&rank["bytes"], part)).sum();
        assert_eq!(total, number(rank, "weight_bytes"));
    }
    // Cut, not copied.
    for part in ["dense_ffn", "shared_experts", "experts", "lm_head"] {
        let held = sum(ranks, |rank| number(&rank["bytes"], part));
        assert_eq!(held, number(&whole["bytes"], part), "{part}");
    }
    // 3 of 9 experts in each of 2 layers, of 3 matrices of 54 x 18 in BF16.
    let read = 3.0 * 2.0 * 3.0 * 54.0 * 18.0 * 2.0;
    assert_eq!(number(whole, "expert_bytes_per_token"), read);
    assert_eq!(sum(ranks, |rank| number(rank, "expert_bytes_per_token")), read);
    let of_experts = &ranks[3]["experts"];
    assert_eq!(of_experts["held"], serde_json::json!({ "start": 5, "end": 9 }));
    assert_eq!(of_experts["cols"], serde_json::json!({ "start": 9, "end": 18 }));
    // One latent of 20 + 12 f16 in each of 3 layers, once among all ranks.
    assert_eq!(sum(ranks, |rank| number(rank, "kv_bytes_per_token")), 3.0 * 32.0 * 2.0);
    for (name, letters) in [("t_kv", "(C+R)·(S/KVP)"), ("t_w", "(k/EP)·3·H·Fe/TPF")] {
        let formula = four["formulas"][name].as_str().unwrap();
        assert!(formula.contains(letters), "{formula}");
    }
    assert!(number(&four["formulas"], "t_w_dense_bytes") > 0.0);
    let text = stdout(&run(&format!("inspect {model} --kvp 4 --tpf 2 --ep 2")));
    for words in ["latent attention: 20 + 12", "9 of 18, 3 per token", "read of them per token"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    let warned = stderr(&run(&format!("inspect {model} --strategy tp --ranks 2")));
    assert!(warned.contains("2.00 times: one latent over 2 ranks"), "{warned}");
}

#[test]
fn what_inspect_says_is_read_is_what_is_read() {
    for (name, layout) in [
        ("gpt-oss", "--kvp 2 --kv-block 4"),
        ("gemma3", "--kvp 3 --kv-block 1"),
        ("deepseek-v3", "--kvp 2 --tpf 1 --ep 2"),
        ("qwen3-moe", "--tpa 1 --kvp 2"),
    ] {
        let model = fixture(name);
        let prompt = "'a prompt that is longer than any of the windows is'";
        let flags = format!("{layout} -t 1");
        let made = json(&format!("run {model} -p {prompt} -n 2 --ignore-eos {flags}"));
        // The one step that decodes is at this position, and sees itself, too.
        let position = number(&made, "prompt_tokens");
        let said = json(&format!("inspect {model} -c {position} {flags}"));
        let kv = sum(array(&made, "ranks"), |rank| number(rank, "kv_bytes_per_token"));
        let ranks = array(&said, "ranks");
        let before = sum(ranks, |rank| number(&rank["reads"][0], "kv_bytes"));
        assert_eq!(kv, before + number(&ranks[0], "kv_bytes_per_owned_token"), "{name}");
        if name == "gpt-oss" {
            let layers = &ranks[0]["kv_layers"];
            assert_eq!(layers["full"]["layers"], 1);
            assert_eq!(layers["windowed"]["layers"], 2);
            assert_eq!(layers["windowed"]["window"], 13);
            assert!(said["formulas"]["t_kv_window"].is_string());
        }
    }
}

#[test]
fn inspect_of_attention_groups() {
    let model = fixture("mixtral");
    let report = json(&format!("inspect {model} --strategy dp-ep --ranks 2"));
    let ranks = array(&report, "ranks");
    let dp: Vec<f64> = ranks.iter().map(|rank| number(rank, "dp")).collect();
    assert_eq!(dp, [0.0, 1.0]);
    assert_eq!(ranks[0]["bytes"]["attention"], ranks[1]["bytes"]["attention"]);
    assert_eq!(ranks[0]["kv_bytes_per_token"], ranks[0]["kv_bytes_per_owned_token"]);
    let text = stdout(&run(&format!("inspect {model} --strategy dp-ep --ranks 2")));
    assert!(text.contains("each rank of a sequence of its own"), "{text}");
}
