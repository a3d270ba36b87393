//! `helix plan`: what it prints, and what it refuses.

mod common;

use common::{array, directory, file, fixture, helix, json, number, run, stderr, stdout, words};
use serde_json::Value;
use std::process::Command;

const LLAMA: &str = "plan --model llama-3.1-405b --hardware gb200-nvl72 --context 1000000";

fn refused(line: &str, words: &[&str]) {
    let output = run(line);
    let text = stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(output.status.code(), Some(2), "{line}: {text}");
    assert!(output.stdout.is_empty() && !text.contains("panicked"), "{line}: {text}");
    for word in words {
        assert!(text.contains(word), "{line}: {word:?} in {text}");
    }
}

/// The fields that other programs rely on, and that nothing on the front is beaten.
#[test]
fn the_front_is_one_document() {
    let report = json(&format!("{LLAMA} --ranks 1..16"));
    assert!(number(&report, "configs") > 1000.0 && number(&report, "seconds") > 0.0);
    let front = array(&report, "front");
    assert!(front.len() > 3, "{front:?}");
    for pair in front.windows(2) {
        assert!(number(&pair[0], "tokens_per_s_user") < number(&pair[1], "tokens_per_s_user"));
        assert!(number(&pair[0], "tokens_per_s_rank") > number(&pair[1], "tokens_per_s_rank"));
    }
    for row in front {
        let size = |field| number(row, field);
        let attention = size("kvp") * size("tpa") * size("dp") * size("pp");
        assert_eq!(attention, size("ranks"), "{row}");
        let users = size("tokens_per_s_user") * size("batch") / size("ranks");
        assert!((users / size("tokens_per_s_rank") - 1.0).abs() < 1e-9, "{row}");
        assert!((size("ttl_ms") * size("tokens_per_s_user") / 1e3 - 1.0).abs() < 1e-9, "{row}");
        assert!(row["strategy"].is_string() && size("tpf") * size("ep") >= 1.0);
    }
    let breakdown = array(&report["chosen"], "breakdown");
    let sum: f64 = breakdown.iter().map(|term| number(term, "ms")).sum();
    assert!((sum / number(&report["chosen"], "ttl_ms") - 1.0).abs() < 1e-9, "{breakdown:?}");
}

