//! Metadata definitions over the API: read by all, written where the policy lets somebody.

use api_types::{ErrorCode, Metadef, MetadefList};
use image_catalog::{Catalogue, MetadefError, MetadefOperation, Namespace, Role};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::host::Host;
use crate::registry::Change;

/// What every refused definition is told first; the fields follow.
const REFUSED: &str = "the definitions can not be taken as they are written";

impl Host {
    /// All namespaces, or those that apply to a kind of resource.
    pub async fn metadefs(&self, resource_type: Option<String>) -> Result<MetadefList, Failure> {
        let (all, problems) = self.all_metadefs().await?;
        let applies = |space: &&Namespace| {
            let mut types = space.resource_types.iter();
            resource_type
                .as_ref()
                .is_none_or(|wanted| types.any(|one| one.name == *wanted))
        };
        let items: Result<_, _> = all.namespaces().filter(applies).map(to_other).collect();
        Ok(MetadefList {
            items: items?,
            problems,
        })
    }

    /// One namespace.
    pub async fn metadef(&self, name: &str) -> Result<Metadef, Failure> {
        let (all, _) = self.all_metadefs().await?;
        let space = all.namespace(name);
        to_other(space.ok_or_else(|| failure(&MetadefError::Unknown(name.to_owned())))?)
    }

    async fn all_metadefs(&self) -> Result<(Catalogue, Vec<String>), Failure> {
        let host = self.clone();
        let read = self
            .registry()
            .change(move |change| -> Result<_, Failure> { Ok(host.0.context.metadefs.with(change.metadefs()?)) });
        read.await
    }

    /// Writes a namespace, in place of the one of that name; true where there was none.
    pub async fn put_metadef(&self, is_admin: bool, name: &str, space: Metadef) -> Result<(Metadef, bool), Failure> {
        if space.namespace != name {
            let text = format!("{:?}; the path says {name:?}", space.namespace);
            return Err(Failure::refused_field(REFUSED, "namespace", text));
        }
        let space: Namespace = to_other(&space)?;
        let (host, called) = (self.clone(), name.to_owned());
        let wrote = self.registry().change(move |change| -> Result<bool, Failure> {
            let (mut all, _) = host.0.context.metadefs.with(change.metadefs()?);
            let is_new = all.namespace(&called).is_none();
            let operation = if is_new {
                MetadefOperation::AddNamespace
            } else {
                MetadefOperation::ModifyNamespace
            };
            host.allow(is_admin, operation)?;
            let taken = if is_new {
                all.add(space.clone())
            } else {
                all.replace(space.clone())
            };
            taken.map_err(|error| failure(&error))?;
            change.put_metadef(&space)?;
            Ok(is_new)
        });
        let is_new = wrote.await?;
        Ok((self.metadef(name).await?, is_new))
    }

    /// Removes a namespace.
    pub async fn delete_metadef(&self, is_admin: bool, name: &str) -> Result<(), Failure> {
        let (host, called) = (self.clone(), name.to_owned());
        let deleted = self.registry().change(move |change| -> Result<(), Failure> {
            host.allow(is_admin, MetadefOperation::DeleteNamespace)?;
            let (mut all, _) = host.0.context.metadefs.with(change.metadefs()?);
            all.remove(&called).map_err(|error| failure(&error))?;
            Ok(change.delete_metadef(&called)?)
        });
        deleted.await
    }

    fn allow(&self, is_admin: bool, operation: MetadefOperation) -> Result<(), Failure> {
        let role = if is_admin { Role::Admin } else { Role::User };
        if self.0.context.config.metadefs.policy.allows(role, operation) {
            return Ok(());
        }
        let text = format!(
            "{} is for administrators here: ask root, or have metadefs.policy in karat.toml set to open",
            operation.as_str()
        );
        Err(Failure::new(ErrorCode::Forbidden, text))
    }
}

/// The same fields in the API and in the catalogue.
fn to_other<A: Serialize, B: DeserializeOwned>(space: &A) -> Result<B, Failure> {
    let wrong = |error: serde_json::Error| {
        let text = format!("the definitions are not understood: {error}");
        Failure::new(ErrorCode::InvalidRequest, text)
    };
    let value = serde_json::to_value(space).map_err(wrong)?;
    serde_json::from_value(value).map_err(wrong)
}

fn failure(error: &MetadefError) -> Failure {
    let code = match error {
        MetadefError::Invalid { faults, .. } => {
            let problems = faults.list().iter().map(|fault| spec::Problem {
                field: fault.field.clone(),
                message: format!("{} ({})", fault.message, fault.code),
            });
            return Failure {
                code: ErrorCode::InvalidSpec,
                detail: REFUSED.to_owned(),
                problems: problems.collect(),
            };
        }
        MetadefError::Unknown(_) => ErrorCode::NotFound,
        MetadefError::Exists(_) => ErrorCode::NameTaken,
        MetadefError::Protected(_) | MetadefError::Full => ErrorCode::WrongState,
    };
    Failure::of(code, error)
}

impl Change<'_> {
    /// All namespaces that were written over the API, by name. One that this release does not understand is left out.
    fn metadefs(&self) -> Result<Vec<Namespace>, Failure> {
        let texts = self.metadef_texts()?;
        let read = texts.iter().filter_map(|text| serde_json::from_str(text).ok());
        Ok(read.collect())
    }

    fn put_metadef(&self, space: &Namespace) -> Result<(), Failure> {
        let text = serde_json::to_string(space).map_err(|error| Failure::of(ErrorCode::Internal, &error))?;
        Ok(self.put_metadef_text(&space.namespace, &text)?)
    }
}
