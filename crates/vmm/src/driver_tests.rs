//! The state driver with hardware that only remembers what was done to it.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::disks::AttachError;
use crate::disks::MachineDisk;
use crate::files::SavedFiles;
use crate::hardware::Movable;
use crate::saved::SaveMachineError;
use crate::testing::spec;
use guestmem::MemoryConfig;
use migration::{Fault, PageSet};
use spec::Name;
use virtio_devices::DiskSnapshot;

type Deeds = Arc<Mutex<Vec<&'static str>>>;

struct Recorder(Deeds);

impl Recorder {
    fn note(&self, deed: &'static str) {
        self.0.lock().unwrap().push(deed);
    }
}

impl Hardware for Recorder {
    fn start(&mut self, _asked: Instant) {
        self.note("start");
    }
    fn pause(&mut self) {
        self.note("pause");
    }
    fn resume(&mut self) {
        self.note("resume");
    }
    fn save(&self, directory: BorrowedFd<'_>) -> Result<(), SaveMachineError> {
        self.note("save");
        match rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(directory).unwrap().st_mode) {
            rustix::fs::FileType::Directory => Ok(()),
            _ => Err(SaveMachineError::Occupied),
        }
    }
    fn press_power_button(&self) {
        self.note("press");
    }
    fn disk_resized(&self, _disk: &Name) {
        self.note("disk resized");
    }
    fn attach(&mut self, _disk: &MachineDisk) -> Result<(), AttachError> {
        Err(AttachError::NoBus)
    }
    fn detach(&mut self, disk: &Name) -> Result<(), AttachError> {
        Err(AttachError::NotScsi(disk.clone()))
    }
    fn disk_figures(&self) -> Vec<(Name, DiskSnapshot)> {
        Vec::new()
    }
    fn tear_down(self: Box<Self>) {
        self.note("tear down");
    }
}

impl Movable for Recorder {
    fn memory(&self) -> GuestMemory {
        GuestMemory::new(MemoryConfig {
            size_bytes: 1 << 20,
            hugepages: None,
            prefault: false,
        })
        .unwrap()
    }
    fn log_writes(&mut self, on: bool) -> Result<(), Fault> {
        self.note(if on { "log" } else { "log no more" });
        Ok(())
    }
    fn take_written(&mut self) -> Result<PageSet, Fault> {
        Ok(PageSet::empty(256))
    }
    fn throttle(&mut self, percent: u8) {
        self.note(if percent == 0 { "unthrottle" } else { "throttle" });
    }
    fn state(&self) -> Result<Vec<u8>, Fault> {
        self.note("state");
        Ok(vec![1, 2, 3])
    }
    fn load_state(&mut self, _state: &[u8]) -> Result<(), Fault> {
        self.note("load");
        Ok(())
    }
}

struct Rig {
    driver: Driver,
    deeds: Deeds,
    notices: mpsc::Receiver<Notice>,
    /// The next build fails.
    broken: Arc<AtomicBool>,
    _actions: mpsc::Receiver<Action>,
}

const TICKET: Ticket = Ticket {
    connection: 1,
    number: 2,
};

impl Rig {
    fn new() -> Self {
        let deeds = Deeds::default();
        let broken = Arc::new(AtomicBool::new(false));
        let (record, fail) = (Arc::clone(&deeds), Arc::clone(&broken));
        let builder: Builder = Box::new(move |_, _, origin| {
            if fail.load(Ordering::SeqCst) {
                return Err(BuildError::Threads(std::io::ErrorKind::OutOfMemory.into()));
            }
            record.lock().unwrap().push(if matches!(origin, Origin::Saved(_)) {
                "restore"
            } else {
                "build"
            });
            Ok(Box::new(Recorder(Arc::clone(&record))))
        });
        let (queue, actions) = mpsc::channel();
        let (outlet, notices) = mpsc::channel();
        Self {
            driver: Driver::new(builder, Outlet::new(outlet, Box::new(|| {})), queue),
            deeds,
            notices,
            broken,
            _actions: actions,
        }
    }

    fn running() -> Self {
        let mut rig = Self::new();
        rig.create();
        rig.ask(VmAction::Start).unwrap();
        rig.take_deeds();
        rig
    }

    fn create(&mut self) -> Option<Result<VmStatus, Refusal>> {
        self.create_from(None)
    }

    fn create_from(&mut self, saved: Option<SavedFiles>) -> Option<Result<VmStatus, Refusal>> {
        let null = || File::open("/dev/null").unwrap();
        let files = MachineFiles {
            kernel: null(),
            initrd: None,
            disks: vec![],
            taps: vec![],
            saved,
        };
        self.driver.apply(Action::Create {
            ticket: TICKET,
            machine: Box::new(spec(|_| {})),
            files: Ok(Box::new(files)),
        });
        self.answer()
    }

