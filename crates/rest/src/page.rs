//! Lines in the text format of Prometheus (exposition format 0.0.4).

use std::fmt::{Display, Write as _};
use std::time::Duration;

use host::{DiskLatency, LATENCY_BOUNDS_US};

/// Seconds as a decimal fraction, exact.
fn seconds(duration: Duration) -> String {
    format!("{}.{:09}", duration.as_secs(), duration.subsec_nanos())
}

/// Lines of one page. Names come without the `karat_` before them all.
#[derive(Default)]
pub(crate) struct Page(String);

impl Page {
    /// Begins a family of samples.
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        _ = writeln!(self.0, "# HELP karat_{name} {help}\n# TYPE karat_{name} {kind}");
    }

    /// Values of labels are words, names and versions of this API: nothing in them needs to be escaped.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        _ = writeln!(self.0, "karat_{name}{labels} {value}");
    }

    /// The samples of a histogram.
    pub(crate) fn histogram(&mut self, name: &str, labels: &[(&str, &str)], latency: &DiskLatency) {
        let bucket = format!("{name}_bucket");
        for (bound, within) in LATENCY_BOUNDS_US.iter().zip(&latency.within) {
            let le = seconds(Duration::from_micros(*bound));
            self.sample(&bucket, &[labels, &[("le", &le)]].concat(), within);
        }
        self.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), latency.count);
        let sum = seconds(Duration::from_nanos(latency.total_ns));
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, latency.count);
    }

    /// A gauge that has one sample.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// The whole page.
    pub(crate) fn text(self) -> String {
        self.0
    }
}
