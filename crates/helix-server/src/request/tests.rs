//! What bodies ask for, beside what `tests/limits.rs` has refused.

use super::*;

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
