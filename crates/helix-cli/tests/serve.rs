//! `helix serve`: the texts of `helix run`, and an end in good order.
#![cfg(unix)]

mod common;
mod serving;

use common::{interrupt, json, signal, start, status};
use serde_json::json;
use serving::Served;
use std::io::Read;

const COMPLETIONS: &str = "/v1/completions";

#[test]
fn texts_are_those_of_run() {
    let flags = "--ranks 2 -t 1 --precise";
    let run = |more: &str| json(&format!("run MODEL -p hello -n 20 --ignore-eos {flags} {more}"));
    let mut served = Served::new(start(&format!("serve MODEL --port 0 --name x {flags}")));
    let asked = json!({"model": "x", "prompt": "hello", "max_tokens": 20, "temperature": 0,
        "ignore_eos": true});
    let (code, document) = served.post(COMPLETIONS, &asked);
    assert_eq!((code, &document["choices"][0]["text"]), (200, &run("")["text"]));

    let mut asked = json!({"messages": [{"role": "system", "content": "be terse"},
        {"role": "user", "content": "hello"}], "max_tokens": 20, "temperature": 0,
        "ignore_eos": true});
    let (code, document) = served.post("/v1/chat/completions", &asked);
    let message = &document["choices"][0]["message"]["content"];
    assert_eq!((code, message), (200, &run("--chat --system 'be terse'")["text"]));

    asked["temperature"] = json!(1.5);
    asked["seed"] = json!(7);
    let (_, document) = served.post("/v1/chat/completions", &asked);
    let drawn = run("--chat --system 'be terse' --temp 1.5 --seed 7");
    assert_eq!(document["choices"][0]["message"]["content"], drawn["text"]);

    let (_, models) = served.get("/v1/models");
    // The model was trained for 512 positions.
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&json!("x"), &json!(512))
    );
    assert!(served.said.contains("layout:"), "the planner's choice: {}", served.said);
    interrupt(&served.child);
    assert_eq!(status(&mut served.child), Some(0));
    let words = served.words();
    assert!(words.contains("4 sequences at once, of 512 positions each"), "{words}");
    assert!(words.contains("finishing what runs"), "{words}");
}

#[test]
fn the_first_signal_drains_and_the_second_ends() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let mut served = Served::new(start("serve MODEL --port 0 -c 100000 --parallel 1 -t 1"));
        let (_, models) = served.get("/v1/models");
        assert_eq!(models["data"][0]["id"], "tiny");
        signal(&served.child, name);
        assert_eq!(status(&mut served.child), Some(0), "{name}: nothing is left to do");

        let mut served = Served::new(start("serve MODEL --port 0 -c 100000 --parallel 1 -t 1"));
        let endless = json!({"prompt": "x", "max_tokens": 100000, "ignore_eos": true,
            "stream": true});
        let mut reader = served.send(COMPLETIONS, &endless).into_body().into_reader();
        let mut byte = [0];
        reader.read_exact(&mut byte).expect("a piece");
        signal(&served.child, name);
        // It goes on, but takes no more.
        while served.get("/health").0 == 200 {}
        assert_eq!(served.post(COMPLETIONS, &json!({"prompt": "x"})).0, 503, "{name}");
        reader.read_exact(&mut byte).expect("more");
        signal(&served.child, name);
        assert_eq!(status(&mut served.child), Some(code), "{name}");
    }
}
