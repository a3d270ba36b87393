//! What the server answers is what the engine alone says, however it is asked and whoever else is.

mod common;

use common::{NAME, alone, answer_alone, completion, server, text_alone, tokenizer};
use helix_server::ServerError;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn text(document: &Value) -> &str {
    document["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{document}"))
}

/// A stream's text, its last reason to finish, and how many pieces had text.
fn joined(documents: &[Value]) -> (String, Value, usize) {
    let (mut all, mut reason, mut count) = (String::new(), Value::Null, 0);
    for choice in documents.iter().filter_map(|document| document["choices"].get(0)) {
        let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
        count += usize::from(text.is_some_and(|text| !text.is_empty()));
        all += text.unwrap_or_default();
        assert!(reason.is_null(), "something after the end: {choice}");
        reason = choice["finish_reason"].clone();
    }
    (all, reason, count)
}

#[test]
fn completions_are_what_the_engine_alone_makes() {
    let server = server(2, 4);
    let prompt = "a prompt of more tokens than a step of this engine has room for";
    let mut asked = completion(prompt, 20);
    let document = server.complete(COMPLETIONS, &asked);
    assert_eq!(text(&document), text_alone(prompt, 20));
    assert_eq!(document["object"], "text_completion");
    assert_eq!(document["model"], NAME);
    assert_eq!(document["choices"][0]["finish_reason"], "length");
    let prompt_tokens = tokenizer().encode_with_control(prompt, true).len();
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": 20,
        "total_tokens": prompt_tokens + 20});
    assert_eq!(document["usage"], usage);

    // 16 tokens unless told otherwise; and the prompt may be tokens, or an array of one prompt.
    asked.as_object_mut().unwrap().remove("max_tokens");
    for prompt in [json!(prompt), json!([prompt]), json!([65, 66, 67, 68]), json!([[65, 66]])] {
        asked["prompt"] = prompt;
        let document = server.complete(COMPLETIONS, &asked);
        assert_eq!(document["usage"]["completion_tokens"], 16, "{document}");
    }
    asked["prompt"] = json!([65, 66, 67, 68]);
    let expected = tokenizer().decode(&alone(&[65, 66, 67, 68], 16));
    assert_eq!(text(&server.complete(COMPLETIONS, &asked)), expected);
}

#[test]
fn chats_are_answered_by_the_template() {
    let server = server(1, 4);
    let mut asked = json!({
        "model": NAME, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12,
        "temperature": 0, "ignore_eos": true, "user": "somebody", "store": false,
        "n": 1, "tools": [], "response_format": {"type": "text"}, "logprobs": null,
    });
    let document = server.complete(CHAT, &asked);
    let expected = answer_alone("hello", 12);
    let message = json!({"role": "assistant", "content": expected});
    assert_eq!(document["choices"][0]["message"], message);
    assert_eq!(document["object"], "chat.completion");

    let parts = json!([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]);
    asked["messages"][0]["content"] = parts;
    let document = server.complete(CHAT, &asked);
    assert_eq!(document["choices"][0]["message"], message);

    // A control token's name in a message is text, and the answer that came back may be sent again.
    asked["messages"] = json!([
        {"role": "system", "content": "terse"}, {"role": "user", "content": "<|im_end|>"},
        {"role": "assistant", "content": "a", "tool_calls": [], "refusal": null},
        {"role": "user", "content": "b"},
    ]);
    server.complete(CHAT, &asked);
}

#[test]
fn requests_at_once_get_the_text_that_each_gets_alone() {
    let server = server(3, 8);
    let prompts = ["a", "of several words", "x y z", "", "1234567890", "é", "\n\n", "and so on"];
    let prompt = |index: usize| format!("{}{}", "-".repeat(1 + 7 * index), prompts[index]);
    std::thread::scope(|scope| {
        let ask = |index: usize| {
            let server = &server;
            scope.spawn(move || {
                let asked = completion(prompt(index), 10 + index);
                text(&server.complete(COMPLETIONS, &asked)).to_owned()
            })
        };
        let asked: Vec<_> = (0..prompts.len()).map(ask).collect();
        for (index, answer) in asked.into_iter().enumerate() {
            let expected = text_alone(&prompt(index), 10 + index);
            assert_eq!(answer.join().expect("an answer"), expected, "prompt {index}");
        }
    });
    assert_eq!(server.metric("helix_requests_total{outcome=\"length\"}"), 8.0);
    assert_eq!(server.metric("helix_ttft_seconds_count"), 8.0);
    server.wait_for("helix_sequences_running", 0.0);
}

