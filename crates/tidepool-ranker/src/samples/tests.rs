//! Lines that are no samples are refused, and the line is named.

use tidepool_runtime::error::chain;

use super::*;

fn spec() -> ModelSpec {
    ModelSpec::from_toml(
        r#"
        schema_version = 1
        model = "m"
        score = "utility"
        utility = "ctr * 2"
        outputs = [{ name = "ctr" }]
        inputs = [{ name = "item", side = "candidate", table = "item" }]"#,
    )
    .unwrap()
}

/// What is said of the last of these lines.
fn refusal(text: &str) -> String {
    let mut reader = SampleReader::new(text.as_bytes());
    loop {
        let said = match reader.next_entry() {
            Err(error) => error,
            Ok(None) => return "nothing".into(),
            Ok(Some(Entry::Damaged { line })) => return format!("line {line} is damaged"),
            Ok(Some(Entry::Sample(sample))) => {
                match sample.prepare(&spec(), Limits { max_candidates: 3, max_ids: 9 }) {
                    Ok(_) => continue,
                    Err(error) => error,
                }
            }
        };
        return chain(&said);
    }
}

const REQUEST: &str = r#"{"model": "m", "user": {}, "candidates": {"item": [1, 2]}}"#;

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let line = |rest: &str| format!("{{\"request\": {REQUEST}{rest}}}\n");
    let good = line(r#", "labels": {"ctr": [1, null], "utility": [true, 0]}"#);
    assert_eq!(refusal(&good), "nothing");
    let after = |rest: &str| refusal(&format!("{good}\n{rest}"));
    assert!(
        after("{\"request\": 5}\n").starts_with("line 3 is no sample: "),
        "{}",
        after("{\"request\": 5}\n")
    );
    assert!(after("not json").starts_with("line 3 is no sample: "));
    assert!(after("{}\n").contains("missing field `request`"));
    assert!(after(&line(r#", "label": {}"#)).contains("unknown field `label`"));
    for (rest, problem) in [
        (r#", "labels": {"ctr": [1]}"#, "line 3: labels of \"ctr\": 1 of them, there are 2 candidates"),
        (
            r#", "labels": {"cvr": [1, 0]}"#,
            "line 3: labels: there is no output \"cvr\", there are ctr, utility",
        ),
        (r#", "labels": {"ctr": [1, 0.5]}"#, "line 3: label \"ctr\" of candidate 1 is 0.5, not 0 or 1"),
        (
            r#", "online": {"release": "größe", "scores": [0.5]}"#,
            "line 3: online scores of release \"größe\": 1 of them, there are 2 candidates",
        ),
        (r#", "crc32c": "00000000""#, "line 3: crc32c is for lines that a ranker wrote"),
    ] {
        assert_eq!(after(&line(rest)), problem);
    }
    assert!(after(&line(r#", "labels": {"ctr": ["yes", 0]}"#)).starts_with("line 3 is no sample"));
    let request = |from: &str, to: &str| refusal(&line("").replace(from, to));
    assert_eq!(
        request("\"m\"", "\"other\""),
        "line 1: the request is one of model other, the releases are of m"
    );
    assert_eq!(request("item", "price"), "line 1: model m takes no candidate feature \"price\"");
    assert_eq!(request("[1, 2]", "[1, 2, 3, 4]"), "line 1: 4 candidates, a request may have 3");
    assert_eq!(refusal("{\"audit\":1,\"request\":{}}"), "line 1 is damaged");
}

#[test]
fn candidates_are_named_by_a_feature() {
    let named = |items: &str, feature: &str| {
        let text = format!("{{\"request\": {}}}", REQUEST.replace("[1, 2]", items));
        let mut reader = SampleReader::new(text.as_bytes());
        let Some(Entry::Sample(sample)) = reader.next_entry().unwrap() else { panic!("{text}") };
        sample.candidate_names(feature).map_err(|error| error.to_string())
    };
    assert_eq!(named(r#"["größe", [7]]"#, "item").unwrap(), ["größe", "7"]);
    assert_eq!(named("[1, 2]", "sku").unwrap_err(), "line 1: there is no candidate feature \"sku\"");
    assert_eq!(
        named("[1, [2, 3]]", "item").unwrap_err(),
        "line 1: candidate feature \"item\": candidate 1 does not have one id of it"
    );
}

#[test]
fn what_a_ranker_left_unreadable_is_passed_over() {
    let good = format!("{{\"request\": {REQUEST}}}\n");
    let long = "1".repeat(MAX_LINE_BYTES);
    // A block of NULs after a power failure, with what came behind it on the line, and a line that is too long.
    let text = format!("{good}\0\0\0\n\0\0:[1]}}\n{{\"audit\":1,\"request\":{long}\n{good}");
    let mut reader = SampleReader::new(text.as_bytes());
    let mut damaged = Vec::new();
    let mut samples = 0;
    while let Some(entry) = reader.next_entry().unwrap() {
        match entry {
            Entry::Sample(_) => samples += 1,
            Entry::Damaged { line } => damaged.push(line),
        }
    }
    assert_eq!((samples, damaged, reader.bytes()), (2, vec![2, 3, 4], text.len() as u64));
    // Somebody else's is refused.
    let refused = refusal(&format!("{good}{{\"request\":{long}\n{good}"));
    assert_eq!(refused, format!("line 2 has more than {MAX_LINE_BYTES} bytes"));
}
