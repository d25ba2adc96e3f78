//! Requests about moves: the files that come with them become streams.

use std::os::fd::OwnedFd;
use std::time::Duration;

use control::{ArriveVm, DepartVm, FdRole, FromVm, Refusal, RefusalKind, VmAction, VmRequest};
use vmm::{Action, Incoming, MachineFiles, Steer, Ticket, Word};

use crate::control_loop::{ControlLoop, chain};
use crate::links::{Connected, Listening};
use crate::tls::TlsError;

fn bad_file(message: String) -> Refusal {
    Refusal {
        kind: RefusalKind::BadFile,
        message,
    }
}

fn unusable(error: &TlsError) -> Refusal {
    bad_file(chain(error))
}

/// One for control, and so many for pages.
fn check_count(sockets: &[OwnedFd], wanted: usize) -> Result<(), Refusal> {
    let came = sockets.len();
    if came == wanted {
        return Ok(());
    }
    Err(bad_file(format!(
        "{came} sockets came for {wanted} streams: send one for each, in the same message"
    )))
}

impl ControlLoop {
    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        tracing::warn!(kind = ?refusal.kind, message = refusal.message, "request refused");
        let number = ticket.number;
        self.send(ticket.connection, &FromVm::Refused { number, refusal });
    }

    pub(crate) fn depart(&mut self, ticket: Ticket, depart: Box<DepartVm>) {
        let wanted = 1 + usize::from(depart.options.streams);
        let sockets = self.take_files(ticket, wanted);
        tracing::info!(migration = %depart.key.id, streams = depart.options.streams, "asked to move away");
        let connected = check_count(&sockets, wanted)
            .and_then(|()| Connected::new(sockets, depart.credentials.as_ref()).map_err(|error| unusable(&error)));
        match connected {
            Ok(connected) => {
                self.departing_tls = connected.tls();
                let dialer = Box::new(connected);
                self.driver.send(Action::Depart { ticket, depart, dialer });
            }
            Err(refusal) => self.refuse(ticket, refusal),
        }
    }

    pub(crate) fn arrive(&mut self, ticket: Ticket, arrive: ArriveVm) {
        let fds = self.take_files(ticket, arrive.create.fds.len());
        tracing::info!(migration = %arrive.key.id, "asked to take a machine from elsewhere");
        let machine = Box::new(arrive.create.machine.clone());
        let arrival = self.sort_arrival(arrive, fds);
        self.driver.send(Action::Arrive {
            ticket,
            machine,
            arrival,
        });
    }

    fn sort_arrival(
        &mut self,
        arrive: ArriveVm,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(Box<MachineFiles>, Incoming), Refusal> {
        let ArriveVm {
            mut create,
            key,
            credentials,
            patience_ms,
        } = arrive;
        let place = create.fds.iter().position(|role| *role == FdRole::MigrationListener);
        let place = place.filter(|place| *place < fds.len());
        let listener = place.map(|place| {
            create.fds.remove(place);
            fds.remove(place)
        });
        let files = self.begin(&create, fds)?;
        let listener = listener.ok_or_else(|| bad_file("no socket came to listen on for the source".to_owned()))?;
        let listening = Listening::new(listener, credentials.as_ref()).map_err(|error| unusable(&error))?;
        let incoming = Incoming {
            key,
            patience: Duration::from_millis(patience_ms),
            acceptor: Box::new(move || Box::new(listening.clone())),
        };
        Ok((files, incoming))
    }

    /// Requests to a move that is under way.
    pub(crate) fn steer(&mut self, ticket: Ticket, request: &VmRequest) {
        tracing::info!(?request, connection = ticket.connection, "asked for");
        let departure = VmAction::SteerDeparture;
        let (action, steer) = match *request {
            VmRequest::DepartTune { bandwidth_bytes_per_s } => (departure, Steer::Tune(bandwidth_bytes_per_s)),
            VmRequest::DepartCancel => (departure, Steer::Cancel),
            VmRequest::DepartDecided { departed } => (departure, Steer::Word(Word::Decided { departed })),
            VmRequest::ArriveDecided { departed } => (VmAction::DecideArrival, Steer::Word(Word::Decided { departed })),
            VmRequest::DepartLinks { count } => {
                let wanted = usize::try_from(count).unwrap_or(usize::MAX);
                let sockets = self.take_files(ticket, wanted);
                if let Err(refusal) = check_count(&sockets, wanted) {
                    return self.refuse(ticket, refusal);
                }
                let dialer = Box::new(Connected::again(self.departing_tls.clone(), sockets));
                (departure, Steer::Word(Word::Links(dialer)))
            }
            // The caller passes no others.
            _ => return,
        };
        self.driver.send(Action::Steer { ticket, action, steer });
    }
}
