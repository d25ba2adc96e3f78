//! Results on stdout: columns for people, JSON or YAML for programs.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Context;
use serde::Serialize;

use crate::args::Format;

/// Blanks between columns.
const GAP: usize = 3;

/// Writes `value` in the asked format; `table` makes what people see.
pub(crate) fn write<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    let text = match format {
        Format::Table => table(value),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => serde_saphyr::to_string(value).context("the result can not be written as YAML")?,
    };
    line(&text)
}

/// Writes text as it is. A reader that went away (`karat ls | head -1`) is no error.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    match std::io::stdout()
        .write_all(text.as_bytes())
        .and_then(|()| std::io::stdout().flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("stdout can not be written"),
    }
}

/// A word of the API, as it is written there.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// Tells a person what happened, on stderr.
pub(crate) fn say(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(crate) fn columns<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&header.map(str::to_owned)).chain(rows) {
        let mut written = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a String does not fail.
            _ = write!(written, "{cell:<pad$}", pad = width + GAP);
        }
        text.push_str(written.trim_end());
        text.push('\n');
    }
    text
}

/// `name: value` lines, with the values under each other.
pub(crate) fn fields(list: &[(&str, String)]) -> String {
    let width = list.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in list.iter().filter(|(_, value)| !value.is_empty()) {
        _ = writeln!(text, "{:<pad$}{value}", format!("{name}:"), pad = width + GAP);
    }
    text
}

/// Bytes for people, in binary units with one decimal.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        let whole = bytes >> shift;
        if whole > 0 {
            let tenth = ((bytes - (whole << shift)) * 10) >> shift;
            return format!("{whole}.{tenth} {unit}");
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_do_not_trail() {
        let rows = [["web-1".to_owned(), "x".to_owned()], ["a".to_owned(), String::new()]];
        assert_eq!(columns(["NAME", "PHASE"], &rows), "NAME    PHASE\nweb-1   x\na\n");
    }

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn empty_fields_are_left_out() {
        assert_eq!(fields(&[("a", "1".to_owned()), ("long", String::new())]), "a:     1\n");
    }
}
