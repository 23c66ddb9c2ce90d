//! What was selected where the outputs were computed becomes what a request gets. Of a request that was cut, the selections
//! of its pieces become one: the one that a selection of all its rows would have been.

use tidepool_cluster::ScoreHistogram;
use tidepool_dense::select::{NotFinite, Selected};
use tidepool_types::{ModelSpec, Name};

use crate::{
    RankError,
    batch::SelectedPart,
    counters::counted,
    finish::{Finished, Finishing, of_formula},
    topk,
};

/// Makes of the `parts` of a request of `rows` candidates, which follow each other, what [`finish`](crate::finish::finish) makes
/// of its outputs.
///
/// # Errors
/// [`RankError::NotFinite`] names the candidate, and the score or output that is NaN or infinite; [`RankError::Selection`] when
/// the parts are not of all candidates, each once: a defect.
pub(crate) fn finish(
    (spec, release): (&ModelSpec, &Name),
    rows: usize,
    parts: Vec<SelectedPart>,
    finishing: &Finishing,
) -> Result<Finished, RankError> {
    let follow = |end: usize, part: &SelectedPart| match part.first as usize == end {
        true => Ok(end + part.rows as usize),
        false => Err(end),
    };
    match parts.iter().try_fold(0, follow) {
        Ok(end) if end == rows => {}
        Ok(found) | Err(found) => {
            return Err(RankError::Selection { what: "candidates in a row", found, expected: rows });
        }
    }
    if let Some(NotFinite { output, candidate, value, .. }) = not_finite(spec, &parts, finishing) {
        return Err(RankError::NotFinite {
            model: spec.model.clone(),
            release: release.clone(),
            output: output.map_or_else(|| spec.score_name().to_owned(), |at| spec.outputs[at].name.clone()),
            candidate: candidate as usize,
            value,
        });
    }
    let mut scores = ScoreHistogram::default();
    samples(&parts).for_each(|score| scores.record(score));
    let Selected { ranked, outputs, .. } = merged(parts, finishing.top_k);
    let names = finishing.outputs.iter().map(|at| spec.outputs[*at].name.clone());
    Ok(Finished { ranked, outputs: names.zip(outputs).collect(), scores })
}

/// The value that one selection of all rows would name. First comes what candidates are ranked by: an output that the formula
/// has its NaN from says more than the formula, and the first one that the formula speaks of most. Then come the outputs that
/// were asked for.
///
/// A part looks at the outputs of the formula only where the formula has come to no number. So of an output that is none and
/// that the formula hides in one part (a minimum of it and a number, a quotient by it), while the formula fails in another, the
/// part in which it fails is told, unless the other tells of that output because it was asked for.
fn not_finite(spec: &ModelSpec, parts: &[SelectedPart], finishing: &Finishing) -> Option<NotFinite> {
    let found = || {
        let of_part = |part: &SelectedPart| {
            let NotFinite { candidate, .. } = part.selected.not_finite?;
            Some(NotFinite { candidate: part.first + candidate, ..part.selected.not_finite? })
        };
        parts.iter().filter_map(of_part)
    };
    let of = |output: Option<usize>| found().find(|bad| bad.output == output);
    // An output that was asked for may stand in the formula too, and be no number where the formula is one.
    if found().any(|bad| bad.of_ranking) {
        return of_formula(spec).find_map(|at| of(Some(at))).or_else(|| of(None));
    }
    finishing.outputs.iter().find_map(|at| of(Some(*at))).or_else(|| found().next())
}

/// The samples of a request that was not cut; else, for each row that would be a sample then, the one that its part has of
/// that row or of one shortly before: as many, and as many of each stretch of the candidates.
fn samples(parts: &[SelectedPart]) -> impl Iterator<Item = f32> {
    let rows = parts.last().map_or(0, |part| (part.first + part.rows) as usize);
    counted(rows).filter_map(|row| {
        let part = parts.get(parts.partition_point(|part| (part.first as usize) <= row).checked_sub(1)?)?;
        let step = counted(part.rows as usize).nth(1).unwrap_or(usize::MAX);
        part.selected.samples.get((row - part.first as usize) / step).copied()
    })
}

