//! The arguments of `karat metadef …`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum MetadefCommand {
    /// List namespaces of definitions.
    Ls {
        /// Those that apply to `image`, `volume` or `vm`.
        #[arg(long = "for", value_name = "KIND")]
        kind: Option<String>,
    },
    /// Show a namespace: its properties, and the values that each takes.
    Show {
        /// Name.
        namespace: String,
    },
}
