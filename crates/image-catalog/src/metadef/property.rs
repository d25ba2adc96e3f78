//! One property of the catalogue, and values held against it.

use serde::{Deserialize, Serialize};

use super::{METADEF_TEXT_MAX, check_name};
use crate::fault::{FaultCode, Faults};
use crate::property::VALUE_MAX;

/// Most values in an enumeration.
const VALUES_MAX: usize = 128;

/// What kind of value a property has. Values of image properties are text; a number or a truth is text that reads as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetadefType {
    /// Any text, or one of `enum`.
    String,
    /// A whole number.
    Integer,
    /// A decimal number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// Several texts with commas between them, each one of `enum` where there is one.
    Array,
}

/// A property of the catalogue. Unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadefProperty {
    /// Its name, without the prefix of an association.
    pub name: String,
    /// What people read.
    #[serde(default)]
    pub title: String,
    /// What it means.
    #[serde(default)]
    pub description: String,
    /// Kind of value.
    #[serde(rename = "type")]
    pub kind: MetadefType,
    /// The values it takes; empty for any.
    #[serde(rename = "enum", default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// What holds where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Smallest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<i64>,
    /// Largest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<i64>,
    /// Shortest text, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_length: Option<usize>,
    /// Longest text, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
}

impl MetadefProperty {
    /// Notes what is wrong with a definition that was written as `field`.
    pub(super) fn check(&self, field: &str, faults: &mut Faults) {
        check_name(&format!("{field}.name"), &self.name, faults);
        check_text(&format!("{field}.title"), &self.title, faults);
        check_text(&format!("{field}.description"), &self.description, faults);
        let numeric = matches!(self.kind, MetadefType::Integer | MetadefType::Number);
        if (self.minimum.is_some() || self.maximum.is_some()) && !numeric {
            let message = "only an integer or a number has a minimum and a maximum";
            faults.add(FaultCode::PropertiesConflict, format!("{field}.minimum"), message);
        }
        if (self.min_length.is_some() || self.max_length.is_some()) && self.kind != MetadefType::String {
            let message = "only a string has a length";
            faults.add(FaultCode::PropertiesConflict, format!("{field}.max_length"), message);
        }
        if !self.values.is_empty() && !matches!(self.kind, MetadefType::String | MetadefType::Array) {
            let message = "only a string or an array has an enum";
            faults.add(FaultCode::PropertiesConflict, format!("{field}.enum"), message);
        }
        if self.values.len() > VALUES_MAX {
            let message = format!("{} values; take at most {VALUES_MAX}", self.values.len());
            faults.add(FaultCode::NumberOutOfRange, format!("{field}.enum"), message);
        }
        if matches!((self.minimum, self.maximum), (Some(min), Some(max)) if min > max)
            || matches!((self.min_length, self.max_length), (Some(min), Some(max)) if min > max)
        {
            let message = "the least is more than the most";
            faults.add(FaultCode::NumberOutOfRange, field.to_owned(), message);
        }
        if let Some(Err(message)) = self.default.as_ref().map(|value| self.value(value)) {
            faults.add(FaultCode::PropertyValueInvalid, format!("{field}.default"), message);
        }
    }

    /// Whether the property takes `text`; else what it takes.
    pub fn value(&self, text: &str) -> Result<(), String> {
        if text.len() > VALUE_MAX {
            return Err(format!("{} bytes; a value has at most {VALUE_MAX}", text.len()));
        }
        match self.kind {
            MetadefType::String => self.string(text),
            MetadefType::Integer => {
                let number = text.parse::<i64>().map_err(|_| "take a whole number".to_owned())?;
                let fits = self.minimum.is_none_or(|min| number >= min) && self.maximum.is_none_or(|max| number <= max);
                if fits { Ok(()) } else { Err(self.range()) }
            }
            MetadefType::Number => self.decimal(text),
            MetadefType::Boolean if matches!(text, "true" | "false") => Ok(()),
            MetadefType::Boolean => Err("take true or false".to_owned()),
            MetadefType::Array => text.split(',').try_for_each(|item| self.string(item)),
        }
    }

    fn string(&self, text: &str) -> Result<(), String> {
        if !self.values.is_empty() && !self.values.iter().any(|value| value == text) {
            return Err(format!("take one of {}", self.values.join(", ")));
        }
        if self.min_length.is_some_and(|min| text.len() < min) || self.max_length.is_some_and(|max| text.len() > max) {
            let (min, max) = (self.min_length.unwrap_or(0), self.max_length.unwrap_or(VALUE_MAX));
            return Err(format!("{} bytes; take {min} to {max}", text.len()));
        }
        Ok(())
    }

    /// Bounds are whole numbers, so that a comparison after rounding towards the bound is exact enough to be one.
    fn decimal(&self, text: &str) -> Result<(), String> {
        let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-'));
        let number = text.parse::<f64>().ok().filter(|n| plain && n.is_finite());
        let number = number.ok_or_else(|| "take a decimal number".to_owned())?;
        let bound = |value: i64| value.to_string().parse::<f64>().unwrap_or(0.0);
        let fits =
            self.minimum.is_none_or(|min| number >= bound(min)) && self.maximum.is_none_or(|max| number <= bound(max));
        if fits { Ok(()) } else { Err(self.range()) }
    }

    fn range(&self) -> String {
        match (self.minimum, self.maximum) {
            (Some(min), Some(max)) => format!("take {min} to {max}"),
            (Some(min), None) => format!("take {min} or more"),
            (None, Some(max)) => format!("take {max} or less"),
            (None, None) => "take a number".to_owned(),
        }
    }
}

/// Notes a text that is too long or holds control characters other than line breaks.
pub(super) fn check_text(field: &str, text: &str, faults: &mut Faults) {
    if text.len() > METADEF_TEXT_MAX {
        let message = format!("{} bytes; take at most {METADEF_TEXT_MAX}", text.len());
        faults.add(FaultCode::TextTooLong, field, message);
    }
    if text.chars().any(|c| c.is_control() && c != '\n') {
        faults.add(FaultCode::TextInvalid, field, "control characters are not taken");
    }
}
