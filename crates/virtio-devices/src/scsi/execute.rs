//! One command, done.
//!
//! ```text
//!   address ──▶ no target: BAD TARGET    no unit: as SPC-4 §5.4 has it    REPORT LUNS: the few it knows
//!      └──▶ unit ──▶ parse ──▶ attention to be told? ──▶ medium there? ──▶ do it
//! ```

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio::Scatter;

use super::address::{Address, Lun};
use super::block;
use super::cdb::Command;
use super::commands::{CDB_SIZE, Kind};
use super::inquiry::Subject;
use super::provision::{self, Same};
use super::request::{Code, Data, Stop};
use super::sense::Sense;
use super::task::Task;
use super::unit::{Attention, Found, Seat, Seats, Unit, Units};
use super::{cdrom, inquiry, modes, report};
use crate::figures;

/// A request, as far as it concerns a unit.
pub(super) struct Call<'a> {
    pub(super) address: Option<Address>,
    pub(super) cdb: &'a [u8; CDB_SIZE],
    pub(super) task: &'a Task,
    pub(super) began: Instant,
}

/// Does it, and says how many bytes were moved. `seats` are those of the worker.
pub(super) async fn execute(units: &Units, seats: &RefCell<Seats>, call: &Call<'_>, data: Data) -> Result<usize, Stop> {
    match call.address {
        None => Err(Stop::Code(Code::BadTarget)),
        Some(Address::ReportLuns(Some(target))) if !units.has_target(target) => Err(Stop::Code(Code::BadTarget)),
        Some(Address::ReportLuns(target)) => well_known(units, target, call.cdb, data),
        Some(Address::Unit(lun)) => {
            let found = seats.borrow_mut().find(lun, units);
            match found {
                Found::Seat(seat) => {
                    let result = on_unit(&seat, units, call, data).await;
                    if matches!(result, Err(Stop::Check(_))) {
                        seat.unit().figures.error();
                    }
                    result
                }
                Found::Nobody => nobody(units, lun, call.cdb, data),
                Found::Broken(unit, error) => {
                    let _logged = block::failed(&unit, &error, None);
                    Err(Sense::UNREACHABLE.into())
                }
            }
        }
    }
}

/// Gives as much of `bytes` as was asked for.
fn give(mut into: Scatter, allocation: usize, bytes: &[u8]) -> Result<usize, Stop> {
    let told = bytes.get(..allocation).unwrap_or(bytes);
    if into.len() < told.len() {
        return Err(Stop::Code(Code::Overrun));
    }
    Ok(into.copy_from(told))
}

/// A command for REPORT LUNS itself.
fn well_known(units: &Units, target: Option<u8>, cdb: &[u8; CDB_SIZE], data: Data) -> Result<usize, Stop> {
    match Command::parse(cdb, Kind::WellKnown)? {
        Command::TestUnitReady => Ok(0),
        Command::Inquiry { page, allocation } => identify(&Subject::WellKnown, page, allocation, data.into),
        Command::RequestSense { allocation } => give(data.into, allocation, &Sense::NONE.bytes()),
        Command::ReportLuns { select, allocation } => {
            let list = report::units(units, target, select, allocation)?;
            give(data.into, allocation, &list)
        }
        _ => Err(Sense::INVALID_OPCODE.into()),
    }
}

/// A command for a unit that is not there: its target says so, if that is there (SPC-4 §5.4).
fn nobody(units: &Units, lun: Lun, cdb: &[u8; CDB_SIZE], data: Data) -> Result<usize, Stop> {
    if !units.has_target(lun.target()) {
        return Err(Stop::Code(Code::BadTarget));
    }
    match Command::parse(cdb, Kind::WellKnown) {
        Ok(Command::Inquiry { page, allocation }) => identify(&Subject::Nobody, page, allocation, data.into),
        Ok(Command::RequestSense { allocation }) => give(data.into, allocation, &Sense::NO_SUCH_UNIT.bytes()),
        Ok(Command::ReportLuns { select, allocation }) => {
            let list = report::units(units, Some(lun.target()), select, allocation)?;
            give(data.into, allocation, &list)
        }
        _ => Err(Sense::NO_SUCH_UNIT.into()),
    }
}

