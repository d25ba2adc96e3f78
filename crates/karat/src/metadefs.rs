//! `karat metadef …`.

use api_types::{Metadef, MetadefProperty};
use client::Client;

use crate::args::Format;
use crate::metadef_args::MetadefCommand;
use crate::output::{columns, fields, say, write};

/// Carries a command out.
pub(crate) async fn run(client: &Client, command: MetadefCommand, format: Format) -> anyhow::Result<()> {
    match command {
        MetadefCommand::Ls { kind } => {
            let list = client.metadefs(kind.as_deref()).await?;
            for problem in &list.problems {
                say(&format!("wrong: {problem}"));
            }
            write(format, &list.items, |items| {
                let row = |space: &Metadef| {
                    let of_objects: usize = space.objects.iter().map(|object| object.properties.len()).sum();
                    [
                        space.namespace.clone(),
                        kinds(space),
                        (space.properties.len() + of_objects).to_string(),
                        space.display_name.clone(),
                    ]
                };
                let rows: Vec<_> = items.iter().map(row).collect();
                columns(["NAMESPACE", "FOR", "PROPERTIES", "ABOUT"], &rows)
            })
        }
        MetadefCommand::Show { namespace } => write(format, &client.metadef(&namespace).await?, describe),
    }
}

fn kinds(space: &Metadef) -> String {
    let kinds: Vec<_> = space.resource_types.iter().map(|one| one.name.as_str()).collect();
    kinds.join(", ")
}

fn describe(space: &Metadef) -> String {
    let tags: Vec<_> = space.tags.iter().map(|tag| tag.name.as_str()).collect();
    let mut text = fields(&[
        ("namespace", space.namespace.clone()),
        ("about", space.display_name.clone()),
        ("description", space.description.clone()),
        ("for", kinds(space)),
        (
            "protected",
            if space.protected {
                "yes".to_owned()
            } else {
                String::new()
            },
        ),
        ("tags", tags.join(", ")),
    ]);
    let of_objects = space.objects.iter().flat_map(|object| &object.properties);
    let rows: Vec<_> = space.properties.iter().chain(of_objects).map(row).collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&columns(["PROPERTY", "TYPE", "VALUES", "DEFAULT", "MEANING"], &rows));
    }
    text
}

fn row(property: &MetadefProperty) -> [String; 5] {
    let range = match (property.minimum, property.maximum) {
        (None, None) => String::new(),
        (min, max) => {
            let bound = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
            format!("{}..{}", bound(min), bound(max))
        }
    };
    let values = if property.values.is_empty() {
        range
    } else {
        property.values.join(" ")
    };
    [
        property.name.clone(),
        property.kind.clone(),
        values,
        property.default.clone().unwrap_or_default(),
        property.title.clone(),
    ]
}