    fn ask(&mut self, action: VmAction) -> Result<VmStatus, Refusal> {
        self.driver.apply(Action::Ask {
            ticket: TICKET,
            action,
            at: Instant::now(),
        });
        self.answer().unwrap()
    }

    fn save(&mut self, directory: Option<&str>) -> Result<VmStatus, Refusal> {
        self.driver.apply(Action::Save {
            ticket: TICKET,
            directory: directory.map(|path| File::open(path).unwrap().into()),
        });
        self.answer().unwrap()
    }

    fn guest(&mut self, event: GuestEvent) {
        let generation = self.driver.generation;
        self.driver.apply(Action::Guest { generation, event });
    }

    /// The answer among the notices that came since the last look.
    fn answer(&self) -> Option<Result<VmStatus, Refusal>> {
        let mut answers = self.notices.try_iter().filter_map(|notice| match notice {
            Notice::Answer { ticket, answer } => {
                assert_eq!(ticket, TICKET);
                Some(answer)
            }
            _ => None,
        });
        let answer = answers.next();
        assert!(answers.next().is_none(), "one answer per request");
        answer
    }

    fn take_deeds(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.deeds.lock().unwrap())
    }

    fn report(&self) -> EndReport {
        let ends: Vec<_> = self
            .notices
            .try_iter()
            .filter_map(|notice| match notice {
                Notice::Ended(report) => Some(report),
                _ => None,
            })
            .collect();
        let [report] = ends.try_into().expect("one report");
        report
    }
}

#[test]
fn a_life_goes_through_all_states() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(VmAction::Status).unwrap().state, VmState::Empty);
    assert_eq!(rig.create().unwrap().unwrap().state, VmState::Created);
    assert_eq!(rig.ask(VmAction::Start).unwrap().state, VmState::Running);
    assert_eq!(rig.ask(VmAction::Pause).unwrap().state, VmState::Paused);
    assert_eq!(rig.ask(VmAction::Resume).unwrap().state, VmState::Running);
    rig.ask(VmAction::PowerButton).unwrap();
    rig.guest(GuestEvent::Request(GuestRequest::PowerOff));
    assert_eq!(
        rig.take_deeds(),
        ["build", "start", "pause", "resume", "press", "tear down"]
    );
    let report = rig.report();
    assert_eq!((report.reason, report.resets), (EndReason::GuestPowerOff, 0));
}

#[test]
fn what_the_table_forbids_is_refused_and_changes_nothing() {
    let mut rig = Rig::running();
    for action in [VmAction::Start, VmAction::Resume] {
        assert_eq!(rig.ask(action).unwrap_err().kind, RefusalKind::WrongState);
    }
    assert_eq!(rig.create().unwrap().unwrap_err().kind, RefusalKind::WrongState);
    assert_eq!(rig.take_deeds(), [""; 0]);
    assert_eq!(rig.ask(VmAction::Status).unwrap().state, VmState::Running);
}

#[test]
fn resets_rebuild_and_are_counted() {
    let mut rig = Rig::running();
    for _ in 0..4 {
        rig.guest(GuestEvent::Request(GuestRequest::Reset));
    }
    assert_eq!(rig.ask(VmAction::Reset).unwrap().resets, 5);
    assert_eq!(rig.take_deeds(), ["tear down", "build", "start"].repeat(5));
}

#[test]
fn words_of_an_earlier_build_are_not_heard() {
    let mut rig = Rig::running();
    let old = rig.driver.generation;
    rig.guest(GuestEvent::Request(GuestRequest::Reset));
    for event in [
        GuestEvent::Request(GuestRequest::Reset),
        GuestEvent::TripleFault { message: String::new() },
    ] {
        rig.driver.apply(Action::Guest { generation: old, event });
    }
    let status = rig.ask(VmAction::Status).unwrap();
    assert_eq!((status.state, status.resets), (VmState::Running, 1));
}

#[test]
fn a_reset_that_arrives_while_paused_waits_for_resume_to_start() {
    let mut rig = Rig::running();
    rig.ask(VmAction::Pause).unwrap();
    rig.guest(GuestEvent::Request(GuestRequest::Reset));
    assert_eq!(rig.take_deeds(), ["pause", "tear down", "build"]);
    rig.ask(VmAction::Resume).unwrap();
    rig.ask(VmAction::Pause).unwrap();
    rig.ask(VmAction::Resume).unwrap();
    assert_eq!(rig.take_deeds(), ["start", "pause", "resume"]);
}

#[test]
fn a_failed_creation_is_refused_with_its_cause_and_ends() {
    let mut rig = Rig::new();
    rig.broken.store(true, Ordering::SeqCst);
    rig.driver.apply(Action::Create {
        ticket: TICKET,
        machine: Box::new(spec(|_| {})),
        files: Err(Refusal {
            kind: RefusalKind::BadFile,
            message: "no kernel".to_owned(),
        }),
    });
    let notices: Vec<_> = rig.notices.try_iter().collect();
    assert!(
        matches!(&notices[0], Notice::Answer { answer: Err(refusal), .. } if refusal.kind == RefusalKind::BadFile),
        "{notices:?}"
    );
    assert!(
        matches!(notices.last(), Some(Notice::Ended(report)) if report.reason == EndReason::BuildFailed && report.message == "no kernel"),
        "{notices:?}"
    );
}

