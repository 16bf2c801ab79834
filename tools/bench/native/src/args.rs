//! `--name value` and `--flag` arguments.

use std::str::FromStr;

/// The command line of this process.
pub struct Args(Vec<String>);

impl Args {
    /// Takes them from the environment.
    pub fn new() -> Self {
        Args(std::env::args().skip(1).collect())
    }

    /// Whether `name` is there at all.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|arg| arg == name)
    }

    /// What follows `name`, if it is there.
    pub fn get<T: FromStr>(&self, name: &str) -> Option<T> {
        let at = self.0.iter().position(|arg| arg == name)?;
        let value = self.0.get(at + 1).and_then(|value| value.parse().ok());
        Some(value.unwrap_or_else(|| panic!("{name} takes a value of another kind")))
    }

    /// What follows `name`, which must be there.
    pub fn need<T: FromStr>(&self, name: &str) -> T {
        self.get(name)
            .unwrap_or_else(|| panic!("{name} is missing"))
    }
}

impl Default for Args {
    fn default() -> Self {
        Self::new()
    }
}
