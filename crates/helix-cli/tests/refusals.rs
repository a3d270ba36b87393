//! Wrong requests: exit status 2, words that help, nothing on standard output, never a panic.

mod common;

use common::{directory, file, fixture, model_bytes, run, run_with, stderr};
use std::process::Output;

fn refused(line: &str, output: &Output, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{line}: {text}");
    assert!(output.stdout.is_empty(), "{line}: {output:?}");
    assert!(!text.contains("panicked"), "{line}: {text}");
    // clap wraps lines; words are looked for in the unwrapped text.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words {
        assert!(text.contains(word), "{line}: {word:?} in {text}");
    }
}

fn check(cases: &[(&str, &[&str])]) {
    for (line, words) in cases {
        refused(line, &run(line), words);
    }
}

#[test]
fn models() {
    let text = file("text.gguf", "this is no model");
    let empty = file("empty.gguf", "");
    let bytes = model_bytes();
    let cut = file("cut.gguf", &bytes[..bytes.len() / 2]);
    let head = file("head.gguf", &bytes[..100]);
    let cases: [(String, &[&str]); 8] = [
        ("run Some/Model -p x".into(), &["directory Some/Model", "hf:Some/Model"]),
        (
            "run no-such-model -p x".into(),
            &["there is no file or directory no-such-model", "helix/models"],
        ),
        (
            "run /no/such/model.gguf -p x".into(),
            &["there is no file or directory /no/such/model.gguf"],
        ),
        (format!("run {} -p x", directory().display()), &["has no config.json"]),
        (format!("run {} -p x", text.display()), &["text.gguf", "not a GGUF file"]),
        (format!("run {} -p x", empty.display()), &["empty.gguf"]),
        (format!("run {} -p x", cut.display()), &["cut.gguf", "bytes"]),
        (format!("inspect {}", head.display()), &["head.gguf", "ends too early"]),
    ];
    for (line, words) in &cases {
        refused(line, &run(line), words);
    }
}

/// A copy of a directory of the fixtures, one of whose files is `change`d.
fn spoilt(model: &str, copy: &str, name: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> String {
    let to = directory().join(copy);
    std::fs::create_dir_all(&to).expect("a directory");
    for entry in std::fs::read_dir(fixture(model)).expect("a fixture") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
    }
    let path = to.join(name);
    std::fs::write(&path, change(std::fs::read(&path).unwrap_or_default())).expect("a file");
    to.display().to_string()
}

#[test]
fn directories() {
    let text = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).expect("text");
            assert!(text.contains(from), "{from} in {text}");
            text.replacen(from, to, 1).into_bytes()
        }
    };
    let whole = |with: &'static str| move |_| with.as_bytes().to_vec();
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let long = |mut bytes: Vec<u8>| {
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        bytes
    };
    let config = "config.json";
    let index = "model.safetensors.index.json";
    let template = "chat_template.jinja";
    let deep = "[".repeat(100_000);
    let cases: [(String, &[&str]); 12] = [
        (spoilt("qwen3", "d1", config, half), &[config]),
        (spoilt("qwen3", "d2", config, |_| deep.clone().into_bytes()), &[config]),
        (
            spoilt("qwen3", "d3", config, text("\"hidden_size\": ", "\"hidden_size\": 99999999")),
            &[config, "hidden_size"],
        ),
        (
            spoilt(
                "qwen3",
                "d4",
                config,
                text("\"num_hidden_layers\": ", "\"num_hidden_layers\": -"),
            ),
            &[config, "num_hidden_layers"],
        ),
        (spoilt("qwen3", "d5", config, text("\"qwen3\"", "\"no_such\"")), &["no_such", "qwen3"]),
        (
            spoilt(
                "qwen3-moe",
                "d6",
                config,
                text("\"num_experts_per_tok\": ", "\"num_experts_per_tok\": 9"),
            ),
            &[config, "93 of 7 experts per token", "1 to 7"],
        ),
        (spoilt("qwen3", "d7", "model.safetensors", half), &["model.safetensors"]),
        (spoilt("qwen3", "d8", "model.safetensors", long), &["model.safetensors"]),
        (
            spoilt("llama3", "d9", index, text("model-00001", "../model-00001")),
            &[index, "../model-00001"],
        ),
        (spoilt("llama3", "d10", index, whole("{\"weight_map\": 3}")), &[index]),
        (spoilt("qwen3", "d11", "tokenizer.json", half), &["tokenizer.json"]),
        (spoilt("qwen3", "d12", "tokenizer.json", whole("{}")), &["tokenizer.json"]),
    ];
    for (path, words) in &cases {
        refused(path, &run(&format!("run {path} -p hello -n 1")), words);
    }
    // A tokenizer that knows more than the model: what it makes must be in the vocabulary.
    let added = r#""added_tokens": [{"id": 283, "content": "<beyond>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": false},"#;
    let path = spoilt("qwen3", "d13", "tokenizer.json", text("\"added_tokens\": [", added));
    let words = file("beyond.txt", "some <beyond> words ".repeat(9));
    for line in [
        format!("run {path} -p 'a<beyond>b' -n 1"),
        format!("run {path} -p 'a<beyond>b' -n 1 --chat"),
        format!("verify {path} --ranks 1 -n 1 -p 'a<beyond>b'"),
        format!("perplexity {path} -f {} -c 8", words.display()),
    ] {
        refused(&line, &run(&line), &["token 283 is not one of the model's 283"]);
    }
    // A template is only read where there is a chat.
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x\
                   {% endfor %}{% endfor %}{% endfor %}";
    for (copy, hostile) in [
        ("t1", endless),
        ("t2", "{{ raise_exception('not today') }}"),
        ("t3", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        ("t4", "{% if"),
    ] {
        let path = spoilt("qwen3", copy, template, |_| hostile.as_bytes().to_vec());
        let line = format!("run {path} -p hello -n 1 --chat");
        refused(&line, &run(&line), &["template"]);
    }
}

