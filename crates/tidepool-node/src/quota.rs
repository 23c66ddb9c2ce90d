//! What tenants may ask of this node: rules of the controller, counted here, so that no lookup asks anybody.
//!
//! A tenant with a rule of its own has buckets of its own. All others share a fixed number of buckets under the
//! default rule, each tenant always the same by the hash of its name: names that nobody has heard of take no
//! memory, and one of them that asks too much is in the way of few.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tidepool_cluster::{Quota, Quotas};
use tidepool_types::Name;

use crate::{
    error::{LookupError, Problem},
    rate::{Bucket, Empty, Rate},
};

/// How long a tenant that has rested may exceed its quota.
const BURST: Duration = Duration::from_secs(1);

/// Places that the tenants without a rule of their own share.
const SHARED: usize = 1024;

/// The rules in force. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct TenantQuotas {
    rules: Arc<ArcSwap<Rules>>,
    started: Instant,
}

#[derive(Debug, Default)]
struct Rules {
    tenants: HashMap<Name, Arc<Account>>,
    /// Under the default rule, if there is one.
    others: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    quota: Quota,
    accounts: Vec<Arc<Account>>,
    /// Seeded anew with each rule, so that tenants who meet here do not meet everywhere and for ever.
    hasher: RandomState,
}

/// What one tenant has used of its quota.
#[derive(Debug)]
struct Account {
    quota: Quota,
    rows: Option<Bucket>,
    bytes: Option<Bucket>,
    /// Lookups turned away.
    refused: AtomicU64,
}

/// A lookup that was let in on somebody's account.
#[derive(Debug)]
pub(crate) struct Charged {
    account: Option<Arc<Account>>,
    rows: u64,
}

impl Account {
    fn new(quota: Quota) -> Arc<Self> {
        let bucket =
            |limit: Option<u64>| limit.map(|per_second| Bucket::new(Rate { per_second, burst: BURST }));
        let (rows, bytes) = (bucket(quota.rows_per_second), bucket(quota.bytes_per_second));
        Arc::new(Self { quota, rows, bytes, refused: AtomicU64::new(0) })
    }

    /// Lets a lookup in that asks for so many rows, or says what there is too much of.
    fn take(&self, rows: u64, now: Duration) -> Result<(), (&'static str, u64, Empty)> {
        // How many bytes it will be is not known yet: while there is a byte left it may go on.
        if let Some(bytes) = &self.bytes {
            bytes.take(0, now).map_err(|empty| ("bytes", bytes.rate().per_second, empty))?;
        }
        if let Some(bucket) = &self.rows {
            bucket.take(rows, now).map_err(|empty| ("rows", bucket.rate().per_second, empty))?;
        }
        Ok(())
    }
}

impl Rules {
    fn account(&self, tenant: &str) -> Option<&Arc<Account>> {
        if let Some(account) = self.tenants.get(tenant) {
            return Some(account);
        }
        let others = self.others.as_ref()?;
        let at = others.hasher.hash_one(tenant) % others.accounts.len() as u64;
        others.accounts.get(at as usize)
    }
}

impl TenantQuotas {
    /// No rules yet.
    pub(crate) fn new() -> Self {
        Self { rules: Arc::default(), started: Instant::now() }
    }

    /// Puts new rules in force. What was used under a rule that stays stays used.
    pub(crate) fn apply(&self, quotas: &Quotas) {
        let old = self.rules.load();
        let account = |(tenant, quota): (&Name, &Quota)| {
            let kept = old.tenants.get(tenant).filter(|account| account.quota == *quota).cloned();
            (tenant.clone(), kept.unwrap_or_else(|| Account::new(*quota)))
        };
        let others = quotas.default.map(|quota| {
            let kept = old.others.as_ref().filter(|others| others.quota == quota).cloned();
            kept.unwrap_or_else(|| {
                let accounts = (0..SHARED).map(|_| Account::new(quota)).collect();
                Arc::new(Shared { quota, accounts, hasher: RandomState::new() })
            })
        });
        self.rules.store(Arc::new(Rules { tenants: quotas.tenants.iter().map(account).collect(), others }));
    }