fn identify(subject: &Subject<'_>, page: Option<u8>, allocation: usize, into: Scatter) -> Result<usize, Stop> {
    let answer = match page {
        None => inquiry::standard(subject),
        Some(page) => inquiry::vital(subject, page)?,
    };
    give(into, allocation, &answer)
}

async fn on_unit(seat: &Seat, units: &Units, call: &Call<'_>, data: Data) -> Result<usize, Stop> {
    let unit = seat.unit();
    let command = Command::parse(call.cdb, Kind::Unit(unit.medium));
    if !command.as_ref().is_ok_and(ignores_attention)
        && let Some(sense) = unit.take_attention()
    {
        return Err(sense.into());
    }
    let command = command?;
    if needs_medium(&command) {
        if unit.ejected.load(Ordering::Relaxed) {
            return Err(Sense::NO_MEDIUM.into());
        }
        if unit.stopped.load(Ordering::Relaxed) {
            return Err(Sense::STOPPED.into());
        }
    }
    match command {
        Command::Read { .. }
        | Command::Write { .. }
        | Command::Verify { .. }
        | Command::Synchronize { .. }
        | Command::WriteSame { .. }
        | Command::Unmap { .. } => on_medium(seat, command, call, data).await,
        Command::ModeSelect { long, length } => select(seat, long, block::front(data.out, length)?).await,
        Command::StartStop { start, load_eject } => start_stop(seat, start, load_eject).await,
        command => at_once(unit, units, &command, data.into),
    }
}

/// Commands that are done although there is something to be told first (SPC-4 §5.14; MMC-6 §4.1.6).
const fn ignores_attention(command: &Command) -> bool {
    matches!(
        command,
        Command::Inquiry { .. }
            | Command::ReportLuns { .. }
            | Command::RequestSense { .. }
            | Command::GetConfiguration { .. }
            | Command::GetEvents { .. }
    )
}

const fn needs_medium(command: &Command) -> bool {
    matches!(
        command,
        Command::TestUnitReady
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::Read { .. }
            | Command::Write { .. }
            | Command::Verify { .. }
            | Command::Synchronize { .. }
            | Command::WriteSame { .. }
            | Command::Unmap { .. }
            | Command::ReadToc { .. }
            | Command::ReadDiscInformation { .. }
    )
}

/// What needs no disk to be answered.
fn at_once(unit: &Unit, units: &Units, command: &Command, into: Scatter) -> Result<usize, Stop> {
    let (allocation, answer) = match *command {
        Command::TestUnitReady => return Ok(0),
        Command::Inquiry { page, allocation } => return identify(&Subject::Unit(unit), page, allocation, into),
        Command::PreventAllow { prevent } => {
            unit.locked.store(prevent, Ordering::Relaxed);
            return Ok(0);
        }
        Command::RequestSense { allocation } => {
            let sense = unit.take_attention().unwrap_or(Sense::NONE);
            (allocation, sense.bytes().to_vec())
        }
        Command::ModeSense(ask) => (ask.allocation, modes::sense(unit, &ask)?),
        Command::ReadCapacity10 => (usize::MAX, report::capacity_short(unit)?),
        Command::ReadCapacity16 { allocation } => (allocation, report::capacity_long(unit)?),
        Command::ReportLuns { select, allocation } => {
            unit.clear(Attention::Units);
            (
                allocation,
                report::units(units, Some(unit.lun.target()), select, allocation)?,
            )
        }
        Command::SupportedOpcodes(ask) => (ask.allocation, report::opcodes(Kind::Unit(unit.medium), &ask)?),
        Command::ReadToc {
            msf,
            format,
            track,
            allocation,
        } => (allocation, cdrom::contents(unit, msf, format, track)?),
        Command::GetConfiguration {
            which,
            first,
            allocation,
        } => (allocation, cdrom::configuration(unit, which, first)?),
        Command::GetEvents {
            polled,
            classes,
            allocation,
        } => (allocation, cdrom::events(unit, polled, classes)?),
        Command::ReadDiscInformation { allocation } => (allocation, cdrom::disc_information()),
        _ => return Err(Sense::INVALID_OPCODE.into()),
    };
    give(into, allocation, &answer)
}