#[test]
fn layouts() {
    check(&[
        ("inspect MODEL --tpa 3", &["tpa=3", "2 KV heads", "nearest", "--strategy tp"]),
        ("inspect MODEL --kvp 2 --tpf 3", &["kvp=2", "tpf=3", "nearest legal"]),
        ("inspect MODEL --kvp 0", &["at least 1"]),
        ("inspect MODEL --ep 2", &["dense", "ep=1"]),
        ("inspect MODEL --strategy tp --kvp 2", &["tp needs kvp=1"]),
        ("inspect MODEL --ranks 0", &["0 ranks"]),
        ("inspect MODEL --ranks 99999", &["99999 ranks", "1024"]),
        ("inspect MODEL --kvp 99999999999", &["1024"]),
        ("inspect MODEL --ranks 4 --kvp 3", &["--kvp 3 does not divide --ranks 4"]),
        ("inspect MODEL --ranks 4 --kvp 0", &["--kvp 0 does not divide --ranks 4"]),
        ("inspect MODEL --ranks 4 --tpf 2", &["tpf=2", "nearest legal"]),
        ("inspect MODEL --ranks 6 --kvp 2 --tpa 2", &["--ranks 6", "4 ranks"]),
        ("inspect MODEL --ranks 5 --kvp 2 --tpa 2 --qkv gather", &["--ranks 5", "4 ranks"]),
        ("inspect MODEL --strategy dp", &["\"dp\"", "helix, tp, medha or dp-ep"]),
        ("inspect MODEL --dp 2", &["dp=2", "use dp=1", "--strategy dp-ep"]),
        ("inspect MODEL --strategy dp-ep --kvp 2", &["dp-ep needs kvp=1 and tpa=1", "dp=2 tpf=2"]),
        ("inspect MODEL --ranks 4 --dp 2", &["dp=2"]),
        ("inspect MODEL --strategy dp-ep --ranks 4 --dp 2", &["--ranks 4", "2 ranks"]),
        ("inspect MODEL --kv-block 0", &["KV block of 0"]),
        ("inspect MODEL --kv-block 100000", &["KV block of 100000"]),
        ("inspect MODEL --kv-type f8", &["f8", "q8_0"]),
        ("inspect MODEL --qkv both", &["replicate or gather"]),
        ("run MODEL -p x -t 0", &["--threads", "0"]),
        ("run MODEL -p x -t 5000", &["5000 threads", "1024"]),
        ("run MODEL -p x -t 300 --ranks 4", &["4 ranks of 300 threads", "1200"]),
        ("run MODEL -p x --ranks two", &["two"]),
    ]);
}

#[test]
fn prompts() {
    let empty = file("empty.txt", "");
    let latin = file("latin1.txt", b"caf\xe9 au lait");
    let long = file("long.txt", "word ".repeat(2000));
    let cases: [(String, &[&str]); 9] = [
        ("run MODEL -p ''".into(), &["the prompt is empty"]),
        ("run MODEL".into(), &["the prompt is empty"]),
        (format!("run MODEL -f {}", empty.display()), &["the prompt is empty"]),
        (format!("run MODEL -f {}", latin.display()), &["latin1.txt", "UTF-8", "byte 3"]),
        ("run MODEL -f /no/such/file".into(), &["/no/such/file", "cannot read"]),
        (format!("run MODEL -f {}", directory().display()), &["cannot read"]),
        ("run MODEL -p 'a longer prompt' -c 3".into(), &["past the context of 3", "-c"]),
        (format!("run MODEL -f {}", long.display()), &["past the context of 512"]),
        ("run MODEL -p x -f y".into(), &["cannot be used with"]),
    ];
    for (line, words) in &cases {
        refused(line, &run(line), words);
    }
    refused("standard input", &run_with("run MODEL", ""), &["the prompt is empty"]);
}

