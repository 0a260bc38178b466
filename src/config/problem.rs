//! What is wrong with a configuration: where, what, why and how to fix it; all of it at once.

use std::fmt;

/// One thing that is wrong. Never holds a decrypted or expanded value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The configuration file.
    pub file: String,
    /// The line, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// The key, dotted: `volumes[2].items[1].secret`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and why.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write!(f, "[{}] ", self.key)?;
        }
        write!(f, "{}; {}", self.message, self.remedy)
    }
}

/// Everything that is wrong with a configuration, in the order of the file.
#[derive(Debug, thiserror::Error)]
#[error("{}", lines(problems))]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_with_place_key_reason_and_remedy() {
        let problem = Problem {
            file: "a.toml".into(),
            line: 3,
            key: "cache.ttl".into(),
            message: "\"x\" is not a duration".into(),
            remedy: "write \"5m\"".into(),
        };
        assert_eq!(
            problem.to_string(),
            "a.toml:3: [cache.ttl] \"x\" is not a duration; write \"5m\""
        );
        let whole = Problem { line: 0, key: String::new(), ..problem };
        assert_eq!(whole.to_string(), "a.toml: \"x\" is not a duration; write \"5m\"");
    }
}
