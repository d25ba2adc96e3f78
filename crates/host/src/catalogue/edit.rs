//! Records that people make and change.

use api_types::{ErrorCode, EventReason, Image, ImageCreate, ImageImport, ImageImportInfo};
use image_catalog::{Faults, ImageAction, ImageEdit, ImageRecord, ImageWish};
use serde_json::{Map, Value};
use spec::{OperationId, Problem};

use super::{REFUSED, no_image, not_allowed, source};
use crate::failure::Failure;
use crate::host::Host;
use crate::image_config::DISK_FORMATS;
use crate::registry::{About, Change, ImageRow, ImportJob, OperationRecord};

/// Names that paths of the API have.
const RESERVED: [&str; 2] = ["import-info", "fsck"];

/// What a request for an image began.
pub struct Begun {
    /// The record, where one was made at once.
    pub image: Option<Image>,
    /// What works on it.
    pub operation: Option<OperationId>,
}

impl Host {
    /// Makes a record, and begins to import into it where that is asked for; or pulls what a reference names.
    pub async fn create_image(&self, wish: ImageCreate) -> Result<Begun, Failure> {
        if let Some(reference) = &wish.reference {
            let alone = ImageCreate {
                reference: Some(reference.clone()),
                ..ImageCreate::default()
            };
            if wish != alone {
                let text =
                    "pulls by itself; write the record with import: {\"method\": \"registry\", \"reference\": …}";
                return Err(Failure::refused_field(REFUSED, "reference", text));
            }
            let operation = Some(self.pull_image(reference).await?.id);
            return Ok(Begun { image: None, operation });
        }
        let import = match wish.import.clone() {
            Some(from) => {
                self.check_begun(&from)?;
                Some(self.pin_snapshot(from).await?)
            }
            None => None,
        };
        self.check_format(wish.disk_format.as_deref())?;
        let record = checked(&wish)?;
        let made = self.registry().change(move |change| -> Result<_, Failure> {
            let mut row = ImageRow::queued(record, change.now());
            change.refuse_taken(row.name())?;
            change.insert_image(&row)?;
            let about = row.subject();
            let text = format!("image {} was recorded", row.name());
            change.event(&About::Image(&about, Some(row.name())), EventReason::Created, &text)?;
            if let Some(from) = import {
                change.begin_import(&mut row, from, None)?;
            }
            Ok(row)
        });
        let row = made.await?;
        let operation = row.operation();
        let id = row.id;
        if operation.is_some() {
            self.spawn_import(row);
        }
        let image = Some(self.image(&id.to_string()).await?);
        Ok(Begun { image, operation })
    }

    /// Begins to import into a record that has no data.
    pub async fn import_image(&self, wanted: &str, from: ImageImport) -> Result<OperationRecord, Failure> {
        if matches!(from, ImageImport::Copy { .. }) {
            return self.copy_image(wanted, &from).await;
        }
        self.check_begun(&from)?;
        let from = self.pin_snapshot(from).await?;
        let name = wanted.to_owned();
        let begun = self.registry().change(move |change| -> Result<_, Failure> {
            let mut row = change.find_image(&name)?.ok_or_else(|| no_image(&name))?;
            let operation = change.begin_import(&mut row, from, None)?;
            Ok((row, operation))
        });
        let (row, operation) = begun.await?;
        self.spawn_import(row);
        Ok(operation)
    }