#[test]
fn flags() {
    check(&[
        ("", &["Usage"]),
        ("walk MODEL", &["walk"]),
        ("run", &["MODEL"]),
        ("run MODEL -p x --no-such-flag", &["--no-such-flag"]),
        ("run MODEL -p x -n 0", &["0"]),
        ("run MODEL -p x -n many", &["many"]),
        ("run MODEL -p x -c 0", &["0"]),
        ("run MODEL -p x -c 99999999999", &["context"]),
        ("run MODEL -p x -c 4000000000 --kv-type f32", &["MiB", "context"]),
        ("run MODEL -i --json", &["cannot be used with"]),
        ("run MODEL -p x --system y", &["--system needs --chat"]),
        ("run MODEL -p x --temp -1", &["temperature is -1", "from 0 to 100"]),
        ("run MODEL -p x --temp nan", &["temperature is NaN"]),
        ("run MODEL -p x --temp warm", &["warm"]),
        ("run MODEL -p x --top-p 0", &["top-p is 0"]),
        ("run MODEL -p x --top-p 1.5", &["top-p is 1.5"]),
        ("run MODEL -p x --top-k -3", &["-3"]),
        ("run MODEL -p x --min-p -0.1", &["min-p is -0.1"]),
        ("run MODEL -p x --repeat-penalty 0", &["repetition penalty is 0"]),
        ("run MODEL -p x --presence-penalty 1000", &["presence penalty is 1000"]),
        ("run MODEL -p x --seed x", &["--seed"]),
    ]);
}

#[test]
fn logits() {
    let folder = directory().display();
    let cases: [(String, &[&str]); 7] = [
        ("logits MODEL --tokens 1".into(), &["--out"]),
        ("logits MODEL --out x".into(), &["--tokens"]),
        ("logits MODEL --tokens 1,x --out x".into(), &["'x'"]),
        ("logits MODEL --tokens '' --out x".into(), &["--tokens"]),
        (format!("logits MODEL --tokens 1,300 --out {folder}/x"), &["token 300", "0 to 299"]),
        ("logits MODEL --tokens 1 --out /no/such/x".into(), &["no directory /no/such"]),
        (format!("logits MODEL --tokens 1 --out {folder}"), &["is a directory"]),
    ];
    for (line, words) in &cases {
        refused(line, &run(line), words);
    }
    assert!(!directory().join("x").exists());
}

#[test]
fn measurements() {
    let short = file("short.txt", "too short");
    let cases: [(String, &[&str]); 12] = [
        ("perplexity MODEL".into(), &["--file"]),
        ("perplexity MODEL -f /no/such/text".into(), &["/no/such/text"]),
        (format!("perplexity MODEL -f {}", short.display()), &["less than one chunk of 512"]),
        (format!("perplexity MODEL -f {} -c 2", short.display()), &["2"]),
        ("bench MODEL -p 0 -n 0".into(), &["nothing to time"]),
        ("bench MODEL -b 0".into(), &["-b 0"]),
        ("bench MODEL -r 0".into(), &["0"]),
        ("bench MODEL -d x".into(), &["'x'"]),
        ("verify MODEL --ranks 0".into(), &["0"]),
        ("verify MODEL --layouts round".into(), &["round", "helix, tp, medha or dp-ep"]),
        ("verify MODEL --layouts 'helix tpa=9'".into(), &["tpa=9", "nearest"]),
        ("verify MODEL --tolerance nan".into(), &["--tolerance NaN"]),
    ];
    for (line, words) in &cases {
        refused(line, &run(line), words);
    }
}

#[test]
fn machines_that_are_none_are_refused() {
    let bad = file("bad-machine.toml", "name = 'x'\n[memory]\ncapacity = 3\n");
    let bench = "bench MODEL -p 0 -n 1 -d 0 -r 1 --compare-plan";
    for (line, words) in [
        (format!("{bench} tpu-v9"), "no machine is called \"tpu-v9\""),
        (format!("{bench} '{}'", bad.display()), "unknown field `capacity`"),
        ("probe --cores 1000000".to_owned(), "1..=1024"),
        ("probe --cores 1024".to_owned(), "this process may use"),
        ("probe --out /no/such/folder/m.toml".to_owned(), "/no/such/folder"),
    ] {
        let output = run(&line);
        assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{line}: {}", stderr(&output));
    }
}

#[test]
fn servers() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    check(&[
        ("serve MODEL --parallel 4 --step-tokens 3", &["--step-tokens 3", "at least 4"]),
        ("serve MODEL --parallel 0", &["--parallel", "1..=1024"]),
        ("serve MODEL --port 70000", &["--port", "70000"]),
        ("serve no-such-model --port 0", &["there is no file or directory no-such-model"]),
        ("serve MODEL --host nowhere.invalid", &["cannot listen at nowhere.invalid port 8080"]),
    ]);
    let line = format!("serve MODEL --port {port}");
    refused(&line, &run(&line), &[&format!("cannot listen at 127.0.0.1 port {port}"), "in use"]);
}
