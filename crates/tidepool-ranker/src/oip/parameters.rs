//! Parameters beside the tensors: what a request says that is no feature, and what an answer says that is no score.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};
use tidepool_proto::inference::{InferParameter, infer_parameter::ParameterChoice};

use super::tensors::told;
use crate::RankError;

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
}

/// Parameters by name.
pub(super) type Named = BTreeMap<String, Value>;

/// What a request for an inference says beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) tenant: String,
    pub(super) routing_key: String,
    pub(super) surface: String,
    /// 0: the ranker's default.
    pub(super) deadline_us: u64,
    /// `None`: as the model says. 0: all, in the order of the request.
    pub(super) top_k: Option<u32>,
}

/// Those that a request may have. `binary_data_output` is HTTP's alone, and read there.
const KNOWN: &str = "tenant, routing_key, surface, deadline_us (or timeout), top_k";

impl Parameters {
    /// Reads them. Nothing that is asked for is passed over: what is not served is refused.
    pub(super) fn read(named: &Named) -> Result<Self, RankError> {
        let mut read = Self::default();
        let mut budget: Option<&str> = None;
        for (name, value) in named {
            let wrong =
                |problem: &str| Err(RankError::Invalid(format!("parameter {:?}: {problem}", told(name))));
            match (name.as_str(), value) {
                ("tenant", Value::Text(text)) => read.tenant.clone_from(text),
                ("routing_key", Value::Text(text)) => read.routing_key.clone_from(text),
                ("surface", Value::Text(text)) => read.surface.clone_from(text),
                ("tenant" | "routing_key" | "surface", _) => return wrong("a text is wanted"),
                ("deadline_us" | "timeout", value) => {
                    let Some(us) = value.whole() else {
                        return wrong("a whole number of microseconds is wanted");
                    };
                    if let Some(other) = budget {
                        return wrong(&format!("it says the same as {other:?}: one of them is wanted"));
                    }
                    (read.deadline_us, budget) = (us, Some(name.as_str()));
                }
                ("top_k", value) => match value.whole().and_then(|k| u32::try_from(k).ok()) {
                    Some(k) => read.top_k = Some(k),
                    None => return wrong("a whole number is wanted, 0 for all in the order of the request"),
                },
                ("sequence_id" | "sequence_start" | "sequence_end", _) => {
                    return wrong("sequences are not served: every request stands for itself");
                }
                ("scenario", _) => {
                    return wrong("scenarios are not served: a request of this protocol names its model");
                }
                ("priority", _) => {
                    return wrong("priorities are not served: what a tenant may ask for is its quota");
                }
                _ => return wrong(&format!("it is not known here: there are {KNOWN}")),
            }
        }
        Ok(read)
    }
}

/// Refuses what an input or an output asks for and is not served.
pub(super) fn check_of_tensor(
    what: &str,
    tensor: &str,
    named: &Named,
    known: &[&str],
) -> Result<(), RankError> {
    let Some(name) = named.keys().find(|name| !known.contains(&name.as_str())) else { return Ok(()) };
    let problem = if name.starts_with("shared_memory") {
        "shared memory is not served: elements come and go in messages"
    } else if name == "classification" {
        "classifications are not served: top_k gives the best rows"
    } else {
        "it is not known here"
    };
    let (tensor, name) = (told(tensor), told(name));
    Err(RankError::Invalid(format!("{what} {tensor:?}: parameter {name:?}: {problem}")))
}

impl Value {
    /// As a whole number from 0.
    pub(super) fn whole(&self) -> Option<u64> {
        match self {
            Self::Int(n) => u64::try_from(*n).ok(),
            Self::Uint(n) => Some(*n),
            Self::Bool(_) | Self::Double(_) | Self::Text(_) => None,
        }
    }
}

/// The parameters of a message.
pub(super) fn from_message(from: BTreeMap<String, InferParameter>) -> Result<Named, RankError> {
    let value = |(name, parameter): (String, InferParameter)| {
        let value = match parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Value::Bool(value),
            Some(ParameterChoice::Int64Param(value)) => Value::Int(value),
            Some(ParameterChoice::Uint64Param(value)) => Value::Uint(value),
            Some(ParameterChoice::DoubleParam(value)) => Value::Double(value),
            Some(ParameterChoice::StringParam(value)) => Value::Text(value),
            None => return Err(RankError::Invalid(format!("parameter {:?} has no value", told(&name)))),
        };
        Ok((name, value))
    };
    from.into_iter().map(value).collect()
}

