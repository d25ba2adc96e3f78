//! Moves that an earlier daemon was at.

use crate::context::Context;
use crate::moves::{ArrivalRecord, MigrationRecord, News};
use crate::registry::{Change, RegistryError};

/// Moves that an earlier daemon was at, and what their processes tell from now on.
pub(crate) struct LeftMoves {
    pub(crate) departures: Vec<(MigrationRecord, News)>,
    pub(crate) arrivals: Vec<(ArrivalRecord, News)>,
}

/// Decides for every move away from here that is under way that the machine stays, unless it has departed. To be done before anything is done
/// to any machine.
pub(crate) fn take_over(change: &Change<'_>) -> Result<(), RegistryError> {
    for record in change.moves::<MigrationRecord>()? {
        if !record.phase.is_final() {
            change.decide(&record.key, Some(record.vm), false)?;
        }
    }
    Ok(())
}

/// Listens to the processes of moves that an earlier daemon was at. To be done before the machines are looked for.
pub(crate) fn listen(context: &Context) -> Result<LeftMoves, RegistryError> {
    let (departures, arrivals) = context.registry.change_now(|change| -> Result<_, RegistryError> {
        Ok((change.moves::<MigrationRecord>()?, change.moves::<ArrivalRecord>()?))
    })?;
    let departures = departures.into_iter().filter(|record| !record.phase.is_final());
    let arrivals = arrivals.into_iter().filter(|record| !record.phase.is_final());
    Ok(LeftMoves {
        departures: departures
            .map(|record| {
                let news = context.moves.follow(record.vm, record.key);
                (record, news)
            })
            .collect(),
        arrivals: arrivals
            .map(|record| {
                let news = context.moves.follow(record.vm, record.key);
                (record, news)
            })
            .collect(),
    })
}
