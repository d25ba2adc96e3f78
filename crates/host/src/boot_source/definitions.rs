//! All definitions: of files, and on top of them what was written over the API.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::PoisonError;

use api_types::ErrorCode;
use boot_sources::{BootSource, BootSourceWish, Origin, read_directories};

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::SourceRow;

/// One definition.
#[derive(Debug, Clone)]
pub(super) struct Defined {
    /// What it says, with what was written over the API.
    pub(super) source: BootSource,
    /// What files say, where they define it.
    pub(super) of_files: Option<BootSource>,
    /// The file that said it last.
    pub(super) path: Option<PathBuf>,
}

/// All definitions by name.
pub(super) type Definitions = BTreeMap<String, Defined>;

impl Host {
    /// What files define, and what is wrong with them. News of the latter is logged.
    pub(super) async fn file_definitions(&self) -> Result<(Definitions, Vec<String>), Failure> {
        let config = self.0.context.config.boot_sources.clone();
        let read = move || read_directories(&config.system_directory, &config.custom_directory);
        let (found, problems) = tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?;
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let mut told = self.0.boot.problems.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in problems.iter().filter(|problem| !told.contains(problem)) {
            tracing::warn!(problem, "a boot source is not defined as it should be");
        }
        told.clone_from(&problems);
        drop(told);
        let defined = found.into_iter().map(|(name, found)| {
            let of_files = Some(found.source.clone());
            let path = Some(found.path);
            let source = found.source;
            (name, Defined { source, of_files, path })
        });
        Ok((defined.collect(), problems))
    }
}

/// Puts what was written over the API on top of what files define. What does not hold any more is left out, and told.
pub(super) fn overlay(mut defined: Definitions, rows: &[SourceRow]) -> (Definitions, Vec<String>) {
    let mut problems = Vec::new();
    for row in rows {
        let Some(wish) = &row.wish else { continue };
        let of_files = defined.get(&row.name).and_then(|defined| defined.of_files.clone());
        match with_wish(wish, of_files.as_ref()) {
            Ok(source) => {
                let path = defined.get(&row.name).and_then(|defined| defined.path.clone());
                defined.insert(row.name.clone(), Defined { source, of_files, path });
            }
            Err(told) => problems.push(format!("{}: {told}", row.name)),
        }
    }
    let mut aliases: BTreeMap<String, String> = BTreeMap::new();
    defined.retain(|name, one| {
        let alias = one.source.managed.to_string();
        if let Some(first) = aliases.get(&alias) {
            problems.push(format!(
                "{name}: managed {alias:?} is that of {first} already; take another"
            ));
            return false;
        }
        aliases.insert(alias, name.clone());
        true
    });
    (defined, problems)
}

/// A definition of what was written on top of what files say.
pub(super) fn with_wish(wish: &BootSourceWish, of_files: Option<&BootSource>) -> Result<BootSource, spec::Problems> {
    BootSource::check(wish, of_files, Origin::Custom)
}
