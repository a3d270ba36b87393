//! Who is refused, with which status and words; and what happens to those who leave, and at the end.

mod common;

use common::{
    CONTEXT, completion, endless, engine, options, serve, serve_text_of, server, text_alone,
};
use helix_engine::EngineOptions;
use helix_model::synthetic::{Spec, gguf};
use helix_model::{Arch, Model};
use helix_server::{MAX_BODY_BYTES, ServerError};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Asserts a refusal's status, its field and its words.
fn refused((status, document): (u16, Value), expected: u16, param: &str, words: &str) {
    assert_eq!(status, expected, "{document}");
    let error = &document["error"];
    let message = error["message"].as_str().unwrap_or_else(|| panic!("{document}"));
    assert!(message.contains(words), "{words:?} in {message:?}");
    assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{document}");
    let kind = match expected {
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    assert_eq!(error["type"], kind);
}

#[test]
fn fields_that_are_wrong_are_named() {
    let server = server(1, 0);
    let plain = json!({"prompt": "x", "max_tokens": 1});
    let stops = json!(["a", "b", "c", "d", "e"]);
    let cases = [
        ("prompt", Value::Null, "prompt is missing"),
        ("prompt", json!(7), "prompt is 7"),
        ("prompt", json!(["a", "b"]), "2 prompts"),
        ("prompt", json!([1, -2]), "it must be a string or an array of tokens' ids"),
        ("prompt", json!([1, 300]), "token 300 is none of the model's 300"),
        ("max_tokens", json!(0), "max_tokens is 0: it must be an integer from 1"),
        ("max_tokens", json!(-5), "max_tokens is -5"),
        ("max_tokens", json!(1e30), "max_tokens is 1e+30"),
        ("max_tokens", json!("many"), "max_tokens is \"many\""),
        ("temperature", json!(-0.5), "temperature is -0.5: it must be from 0 to 100"),
        ("temperature", json!(1e39), "temperature is inf"),
        ("temperature", json!("NaN"), "temperature is \"NaN\": it must be a number"),
        ("top_p", json!(0), "top-p is 0"),
        ("min_p", json!(2), "min-p is 2"),
        ("top_k", json!(-2), "top_k is -2"),
        ("repetition_penalty", json!(0), "repetition penalty is 0"),
        ("presence_penalty", json!(1000), "presence penalty is 1000"),
        ("seed", json!(1.5), "seed is 1.5"),
        ("stop", json!(""), "has 0 bytes"),
        ("stop", json!("x".repeat(2000)), "has 2000 bytes"),
        ("stop", stops, "5 strings"),
        ("stop", json!([1]), "stop is 1"),
        ("stream", json!("yes"), "stream is \"yes\""),
        ("stream_options", json!({"include_usage": true}), "only for \"stream\": true"),
        ("n", json!(2), "n is not supported by this server: leave it out, or send 1"),
        ("best_of", json!(3), "best_of is not supported"),
        ("echo", json!(true), "echo is not supported"),
        ("suffix", json!("end"), "suffix is not supported"),
        ("logprobs", json!(0), "logprobs is not supported"),
        ("logit_bias", json!({"50": -100}), "logit_bias is not supported"),
        ("tools", json!([{"type": "function"}]), "tools is not supported"),
        ("response_format", json!({"type": "json_object"}), "response_format is not supported"),
        ("frobnicate", json!(true), "\"frobnicate\" is no field that this server knows"),
    ];
    for (field, value, words) in cases {
        let mut body = plain.clone();
        body[field] = value;
        refused(server.post(COMPLETIONS, &body), 400, field, words);
    }
    assert_eq!(server.metric("helix_requests_total{outcome=\"refused\"}"), 33.0);
    server.complete(COMPLETIONS, &plain);
}

/// The tokenizer of Gemma 3 1B knows a token more than the model has rows; what has it must not end
/// the engine for all.
#[test]
fn texts_of_tokens_that_the_model_lacks_are_refused() {
    let larger = || {
        let spec = Spec { vocab: 320, ..Spec::tiny(Arch::Llama) };
        Arc::new(Model::from_gguf_bytes(gguf(&spec, 7)).expect("a model"))
    };
    let server = serve_text_of(larger, 0, || engine(1, options(1)));
    let words = "token 311 is none of the model's 300";
    refused(server.post(COMPLETIONS, &completion("x Z", 1)), 400, "prompt", words);
    let messages = json!([{"role": "user", "content": "x Z"}]);
    refused(server.post(CHAT, &json!({ "messages": messages })), 400, "messages", words);
    server.complete(COMPLETIONS, &completion("x", 1));
}

#[test]
fn messages_that_are_wrong_are_named() {
    let server = server(1, 0);
    let image = json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]);
    let tool = json!([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]);
    let cases = [
        (json!([]), "messages", "give at least one"),
        (json!("hi"), "messages", "an array of messages"),
        (json!(["hi"]), "", "messages[0] is not a JSON object"),
        (json!([{"content": "x"}]), "messages[0].role", "is missing"),
        (json!([{"role": "user"}]), "messages[0].content", "is missing"),
        (json!([{"role": "user", "content": 5}]), "messages[0].content", "is 5"),
        (json!([{"role": "tool", "content": "x"}]), "messages[0].role", "knows the roles system"),
        (json!([{"role": "user", "content": image}]), "messages[0].content[1].type", "image_url"),
        (tool, "messages[0].tool_calls", "is not supported"),
    ];
    for (messages, param, words) in cases {
        refused(server.post(CHAT, &json!({ "messages": messages })), 400, param, words);
    }
    refused(server.post(CHAT, &json!({})), 400, "messages", "messages is missing");
    refused(server.post(CHAT, &completion("x", 1)), 400, "messages", "messages is missing");
}

