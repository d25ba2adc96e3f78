//! The configuration file, key by key.

use std::fmt::Display;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Takes keys out of the file and collects what is wrong with them.
pub(crate) struct Reader {
    pub(crate) table: Table,
    pub(crate) problems: Vec<String>,
}

impl Reader {
    pub(crate) fn take<T: DeserializeOwned>(&mut self, key: &str, default: T) -> T {
        match self.table.remove(key).map(Value::try_into) {
            Some(Ok(value)) => value,
            Some(Err(error)) => {
                self.wrong(key, error);
                default
            }
            None => default,
        }
    }

    pub(crate) fn absolute(&mut self, key: &str, default: &Path) -> PathBuf {
        let path: PathBuf = self.take(key, default.to_owned());
        self.check_absolute(key, &path);
        path
    }

    pub(crate) fn check_absolute(&mut self, key: &str, path: &Path) {
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            self.wrong(
                key,
                format_args!("{} must be an absolute path without ..", path.display()),
            );
        }
    }

    pub(crate) fn seconds(&mut self, key: &str, default: u32) -> Duration {
        Duration::from_secs(self.take(key, default).into())
    }

    pub(crate) fn wrong(&mut self, key: &str, what: impl Display) {
        self.problems.push(format!("{key}: {}", what.to_string().trim_end()));
    }
}
