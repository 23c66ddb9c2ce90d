//! The test slice as a labelled sample: what `tidepool release skew` replays.

use std::io::{self, Write};

use serde_json::{Map, Value, json};
use tidepool_types::Name;

use crate::{
    data::{Dataset, FeatureValue, TestCandidate},
    model::OUTPUT_PROBABILITY,
    reference::{OUTPUT_CTR, OUTPUT_CVR},
};

/// Writes a rank request for `model` per line, one for each user who has held-out events, with the labels of its outputs.
/// What has two heads is ranked by their product: it has labels as `utility`.
///
/// # Errors
/// What `out` says.
pub fn write_test_sample(
    data: &Dataset,
    model: &Name,
    outputs: &[&str],
    out: &mut impl Write,
) -> io::Result<()> {
    for request in data.test_requests() {
        let user = request.user_features.iter().map(|(name, value)| ((*name).to_owned(), one(value)));
        let columns = request.candidates.first().map_or(0, |candidate| candidate.features.len());
        let candidates = (0..columns).map(|at| {
            let values = request.candidates.iter().map(|candidate| one(&candidate.features[at].1));
            (request.candidates[0].features[at].0.to_owned(), Value::Array(values.collect()))
        });
        let label = |output: &str| -> Value { request.candidates.iter().map(|c| label(output, c)).collect() };
        let mut labels: Map<String, Value> =
            outputs.iter().map(|output| ((*output).to_owned(), label(output))).collect();
        if outputs.len() > 1 {
            labels.insert(UTILITY.into(), label(UTILITY));
        }
        let line = json!({
            "request": {
                "request_id": format!("test-{}", request.user_id),
                "model": model,
                "user": user.collect::<Map<_, _>>(),
                "candidates": candidates.collect::<Map<_, _>>(),
            },
            "labels": labels,
        });
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// What candidates are ranked by that have two heads.
const UTILITY: &str = "utility";

/// What was right of a candidate; null of what an output does not speak of.
fn label(output: &str, candidate: &TestCandidate) -> Value {
    match output {
        OUTPUT_CTR | OUTPUT_PROBABILITY => json!(u8::from(candidate.label)),
        // Given a click.
        OUTPUT_CVR if candidate.label => json!(u8::from(candidate.conversion)),
        UTILITY => json!(u8::from(candidate.conversion)),
        _ => Value::Null,
    }
}

/// The value of a feature in one row.
fn one(value: &FeatureValue) -> Value {
    match value {
        FeatureValue::Ids(ids) => json!(ids),
        FeatureValue::Numbers(numbers) => json!(numbers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{SyntheticSize, synthetic};

    #[test]
    fn every_held_out_event_has_its_labels() {
        let data = synthetic(3, SyntheticSize { users: 30, items: 60, events: 900 });
        let mut text = Vec::new();
        let model = Name::new("m").unwrap();
        write_test_sample(&data, &model, &[OUTPUT_CTR, OUTPUT_CVR], &mut text).unwrap();
        let lines: Vec<Value> =
            text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let labels = |output: &str| {
            let of_lines = lines.iter().flat_map(|line| line["labels"][output].as_array().unwrap());
            of_lines.filter_map(Value::as_u64).collect::<Vec<_>>()
        };
        let clicks = data.test.iter().filter(|event| event.label).count();
        let conversions = data.test.iter().filter(|event| event.conversion).count() as u64;
        assert_eq!(
            (labels("ctr").len(), labels("ctr").iter().sum::<u64>()),
            (data.test.len(), clicks as u64)
        );
        assert_eq!((labels("cvr").len(), labels("cvr").iter().sum::<u64>()), (clicks, conversions));
        assert_eq!(
            (labels("utility").len(), labels("utility").iter().sum::<u64>()),
            (data.test.len(), conversions)
        );
        let request = &lines[0]["request"];
        let items = request["candidates"]["item"].as_array().unwrap().len();
        assert_eq!(items, lines[0]["labels"]["ctr"].as_array().unwrap().len());
        assert_eq!(request["user"]["age"].as_array().unwrap().len(), 1);
    }
}
