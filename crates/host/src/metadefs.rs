//! Metadata definitions of files, read once, and how those that were written over the API join them.

use std::path::PathBuf;

use image_catalog::{Catalogue, Namespace, Policy};

/// Where definitions come from, and who may change them.
#[derive(Debug, Clone)]
pub struct MetadefConfig {
    /// Directories of files; a namespace of a later one takes the place of an earlier one.
    pub directories: Vec<PathBuf>,
    /// Whether others than administrators may write.
    pub policy: Policy,
}

/// Definitions of files.
pub(crate) struct Metadefs {
    of_files: Catalogue,
    problems: Vec<String>,
}

impl Metadefs {
    /// Reads all files; what is wrong with one is told, and keeps nobody from anything else. Blocks.
    pub(crate) fn read(config: &MetadefConfig) -> Self {
        let (of_files, problems) = Catalogue::read(&config.directories);
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        for problem in &problems {
            tracing::warn!(problem, "metadata definitions are not as they should be");
        }
        Self { of_files, problems }
    }

    /// With those that were written over the API; a name that a file has by now is the file's.
    pub(crate) fn with(&self, written: Vec<Namespace>) -> (Catalogue, Vec<String>) {
        let (mut all, mut problems) = (self.of_files.clone(), self.problems.clone());
        for space in written {
            let name = space.namespace.clone();
            if let Err(error) = all.add(space) {
                problems.push(format!("{name}, as it was written over the API: {error}"));
            }
        }
        (all, problems)
    }
}
