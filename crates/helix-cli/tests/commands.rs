//! Every command on a small model: what it prints, and that layouts do not change it.

mod common;

use common::{
    array, directory, file, helix, json, model, number, run, run_with, stderr, stdout, words,
};
use helix_model::Model;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

const PROMPT: &str = "'a prompt of some twenty tokens, more than a block'";

#[test]
fn run_prints_the_same_text_over_any_layout() {
    let line = format!("run MODEL -p {PROMPT} -n 20 --ignore-eos --precise");
    let one = json(&line);
    assert_eq!(array(&one, "tokens").len(), 20);
    assert_eq!(one["stop"], "length");
    assert!(number(&one, "ttft_ms") > 0.0 && number(&one, "ttl_ms") > 0.0);
    for layout in ["--kvp 2", "--ranks 4", "--kvp 3 --kv-block 1", "--strategy tp --tpa 5"] {
        let other = json(&format!("{line} {layout} -t 1"));
        assert_eq!(other["tokens"], one["tokens"], "{layout}");
        assert_eq!(other["text"], one["text"], "{layout}");
    }
    let plain = run(&line);
    assert_eq!(stdout(&plain).trim_end(), one["text"].as_str().unwrap().trim_end());
    assert!(stderr(&plain).contains("tokens/s"), "{}", stderr(&plain));
}

#[test]
fn run_reports_what_each_rank_held_and_read() {
    let report = json(&format!("run MODEL -p {PROMPT} -n 5 --ignore-eos --kvp 2 -t 1"));
    assert_eq!(report["layout"].as_str().unwrap().split(' ').nth(1), Some("kvp=2"));
    let ranks = array(&report, "ranks");
    assert_eq!(ranks.len(), 2);
    let tokens = number(&report, "prompt_tokens") + 4.0; // the fifth is never stored
    let held: f64 = ranks.iter().map(|rank| number(rank, "kv_bytes_held")).sum();
    // 2 layers, 2 heads, keys and values of 8 f16 each.
    assert_eq!(held, tokens * 2.0 * 2.0 * 2.0 * 8.0 * 2.0);
    for rank in ranks {
        let read = number(rank, "weight_bytes_per_token") + number(rank, "kv_bytes_per_token");
        assert_eq!(number(rank, "read_bytes_per_token"), read);
        assert_eq!(number(rank, "steps"), 4.0);
        assert!(number(&rank["collectives"]["all-reduce"], "calls") > 0.0);
        assert!(number(&rank["time_us"], "partial attention") > 0.0);
    }
}

#[test]
fn seeds_name_texts() {
    let tokens = |seed: u32| {
        let line = format!("run MODEL -p {PROMPT} -n 30 --ignore-eos --temp 1.5 --seed {seed}");
        json(&line)["tokens"].clone()
    };
    let first = tokens(1);
    assert_eq!(first, tokens(1));
    assert_ne!(first, tokens(2));
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let expected = json("run MODEL -p 'from anywhere' -n 8")["text"].clone();
    let path = file("prompt.txt", "from anywhere");
    let from_file = json(&format!("run MODEL -f {} -n 8", path.display()));
    assert_eq!(from_file["text"], expected);
    for line in ["run MODEL -n 8 --json", "run MODEL -n 8 --json -f -"] {
        let output = run_with(line, "from anywhere");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["text"], expected, "{line}");
    }
}

#[test]
fn chat_uses_the_template_and_ends_at_end_tokens() {
    let raw = json("run MODEL -p hello -n 4");
    let chat = json("run MODEL -p hello -n 4 --chat");
    assert!(number(&chat, "prompt_tokens") > number(&raw, "prompt_tokens"));
    let system = json("run MODEL -p hello -n 4 --chat --system terse");
    assert!(number(&system, "prompt_tokens") > number(&chat, "prompt_tokens"));
}

#[test]
fn a_text_ends_where_the_context_does() {
    let report = json("run MODEL -p hello -n 100 -c 12 --ignore-eos");
    assert_eq!(report["stop"], "context");
    let made = array(&report, "tokens").len() as f64;
    // The last token is not stored.
    assert_eq!(number(&report, "prompt_tokens") + made - 1.0, 12.0);
}

#[test]
fn quiet_says_nothing_else() {
    let output = run("run MODEL -p hello -n 4 --ranks 2 -t 1 -q");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "");
}

