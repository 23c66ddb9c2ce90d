//! `tidepool metastore` over the state of a controller with a directory of its own.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{Role, failure, json};

#[test]
fn a_state_is_backed_up_put_back_and_rebuilt_from_the_command_line() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    let controller = Role::controller(dir.path(), &store);
    let at = controller.grpc_address.clone();
    let ask = |args: &[&str]| json(&[&["--controller", &at], args].concat());
    assert_eq!(ask(&["quota", "set", "early", "--rows-per-second", "5"]).0, 0);

    let data = format!("data_dir={}", dir.path().join("controller").display());
    let audit = dir.path().join("audit.log");
    let audited = format!("audit_log={}", audit.display());
    let (file, more) = (dir.path().join("backup"), ["--set", data.as_str(), "--set", audited.as_str()]);
    let file = file.to_str().unwrap();
    let of = |args: &[&str]| json(&[&["metastore"], args, &more].concat());
    let refused = |args: &[&str]| failure(&[&["metastore"], args, &more].concat());
    let (code, backup) = of(&["backup", file]);
    assert_eq!((code, &backup["contents"]["incarnation"]), (0, &json!(0)));
    let (code, text) = refused(&["backup", file]);
    assert!(code == 1 && text.contains("never overwritten"), "{text}");

    assert_eq!(ask(&["quota", "set", "late", "--rows-per-second", "5"]).0, 0);
    let (code, text) = refused(&["restore", file, "--yes"]);
    assert!(code == 1 && text.contains("another controller"), "{text}");

    // What a controller that runs would make anew of nothing that is left.
    let (code, text) = failure(&["--controller", &at, "metastore", "rebuild"]);
    assert!(code == 1 && text.contains("--yes"), "{text}");
    let (code, planned) = ask(&["metastore", "rebuild", "--dry-run"]);
    assert_eq!((code, &planned["dry_run"], &planned["nodes"]), (0, &json!(true), &json!(0)));
    // Nodes have ten seconds to come back after it has begun to lead.
    let (code, text) = failure(&["--controller", &at, "metastore", "rebuild", "--yes"]);
    assert!(code == 1 && text.contains("0 have come") && text.contains("--force"), "{text}");
    assert!(
        planned["grace_left_ms"].as_u64().unwrap() > 0 && planned["missing_nodes"] == json!([]),
        "{planned}"
    );
    let expecting = ["--controller", &at, "metastore", "rebuild", "--yes", "--force", "--expect-nodes", "1"];
    let (code, text) = failure(&expecting);
    assert!(code == 1 && text.contains("0 nodes have come, and 1 are expected"), "{text}");
    let (code, rebuilt) = ask(&["metastore", "rebuild", "--yes", "--force"]);
    assert_eq!((code, &rebuilt["epoch"]), (0, &planned["epoch"]));
    assert_eq!(ask(&["quota", "list"]).1["quotas"].as_array().unwrap().len(), 2, "what is known is kept");
    assert_eq!(controller.terminate(), 0);

    let (code, text) = refused(&["restore", file]);
    assert!(code == 1 && text.contains("--dry-run"), "{text}");
    let (code, planned) = of(&["restore", file, "--dry-run"]);
    assert_eq!((code, &planned["contents"]["incarnation"]), (0, &json!(2)), "one more than the rebuilt one");
    let (code, text) = refused(&["restore", file, "--yes", "--incarnation", "1"]);
    assert!(code == 1 && text.contains("at least 2"), "{text}");
    let (code, restored) = of(&["restore", file, "--yes"]);
    assert_eq!((code, &restored["contents"]["epoch"]), (0, &planned["contents"]["epoch"]));
    // No controller ran, and it stands in the controller's audit log all the same; what was only planned does not.
    let lines = fs::read_to_string(&audit).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines.iter().map(|line| ["action", "outcome"].map(|key| line[key].clone())).collect();
    let of_restore = |word: &str| [json!("restore_metastore"), json!(word)];
    assert_eq!(told, [of_restore("begun"), of_restore("ok")]);
    assert!(lines[0]["who"].as_str().unwrap().contains("(uid ") && lines[0]["known_by"] == "process");
    // What cannot be written down is not done.
    let full = ["--set", data.as_str(), "--set", "audit_log=/dev/full"];
    let (code, text) = failure(&[&["metastore", "restore", file, "--yes"][..], &full].concat());
    assert!(code == 1 && text.contains("nothing was changed, for it could not be written"), "{text}");

    let controller = Role::controller(dir.path(), &store);
    let (_, quotas) = json(&["--controller", &controller.grpc_address, "quota", "list"]);
    assert_eq!(quotas["quotas"].as_array().unwrap().len(), 1);
    assert_eq!(quotas["quotas"][0]["tenant"], "early");
    assert_eq!(controller.terminate(), 0);

    fs::write(dir.path().join("controller/state"), "garbage").unwrap();
    let (code, text) = refused(&["backup", dir.path().join("other").to_str().unwrap()]);
    assert!(code == 1 && text.contains("tidepool metastore restore"), "{text}");
    let (code, restored) = of(&["restore", file, "--yes"]);
    assert!(code == 0 && restored["damage"].as_str().unwrap().contains("damaged"), "{restored}");
}
