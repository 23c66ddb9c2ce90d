//! Changes and the audit log: what cannot be written down is not done.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};
use tidepool_controller::RawConfig;
use tidepool_proto::v1::{self, controllers_client::ControllersClient};
use tidepool_types::ErrorCode;

use crate::fixture::*;

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn quota(rows_per_second: u64) -> v1::QuotaRule {
    let quota = Some(v1::Quota { rows_per_second, bytes_per_second: 0 });
    v1::QuotaRule { tenant: "ads".into(), quota }
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_changed_and_the_reason_is_told() {
    let fixture = Fixture::new();
    let (path, real) = (fixture.dir.path().join("audit.log"), fixture.dir.path().join("real"));
    fs::write(&real, "").unwrap();
    let to = |target: &Path| {
        let link = fixture.dir.path().join("link");
        symlink(target, &link).unwrap();
        fs::rename(link, &path).unwrap();
    };
    to(&real);
    let raw = RawConfig { audit_log: path.to_str().unwrap().to_owned(), ..fixture.raw_config() };
    let controller = fixture.try_start(raw).await.unwrap();
    let mut client = controller.client().await;
    client.set_quota(quota(7)).await.unwrap();
    to(Path::new("/dev/full"));
    let (code, text) = refused(client.set_quota(quota(8)).await);
    assert_eq!(code, ErrorCode::Unavailable);
    assert!(text.starts_with("nothing was changed, for it could not be written down"), "{text}");
    assert!(text.contains("audit.log") && text.contains("No space left on device"), "{text}");
    let rules = client.list_quotas(v1::ListQuotasRequest {}).await.unwrap().into_inner().rules;
    assert_eq!(rules, [quota(7)]);
    to(&real);
    client.set_quota(quota(9)).await.unwrap();
    let told: Vec<_> = lines(&real)
        .into_iter()
        .map(|line| [&line["outcome"], &line["what"]["quota"]["rows_per_second"]].map(Value::clone))
        .collect();
    let expected =
        [("begun", 7), ("ok", 7), ("begun", 9), ("ok", 9)].map(|(word, rows)| [json!(word), json!(rows)]);
    assert_eq!(told, expected);
    controller.stop().await;
}

#[tokio::test]
async fn what_programs_take_from_the_store_is_written_down() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("audit.log");
    let raw = RawConfig { audit_log: path.to_str().unwrap().to_owned(), ..fixture.raw_config() };
    let controller = fixture.try_start(raw).await.unwrap();
    let address = format!("http://{}", controller.running.grpc_address);
    let mut controllers = ControllersClient::connect(address).await.unwrap();
    let note = v1::NoteCollectionRequest {
        store: "data/store".into(),
        artifacts: vec!["user@v0".into()],
        count: 1,
        bytes: 7,
        ..v1::NoteCollectionRequest::default()
    };
    controllers.note_collection(note).await.unwrap();
    let lines = lines(&path);
    assert_eq!((&lines[1]["action"], &lines[1]["outcome"]), (&json!("collect"), &json!("ok")));
    assert_eq!(lines[0]["what"]["artifacts"], json!(["user@v0"]));
    controller.stop().await;
}
