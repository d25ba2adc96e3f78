//! What is wrong with an image record, all of it at once, each with a code that programs may rely on.

use std::fmt;

use serde::Serialize;

/// Kind of a [`Fault`]. The texts of [`FaultCode::as_str`] are part of the API and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultCode {
    /// No DNS label, or no name at all.
    NameInvalid,
    /// Control characters, or not what the field is made of.
    TextInvalid,
    /// Longer than the field may be.
    TextTooLong,
    /// A number outside of what the field takes.
    NumberOutOfRange,
    /// No disk format that is known.
    DiskFormatUnknown,
    /// No container format that is known.
    ContainerFormatUnknown,
    /// Disk and container format exclude each other.
    FormatsConflict,
    /// No architecture that is known.
    ArchitectureUnknown,
    /// None of private, shared, community, public.
    VisibilityUnknown,
    /// A tag that is empty, too long or not printable.
    TagInvalid,
    /// More tags than an image may have.
    TooManyTags,
    /// A key that no property can have.
    PropertyKeyInvalid,
    /// A key that only the service itself writes.
    PropertyReserved,
    /// A value that this key does not take.
    PropertyValueInvalid,
    /// A value longer than any property may have.
    PropertyTooLong,
    /// More properties than an image may have.
    TooManyProperties,
    /// All keys and values together are larger than they may be.
    PropertiesTooLarge,
    /// Values that are fine alone and not together.
    PropertiesConflict,
}

impl FaultCode {
    /// Every code, in the order of the table in the crate's documentation.
    pub const ALL: [Self; 18] = [
        Self::NameInvalid,
        Self::TextInvalid,
        Self::TextTooLong,
        Self::NumberOutOfRange,
        Self::DiskFormatUnknown,
        Self::ContainerFormatUnknown,
        Self::FormatsConflict,
        Self::ArchitectureUnknown,
        Self::VisibilityUnknown,
        Self::TagInvalid,
        Self::TooManyTags,
        Self::PropertyKeyInvalid,
        Self::PropertyReserved,
        Self::PropertyValueInvalid,
        Self::PropertyTooLong,
        Self::TooManyProperties,
        Self::PropertiesTooLarge,
        Self::PropertiesConflict,
    ];

    /// The stable text, as `name_invalid`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NameInvalid => "name_invalid",
            Self::TextInvalid => "text_invalid",
            Self::TextTooLong => "text_too_long",
            Self::NumberOutOfRange => "number_out_of_range",
            Self::DiskFormatUnknown => "disk_format_unknown",
            Self::ContainerFormatUnknown => "container_format_unknown",
            Self::FormatsConflict => "formats_conflict",
            Self::ArchitectureUnknown => "architecture_unknown",
            Self::VisibilityUnknown => "visibility_unknown",
            Self::TagInvalid => "tag_invalid",
            Self::TooManyTags => "too_many_tags",
            Self::PropertyKeyInvalid => "property_key_invalid",
            Self::PropertyReserved => "property_reserved",
            Self::PropertyValueInvalid => "property_value_invalid",
            Self::PropertyTooLong => "property_too_long",
            Self::TooManyProperties => "too_many_properties",
            Self::PropertiesTooLarge => "properties_too_large",
            Self::PropertiesConflict => "properties_conflict",
        }
    }
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One field that can not be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What kind of problem it is.
    pub code: FaultCode,
    /// Path of the field as it is written, such as `properties.hw_disk_bus`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Every fault found; never empty when returned as an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `field` is wrong.
    pub fn add(&mut self, code: FaultCode, field: impl Into<String>, message: impl fmt::Display) {
        self.0.push(Fault {
            code,
            field: field.into(),
            message: message.to_string(),
        });
    }

    /// `value` when nothing was noted; every fault otherwise.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// What was found, in the order of the fields.
    pub fn list(&self) -> &[Fault] {
        &self.0
    }

    /// Code of the first fault; a record with several is told by the whole [`list`](Self::list).
    pub fn code(&self) -> &'static str {
        self.0.first().map_or("image_invalid", |fault| fault.code.as_str())
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", fault.field, fault.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Something that was accepted and that its author should know all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What kind of remark it is: `property_unknown` or `value_unlisted`.
    pub code: &'static str,
    /// Path of the field as it is written.
    pub field: String,
    /// What it means.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_are_what_is_serialised() {
        let mut seen = std::collections::HashSet::new();
        for code in FaultCode::ALL {
            assert!(seen.insert(code.as_str()), "{code} twice");
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
