//! The demo itself, on a small folder of ratings: real processes, one of them killed midway.

use std::{fmt::Write, fs};

use tempfile::TempDir;

use crate::command::json;

const USERS: u64 = 60;
const ITEMS: u64 = 80;
const RATINGS_PER_USER: u64 = 40;

/// A folder of RecBole atomic files: users like the items of their own half.
pub(crate) fn ratings(dir: &TempDir) -> String {
    let mut users =
        String::from("user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n");
    let mut items =
        String::from("item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n");
    let mut events = String::from("user_id:token\titem_id:token\trating:float\ttimestamp:float\n");
    for item in 1..=ITEMS {
        let genre = if item % 2 == 0 { "Drama Ünusual" } else { "Comedy" };
        writeln!(items, "{item}\tFilm {item}\t{}\t{genre}", 1950 + item % 50).unwrap();
    }
    for user in 1..=USERS {
        let (gender, occupation) = if user % 2 == 0 { ("F", "artist") } else { ("M", "writer") };
        writeln!(users, "{user}\t{}\t{gender}\t{occupation}\t12345", 20 + user % 40).unwrap();
        for turn in 0..RATINGS_PER_USER {
            let item = 1 + (user * 13 + turn * 7) % ITEMS;
            let same_half = user % 2 == item % 2;
            let surprised = (user + turn) % 7 == 0;
            let rating = if same_half ^ surprised { 5 } else { 2 };
            writeln!(events, "{user}\t{item}\t{rating}\t{}", 880_000_000 + turn * 60).unwrap();
        }
    }
    let folder = dir.path().join("ratings");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("ml-100k.user"), users).unwrap();
    fs::write(folder.join("ml-100k.item"), items).unwrap();
    fs::write(folder.join("ml-100k.inter"), events).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn the_demo_ranks_through_a_cluster_and_survives_a_killed_node() {
    let dir = TempDir::new().unwrap();
    let data = ratings(&dir);
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let args = ["demo", "--data", &data, "--dir", out, "--kill-one"];
    let (code, report) = json(&args);
    // So few ratings may break the promises about quality; those about serving must hold.
    assert!(code == 0 || code == 3, "exit code {code}: {report:#}");
    let kept = report["promises"].as_array().unwrap().iter().all(|p| p["kept"] == true);
    assert_eq!(code == 0, kept, "the exit code says whether the promises were kept");
    assert_eq!(report["failed_requests"], 0);
    assert_eq!(report["mixed_versions"], 0);
    assert!(report["killed"].is_string());
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("{report:#}"));
    assert!((number(&report["auc_cluster"]) - number(&report["auc_offline"]["int4"])).abs() <= 1e-4);
    for key in ["f32", "f16", "int8", "int4"] {
        assert!(number(&report["auc_offline"][key]) > 0.0 && number(&report["log_loss_offline"][key]) > 0.0);
    }
    for key in ["rank_p50_us", "rank_p99_us", "lookup_rows_per_second", "auc_cluster_tables_missing"] {
        assert!(number(&report[key]) > 0.0, "{key}");
    }
    assert_eq!(report["release_reused"], false);
    assert!(!report["top"]["films"].as_array().unwrap().is_empty());

    let (_, again) = json(&["demo", "--data", &data, "--dir", out, "--users", "5"]);
    assert_eq!(again["release_reused"], true);
    assert_eq!(again["rank_requests"], 5);
    let left = fs::read_dir(dir.path().join("out/movielens")).unwrap();
    let left: Vec<_> = left.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(
        !left.iter().any(|name| name.starts_with("cluster-")),
        "nothing of the cluster is left: {left:?}"
    );
}
