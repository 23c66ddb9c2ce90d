//! A reference model as it is served: tables by id, and the part of the tape that the graph is made of.

use std::collections::BTreeMap;

use ndarray::{Array2, s};
use tidepool_store::ArtifactStore;
use tidepool_types::{
    Golden, GoldenScore, InputSource, InputSpec, ModelSpec, Name, OutputSpec, ReleaseManifest, RowFormat,
    Score, Side, Utility,
};

use super::features::Feature;
use crate::{
    data::{Dataset, Event},
    error::TrainError,
    export::{self, ExportOptions},
    model::{Lookup, TrainedTable},
    tape::{Tape, Value},
};

/// Probabilities of a click, and of a conversion given one, whose utility is frozen: usual ones, rare ones and the ends.
const GOLDEN_PROBABILITIES: [[f32; 2]; 5] =
    [[0.5, 0.25], [0.031, 0.87], [1e-6, 3e-5], [1.0, 0.999], [0.4, 0.0]];
/// Events that are predicted together.
const CHUNK: usize = 1024;

/// One input of the graph.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) feature: Feature,
    /// The place of its table; none of a number.
    pub(super) table: Option<usize>,
}

/// Tables and dense model.
#[derive(Clone, Debug)]
pub struct ReferenceModel {
    /// Every table that it looks up, with all rows.
    pub tables: Vec<TrainedTable>,
    pub(super) inputs: Vec<Served>,
    pub(super) tape: Tape,
    pub(super) outputs: Vec<Value>,
    pub(super) output_names: Vec<&'static str>,
    pub(super) title: &'static str,
    pub(super) per_request: bool,
}

impl ReferenceModel {
    /// The contract of this model, called `model`. Candidates are ranked by the probability of a click, or, where there
    /// is a head for it, of a click that converts.
    ///
    /// # Errors
    /// [`TrainError::Name`] when a table's name is not a name and [`TrainError::Utility`] when the formula is none; those
    /// that training gives are.
    pub fn spec(&self, model: Name) -> Result<ModelSpec, TrainError> {
        let widths = self.tape.inputs().map(|(_, width)| width as u32);
        let inputs = self.inputs.iter().zip(widths).map(|(input, width)| {
            let source = match input.table {
                None => InputSource::Dense { width },
                Some(table) => InputSource::Pooled {
                    table: Name::new(self.tables[table].name.as_str())?,
                    pooling: input.feature.pooling(),
                },
            };
            Ok(InputSpec::new(input.feature.name(), input.feature.side(), source))
        });
        let outputs = self.output_names.iter().map(|&name| OutputSpec { name: name.into() }).collect();
        let spec = ModelSpec::new(model, inputs.collect::<Result<_, TrainError>>()?, outputs);
        if self.output_names.len() < 2 {
            return Ok(spec);
        }
        let utility = Some(Utility::parse(&self.output_names.join(" * "))?);
        Ok(ModelSpec { score: Score::Utility, utility, ..spec })
    }

    /// What candidates with these probabilities are ranked by, by training's own arithmetic; none where the contract has no
    /// formula. (Nor has it transforms: features are ids of the tables, and numbers as they are.)
    #[must_use]
    pub fn golden(&self) -> Option<Golden> {
        if self.output_names.len() < 2 {
            return None;
        }
        let score = |probabilities: &[f32; 2]| {
            let of_outputs = self.output_names.iter().zip(probabilities);
            GoldenScore {
                surface: String::new(),
                outputs: of_outputs.map(|(name, p)| ((*name).to_owned(), f64::from(*p))).collect(),
                inputs: BTreeMap::new(),
                score: Some(probabilities.iter().map(|p| f64::from(*p)).product()),
            }
        };
        let scores = GOLDEN_PROBABILITIES.iter().map(score).collect();
        Some(Golden { schema_version: Golden::SCHEMA_VERSION, inputs: BTreeMap::new(), scores })
    }

    /// The model whose graph is given the user's features once per request, and works out once what depends on them
    /// alone. Its contract and its scores are the same.
    #[must_use]
    pub fn per_request(self) -> Self {
        Self { per_request: true, ..self }
    }

    /// The dense model as the bytes of an ONNX file: graph inputs `[batch, width]` by the names in `model.toml`, outputs
    /// `[batch, 1]`. Of a [`ReferenceModel::per_request`] model, inputs of the user are `[requests, width]`, and the input
    /// `request_index` says whose request each candidate is of.
    #[must_use]
    pub fn onnx(&self) -> Vec<u8> {
        let of_user = self.inputs.iter().filter(|input| input.feature.side() == Side::User);
        let names: Vec<&str> =
            of_user.filter(|_| self.per_request).map(|input| input.feature.name()).collect();
        self.tape.onnx(self.title, &self.outputs, &names)
    }

    /// Numbers in the dense model that are trained; rows of tables are not among them.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.tape.parameters()
    }

    /// The names of the outputs, in their order.
    #[must_use]
    pub fn output_names(&self) -> &[&'static str] {
        &self.output_names
    }

    /// The model whose rows went through `format` and back; default rows are not quantized, they travel as f32.
    ///
    /// # Errors
    /// [`TrainError::Quantize`] names the row that the format cannot hold.
    pub fn stored_as(&self, format: RowFormat) -> Result<Self, TrainError> {
        let tables = self.tables.iter().map(|table| table.stored_as(format)).collect::<Result<_, _>>()?;
        Ok(Self { tables, ..self.clone() })
    }

    /// What each output says of each event: `[events]` per output. Rows are pooled as serving pools them.
    #[must_use]
    pub fn predict(&self, data: &Dataset, events: &[Event]) -> Vec<Vec<f32>> {
        let mut all = vec![Vec::with_capacity(events.len()); self.outputs.len()];
        for inputs in self.graph_inputs(data, events) {
            let pass = self.tape.forward(inputs, None);
            for (values, &output) in all.iter_mut().zip(&self.outputs) {
                values.extend(pass.value(output).column(0));
            }
        }
        all
    }

    /// The graph's inputs for these events, `[events, width]` each in the order of the contract, some events at a time.
    pub(super) fn graph_inputs(
        &self,
        data: &Dataset,
        events: &[Event],
    ) -> impl Iterator<Item = Vec<Array2<f32>>> {
        let lookups: Vec<Lookup<'_>> = self.tables.iter().map(Lookup::new).collect();
        let widths: Vec<usize> = self.tape.inputs().map(|(_, width)| width).collect();
        events.chunks(CHUNK).map(move |chunk| {
            let of_input = |(input, &width): (&Served, &usize)| {
                let mut values = Array2::zeros((chunk.len(), width));
                for (mut row, event) in values.rows_mut().into_iter().zip(chunk) {
                    match input.table {
                        None => row[0] = input.feature.number(data, event),
                        Some(table) => lookups[table].pool(
                            input.feature.ids(data, event).into_iter(),
                            input.feature.pooling(),
                            row.slice_mut(s![..]),
                        ),
                    }
                }
                values
            };
            self.inputs.iter().zip(&widths).map(of_input).collect()
        })
    }

    /// Writes a version of each table, then `model.toml`, `model.onnx`, `golden.json` if there is one, and `release.json`.
    ///
    /// # Errors
    /// As [`export_release`](crate::export_release).
    pub fn export(
        &self,
        store: &ArtifactStore,
        options: &ExportOptions,
    ) -> Result<ReleaseManifest, TrainError> {
        let (spec, golden) = (self.spec(options.model.clone())?, self.golden());
        export::write(store, &self.tables, &spec, (&self.onnx(), golden.as_ref()), options)
    }
}
