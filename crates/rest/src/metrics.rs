//! `/metrics`: figures in the text format of Prometheus (exposition format 0.0.4).

use api_types::ProblemBody;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use host::{DiskReport, Metrics};
use serde::Serialize;

use crate::move_metrics;
use crate::page::Page;
use crate::problem::Problem;
use crate::shared::Shared;
use crate::store_metrics;

/// Figures of the host for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "host", operation_id = "metrics",
    responses((status = 200, body = String, content_type = "text/plain"), (status = 500, body = ProblemBody)))]
pub(crate) async fn show(State(shared): State<Shared>) -> Result<impl IntoResponse, Problem> {
    let metrics = shared.host.metrics().await?;
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], write(&metrics)))
}

fn write(metrics: &Metrics) -> String {
    let mut page = Page::default();
    page.family(
        "build_info",
        "gauge",
        "Always 1; the label has the version of the daemon.",
    );
    page.sample("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.family("vms", "gauge", "Machines in each phase.");
    for (phase, count) in &metrics.vms {
        page.sample("vms", &[("phase", &word(phase))], count);
    }
    page.family("volumes", "gauge", "Volumes in each state.");
    for (state, count) in &metrics.volume_states {
        page.sample("volumes", &[("state", &word(state))], count);
    }
    page.family("volume_size_bytes", "gauge", "Size the guest sees of each volume.");
    for volume in &metrics.volumes {
        let size = volume.size_bytes.unwrap_or(0);
        page.sample("volume_size_bytes", &[("volume", &volume.name)], size);
    }
    page.family("volume_usage_bytes", "gauge", "Space each volume takes on the host.");
    for volume in &metrics.volumes {
        page.sample("volume_usage_bytes", &[("volume", &volume.name)], volume.usage_bytes);
    }
    write_disks(&mut page, &metrics.disks);
    page.gauge("images", "Golden images in the store.", metrics.images);
    page.gauge(
        "images_usage_bytes",
        "Space of all golden images.",
        metrics.images_bytes,
    );
    write_images(&mut page, metrics);
    page.family(
        "operations",
        "gauge",
        "Operations that are remembered, by kind and phase.",
    );
    for (kind, phase, count) in &metrics.operations {
        page.sample("operations", &[("kind", &word(kind)), ("phase", &word(phase))], count);
    }
    page.family("events_total", "counter", "Events since the registry was made.");
    page.sample("events_total", &[], metrics.newest_event);
    page.gauge(
        "state_free_bytes",
        "Space left on the file system of the state directory.",
        metrics.free_bytes,
    );
    move_metrics::write(&mut page, &metrics.moves);
    page.text()
}

/// Imports, boot sources and the store; what the shipped alerting rules read.
fn write_images(page: &mut Page, metrics: &Metrics) {
    let name = "image_import_restarts_total";
    page.family(name, "counter", "How often the import into an image was begun again.");
    for (image, restarts) in &metrics.import_restarts {
        page.sample(name, &[("image", image)], restarts);
    }
    let ready = metrics
        .stores
        .iter()
        .any(|store| store.is_default && store.is_available);
    page.gauge(
        "image_service_ready",
        "1 while images can be imported and used.",
        u8::from(ready),
    );
    page.family(
        "boot_source_outdated",
        "gauge",
        "1 while the newest image of a boot source is not imported.",
    );
    for source in &metrics.boot_sources {
        let labels = [("name", source.name.as_str()), ("pending", "false")];
        page.sample("boot_source_outdated", &labels, u8::from(source.outdated));
    }
    page.family(
        "boot_source_failures",
        "gauge",
        "Failures of a boot source since its last success.",
    );
    for source in &metrics.boot_sources {
        page.sample("boot_source_failures", &[("name", &source.name)], source.failures);
    }
    let name = "boot_source_last_success_timestamp_seconds";
    page.family(name, "gauge", "When a poll of a boot source last had an answer.");
    for source in &metrics.boot_sources {
        if let Some(at) = source.last_success {
            page.sample(name, &[("name", &source.name)], at.as_second());
        }
    }
    store_metrics::write(page, metrics);
}

/// Disks of machines that run; counters begin anew when a guest is started or reset.
fn write_disks(page: &mut Page, disks: &[(String, DiskReport)]) {
    let of = |vm: &str, report: &DiskReport| (vm.to_owned(), report.name.to_string());
    let counters = [
        ("disk_read_bytes_total", "Bytes each disk read."),
        ("disk_written_bytes_total", "Bytes each disk wrote."),
        ("disk_errors_total", "Requests of each disk that failed."),
    ];
    for (place, (name, help)) in counters.into_iter().enumerate() {
        page.family(name, "counter", help);
        for (vm, report) in disks {
            let values = [report.read_bytes, report.written_bytes, report.errors];
            let (vm, disk) = of(vm, report);
            let value = values.get(place).copied().unwrap_or_default();
            page.sample(name, &[("vm", &vm), ("disk", &disk)], value);
        }
    }
    let name = "disk_request_duration_seconds";
    let help = "From the guest's queue to the guest's interrupt.";
    page.family(name, "histogram", help);
    for (vm, report) in disks {
        let (vm, disk) = of(vm, report);
        for (kind, latency) in [
            ("read", &report.reads),
            ("write", &report.writes),
            ("flush", &report.flushes),
            ("trim", &report.trims),
        ] {
            page.histogram(name, &[("vm", &vm), ("disk", &disk), ("kind", kind)], latency);
        }
    }
}

/// A word of the API.
fn word<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
