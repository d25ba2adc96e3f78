//! What is asked of boot sources over the API.

use api_types::{BootSource, ErrorCode, OperationKind};
use boot_sources::{BootSourceWish, Gate};
use serde_json::Value;
use spec::OperationId;

use super::definitions::{overlay, with_wish};
use super::settle::gate;
use crate::failure::Failure;
use crate::host::Host;
use crate::registry::{Change, OperationRecord, SourceRow};

/// What every refused boot source is told first; the fields follow.
const REFUSED: &str = "the boot source can not be defined as it is written";

impl Host {
    /// One boot source.
    pub async fn boot_source(&self, name: &str) -> Result<BootSource, Failure> {
        let mut all = self.boot_sources().await?.items;
        let at = all.iter().position(|one| one.name == name);
        at.map(|at| all.swap_remove(at)).ok_or_else(|| unknown(name))
    }

    /// Writes a boot source, in place of what was written of it over the API before; on top of a file's definition if there is one.
    /// True where nothing was known under this name.
    pub async fn put_boot_source(
        &self,
        name: &str,
        wish: &api_types::BootSourceWish,
    ) -> Result<(BootSource, bool), Failure> {
        let value = serde_json::to_value(wish).map_err(|error| Failure::of(ErrorCode::Internal, &error))?;
        let wish = read(name, value)?;
        self.write_boot_source(name, move |_| Ok(wish)).await
    }

    /// Changes what was written of a boot source over the API by a merge patch (RFC 7396); a field that is taken away is the file's
    /// again, or the default.
    pub async fn edit_boot_source(&self, name: &str, patch: Value) -> Result<BootSource, Failure> {
        self.boot_source(name).await?;
        let called = name.to_owned();
        let (source, _) = self
            .write_boot_source(name, move |before| {
                let mut value = serde_json::to_value(before).unwrap_or_default();
                let (Value::Object(fields), Value::Object(changes)) = (&mut value, patch) else {
                    let text = "the patch is no object of fields";
                    return Err(Failure::new(ErrorCode::InvalidRequest, text));
                };
                for (key, change) in changes {
                    match change {
                        Value::Null => drop(fields.remove(&key)),
                        change => drop(fields.insert(key, change)),
                    }
                }
                read(&called, value)
            })
            .await?;
        Ok(source)
    }

    async fn write_boot_source(
        &self,
        name: &str,
        make: impl FnOnce(BootSourceWish) -> Result<BootSourceWish, Failure> + Send + 'static,
    ) -> Result<(BootSource, bool), Failure> {
        let (files, _) = self.file_definitions().await?;
        let called = name.to_owned();
        let wrote = self.registry().change(move |change| -> Result<bool, Failure> {
            let rows = change.boot_sources()?;
            let known = rows.iter().find(|row| row.name == called).cloned();
            let is_new = known.is_none() && !files.contains_key(&called);
            let mut row = known.unwrap_or_else(|| SourceRow::new(&called));
            let before = row.wish.clone().unwrap_or_else(|| BootSourceWish {
                name: called.clone(),
                ..BootSourceWish::default()
            });
            let wish = make(before)?;
            let of_files = files.get(&called).map(|defined| defined.source.clone());
            let source =
                with_wish(&wish, of_files.as_ref()).map_err(|problems| Failure::refused(REFUSED, &problems))?;
            let (defined, _) = overlay(files, &rows);
            let alias = source.managed.as_str();
            let mut others = defined.iter().filter(|(name, _)| **name != called);
            if let Some((other, _)) = others.find(|(_, one)| one.source.managed == source.managed) {
                let text = format!("{alias:?} is that of {other} already; take another");
                return Err(Failure::refused_field(REFUSED, "managed", text));
            }
            if change.image(alias)?.is_some() {
                let text = format!("an image is called {alias:?}; take another, or rename the image");
                return Err(Failure::refused_field(REFUSED, "managed", text));
            }
            row.wish = Some(wish);
            change.put_boot_source(&row)?;
            Ok(is_new)
        });
        let is_new = wrote.await?;
        self.0.boot.wake.notify_one();
        Ok((self.boot_source(name).await?, is_new))
    }