/// The rows of a file that `helix logits` wrote.
fn logits(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("logits").unwrap();
    let values = tensor.data().chunks_exact(4);
    (tensor.shape().to_vec(), values.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
}

#[test]
fn logits_are_the_same_bits_on_any_threads_and_close_on_any_layout() {
    let folder = tempfile::tempdir().unwrap();
    let tokens: Vec<String> = (0..150).map(|i| (i * 7 % 300).to_string()).collect();
    let write = |name: &str, flags: &str| {
        let path = folder.path().join(name);
        let tokens = tokens.join(",");
        let line = format!("logits MODEL --tokens {tokens} --out {} {flags}", path.display());
        let document = json(&line);
        assert_eq!(document["shape"], serde_json::json!([150, 300]));
        logits(&path)
    };
    let (shape, one) = write("one.safetensors", "-t 1 --precise");
    assert_eq!(shape, [150, 300]);
    assert_eq!(write("two.safetensors", "-t 2 --precise").1, one);
    let (_, over) = write("kvp.safetensors", "-t 1 --precise --kvp 3 --kv-block 1");
    let apart = one.iter().zip(&over).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-4, "{apart}");
    let names = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 3, "nothing but the files is left behind");
}

/// Open for both, a FIFO waits for nobody; it holds 64 KB.
#[test]
fn logits_go_into_a_fifo() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let mut fifo = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    json(&format!("logits MODEL --tokens 1,2,3 --out {}", path.display()));
    assert!(path.metadata().unwrap().file_type().is_fifo());
    let mut bytes = vec![0; 1 << 16];
    let read = fifo.read(&mut bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes[..read]).unwrap();
    assert_eq!(file.tensor("logits").unwrap().shape(), [3, 300]);
}