#[test]
fn other_models_addresses_and_methods_are_not_found() {
    let server = server(1, 0);
    let mut body = completion("x", 1);
    body["model"] = json!("gpt-5");
    let words = "there is no model \"gpt-5\" here: ask for \"model\": \"tiny\"";
    refused(server.post(COMPLETIONS, &body), 404, "model", words);
    refused(server.post("/v1/embeddings", &body), 404, "", "/v1/chat/completions");
    let (status, text) = server.get(COMPLETIONS);
    refused((status, serde_json::from_str(&text).unwrap()), 405, "", "does not take GET");
    let (status, text) = server.get("/v1/models");
    let models: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("tiny")));
    assert_eq!(models["data"][0]["max_model_len"], CONTEXT);
}

#[test]
fn bodies_have_a_limit_and_must_be_text() {
    let server = server(1, 0);
    let mut body = completion("x", 1).to_string().into_bytes();
    body.resize(MAX_BODY_BYTES, b' ');
    assert_eq!(server.post_bytes(COMPLETIONS, &body).0, 200);
    body.push(b' ');
    let (status, text) = server.post_bytes(COMPLETIONS, &body);
    refused((status, serde_json::from_str(&text).unwrap()), 413, "", "8388608");
    let deep = format!("{{\"prompt\":{}", "[".repeat(1 << 20));
    let cases: [(&[u8], &str); 4] = [
        (b"", "not a JSON object"),
        (b"not json", "not a JSON object"),
        (b"{\"prompt\":\"\xc3\"}", "not UTF-8, from byte 11"),
        (deep.as_bytes(), "not a JSON object"),
    ];
    for (body, words) in cases {
        let (status, text) = server.post_bytes(COMPLETIONS, body);
        refused((status, serde_json::from_str(&text).unwrap()), 400, "", words);
    }
    // Deep nesting that ends, in a field that is ignored: nobody goes down there.
    let nested = format!("{}{}", "[".repeat(1 << 18), "]".repeat(1 << 18));
    let body = format!("{{\"prompt\":\"x\",\"max_tokens\":1,\"metadata\":{nested}}}");
    assert_eq!(server.post_bytes(COMPLETIONS, body.as_bytes()).0, 200);
}

#[test]
fn prompts_must_fit_the_context() {
    let options = EngineOptions { max_context: 32, ..common::options(1) };
    let server = serve(0, move || common::engine(1, options));
    let prompt = |tokens: usize| completion(vec![65u32; tokens], 1);
    let (status, document) = server.post(COMPLETIONS, &prompt(33));
    assert_eq!(document["error"]["code"], "context_length_exceeded");
    let words = "33 tokens is past the context of 32; shorten it by 1";
    refused((status, document), 400, "", words);
    server.complete(COMPLETIONS, &prompt(32));
    refused(server.post(COMPLETIONS, &completion("", 1)), 400, "", "the prompt is empty");
}

