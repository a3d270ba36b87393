//! What goes to standard output: text as it comes, or one JSON document.

use crate::failure::{Failure, Outcome, writing};
use serde::Serialize;
use std::io::{self, Write};

/// Writes text to standard output and sees to it that it is seen.
pub fn text(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(writing)
}

/// Writes a line to standard output.
pub fn line(line: &str) -> Outcome {
    text(&format!("{line}\n"))
}

/// Writes the one document that `--json` asks for.
pub fn json(document: &impl Serialize) -> Outcome {
    let json = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::running(format!("cannot write the result as JSON: {error}")))?;
    line(&json)
}

/// A table whose columns are as wide as their widest cell, numbers to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    /// How many of the first columns are words.
    words: usize,
}

impl Table {
    /// A table with these column titles, the first `words` of which hold words.
    pub fn new<const N: usize>(words: usize, titles: [&str; N]) -> Table {
        Table::of(words, titles.map(str::to_owned))
    }

    /// The same with titles that are only known as the program runs.
    pub fn of(words: usize, titles: impl IntoIterator<Item = String>) -> Table {
        Table { rows: vec![titles.into_iter().collect()], words }
    }

    /// One more row.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len(), "cells and titles");
        self.rows.push(cells);
    }
}

impl Table {
    /// Leaves out the columns whose title says so.
    pub fn drop_columns(&mut self, is_dropped: impl Fn(&str) -> bool) {
        let dropped: Vec<bool> = self.rows[0].iter().map(|title| is_dropped(title)).collect();
        for row in &mut self.rows {
            let mut column = dropped.iter();
            row.retain(|_| !column.next().is_some_and(|dropped| *dropped));
        }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                line += &match column < self.words {
                    true => format!("{gap}{cell:<width$}"),
                    false => format!("{gap}{cell:>width$}"),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(1, ["test", "tokens/s"]);
        table.row(vec!["tg64".into(), "9.5".into()]);
        table.row(vec!["pp512 @ 4096".into(), "1000.0".into()]);
        let expected = "\
test          tokens/s
tg64               9.5
pp512 @ 4096    1000.0
";
        assert_eq!(table.to_string(), expected);
    }
}