    /// Changes a record by a merge patch (RFC 7396).
    pub async fn edit_image(&self, wanted: &str, revision: Option<u64>, patch: Value) -> Result<Image, Failure> {
        self.check_format(patch.get("disk_format").and_then(Value::as_str))?;
        let name = wanted.to_owned();
        let edited = self.registry().change(move |change| -> Result<_, Failure> {
            let mut row = change.find_image(&name)?.ok_or_else(|| no_image(&name))?;
            check_revision(&row, revision)?;
            let edit = read_patch(&row, patch)?;
            let action = if edit.changes_format() {
                ImageAction::EditFormat
            } else {
                ImageAction::Edit
            };
            row.state
                .state
                .take(action)
                .map_err(|error| not_allowed(row.name(), &error))?;
            let record = row.record.edited(&edit).map_err(|faults| refused(&faults))?.record;
            if record.name() != row.record.name() {
                change.refuse_taken(record.name().as_str())?;
            }
            row.record = record;
            change.update_image(&mut row)?;
            Ok(row.id)
        });
        let id = edited.await?;
        self.image(&id.to_string()).await
    }

    /// Keeps an image from being used, or lets it be used again.
    pub async fn switch_image(&self, wanted: &str, revision: Option<u64>, on: bool) -> Result<Image, Failure> {
        let action = if on {
            ImageAction::Reactivate
        } else {
            ImageAction::Deactivate
        };
        let name = wanted.to_owned();
        let switched = self.registry().change(move |change| -> Result<_, Failure> {
            let mut row = change.find_image(&name)?.ok_or_else(|| no_image(&name))?;
            check_revision(&row, revision)?;
            change.act_on_image(&mut row, action)?;
            Ok(row.id)
        });
        let id = switched.await?;
        self.image(&id.to_string()).await
    }

    /// What can be imported here, and where to.
    pub async fn import_info(&self) -> Result<ImageImportInfo, Failure> {
        let context = &self.0.context;
        let methods = source::methods(context).into_iter();
        let servers = context.config.images.s3.iter();
        Ok(ImageImportInfo {
            methods: methods.map(|method| method.name().to_owned()).collect(),
            max_disk_bytes: context.config.image_max_bytes,
            stores: self.image_stores().await?,
            s3_servers: servers.map(|server| server.name.clone()).collect(),
        })
    }

    /// Whether disks of a format are taken. What is none is told with all other faults.
    fn check_format(&self, format: Option<&str>) -> Result<(), Failure> {
        let Some(format) = format.filter(|format| DISK_FORMATS.contains(format)) else {
            return Ok(());
        };
        let taken = &self.0.context.config.images.disk_formats;
        if taken.iter().any(|one| one == format) {
            return Ok(());
        }
        let text = format!("{format:?} is not taken here; take one of: {}", taken.join(", "));
        Err(Failure::refused_field(REFUSED, "disk_format", text))
    }

    /// Whether an import can be begun by saying where it is from.
    fn check_begun(&self, from: &ImageImport) -> Result<(), Failure> {
        let text = match from {
            ImageImport::Upload { .. } => "upload is not begun so: PUT the bytes to /v1/images/{image}/data",
            ImageImport::Copy { .. } => "copy is for images that have data: POST it to /v1/images/{image}/import",
            _ => return source::check(&self.0.context, from),
        };
        Err(Failure::refused_field(REFUSED, "method", text))
    }
}

impl Change<'_> {
    /// Moves an image into the state `action` leads to, writes that down and tells of it.
    pub(crate) fn act_on_image(&self, row: &mut ImageRow, action: ImageAction) -> Result<(), Failure> {
        let next = row.state.take(action, self.now());
        let next = next.map_err(|error| not_allowed(row.name(), &error))?;
        let Some(next) = next else { return Ok(()) };
        row.state = next;
        self.update_image(row)?;
        self.tell_image_state(row)
    }

    /// An event of the state an image is in now.
    pub(crate) fn tell_image_state(&self, row: &ImageRow) -> Result<(), Failure> {
        let mut text = format!("image {} is {}", row.name(), row.state.state.as_str());
        if let Some(failure) = &row.state.failure {
            text = format!("{text}: {}", failure.message);
        }
        let about = row.subject();
        Ok(self.event(
            &About::Image(&about, Some(row.name())),
            EventReason::PhaseChanged,
            &text,
        )?)
    }

    /// Notes that an import begins.
    pub(crate) fn begin_import(
        &self,
        row: &mut ImageRow,
        from: ImageImport,
        max_disk_bytes: Option<u64>,
    ) -> Result<OperationRecord, Failure> {
        let operation = OperationId::random();
        row.import = Some(ImportJob {
            operation,
            from,
            max_disk_bytes,
        });
        row.begun = 1;
        self.act_on_image(row, ImageAction::Import)?;
        Ok(self.begin_operation(operation, api_types::OperationKind::ImageImport, row.name())?)
    }

    /// Neither an image nor an alias is called `name`.
    pub(crate) fn refuse_taken(&self, name: &str) -> Result<(), Failure> {
        if RESERVED.contains(&name) {
            let text = format!("{name:?} is a path of the API; choose another name");
            return Err(Failure::refused_field(REFUSED, "name", text));
        }
        if self.image(name)?.is_some() || self.alias(name)?.is_some() {
            let text =
                format!("there is an image or an alias {name:?} already; choose another name, or remove that one");
            return Err(Failure::new(ErrorCode::NameTaken, text));
        }
        Ok(())
    }
}

