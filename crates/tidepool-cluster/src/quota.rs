//! What tenants may ask of each node. The controller holds the rules, each node counts on its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidepool_types::Name;

use crate::error::StepError;

/// What a tenant may ask of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Rows (ids, or members of bags where they are more, bags and features) per second; `None` for no limit.
    pub rows_per_second: Option<u64>,
    /// Bytes of rows and sums in answers, per second; `None` for no limit.
    pub bytes_per_second: Option<u64>,
}

/// The rules of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// For each tenant without a rule of its own, those included that give no name; `None` for no limit.
    pub default: Option<Quota>,
    /// Rules by tenant.
    pub tenants: BTreeMap<Name, Quota>,
}

impl Quotas {
    /// Tenants with a rule of their own, at most: every node gets all of them.
    pub const MAX_TENANTS: usize = 10_000;

    /// The rule of a tenant, or the default one.
    #[must_use]
    pub fn rule(&self, tenant: Option<&Name>) -> Option<Quota> {
        tenant.map_or(self.default, |tenant| self.tenants.get(tenant).copied())
    }

    /// Gives a tenant, or all without a rule, a rule in place of the one before.
    pub(crate) fn set(&mut self, tenant: Option<Name>, quota: Quota) -> Result<(), StepError> {
        let limits = [quota.rows_per_second, quota.bytes_per_second];
        if limits == [None; 2] || limits.contains(&Some(0)) {
            return Err(StepError::NoQuota);
        }
        match tenant {
            None => self.default = Some(quota),
            Some(tenant) => {
                if self.tenants.len() >= Self::MAX_TENANTS && !self.tenants.contains_key(&tenant) {
                    return Err(StepError::TooManyQuotas);
                }
                self.tenants.insert(tenant, quota);
            }
        }
        Ok(())
    }

    /// Takes a rule away.
    pub(crate) fn remove(&mut self, tenant: Option<&Name>) -> Result<(), StepError> {
        let removed = match tenant {
            None => self.default.take(),
            Some(tenant) => self.tenants.remove(tenant),
        };
        let what = || tenant.map_or("default quota".into(), |tenant| format!("quota of tenant {tenant}"));
        removed.map(drop).ok_or_else(|| StepError::NotFound { what: what() })
    }
}
