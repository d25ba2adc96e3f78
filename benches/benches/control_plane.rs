//! What happens per request and per message: checking a specification, framing it.

use std::hint::black_box;
use std::path::PathBuf;

use control::{Decoder, ToVm, VmRequest, encode};
use criterion::{Criterion, criterion_group, criterion_main};
use spec::{HostLimits, VmPlan, VmSpec};

fn check_a_specification(criterion: &mut Criterion) {
    let host = HostLimits {
        memory_bytes: 64 << 30,
        file_roots: vec![PathBuf::from("/var/lib/karat/files")],
    };
    let text = br#"{"name": "web-1", "image": "localhost:5000/karat/debian:12", "cpus": 4, "memory": "2Gi",
        "disks": [{"path": "/var/lib/karat/files/data.raw"}], "networks": [{"tap": "tap0"}]}"#;
    criterion.bench_function("specification: JSON to plan", |bencher| {
        bencher.iter(|| {
            let spec: VmSpec = serde_json::from_slice(black_box(text)).ok()?;
            VmPlan::new(&spec, &host).ok()
        });
    });
}

fn frame_a_message(criterion: &mut Criterion) {
    criterion.bench_function("control frame: encode and decode", |bencher| {
        bencher.iter(|| {
            let bytes = encode(&ToVm {
                number: black_box(7),
                request: VmRequest::Pause,
            })
            .ok()?;
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            decoder.next_frame::<ToVm>().ok()?
        });
    });
}

criterion_group!(benches, check_a_specification, frame_a_message);
criterion_main!(benches);
