//! Images as far as they can be had without a registry; pulling is tested with the image store and in the scenarios.

use serde_json::json;

use crate::harness::Daemon;

#[test]
fn a_pull_from_a_registry_that_is_down_fails_and_says_so() {
    // A port nobody listens on: it was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let daemon = Daemon::start_with(&format!("insecure_registries = [\"127.0.0.1:{port}\"]"));
    let answer = daemon.post(
        "/v1/images",
        &json!({"reference": format!("127.0.0.1:{port}/demo/x:1")}),
    );
    assert_eq!(answer.status, 202);
    let location = answer.header("location").unwrap().to_owned();
    assert_eq!(
        location,
        format!("/v1/operations/{}", answer.json()["operation"].as_str().unwrap())
    );
    let operation = daemon.over(&location);
    assert_eq!(operation["kind"], "image_pull");
    assert_eq!(operation["error"]["code"], "registry_unavailable", "{operation}");
    daemon.delete(&location).problem(409, "wrong_state");
    assert_eq!(daemon.get("/v1/images").json(), json!({"items": []}));
}
