//! The payload that runs in test machines.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The ELF file of `tests/tiny-guest`, built when it is out of date.
pub(crate) fn tiny_guest() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/tiny-guest");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny-guest");
    let cargo = |release: &[&str]| {
        Command::new(env!("CARGO"))
            .current_dir(&source)
            .args(release)
            .env("CARGO_TARGET_DIR", &target)
            // Flags for the host's programs are not for a guest.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .output()
            .unwrap()
    };
    let mut built = cargo(&["build", "--release", "--quiet"]);
    if !built.status.success() {
        // Most likely the target is not installed; where rustup is, that is quickly changed.
        let added = Command::new("rustup")
            .args(["target", "add", "x86_64-unknown-none"])
            .status();
        assert!(
            added.is_ok_and(|status| status.success()),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        built = cargo(&["build", "--release", "--quiet"]);
    }
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join("x86_64-unknown-none/release/tiny-guest")
}
