//! What bodies ask for, beside what `tests/limits.rs` has refused.

use super::*;
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};

fn completion(fields: &str) -> Ask {
    let body = format!("{{\"prompt\":\"x\"{fields}}}");
    Ask::parse(Endpoint::Completions, body.as_bytes()).expect("a request")
}

#[test]
fn fields_have_the_defaults_of_the_api() {
    let ask = completion("");
    let SamplerOptions { seed, .. } = ask.sampling;
    let sampling = SamplerOptions { temperature: 1.0, seed, ..SamplerOptions::default() };
    let expected = Ask {
        endpoint: Endpoint::Completions,
        model: None,
        prompt: Prompt::Text("x".into()),
        max_new_tokens: 16,
        sampling,
        stops: vec![],
        ends: true,
        stream: None,
    };
    assert_eq!(ask, expected);
    let body = b"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}";
    assert_eq!(Ask::parse(Endpoint::Chat, body).expect("a request").max_new_tokens, usize::MAX);
}

#[test]
fn fields_are_taken_as_they_are() {
    let ask = completion(
        ",\"max_completion_tokens\":7,\"max_tokens\":7,\"temperature\":0.5,\"top_p\":0.25,\
         \"top_k\":40,\"min_p\":0.125,\"presence_penalty\":1,\"frequency_penalty\":-1,\
         \"repetition_penalty\":1.5,\"seed\":18446744073709551615,\"stop\":\"\\u00e9\",\
         \"stream\":true,\"stream_options\":{\"include_usage\":true},\"ignore_eos\":true,\
         \"metadata\":{\"a\":[1,{}]},\"service_tier\":\"auto\",\"n\":1,\"logprobs\":null",
    );
    let sampling = SamplerOptions {
        temperature: 0.5,
        top_p: 0.25,
        top_k: 40,
        min_p: 0.125,
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        repetition_penalty: 1.5,
        seed: u64::MAX,
        ..SamplerOptions::default()
    };
    assert_eq!(ask.sampling, sampling);
    assert_eq!((ask.max_new_tokens, ask.ends), (7, false));
    assert_eq!(ask.stops, ["é"]);
    assert_eq!(ask.stream, Some(Stream { usage: true }));
    assert_eq!(completion(",\"top_k\":-1").sampling.top_k, 0);
    assert_eq!(completion(",\"stop\":[]").stops, [""; 0]);
}

/// Values of every kind, some of them what a field wants.
fn values() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        any::<f64>()
            .prop_filter("JSON has none", |value| value.is_finite())
            .prop_map(|value| { format!("{value:e}") }),
        any::<String>().prop_map(|text| serde_json::to_string(&text).expect("JSON")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let names = prop::sample::select(vec!["role", "content", "type", "text", "x"]);
        let fields = prop::collection::vec((names, inner.clone()), 0..4);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(|list| format!("[{}]", list.join(","))),
            fields.prop_map(|fields| {
                let field = |(name, value)| format!("\"{name}\":{value}");
                format!("{{{}}}", fields.into_iter().map(field).collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

/// Bodies of fields that exist, with any values.
fn bodies() -> impl Strategy<Value = String> {
    const OWN: [&str; 13] = [
        "model",
        "prompt",
        "messages",
        "max_tokens",
        "temperature",
        "top_k",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "ignore_eos",
        "user",
        "nobody",
    ];
    let names: Vec<&str> = OWN.into_iter().chain(UNSUPPORTED.map(|(name, _)| name)).collect();
    let fields = prop::collection::btree_map(prop::sample::select(names), values(), 0..6);
    fields.prop_map(|mut fields| {
        fields.entry("prompt").or_insert("[65]".into());
        fields.entry("messages").or_insert("[{\"role\":\"user\",\"content\":\"x\"}]".into());
        let field = |(name, value)| format!("\"{name}\":{value}");
        format!("{{{}}}", fields.into_iter().map(field).collect::<Vec<_>>().join(","))
    })
}

proptest! {
    /// What is accepted is within the limits that the rest relies on; what is not is explained.
    #[test]
    fn any_body_is_a_request_or_a_refusal(body in prop_oneof![bodies(), any::<String>()]) {
        for endpoint in [Endpoint::Chat, Endpoint::Completions] {
            match Ask::parse(endpoint, body.as_bytes()) {
                Ok(ask) => {
                    assert!(ask.max_new_tokens > 0 && ask.stops.len() <= MAX_STOPS);
                    assert!(ask.stops.iter().all(|stop| !stop.is_empty()));
                    assert!(ask.sampling.validate().is_ok());
                }
                Err(error) => {
                    let text = crate::wire::text(&error.body());
                    assert!(text.contains("\"message\":\""), "{text}");
                    assert!(text.len() < 1000, "{text}");
                }
            }
        }
    }
}