#[test]
fn logits_replace_a_file_and_carry_their_origin() {
    let path = file("old.safetensors", "something else");
    let output = run(&format!("logits MODEL --tokens 1,2 --out {} --kvp 2 -t 1", path.display()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert!(metadata["layout"].starts_with("helix kvp=2"), "{metadata:?}");
    assert_eq!(metadata["model"], "tiny-llama");
}

#[test]
fn perplexity_is_what_the_logits_say() {
    let text = "It was the best of times, it was the worst of times, it was the age of wisdom, \
                it was the age of foolishness, it was the epoch of belief.";
    let path = file("text.txt", text);
    let report = json(&format!("perplexity MODEL -f {} -c 32 --precise", path.display()));
    let model = Model::open(Path::new(model())).unwrap();
    let tokens = model.tokenizer().unwrap().encode(text, true);
    let chunks = tokens.len() / 32;
    assert!(chunks >= 2, "{} tokens", tokens.len());
    let mut nll = 0.0;
    for (index, chunk) in tokens.chunks_exact(32).enumerate() {
        let out = directory().join(format!("chunk{index}.safetensors"));
        let list: Vec<String> = chunk.iter().map(u32::to_string).collect();
        let list = list.join(",");
        json(&format!("logits MODEL --tokens {list} --out {} --precise", out.display()));
        let (shape, logits) = logits(&out);
        for position in 16..31 {
            let row = &logits[position * shape[1]..][..shape[1]];
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            nll += sum.ln() - f64::from(row[chunk[position + 1] as usize]);
        }
    }
    let scored = chunks * 15;
    assert_eq!(number(&report, "tokens"), scored as f64);
    assert_eq!(number(&report, "chunks"), chunks as f64);
    let expected = (nll / scored as f64).exp();
    let found = number(&report, "perplexity");
    assert!((found / expected - 1.0).abs() < 1e-4, "{found} against {expected}");
    let plain = stdout(&run(&format!("perplexity MODEL -f {} -c 32", path.display())));
    assert_eq!(plain.lines().count(), chunks + 1, "a line per chunk, and the sum:\n{plain}");
}

#[test]
fn bench_times_prompts_and_decodes_past_the_trained_context() {
    let report = json("bench MODEL -p 40 -n 6 -d 0,600 -b 1,3 -r 2 --kvp 2 -t 1");
    let runs = array(&report, "runs");
    let names: Vec<String> = runs
        .iter()
        .map(|run| format!("{}{}@{}x{}", run["test"], run["n"], run["depth"], run["batch"]))
        .collect();
    let expected = [
        "\"pp\"40@0x1",
        "\"tg\"6@0x1",
        "\"tg\"6@0x3",
        "\"pp\"40@600x1",
        "\"tg\"6@600x1",
        "\"tg\"6@600x3",
    ];
    assert_eq!(names, expected);
    assert!(number(&report, "read_gb_s") > 0.0);
    for run in runs {
        let speed = &run["tokens_per_s"];
        assert!(number(speed, "min") <= number(speed, "median"));
        assert!(number(speed, "median") <= number(speed, "max"));
        assert!(number(run, "bytes_per_token") > 0.0 && number(run, "read_fraction") >= 0.0);
    }
    // 600 positions of 2 layers, 2 heads, 8 f16 keys and values, and those that are decoded.
    let attention = &runs[4]["attention"];
    let kv_bytes = 2.0 * 2.0 * 2.0 * 8.0 * 2.0;
    assert!((number(attention, "bytes_per_token") - 603.5 * kv_bytes).abs() <= kv_bytes);
    let table = stdout(&run("bench MODEL -p 0 -n 4 -r 1 --lines"));
    assert!(table.contains("tg4") && table.contains("partial attention"), "{table}");
    assert!(!table.contains("\npp"), "{table}");
}

#[test]
fn inspect_tells_what_ranks_hold() {
    let held = |flags: &str| {
        let report = json(&format!("inspect MODEL {flags}"));
        let ranks = array(&report, "ranks").to_vec();
        let sum = |field: &str| ranks.iter().map(|rank| number(rank, field)).sum::<f64>();
        (report["layout"].clone(), sum("kv_bytes_per_token"), sum("out_heads"), ranks.len())
    };
    let whole = 2.0 * 2.0 * 2.0 * 8.0 * 2.0;
    assert_eq!(held("").1, whole);
    let (layout, kv, out_heads, ranks) = held("--kvp 2 --tpa 2 --qkv gather");
    assert_eq!(layout, "helix kvp=2 tpa=2 tpf=4 ep=1 block=16 qkv=gather");
    assert_eq!((kv, out_heads, ranks), (whole, 6.0, 4));
    let (_, kv, ..) = held("--strategy tp --ranks 6");
    assert_eq!(kv, 3.0 * whole, "2 KV heads over 6 ranks");
    let (layout, kv, ..) = held("--strategy dp-ep --ranks 2");
    assert_eq!(layout, "dp-ep kvp=1 tpa=1 dp=2 tpf=2 ep=1 block=16 qkv=replicate");
    assert_eq!(kv, 2.0 * whole, "what either rank holds of its own sequences");
    let (_, kv, ..) = held("--kv-type q8_0");
    assert_eq!(kv, 2.0 * 2.0 * 2.0 * (8.0 + 2.0));

    let plain = run("inspect MODEL --strategy tp --ranks 6 -c 1000");
    assert!(stderr(&plain).contains("stores each key and value 3.00 times"), "{plain:?}");
    let text = stdout(&plain);
    for expected in ["6 query heads over 2 KV heads of 8", "T_kv", "T_w", "context 512"] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
}

#[test]
fn verify_runs_every_layout() {
    let report = json("verify MODEL --ranks 3 -n 12");
    assert_eq!(report["ok"], true);
    let layouts = array(&report, "layouts");
    // Of 1 rank one per strategy; of 2, helix and medha as 2x1 (3 blocks, 2 modes) and 1x2, and
    // tp; of 3 ranks, 3x1 twice and tp: 3 + 2·7 + 1 + 2·6 + 1.
    assert_eq!(layouts.len(), 31);
    for layout in layouts {
        assert_eq!(layout["tokens_equal"], true, "{layout}");
        assert!(number(layout, "max_abs_logit_diff") <= 1e-3, "{layout}");
        assert!(layout["layout"].is_string());
    }
}

#[test]
fn verify_fails_when_layouts_are_too_far_apart() {
    let line = "verify MODEL --layouts 'helix kvp=2, tp tpa=3' -n 8 --tolerance 0";
    let output = run(&format!("{line} --json"));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(array(&report, "layouts").len(), 2);
    let plain = run(line);
    assert_eq!(plain.status.code(), Some(1));
    assert_eq!(stdout(&plain).matches("FAIL").count(), 2, "{plain:?}");
}

#[test]
fn help_shows_commands_flags_and_examples() {
    let all = stdout(&run("--help"));
    for word in ["run", "logits", "perplexity", "bench", "inspect", "verify", "Exit status"] {
        assert!(all.contains(word), "{word} in\n{all}");
    }
    for command in ["run", "logits", "perplexity", "bench", "inspect", "verify"] {
        let output = run(&format!("{command} --help"));
        assert_eq!(output.status.code(), Some(0));
        let text = stdout(&output);
        assert!(text.contains("Example") && text.contains("MODEL"), "{text}");
    }
    let text = stdout(&run("run --help"));
    assert!(text.contains("chat template") && text.contains("Ctrl-C"), "{text}");
}

#[test]
fn names_of_fetched_models_are_found_in_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let models = cache.path().join("helix").join("models");
    std::fs::create_dir_all(&models).unwrap();
    std::fs::copy(model(), models.join("Tiny-1.gguf")).unwrap();
    let inspect = |name: &str| {
        let mut command = common::helix(["inspect", name, "--json"]);
        command.env("XDG_CACHE_HOME", cache.path()).output().unwrap()
    };
    for name in ["Tiny-1", "tiny-1", "Tiny-1.gguf"] {
        assert_eq!(inspect(name).status.code(), Some(0), "{name}");
    }
    let other = inspect("tiny-2");
    assert_eq!(other.status.code(), Some(2));
    assert!(stderr(&other).contains("models cached there: Tiny-1"), "{}", stderr(&other));
}

#[test]
fn ranks_are_laid_out_by_the_planner_and_the_choice_is_printed() {
    let said = |line: &str| stderr(&run(line));
    let chosen = |said: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix("layout: ")).expect("a choice");
        line.to_owned()
    };
    // Two KV heads of a tiny model: nothing pays for the all-to-all's latency.
    let first = chosen(&said("run MODEL -p hello -n 2 --ranks 2 -t 1"));
    assert!(first.starts_with("helix kvp=1 tpa=2 "), "{first}");
    for words in
        ["ms per token, predicted for 1 sequence at", "a typical processor of", "next of 3"]
    {
        assert!(first.contains(words), "{words}: {first}");
    }
    let bench = chosen(&said("bench MODEL -p 0 -n 2 -r 1 -b 1,3 -d 64 --ranks 2 -t 1"));
    assert!(bench.contains("predicted for 3 sequences at 64 positions"), "{bench}");
    // Where nothing but reads takes time the sequence is cut and QKV gathered: ranks read least.
    let slow = r#"
        name = "slow reads"
        memory = { capacity_gb = 100, bandwidth_gb_s = 0.001, reachable = 1 }
        arithmetic = { int8 = 100, f32 = 100 }
        overhead = { reachable_arithmetic = 1, operation_us = 0 }
        [[level]]
        name = "links"
        latency_us = 0
        overhead_us = 0
        gap_us = 0
        bandwidth_gb_s = 1000
        reachable = 1
    "#;
    let file = file("slow.toml", slow);
    let line = format!("run MODEL -p hello -n 2 --ranks 4 -t 1 --hardware {}", file.display());
    let choice = chosen(&said(&line));
    assert!(choice.starts_with("helix kvp=4 tpa=1 ") && choice.contains("qkv=gather:"), "{choice}");
    assert!(choice.contains("on slow reads"), "{choice}");
    // What was named is not a choice.
    let named = said("run MODEL -p hello -n 2 --kvp 2 --tpa 1 --qkv gather -t 1");
    assert!(!named.contains("layout: "), "{named}");
}

