//! Namespaces from files.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Catalogue, NAMESPACES_MAX, Namespace};

/// Largest file, bytes.
const FILE_MAX: u64 = 256 << 10;
/// Most files in a directory.
const FILES_MAX: usize = 256;

/// What is wrong with one file; the others are read all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {message}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct FileProblem {
    /// The file, or the directory.
    pub path: PathBuf,
    /// The line, from 1, where one can be named.
    pub line: Option<usize>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl FileProblem {
    fn new(path: &Path, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: None,
            message: message.into(),
        }
    }

    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        "metadef_file_invalid"
    }
}

impl Catalogue {
    /// Reads all `*.toml` of the directories, in the order of their names; a namespace of a later directory takes the place
    /// of an earlier one of the same name. A directory that does not exist is an empty one. Everything read is protected.
    pub fn read(directories: &[PathBuf]) -> (Self, Vec<FileProblem>) {
        let (mut whole, mut problems) = (Self::default(), Vec::new());
        for directory in directories {
            let mut here = Self::default();
            for path in files(directory, &mut problems) {
                read_file(&path, &mut here, &mut problems);
            }
            for (name, space) in here.namespaces {
                if whole.namespaces.len() >= NAMESPACES_MAX && !whole.namespaces.contains_key(&name) {
                    let message = format!("no room for namespace {name:?}: a host has at most {NAMESPACES_MAX}");
                    problems.push(FileProblem::new(directory, message));
                    continue;
                }
                whole.from_files.insert(name.clone());
                whole.namespaces.insert(name, space);
            }
        }
        (whole, problems)
    }
}

fn files(directory: &Path, problems: &mut Vec<FileProblem>) -> Vec<PathBuf> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.push(FileProblem::new(directory, format!("can not be listed: {error}")));
            return Vec::new();
        }
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    paths.sort();
    if paths.len() > FILES_MAX {
        let message = format!("{} files; the first {FILES_MAX} are read", paths.len());
        problems.push(FileProblem::new(directory, message));
        paths.truncate(FILES_MAX);
    }
    paths
}

fn read_file(path: &Path, here: &mut Catalogue, problems: &mut Vec<FileProblem>) {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
    match read {
        Err(error) => return problems.push(FileProblem::new(path, format!("can not be read: {error}"))),
        Ok(_) if text.len() as u64 > FILE_MAX => {
            return problems.push(FileProblem::new(
                path,
                format!("larger than {FILE_MAX} bytes: split it"),
            ));
        }
        Ok(_) => {}
    }
    let mut space: Namespace = match toml::from_str(&text) {
        Ok(space) => space,
        Err(error) => {
            let line = error.span().map(|span| line_of(&text, span.start));
            let message = error.message().to_owned();
            return problems.push(FileProblem {
                line,
                ..FileProblem::new(path, message)
            });
        }
    };
    space.protected = true;
    if let Err(faults) = space.check() {
        let told = faults
            .list()
            .iter()
            .map(|fault| format!("{}: {}", fault.field, fault.message));
        problems.extend(told.map(|message| FileProblem::new(path, message)));
    } else if here.namespaces.contains_key(&space.namespace) {
        let message = format!(
            "namespace {:?} is in another file of this directory too",
            space.namespace
        );
        problems.push(FileProblem::new(path, message));
    } else {
        here.namespaces.insert(space.namespace.clone(), space);
    }
}

/// Number of the line that holds byte `offset`, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}
