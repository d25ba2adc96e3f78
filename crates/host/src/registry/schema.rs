//! The tables, and how a file written by an older program becomes one of today's.

use rusqlite::Connection;

use super::RegistryError;

/// How long a statement waits for another process (a person with the `sqlite3` shell, say), milliseconds.
const BUSY_TIMEOUT_MS: u64 = 5000;

/// Steps from each schema version to the next; a file of version *n* gets all from the *n*-th on. Steps are never edited
/// once released, only added.
const MIGRATIONS: [&str; 9] = [
    r"
    CREATE TABLE vms (
        id           TEXT PRIMARY KEY,
        name         TEXT NOT NULL UNIQUE,
        spec         TEXT NOT NULL,
        image_digest TEXT,
        status       TEXT NOT NULL,
        created_at   TEXT NOT NULL,
        revision     INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE image_references (
        reference TEXT PRIMARY KEY,
        digest    TEXT NOT NULL,
        pulled_at TEXT NOT NULL
    ) STRICT;
    CREATE INDEX image_references_by_digest ON image_references (digest);
    CREATE TABLE operations (
        number     INTEGER PRIMARY KEY AUTOINCREMENT,
        id         TEXT NOT NULL UNIQUE,
        kind       TEXT NOT NULL,
        subject    TEXT NOT NULL,
        phase      TEXT NOT NULL,
        result     TEXT,
        failure    TEXT,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE events (
        id         INTEGER PRIMARY KEY AUTOINCREMENT,
        at         TEXT NOT NULL,
        collection TEXT NOT NULL,
        subject    TEXT NOT NULL,
        name       TEXT,
        reason     TEXT NOT NULL,
        message    TEXT NOT NULL
    ) STRICT;
",
    r"
    CREATE TABLE volumes (
        id       TEXT PRIMARY KEY,
        name     TEXT NOT NULL UNIQUE,
        record   TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT;
",
    r"
    CREATE TABLE idempotency_keys (
        number  INTEGER PRIMARY KEY AUTOINCREMENT,
        key     TEXT NOT NULL UNIQUE,
        request TEXT NOT NULL,
        answer  TEXT,
        at      TEXT NOT NULL
    ) STRICT;
",
    "ALTER TABLE operations ADD COLUMN begun INTEGER NOT NULL DEFAULT 1;",
    r"
    CREATE TABLE images (
        number   INTEGER PRIMARY KEY AUTOINCREMENT,
        id       TEXT NOT NULL UNIQUE,
        name     TEXT NOT NULL UNIQUE,
        digest   TEXT,
        record   TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX images_by_digest ON images (digest);
    CREATE TABLE image_aliases (
        alias TEXT PRIMARY KEY,
        image TEXT NOT NULL
    ) STRICT;
    CREATE TABLE boot_sources (
        name   TEXT PRIMARY KEY,
        record TEXT NOT NULL
    ) STRICT;
",
    r"
    CREATE TABLE metadefs (
        name   TEXT PRIMARY KEY,
        record TEXT NOT NULL
    ) STRICT;
    ALTER TABLE events ADD COLUMN first_at TEXT;
    ALTER TABLE events ADD COLUMN count INTEGER NOT NULL DEFAULT 1;
    CREATE INDEX events_by_subject ON events (collection, subject, id);
",
    r"
    CREATE TABLE image_cache (
        digest TEXT PRIMARY KEY,
        record TEXT NOT NULL
    ) STRICT;
",
    r"
    CREATE TABLE migrations (
        number  INTEGER PRIMARY KEY AUTOINCREMENT,
        id      TEXT NOT NULL UNIQUE,
        vm      TEXT NOT NULL,
        is_over INTEGER NOT NULL,
        record  TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX migrations_under_way ON migrations (vm) WHERE NOT is_over;
    CREATE TABLE arrivals (
        number  INTEGER PRIMARY KEY AUTOINCREMENT,
        id      TEXT NOT NULL UNIQUE,
        vm      TEXT NOT NULL,
        is_over INTEGER NOT NULL,
        record  TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX arrivals_under_way ON arrivals (vm) WHERE NOT is_over;
    CREATE TABLE ledger (
        id       TEXT NOT NULL,
        token    TEXT NOT NULL,
        vm       TEXT,
        departed INTEGER NOT NULL,
        at       TEXT NOT NULL,
        PRIMARY KEY (id, token)
    ) STRICT;
    CREATE INDEX ledger_by_vm ON ledger (vm);
",
    r"
    CREATE TABLE snapshots (
        id           TEXT PRIMARY KEY,
        name         TEXT NOT NULL UNIQUE,
        image_digest TEXT,
        record       TEXT NOT NULL,
        revision     INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX snapshots_by_image ON snapshots (image_digest);
",
];

/// Sets the connection up and runs the steps the file lacks, each in a transaction of its own.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), RegistryError> {
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_TIMEOUT_MS))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    if found > known {
        return Err(RegistryError::TooNew { found, known });
    }
    for (step, version) in MIGRATIONS
        .iter()
        .zip(1..)
        .skip(usize::try_from(found).unwrap_or(usize::MAX))
    {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_from_before_there_were_records_keeps_what_it_has() {
        let mut connection = Connection::open_in_memory().unwrap();
        for step in MIGRATIONS.iter().take(3) {
            connection.execute_batch(step).unwrap();
        }
        connection.pragma_update(None, "user_version", 3).unwrap();
        let reference = "INSERT INTO image_references VALUES ('q.io/x/y:1', 'sha256:00', '2026-11-22T00:00:00Z')";
        connection.execute(reference, []).unwrap();
        prepare(&mut connection).unwrap();
        let count = |table: &str| -> i64 {
            let query = format!("SELECT COUNT(*) FROM {table}");
            connection.query_row(&query, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(count("image_references"), 1);
        for table in ["images", "image_aliases", "boot_sources", "metadefs"] {
            assert_eq!(count(table), 0, "{table}");
        }
        let version: u32 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(version as usize, MIGRATIONS.len());
    }
}