#[test]
fn what_was_measured_is_what_layouts_are_chosen_on() {
    let cache = tempfile::tempdir().unwrap();
    let machine = cache.path().join("helix").join("machine.toml");
    std::fs::create_dir(machine.parent().unwrap()).unwrap();
    let said = |line: &str| {
        let mut command = helix(words(line));
        stderr(&command.env("XDG_CACHE_HOME", cache.path()).output().unwrap())
    };
    let line = "run MODEL -p hello -n 2 --ranks 2 -t 1";
    let toml = include_str!("../../helix-plan/machines/epyc-9654-100g.toml");
    std::fs::write(&machine, toml).unwrap();
    let found = said(line);
    assert!(found.contains("on 2 x EPYC 9654, 100G"), "{found}");
    std::fs::write(&machine, "name = 5").unwrap();
    let broken = said(line);
    assert!(broken.contains("machine.toml") && broken.contains("helix probe writes it anew"));
    assert!(broken.contains("on a typical processor"), "{broken}");
}

#[test]
fn bench_compares_decoding_with_the_planner() {
    let line = "bench MODEL -p 8 -n 4 -d 0,40 -b 1,3 -r 1 --kvp 2 --compare-plan epyc-9654-100g";
    let report = json(line);
    let runs = array(&report, "runs");
    let compared: Vec<_> = runs.iter().filter(|run| run["test"] == "tg").collect();
    assert_eq!((runs.len(), compared.len()), (6, 4));
    for run in compared {
        let plan = &run["plan"];
        let lines = plan["lines_us"].as_object().expect("lines");
        let sum: f64 = lines.values().filter_map(serde_json::Value::as_f64).sum();
        let predicted = number(plan, "predicted_us");
        assert!((sum - predicted).abs() < 1.0 && predicted > 0.0, "{plan}");
        let error = predicted / number(plan, "measured_us") - 1.0;
        assert!((error - number(plan, "error")).abs() < 0.01, "{plan}");
    }
    let text = stdout(&run("bench MODEL -p 0 -n 2 -d 0 -r 1 --compare-plan hgx-h100"));
    assert!(text.contains("mean absolute error of 1 steps"), "{text}");
}
