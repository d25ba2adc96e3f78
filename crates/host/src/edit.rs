//! Changing what a machine is made of, by a JSON merge patch (RFC 7396).

use std::sync::Arc;

use api_types::{ErrorCode, Vm};
use serde_json::Value;
use spec::{Problems, VmPlan, VmSpec};

use crate::failure::Failure;
use crate::host::Host;
use crate::machine::{self, Edit};
use crate::volume::check_disks;

/// What every refused change is told first; the fields follow.
const REFUSED: &str = "the machine can not be changed like this";

impl Host {
    /// Changes the specification of a machine that has no process. The next start goes by it; its name, its image and the size of
    /// its root disk stay.
    pub async fn edit_vm(&self, name_or_id: &str, revision: Option<u64>, patch: Value) -> Result<Vm, Failure> {
        let (id, machine) = self.machine(name_or_id).await?;
        let context = Arc::clone(&self.0.context);
        let spec = patched(&self.vm(name_or_id).await?.spec, &patch)?;
        let plan = planned(&spec, &context.limits)?;
        let probing = Arc::clone(&context);
        tokio::task::spawn_blocking(move || machine::probe(&probing, &plan))
            .await
            .map_err(|_| Failure::new(ErrorCode::Internal, "the work was lost"))?
            .map_err(|problems| Failure::refused(REFUSED, &problems))?;
        let edit: Edit = Box::new(move |change, vm| {
            let spec = patched(&vm.spec, &patch)?;
            planned(&spec, &context.limits)?;
            check_disks(change, &spec, Some(vm.id))?;
            Ok(spec)
        });
        machine.edit(revision, edit).await?;
        self.vm(&id.to_string()).await
    }
}

fn planned(spec: &VmSpec, limits: &spec::HostLimits) -> Result<VmPlan, Failure> {
    VmPlan::new(spec, limits).map_err(|problems| Failure::refused(REFUSED, &problems))
}

fn patched(spec: &VmSpec, patch: &Value) -> Result<VmSpec, Failure> {
    let not_understood = |error: serde_json::Error| {
        let text = format!("what comes of the patch is not understood: {error}");
        Failure::new(ErrorCode::InvalidRequest, text)
    };
    if !patch.is_object() {
        let text = "a patch is a JSON object with the fields that change";
        return Err(Failure::new(ErrorCode::InvalidRequest, text));
    }
    let mut value = serde_json::to_value(spec).map_err(not_understood)?;
    merge(&mut value, patch);
    let new: VmSpec = serde_json::from_value(value).map_err(not_understood)?;
    let mut problems = Problems::new();
    for (field, same) in [
        ("name", new.name == spec.name),
        ("image", new.image == spec.image),
        ("disk_size", new.disk_size == spec.disk_size),
    ] {
        if !same {
            problems.add(field, "can not be changed; make another machine");
        }
    }
    problems
        .into_result(new)
        .map_err(|problems| Failure::refused(REFUSED, &problems))
}

/// RFC 7396 §2: objects are merged, `null` removes, everything else replaces.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_examples_of_the_standard_hold() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = target;
            merge(&mut merged, &patch);
            assert_eq!(merged, result);
        }
    }

    #[test]
    fn what_makes_a_machine_itself_stays() {
        let spec: VmSpec = serde_json::from_value(json!({"name": "web", "image": "x", "cpus": 1})).unwrap();
        assert_eq!(
            patched(&spec, &json!({"cpus": 4, "boot": {"cmdline": "quiet"}}))
                .unwrap()
                .cpus,
            4
        );
        let refused = patched(&spec, &json!({"name": "db", "image": null})).unwrap_err();
        let fields: Vec<_> = refused.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["name", "image"]);
        for wrong in [json!([]), json!({"cpu": 1}), json!({"cpus": "many"})] {
            assert_eq!(
                patched(&spec, &wrong).unwrap_err().code,
                ErrorCode::InvalidRequest,
                "{wrong}"
            );
        }
    }
}
