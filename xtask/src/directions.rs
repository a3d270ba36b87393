//! Which crate may use which, checked against `cargo metadata`: a wrong arrow is cheap to add.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// What each crate may depend on among ours; `dev` besides in its tests. Nothing else.
struct Rule {
    name: &'static str,
    uses: &'static [&'static str],
    dev: &'static [&'static str],
}

const fn rule(name: &'static str, uses: &'static [&'static str]) -> Rule {
    Rule { name, uses, dev: &[] }
}

const RULES: [Rule; 11] = [
    rule("helix-layout", &[]),
    rule("helix-kernels", &[]),
    rule("helix-comm", &["helix-layout"]),
    rule("helix-scheduler", &["helix-layout"]),
    rule("helix-model", &["helix-layout", "helix-kernels"]),
    rule("helix-plan", &["helix-layout", "helix-scheduler"]),
    Rule {
        name: "helix-engine",
        uses: &["helix-layout", "helix-kernels", "helix-comm", "helix-model", "helix-scheduler"],
        dev: &["helix-plan"],
    },
    Rule {
        name: "helix-server",
        uses: &["helix-engine", "helix-model", "helix-scheduler"],
        dev: &["helix-layout"],
    },
    rule(
        "helix-cli",
        &[
            "helix-layout",
            "helix-kernels",
            "helix-comm",
            "helix-model",
            "helix-scheduler",
            "helix-engine",
            "helix-plan",
            "helix-server",
        ],
    ),
    rule("helix-hosts", &[]),
    rule("xtask", &[]),
];

/// An error that lists every dependency between our crates that no rule allows.
pub fn check() -> Result<()> {
    let wrong = violations(&shell::metadata()?)?;
    if !wrong.is_empty() {
        bail!("{}\nthe rules: xtask/src/directions.rs", wrong.join("\n"));
    }
    Ok(())
}

fn violations(metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ours: Vec<String> = packages.iter().map(|package| text(&package["name"])).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name = text(&package["name"]);
        let Some(rule) = RULES.iter().find(|rule| rule.name == name) else {
            wrong.push(format!("{name}: a crate without a rule"));
            continue;
        };
        let uses = package["dependencies"].as_array().context("a package without dependencies")?;
        for used in uses {
            let (target, kind) = (text(&used["name"]), text(&used["kind"]));
            let allowed = rule.uses.contains(&target.as_str())
                || kind == "dev" && rule.dev.contains(&target.as_str());
            if ours.contains(&target) && !allowed {
                let how = if kind.is_empty() { String::new() } else { format!(" ({kind})") };
                wrong.push(format!("{name} must not use {target}{how}"));
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, uses: &[(&str, Option<&str>)]) -> Value {
        let list: Vec<Value> =
            uses.iter().map(|(name, kind)| json!({"name": name, "kind": kind})).collect();
        json!({"name": name, "dependencies": list})
    }

    #[test]
    fn arrows_that_no_rule_allows_are_named() {
        let metadata = json!({"packages": [
            package("helix-layout", &[("thiserror", None), ("helix-kernels", None)]),
            package("helix-kernels", &[("helix-layout", Some("dev"))]),
            package("helix-engine", &[("helix-plan", Some("dev")), ("helix-model", None)]),
            package("helix-plan", &[("helix-scheduler", None)]),
            package("helix-model", &[("helix-layout", None), ("helix-plan", Some("build"))]),
            package("helix-extra", &[]),
        ]});
        let expected = [
            "helix-layout must not use helix-kernels",
            "helix-kernels must not use helix-layout (dev)",
            "helix-model must not use helix-plan (build)",
            "helix-extra: a crate without a rule",
        ];
        assert_eq!(violations(&metadata).unwrap(), expected);
    }

    #[test]
    fn tests_alone_may_use_the_planner_in_the_engine() {
        let metadata = json!({"packages": [
            package("helix-engine", &[("helix-plan", None)]), package("helix-plan", &[]),
        ]});
        assert_eq!(violations(&metadata).unwrap(), ["helix-engine must not use helix-plan"]);
    }
}
