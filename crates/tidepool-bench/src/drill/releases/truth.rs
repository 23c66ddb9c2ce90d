//! What is true in a drill of releases: rows that are a function of (table, id, version), dense models that belong
//! to the rows which they were trained with, and the releases that are made of both.
//!
//! A version writes its values in a code of its own: in a half of the columns, which no other version has, they
//! are high, in the other half low. A dense model knows the codes of its versions, and of other rows it makes something
//! else: a release whose model and tables do not belong together gives scores of another distribution, as one would
//! that was put together wrongly, and no answer of it is one that any other release gives.

use tidepool_dense::GraphWriter;
use tidepool_types::{
    InputSource, InputSpec, ModelSpec, Name, OutputSpec, Pooling, RowFormat, Side, TableVersion,
};

use crate::{BenchError, draw::Random, rows::stored_row};

/// Elements of a row.
pub(super) const DIM: usize = 32;
/// How rows are stored.
pub(super) const FORMAT: RowFormat = RowFormat::Int4;
/// The model of the drills.
pub(super) const MODEL: &str = "drill";
/// Versions there can be: each has a code of its own for either table.
pub(super) const MOST_VERSIONS: u64 = 15;

/// Graph inputs and features of requests, by table.
pub(super) const FEATURES: [&str; 2] = ["user", "item"];
const TABLES: [&str; 2] = ["users", "items"];
const SCORE: &str = "score";

/// How strongly a model believes in its codes; how far its weights are from those of other models; and how much
/// it looks at user and item together.
const BELIEF: f64 = 0.1;
const SPREAD: f64 = 0.02;
const TOGETHER: f64 = 0.02;

/// One of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    /// Asked once per request.
    Users,
    /// Asked once per candidate.
    Items,
}

impl Table {
    pub(super) const ALL: [Self; 2] = [Self::Users, Self::Items];

    /// Ids that are pooled for one row of the model's input.
    pub(super) const fn bag(self) -> usize {
        match self {
            Self::Users => 4,
            Self::Items => 2,
        }
    }

    /// Its name, as that of a version of it.
    pub(super) fn version(self, version: u64) -> Result<TableVersion, BenchError> {
        let table = Name::new(TABLES[self as usize])?;
        Ok(TableVersion { table, version: Name::new(format!("rows-{version}"))? })
    }

    /// What tells rows of this table and version from all others.
    const fn seed(self, version: u64) -> u64 {
        2 * version + self as u64
    }

    /// Whether the values of a column are high in this version. Codes are Walsh functions, of which two agree in
    /// exactly a half of the columns.
    const fn is_high(self, version: u64, column: usize) -> bool {
        (self.seed(version) & column as u64).count_ones() % 2 == 1
    }
}

/// Writes the stored row of an id.
pub(super) fn row_of(table: Table, id: u64, version: u64, row: &mut [u8]) {
    stored_row(FORMAT, id, table.seed(version), row);
    for (pair, byte) in row[..DIM / 2].iter_mut().enumerate() {
        let mut high = 0;
        if table.is_high(version, 2 * pair) {
            high |= 0x08;
        }
        if table.is_high(version, 2 * pair + 1) {
            high |= 0x80;
        }
        *byte = *byte & 0x77 | high;
    }
}

/// A dense model: `sigmoid(user . a + item . b + (user * item) . c + bias)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dense {
    /// No two models have the same.
    pub(super) number: u64,
    /// The versions that it was trained with.
    pub(super) trained: [u64; 2],
}

/// The numbers of a dense model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Weights {
    /// Of the user's columns, the item's, and of both multiplied.
    pub(super) columns: [Vec<f32>; 3],
    pub(super) bias: f32,
}

impl Dense {
    /// The weights: a function of the model's number and the versions that it was trained with.
    pub(super) fn weights(self) -> Weights {
        let mut random = Random::new(self.number ^ 0x0077_6569_6768_7473);
        let mut around = |spread: f64| spread * (2.0 * random.unit() - 1.0);
        let mut of = |table: Table| {
            let belief = |column| {
                let high = table.is_high(self.trained[table as usize], column);
                if high { BELIEF } else { -BELIEF }
            };
            (0..DIM).map(|column| (belief(column) + around(SPREAD)) as f32).collect()
        };
        let columns = [of(Table::Users), of(Table::Items)];
        let both = (0..DIM).map(|_| around(TOGETHER) as f32).collect();
        let [users, items] = columns;
        // On average a high column is 8 steps above a low one, and a step is 7/128.
        let rows = (Table::Users.bag() + Table::Items.bag()) as f64;
        let bias = -(rows * BELIEF * (DIM / 2) as f64 * 8.0 * 7.0 / 128.0) as f32;
        Weights { columns: [users, items, both], bias }
    }