    /// Lets a tenant's lookup in, at so many rows.
    ///
    /// # Errors
    /// [`LookupError::Tenant`] for a name that is none, [`LookupError::Quota`] when the quota is used up.
    pub(crate) fn charge(&self, tenant: &str, rows: u64) -> Result<Charged, LookupError> {
        self.charge_at(tenant, rows, self.started.elapsed())
    }

    fn charge_at(&self, tenant: &str, rows: u64, now: Duration) -> Result<Charged, LookupError> {
        let rules = self.rules.load();
        // Only names have rules, so one that has is a name.
        if !tenant.is_empty() && !rules.tenants.contains_key(tenant) {
            Name::new(tenant).map_err(|error| LookupError::Tenant(Problem::name("tenant", error)))?;
        }
        let Some(account) = rules.account(tenant) else { return Ok(Charged { account: None, rows }) };
        account.take(rows, now).map_err(|(unit, limit, Empty { wait })| {
            account.refused.fetch_add(1, Ordering::Relaxed);
            LookupError::Quota { tenant: tenant.to_owned(), limit, unit, wait_ms: millis(wait) }
        })?;
        Ok(Charged { account: Some(account.clone()), rows })
    }

    /// Counts the bytes of an answer.
    pub(crate) fn answered(&self, charged: &Charged, bytes: u64) {
        self.answered_at(charged, bytes, self.started.elapsed());
    }

    fn answered_at(&self, charged: &Charged, bytes: u64, now: Duration) {
        if let Some(bucket) = charged.account.as_ref().and_then(|account| account.bytes.as_ref()) {
            bucket.charge(bytes, now);
        }
    }

    /// For `/status`: the rules, and how many lookups each has turned away.
    pub(crate) fn status(&self) -> Value {
        let rules = self.rules.load();
        let rule = |tenant: Option<&Name>, quota: &Quota, refused: u64| {
            json!({
                "tenant": tenant,
                "rows_per_second": quota.rows_per_second,
                "bytes_per_second": quota.bytes_per_second,
                "refused": refused,
            })
        };
        let refused = |account: &Arc<Account>| account.refused.load(Ordering::Relaxed);
        let others = rules.others.as_ref();
        let others = others.map(|o| rule(None, &o.quota, o.accounts.iter().map(refused).sum()));
        let mut tenants: Vec<_> = rules.tenants.iter().collect();
        tenants.sort_unstable_by_key(|(tenant, _)| *tenant);
        let tenants = tenants.into_iter().map(|(t, account)| rule(Some(t), &account.quota, refused(account)));
        others.into_iter().chain(tenants).collect()
    }
}

impl Charged {
    /// Gives the rows back of a lookup that was turned away for another reason.
    pub(crate) fn put_back(self) {
        if let Some(rows) = self.account.as_ref().and_then(|account| account.rows.as_ref()) {
            rows.put_back(self.rows);
        }
    }
}

