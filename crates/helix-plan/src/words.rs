//! Numbers within sentences.

/// A number as people write it: with a power of ten where it would be a row of zeros.
pub fn figure(value: f64) -> String {
    match value.abs() {
        0.0 | 1e-6..1e16 => value.to_string(),
        _ => format!("{value:e}"),
    }
}

/// So many of something whose plural ends in s.
pub fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let said = [0.0, 1.0, 0.05, 1e6, 123456789.25, 1e308, 1e-300, -1e30, f64::NAN].map(figure);
        let wanted =
            ["0", "1", "0.05", "1000000", "123456789.25", "1e308", "1e-300", "-1e30", "NaN"];
        assert_eq!(said, wanted);
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "user")), ["0 users", "1 user", "2 users"]);
    }
}
