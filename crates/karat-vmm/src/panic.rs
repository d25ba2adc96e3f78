//! What a defect says of itself before it ends the process.
//!
//! Any thread may panic, also one whose seccomp filter forbids all that is needed to name functions and to write a file: the usual
//! hook, told to print a backtrace, would end the process before it has said anything. So this one writes what is known
//! without asking, which is the message, the place and return addresses, and has the steward leave the report.

use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::time::Duration;

use crate::report;

/// How long the report may take; then the process ends without.
const PATIENCE: Duration = Duration::from_secs(2);

/// From now on every panic is told on standard error and leaves a report, before the process aborts or its thread unwinds.
pub(crate) fn tell() {
    std::panic::set_hook(Box::new(|panic| {
        let text = story(panic);
        // In one piece, and whatever becomes of it.
        let _ = std::io::stderr().write_all(text.as_bytes());
        let message = format!("karat-vmm has a defect, please report it: {text}");
        sandbox::run_by_steward(move || report::leave_defect(message), PATIENCE);
    }));
}

fn story(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let mut text = format!("thread {name} {panic}\ncalled from, by `addr2line -Cfe karat-vmm`:");
    for offset in sandbox::return_offsets() {
        let _ = write!(text, " {offset:#x}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Command, Output};

    use control::{EndReason, EndReport, REPORT_FILE};
    use sandbox::{NewThread, SeccompMode, ThreadKind};
    use spec::VmId;

    use super::*;

    /// What a child is to do: the number of a kind, what its thread does, and the run directory.
    const DEED: &str = "KARAT_VMM_DEED";

    fn child(kind: ThreadKind, deed: &str, directory: &Path) -> Output {
        let place = ThreadKind::ALL.iter().position(|other| *other == kind).unwrap();
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "panic::tests::body_of_the_child",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DEED, format!("{place}/{deed}/{}", directory.display()))
            .env("RUST_BACKTRACE", "1")
            .output()
            .unwrap()
    }

    /// Not a test by itself: what the children of the others do.
    #[test]
    fn body_of_the_child() {
        let Ok(what) = std::env::var(DEED) else { return };
        let words: Vec<_> = what.splitn(3, '/').collect();
        let (kind, deed) = (ThreadKind::ALL[words[0].parse::<usize>().unwrap()], words[1].to_owned());
        report::promise(&File::open(words[2]).unwrap().into(), VmId::random());
        tell();
        sandbox::confine_threads(SeccompMode::Enforce, report::leave_forbidden).unwrap();
        let body = move || match deed.as_str() {
            "panics" => panic!("wires crossed"),
            // What a release build does after the hook.
            "aborts" => {
                let _ = std::panic::catch_unwind(|| panic!("wires crossed"));
                std::process::abort();
            }
            _ => drop(std::env::current_dir()),
        };
        if kind == ThreadKind::Steward {
            sandbox::run_by_steward(body, PATIENCE);
        } else {
            let _ = NewThread::new(kind, "doomed").spawn(body).unwrap().join();
        }
    }

    fn report(directory: &Path) -> EndReport {
        let text = std::fs::read_to_string(directory.join(REPORT_FILE)).expect("a report");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_panic_of_any_thread_gets_its_message_out_from_under_its_filter() {
        for kind in ThreadKind::ALL {
            for deed in ["panics", "aborts"] {
                let directory = tempfile::tempdir().unwrap();
                let output = child(kind, deed, directory.path());
                let told = String::from_utf8_lossy(&output.stderr);
                // In tests a panic unwinds: the process has survived it, and ended well.
                let expected = if deed == "aborts" { Some(libc::SIGABRT) } else { None };
                assert_eq!(output.status.signal(), expected, "{kind:?} {deed}: {told}");
                let report = report(directory.path());
                assert_eq!(report.reason, EndReason::Internal);
                for text in [told.as_ref(), &report.message] {
                    assert!(
                        text.contains("wires crossed") && text.contains("panic.rs:") && text.contains("addr2line"),
                        "{kind:?} {deed}: {text}"
                    );
                    let offsets = text.split_once("karat-vmm`:").unwrap().1;
                    assert!(
                        offsets.split_whitespace().filter(|word| word.starts_with("0x")).count() > 3,
                        "{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_forbidden_call_leaves_a_report_that_names_it() {
        for kind in ThreadKind::ALL {
            let directory = tempfile::tempdir().unwrap();
            let output = child(kind, "asks where it is", directory.path());
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{kind:?}: {told}");
            let said = format!("system call getcwd (79) is forbidden to the {} thread", kind.name());
            if kind == ThreadKind::Steward {
                // Nobody is there to do it for the steward.
                assert!(told.contains(&said), "{told}");
                continue;
            }
            let report = report(directory.path());
            assert_eq!(report.reason, EndReason::Internal);
            assert!(report.message.contains(&said), "{}", report.message);
            assert!(report.message.contains("seccomp = \"log\""), "{}", report.message);
        }
    }
}
