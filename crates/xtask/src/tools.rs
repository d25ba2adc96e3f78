//! Running other programs: announced, as root where it must be, with their failure told in full.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Prints one line that tells the person what is about to be done.
pub fn say(what: impl AsRef<str>) {
    use std::io::Write;
    let mut stderr = std::io::stderr().lock();
    // A closed stderr is no reason to stop.
    let _ = writeln!(stderr, "xtask: {}", what.as_ref());
}

/// The workspace's root directory.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A file that ships with xtask.
pub fn asset(name: &str) -> PathBuf {
    root().join("crates/xtask/assets").join(name)
}

/// A command that runs as root: as it is when we are root, else through sudo.
pub fn as_root(program: impl AsRef<OsStr>) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--preserve-env=DEBIAN_FRONTEND,INITRD").arg(program);
    command
}

/// A command whose process dies with us, however we end. Takes `setpriv` of util-linux to do it without unsafe code.
pub fn tethered(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// Runs a command to its end with inherited output; an exit status other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and gives back what it printed; its stderr is part of the error when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !done.status.success() {
        bail!(
            "{} ended with {}:\n{}",
            shown(command),
            done.status,
            String::from_utf8_lossy(&done.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Is there a program of this name on the search path (including root's directories)?
pub fn have(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|dir| Path::new(dir).join(program).is_file())
}

/// `cargo`, as it was used to start us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}