/// What is counted and timed.
async fn on_medium(seat: &Seat, command: Command, call: &Call<'_>, data: Data) -> Result<usize, Stop> {
    use figures::Kind::{Flush, Read, Trim, Write};
    let len = |result: &Result<usize, Stop>| result.map_or(0, |len| len as u64);
    let (kind, bytes, result) = match command {
        Command::Read { span, fua } => {
            let result = block::read(seat, span, fua, data.into).await;
            (Read, len(&result), result)
        }
        Command::Write { span, fua } => {
            let result = block::write(seat, span, fua, data.out).await;
            (Write, len(&result), result)
        }
        Command::Verify { span } => {
            let result = block::verify(seat, span, call.task).await.map(|()| 0);
            (Read, 0, result)
        }
        Command::Synchronize { span } => (Flush, 0, block::synchronize(seat, span).await.map(|()| 0)),
        Command::Unmap { length } => {
            let result = provision::unmap(seat, length, data.out, call.task).await;
            (Trim, result.map_or(0, |done| done.1), result.map(|done| done.0))
        }
        Command::WriteSame { span, unmap, no_data } => {
            let how = Same { unmap, no_data };
            let result = provision::write_same(seat, span, how, data.out, call.task).await;
            let zeroes = result.is_ok_and(|done| done.2);
            let kind = if zeroes { Trim } else { Write };
            (kind, result.map_or(0, |done| done.1), result.map(|done| done.0))
        }
        _ => return Err(Sense::INVALID_OPCODE.into()),
    };
    seat.unit().figures.record(kind, call.began, bytes);
    result
}

/// MODE SELECT: whoever gives up the write cache is promised that what was in it is durable.
async fn select(seat: &Seat, long: bool, parameters: Scatter) -> Result<usize, Stop> {
    let unit = seat.unit();
    let mut bytes = vec![0; parameters.len()];
    parameters.copy_to(&mut bytes);
    if let Some(on) = modes::select(unit, long, &bytes)? {
        unit.write_cache.store(on, Ordering::SeqCst);
        if !on && unit.is_writable() {
            let result = seat.io.flush().await;
            result.map_err(|error| block::failed(unit, &error, None))?;
        }
    }
    Ok(bytes.len())
}

/// START STOP UNIT: a disk that stops is durable; the tray of a drive opens and closes.
async fn start_stop(seat: &Seat, start: bool, load_eject: bool) -> Result<usize, Stop> {
    let unit = seat.unit();
    let is_drive = unit.medium == super::Medium::CdRom;
    if is_drive && load_eject && !start {
        if unit.locked.load(Ordering::Relaxed) {
            return Err(Sense::REMOVAL_PREVENTED.into());
        }
        unit.ejected.store(true, Ordering::SeqCst);
        return Ok(0);
    }
    if is_drive && load_eject && unit.ejected.swap(false, Ordering::SeqCst) {
        unit.arrived.store(true, Ordering::SeqCst);
        unit.raise(Attention::Medium);
    }
    if !start && unit.is_writable() {
        let result = seat.io.flush().await;
        result.map_err(|error| block::failed(unit, &error, None))?;
    }
    unit.stopped.store(!start, Ordering::Relaxed);
    Ok(0)
}
