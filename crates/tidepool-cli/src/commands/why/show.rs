//! Requests as people read them: one in full, or a line each.

use serde_json::Value;

use crate::{
    columns::{Columns, harmless, utc},
    output::Output,
};

/// Before what is told of a request.
const INDENT: &str = "  ";

/// Each request with all that is known of it.
pub(super) fn whole(requests: &[Value], output: Output) {
    for (at, request) in requests.iter().enumerate() {
        if at > 0 {
            output.line("");
        }
        one(request, output);
    }
}

fn one(request: &Value, output: Output) {
    let word = |key: &str| harmless(request[key].as_str().unwrap_or_default());
    let number = |key: &str| request[key].as_u64().unwrap_or(0);
    let line = |text: String| output.line(format!("{INDENT}{text}"));
    output.line(format!("{} at ranker {}, {} UTC", word("request_id"), word("ranker"), when(request)));
    line(outcome(request));
    if request["error"].is_object() {
        let error = &request["error"];
        let part = |key: &str| harmless(error[key].as_str().unwrap_or_default());
        line(format!("error: {}: {}", part("code"), part("message")));
    }
    line(release(request));
    let tables = words(&request["table_versions"]);
    if !tables.is_empty() {
        line(format!("tables: {}", tables.join(", ")));
    }
    line(time(request));
    if let Some(text) = batches(request) {
        line(text);
    }
    // Nothing is resident where models run on the CPU.
    let resident = match number("held_ids") {
        0 => String::new(),
        held => format!(", {held} resident on the device"),
    };
    line(format!(
        "looked up {} ids as {} rows from {} nodes, {} from the cache{resident}; {} ids missing, {} bags defaulted, {} ids \
         unavailable",
        number("ids"),
        number("rows_looked_up"),
        number("nodes_touched"),
        number("cache_hits"),
        number("missing_ids"),
        number("defaulted_bags"),
        number("unavailable_ids"),
    ));
    for feature in list(&request["not_found"]) {
        not_found(feature, output);
    }
    calls(request, output);
}

fn outcome(request: &Value) -> String {
    let took = milliseconds(&request["took_us"]);
    let what = match request["outcome"].as_str() {
        Some("answered") => "answered in",
        Some("failed") => "failed after",
        _ => "abandoned by its caller after",
    };
    let shadow = if request["shadow"] == true { "asked in the shadow of another release; " } else { "" };
    match request["deadline_us"].as_u64() {
        None => format!("{shadow}{what} {took}"),
        Some(_) => format!(
            "{shadow}{what} {took}; it had {}, of which {} were left",
            milliseconds(&request["deadline_us"]),
            milliseconds(&request["left_us"])
        ),
    }
}

fn release(request: &Value) -> String {
    let word = |key: &str| harmless(request[key].as_str().unwrap_or_default());
    let mut text =
        format!("model {}", if word("model").is_empty() { "unknown".into() } else { word("model") });
    match request["release"].as_str() {
        Some(release) => text.push_str(&format!(", release {}", harmless(release))),
        None => text.push_str(", no release was chosen"),
    }
    if let Some(choice) = request["choice"].as_str() {
        text.push_str(&format!(" ({}, bucket {})", choice.replace('_', " "), request["bucket"]));
    }
    if let Some(epoch) = request["epoch"].as_u64() {
        text.push_str(&format!(", epoch {epoch}"));
    }
    let tenant = word("tenant");
    text.push_str(&format!(", tenant {}", if tenant.is_empty() { "none" } else { &tenant }));
    text.push_str(&format!(", {} candidates", request["candidates"]));
    if let Some(shadows @ 1..) = request["shadows_asked"].as_u64() {
        text.push_str(&format!(", {shadows} shadows asked too"));
    }
    text
}

fn time(request: &Value) -> String {
    let stages = &request["lookup_stages"];
    let of_lookup = if stages.is_object() {
        format!(
            " (split {}, nodes {}, merge {})",
            milliseconds(&stages["split_us"]),
            milliseconds(&stages["wait_us"]),
            milliseconds(&stages["merge_us"])
        )
    } else {
        String::new()
    };
    format!(
        "time: lookup {}{of_lookup}, waiting for a batch {}, for a thread {}, dense {}, in all {}",
        milliseconds(&request["lookup_us"]),
        milliseconds(&request["batch_wait_us"]),
        milliseconds(&request["queue_us"]),
        milliseconds(&request["dense_us"]),
        milliseconds(&request["took_us"])
    )
}

