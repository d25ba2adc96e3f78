//! Images go out to a registry, Debian's `docker-registry`, and come back.

use serde_json::json;

use crate::harness::Daemon;
use crate::real_registry::Distribution;

#[test]
fn an_image_goes_out_and_comes_back() {
    let Some(registry) = Distribution::start() else { return };
    let host = registry.host.clone();
    let daemon = Daemon::start_with(&format!("insecure_registries = [\"{host}\"]"));
    let mut disk = vec![0; 1 << 20];
    disk[5000..90_000].fill(7);
    assert_eq!(daemon.post("/v1/images", &json!({"name": "golden"})).status, 201);
    let nothing = daemon.post(
        "/v1/images/golden/push",
        &json!({"reference": format!("{host}/demo:1")}),
    );
    nothing.problem(409, "wrong_state");
    let sent = daemon.send("PUT", "/v1/images/golden/data", "", &disk);
    assert_eq!(daemon.over(sent.header("location").unwrap())["phase"], "Succeeded");

    let push = |reference: &str| daemon.begin("/v1/images/golden/push", &json!({ "reference": reference }));
    let done = push(&format!("{host}/demo:1"));
    assert_eq!(done["phase"], "Succeeded", "{done}");
    let manifest = done["result"].as_str().unwrap();

    let pulled = daemon.begin("/v1/images", &json!({"reference": format!("{host}/demo@{manifest}")}));
    assert_eq!(pulled["phase"], "Succeeded", "{pulled}");
    let image = daemon
        .get(&format!("/v1/images/{}", pulled["result"].as_str().unwrap()))
        .json();
    assert_eq!(image["virtual_size_bytes"], 1 << 20);
    assert_eq!(image["source_format"], "qcow2");

    let refused = |image: &str, reference: &str| {
        daemon.post(&format!("/v1/images/{image}/push"), &json!({ "reference": reference }))
    };
    refused("golden", &format!("{host}/demo@{manifest}")).problem(422, "invalid_spec");
    refused("golden", "no reference").problem(422, "invalid_spec");
    refused("other", &format!("{host}/demo:1")).problem(404, "not_found");

    drop(registry);
    let down = push(&format!("{host}/demo:2"));
    assert_eq!(down["error"]["code"], "registry_unavailable", "{down}");
}
