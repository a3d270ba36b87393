//! The tokenizer and chat template of a directory, which several files describe together.

use serde_json::Value;

use super::{Directory, Json};
use crate::tokenizer::Special;
use crate::{ChatTemplate, ModelError, Tokenizer};

const TOKENIZER: &str = "tokenizer.json";
const TIKTOKEN: &str = "tiktoken.model";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";

impl Tokenizer {
    /// The tokenizer of a directory: `tokenizer.json` or else `tiktoken.model`, with what
    /// `tokenizer_config.json` and `generation_config.json` say of the tokens that start and end a
    /// text.
    pub(crate) fn from_directory(directory: &Directory) -> Result<Tokenizer, ModelError> {
        let config = directory.json(TOKENIZER_CONFIG)?.unwrap_or_default();
        let ends = end_tokens(directory)?;
        let special = special(&config, ends)
            .map_err(|error| error.in_file(&directory.file(TOKENIZER_CONFIG)))?;
        let (file, tokenizer) = if let Some(json) = directory.text(TOKENIZER)? {
            (TOKENIZER, Tokenizer::from_json(json.as_bytes(), &special))
        } else if let Some(model) = directory.text(TIKTOKEN)? {
            let code = code(directory, &config)?;
            (TIKTOKEN, Tokenizer::from_tiktoken(&model, &config, code.as_deref(), &special))
        } else {
            return Err(ModelError::NoTokenizer { path: directory.path().to_owned() });
        };
        tokenizer.map_err(|error| ModelError::from(error).in_file(&directory.file(file)))
    }
}

/// The Python file with a tokenizer's class, if it is in the directory.
fn code(directory: &Directory, config: &Value) -> Result<Option<String>, ModelError> {
    let class = config.pointer("/auto_map/AutoTokenizer/0").and_then(Value::as_str);
    match class.and_then(|class| class.split_once('.')) {
        Some((module, _)) if module.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
            directory.text(&format!("{module}.py"))
        }
        _ => Ok(None),
    }
}

impl ChatTemplate {
    /// `chat_template.jinja`, or what `tokenizer_config.json` has: one template, or several by
    /// name, of which the one called `default` counts.
    pub(crate) fn from_directory(
        directory: &Directory,
    ) -> Result<Option<ChatTemplate>, ModelError> {
        let config = directory.json(TOKENIZER_CONFIG)?.unwrap_or_default();
        let in_config = |error: ModelError| error.in_file(&directory.file(TOKENIZER_CONFIG));
        let names = special(&config, Vec::new()).map_err(in_config)?;
        let (file, source) = match directory.text(TEMPLATE)? {
            Some(source) => (TEMPLATE, source),
            None => match configured(&config).map_err(in_config)? {
                Some(source) => (TOKENIZER_CONFIG, source.to_owned()),
                None => return Ok(None),
            },
        };
        let [bos, eos] = [names.bos, names.eos].map(Option::unwrap_or_default);
        let template = ChatTemplate::new(&source, &bos, &eos).map_err(ModelError::from);
        template.map(Some).map_err(|error| error.in_file(&directory.file(file)))
    }
}

fn configured(config: &Value) -> Result<Option<&str>, ModelError> {
    let wrong = |problem: &str| ModelError::Json { problem: format!("chat_template: {problem}") };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source)),
        Some(Value::Array(named)) => {
            let is_default =
                |template: &&Value| template.get("name").and_then(Value::as_str) == Some("default");
            let default = named.iter().find(is_default);
            let template = default.or_else(|| named.iter().find(|_| named.len() == 1));
            let source = template.and_then(|template| template.get("template"));
            let source = source.and_then(Value::as_str);
            source.map(Some).ok_or_else(|| wrong("none of its templates is called default"))
        }
        Some(_) => Err(wrong("it is neither a text nor a list of named ones")),
    }
}

fn special(config: &Value, ends: Vec<u32>) -> Result<Special, ModelError> {
    let empty = Value::Object(serde_json::Map::new());
    let json = Json::new(if config.is_null() { &empty } else { config })?;
    // A token is its name, or an object that has it.
    let name = |key: &str| -> Result<Option<String>, ModelError> {
        let name = match json.get(key) {
            Some(Value::Object(_)) => match json.object(key)? {
                Some(token) => token.string("content")?,
                None => None,
            },
            _ => json.string(key)?,
        };
        Ok(name.filter(|name| !name.is_empty()).map(str::to_owned))
    };
    Ok(Special {
        bos: name("bos_token")?,
        eos: name("eos_token")?,
        add_bos: json.boolean("add_bos_token")?,
        add_eos: json.boolean("add_eos_token")?,
        ends,
    })
}

/// `eos_token_id` of the generation's configuration, or else of the model's.
fn end_tokens(directory: &Directory) -> Result<Vec<u32>, ModelError> {
    const KEY: &str = "eos_token_id";
    if let Some(value) = directory.json(GENERATION)? {
        let ends = Json::new(&value).and_then(|json| json.tokens(KEY));
        let ends = ends.map_err(|error| error.in_file(&directory.file(GENERATION)))?;
        if !ends.is_empty() {
            return Ok(ends);
        }
    }
    let json = directory.config()?;
    let ends = json.tokens(KEY).map_err(|error| directory.in_config(error))?;
    Ok(ends)
}
