//! `tidepool metastore`: copies of the durable state, putting one back, and making it anew.

use std::{
    env, fs,
    io::{self, BufRead, IsTerminal, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidepool_controller::{
    Config, RawConfig,
    maintenance::{self, Contents},
};
use tidepool_proto::v1::{self, controllers_client::ControllersClient};
use tidepool_runtime::{
    audit::{AuditLog, Change, Outcome},
    auth::Caller,
    config::load_valid,
    error::chain,
};

use super::{config::Role, control::refusal, release::state_word, role::key_value};
use crate::{
    leader,
    output::{self, Output},
    remote::Remote,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Copy the durable state of the cluster to a file. Controllers may run.
    Backup(Backup),
    /// Put the state of a backup in the place of the one that is there. No controller may run.
    Restore(Restore),
    /// Make the state anew from what nodes and rankers report to the controller, and the manifests in the store.
    Rebuild(Rebuild),
}

/// Which metastore.
#[derive(Args)]
struct Place {
    /// The controller's configuration: it says where the metastore is.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, over file and environment.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Args)]
pub(crate) struct Backup {
    /// The file, which must not be there yet.
    file: PathBuf,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub(crate) struct Restore {
    /// A file that `tidepool metastore backup` wrote.
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Number the state by this incarnation. Without it, one more than that of the backup and of what is there.
    #[arg(long, value_name = "N")]
    incarnation: Option<u32>,
    #[command(flatten)]
    sure: Sure,
}

#[derive(Args)]
pub(crate) struct Rebuild {
    #[command(flatten)]
    sure: Sure,
    /// Do it also while nodes have time to come back to a controller that has just begun to lead.
    #[arg(long)]
    force: bool,
    /// Do it only when so many nodes have come.
    #[arg(long, value_name = "N", default_value_t = 0)]
    expect_nodes: u32,
}

/// For what replaces something.
#[derive(Args)]
pub(crate) struct Sure {
    /// Only say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl Sure {
    /// Asks a person, unless `--yes` was said. Nobody to ask is a refusal.
    pub(crate) fn confirm(&self, what: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        ensure!(io::stdin().is_terminal(), "{what}: say --yes to do it, or --dry-run to see it first");
        let mut stderr = io::stderr();
        write!(stderr, "{what}. Type yes to do it: ")?;
        stderr.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        ensure!(answer.trim() == "yes", "nothing was done");
        Ok(())
    }
}

pub(crate) async fn run(command: Command, remote: &Remote, output: Output) -> Result<output::Outcome> {
    match command {
        Command::Backup(args) => backup(args, output).await?,
        Command::Restore(args) => restore(args, output).await?,
        Command::Rebuild(args) => rebuild(args, remote, output).await?,
    }
    Ok(output::Outcome::Done)
}

fn configure(place: &Place) -> Result<Config> {
    Ok(load_valid::<RawConfig, Config>(place.config.as_deref(), Role::Controller.prefix(), &place.set)?)
}

async fn backup(args: Backup, output: Output) -> Result<()> {
    let config = configure(&args.place)?;
    let (bytes, contents) = maintenance::backup(&config.metastore).await?;
    write_new(&args.file, &bytes).with_context(|| format!("writing {}", args.file.display()))?;
    output.line(format!(
        "{} has the state of {}: {}",
        args.file.display(),
        config.metastore,
        words(&contents)
    ));
    output.object(json!({
        "file": args.file,
        "metastore": config.metastore.to_string(),
        "contents": object(&contents),
    }));
    Ok(())
}

/// What has not been written down is not done.
const NOT_WRITTEN: &str =
    "nothing was changed, for it could not be written into the audit log of the controller";

/// Who runs this program: it works on the files of the cluster itself, and nobody has asked who he is.
fn operator() -> Caller {
    let uid = fs::metadata("/proc/self").map_or_else(|_| "?".to_owned(), |me| me.uid().to_string());
    let user = env::var("USER").unwrap_or_default();
    Caller::process(format!("{user} (uid {uid})").trim().to_owned())
}

/// The whole file, or none of that name.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.exists() {
        bail!("it is there already; a backup is never overwritten");
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft = tempfile::NamedTempFile::new_in(folder)?;
    draft.write_all(bytes)?;
    draft.as_file().sync_all()?;
    draft.persist_noclobber(path)?;
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

async fn restore(args: Restore, output: Output) -> Result<()> {
    let config = configure(&args.place)?;
    let bytes = fs::read(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    let of = async |dry_run| {
        maintenance::restore(&config.metastore, (&args.file, &bytes), args.incarnation, dry_run).await
    };
    let plan = of(true).await?;
    let there = match (&plan.replaced, &plan.damage) {
        (Some(replaced), _) => words(replaced),
        (None, Some(damage)) => format!("a state that cannot be read ({damage})"),
        (None, None) => "nothing".to_owned(),
    };
    output.line(format!("{} holds {there}", config.metastore));
    output.line(format!("it would be replaced by {}", words(&plan.contents)));
    let restored = if args.sure.dry_run {
        plan
    } else {
        args.sure.confirm("the state of the cluster will be replaced")?;
        let what = json!({
            "file": args.file,
            "metastore": config.metastore.to_string(),
            "epoch": plan.contents.epoch,
        });
        let epoch = plan.replaced.as_ref().map_or(0, |replaced| replaced.epoch.0);
        let change = Change { caller: operator(), action: "restore_metastore".to_owned(), what, epoch };
        let log = AuditLog::open(config.audit.clone()).context(NOT_WRITTEN)?;
        let begun = log.begin(change).await.context(NOT_WRITTEN)?;
        let restored = of(false).await;
        let problem = restored.as_ref().err().map(|error| chain(error));
        let outcome = Outcome {
            word: if restored.is_ok() { "ok" } else { "failed" },
            problem: problem.as_deref(),
            epoch: restored.as_ref().map_or(epoch, |restored| restored.contents.epoch.0),
        };
        let written = begun.end(outcome).await;
        let restored = restored?;
        written.context("the state was replaced, and that is not in the audit log")?;
        output.line("it was replaced; start the controllers");
        restored
    };
    output.object(json!({
        "metastore": config.metastore.to_string(),
        "dry_run": args.sure.dry_run,
        "contents": object(&restored.contents),
        "replaced": restored.replaced.as_ref().map(object),
        "damage": restored.damage,
    }));
    Ok(())
}

async fn rebuild(args: Rebuild, remote: &Remote, output: Output) -> Result<()> {
    let mut controllers = ControllersClient::new(leader::channel(remote).await?);
    let (force, expect_nodes) = (args.force, args.expect_nodes);
    let mut ask = async |dry_run| {
        let report = controllers.rebuild(v1::RebuildRequest { dry_run, force, expect_nodes }).await;
        report.map(tonic::Response::into_inner).map_err(|status| refusal(&status))
    };
    let mut report = ask(true).await?;
    show(&report, output);
    if !args.sure.dry_run {
        args.sure.confirm("the state of the cluster will be made anew like this")?;
        report = ask(false).await?;
        output.line(format!("done: the cluster map has epoch {}", report.epoch));
    }
    let name = |t: &v1::TableVersion| format!("{}@{}", t.table, t.version);
    let table = |t: &v1::RebuiltTable| {
        json!({
            "table": t.table_version.as_ref().map(name),
            "placed": t.placed,
            "found": t.found,
        })
    };
    let release = |r: &v1::ReleaseEntry| json!({ "model": r.model, "release": r.release, "state": state_word(r.state) });
    output.object(json!({
        "dry_run": args.sure.dry_run,
        "epoch": report.epoch,
        "nodes": report.nodes,
        "tables": report.tables.iter().map(table).collect::<Vec<_>>(),
        "releases": report.releases.iter().map(release).collect::<Vec<_>>(),
        "problems": report.problems,
        "missing_nodes": report.missing_nodes,
        "grace_left_ms": report.grace_left_ms,
    }));
    Ok(())
}

fn show(report: &v1::RebuildReport, output: Output) {
    output.line(format!("{} nodes, epoch {}", report.nodes, report.epoch));
    for table in &report.tables {
        let name =
            table.table_version.as_ref().map_or_else(String::new, |t| format!("{}@{}", t.table, t.version));
        let (found, placed) = (table.found, table.placed);
        output.line(format!("table   {name:<32} {found} of {placed} partitions are on their nodes"));
    }
    for release in &report.releases {
        let name = format!("{}@{}", release.model, release.release);
        output.line(format!("release {name:<32} {}", state_word(release.state)));
    }
    for node in &report.missing_nodes {
        output.line(format!(
            "missing node {node}: it has no session, and what only it holds is given another place"
        ));
    }
    if report.grace_left_ms > 0 {
        output.line(format!("early   nodes have {} ms more to come back", report.grace_left_ms));
    }
    for problem in &report.problems {
        output.line(format!("lost    {problem}"));
    }
}

fn words(contents: &Contents) -> String {
    let Contents { revision, epoch, nodes, tables, releases, .. } = contents;
    format!("revision {revision}, epoch {epoch}: {nodes} nodes, {tables} table versions, {releases} releases")
}

fn object(contents: &Contents) -> Value {
    json!({
        "revision": contents.revision,
        "epoch": contents.epoch,
        "incarnation": contents.epoch.incarnation(),
        "nodes": contents.nodes,
        "tables": contents.tables,
        "releases": contents.releases,
        "bytes": contents.bytes,
    })
}
