//! What a ranker writes down of its requests is what is computed offline, and what other tables change is told.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use tidepool_skew::{Options, Plan, replay};
use tidepool_tests::{DEADLINE, Sandbox, Shape};

use crate::fixture::{self, MODEL, name};

/// Waits until the rankers have written so many requests down.
pub(crate) async fn written(sandbox: &Sandbox, requests: usize) -> Result<()> {
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        let families: Vec<_> = sandbox.registries().iter().flat_map(|registry| registry.gather()).collect();
        let of_sample = families.iter().filter(|f| f.name() == "tidepool_ranker_audit_sample_requests_total");
        let counts = of_sample.flat_map(|family| family.get_metric());
        let counted =
            counts.filter(|metric| metric.get_label().iter().any(|label| label.value() == "written"));
        let count: f64 = counted.map(|metric| metric.get_counter().get_value()).sum();
        if count as usize == requests {
            return Ok(());
        }
        if tokio::time::Instant::now() > until {
            bail!("{count} requests are written down, not {requests}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_served_is_what_is_computed_offline() -> Result<()> {
    for exact in [true, false] {
        let mut sandbox = Sandbox::start(Shape { groups: 1, nodes_per_group: 3 }).await?;
        let folder = tempfile::tempdir()?;
        let sample = folder.path().join("sample.jsonl");
        let path = sample.display().to_string();
        let ranker = sandbox
            .start_ranker_with(|raw| {
                raw.exact = exact;
                (raw.audit_sample.percent, raw.audit_sample.path) = (100.0, path);
            })
            .await?;
        let release = fixture::export(&sandbox.store, "r1", 4).release;
        sandbox.promote(&name(MODEL), &release).await?;
        let mut rankings = sandbox.ranker(ranker).await?;
        let requests = fixture::requests();
        let mut missing = 0;
        for (number, request) in requests.iter().enumerate() {
            let mut message = fixture::message(request);
            // Of some, only the best are given.
            message.top_k = if number % 2 == 0 { 0 } else { 2 };
            message.outputs = vec!["probability".into()];
            missing += u64::from(rankings.rank(message).await?.into_inner().missing_ids);
        }
        written(&sandbox, requests.len()).await?;
        let plan =
            Plan { model: name(MODEL), releases: vec![release], tables_of: Vec::new(), each_table: false };
        let score_bound = if exact { 0.0 } else { 1e-5 };
        let options = Options { threads: 2, score_bound };
        let samples = [PathBuf::from(&sample)];
        let report = replay(&sandbox.store, &plan, &samples, None, &options, &mut |_| ()).await?;
        let candidates: u64 = requests.iter().map(|request| request.candidates.len() as u64).sum();
        assert_eq!((report.requests, report.candidates), (requests.len() as u64, candidates));
        assert_eq!((report.damaged_lines, report.labelled_candidates), (0, 0));
        let told = &report.releases[0];
        let online = told.online.as_ref().unwrap();
        assert_eq!((online.requests, online.beyond), (requests.len() as u64, 0), "exact {exact}: {online:?}");
        assert!(online.values > requests.len() as u64 && online.values < 2 * candidates, "{online:?}");
        // The tables of the model have each id that the cluster found, and no other.
        let offline: u64 = told.cells[0].missing.iter().map(|table| table.missing_ids).sum();
        assert_eq!(offline, missing);
        sandbox.stop().await?;
    }
    Ok(())
}