fn check_revision(row: &ImageRow, wanted: Option<u64>) -> Result<(), Failure> {
    match wanted {
        Some(wanted) if wanted != row.revision => {
            let text = format!(
                "image {} has revision {} by now, not {wanted}: look at it again",
                row.name(),
                row.revision
            );
            Err(Failure::new(ErrorCode::RevisionMismatch, text))
        }
        _ => Ok(()),
    }
}

fn checked(wish: &ImageCreate) -> Result<ImageRecord, Failure> {
    let wish = wish.clone();
    let wish = ImageWish {
        name: wish.name.unwrap_or_default(),
        description: wish.description,
        disk_format: wish.disk_format,
        container_format: wish.container_format,
        architecture: wish.architecture,
        min_disk_gib: wish.min_disk_gib,
        min_ram_mib: wish.min_ram_mib,
        visibility: wish.visibility,
        protected: wish.protected,
        hidden: wish.hidden,
        owner: wish.owner,
        tags: wish.tags,
        properties: wish.properties,
    };
    let checked = ImageRecord::check(&wish).map_err(|faults| refused(&faults))?;
    Ok(checked.record)
}

/// Every fault, each with its code.
fn refused(faults: &Faults) -> Failure {
    let problems = faults.list().iter().map(|fault| Problem {
        field: fault.field.clone(),
        message: format!("{} ({})", fault.message, fault.code),
    });
    Failure {
        code: ErrorCode::InvalidSpec,
        detail: REFUSED.to_owned(),
        problems: problems.collect(),
    }
}

/// A patch as an edit: what is `null` gets its default.
fn read_patch(row: &ImageRow, patch: Value) -> Result<ImageEdit, Failure> {
    let wrong = |text: String| Failure::new(ErrorCode::InvalidRequest, text);
    let Value::Object(fields) = patch else {
        return Err(wrong("the patch is no object of fields".to_owned()));
    };
    let mut edit = Map::new();
    for (key, value) in fields {
        let value = match (key.as_str(), value) {
            ("description", Value::Null) => Value::String(String::new()),
            ("min_disk_gib" | "min_ram_mib", Value::Null) => Value::from(0),
            ("visibility", Value::Null) => Value::from("shared"),
            ("protected" | "hidden", Value::Null) => Value::from(false),
            ("tags", Value::Null) => Value::Array(Vec::new()),
            ("properties", Value::Null) => {
                let keys = row
                    .record
                    .properties()
                    .iter()
                    .map(|(key, _)| (key.to_owned(), Value::Null));
                Value::Object(keys.collect())
            }
            (_, Value::Null) => return Err(wrong(format!("{key}: can not be taken away; write what it should be"))),
            (_, value) => value,
        };
        edit.insert(key, value);
    }
    serde_json::from_value(Value::Object(edit)).map_err(|error| wrong(format!("the patch is not understood: {error}")))
}
