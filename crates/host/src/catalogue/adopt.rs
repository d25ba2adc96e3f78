//! Records for sealed images that have none: those of stores from before there were records, and those that are pulled by
//! reference alone.

use std::collections::HashSet;

use api_types::ImageImport;
use image_catalog::{ImageRecord, ImageState, ImageWish};
use images::Reference;

use super::intake::origin_text;
use crate::registry::{Change, ImageRow, RegistryError};

/// Longest part of a name that is taken from a reference; what makes it unique comes behind.
const STEM_MAX: usize = 40;
/// Digits of a digest that make a name unique.
const DIGITS: usize = 12;

impl Change<'_> {
    /// Makes records for sealed images that have none. What an import under way may have brought is left to it.
    pub(crate) fn adopt_sealed(&self, sealed: &[images::ImageRecord]) -> Result<(), RegistryError> {
        let rows = self.images()?.into_iter();
        let coming = rows.filter(|row| row.state.state == ImageState::Importing);
        let coming: HashSet<String> = coming.filter_map(|row| location(&row)).collect();
        for image in sealed.iter().filter(|image| !coming.contains(bare(&image.reference))) {
            let origin = image.origin.as_ref().map(origin_text);
            self.adopt_image(&image.digest.to_string(), &image.reference, origin)?;
        }
        Ok(())
    }

    /// The record of a sealed image, made where there is none.
    pub(crate) fn adopt_image(
        &self,
        digest: &str,
        reference: &str,
        origin: Option<String>,
    ) -> Result<Option<ImageRow>, RegistryError> {
        let mut known = self.images_of(digest)?.into_iter();
        // Those that go do not keep the bytes.
        if let Some(known) = known.find(|row| row.state.state != ImageState::Deleting) {
            return Ok(Some(known));
        }
        let Some(name) = self.free_image_name(&stem(reference), digest)? else {
            return Ok(None);
        };
        let Some(record) = plain_record(&name, "") else {
            return Ok(None);
        };
        let mut row = ImageRow::sealed(record, digest.to_owned(), self.now());
        row.origin = origin;
        self.insert_image(&row)?;
        Ok(Some(row))
    }

    /// `stem` if no image and no alias is called so, else with the beginning of `digest` behind it.
    pub(crate) fn free_image_name(&self, stem: &str, digest: &str) -> Result<Option<String>, RegistryError> {
        let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
        let digits: String = hex.chars().filter(char::is_ascii_hexdigit).take(DIGITS).collect();
        let random = image_catalog::ImageId::random().to_string();
        let random = random.split('-').next().unwrap_or_default().to_owned();
        let names = [stem.to_owned(), format!("{stem}-{digits}"), format!("{stem}-{random}")];
        for name in names {
            if self.image(&name)?.is_none() && self.alias(&name)?.is_none() && name.parse::<spec::Name>().is_ok() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

/// A location as the store writes it, without the server that it names behind an object of an object store.
fn bare(location: &str) -> &str {
    match location.rsplit_once(" (") {
        Some((object, _)) if location.starts_with("s3://") => object,
        _ => location,
    }
}

/// Where an image is imported from, as the store writes it; see [`bare`].
fn location(row: &ImageRow) -> Option<String> {
    match &row.import.as_ref()?.from {
        ImageImport::Registry { reference, .. } => Some(reference.parse::<Reference>().ok()?.to_string()),
        // What a record keeps is without user, password and query, which may be secrets.
        ImageImport::WebDownload { url, .. } => image_sources::without_secrets(url),
        ImageImport::S3 { url, .. } => Some(bare(url).to_owned()),
        ImageImport::File { path, .. } => Some(path.clone()),
        ImageImport::Upload { .. } => Some("upload".to_owned()),
        // What the store calls a snapshot tells of no record.
        ImageImport::Snapshot { .. } | ImageImport::Copy { .. } => None,
    }
}

/// A record with a name and no more.
pub(crate) fn plain_record(name: &str, description: &str) -> Option<ImageRecord> {
    let wish = ImageWish {
        name: name.to_owned(),
        description: description.to_owned(),
        ..ImageWish::default()
    };
    ImageRecord::check(&wish).ok().map(|checked| checked.record)
}

/// What a name begins with: the last word of the repository, and the tag where it says something.
fn stem(reference: &str) -> String {
    let parsed: Option<Reference> = reference.parse().ok();
    let written = match &parsed {
        Some(parsed) => {
            let last = parsed.repository().rsplit('/').next().unwrap_or_default();
            match parsed.tag().filter(|tag| *tag != "latest") {
                Some(tag) => format!("{last}-{tag}"),
                None => last.to_owned(),
            }
        }
        None => String::new(),
    };
    label(&written)
}

/// Made of what names are made of.
pub(crate) fn label(text: &str) -> String {
    let mut label = String::new();
    for letter in text.to_lowercase().chars() {
        if letter.is_ascii_lowercase() || letter.is_ascii_digit() {
            label.push(letter);
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
        if label.len() >= STEM_MAX {
            break;
        }
    }
    let label = label.trim_end_matches('-');
    if label.is_empty() {
        "image".to_owned()
    } else {
        label.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_under_way_is_known_by_what_the_store_writes() {
        assert_eq!(bare("s3://images/a (1).raw (s3.test)"), "s3://images/a (1).raw");
        assert_eq!(bare("/srv/a (1).raw"), "/srv/a (1).raw");
        let url = "https://me:word@Mirror.test/a.raw?token=1#f";
        assert_eq!(
            image_sources::without_secrets(url).as_deref(),
            Some("https://mirror.test/a.raw")
        );
    }

    #[test]
    fn names_come_from_references() {
        for (reference, name) in [
            ("quay.io/containerdisks/debian:12", "debian-12"),
            ("localhost:5000/x/Web_App:latest", "image"),
            ("localhost:5000/x/web_app:latest", "web-app"),
            ("q.io/demo/x:1.2.3", "x-1-2-3"),
            ("", "image"),
        ] {
            assert_eq!(stem(reference), name, "{reference}");
        }
        let long = label(&"ab.".repeat(40));
        assert!(long.len() <= STEM_MAX && long.parse::<spec::Name>().is_ok(), "{long}");
    }
}