/// With whom it shared what is told next; None: with nobody.
fn batches(request: &Value) -> Option<String> {
    let number = |key: &str| request[key].as_u64().unwrap_or(0);
    let (requests, rows, batches) = (number("batch_requests"), number("batch_rows"), number("batches"));
    match (requests, batches) {
        (0 | 1, 0 | 1) => None,
        (_, 0 | 1) => Some(format!(
            "in a batch of {requests} requests with {rows} rows: the rows and nodes below, the ids of each feature that \
             were not found, and the calls are those of the whole batch"
        )),
        (_, batches) => Some(format!(
            "cut into {batches} batches, with up to {requests} requests and {rows} rows: the rows below are those of all \
             of them, the ids of each feature that were not found, and the calls, those of the last"
        )),
    }
}

/// The ids of a feature that were not found, and what became of its bags.
fn not_found(feature: &Value, output: Output) {
    let name = harmless(feature["feature"].as_str().unwrap_or("a feature"));
    let table = harmless(feature["table_version"].as_str().unwrap_or_default());
    let mut said = false;
    for (what, count) in [("missing", "missing_ids"), ("unavailable", "unavailable_ids")] {
        let ids = list(&feature[what]);
        let count = feature[count].as_u64().unwrap_or(0);
        if count == 0 {
            continue;
        }
        said = true;
        let shown: Vec<_> = ids.iter().map(ToString::to_string).collect();
        let first = if ids.is_empty() { String::new() } else { format!(": {}", shown.join(", ")) };
        output.line(format!("{INDENT}{name} ({table}): {count} ids {what}{first}"));
    }
    let bags = feature["defaulted_bags"].as_u64().unwrap_or(0);
    if bags > 0 {
        let why = if said { "" } else { ": they had no ids, or no finite sum" };
        output.line(format!("{INDENT}{name} ({table}): {bags} vectors are the default row{why}"));
    }
}

fn calls(request: &Value, output: Output) {
    let mut columns = Columns::new(&["node", "address", "why", ">ids", ">asked at", ">took", "end"]);
    for call in list(&request["calls"]) {
        let word = |key: &str| harmless(call[key].as_str().unwrap_or_default());
        let end = match call["problem"].as_str() {
            Some(problem) => format!("failed: {}: {}", word("code"), harmless(problem)),
            None => word("end"),
        };
        columns.row([
            word("node"),
            word("address"),
            word("kind").replace('_', " "),
            call["ids"].to_string(),
            milliseconds(&call["begun_us"]),
            milliseconds(&call["took_us"]),
            end,
        ]);
    }
    columns.print(INDENT, output);
    if let Some(more @ 1..) = request["calls_left_out"].as_u64() {
        output.line(format!("{INDENT}and {more} more calls"));
    }
}

/// A line each.
pub(super) fn lines(requests: &[Value], output: Output) {
    let mut columns = Columns::new(&[
        "request",
        "when (UTC)",
        "ranker",
        "release",
        ">took",
        ">lookup",
        ">dense",
        ">missing",
        "outcome",
    ]);
    for request in requests {
        let word = |key: &str| harmless(request[key].as_str().unwrap_or_default());
        let outcome = match request["error"]["code"].as_str() {
            Some(code) => harmless(code),
            None if request["shadow"] == true => format!("{} (shadow)", word("outcome")),
            None => word("outcome"),
        };
        let release = match word("release") {
            release if release.is_empty() => word("model"),
            release => format!("{}@{release}", word("model")),
        };
        columns.row([
            word("request_id"),
            when(request),
            word("ranker"),
            release,
            milliseconds(&request["took_us"]),
            milliseconds(&request["lookup_us"]),
            milliseconds(&request["dense_us"]),
            request["missing_ids"].to_string(),
            outcome,
        ]);
    }
    columns.print("", output);
    output.line("`tidepool why REQUEST` tells all that is known of one");
}

fn when(request: &Value) -> String {
    let ms = request["arrived_unix_ms"].as_u64().unwrap_or(0);
    format!("{}.{:03}", utc(ms / 1000), ms % 1000)
}

fn milliseconds(us: &Value) -> String {
    us.as_u64().map_or_else(|| "-".into(), |us| format!("{:.2} ms", us as f64 / 1000.0))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn words(value: &Value) -> Vec<String> {
    list(value).iter().filter_map(Value::as_str).map(harmless).collect()
}
