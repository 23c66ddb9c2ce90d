//! `tidepool quota`: what tenants may ask of each node.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidepool_proto::v1;
use tidepool_types::Name;

use super::control::refusal;
use crate::{
    output::{Outcome, Output},
    remote::Remote,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Give a tenant a quota, in place of the one before. It holds per node: each node counts on its own.
    Set(Set),
    /// Show every quota.
    List,
    /// Take a quota away.
    Remove(Whose),
}

/// A tenant, or all without a quota of their own.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Whose {
    /// The tenant, as rankers and clients name it in their requests.
    #[arg(value_name = "TENANT")]
    tenant: Option<Name>,
    /// The quota of each tenant without one of its own, and of requests that name no tenant.
    #[arg(long)]
    default: bool,
}

#[derive(Args)]
pub(crate) struct Set {
    #[command(flatten)]
    whose: Whose,
    /// Rows per second and node: ids (or members of bags, where they are more), bags and features.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    rows_per_second: Option<u64>,
    /// Bytes of rows and sums in answers, per second and node.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    bytes_per_second: Option<u64>,
}

impl Whose {
    /// As it travels: empty stands for the default.
    fn word(&self) -> String {
        self.tenant.as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

pub(crate) async fn run(command: Command, remote: &Remote, output: Output) -> Result<Outcome> {
    let quotas = match command {
        Command::Set(set) => {
            if set.rows_per_second.is_none() && set.bytes_per_second.is_none() {
                bail!("say what to limit: --rows-per-second, --bytes-per-second or both");
            }
            let quota = v1::Quota {
                rows_per_second: set.rows_per_second.unwrap_or(0),
                bytes_per_second: set.bytes_per_second.unwrap_or(0),
            };
            let rule = v1::QuotaRule { tenant: set.whose.word(), quota: Some(quota) };
            remote.control().await?.set_quota(rule).await
        }
        Command::Remove(whose) => {
            let request = v1::RemoveQuotaRequest { tenant: whose.word() };
            remote.control().await?.remove_quota(request).await
        }
        Command::List => remote.control().await?.list_quotas(v1::ListQuotasRequest {}).await,
    };
    let rules = quotas.map_err(|status| refusal(&status))?.into_inner().rules;
    show(&rules, output);
    Ok(Outcome::Done)
}

fn show(rules: &[v1::QuotaRule], output: Output) {
    if rules.is_empty() {
        output.line("no tenant has a quota");
    } else {
        output.line(format!("{:<24} {:>16} {:>16}", "tenant", "rows/s per node", "bytes/s per node"));
    }
    let mut objects = Vec::new();
    for rule in rules {
        let quota = rule.quota.unwrap_or_default();
        let limit = |limit: u64| (limit > 0).then_some(limit);
        let (rows, bytes) = (limit(quota.rows_per_second), limit(quota.bytes_per_second));
        let word = |limit: Option<u64>| limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        let tenant = if rule.tenant.is_empty() { "(default)" } else { &rule.tenant };
        output.line(format!("{tenant:<24} {:>16} {:>16}", word(rows), word(bytes)));
        let tenant = if rule.tenant.is_empty() { Value::Null } else { json!(rule.tenant) };
        objects.push(json!({ "tenant": tenant, "rows_per_second": rows, "bytes_per_second": bytes }));
    }
    output.object(json!({ "quotas": objects }));
}
