//! The rule of each field of a record, by itself.

use std::collections::BTreeSet;

use spec::Name;

use crate::architecture::Architecture;
use crate::fault::{FaultCode, Faults};
use crate::format::{ContainerFormat, DiskFormat, Visibility};
use crate::wish::{ImageWish, MINIMUM_MAX, TAG_MAX, TAGS_MAX, TEXT_MAX};

pub(crate) fn check_name(text: &str, faults: &mut Faults) -> Option<Name> {
    text.parse()
        .map_err(|error| faults.add(FaultCode::NameInvalid, "name", error))
        .ok()
}

pub(crate) fn check_text(field: &str, text: &str, faults: &mut Faults) {
    if text.len() > TEXT_MAX {
        let message = format!("{} bytes; take at most {TEXT_MAX}", text.len());
        faults.add(FaultCode::TextTooLong, field, message);
    }
    if text.chars().any(char::is_control) {
        faults.add(FaultCode::TextInvalid, field, "control characters are not taken");
    }
}

/// `text` as one of several words; a fault that lists them otherwise.
fn check_word<T>(
    (field, code): (&str, FaultCode),
    text: Option<&String>,
    of: fn(&str) -> Option<T>,
    texts: &[&str],
    faults: &mut Faults,
) -> Option<T> {
    let text = text?;
    let value = of(text);
    if value.is_none() {
        let start: String = text.chars().take(40).collect();
        faults.add(code, field, format!("{start:?}; take one of {}", texts.join(", ")));
    }
    value
}

pub(crate) fn check_disk_format(wish: &ImageWish, faults: &mut Faults) -> Option<DiskFormat> {
    let field = ("disk_format", FaultCode::DiskFormatUnknown);
    check_word(
        field,
        wish.disk_format.as_ref(),
        DiskFormat::of,
        DiskFormat::TEXTS,
        faults,
    )
}

pub(crate) fn check_container_format(wish: &ImageWish, faults: &mut Faults) -> Option<ContainerFormat> {
    let field = ("container_format", FaultCode::ContainerFormatUnknown);
    let text = wish.container_format.as_ref();
    check_word(field, text, ContainerFormat::of, ContainerFormat::TEXTS, faults)
}

/// An Amazon format is both or neither, and the same in both.
pub(crate) fn check_amazon(disk: Option<DiskFormat>, container: Option<ContainerFormat>, faults: &mut Faults) {
    let (Some(disk), Some(container)) = (disk, container) else {
        return;
    };
    if (disk.is_amazon() || container.is_amazon()) && disk.as_str() != container.as_str() {
        let message = format!("{container} around {disk}; aki, ari and ami go with themselves only");
        faults.add(FaultCode::FormatsConflict, "container_format", message);
    }
}

pub(crate) fn check_architecture(wish: &ImageWish, faults: &mut Faults) -> Option<Architecture> {
    let property = wish.properties.get("architecture");
    let Some(text) = wish.architecture.as_ref() else {
        // A wrong one is told where properties are checked.
        return property.and_then(|text| Architecture::of(text));
    };
    let value = Architecture::of(text);
    if value.is_none() {
        let start: String = text.chars().take(40).collect();
        let message = match Architecture::meant_by(text) {
            Some(meant) => format!("{start:?}; write {meant}"),
            None => format!("{start:?}; take one of {}", Architecture::TEXTS.join(", ")),
        };
        faults.add(FaultCode::ArchitectureUnknown, "architecture", message);
    } else if property.is_some_and(|property| property != text) {
        let message = format!("differs from the field architecture, {text}; leave one of them out");
        faults.add(FaultCode::PropertiesConflict, "properties.architecture", message);
    }
    value
}

pub(crate) fn check_minimum(field: &str, value: u64, faults: &mut Faults) -> u32 {
    match u32::try_from(value) {
        Ok(value) if value <= MINIMUM_MAX => value,
        _ => {
            let message = format!("{value}; take 0 for no minimum, up to {MINIMUM_MAX}");
            faults.add(FaultCode::NumberOutOfRange, field, message);
            0
        }
    }
}

pub(crate) fn check_visibility(wish: &ImageWish, faults: &mut Faults) -> Visibility {
    let field = ("visibility", FaultCode::VisibilityUnknown);
    let text = wish.visibility.as_ref();
    check_word(field, text, Visibility::of, Visibility::TEXTS, faults).unwrap_or(Visibility::Shared)
}

pub(crate) fn check_tags(tags: &BTreeSet<String>, faults: &mut Faults) {
    if tags.len() > TAGS_MAX {
        let message = format!("{} of them; an image has at most {TAGS_MAX}", tags.len());
        faults.add(FaultCode::TooManyTags, "tags", message);
    }
    for (index, tag) in tags.iter().enumerate() {
        if tag.is_empty() || tag.len() > TAG_MAX || tag.chars().any(char::is_control) {
            let message = format!("take 1 to {TAG_MAX} bytes without control characters");
            faults.add(FaultCode::TagInvalid, format!("tags[{index}]"), message);
        }
    }
}
