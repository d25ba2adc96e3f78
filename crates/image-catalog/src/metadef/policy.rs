//! Who may read and who may change the catalogue.

use serde::{Deserialize, Serialize};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An administrator of the host.
    Admin,
    /// Anybody else who may use the API.
    User,
}

/// The two policies that the reference documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Everybody reads, administrators write.
    #[default]
    LockDown,
    /// Everybody reads and writes. Whoever switches it on should look through the names that exist first.
    Open,
}

macro_rules! operations {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $writes:literal;)+) => {
        /// The 26 things that can be done with the catalogue, by the names the image service gives them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum MetadefOperation {
            $($(#[$doc])* $variant,)+
        }

        impl MetadefOperation {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name in a policy, as `add_metadef_tag`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Whether it changes anything.
            pub const fn writes(self) -> bool {
                match self { $(Self::$variant => $writes),+ }
            }
        }
    };
}

operations! {
    /// Show a namespace.
    GetNamespace = "get_metadef_namespace", false;
    /// List namespaces.
    GetNamespaces = "get_metadef_namespaces", false;
    /// Change a namespace.
    ModifyNamespace = "modify_metadef_namespace", true;
    /// Make a namespace.
    AddNamespace = "add_metadef_namespace", true;
    /// Remove a namespace.
    DeleteNamespace = "delete_metadef_namespace", true;
    /// Show an object.
    GetObject = "get_metadef_object", false;
    /// List objects.
    GetObjects = "get_metadef_objects", false;
    /// Change an object.
    ModifyObject = "modify_metadef_object", true;
    /// Make an object.
    AddObject = "add_metadef_object", true;
    /// Remove an object.
    DeleteObject = "delete_metadef_object", true;
    /// List kinds of resource.
    ListResourceTypes = "list_metadef_resource_types", false;
    /// Show what a namespace applies to.
    GetResourceType = "get_metadef_resource_type", false;
    /// Let a namespace apply to a kind of resource.
    AddAssociation = "add_metadef_resource_type_association", true;
    /// Undo that.
    RemoveAssociation = "remove_metadef_resource_type_association", true;
    /// Show a property.
    GetProperty = "get_metadef_property", false;
    /// List properties.
    GetProperties = "get_metadef_properties", false;
    /// Change a property.
    ModifyProperty = "modify_metadef_property", true;
    /// Make a property.
    AddProperty = "add_metadef_property", true;
    /// Remove a property.
    RemoveProperty = "remove_metadef_property", true;
    /// Show a tag.
    GetTag = "get_metadef_tag", false;
    /// List tags.
    GetTags = "get_metadef_tags", false;
    /// Change a tag.
    ModifyTag = "modify_metadef_tag", true;
    /// Make a tag.
    AddTag = "add_metadef_tag", true;
    /// Make several tags.
    AddTags = "add_metadef_tags", true;
    /// Remove a tag.
    DeleteTag = "delete_metadef_tag", true;
    /// Remove all tags of a namespace.
    DeleteTags = "delete_metadef_tags", true;
}

impl Policy {
    /// Whether `role` may do `operation`.
    pub const fn allows(self, role: Role, operation: MetadefOperation) -> bool {
        !operation.writes() || matches!(role, Role::Admin) || matches!(self, Self::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_read_and_write_only_when_open_s17_21() {
        let may = |policy: Policy, role| {
            let all = MetadefOperation::ALL.iter();
            all.filter(|operation| policy.allows(role, **operation)).count()
        };
        assert_eq!(MetadefOperation::ALL.len(), 26);
        assert_eq!(may(Policy::LockDown, Role::User), 10);
        assert_eq!(may(Policy::LockDown, Role::Admin), 26);
        assert_eq!(may(Policy::Open, Role::User), 26);
        assert_eq!(Policy::default(), Policy::LockDown);
    }

    #[test]
    fn what_writes_is_told_by_its_name() {
        for operation in MetadefOperation::ALL {
            let reads = operation.as_str().starts_with("get_") || operation.as_str().starts_with("list_");
            assert_eq!(operation.writes(), !reads, "{}", operation.as_str());
        }
    }
}