/// The best `k` (0: all) of those that the parts have, which have each as many.
fn merged(mut parts: Vec<SelectedPart>, k: u32) -> Selected {
    if parts.len() == 1
        && let Some(part) = parts.pop()
    {
        return part.selected;
    }
    // Where each part's winners begin among all of them.
    let begins = parts.iter().scan(0, |begin, part| {
        let ranked = part.selected.ranked.len();
        Some(std::mem::replace(begin, *begin + ranked))
    });
    let begins: Vec<usize> = begins.collect();
    // Those of the parts one after the other: of equal ones, who stands before another there comes before it in the request
    // too, since the selection of a part has left equal ones in their order.
    let all = parts
        .iter()
        .flat_map(|part| part.selected.ranked.iter().map(|(at, score)| (part.first + at, *score)));
    let all: Vec<(u32, f32)> = all.collect();
    let scores: Vec<f32> = all.iter().map(|(_, score)| *score).collect();
    let best = topk::best(&scores, k);
    let outputs = parts.first().map_or(0, |part| part.selected.outputs.len());
    let output = |number: usize| {
        let of = |(place, _): &(u32, f32)| {
            let part = begins.partition_point(|begin| *begin <= *place as usize).saturating_sub(1);
            let values = parts[part].selected.outputs.get(number);
            values.and_then(|values| values.get(*place as usize - begins[part])).copied().unwrap_or(f32::NAN)
        };
        best.iter().map(of).collect()
    };
    Selected {
        not_finite: None,
        outputs: (0..outputs).map(output).collect(),
        ranked: best.iter().map(|(place, score)| (all[*place as usize].0, *score)).collect(),
        samples: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use tidepool_dense::select::{SelectRequest, select};
    use tidepool_types::mix64;

    use super::*;
    use crate::{batch::Results, counters::SCORES_COUNTED};

    /// Numbers that follow from a seed.
    struct Random(u64);

    impl Random {
        fn below(&mut self, most: u64) -> u64 {
            self.0 += 1;
            mix64(self.0) % most
        }
    }

    fn spec(score: &str) -> ModelSpec {
        ModelSpec::from_toml(&format!(
            r#"schema_version = 1
            model = "ads"
            {score}
            inputs = [{{ name = "x", side = "candidate", width = 1 }}]
            outputs = [{{ name = "ctr" }}, {{ name = "cvr" }}, {{ name = "dwell" }}]
            [[calibrations]]
            output = "ctr"
            surface = "home"
            kind = "linear"
            a = 0.5
            b = 0
            "#
        ))
        .unwrap()
    }

    fn specs() -> [ModelSpec; 3] {
        let utility = r#"score = "utility"
            utility = "cvr * ctr * bid * rate"
            utility_inputs = [{ name = "bid", side = "candidate" }, { name = "rate", side = "user" }]"#;
        [spec("score = \"ctr\""), spec("score = \"dwell\""), spec(utility)]
    }

    /// Outputs with many equal values, zeros of both signs, and now and then one that is no number.
    fn outputs(random: &mut Random, rows: usize, bad: u64) -> Vec<Vec<f32>> {
        let mut one = |_| match random.below(bad) {
            0 => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX][random.below(4) as usize],
            1 => -0.0,
            _ => random.below(4) as f32 * 0.25,
        };
        (0..3).map(|_| (0..rows).map(&mut one).collect()).collect()
    }

    fn finishing(random: &mut Random, rows: usize) -> Finishing {
        let chosen = [vec![], vec![0], vec![2, 1], vec![1, 0, 2], vec![2, 2]];
        let bids = (0..rows).map(|_| [1.0, 2.0, -1.0, 1e38][random.below(4) as usize]).collect();
        Finishing {
            surface: ["", "home", "feed"][random.below(3) as usize].into(),
            outputs: chosen[random.below(5) as usize].clone(),
            utility_inputs: vec![bids, vec![[1.0, 10.0][random.below(2) as usize]]],
            top_k: [0, 1, 3, 10, 1_000, u32::MAX][random.below(6) as usize],
        }
    }

    /// What a device gives the rows of a request from `first` on.
    fn part(
        spec: &ModelSpec,
        outputs: &[Vec<f32>],
        finishing: &Finishing,
        (first, end): (usize, usize),
    ) -> SelectedPart {
        let numbers = &finishing.utility_inputs;
        let request = SelectRequest {
            rows: (end - first) as u32,
            surface: &finishing.surface,
            outputs: &finishing.outputs,
            utility_inputs: &[numbers[0][first..end].to_vec(), numbers[1].clone()],
            top_k: finishing.top_k,
        };
        let own: Vec<_> = outputs.iter().map(|output| output[first..end].to_vec()).collect();
        let selected = select(spec, &request, &own, SCORES_COUNTED as u32);
        SelectedPart { first: first as u32, rows: request.rows, selected }
    }

    /// As bits, so that zeros have their signs; of an error, its words.
    type Seen = Result<(Vec<(u32, u32)>, Vec<(String, Vec<u32>)>, u64), String>;

    fn seen(finished: &Result<Finished, RankError>) -> Seen {
        let bits = |values: &Vec<f32>| values.iter().map(|value| value.to_bits()).collect();
        let finished = finished.as_ref().map_err(ToString::to_string)?;
        let ranked = finished.ranked.iter().map(|(at, score)| (*at, score.to_bits())).collect();
        let outputs = finished.outputs.iter().map(|(name, values)| (name.clone(), bits(values))).collect();
        Ok((ranked, outputs, finished.scores.total()))
    }

    #[test]
    fn what_was_selected_of_all_rows_or_of_pieces_is_what_is_made_of_outputs() {
        let release = Name::new("r1").unwrap();
        let (mut failed, mut cut) = (0, 0);
        for seed in 0..3_000u64 {
            let mut random = Random(seed << 32);
            let spec = &specs()[random.below(3) as usize];
            let most = [8, 40, 300][random.below(3) as usize];
            let rows = 1 + random.below(most) as usize;
            let bad = [40, 2_000, u64::MAX][random.below(3) as usize];
            let outputs = outputs(&mut random, rows, bad);
            let finishing = finishing(&mut random, rows);
            let of = (spec, &release);
            let expected = crate::finish::finish(of, rows, Results::Outputs(outputs.clone()), &finishing);
            failed += u32::from(expected.is_err());
            let whole = part(spec, &outputs, &finishing, (0, rows));
            let uncut = crate::finish::finish(of, rows, Results::Selected(vec![whole]), &finishing);
            assert_eq!(seen(&uncut), seen(&expected), "seed {seed}");
            if let (Ok(uncut), Ok(expected)) = (&uncut, &expected) {
                assert_eq!(uncut.scores, expected.scores, "seed {seed}");
            }
            let most = 1 + random.below(rows as u64) as usize;
            let pieces = (0..rows).step_by(most).map(|from| (from, (from + most).min(rows)));
            let parts: Vec<_> = pieces.map(|piece| part(spec, &outputs, &finishing, piece)).collect();
            cut += u32::from(parts.len() > 1);
            let merged = crate::finish::finish(of, rows, Results::Selected(parts), &finishing);
            assert_eq!(seen(&merged), seen(&expected), "seed {seed}, pieces of {most}");
        }
        assert!(failed > 300 && cut > 1_000, "{failed} failed, {cut} were cut");
    }

    #[test]
    fn an_output_that_is_chosen_and_in_the_formula_is_told_as_what_it_fails() {
        let spec = spec(
            r#"score = "utility"
            utility = "bid * rate / dwell"
            utility_inputs = [{ name = "bid", side = "candidate" }, { name = "rate", side = "user" }]"#,
        );
        let release = Name::new("r1").unwrap();
        let finishing = Finishing {
            outputs: vec![1, 2],
            utility_inputs: vec![vec![1.0; 4], vec![1.0]],
            ..Finishing::default()
        };
        // Of the first piece `dwell` is infinite, which makes a utility of 0; of the second `cvr`, and then also `dwell` is none.
        let mut outputs = vec![vec![0.5; 4], vec![0.5; 4], vec![1.0; 4]];
        (outputs[2][0], outputs[1][3]) = (f32::INFINITY, f32::NAN);
        for (dwell, named) in [(1.0, "cvr"), (f32::NAN, "dwell")] {
            outputs[2][2] = dwell;
            let of = (&spec, &release);
            let whole = crate::finish::finish(of, 4, Results::Outputs(outputs.clone()), &finishing);
            let parts = [(0, 2), (2, 4)].map(|piece| part(&spec, &outputs, &finishing, piece));
            let merged = crate::finish::finish(of, 4, Results::Selected(parts.to_vec()), &finishing);
            assert_eq!(seen(&merged), seen(&whole));
            assert!(seen(&merged).unwrap_err().contains(named), "{merged:?}");
        }
    }

    #[test]
    fn parts_that_are_not_of_all_candidates_are_a_defect() {
        let [spec, ..] = specs();
        let outputs = vec![vec![0.5; 6]; 3];
        let finishing = Finishing { utility_inputs: vec![vec![0.0; 6], vec![0.0]], ..Finishing::default() };
        let said = |pieces: &[(usize, usize)]| {
            let parts = pieces.iter().map(|piece| part(&spec, &outputs, &finishing, *piece)).collect();
            finish((&spec, &Name::new("r1").unwrap()), 6, parts, &finishing)
                .map_err(|error| error.to_string())
        };
        assert!(said(&[(0, 2), (2, 6)]).is_ok());
        let expected = |found| Err(format!("the selection has {found} candidates in a row, 6 were expected"));
        assert_eq!(said(&[(0, 2), (3, 6)]), expected(2));
        assert_eq!(said(&[(0, 4), (3, 6)]), expected(4));
        assert_eq!(said(&[(0, 4)]), expected(4));
        assert_eq!(said(&[]), expected(0));
    }

    #[test]
    fn the_samples_of_a_device_are_of_the_rows_that_are_counted_here() {
        let [spec, ..] = specs();
        for rows in (1..200).chain([1_000, 4_099]) {
            let outputs = vec![(0..rows).map(|row| row as f32).collect(), vec![0.0; rows], vec![0.0; rows]];
            let finishing =
                Finishing { utility_inputs: vec![vec![0.0; rows], vec![0.0]], ..Finishing::default() };
            let whole = part(&spec, &outputs, &finishing, (0, rows));
            let expected: Vec<_> = counted(rows).map(|row| row as f32).collect();
            assert_eq!(whole.selected.samples, expected, "{rows} rows");
            assert!(samples(&[whole]).eq(expected.iter().copied()));
            // Of a request that was cut they are as many, none twice as far off as its piece's are apart.
            let pieces = (0..rows).step_by(100).map(|from| (from, (from + 100).min(rows)));
            let parts: Vec<_> = pieces.map(|piece| part(&spec, &outputs, &finishing, piece)).collect();
            let of_parts: Vec<_> = samples(&parts).collect();
            assert_eq!(of_parts.len(), expected.len(), "{rows} rows");
            assert!(of_parts.iter().zip(&expected).all(|(of, row)| (0.0..7.0).contains(&(row - of))));
        }
    }
}