#[test]
fn pieces_of_a_stream_are_the_whole_text() {
    let server = server(2, 4);
    let asked = completion("once upon", 40);
    let documents = server.stream(COMPLETIONS, &asked).documents();
    let (streamed, reason, count) = joined(&documents);
    assert_eq!(streamed, text_alone("once upon", 40));
    assert_eq!(reason, "length");
    assert!(count > 10, "{count} pieces");
    assert!(documents.iter().all(|document| document.get("usage").is_none()));

    let mut asked = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 30,
        "temperature": 0, "ignore_eos": true, "stream_options": {"include_usage": true}});
    let mut documents = server.stream(CHAT, &asked).documents();
    let last = documents.pop().expect("a piece");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 30);
    assert!(documents.iter().all(|document| document["usage"].is_null()));
    assert!(documents.iter().all(|document| document["id"] == last["id"]));
    assert_eq!(documents[0]["object"], "chat.completion.chunk");
    assert_eq!(documents[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(joined(&documents).0, answer_alone("hi", 30));

    asked.as_object_mut().unwrap().remove("stream_options");
    let document = server.complete(CHAT, &asked);
    assert_eq!(document["choices"][0]["message"]["content"], joined(&documents).0);
}

#[test]
fn stop_strings_end_texts_and_do_not_show() {
    let server = server(2, 4);
    let whole = text_alone("stop here", 60);
    let chars: Vec<char> = whole.chars().collect();
    // Strings of the text itself, so that most are several tokens.
    for len in [1, 2, 3, 5, 8] {
        let stop: String = chars[20..20 + len].iter().collect();
        let expected = &whole[..whole.find(&stop).expect("it is in there")];
        let mut asked = completion("stop here", 60);
        asked["stop"] = json!(["never in there", stop]);
        let document = server.complete(COMPLETIONS, &asked);
        assert_eq!(text(&document), expected, "{stop:?}");
        assert_eq!(document["choices"][0]["finish_reason"], "stop");
        let drawn = document["usage"]["completion_tokens"].as_u64().expect("a number");
        assert!(drawn < 60, "it stops at once, not at the limit");
        let (streamed, reason, _) = joined(&server.stream(COMPLETIONS, &asked).documents());
        assert_eq!((streamed.as_str(), reason), (expected, json!("stop")), "{stop:?}");
    }
    // What is held back as the start of one comes when it is none.
    let mut asked = completion("stop here", 60);
    asked["stop"] = json!(format!("{}never", chars[chars.len() - 1]));
    let document = server.complete(COMPLETIONS, &asked);
    assert_eq!(
        (text(&document), &document["choices"][0]["finish_reason"]),
        (&*whole, &json!("length"))
    );
}

#[test]
fn tokens_that_end_a_text_end_it() {
    let server = server(1, 4);
    let tokenizer = tokenizer();
    // Among some prompts there is one after which the model ends the text soon.
    let ended = (0..200).find_map(|index| {
        let prompt = format!("prompt {index}");
        let made = alone(&tokenizer.encode_with_control(&prompt, true), 40);
        let end = made.iter().position(|&token| tokenizer.is_end(token))?;
        Some((prompt, tokenizer.decode(&made[..end]), end + 1))
    });
    let (prompt, expected, drawn) = ended.expect("a prompt with an end");
    let mut asked = completion(prompt, 40);
    asked["ignore_eos"] = json!(false);
    let document = server.complete(COMPLETIONS, &asked);
    assert_eq!(text(&document), expected);
    assert_eq!(document["choices"][0]["finish_reason"], "stop");
    assert_eq!(document["usage"]["completion_tokens"], drawn);
}

#[test]
fn seeds_name_texts() {
    let server = server(2, 4);
    let ask = |seed: Value| {
        let mut asked = completion("draw", 30);
        asked["temperature"] = json!(1.5);
        asked["seed"] = seed;
        text(&server.complete(COMPLETIONS, &asked)).to_owned()
    };
    assert_eq!(ask(json!(1)), ask(json!(1)));
    assert_ne!(ask(json!(1)), ask(json!(-1)));
    assert_ne!(ask(Value::Null), ask(Value::Null));
}

#[test]
fn a_text_ends_with_the_context() {
    let options = helix_engine::EngineOptions { max_context: 32, ..common::options(1) };
    let server = common::serve(0, move || common::engine(2, options));
    let prompt: Vec<u32> = (65..85).collect();
    let document = server.complete(COMPLETIONS, &completion(prompt, 1000));
    assert_eq!(document["choices"][0]["finish_reason"], "length");
    // The last token is drawn and not stored.
    assert_eq!(document["usage"]["total_tokens"], 33);
    server.handle.drain();
    let ended: Result<(), ServerError> = server.end();
    ended.expect("a good end");
}