    /// The same as an ONNX file.
    pub(super) fn onnx(self) -> Vec<u8> {
        let Weights { columns, bias } = self.weights();
        let mut graph = GraphWriter::new("drill");
        for feature in FEATURES {
            graph.input(feature, DIM);
        }
        graph.output(SCORE, 1);
        graph.node("Mul", &FEATURES, "both");
        graph.concat(&[FEATURES[0], FEATURES[1], "both"], "x");
        graph.constant("weights", &[3 * DIM, 1], &columns.concat());
        graph.constant("bias", &[1], &[bias]);
        graph.node("Gemm", &["x", "weights", "bias"], "logit");
        graph.node("Sigmoid", &["logit"], SCORE);
        graph.into_file()
    }
}

/// The contract of the model.
pub(super) fn model_toml() -> Result<String, BenchError> {
    let sides = [Side::User, Side::Candidate];
    let mut inputs = Vec::new();
    for ((name, side), table) in FEATURES.into_iter().zip(sides).zip(TABLES) {
        let source = InputSource::Pooled { table: Name::new(table)?, pooling: Pooling::Sum };
        inputs.push(InputSpec::new(name, side, source));
    }
    let outputs = vec![OutputSpec { name: SCORE.into() }];
    Ok(ModelSpec::new(Name::new(MODEL)?, inputs, outputs).to_toml())
}

/// A release as those who check answers believe it to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Release {
    pub(super) name: Name,
    pub(super) dense: Dense,
    /// The versions of users and items that it has.
    pub(super) versions: [u64; 2],
}

impl Release {
    /// Release `number`, whose model was trained with `version` of both tables, and that has these.
    pub(super) fn whole(number: u64, version: u64) -> Result<Self, BenchError> {
        let dense = Dense { number, trained: [version; 2] };
        Ok(Self { name: Name::new(format!("r{number}"))?, dense, versions: [version; 2] })
    }

    /// Release `number`, whose model was trained with `trained` of both tables, and that has others: what comes of
    /// publishing a new model with the tables of the one before.
    pub(super) fn skewed(number: u64, trained: u64, versions: u64) -> Result<Self, BenchError> {
        let dense = Dense { number, trained: [trained; 2] };
        Ok(Self { name: Name::new(format!("r{number}-skewed"))?, dense, versions: [versions; 2] })
    }

    /// Its tables, in the order of [`Table::ALL`].
    pub(super) fn tables(&self) -> Result<[TableVersion; 2], BenchError> {
        let [users, items] = self.versions;
        Ok([Table::Users.version(users)?, Table::Items.version(items)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::decode;

    #[test]
    fn two_versions_agree_in_half_of_their_columns() {
        let codes: Vec<(Table, u64)> =
            (1..=MOST_VERSIONS).flat_map(|version| Table::ALL.map(|table| (table, version))).collect();
        for (at, (table, version)) in codes.iter().enumerate() {
            let high = (0..DIM).filter(|column| table.is_high(*version, *column)).count();
            assert_eq!(high, DIM / 2, "{table:?} {version}");
            for (other, others) in &codes[..at] {
                let same =
                    (0..DIM).filter(|c| table.is_high(*version, *c) == other.is_high(*others, *c)).count();
                assert_eq!(same, DIM / 2, "{table:?} {version} and {other:?} {others}");
            }
        }
    }

    #[test]
    fn rows_are_a_function_of_table_id_and_version_and_follow_their_code() {
        let row = |table, id, version| {
            let mut row = vec![0; FORMAT.row_bytes(DIM as u32)];
            row_of(table, id, version, &mut row);
            row
        };
        let first = row(Table::Users, 7, 1);
        assert_eq!(first, row(Table::Users, 7, 1));
        for other in [row(Table::Users, 8, 1), row(Table::Users, 7, 2), row(Table::Items, 7, 1)] {
            assert_ne!(first, other);
        }
        let mut values = vec![0.0; DIM];
        decode(FORMAT, &first, &mut values);
        let of = |high| {
            let chosen = (0..DIM).filter(move |column| Table::Users.is_high(1, *column) == high);
            chosen.map(|column| values[column])
        };
        let lowest_high = of(true).fold(f64::INFINITY, f64::min);
        assert!(of(false).all(|low| low < lowest_high), "{values:?}");
    }

    #[test]
    fn weights_differ_from_model_to_model() {
        let weights = |number, version| Dense { number, trained: [version; 2] }.weights();
        assert_eq!(weights(1, 1), weights(1, 1));
        assert_ne!(weights(1, 1), weights(2, 1));
        assert_ne!(weights(1, 1), weights(1, 2));
        let spec = ModelSpec::from_toml(&model_toml().unwrap()).unwrap();
        assert_eq!(spec.tables().count(), 2);
    }
}