#[test]
fn a_budget_and_a_batch_are_kept() {
    let report = json(&format!("{LLAMA} --ttl 20 --ranks 8,16,32"));
    for row in array(&report, "front").iter().chain(array(&report, "answers")) {
        assert!(number(row, "ttl_ms") <= 20.0, "{row}");
        assert!([8.0, 16.0, 32.0].contains(&number(row, "ranks")), "{row}");
    }
    let report = json(&format!("{LLAMA} --batch 7 --strategy tp,helix"));
    for row in array(&report, "front") {
        assert_eq!(number(row, "batch"), 7.0);
        assert!(row["strategy"] == "tp" || row["strategy"] == "helix");
    }
    let text = stdout(&run(&format!("{LLAMA} --ranks 8 --batch 1")));
    for words in [" KV, 8 ranks\n", "fastest with 1 user ", ", 1 user. Its busiest"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let report = json(&format!("{LLAMA} --ranks 64 --kvp 8 --tpa 8 --hopb off --batch 4"));
    let chosen = &report["chosen"];
    assert_eq!((number(chosen, "kvp"), number(chosen, "tpa")), (8.0, 8.0));
    assert_eq!(chosen["hopb"], Value::Bool(false));
}

/// The appendix charges W_O at 1/TPA: the out-projection alone takes longer.
#[test]
fn the_appendixs_formulas_charge_more() {
    let line = format!("{LLAMA} --ranks 64 --kvp 8 --tpa 8 --pp 1 --batch 1 --strategy helix");
    let of = |formulas: &str| {
        let report = json(&format!("{line} --hopb off --qkv replicate --formulas {formulas}"));
        let terms = array(&report["chosen"], "breakdown").to_vec();
        let ms = |line: &str| {
            let term = terms.iter().find(|term| term["line"] == line);
            number(term.expect("a line"), "ms")
        };
        (ms("out-projection"), ms("qkv"))
    };
    let (corrected, appendix) = (of("corrected"), of("paper-appendix"));
    assert!(appendix.0 > corrected.0 && appendix.1 == corrected.1, "{appendix:?} {corrected:?}");
}

/// The choice of when latents become values is one that can be made, and told apart.
#[test]
fn latents_become_values_when_it_is_asked_for() {
    let csv = directory().join("latents.csv");
    let line = "plan --model deepseek-r1 --hardware gb200-nvl72 -c 1000000 --ranks 64 --kvp 64";
    let ttl = |when: &str| {
        let line = format!("{line} --hopb on --batch 256 --strategy helix --mla-up {when}");
        let report = json(&format!("{line} --csv {}", csv.display()));
        let text = std::fs::read_to_string(&csv).unwrap();
        let mut columns = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let titles = columns.next().unwrap();
        let of = |row: &[&str], title| {
            let column = titles.iter().position(|name| *name == title);
            row[column.expect(title)].to_owned()
        };
        for row in columns {
            assert!(when == "auto" || of(&row, "mla_up") == when, "{row:?}");
            assert_eq!(of(&row, "ffn_reduce"), report["chosen"]["ffn_reduce"].as_str().unwrap());
            let pieces = number(&report["chosen"], "hopb_pieces");
            assert_eq!(of(&row, "hopb_pieces"), pieces.to_string());
            assert!(when != "auto" || pieces > 1.0, "{row:?}");
        }
        let told = stdout(&run(&line)).contains("mla-up=before");
        assert_eq!(told, report["chosen"]["mla_up"] == "before", "{when}");
        number(&report["chosen"], "ttl_ms")
    };
    let (before, after) = (ttl("before"), ttl("after"));
    assert!(before != after && ttl("auto") == before.min(after), "{before} {after}");
}

#[test]
fn tables_and_values_with_commas() {
    let csv = directory().join("fronts.csv");
    let line = format!("{LLAMA} --ranks 8,16 --csv {}", csv.display());
    let output = run(&line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for word in ["tokens/s/user", "fastest token", "partial attention", "KV, 8 to 16 ranks\n"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(stderr(&output).contains("configurations in"), "{}", stderr(&output));
    let csv = std::fs::read_to_string(csv).unwrap();
    let columns = |line: &str| line.split(',').count();
    let title = csv.lines().next().unwrap();
    assert!(title.starts_with("front,strategy,ranks,kvp"), "{title}");
    assert!(csv.lines().count() > 4 && csv.lines().all(|line| columns(line) == columns(title)));
}

/// A limit on the size of files ends the first write.
#[test]
fn a_file_that_cannot_be_written_whole_stays_as_it_was() {
    for name in ["kept.csv", "kept.html", "kept.svg"] {
        let kept = file(name, "keep");
        let (_, ending) = name.split_once('.').unwrap();
        let flag = ending.replace("svg", "plot");
        let line = format!("{LLAMA} --ranks 8,16 -q --{flag} {}", kept.display());
        let script = format!("ulimit -f 0; exec {} {line}", env!("CARGO_BIN_EXE_helix"));
        let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
        assert!(!output.status.success(), "{}", stderr(&output));
        assert_eq!(std::fs::read_to_string(kept).unwrap(), "keep", "{name}");
    }
}

#[test]
fn what_is_refused_writes_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |flag: &str, name: &str| format!("{flag} {}", folder.path().join(name).display());
    let files = [at("--csv", "x.csv"), at("--html", "x.html"), at("--plot", "x.svg")].join(" ");
    let line = format!("{LLAMA} --ranks 16 --batch 1 --strategy helix --hopb off --kvp 4 --tpa 4");
    refused(&format!("{line} --emit vllm {files}"), &["vLLM", "8 KV heads"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Where standard output goes, both are kept.
#[test]
fn a_file_that_is_standard_output_keeps_what_is_said() {
    let path = directory().join("both.csv");
    let line = format!("{LLAMA} --ranks 8 --csv {}", path.display());
    let out = std::fs::File::create(&path).unwrap();
    let status = helix(words(&line)).stdout(out).status().expect("helix runs");
    assert!(status.success());
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.starts_with("front,strategy,ranks") && text.contains("fastest token"), "{text}");
}

/// The page in a browser: every point drawn, hovered and clicked, every strategy switched off and on.
#[test]
fn the_page_works_in_a_browser() {
    if Command::new("chromium").arg("--version").output().is_err() {
        eprintln!("not tested: there is no chromium to open a page of `helix plan --html`");
        return;
    }
    let path = directory().join("browsed.html");
    json(&format!("{LLAMA} --ranks 8,16 --html {}", path.display()));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/page.py");
    let browsed = Command::new("python3").arg(script).arg(&path).output().expect("python3");
    assert!(browsed.status.success(), "{}{}", stdout(&browsed), stderr(&browsed));
    assert!(stdout(&browsed).contains("no error"), "{}", stdout(&browsed));
}

/// A page carries what `--json` prints, a breakdown of each point, and needs nothing else.
#[test]
fn the_page_carries_the_document() {
    let path = directory().join("plan.html");
    let report = json(&format!("{LLAMA} --ranks 8,16 --html {}", path.display()));
    let page = std::fs::read_to_string(&path).unwrap();
    let script = |id: &str| {
        let start = format!("<script type=\"application/json\" id=\"{id}\">");
        let (_, rest) = page.split_once(&start).expect(id);
        rest.split_once("</script>").expect("an end").0
    };
    let carried: Value = serde_json::from_str(script("report")).unwrap();
    assert_eq!(carried, report);
    let points: Value = serde_json::from_str(script("points")).unwrap();
    let (points, fronts) = (points.as_array().unwrap(), array(&report, "fronts"));
    assert_eq!(points.len(), fronts.len());
    for (closely, front) in points.iter().zip(fronts) {
        assert_eq!(closely["strategy"], front["strategy"]);
        assert_eq!(array(closely, "front").len(), array(front, "front").len());
        for (point, row) in array(closely, "front").iter().zip(array(front, "front")) {
            for (field, value) in row.as_object().unwrap() {
                assert_eq!(&point[field], value, "{field}");
            }
            let sum: f64 = array(point, "breakdown").iter().map(|term| number(term, "ms")).sum();
            assert!((sum / number(row, "ttl_ms") - 1.0).abs() < 1e-9, "{point}");
        }
    }
    let rest = page.replace(script("report"), "").replace(script("points"), "");
    for word in ["://", " src=", "href=", "url(", "@import", "fetch(", "@REPORT@", "@POINTS@"] {
        assert!(!rest.contains(word), "{word}");
    }
}

#[test]
fn fronts_are_drawn() {
    let draw = |name: &str| {
        let path = directory().join(name);
        let report = json(&format!("{LLAMA} --ranks 8,16 --plot {}", path.display()));
        (report, std::fs::read(path).unwrap())
    };
    let (report, svg) = draw("fronts.svg");
    let svg = String::from_utf8(svg).unwrap();
    let points: usize = array(&report, "fronts").iter().map(|of| array(of, "front").len()).sum();
    let legend = array(&report, "fronts").len();
    assert_eq!(svg.matches("<circle").count(), points + legend);
    for word in ["tokens/s/user", "tokens/s/rank", "dp-ep", "llama-3.1-405b on GB200"] {
        assert!(svg.contains(word), "{word}: {svg}");
    }
    let (_, png) = draw("fronts.png");
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n") && png.ends_with(b"IEND\xaeB`\x82"));
    assert_eq!(png[16..24], [0, 0, 4, 176, 0, 0, 2, 188]);
}

fn emitted(line: &str) -> String {
    let output = run(line);
    assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
    stdout(&output)
}

#[test]
fn engines_are_told_the_layout_and_the_cache() {
    let r1 = "plan --model deepseek-r1 --hardware hgx-b200 -c 131072 --ranks 8 --strategy helix \
              --kvp 8 --tpa 1 --qkv replicate --batch 4 --hopb off --kv fp8";
    let vllm = emitted(&format!("{r1} --ep 8 --emit vllm"));
    let flags = "--tensor-parallel-size 8 --decode-context-parallel-size 8 --dcp-comm-backend a2a \
         --cp-kv-cache-interleave-size 16 --dcp-q-replicate --enable-expert-parallel \
         --kv-cache-dtype fp8 --max-model-len 131072 --max-num-seqs 4";
    assert_eq!(vllm, format!("vllm serve MODEL {flags}\n"));
    let sglang = emitted(&format!("{r1} --ep 4 --emit sglang"));
    let flags = "--tp-size 8 --dcp-size 8 --dcp-comm-backend a2a --dcp-replicate-q-proj \
         --ep-size 4 --kv-cache-dtype fp8_e4m3 --context-length 131072 --max-running-requests 4";
    assert_eq!(sglang, format!("python3 -m sglang.launch_server --model-path MODEL {flags}\n"));
    assert_eq!(
        emitted(&format!("{r1} --ep 4 --kv-block 32 --emit trtllm")),
        "tensor_parallel_size: 1\nmoe_tensor_parallel_size: 2\nmoe_expert_parallel_size: 4\n\
         max_seq_len: 131072\nmax_batch_size: 4\ncontext_parallel_size: 8\ncp_config:\n  \
         cp_type: HELIX\n  tokens_per_block: 32\nkv_cache_config:\n  dtype: fp8\n  \
         tokens_per_block: 32\n"
    );
    let of_helix = r1.replace("--kv fp8", "--kv q8_0 --weights q4_k --mla-up before");
    let flags = "--parallel 4 --context 131072 --kv-type q8_0 --weights q4_k --strategy helix \
         --kvp 8 --tpa 1 --tpf 2 --ep 4 --kv-block 16 --qkv replicate --hopb off --mla-up before \
         --ffn-reduce ";
    let helix = emitted(&format!("{of_helix} --ep 4 --emit helix"));
    assert!(helix.starts_with(&format!("helix serve MODEL {flags}")), "{helix}");
    // Every KV head has a slice of its own: the other ranks are what vLLM shards over.
    let llama = format!("{LLAMA} --ranks 16 --kvp 2 --tpa 8 --hopb off --batch 1 --strategy helix");
    let vllm = emitted(&format!("{llama} --kv nvfp4 --emit vllm"));
    let flags = "--tensor-parallel-size 16 --decode-context-parallel-size 2 --dcp-comm-backend a2a \
                 --cp-kv-cache-interleave-size 16 --kv-cache-dtype nvfp4 --max-model-len 1000000 \
                 --max-num-seqs 1";
    assert_eq!(vllm, format!("vllm serve MODEL {flags}\n"));
    let gathered = r1.replace("replicate", "gather");
    let sglang = emitted(&format!("{gathered} --ep 8 --emit sglang"));
    assert!(sglang.contains(" --no-dcp-replicate-q-proj --ep-size 8 "), "{sglang}");
    let stages = format!("{LLAMA} --ranks 16 --strategy tp --tpa 8 --pp 2 --batch 3 --kv bf16");
    let sglang = emitted(&format!("{stages} --emit sglang"));
    assert!(sglang.contains(" MODEL --tp-size 8 --pp-size 2 --kv-cache-dtype bf16 "), "{sglang}");
    let trtllm = emitted(&format!("{stages} --emit trtllm"));
    assert!(trtllm.contains("\nmax_batch_size: 2\n"), "3 sequences in two stages: {trtllm}");
    assert!(trtllm.ends_with("\nkv_cache_config:\n  dtype: auto\n"), "{trtllm}");
}

/// vLLM and TensorRT-LLM count an attention group's sequences, SGLang all.
#[test]
fn limits_are_of_what_the_engine_counts() {
    let groups = "plan --model deepseek-r1 --hardware hgx-b200 -c 4096 --ranks 8 --strategy dp-ep \
                  --dp 8 --ep 8 --batch 30 --kv bf16 --emit";
    let sglang = emitted(&format!("{groups} sglang"));
    let flags = "--attn-dp-size 8 --kv-cache-dtype bf16 --context-length 4096 \
                 --max-running-requests 30";
    assert!(sglang.ends_with(&format!(" --tp-size 8 --ep-size 8 {flags}\n")), "{sglang}");
    let vllm = emitted(&format!("{groups} vllm"));
    assert!(vllm.ends_with(" --max-model-len 4096 --max-num-seqs 4\n"), "{vllm}");
    let trtllm = emitted(&format!("{groups} trtllm"));
    assert!(trtllm.contains("\nmax_seq_len: 4096\nmax_batch_size: 4\n"), "{trtllm}");
}

/// A file's weights are as they are stored, where it is not asked to be quantised.
#[test]
fn helix_is_told_what_it_holds() {
    let line = "plan --model MODEL --hardware epyc-9654-100g -c 512 --ranks 2 --batch 2 --pp 1 --dp 1 \
                --strategy helix --hopb off";
    let output = run(&format!("{line} --emit helix"));
    let text = stdout(&output);
    let flags = "--parallel 2 --context 512 --kv-type f16 --weights as-is --strategy ";
    assert!(text.starts_with(&format!("helix serve MODEL {flags}")), "{text}");
    assert!(stderr(&output).contains("MODEL is to be stored so"), "{}", stderr(&output));
    let quantised = emitted(&format!("{line} --weights q8_0 --kv bf16 --emit helix"));
    assert!(quantised.contains(" --kv-type bf16 --weights q8_0 "), "{quantised}");
}

#[test]
fn a_cache_that_an_engine_cannot_hold_is_refused() {
    let r1 = "plan --model deepseek-r1 --hardware hgx-b200 -c 131072 --ranks 8 --strategy helix \
              --hopb off --ep 1 --batch 4 --emit";
    refused(&format!("{r1} vllm"), &["vLLM", "no fp4 keys", "--kv bf16, f16 or fp8"]);
    refused(&format!("{r1} vllm --kv nvfp4"), &["no nvfp4 keys"]);
    refused(&format!("{r1} sglang --kv f16"), &["SGLang", "no f16", "--kv bf16, fp8 or nvfp4"]);
    refused(&format!("{r1} trtllm --kv q8_0"), &["no q8_0", "--kv bf16, f16, fp8 or nvfp4"]);
    refused(&format!("{r1} helix"), &["no fp4 keys", "--kv f16, bf16, f32 or q8_0"]);
    refused(&format!("{r1} helix --kv f16"), &["no fp4 weights", "--weights q4_k or q8_0"]);
    let many = "plan --model llama-3.1-8b --hardware hgx-b200 -c 512 --ranks 8 --kv f16 --batch \
                1025 --weights q4_k --hopb off --pp 1 --dp 1 --strategy helix --emit helix";
    refused(many, &["1024 sequences", "the plan has 1025"]);
}

#[test]
fn what_an_engine_cannot_express_is_refused() {
    let r1 = "plan --model deepseek-r1 --hardware hgx-b200 -c 131072 --ranks 8 --strategy helix";
    let llama = format!("{LLAMA} --ranks 16 --batch 1 --strategy helix --hopb off");
    refused(&format!("{llama} --kvp 4 --tpa 4 --emit vllm"), &["vLLM", "8 KV heads", "--tpa 8"]);
    refused(&format!("{llama} --kvp 2 --tpa 8 --emit sglang"), &["SGLang", "kvp=2", "MLA"]);
    let blocks = format!("{llama} --kvp 2 --tpa 8 --kv-block 48 --emit vllm");
    refused(&blocks, &["vLLM", "blocks of 16", "instead of 48"]);
    let odd = "plan --model qwen3-235b-a22b --hardware gb200-nvl72 -c 4096 --ranks 12 --batch 1 \
               --strategy helix --hopb off --kvp 3 --tpa 4 --emit vllm";
    refused(odd, &["vLLM", "kvp=3", "16 query heads"]);
    refused(&format!("{r1} --kvp 8 --ep 4 --hopb off --emit vllm"), &["ep=4", "--ep 1 or 8"]);
    let pieces = "plan --model deepseek-r1 --hardware gb200-nvl72 -c 1000000 --ranks 64 --kvp 64";
    let pieces = format!("{pieces} --tpa 1 --batch 256 --strategy helix --hopb on --emit trtllm");
    refused(&pieces, &["TensorRT-LLM", "HOP-B", "2 pieces", "--hopb off"]);
    let groups = format!("{r1} --dp 2 --kvp 2 --tpa 2 --hopb off --emit");
    refused(&format!("{groups} trtllm"), &["tpa=2"]);
    let medha = "--strategy medha --kvp 2 --tpa 8 --hopb off";
    refused(&format!("{LLAMA} --ranks 16 --batch 1 {medha} --emit vllm"), &["--strategy helix"]);
    let stages = format!("{LLAMA} --ranks 16 --batch 1 --strategy tp --pp 2 --emit helix");
    refused(&stages, &["helix can't express", "pp=2"]);
    refused(&format!("{LLAMA} --emit vllm --json"), &["--emit", "--json"]);
}

#[test]
fn helix_wins_where_tp_copies_the_cache() {
    let line = "plan --model deepseek-r1 --hardware hgx-b200 -c 65536 --ranks 8 --weights fp8";
    let report = json(&format!("{line} --kv bf16 --crossovers"));
    let crossovers = array(&report, "crossovers");
    let contexts: Vec<f64> = crossovers.iter().map(|c| number(c, "context")).collect();
    assert_eq!(contexts, [1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0]);
    let duel = &array(&crossovers[6], "duels")[2];
    assert!(number(&duel["helix"], "ttl_ms") < number(&duel["other"], "ttl_ms"), "{duel}");
    assert_eq!(duel["verdict"], "helix", "{duel}");
    let wins = &array(&crossovers[6], "wins")[0];
    assert!(number(wins, "from") <= 4.0 && wins["last"].is_boolean(), "{wins}");
}

/// A fixed degree of Helix leaves it opponents, the batches are those asked for, and a line for
/// each context and number of users says where Helix starts and stops winning.
#[test]
fn crossovers_say_where_helix_starts_and_stops_winning() {
    let line = "plan --model deepseek-r1 --hardware hgx-h200 -c 65536 --ranks 8 --weights fp8";
    let output = run(&format!("{line} --kv bf16 --kvp 8 --tpa 1 --batch 2,1,8 --crossovers"));
    let text = stdout(&output);
    let (_, tables) = text.split_once("best of the others").expect("crossovers");
    let words: Vec<Vec<&str>> = tables.lines().map(|l| l.split_whitespace().collect()).collect();
    assert!(words.contains(&vec!["context", "1", "2", "8"]), "{tables}");
    assert!(!tables.contains("/none"), "{tables}");
    for row in ["1024 positions never", "1 user from 65536 positions on"] {
        assert!(words.contains(&row.split(' ').collect()), "{row}: {tables}");
    }
}

/// A batch without an answer among batches with one: which, and what is short by how much.
#[test]
fn what_has_no_answer_is_said() {
    let line = "plan --model llama-3.1-405b --hardware gb200-nvl72 -c 131072 --ranks 8";
    let noted = |flags: &str| {
        let output = run(&format!("{line} {flags}"));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains("fastest with 1 user "), "{}", stdout(&output));
        stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let large = noted("--batch 1,100000");
    let words = "note: no layout holds 100000 users, not even the nearest: ";
    assert!(large.contains(words) && large.contains("GB short: a rank holds"), "{large}");
    assert!(!large.contains("trained for"), "{large}");
    let slow = noted("--batch 1,64 --ttl 15");
    let words = "no layout has a token within 15 ms with 64 users: the fastest takes ";
    assert!(slow.contains(words), "{slow}");
    let long = json(&format!("{LLAMA} --ranks 8 --batch 1,100000"));
    let notes = array(&long, "notes");
    assert!(
        notes.len() == 2 && notes[1].as_str().unwrap().contains("past the 131072"),
        "{notes:?}"
    );
}

#[test]
fn models_come_from_configurations_and_files() {
    for name in ["llama3", "deepseek-v3", "mixtral", "gpt-oss-mxfp4", "gemma3"] {
        let config = format!("{}/config.json", fixture(name));
        let of_config =
            json(&format!("plan --model {config} --hardware gb200-nvl72 -c 512 --ranks 2"));
        let line = format!("plan --model {} --hardware gb200-nvl72 -c 512", fixture(name));
        let of_directory = json(&format!("{line} --ranks 2 --weights fp4"));
        assert_eq!(of_config["front"], of_directory["front"], "{name}");
    }
    let report = json("plan --model MODEL --hardware epyc-9654-100g -c 512 --ranks 1..4");
    assert!(!array(&report, "front").is_empty());
}

/// What was not said is what the engine would use, and the paper's where the paper is about.
#[test]
fn keys_and_values_are_as_the_machine_would_have_them() {
    let kv = |hardware: &str| {
        json(&format!("plan --model llama-3.1-8b --hardware {hardware} -c 512 --ranks 2"))["kv"]
            .clone()
    };
    assert_eq!(kv("gb200-nvl72"), "fp4");
    assert_eq!(kv("epyc-9654-100g"), "f16");
}

/// By the name that was given, where the directory's says nothing of the model.
#[test]
fn a_configuration_keeps_its_files_name() {
    let plan = |of: &str, (key, value): (&str, usize), name: &str| {
        let text = std::fs::read_to_string(format!("{}/config.json", fixture(of))).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config[key] = value.into();
        file(name, config.to_string());
        let line = format!("plan --model {name} --hardware gb200-nvl72 -c 512 --ranks 1 --json");
        helix(words(&line)).current_dir(directory()).output().expect("helix runs")
    };
    let output = plan("llama3", ("num_key_value_heads", 9), "kv9.json");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in ["model", "model_source"] {
        assert_eq!(report[name], "kv9.json");
    }
    for (of, change, name, words) in [
        ("llama3", ("hidden_size", 0), "zero.json", "hidden_size = 0"),
        ("deepseek-v3", ("first_k_dense_replace", 3), "dense.json", "MoE layers is 0"),
    ] {
        let output = plan(of, change, name);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.starts_with(&format!("error: {name}: ")) && text.contains(words), "{text}");
    }
    let missing = format!("{}/missing.json", directory().display());
    let line = format!("plan --model {missing} --hardware gb200-nvl72 -c 512");
    refused(&line, &[&format!("cannot read {missing}")]);
}

#[test]
fn impossible_requests_say_why() {
    refused("plan --model llama-9 --hardware gb200-nvl72 -c 9", &["llama-9", "llama-3.1-405b"]);
    refused("plan --model llama-3.1-8b --hardware abacus -c 9", &["abacus", "gb200-nvl72"]);
    refused(&format!("{LLAMA} --ranks 1"), &["GB short", "of weights", "of KV"]);
    refused(&format!("{LLAMA} --ttl 1"), &["within 1 ms", "the fastest takes"]);
    refused(&format!("{LLAMA} --ttl 0"), &["--ttl 0"]);
    refused(&format!("{LLAMA} --ttl nan"), &["--ttl NaN"]);
    refused(&format!("{LLAMA} --ranks 8 --kvp 3"), &["kvp=3", "is 6 ranks, and 8"]);
    refused(&format!("{LLAMA} --strategy helix --tpa 16"), &["tpa=16", "8 KV heads"]);
    refused(&format!("{LLAMA} --ep 2 --strategy helix"), &["ep=2 spreads experts", "dense"]);
    refused(&format!("{LLAMA} --skew 0.5"), &["skew", "0.5"]);
    refused(&format!("{LLAMA} --mla-up before"), &["no latents", "--mla-up"]);
    refused(&format!("{LLAMA} --batch 99999999999"), &["the batch is 99999999999"]);
    refused(&format!("{LLAMA} --ttl 1e-300"), &["within 1e-300 ms", "with 1 sequence"]);
    refused(&format!("{LLAMA} --ttl=-1e300"), &["--ttl -1e300"]);
    refused(&format!("{LLAMA} --skew 1e308"), &["skew of experts is 1e308:"]);
    refused(&format!("{LLAMA} --ranks 0"), &["1 to 1024"]);
    refused(&format!("{LLAMA} --kv-block 0"), &["--kv-block 0"]);
    refused(&format!("{LLAMA} --weights fp3"), &["fp3", "q4_k"]);
    let most = "plan --model llama-3.1-8b --hardware gb200-nvl72 -c 18446744073709551615";
    refused(most, &["the context is 18446744073709551615:"]);
    refused(&format!("{LLAMA} --plot fronts.gif"), &["--plot", ".svg or .png"]);
    // Nothing is searched first: no plan keeps a token to 1 ms.
    for flag in ["--csv none.csv", "--html none.html", "--plot none.svg"] {
        let flag = flag.replace(' ', &format!(" {}/none/", directory().display()));
        refused(&format!("{LLAMA} --ttl 1 {flag}"), &[&flag[..5], "there is no directory"]);
    }
}

/// Refused where they would change nothing.
#[test]
fn threads_are_those_of_cores() {
    let on = |hardware: &str| format!("plan --model MODEL --hardware {hardware} -c 512 --ranks 1");
    refused(&format!("{} -t 56", on("xeon-8480-100g")), &["--threads 56", "has no [cores]"]);
    let preset = include_str!("../../helix-plan/machines/xeon-8480-100g.toml");
    let cores = "count = 2\nactive = [1, 2]\nread_gb_s = [30, 40]\nthreads = [1]\nfork_us = [0]";
    let with_cores = file("cores.toml", format!("{preset}\n[cores]\n{cores}\n"));
    let ttl = |threads: usize| {
        number(
            &json(&format!("{} -t {threads}", on(with_cores.to_str().unwrap())))["chosen"],
            "ttl_ms",
        )
    };
    assert!(ttl(1) > ttl(2));
}

#[test]
fn impossible_machines_say_why() {
    let text = include_str!("../../helix-plan/machines/gb200-nvl72.toml");
    let with = |name: &str, text: String| file(name, text).display().to_string();
    let refused_machine = |file: String, words: &[&str]| {
        refused(&format!("plan --model llama-3.1-8b --hardware {file} -c 512"), words);
    };
    let unknown = with("unknown.toml", format!("colour = 'green'\n{text}"));
    refused_machine(unknown, &["unknown.toml", "colour"]);
    let zero = text.replace("bandwidth_gb_s = { value = 8000", "bandwidth_gb_s = { value = 0");
    assert_ne!(zero, text);
    refused_machine(with("zero.toml", zero), &["zero.toml", "bandwidth_gb_s", "0"]);
    let huge = text.replace("bandwidth_gb_s = { value = 8000", "bandwidth_gb_s = { value = 1e308");
    refused_machine(with("huge.toml", huge), &["memory.bandwidth_gb_s is 1e308:"]);
    let (before, rest) = text.split_once("[arithmetic]").unwrap();
    let after = &rest[rest.find("\n[").unwrap()..];
    let bare = with("bare.toml", format!("{before}[arithmetic]{after}"));
    refused_machine(bare, &["it has none: its [arithmetic] is empty"]);
    refused_machine(with("empty.toml", String::new()), &["empty.toml", "missing field"]);
    refused_machine(with("text.toml", "this is no TOML".to_owned()), &["text.toml"]);
    let plain = with("plain.toml", text.to_owned());
    let output = run(&format!("plan --model llama-3.1-8b --hardware {plain} -c 512 --ranks 1"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