#[test]
fn a_failed_rebuild_ends_with_its_cause() {
    let mut rig = Rig::running();
    rig.broken.store(true, Ordering::SeqCst);
    rig.guest(GuestEvent::Request(GuestRequest::Reset));
    let report = rig.report();
    assert_eq!(report.reason, EndReason::BuildFailed);
    assert!(report.message.contains("out of memory"), "{}", report.message);
    assert_eq!(rig.take_deeds(), ["tear down"]);
}

#[test]
fn quitting_answers_before_it_reports() {
    let mut rig = Rig::running();
    rig.driver.apply(Action::Ask {
        ticket: TICKET,
        action: VmAction::Quit,
        at: Instant::now(),
    });
    rig.driver.apply(Action::Terminate {
        message: "too late".to_owned(),
    });
    let notices: Vec<_> = rig.notices.try_iter().collect();
    let place = |wanted: fn(&Notice) -> bool| notices.iter().position(wanted).unwrap();
    let answered = place(|n| matches!(n, Notice::Answer { answer: Ok(status), .. } if status.state == VmState::Ended));
    let ended = place(|n| matches!(n, Notice::Ended(report) if report.reason == EndReason::Requested));
    assert!(answered < ended);
    assert_eq!(
        notices.iter().filter(|n| matches!(n, Notice::Ended(_))).count(),
        1,
        "{notices:?}"
    );
    assert_eq!(rig.take_deeds(), ["tear down"]);
}

#[test]
fn without_a_machine_there_is_no_report() {
    let mut rig = Rig::new();
    rig.driver.apply(Action::Terminate {
        message: "SIGTERM".to_owned(),
    });
    assert!(matches!(rig.notices.try_iter().last(), Some(Notice::Abandoned)));
}

#[test]
fn the_first_entry_is_measured_from_the_request() {
    let mut rig = Rig::new();
    rig.create();
    let at = Instant::now();
    rig.driver.apply(Action::Ask {
        ticket: TICKET,
        action: VmAction::Start,
        at,
    });
    assert_eq!(rig.answer().unwrap().unwrap().first_entry_us, None);
    let later = |us| GuestEvent::FirstEntry {
        at: at + std::time::Duration::from_micros(us),
    };
    rig.guest(later(250));
    rig.guest(later(999));
    assert_eq!(rig.ask(VmAction::Status).unwrap().first_entry_us, Some(250));
}

#[test]
fn every_way_to_end_has_its_reason() {
    let message = || "m".to_owned();
    for (event, reason) in [
        (
            GuestEvent::Request(GuestRequest::DebugExit(7)),
            EndReason::DebugExit { code: 7 },
        ),
        (GuestEvent::TripleFault { message: message() }, EndReason::TripleFault),
        (GuestEvent::VcpuFailed { message: message() }, EndReason::VcpuFailed),
    ] {
        let mut rig = Rig::running();
        rig.guest(event);
        assert_eq!(rig.report().reason, reason);
    }
}

#[test]
fn a_machine_is_saved_while_it_is_paused_and_in_no_other_state() {
    let mut rig = Rig::running();
    assert_eq!(rig.save(Some("/")).unwrap_err().kind, RefusalKind::WrongState);
    rig.ask(VmAction::Pause).unwrap();
    assert_eq!(rig.save(Some("/")).unwrap().state, VmState::Paused);
    let refusal = rig.save(Some("/dev/null")).unwrap_err();
    assert!(
        refusal.kind == RefusalKind::Failed && refusal.message.contains("already"),
        "{refusal:?}"
    );
    assert_eq!(rig.save(None).unwrap_err().kind, RefusalKind::BadFile);
    assert_eq!(rig.ask(VmAction::Resume).unwrap().state, VmState::Running);
    assert_eq!(rig.take_deeds(), ["pause", "save", "save", "resume"]);
}

#[test]
fn a_saved_machine_is_paused_when_it_is_created_and_boots_when_it_is_reset() {
    let mut rig = Rig::new();
    let created = rig.create_from(Some(SavedFiles {
        directory: File::open("/").unwrap().into(),
        lazy: false,
        copy: false,
    }));
    assert_eq!(created.unwrap().unwrap().state, VmState::Paused);
    assert_eq!(rig.ask(VmAction::Start).unwrap_err().kind, RefusalKind::WrongState);
    assert_eq!(rig.save(Some("/")).unwrap().state, VmState::Paused);
    rig.ask(VmAction::Resume).unwrap();
    rig.ask(VmAction::Reset).unwrap();
    let deeds = ["restore", "save", "resume", "tear down", "build", "start"];
    assert_eq!(rig.take_deeds(), deeds);
}
