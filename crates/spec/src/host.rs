//! What a host allows and has, and paths held against it.

use std::path::{Component, Path, PathBuf};

use crate::problem::Problems;

/// What the host allows and has.
#[derive(Debug, Clone)]
pub struct HostLimits {
    /// Physical memory of the host, bytes: no machine may be larger.
    pub memory_bytes: u64,
    /// Directories in which users may name files. Compared lexically here; whoever opens a file must stay beneath the
    /// directory too (`openat2` with `RESOLVE_BENEATH`), since a link could lead out of it.
    pub file_roots: Vec<PathBuf>,
}

/// `text` as a path beneath an allowed directory.
pub(crate) fn check_path(field: &str, text: &str, host: &HostLimits, problems: &mut Problems) -> Option<PathBuf> {
    let path = Path::new(text);
    let plain = path.is_absolute()
        && !text.contains('\0')
        && path.components().all(|part| !matches!(part, Component::ParentDir));
    if !plain {
        problems.add(field, format_args!("{text:?} must be an absolute path without .."));
        return None;
    }
    if !host
        .file_roots
        .iter()
        .any(|root| path.starts_with(root) && path != root)
    {
        let roots: Vec<_> = host.file_roots.iter().map(|root| root.display().to_string()).collect();
        problems.add(
            field,
            format_args!(
                "{text:?} is outside of what the host allows (file_roots: {})",
                roots.join(", ")
            ),
        );
        return None;
    }
    Some(path.to_owned())
}
