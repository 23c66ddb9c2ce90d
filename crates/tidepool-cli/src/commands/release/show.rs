//! Traffic of a model as people and machines read it.

use serde_json::{Value, json};
use tidepool_cluster::BUCKETS;
use tidepool_proto::v1;

use crate::output::Output;

/// What a change made of a model's traffic, or would make.
pub(super) fn changed(status: &v1::TrafficStatus, dry_run: bool, output: Output) {
    if dry_run {
        output.line("nothing was done; it would be:");
    }
    traffic(status, output);
    let Value::Object(mut fields) = object(status) else { return };
    fields.insert("dry_run".into(), dry_run.into());
    output.object(Value::Object(fields));
}

/// A table: one line per release that has, or had, a say.
pub(super) fn traffic(status: &v1::TrafficStatus, output: Output) {
    output.line(format!("{} (epoch {})", status.model, status.epoch));
    output.line(format!(
        "  {:<20} {:<9} {:>8} {:>10} {:>8} {:>9} {:>7}",
        "release", "is", "share", "requests", "failed", "missing", "shift"
    ));
    let row = |release: &str, is: &str, part: &str, tally: Option<&v1::Tally>, shift: Option<f64>| {
        let rate = |count: u64, of: u64| {
            if of == 0 { "-".to_owned() } else { format!("{:.2} %", 100.0 * count as f64 / of as f64) }
        };
        let number = |pick: fn(&v1::Tally) -> String| tally.map_or_else(|| "-".into(), pick);
        output.line(format!(
            "  {release:<20} {is:<9} {part:>8} {:>10} {:>8} {:>9} {:>7}",
            number(|t| t.requests.to_string()),
            tally.map_or_else(|| "-".into(), |t| rate(t.errors, t.requests)),
            tally.map_or_else(|| "-".into(), |t| rate(t.missing_ids, t.ids)),
            shift.map_or_else(|| "-".into(), |shift| format!("{shift:.3}")),
        ));
    };
    let beside = status.arms.iter().find_map(|arm| arm.current.as_ref());
    match status.current.as_str() {
        "" => output.line("  no release is current: promote one"),
        current => row(current, "current", &percent(status.current_buckets), beside, None),
    }
    for arm in &status.arms {
        let is = if arm.halted.is_empty() { "arm" } else { "halted" };
        row(&arm.release, is, &percent(arm.buckets), arm.candidate.as_ref(), arm.score_shift);
    }
    for shadow in &status.shadows {
        let tally = shadow.tally.clone().unwrap_or_default();
        let (asked, errors) = (tally.compared + tally.failed, tally.failed);
        let tally = v1::Tally { requests: asked, errors, ..v1::Tally::default() };
        row(&shadow.release, "shadow", &percent(shadow.sample), Some(&tally), shadow.score_shift);
    }
    if !status.previous.is_empty() {
        row(&status.previous, "previous", "-", None, None);
    }
    for arm in status.arms.iter().filter(|arm| !arm.halted.is_empty()) {
        output.line(format!("  {} was halted: {}", arm.release, arm.halted));
    }
    for release in &status.retiring {
        output.line(format!("  {release} is being let go, and leaves when what began with it has ended"));
    }
    for release in &status.pinned {
        output.line(format!("  {release} is pinned: it stays loaded whatever is promoted"));
    }
    for ranker in &status.rolled_back_at {
        output.line(format!("  ranker {ranker} was rolled back by itself, and not by the cluster map"));
    }
}

/// The same for machines.
pub(super) fn object(status: &v1::TrafficStatus) -> Value {
    let tally = |tally: Option<&v1::Tally>| {
        tally.map(|t| {
            json!({
                "requests": t.requests, "errors": t.errors, "ids": t.ids, "missing_ids": t.missing_ids,
            })
        })
    };
    let name = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    let arm = |arm: &v1::ArmStatus| {
        let guards = arm.guards.unwrap_or_default();
        json!({
            "release": arm.release,
            "share": share(arm.buckets),
            "halted": name(&arm.halted),
            "by": arm.by,
            "unix_seconds": arm.unix_seconds,
            "guards": {
                "max_error_rate_increase": guards.max_error_rate_increase,
                "max_missing_rate_increase": guards.max_missing_rate_increase,
                "max_score_shift": guards.max_score_shift,
                "min_requests": guards.min_requests,
            },
            "candidate": tally(arm.candidate.as_ref()),
            "current": tally(arm.current.as_ref()),
            "score_shift": arm.score_shift,
        })
    };
    let shadow = |shadow: &v1::ShadowStatus| {
        let tally = shadow.tally.clone().unwrap_or_default();
        json!({
            "release": shadow.release, "sample": share(shadow.sample), "score_shift": shadow.score_shift,
            "compared": tally.compared, "failed": tally.failed, "dropped": tally.dropped,
        })
    };
    json!({
        "model": status.model,
        "epoch": status.epoch,
        "current": name(&status.current),
        "current_share": share(status.current_buckets),
        "previous": name(&status.previous),
        "arms": status.arms.iter().map(arm).collect::<Vec<_>>(),
        "shadows": status.shadows.iter().map(shadow).collect::<Vec<_>>(),
        "rolled_back_at": status.rolled_back_at,
        "retiring": status.retiring,
        "pinned": status.pinned,
    })
}

fn share(buckets: u32) -> f64 {
    f64::from(buckets) / f64::from(BUCKETS)
}

fn percent(buckets: u32) -> String {
    format!("{} %", f64::from(buckets) * 100.0 / f64::from(BUCKETS))
}
