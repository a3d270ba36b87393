//! Any text as a chat template: a prompt or an error, soon, and of a bounded length.
#![no_main]

use std::time::{Duration, Instant};

use helix_model::{ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let source = String::from_utf8_lossy(bytes);
    let start = Instant::now();
    let Ok(template) = ChatTemplate::new(&source, "<s>", "</s>") else { return };
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "Hi "),
        Message::new("assistant", "<think>x</think>\n\nHello."),
        Message::new("user", "Bye"),
    ];
    for messages in [&messages[..], &messages[1..2], &[]] {
        if let Ok(text) = template.render(messages, true) {
            assert!(text.len() < 8 << 20, "{} bytes", text.len());
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
});
