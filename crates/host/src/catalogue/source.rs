//! From what a request says of an import to what the image store is asked for.

use api_types::{ErrorCode, ImageImport, ImageSums, ImportOptions};
use image_catalog::ImageRecord;
use image_sources::{FileRoots, FileSource, S3Source, Source, SourceError, WebSource};
use image_trust::x509::ImageSignature;
use images::{ImportSource, Reference, RequestedProof, StoreName, SumsRequest};

use crate::context::Context;
use crate::failure::Failure;
use crate::image_config::ImportMethod;

/// What every import that can not be begun is told first; the fields follow.
const REFUSED: &str = "the import can not be begun";
/// Digests that one request may pin: every method there is, of the data as it is sent and as it is unpacked.
const DIGESTS_MAX: usize = 8;

/// Methods of import that can be used here.
pub(crate) fn methods(context: &Context) -> Vec<ImportMethod> {
    let config = &context.config.images;
    let can = |method: &ImportMethod| match method {
        ImportMethod::S3 => !config.s3.is_empty(),
        ImportMethod::Copy => !config.stores.is_empty(),
        _ => true,
    };
    config.methods.iter().copied().filter(can).collect()
}

/// Whether an import can be begun: its method is enabled, and what it names can be read and may be asked.
pub(crate) fn check(context: &Context, from: &ImageImport) -> Result<(), Failure> {
    let enabled = methods(context);
    if !enabled.iter().any(|method| method.name() == from.method()) {
        let names: Vec<_> = enabled.iter().map(|method| method.name()).collect();
        let text = format!(
            "{} is not enabled here; take one of: {}",
            from.method(),
            names.join(", ")
        );
        return Err(Failure::refused_field(REFUSED, "method", text));
    }
    source(context, from)?;
    proof(context, from, None)?;
    stores(context, from).map(drop)
}

/// Where the data is. Nothing for what a client sends, and for a copy.
pub(crate) fn source(context: &Context, from: &ImageImport) -> Result<Option<ImportSource>, Failure> {
    let field = |name: &str, text: String| Failure::refused_field(REFUSED, name, text);
    Ok(Some(match from {
        ImageImport::Registry { reference, .. } => {
            let parsed = reference.parse::<Reference>();
            let reference = parsed.map_err(|error| field("reference", error.to_string()))?;
            ImportSource::Registry { reference }
        }
        ImageImport::WebDownload { url, .. } => ImportSource::Web(web(context, "url", url)?),
        ImageImport::S3 {
            url, server, version, ..
        } => {
            let servers = &context.config.images.s3;
            let found = match server {
                Some(name) => servers.iter().find(|server| server.name == *name),
                None => servers.first(),
            };
            let server = found.ok_or_else(|| {
                let names: Vec<_> = servers.iter().map(|server| server.name.as_str()).collect();
                field("server", format!("none is called so; there are: {}", names.join(", ")))
            })?;
            let agent = context.agents.s3.as_ref().map_err(|error| no_http(error))?;
            let source = S3Source::new(agent, &server.server, url, version.clone());
            ImportSource::S3(source.map_err(|error| field("url", error.to_string()))?)
        }
        ImageImport::File { path, .. } => {
            let roots = FileRoots::new(context.config.images.file_roots.clone());
            let roots = roots.map_err(|error| Failure::of(ErrorCode::Internal, &error))?;
            ImportSource::File(FileSource::new(&roots, path.into()))
        }
        ImageImport::Upload { .. } | ImageImport::Snapshot { .. } | ImageImport::Copy { .. } => return Ok(None),
    }))
}

fn web(context: &Context, field: &str, url: &str) -> Result<WebSource, Failure> {
    let agent = context.agents.web.as_ref().map_err(|error| no_http(error))?;
    WebSource::new(agent, url, None).map_err(|error| {
        let text = match &error {
            SourceError::Refused { refusal, .. } => format!("{error}: {refusal} ({})", error.code()),
            _ => error.to_string(),
        };
        Failure::refused_field(REFUSED, field, text)
    })
}

fn no_http(error: &str) -> Failure {
    Failure::new(ErrorCode::HostLacks, error)
}

/// What is to be proved of the data. `record` may have a signature among its properties.
pub(crate) fn proof(
    context: &Context,
    from: &ImageImport,
    record: Option<&ImageRecord>,
) -> Result<RequestedProof, Failure> {
    let nothing = ImportOptions::default();
    let options = from.options().unwrap_or(&nothing);
    if options.digests.len() > DIGESTS_MAX {
        let text = format!("more than {DIGESTS_MAX} digests");
        return Err(Failure::refused_field(REFUSED, "options.digests", text));
    }
    let mut pinned = Vec::new();
    for digest in &options.digests {
        let parsed = digest.parse();
        pinned.push(parsed.map_err(|error: image_trust::BadPinned| {
            Failure::refused_field(REFUSED, "options.digests", error.to_string())
        })?);
    }
    let sums = options.sums.as_ref().map(|sums| sums_request(context, from, sums));
    let signature = |key: &str| record.and_then(|record| record.properties().get(key));
    let x509 = ImageSignature::from_properties(signature);
    Ok(RequestedProof {
        pinned,
        sums: sums.transpose()?,
        x509: x509.map_err(|error| Failure::refused_field(REFUSED, "properties", error.to_string()))?,
    })
}

fn sums_request(context: &Context, from: &ImageImport, sums: &ImageSums) -> Result<SumsRequest, Failure> {
    let signature = sums.signature_url.as_ref();
    let signature = signature.map(|url| web(context, "options.sums.signature_url", url));
    let of_source = match from {
        ImageImport::WebDownload { url, .. } | ImageImport::S3 { url, .. } => image_trust::name_of_url(url).ok(),
        ImageImport::File { path, .. } => path.rsplit('/').next().map(str::to_owned),
        _ => None,
    };
    let name = sums.name.clone().or(of_source).ok_or_else(|| {
        let text = "the data's address does not tell under which name it is listed; write it";
        Failure::refused_field(REFUSED, "options.sums.name", text)
    })?;
    Ok(SumsRequest {
        file: Source::Web(web(context, "options.sums.url", &sums.url)?),
        signature: signature.transpose()?.map(Source::Web),
        name,
    })
}

/// The stores that are named.
pub(crate) fn stores(context: &Context, from: &ImageImport) -> Result<Vec<StoreName>, Failure> {
    let (field, names) = match (from, from.options()) {
        (ImageImport::Copy { stores, .. }, _) => ("stores", stores.as_slice()),
        (_, Some(options)) if options.all_stores => {
            if !options.stores.is_empty() {
                let text = "name stores, or take all of them";
                return Err(Failure::refused_field(REFUSED, "options.stores", text));
            }
            // The default one first: machines are made from it.
            let mut all: Vec<_> = context.stores.all().map(|store| store.name().clone()).collect();
            all.sort_by_key(|name| name != context.store.name());
            return Ok(all);
        }
        (_, Some(options)) => ("options.stores", options.stores.as_slice()),
        (_, None) => return Ok(Vec::new()),
    };
    let find = |text: &String| {
        let name: Option<StoreName> = text.parse().ok();
        name.filter(|name| context.stores.get(name).is_some()).ok_or_else(|| {
            let names: Vec<_> = context.stores.all().map(|store| store.name().to_string()).collect();
            let text = format!("{text:?} is no store that can be used; there are: {}", names.join(", "));
            Failure::refused_field(REFUSED, field, text)
        })
    };
    names.iter().map(find).collect()
}