/// The same for a message.
pub(super) fn to_message(named: Named) -> BTreeMap<String, InferParameter> {
    let parameter = |(name, value)| {
        let choice = match value {
            Value::Bool(value) => ParameterChoice::BoolParam(value),
            Value::Int(value) => ParameterChoice::Int64Param(value),
            Value::Uint(value) => ParameterChoice::Uint64Param(value),
            Value::Double(value) => ParameterChoice::DoubleParam(value),
            Value::Text(value) => ParameterChoice::StringParam(value),
        };
        (name, InferParameter { parameter_choice: Some(choice) })
    };
    named.into_iter().map(parameter).collect()
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => to.serialize_bool(*value),
            Self::Int(value) => to.serialize_i64(*value),
            Self::Uint(value) => to.serialize_u64(*value),
            Self::Double(value) => to.serialize_f64(*value),
            Self::Text(value) => to.serialize_str(value),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct One;
        impl Visitor<'_> for One {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a parameter: true or false, a number or a text")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Int(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Uint(value))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Double(value))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }
        }
        from.deserialize_any(One)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(named: &[(&str, Value)]) -> Result<Parameters, String> {
        let named = named.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Parameters::read(&named).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_known_is_read() {
        let text = |text: &str| Value::Text(text.into());
        let all = [
            ("tenant", text("ads")),
            ("routing_key", text("u-7")),
            ("surface", text("home")),
            ("timeout", Value::Int(1500)),
            ("top_k", Value::Uint(3)),
        ];
        let wanted = Parameters {
            tenant: "ads".into(),
            routing_key: "u-7".into(),
            surface: "home".into(),
            deadline_us: 1500,
            top_k: Some(3),
        };
        assert_eq!(read(&all), Ok(wanted));
        assert_eq!(read(&[]), Ok(Parameters::default()));
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let cases = [
            (vec![("sequence_id", Value::Int(1))], "sequences are not served"),
            (vec![("scenario", Value::Text("home".into()))], "scenarios are not served"),
            (vec![("priority", Value::Uint(1))], "priorities are not served"),
            (
                vec![("tenent", Value::Bool(true))],
                "parameter \"tenent\": it is not known here: there are tenant",
            ),
            (vec![("tenant", Value::Int(1))], "a text is wanted"),
            (vec![("timeout", Value::Int(-1))], "a whole number of microseconds"),
            (vec![("top_k", Value::Uint(1 << 32))], "a whole number is wanted"),
            (vec![("top_k", Value::Double(1.0))], "a whole number is wanted"),
            (vec![("timeout", Value::Int(1)), ("deadline_us", Value::Int(1))], "the same as \"deadline_us\""),
        ];
        for (named, problem) in cases {
            let found = read(&named).unwrap_err();
            assert!(found.contains(problem), "{found}");
        }
        let region = Named::from([("shared_memory_region".to_owned(), Value::Text("r".into()))]);
        let found = check_of_tensor("input", "user", &region, &["binary_data_size"]).unwrap_err().to_string();
        assert!(
            found.starts_with(
                "input \"user\": parameter \"shared_memory_region\": shared memory is not served"
            )
        );
    }

    #[test]
    fn they_are_the_same_in_messages_and_in_json() {
        let json = r#"{"a":true,"b":-1,"c":18446744073709551615,"d":0.5,"e":"x"}"#;
        let named: Named = serde_json::from_str(json).unwrap();
        assert_eq!(from_message(to_message(named.clone())).unwrap(), named);
        assert_eq!(serde_json::to_string(&named).unwrap(), json);
        for odd in [r#"{"a":[1]}"#, r#"{"a":{}}"#, r#"{"a":null}"#] {
            let error = serde_json::from_str::<Named>(odd).unwrap_err().to_string();
            assert!(error.contains("a parameter: true or false"), "{error}");
        }
        let empty = BTreeMap::from([("a".to_owned(), InferParameter::default())]);
        assert!(from_message(empty).unwrap_err().to_string().contains("\"a\" has no value"));
    }
}
