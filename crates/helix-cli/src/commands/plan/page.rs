//! `--html`: the plan as one page that needs nothing else, neither a server nor the network.

use crate::failure::{Failure, Outcome};
use helix_plan::{Chosen, Report};
use serde::Serialize;

/// Markup, style and script, with places for two JSON documents.
const PAGE: &str = include_str!("page.html");

/// A strategy's front, every point looked at closely.
#[derive(Debug, Serialize)]
pub struct Points {
    /// The strategy's name.
    pub strategy: String,
    /// Its points, the most interactive last.
    pub front: Vec<Chosen>,
}

/// The page.
///
/// # Errors
/// A number that JSON can't say.
pub fn page(report: &Report, points: &[Points]) -> Outcome<String> {
    let (before, rest) = PAGE.split_once("@REPORT@").expect("the page's own mark");
    let (between, after) = rest.split_once("@POINTS@").expect("the page's own mark");
    Ok([before, &embedded(report)?, between, &embedded(&points)?, after].concat())
}

/// JSON that no text in it can end: `<` stands in strings alone, and `</script>` and `<!--` begin
/// with it.
fn embedded(document: &impl Serialize) -> Outcome<String> {
    let json = serde_json::to_string(document)
        .map_err(|error| Failure::running(format!("cannot write the page's numbers: {error}")))?;
    Ok(json.replace('<', "\\u003c"))
}

#[cfg(test)]
mod tests {
    use super::embedded;

    #[test]
    fn no_text_ends_the_script() {
        let text = "</script><!-- \\ \" \u{2028}";
        let json = embedded(&text).unwrap();
        assert!(!json.contains('<'), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
