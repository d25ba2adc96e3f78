//! The landlock rules of a confined program, built before it exists.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};

use crate::RunError;

/// The newest landlock ABI whose rights are asked for (Linux 6.12); an older kernel enforces what it knows.
const ABI_WANTED: ABI = ABI::V6;

/// Where programs and their libraries live; each may be missing.
const SYSTEM_READ: [&str; 7] = [
    "/usr",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/dev/null",
];

/// A ruleset that allows running `program`, reading the system's programs and `read`, and writing `write`; a directory means
/// all below it. `None`: this kernel has no landlock.
pub(crate) fn build(program: &Path, read: &[PathBuf], write: &[PathBuf]) -> Result<Option<OwnedFd>, RunError> {
    let rules = |source: landlock::RulesetError| RunError::Rules(Box::new(source));
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_WANTED))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI_WANTED)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI_WANTED)))
        .and_then(Ruleset::create)
        .map_err(rules)?;
    let reading = AccessFs::from_read(ABI_WANTED);
    for path in SYSTEM_READ.iter().map(Path::new).filter(|path| path.exists()) {
        ruleset = allow(ruleset, path, reading)?;
    }
    ruleset = allow(ruleset, program, reading)?;
    for path in read {
        ruleset = allow(ruleset, path, reading & !AccessFs::Execute)?;
    }
    for path in write {
        ruleset = allow(ruleset, path, AccessFs::from_all(ABI_WANTED) & !AccessFs::Execute)?;
    }
    Ok(ruleset.into())
}

fn allow(ruleset: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, RunError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| RunError::Path {
        path: path.to_path_buf(),
        source,
    };
    let fd = PathFd::new(path).map_err(|source| failed(Box::new(source)))?;
    let metadata = path.metadata().map_err(|source| failed(Box::new(source)))?;
    let access = if metadata.is_dir() {
        access
    } else {
        access & AccessFs::from_file(ABI_WANTED)
    };
    ruleset
        .add_rule(PathBeneath::new(fd, access))
        .map_err(|source| failed(Box::new(source)))
}
