//! Figures of moves of machines to other hosts.

use host::MoveCounts;

use crate::page::Page;

/// One figure of a move.
type Figure = fn(&api_types::MigrationFigures) -> u64;

/// Writes all of them.
pub(crate) fn write(page: &mut Page, moves: &MoveCounts) {
    page.family(
        "migrations",
        "gauge",
        "Moves of machines to other hosts that are under way or remembered, by phase.",
    );
    for (phase, count) in &moves.phases {
        page.sample("migrations", &[("phase", &format!("{phase:?}"))], count);
    }
    page.family(
        "migrations_succeeded_total",
        "counter",
        "Moves that succeeded since the daemon started.",
    );
    page.sample("migrations_succeeded_total", &[], moves.succeeded);
    page.family(
        "migrations_failed_total",
        "counter",
        "Moves that failed or were cancelled since the daemon started.",
    );
    page.sample("migrations_failed_total", &[], moves.failed);
    let families: [(&str, &str, Figure); 4] = [
        (
            "vm_migration_data_processed_bytes",
            "Memory of a machine under way that was dealt with.",
            |figures| figures.processed_bytes,
        ),
        (
            "vm_migration_data_remaining_bytes",
            "Memory of a machine under way that is still to be sent.",
            |figures| figures.remaining_bytes,
        ),
        (
            "vm_migration_memory_transfer_rate_bytes",
            "Memory that is dealt with each second.",
            |figures| figures.throughput_bytes_per_s,
        ),
        (
            "vm_migration_dirty_memory_rate_bytes",
            "Memory that the guest writes each second.",
            |figures| figures.dirty_bytes_per_s,
        ),
    ];
    for (name, help, value) in families {
        page.family(name, "gauge", help);
        for (vm, figures) in &moves.figures {
            page.sample(name, &[("vm", vm)], value(figures));
        }
    }
}