#[test]
fn a_full_queue_refuses_and_a_client_that_leaves_makes_room() {
    let server = server(1, 1);
    let mut running = server.stream(COMPLETIONS, &endless());
    assert!(running.next().is_some());
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.complete(COMPLETIONS, &completion("wait", 5)));
        server.wait_for("helix_sequences_waiting", 1.0);
        let response = server.send(COMPLETIONS, completion("late", 5).to_string().as_bytes());
        assert_eq!(response.status(), 429);
        assert!(response.headers().contains_key("retry-after"));
        refused(
            server.post(COMPLETIONS, &completion("late", 5)),
            429,
            "",
            "1 requests wait already",
        );
        // The one that runs would run for long: its client leaves.
        drop(running);
        waiting.join().expect("an answer")
    });
    assert_eq!(waiting["choices"][0]["text"], text_alone("wait", 5));
    assert_eq!(server.metric("helix_requests_total{outcome=\"cancelled\"}"), 1.0);
    assert_eq!(server.metric("helix_requests_total{outcome=\"refused\"}"), 2.0);
}

#[test]
fn clients_that_leave_are_noticed_while_they_wait_or_are_not_streamed_to() {
    let server = server(1, 1);
    let knock = |body: &Value| {
        let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
        let body = body.to_string();
        let length = body.len();
        write!(
            stream,
            "POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    };
    let running = knock(&endless());
    server.wait_for("helix_sequences_running", 1.0);
    let waiting = knock(&endless());
    server.wait_for("helix_sequences_waiting", 1.0);
    drop(waiting);
    server.wait_for("helix_sequences_waiting", 0.0);
    drop(running);
    server.wait_for("helix_sequences_running", 0.0);
    assert_eq!(server.metric("helix_requests_total{outcome=\"cancelled\"}"), 2.0);
}

#[test]
fn a_reader_that_does_not_read_stalls_nobody() {
    let server = server(2, 0);
    // Its answer is larger than what sockets hold, and nobody reads it.
    let stuck = server.stream(COMPLETIONS, &endless());
    for _ in 0..3 {
        let document = server.complete(COMPLETIONS, &completion("go on", 50));
        assert_eq!(document["choices"][0]["text"], text_alone("go on", 50));
    }
    drop(stuck);
    server.wait_for("helix_sequences_running", 0.0);
}

#[test]
fn a_server_that_drains_finishes_what_it_has_and_takes_no_more() {
    let server = server(1, 1);
    let mut running = server.stream(COMPLETIONS, &completion("last words", 3000));
    let mut text: String = running.next().expect("a piece");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.complete(COMPLETIONS, &completion("wait", 5)));
        server.wait_for("helix_sequences_waiting", 1.0);
        server.handle.drain();
        refused(server.post(COMPLETIONS, &completion("late", 5)), 503, "", "shutting down");
        assert_eq!(server.get("/health"), (503, "{\"status\":\"draining\"}".into()));
        text += &running.by_ref().last().expect("an end");
        assert!(text.ends_with("[DONE]"));
        let document = waiting.join().expect("an answer");
        assert_eq!(document["choices"][0]["text"], text_alone("wait", 5));
    });
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    server.end().expect("a good end");
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn an_engine_that_fails_ends_the_server_and_says_so() {
    // Logits for one sequence at a time: a step that two decode in is refused.
    let options = EngineOptions { max_logits: 1, ..common::options(2) };
    let server = serve(0, move || common::engine(1, options));
    let mut running = server.stream(COMPLETIONS, &endless());
    assert!(running.next().is_some());
    let why = "2 wanted rows of logits, the engine was sized for 1";
    refused(server.post(COMPLETIONS, &endless()), 500, "", why);
    let last = running.last().expect("an end");
    refused((500, serde_json::from_str(&last).unwrap()), 500, "", why);
    let error = server.end().expect_err("the engine's failure");
    assert!(matches!(error, ServerError::Engine(_)), "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn half_a_request_gets_no_answer_and_does_no_harm() {
    let server = server(1, 0);
    let address = server.url.strip_prefix("http://").unwrap();
    for half in ["POST /v1/comp", "POST /v1/completions HTTP/1.1\r\ncontent-length: 50\r\n\r\n{"] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(half.as_bytes()).unwrap();
    }
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    server.complete(COMPLETIONS, &completion("x", 1));
}
