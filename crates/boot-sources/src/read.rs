//! Definitions from files.
//!
//! ```toml
//! [[boot_source]]
//! name = "debian-12"
//! source = { registry = "docker://quay.io/containerdisks/debian:12" }
//! schedule = "0 */12 * * *"
//! managed = "debian12"
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::definition::{BootSource, BootSourceWish, FIELDS, Origin};

/// Directory of the sources that are shipped.
pub const SYSTEM_DIRECTORY: &str = "/usr/share/karat/boot-sources.d";
/// Directory of the sources that administrators write.
pub const CUSTOM_DIRECTORY: &str = "/etc/karat/boot-sources.d";
/// Largest file, bytes.
const FILE_MAX: u64 = 256 << 10;
/// Most files in a directory.
const FILES_MAX: usize = 256;
/// Most sources of a host.
pub const SOURCES_MAX: usize = 1000;

/// What is wrong in one place of a file. The source in question is left out, or stays as the system has it; all others hold.
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
    /// Stable text for programs.
    pub const fn code(&self) -> &'static str {
        "boot_source_file_invalid"
    }
}

/// A definition and the place it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it says, overrides included.
    pub source: BootSource,
    /// File that said it last.
    pub path: PathBuf,
}

/// A table of a file, read as far as it could be.
struct Written {
    path: PathBuf,
    wish: BootSourceWish,
    line: usize,
    lines: BTreeMap<String, usize>,
    /// Whether a problem was told already, so that the definition can not hold.
    spoilt: bool,
}

/// Reads both directories; one that does not exist is an empty one. Everything that is wrong is told, with file and line.
pub fn read_directories(system: &Path, custom: &Path) -> (BTreeMap<String, Found>, Vec<FileProblem>) {
    let (mut found, mut problems) = (BTreeMap::new(), Vec::new());
    for (directory, origin) in [(system, Origin::System), (custom, Origin::Custom)] {
        let mut here: BTreeMap<String, (PathBuf, usize)> = BTreeMap::new();
        let mut all = Vec::new();
        for path in files(directory, &mut problems) {
            all.extend(read_file(&path, &mut problems));
        }
        for written in all {
            if let Some((path, line)) = here.get(&written.wish.name) {
                let message = format!("{:?} is in {}:{line} already", written.wish.name, path.display());
                problems.push(problem(&written.path, Some(written.line), message));
                continue;
            }
            here.insert(written.wish.name.clone(), (written.path.clone(), written.line));
            take(written, origin, &mut found, &mut problems);
        }
    }
    check_aliases(&mut found, &mut problems);
    (found, problems)
}

fn take(written: Written, origin: Origin, found: &mut BTreeMap<String, Found>, problems: &mut Vec<FileProblem>) {
    let base = found.get(&written.wish.name).map(|found| &found.source);
    if base.is_none() && found.len() >= SOURCES_MAX {
        let message = format!("a host has at most {SOURCES_MAX} boot sources; this one is left out");
        return problems.push(problem(&written.path, Some(written.line), message));
    }
    match BootSource::check(&written.wish, base, origin) {
        Ok(source) if !written.spoilt => {
            let path = written.path;
            found.insert(source.name.to_string(), Found { source, path });
        }
        Ok(_) => {}
        Err(told) => {
            for told in told.list() {
                // What did not read at all was told then, and is missing now.
                if written.spoilt && told.message.starts_with("missing") && written.lines.contains_key(&told.field) {
                    continue;
                }
                let key = told.field.split('.').next().unwrap_or_default();
                let exact = written.lines.get(&told.field).or_else(|| written.lines.get(key));
                let line = exact.copied().unwrap_or(written.line);
                problems.push(problem(
                    &written.path,
                    Some(line),
                    format!("{}: {}", told.field, told.message),
                ));
            }
        }
    }
}

/// Two sources can not lead the same alias; the one that comes later by name is left out.
fn check_aliases(found: &mut BTreeMap<String, Found>, problems: &mut Vec<FileProblem>) {
    let mut aliases: BTreeMap<String, String> = BTreeMap::new();
    let mut doubles = Vec::new();
    for (name, one) in found.iter() {
        let alias = one.source.managed.to_string();
        if let Some(first) = aliases.get(&alias) {
            let message = format!("{name}: managed {alias:?} is that of {first} already; take another");
            problems.push(problem(&one.path, None, message));
            doubles.push(name.clone());
        } else {
            aliases.insert(alias, name.clone());
        }
    }
    found.retain(|name, _| !doubles.contains(name));
}

fn problem(path: &Path, line: Option<usize>, message: impl Into<String>) -> FileProblem {
    FileProblem {
        path: path.to_owned(),
        line,
        message: message.into(),
    }
}

