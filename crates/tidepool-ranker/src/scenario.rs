//! Scenarios: names under which requests ask for whichever model the ranker's configuration says. Which release of it
//! answers is decided as for any other request.

use std::collections::BTreeMap;

use tidepool_types::Name;

use crate::RankError;

/// Letters of an unknown scenario that a refusal repeats.
const MAX_TOLD_CHARS: usize = 64;
/// Scenarios that a refusal lists.
const MAX_LISTED: usize = 32;

/// The model of each scenario.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scenarios(BTreeMap<String, Name>);

impl Scenarios {
    /// As configured.
    pub(crate) const fn new(models: BTreeMap<String, Name>) -> Self {
        Self(models)
    }

    /// Puts the model of `scenario` into `model`. A request that names no scenario has its model already.
    ///
    /// # Errors
    /// [`RankError::UnknownScenario`] lists what there is; [`RankError::Invalid`] when a request names both.
    pub(crate) fn resolve(&self, scenario: &str, model: &mut String) -> Result<(), RankError> {
        if scenario.is_empty() {
            return Ok(());
        }
        if !model.is_empty() {
            return Err(RankError::Invalid("a request names its model or a scenario, and not both".into()));
        }
        let found = self.0.get(scenario).ok_or_else(|| RankError::UnknownScenario {
            scenario: scenario.chars().take(MAX_TOLD_CHARS).collect(),
            known: self.0.keys().take(MAX_LISTED).cloned().collect(),
        })?;
        *model = found.to_string();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidepool_types::ErrorCode;

    use super::*;

    #[test]
    fn a_scenario_stands_for_a_model_and_an_unknown_one_is_told_what_there_is() {
        let models = [("homefeed", "ads-ctr"), ("related", "ads-ctr"), ("search", "ads-search")];
        let models = models.map(|(scenario, model)| (scenario.to_owned(), Name::new(model).unwrap()));
        let scenarios = Scenarios::new(models.into());
        let resolve = |scenario: &str, model: &str| {
            let mut model = model.to_owned();
            scenarios.resolve(scenario, &mut model).map(|()| model)
        };
        assert_eq!(resolve("homefeed", "").unwrap(), "ads-ctr");
        assert_eq!(resolve("", "m").unwrap(), "m");
        assert_eq!(resolve("", "").unwrap(), "", "that there is no such model is said where models are");
        let unknown = resolve("home", "").unwrap_err();
        assert_eq!(unknown.code(), ErrorCode::NotFound);
        assert_eq!(unknown.to_string(), "there is no scenario \"home\", there are homefeed, related, search");
        assert_eq!(resolve("homefeed", "m").unwrap_err().code(), ErrorCode::InvalidRequest);
        let none = Scenarios::default().resolve(&"x".repeat(1 << 20), &mut String::new()).unwrap_err();
        assert!(none.to_string().ends_with("there are none") && none.to_string().len() < 200, "{none}");
    }
}
