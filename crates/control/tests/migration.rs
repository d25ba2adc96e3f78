//! What is said about migrations crosses the connection unchanged.

use control::{
    AutoConvergeSteps, Blob, DepartDisk, DepartVm, DiskMove, FromVm, LinkCredentials, MigrationKey, MigrationNews,
    MigrationPhase, MigrationProgress, MoveOptions, PostCopyWish, ToVm, VmEvent, VmRequest,
};
use spec::MigrationId;

fn key() -> MigrationKey {
    MigrationKey {
        id: MigrationId::random(),
        token: u64::MAX,
    }
}

#[test]
fn every_request_of_a_migration_crosses_unchanged() {
    let credentials = LinkCredentials {
        certificate_der: Blob(vec![0, 1, 255]),
        key_der: Blob(vec![2]),
        peer_certificate_der: Blob(Vec::new()),
    };
    assert!(!format!("{credentials:?}").contains("255"), "keys are not printed");
    let depart = DepartVm {
        key: key(),
        options: MoveOptions {
            post_copy: PostCopyWish::AfterRounds { rounds: 2 },
            auto_converge: Some(AutoConvergeSteps {
                initial_percent: 20,
                step_percent: 10,
                max_percent: 99,
            }),
            completion_timeout_per_gib_ms: None,
            ..MoveOptions::default()
        },
        credentials: Some(credentials),
        disks: vec![DepartDisk {
            name: "root".parse().unwrap(),
            how: DiskMove::Shared,
        }],
    };
    for request in [
        VmRequest::Depart(Box::new(depart)),
        VmRequest::DepartTune {
            bandwidth_bytes_per_s: 1,
        },
        VmRequest::DepartCancel,
        VmRequest::DepartLinks { count: 2 },
        VmRequest::DepartDecided { departed: true },
        VmRequest::ArriveDecided { departed: false },
    ] {
        let message = ToVm { number: 1, request };
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<ToVm>(&text).unwrap(), message, "{text}");
    }
}

#[test]
fn options_that_are_left_out_are_the_usual_ones() {
    let text = format!(
        r#"{{"key": {}, "credentials": null}}"#,
        serde_json::to_string(&key()).unwrap()
    );
    let depart: DepartVm = serde_json::from_str(&text).unwrap();
    assert_eq!(depart.options, MoveOptions::default());
}

#[test]
fn all_news_cross_unchanged() {
    let progress = MigrationProgress {
        phase: MigrationPhase::Running,
        total_bytes: 1,
        processed_bytes: 2,
        remaining_bytes: 3,
        wire_bytes: 4,
        dirty_bytes_per_s: 5,
        throughput_bytes_per_s: 6,
        round: 7,
        expected_downtime_ms: 8,
        downtime_ms: Some(9),
        throttle_percent: 10,
        post_copy: true,
    };
    for news in [
        MigrationNews::Progress(progress),
        MigrationNews::Decide { key: key() },
        MigrationNews::LinksWanted {
            count: 2,
            reason: "r".to_owned(),
        },
        MigrationNews::Departed,
        MigrationNews::Stayed {
            reason: "r".to_owned(),
            cancelled: true,
        },
        MigrationNews::InDoubt { key: key() },
        MigrationNews::Arrived { downtime_us: 1 },
        MigrationNews::Complete,
        MigrationNews::ArrivalFailed { reason: "r".to_owned() },
    ] {
        let message = FromVm::Event(VmEvent::Migration(news));
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<FromVm>(&text).unwrap(), message, "{text}");
    }
}