    /// Takes back what was written of a boot source over the API. One that a file defines is as the file says then.
    pub async fn delete_boot_source(&self, name: &str) -> Result<(), Failure> {
        let (files, _) = self.file_definitions().await?;
        let called = name.to_owned();
        let deleted = self.registry().change(move |change| -> Result<(), Failure> {
            let file = files.get(&called).and_then(|defined| defined.path.clone());
            let row = change.boot_source(&called)?;
            let Some(mut row) = row.filter(|row| row.wish.is_some()) else {
                return Err(match file {
                    Some(path) => Failure::new(
                        ErrorCode::WrongState,
                        format!(
                            "boot source {called} is defined in {}: take it away there, or disable it",
                            path.display()
                        ),
                    ),
                    None => unknown(&called),
                });
            };
            row.wish = None;
            Ok(change.put_boot_source(&row)?)
        });
        deleted.await?;
        self.0.boot.wake.notify_one();
        Ok(())
    }

    /// Begins to poll all boot sources that are switched on now, as if each was asked for.
    pub async fn sync_boot_sources(&self) -> Result<Vec<OperationRecord>, Failure> {
        let (files, _) = self.file_definitions().await?;
        let gate = gate(self.0.context.config.boot_sources.system_sources);
        let host = self.clone();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let rows = change.boot_sources()?;
            let (defined, _) = overlay(files, &rows);
            let mut begun = Vec::new();
            for (name, _) in defined.iter().filter(|(_, one)| gate.lets(&one.source)) {
                let known = rows.iter().find(|row| row.name == *name).cloned();
                begun.push(host.begin_sync(change, known.unwrap_or_else(|| SourceRow::new(name)))?);
            }
            Ok(begun)
        });
        let begun = begun.await?;
        self.0.boot.wake.notify_one();
        Ok(begun)
    }

    fn begin_sync(&self, change: &Change<'_>, mut row: SourceRow) -> Result<OperationRecord, Failure> {
        row.state.sync();
        change.put_boot_source(&row)?;
        let id = OperationId::random();
        let operation = change.begin_operation(id, OperationKind::BootSourceSync, &row.name)?;
        self.0.boot.waiting().entry(row.name).or_default().push(id);
        Ok(operation)
    }

    /// Begins to poll a boot source now, and to import what is new; also what was refused before.
    pub async fn sync_boot_source(&self, name: &str) -> Result<OperationRecord, Failure> {
        let (files, _) = self.file_definitions().await?;
        let gate = gate(self.0.context.config.boot_sources.system_sources);
        let called = name.to_owned();
        let host = self.clone();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let rows = change.boot_sources()?;
            let known = rows.iter().find(|row| row.name == called).cloned();
            let (defined, _) = overlay(files, &rows);
            let one = defined.get(&called).ok_or_else(|| unknown(&called))?;
            check_on(&called, gate, &one.source)?;
            host.begin_sync(change, known.unwrap_or_else(|| SourceRow::new(&called)))
        });
        let operation = begun.await?;
        self.0.boot.wake.notify_one();
        Ok(operation)
    }
}

fn check_on(name: &str, gate: Gate, source: &boot_sources::BootSource) -> Result<(), Failure> {
    if gate.lets(source) {
        return Ok(());
    }
    let text = if source.enabled {
        format!(
            "boot source {name} is shipped, and those are switched off as a whole (boot_sources.system in karat.toml)"
        )
    } else {
        format!("boot source {name} is switched off: karat boot-source enable {name}")
    };
    Err(Failure::new(ErrorCode::WrongState, text))
}

fn read(name: &str, mut value: Value) -> Result<BootSourceWish, Failure> {
    if let Value::Object(fields) = &mut value {
        fields.insert("name".to_owned(), Value::from(name));
    }
    let wrong = |error: serde_json::Error| {
        let text = format!("the boot source is not understood: {error}");
        Failure::new(ErrorCode::InvalidRequest, text)
    };
    serde_json::from_value(value).map_err(wrong)
}

fn unknown(name: &str) -> Failure {
    Failure::new(
        ErrorCode::NotFound,
        format!("no boot source {name:?}; the list has all"),
    )
}
