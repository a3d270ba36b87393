//! Hugging Face directories against what transformers makes of them.
//!
//! The fixtures are tiny models of every architecture; beside each lie the tokens that its
//! tokenizer gives for awkward texts, and the texts that its chat template gives.

#[path = "../../helix-engine/tests/fixtures/directories.rs"]
mod fixtures;

use std::fs;

use helix_model::{Message, Model};
use serde_json::Value;

fn open(name: &str) -> Model {
    Model::open(&fixtures::path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn json(name: &str, suffix: &str) -> Vec<Value> {
    let text = fs::read_to_string(fixtures::path(&format!("{name}.{suffix}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(list: &Value) -> Vec<u32> {
    let ids = list.as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap().try_into().unwrap()).collect()
}

#[test]
fn tokens_equal_hugging_faces() {
    for name in fixtures::names() {
        let tokenizer = open(&name).tokenizer().unwrap_or_else(|error| panic!("{name}: {error}"));
        for case in json(&name, "texts") {
            let text = case["text"].as_str().unwrap();
            let found = match case["special"].as_bool().unwrap() {
                true => [false, true].map(|bos| tokenizer.encode_with_control(text, bos)),
                false => [false, true].map(|bos| tokenizer.encode(text, bos)),
            };
            let expected = [ids(&case["tokens"]), ids(&case["with_bos"])];
            assert_eq!(found, expected, "{name}: {text:?}");
            let decoded = case["decoded"].as_str().unwrap();
            assert_eq!(tokenizer.decode_with_control(&expected[0]), decoded, "{name}: {text:?}");
            let mut stream = tokenizer.stream(&[]).showing_control();
            let streamed: String = expected[0].iter().map(|&id| stream.push(id)).collect();
            assert_eq!(streamed + &stream.finish(), decoded, "{name}: {text:?}");
        }
    }
}

#[test]
fn chats_equal_transformers() {
    for name in fixtures::names() {
        let model = open(&name);
        let template = model.chat_template().unwrap().expect("a template");
        let tokenizer = model.tokenizer().unwrap();
        for case in json(&name, "chats") {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            match case["text"].as_str() {
                Some(text) => {
                    let found = template.render(&messages, prompt).unwrap();
                    assert_eq!(found, text, "{name}: {messages:?}");
                    tokenizer.encode_chat(&template, &messages, prompt).unwrap();
                }
                None => assert!(template.render(&messages, prompt).is_err(), "{name}"),
            }
        }
    }
}
