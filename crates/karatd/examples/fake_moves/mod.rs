//! Moves of the stand-in: both sides talk in lines over the one connection, and keep to the order of
//! `docs/adr/0012-the-source-decides-where-a-machine-is.md`. There is no memory to move, and no TLS.
//!
//! A machine whose command line is `moves=DIRECTORY` tells each step by a file `at-STEP` there, and waits at it while there is a file
//! `hold-STEP`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::{
    ArriveVm, EndReason, FdRole, FromVm, MigrationKey, MigrationNews, MigrationPhase, MigrationProgress, VmEvent,
    VmState,
};

use crate::{Shared, end, lock, tell};

/// How often a held step is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What a machine has of memory, as far as anybody is told.
const TOTAL_BYTES: u64 = 64 << 20;

/// What is decided about the move that is under way.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    /// Somebody wants the machine to stay.
    pub(crate) cancelled: bool,
    /// It is too late for that.
    pub(crate) closed: bool,
    /// What the daemon said.
    pub(crate) departed: Option<bool>,
}

struct Steps(Option<PathBuf>);

impl Steps {
    fn of(mode: &str) -> Self {
        Self(mode.strip_prefix("moves=").map(|rest| Path::new(rest).to_owned()))
    }

    /// Tells the step, and waits while it is held, or until `stop`.
    fn at(&self, step: &str, stop: impl Fn() -> bool) {
        let Some(directory) = &self.0 else { return };
        std::fs::write(directory.join(format!("at-{step}")), "").expect("a directory for steps");
        while directory.join(format!("hold-{step}")).exists() && !stop() {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// A connection of lines.
struct Lines {
    reader: BufReader<TcpStream>,
}

impl Lines {
    fn over(fd: OwnedFd) -> Self {
        Self {
            reader: BufReader::new(TcpStream::from(fd)),
        }
    }

    fn say(&mut self, line: &str) -> Result<(), String> {
        let mut stream = self.reader.get_ref();
        stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|error| error.to_string())
    }

    fn hear(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err("the other side is gone".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Tells news, and keeps them for whoever connects later.
fn news(machine: &Shared, news: MigrationNews) {
    let mut machine = lock(machine);
    machine.last_news = Some(news.clone());
    tell(&machine, &FromVm::Event(VmEvent::Migration(news)));
}

fn enter(machine: &Shared, state: VmState) {
    let mut machine = lock(machine);
    machine.status.state = state;
    tell(&machine, &FromVm::Event(VmEvent::StateChanged { state }));
}

/// The source, from the request on.
pub(crate) fn depart(machine: Shared, key: MigrationKey, mut fds: Vec<OwnedFd>) {
    lock(&machine).decisions = Decisions::default();
    std::thread::spawn(move || {
        let mut lines = Lines::over(fds.remove(0));
        let stayed = |reason: String, cancelled| news(&machine, MigrationNews::Stayed { reason, cancelled });
        match offer(&machine, key, &mut lines) {
            Ok(true) => {}
            Ok(false) => {
                let _ = lines.say("abort"); // The other side may have gone.
                return stayed("cancelled".to_owned(), true);
            }
            Err(reason) => return stayed(reason, false),
        }
        news(&machine, MigrationNews::Decide { key });
        while lock(&machine).decisions.departed.is_none() {
            std::thread::sleep(LOOK_EVERY);
        }
        let steps = Steps::of(&lock(&machine).mode.clone());
        if lock(&machine).decisions.departed == Some(false) {
            let _ = lines.say("abort"); // As above.
            return stayed("it was decided that it stays".to_owned(), false);
        }
        enter(&machine, VmState::Departed);
        steps.at("start", || false);
        let told = lines.say("start").and_then(|()| lines.hear());
        news(&machine, MigrationNews::Departed);
        let _ = told; // The target asks, if it was not told.
        steps.at("end", || false);
        end(&lock(&machine), EndReason::Departed, "the machine lives elsewhere");
    });
}

/// Up to the target's word that it has everything; false when it was cancelled before.
fn offer(machine: &Shared, key: MigrationKey, lines: &mut Lines) -> Result<bool, String> {
    let steps = Steps::of(&lock(machine).mode.clone());
    let cancelled = || lock(machine).decisions.cancelled;
    progress(machine, MigrationPhase::PreparingTarget, 0);
    steps.at("hello", cancelled);
    lines.say(&format!("hello {} {}", key.id, key.token))?;
    lines.hear()?;
    progress(machine, MigrationPhase::TargetReady, 0);
    progress(machine, MigrationPhase::Running, TOTAL_BYTES / 2);
    steps.at("copy", cancelled);
    if cancelled() {
        return Ok(false);
    }
    lines.say("all")?;
    lines.hear()?;
    steps.at("decide", || false);
    let mut machine = lock(machine);
    if machine.decisions.cancelled {
        return Ok(false);
    }
    machine.decisions.closed = true;
    Ok(true)
}

fn progress(machine: &Shared, phase: MigrationPhase, processed_bytes: u64) {
    let progress = MigrationProgress {
        phase,
        total_bytes: TOTAL_BYTES,
        processed_bytes,
        remaining_bytes: TOTAL_BYTES - processed_bytes,
        wire_bytes: processed_bytes,
        dirty_bytes_per_s: 1 << 20,
        throughput_bytes_per_s: 1 << 30,
        round: 1,
        expected_downtime_ms: 20,
        downtime_ms: None,
        throttle_percent: 0,
        post_copy: false,
    };
    news(machine, MigrationNews::Progress(progress));
}

/// The target, once its machine stands.
pub(crate) fn arrive(machine: Shared, arrive: &ArriveVm) {
    let key = arrive.key;
    let listener = {
        let mut machine = lock(&machine);
        machine.decisions = Decisions::default();
        let place = machine
            .files
            .iter()
            .position(|(role, _)| *role == FdRole::MigrationListener);
        let place = place.expect("a listener");
        TcpListener::from(machine.files.remove(place).1)
    };
    std::thread::spawn(move || match take(&machine, key, &listener) {
        Ok(()) => {
            enter(&machine, VmState::Running);
            news(&machine, MigrationNews::Arrived { downtime_us: 1000 });
            news(&machine, MigrationNews::Complete);
        }
        Err(reason) => {
            news(&machine, MigrationNews::ArrivalFailed { reason: reason.clone() });
            end(&lock(&machine), EndReason::ArrivalFailed, &reason);
        }
    });
}

fn take(machine: &Shared, key: MigrationKey, listener: &TcpListener) -> Result<(), String> {
    let steps = Steps::of(&lock(machine).mode.clone());
    let (stream, _) = listener.accept().map_err(|error| error.to_string())?;
    let mut lines = Lines::over(stream.into());
    let hello = lines.hear()?;
    if hello != format!("hello {} {}", key.id, key.token) {
        return Err(format!("this is another move: {hello}"));
    }
    lines.say("welcome")?;
    if lines.hear()? != "all" {
        return Err("the source gave up".to_owned());
    }
    steps.at("ready", || false);
    // From here on the source may have departed.
    let told = lines.say("ready").and_then(|()| lines.hear());
    steps.at("started", || false);
    let departed = match told.as_deref() {
        Ok("start") => true,
        Ok(_) => false,
        Err(_) => ask(machine, key),
    };
    if !departed {
        return Err("the source keeps the machine".to_owned());
    }
    let _ = lines.say("runs"); // The source may have gone.
    Ok(())
}

fn ask(machine: &Shared, key: MigrationKey) -> bool {
    news(machine, MigrationNews::InDoubt { key });
    loop {
        if let Some(departed) = lock(machine).decisions.departed {
            return departed;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
