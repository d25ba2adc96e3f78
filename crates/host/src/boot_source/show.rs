//! Boot sources as the API shows them.

use api_types::{BootSourceCondition, BootSourceError, BootSourceImport, BootSourceList};
use boot_sources::{BootSourceWish, Gate, Step, outdated};
use jiff::Timestamp;
use serde_json::Value;

use super::definitions::{Defined, overlay};
use super::settle::gate;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{RegistryError, SourceRow, written};

impl Host {
    /// All boot sources, by name, and what is wrong with definitions.
    pub async fn boot_sources(&self) -> Result<BootSourceList, Failure> {
        let (files, mut problems) = self.file_definitions().await?;
        let looked = self.registry().change(move |change| -> Result<_, RegistryError> {
            let rows = change.boot_sources()?;
            let (defined, problems) = overlay(files, &rows);
            Ok((defined, rows, problems, change.now()))
        });
        let (defined, rows, more, now) = looked.await?;
        problems.extend(more);
        let gate = gate(self.0.context.config.boot_sources.system_sources);
        let items = defined.iter().map(|(name, one)| {
            let row = rows.iter().find(|row| row.name == *name).cloned();
            describe(one, row.unwrap_or_else(|| SourceRow::new(name)), gate, now)
        });
        Ok(BootSourceList {
            items: items.collect(),
            problems,
        })
    }
}

fn describe(one: &Defined, mut row: SourceRow, gate: Gate, now: Timestamp) -> api_types::BootSource {
    let (is_outdated, _) = outdated(&one.source, &row.state, gate);
    let next_poll = match row.state.step(&one.source, gate, now) {
        Step::Wait(due) => Some(due),
        Step::Poll => Some(now),
        _ => None,
    };
    let state = &row.state;
    api_types::BootSource {
        name: row.name.clone(),
        origin: word(&one.source.origin),
        definition: to_api(&written(&one.source)),
        written: row.wish.as_ref().map(to_api),
        defined_in: one.path.as_ref().map(|path| path.display().to_string()),
        imports: state
            .imports()
            .iter()
            .map(|import| BootSourceImport {
                digest: import.digest.to_string(),
                image: import.image.clone(),
                at: import.at,
            })
            .collect(),
        importing: state.importing().map(ToString::to_string),
        next_poll,
        last_attempt: state.last_attempt(),
        last_success: state.last_success(),
        failures: state.failures(),
        last_error: state.last_error().map(|error| BootSourceError {
            code: error.code.clone(),
            message: error.message.clone(),
            at: error.at,
            importing: error.importing,
        }),
        conditions: row
            .conditions
            .iter()
            .map(|condition| BootSourceCondition {
                kind: word(&condition.kind),
                status: word(&condition.status),
                reason: word(&condition.reason),
                message: condition.message.clone(),
                last_transition: condition.last_transition,
            })
            .collect(),
        outdated: is_outdated,
    }
}

/// As the API writes it: the same fields, the name aside.
fn to_api(wish: &BootSourceWish) -> api_types::BootSourceWish {
    let mut value = serde_json::to_value(wish).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.remove("name");
    }
    serde_json::from_value(value).unwrap_or_default()
}

/// A word of the API.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}
