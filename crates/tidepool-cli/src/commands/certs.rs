//! `tidepool certs`: an authority and certificates for development.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use serde_json::json;
use tidepool_runtime::certs::{self, CertsOptions, Made};

use crate::output::{Outcome, Output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where they go.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Host names and addresses that the roles are reached by, beside localhost, 127.0.0.1 and ::1.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    names: Vec<String>,
    /// How long the certificates hold.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Replace certificates that are there. The authority, and rules, stay.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: Args, output: Output) -> Result<Outcome> {
    let valid_for = Duration::from_secs(24 * 3600) * args.days;
    let options = CertsOptions { dir: args.dir, names: args.names, valid_for, force: args.force };
    let Made { files, new_authority } = certs::make(&options)?;
    let dir = options.dir.display();
    for file in &files {
        output.line(file.display().to_string());
    }
    let signed = if new_authority { "by a new authority" } else { "by the authority that is there" };
    output.line(format!("signed {signed}, for {} days. In the configuration of a node:", args.days));
    output.line(format!(
        "  [tls]\n  cert = \"{dir}/node.pem\"\n  key = \"{dir}/node.key\"\n  ca = \"{dir}/ca.pem\"\n  [auth]\n  \
         rules = \"{dir}/rules.toml\""
    ));
    output.line(format!(
        "and for commands: --tls-ca {dir}/ca.pem --tls-cert {dir}/client.pem --tls-key {dir}/client.key"
    ));
    output.object(
        json!({ "dir": options.dir, "files": files, "new_authority": new_authority, "days": args.days }),
    );
    Ok(Outcome::Done)
}
