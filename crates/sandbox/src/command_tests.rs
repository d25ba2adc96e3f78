//! Each wall of the confinement, seen from inside by a shell.

use super::*;

fn shell(script: &str) -> ConfinedCommand {
    ConfinedCommand::new("/bin/sh", Duration::from_secs(20))
        .arg("-c")
        .arg(script)
}

fn run(command: ConfinedCommand) -> (Outcome, String) {
    let mut output = Vec::new();
    let outcome = command
        .run(&mut |piece| output.extend_from_slice(piece), &|| false)
        .unwrap();
    (outcome, String::from_utf8(output).unwrap())
}

fn landlocked(outcome: &Outcome) -> bool {
    if outcome.gaps.contains(&Gap::Landlock) {
        eprintln!("skipped: this kernel has no landlock");
        return false;
    }
    true
}

#[test]
fn passes_arguments_output_and_status_and_clears_the_environment() {
    let (outcome, output) = run(shell("echo out $0 ${HOME-none}; pwd; echo err >&2; exit 7").arg("zero"));
    assert_eq!(outcome.end, End::Exited(7));
    assert_eq!(output, "out zero none\n/\n");
    assert_eq!(outcome.stderr_tail, "err");
    assert!(!outcome.succeeded());
}

#[test]
fn files_are_closed_unless_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["secret", "read", "write"] {
        std::fs::write(path(name), name).unwrap();
    }
    let script = format!(
        "cd {}; cat read; cat secret; (echo x >read); (echo y >write); (echo z >new); rm -f secret; exit 0",
        dir.path().display()
    );
    let limits = Limits {
        file_size_bytes: 100,
        ..Limits::default()
    };
    let (outcome, output) = run(shell(&script).read(path("read")).write(path("write")).limits(limits));
    assert!(outcome.succeeded(), "{outcome:?}");
    if landlocked(&outcome) {
        assert_eq!(output, "read", "{}", outcome.stderr_tail);
        assert_eq!(std::fs::read_to_string(path("read")).unwrap(), "read");
        assert!(path("secret").exists() && !path("new").exists());
    }
    assert_eq!(std::fs::read_to_string(path("write")).unwrap(), "y\n");
}

#[test]
fn has_no_network_no_capabilities_and_no_foreign_descriptors() {
    let leaked = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap(); // Inheritable, as a careless library leaves it.
    let script = "cat /proc/self/status; cat /proc/net/dev; ls /proc/self/fd";
    let (outcome, output) = run(shell(script).read("/proc"));
    assert!(outcome.succeeded(), "{outcome:?}");
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(output.contains(line), "no {line} in {output}");
    }
    if outcome.gaps.contains(&Gap::Network) {
        eprintln!("skipped: no network namespaces for this user");
    } else {
        let interfaces = output
            .lines()
            .skip_while(|line| !line.contains("face |"))
            .skip(1)
            .take_while(|line| line.contains(':'))
            .count();
        assert_eq!(interfaces, 1, "only lo: {output}");
    }
    // 0, 1, 2 and the directory being listed.
    assert!(output.ends_with("0\n1\n2\n3\n"), "{output}");
}

#[test]
fn the_program_itself_may_lie_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("shell");
    std::fs::copy("/bin/sh", &program).unwrap();
    let command = ConfinedCommand::new(&program, Duration::from_secs(20))
        .arg("-c")
        .arg("echo here");
    let (outcome, output) = run(command);
    assert_eq!((outcome.end, output.as_str()), (End::Exited(0), "here\n"));
}

#[test]
fn limits_bite() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let limits = Limits {
        file_size_bytes: 1000,
        cpu: Duration::from_millis(200),
        ..Limits::default()
    };
    let script = format!("head -c 5000 /dev/zero >{}", file.display());
    run(shell(&script).read("/dev/zero").write(&file).limits(limits));
    assert_eq!(file.metadata().unwrap().len(), 1000);
    let (outcome, _) = run(shell("while :; do :; done").limits(limits));
    assert!(
        matches!(outcome.end, End::Signalled(libc::SIGXCPU | libc::SIGKILL)),
        "{outcome:?}"
    );
}

#[test]
fn the_deadline_and_a_stop_kill_it_with_what_it_started() {
    let started = Instant::now();
    // The inner shell holds the pipes open; only killing the whole session ends it.
    let mut command = shell("(while :; do sleep 10; done) & while :; do sleep 10; done");
    command.deadline = Duration::from_millis(50);
    let (outcome, _) = run(command);
    assert_eq!(outcome.end, End::DeadlinePassed);
    let outcome = shell("sleep 10 & sleep 10").run(&mut |_| (), &|| true).unwrap();
    assert_eq!(outcome.end, End::Stopped);
    let (outcome, _) = run(shell("sleep 10 & exit 0"));
    assert_eq!(outcome.end, End::Exited(0));
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[test]
fn a_flood_of_errors_leaves_only_the_tail() {
    let (outcome, _) = run(shell(
        "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done",
    ));
    assert!(outcome.stderr_tail.len() <= STDERR_TAIL_BYTES);
    assert!(outcome.stderr_tail.ends_with("line 1999"));
}

#[test]
fn says_what_is_missing() {
    let error = ConfinedCommand::new("/no/such", Duration::from_secs(1))
        .run(&mut |_| (), &|| false)
        .unwrap_err();
    assert!(matches!(error, RunError::NoProgram(_)));
    let error = shell("true").read("/no/such").run(&mut |_| (), &|| false).unwrap_err();
    assert!(error.to_string().contains("/no/such"));
}