fn files(directory: &Path, problems: &mut Vec<FileProblem>) -> Vec<PathBuf> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.push(problem(directory, None, format!("can not be listed: {error}")));
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
        problems.push(problem(directory, None, message));
        paths.truncate(FILES_MAX);
    }
    paths
}

fn read_file(path: &Path, problems: &mut Vec<FileProblem>) -> Vec<Written> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
    if let Err(error) = read {
        problems.push(problem(path, None, format!("can not be read: {error}")));
        return Vec::new();
    }
    if text.len() as u64 > FILE_MAX {
        problems.push(problem(path, None, format!("larger than {FILE_MAX} bytes: split it")));
        return Vec::new();
    }
    read_text(path, &text, problems)
}

/// Reads one file's text. Where it is no TOML, all that is wrong with it is told and nothing of it holds.
fn read_text(path: &Path, text: &str, problems: &mut Vec<FileProblem>) -> Vec<Written> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map(|span| line_of(text, span.start));
        problems.push(problem(path, line, error.message()));
    }
    if !errors.is_empty() {
        return Vec::new();
    }
    let mut all = Vec::new();
    for (key, value) in table.get_ref() {
        let line = line_of(text, key.span().start);
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("boot_source", DeValue::Array(entries)) => {
                for entry in entries {
                    let line = line_of(text, entry.span().start);
                    match entry.get_ref() {
                        DeValue::Table(table) => all.push(read_table(path, text, (table, line), problems)),
                        other => {
                            let message = format!("boot_source: {}, not a table", other.type_str());
                            problems.push(problem(path, Some(line), message));
                        }
                    }
                }
            }
            ("boot_source", other) => {
                let message = format!("boot_source: {}; write [[boot_source]] above each", other.type_str());
                problems.push(problem(path, Some(line), message));
            }
            (other, _) => {
                let message = format!("unknown field `{other}`, expected [[boot_source]]");
                problems.push(problem(path, Some(line), message));
            }
        }
    }
    all
}

fn read_table(
    path: &Path,
    text: &str,
    (table, line): (&DeTable<'_>, usize),
    problems: &mut Vec<FileProblem>,
) -> Written {
    let mut written = Written {
        path: path.to_owned(),
        wish: BootSourceWish::default(),
        line,
        lines: BTreeMap::new(),
        spoilt: false,
    };
    for (key, value) in table {
        let line = line_of(text, key.span().start);
        let name = key.get_ref().as_ref();
        written.lines.insert(name.to_owned(), line);
        if let DeValue::Table(inner) = value.get_ref() {
            for key in inner.keys() {
                let line = line_of(text, key.span().start);
                written.lines.insert(format!("{name}.{}", key.get_ref()), line);
            }
        }
        if let Err((offset, message)) = set_field(&mut written.wish, name, value) {
            let line = offset.map_or(line, |offset| line_of(text, offset));
            problems.push(problem(path, Some(line), message));
            written.spoilt = true;
        }
    }
    written
}

/// Why a value does not read: where, if that is known, and what is wrong.
type Unread = (Option<usize>, String);

/// Reads one field; each by itself, so that one that is wrong hides no other.
fn set_field(wish: &mut BootSourceWish, name: &str, value: &Spanned<DeValue<'_>>) -> Result<(), Unread> {
    match name {
        "name" => wish.name = read(name, value)?,
        "description" => wish.description = Some(read(name, value)?),
        "source" => wish.source = Some(read(name, value)?),
        "schedule" => wish.schedule = Some(read(name, value)?),
        "jitter_seconds" => wish.jitter_seconds = Some(read(name, value)?),
        "managed" => wish.managed = Some(read(name, value)?),
        "imports_to_keep" => wish.imports_to_keep = Some(read(name, value)?),
        "garbage_collect" => wish.garbage_collect = Some(read(name, value)?),
        "retention" => wish.retention = Some(read(name, value)?),
        "enabled" => wish.enabled = Some(read(name, value)?),
        "store" => wish.store = Some(read(name, value)?),
        "max_size" => wish.max_size = Some(read(name, value)?),
        other => {
            let message = format!("unknown field `{other}`, expected one of {}", FIELDS.join(", "));
            return Err((None, message));
        }
    }
    Ok(())
}

fn read<'de, T: Deserialize<'de>>(name: &str, value: &Spanned<DeValue<'de>>) -> Result<T, Unread> {
    T::deserialize(value.clone().into_deserializer()).map_err(|error: toml::de::Error| {
        (
            error.span().map(|span| span.start),
            format!("{name}: {}", error.message()),
        )
    })
}

/// Number of the line that holds byte `offset`, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}
