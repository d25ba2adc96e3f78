//! Images known to be damaged although their lengths are right: marked, so that nobody uses them and a new import replaces them.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::{ImageDigest, Store, durable};

/// Name of the mark in an image's directory; it holds what is wrong.
pub(crate) const MARK: &str = "damaged";
/// Most that is read of a mark, bytes.
const MARK_MAX: u64 = 4 << 10;

/// What the mark in `dir` says; none if there is none.
pub(crate) fn mark_of(dir: &Path) -> io::Result<Option<String>> {
    use std::io::Read;
    let file = match File::open(dir.join(MARK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(MARK_MAX).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

impl Store {
    /// Marks an image. One that cannot be marked is told of by the next reading again.
    pub(crate) fn mark_damaged(&self, digest: &ImageDigest, problem: &str) {
        let dir = self.image_dir(digest);
        let marking = unsealed(&dir, || {
            let path = dir.join(MARK);
            std::fs::write(&path, problem)?;
            durable::seal_file(&path)
        });
        match marking {
            Ok(()) => tracing::error!(image = %digest, problem, "an image is damaged; import it again"),
            Err(error) => tracing::error!(image = %digest, problem, %error, "a damaged image can not be marked"),
        }
    }

    /// Takes the mark away from an image that was read again and is right.
    pub(crate) fn clear_mark(&self, digest: &ImageDigest) -> io::Result<()> {
        let dir = self.image_dir(digest);
        if !dir.join(MARK).exists() {
            return Ok(());
        }
        unsealed(&dir, || std::fs::remove_file(dir.join(MARK)))
    }
}

/// Does something in a sealed directory.
fn unsealed(dir: &Path, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    std::fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    let result = work();
    durable::seal_dir(dir)?;
    result
}