/// Never less than what it takes.
fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tidepool_types::ErrorCode;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rows(rows: u64) -> Quota {
        Quota { rows_per_second: Some(rows), bytes_per_second: None }
    }

    fn quotas(default: Option<Quota>, tenants: &[(&str, Quota)]) -> Quotas {
        let tenants = tenants.iter().map(|(tenant, quota)| (Name::new(*tenant).unwrap(), *quota));
        Quotas { default, tenants: tenants.collect() }
    }

    /// How many lookups of ten rows are let in, of a thousand.
    fn let_in(quotas: &TenantQuotas, tenant: &str, now: Duration) -> usize {
        (0..1000).filter(|_| quotas.charge_at(tenant, 10, now).is_ok()).count()
    }

    #[test]
    fn the_offender_is_turned_away_and_others_are_not() {
        let all = TenantQuotas::new();
        assert_eq!(let_in(&all, "ads", SECOND), 1000, "without rules there are no limits");
        all.apply(&quotas(None, &[("ads", rows(100)), ("feed", rows(100))]));
        assert_eq!(let_in(&all, "ads", SECOND), 10);
        let error = all.charge_at("ads", 10, SECOND).unwrap_err();
        assert_eq!(error.code(), ErrorCode::QuotaExceeded);
        assert!(!error.code().retry_elsewhere());
        let text = error.to_string();
        assert!(
            text.contains("ads") && text.contains("100 rows per second") && text.contains("1 ms"),
            "{text}"
        );
        assert_eq!((let_in(&all, "feed", SECOND), let_in(&all, "other", SECOND)), (10, 1000));
        assert_eq!(let_in(&all, "ads", SECOND * 2), 10, "it is filled again");
        assert_eq!(all.status()[0]["refused"], 990 + 1 + 990);
    }

    #[test]
    fn tenants_without_a_rule_go_by_the_default_one_each_for_itself() {
        let all = TenantQuotas::new();
        all.apply(&quotas(Some(rows(100)), &[("ads", rows(50))]));
        assert_eq!((let_in(&all, "ads", SECOND), let_in(&all, "", SECOND)), (5, 10));
        // Of a hundred tenants a few meet in one place; most do not.
        let alone = (0..100).filter(|n| let_in(&all, &format!("t{n}"), SECOND) == 10).count();
        assert!(alone > 50, "{alone}");
        // However many there are, no more is kept, and no more than so many accounts are used.
        let used: usize = (0..10_000).map(|n| let_in_few(&all, &format!("u{n}"))).sum();
        assert!(used <= 10 * SHARED, "{used}");
    }

    fn let_in_few(quotas: &TenantQuotas, tenant: &str) -> usize {
        (0..2).filter(|_| quotas.charge_at(tenant, 10, SECOND).is_ok()).count()
    }

    #[test]
    fn bytes_are_counted_when_they_are_known() {
        let all = TenantQuotas::new();
        all.apply(&quotas(None, &[("ads", Quota { rows_per_second: None, bytes_per_second: Some(1000) })]));
        let charged = all.charge_at("ads", 1, SECOND).unwrap();
        all.answered_at(&charged, 3000, SECOND);
        let text = all.charge_at("ads", 1, SECOND).unwrap_err().to_string();
        assert!(text.contains("1000 bytes per second"), "{text}");
        assert!(all.charge_at("ads", 1, SECOND * 2).is_err());
        assert!(all.charge_at("ads", 1, SECOND * 4).is_ok());
    }

    #[test]
    fn what_was_turned_away_for_another_reason_is_not_charged() {
        let all = TenantQuotas::new();
        all.apply(&quotas(None, &[("ads", rows(100))]));
        (0..100).for_each(|_| all.charge_at("ads", 10, SECOND).unwrap().put_back());
        assert_eq!(let_in(&all, "ads", SECOND), 10);
    }

    #[test]
    fn rules_that_stay_keep_what_was_used() {
        let all = TenantQuotas::new();
        all.apply(&quotas(Some(rows(100)), &[("ads", rows(100)), ("feed", rows(100))]));
        for tenant in ["ads", "feed", "other"] {
            assert_eq!(let_in(&all, tenant, SECOND), 10);
        }
        all.apply(&quotas(Some(rows(100)), &[("ads", rows(100)), ("feed", rows(200))]));
        let now = ["ads", "feed", "other"].map(|tenant| let_in(&all, tenant, SECOND));
        assert_eq!(now, [0, 20, 0], "only the new rule begins anew");
        all.apply(&quotas(None, &[]));
        assert_eq!(let_in(&all, "ads", SECOND), 1000);
    }

    #[test]
    fn a_tenant_that_is_no_name_is_refused_in_few_words() {
        let all = TenantQuotas::new();
        for bad in ["../up", "a b", &"x".repeat(1 << 20)] {
            let error = all.charge_at(bad, 1, SECOND).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidRequest);
            assert!(error.to_string().starts_with("tenant") && error.to_string().len() < 300, "{error}");
        }
    }
}
