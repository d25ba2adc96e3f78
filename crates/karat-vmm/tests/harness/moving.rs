//! Both daemons of a migration, as far as machine processes see them.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use control::{
    ArriveVm, Blob, DepartVm, EndReason, FdRole, LinkCredentials, MigrationKey, MigrationNews, MigrationProgress,
    MoveOptions, Refusal, VmEvent, VmRequest, VmState,
};
use spec::MigrationId;

use super::{Link, Setup, Vmm};

/// What streams are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Road {
    Tcp,
    Tls,
    Unix,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, std::path::PathBuf),
}

/// A process that waits for a machine.
pub(crate) struct Target {
    pub(crate) vmm: Vmm,
    pub(crate) link: Link,
    pub(crate) key: MigrationKey,
    listener: Listener,
    credentials: Option<LinkCredentials>,
}

/// Credentials of source and target, which know each other.
fn credentials() -> (LinkCredentials, LinkCredentials) {
    let make = || rcgen::generate_simple_self_signed(vec!["karat".to_owned()]).unwrap();
    let (source, target) = (make(), make());
    let of = |own: &rcgen::CertifiedKey<rcgen::KeyPair>, peer: &rcgen::CertifiedKey<rcgen::KeyPair>| LinkCredentials {
        certificate_der: Blob(own.cert.der().to_vec()),
        key_der: Blob(own.signing_key.serialize_der()),
        peer_certificate_der: Blob(peer.cert.der().to_vec()),
    };
    (of(&source, &target), of(&target, &source))
}

/// `count` sockets that are connected to where `target` listens.
pub(crate) fn connect(target: &Target, count: usize) -> Vec<OwnedFd> {
    (0..count)
        .map(|_| match &target.listener {
            Listener::Tcp(listener) => TcpStream::connect(listener.local_addr().unwrap()).unwrap().into(),
            Listener::Unix(_, path) => UnixStream::connect(path).unwrap().into(),
        })
        .collect()
}

impl Target {
    /// One that is ready for the machine of `setup`.
    pub(crate) fn prepare(setup: Setup, road: Road) -> Self {
        Self::try_prepare(setup, road).unwrap_or_else(|refusal| panic!("{}", refusal.message))
    }

    pub(crate) fn try_prepare(setup: Setup, road: Road) -> Result<Self, Refusal> {
        let vmm = Vmm::spawn();
        let mut link = vmm.link();
        let listener = match road {
            Road::Tcp | Road::Tls => Listener::Tcp(TcpListener::bind("127.0.0.1:0").unwrap()),
            Road::Unix => {
                let path = vmm.path("migration.sock");
                Listener::Unix(UnixListener::bind(&path).unwrap(), path)
            }
        };
        let listening: OwnedFd = match &listener {
            Listener::Tcp(listener) => listener.as_fd().try_clone_to_owned().unwrap(),
            Listener::Unix(listener, _) => listener.as_fd().try_clone_to_owned().unwrap(),
        };
        let (source, target) = match road {
            Road::Tls => {
                let (source, target) = credentials();
                (Some(source), Some(target))
            }
            Road::Tcp | Road::Unix => (None, None),
        };
        let key = MigrationKey {
            id: MigrationId::random(),
            token: 0x1234_5678_9abc_def0,
        };
        let (mut create, mut files) = vmm.creation(setup);
        create.fds.push(FdRole::MigrationListener);
        files.push(listening);
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        let arrive = ArriveVm {
            create,
            key,
            credentials: target,
            patience_ms: 10_000,
        };
        let status = link.ask_with_files(VmRequest::Arrive(Box::new(arrive)), &borrowed)?;
        assert_eq!(status.state, VmState::Arriving);
        Ok(Self {
            vmm,
            link,
            key,
            listener,
            credentials: source,
        })
    }

    /// Asks the machine behind `link` to come here.
    pub(crate) fn invite(&self, link: &mut Link, options: MoveOptions) -> Result<(), Refusal> {
        self.invite_over(link, options).map(drop)
    }

    /// The same; the sockets that it comes over.
    pub(crate) fn invite_over(&self, link: &mut Link, options: MoveOptions) -> Result<Vec<OwnedFd>, Refusal> {
        let sockets = connect(self, 1 + usize::from(options.streams));
        let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        let depart = DepartVm {
            key: self.key,
            options,
            credentials: self.credentials.clone(),
            disks: Vec::new(),
        };
        link.ask_with_files(VmRequest::Depart(Box::new(depart)), &borrowed)?;
        Ok(sockets)
    }

    /// New sockets for the machine behind `link`.
    pub(crate) fn send_links(&self, link: &mut Link, count: u32) {
        let sockets = connect(self, usize::try_from(count).unwrap());
        let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        link.ask_with_files(VmRequest::DepartLinks { count }, &borrowed)
            .unwrap();
    }

    /// The whole way: the machine of `source` ends up here, and its process is gone. What the source told of it.
    pub(crate) fn fetch(&mut self, source: &mut Vmm, link: &mut Link, options: MoveOptions) -> Vec<MigrationProgress> {
        self.try_fetch(source, link, options)
            .unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same for one that may stay: why it does.
    pub(crate) fn try_fetch(
        &mut self,
        source: &mut Vmm,
        link: &mut Link,
        options: MoveOptions,
    ) -> Result<Vec<MigrationProgress>, String> {
        self.invite(link, options).map_err(|refusal| refusal.message)?;
        let mut told = Vec::new();
        let report = loop {
            let news = link.wait_for(|event| match event {
                VmEvent::Migration(news) => Some(Ok(news.clone())),
                VmEvent::Ended { report } => Some(Err(report.clone())),
                _ => None,
            });
            match news {
                Ok(MigrationNews::Progress(progress)) => told.push(progress),
                Ok(MigrationNews::Decide { key }) => {
                    assert_eq!(key, self.key);
                    link.ask(VmRequest::DepartDecided { departed: true }).unwrap();
                }
                Ok(MigrationNews::Departed) => {}
                Ok(MigrationNews::Stayed { reason, .. }) => return Err(reason),
                Ok(other) => panic!("{other:?}"),
                Err(report) => break report,
            }
        };
        assert_eq!(report.reason, EndReason::Departed, "{}", report.message);
        assert_eq!(source.report().reason, EndReason::Departed);
        self.await_complete();
        Ok(told)
    }

    /// Until all of its memory is here.
    pub(crate) fn await_whole(&mut self) {
        while !matches!(self.link.migration_news(), MigrationNews::Complete) {}
    }

    /// Until the machine runs here with all of its memory; how long the pause was, in microseconds, as far as this side saw it.
    pub(crate) fn await_complete(&mut self) -> u64 {
        let mut downtime = None;
        loop {
            match self.link.migration_news() {
                MigrationNews::Arrived { downtime_us } => downtime = Some(downtime_us),
                MigrationNews::Complete => return downtime.expect("it arrived before it was complete"),
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Link {
    /// The next that is told of a migration.
    pub(crate) fn migration_news(&mut self) -> MigrationNews {
        self.wait_for(|event| match event {
            VmEvent::Migration(news) => Some(news.clone()),
            _ => None,
        })
    }

    /// The next that is told of a migration, figures apart.
    pub(crate) fn migration_turn(&mut self) -> MigrationNews {
        loop {
            match self.migration_news() {
                MigrationNews::Progress(_) => {}
                news => return news,
            }
        }
    }
}
