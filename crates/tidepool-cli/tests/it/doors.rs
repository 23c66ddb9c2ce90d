//! A cluster behind locks, from the command line alone: certificates, tokens, refusals, and what stays secret.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{DEADLINE, Role, failure, json as run, keys, node_keys, tidepool};

const TOKEN: &str = "sesame-sesame-sesame-sesame";
/// printf %s 'sesame-sesame-sesame-sesame' | sha256sum
const TOKEN_HASH: &str = "4a0a5d555c709ca325187f9b4e585c02bc4edc582d21fcb7d8e250b18b0be0e6";

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A folder of certificates.
struct Certs(TempDir);

impl Certs {
    fn make() -> Self {
        let dir = TempDir::new().unwrap();
        let (code, made) = run(&["certs", "--dir", &text(&dir.path().join("certs"))]);
        assert_eq!(
            (code, &made["new_authority"], made["files"].as_array().unwrap().len()),
            (0, &json!(true), 11)
        );
        Self(dir)
    }

    fn file(&self, name: &str) -> String {
        text(&self.0.path().join("certs").join(name))
    }

    /// Keys of a role that has them all.
    fn keys(&self, holder: &str) -> Vec<(&'static str, String)> {
        vec![
            ("tls.cert", self.file(&format!("{holder}.pem"))),
            ("tls.key", self.file(&format!("{holder}.key"))),
            ("tls.ca", self.file("ca.pem")),
            ("tls.client_auth", "optional".to_owned()),
            ("auth.rules", self.file("rules.toml")),
            ("log.filter", "debug".to_owned()),
        ]
    }

    /// Flags of a command that shows the certificate of `holder`.
    fn flags(&self, holder: &str) -> Vec<String> {
        let file = |kind: &str| self.file(&format!("{holder}.{kind}"));
        let ca = self.file("ca.pem");
        ["--tls-ca", &ca, "--tls-cert", &file("pem"), "--tls-key", &file("key")].map(str::to_owned).to_vec()
    }
}

/// Runs to the end with `--json` and a token; gives the exit code, the object, and what stderr says.
fn with_token(token: &str, args: &[&str]) -> (i32, Value, String) {
    let output = tidepool().env("TIDEPOOL_TOKEN", token).arg("--json").args(args).output().unwrap();
    let object = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), object, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_locked_cluster_serves_who_may_and_no_secret_is_shown() {
    let (dir, certs) = (TempDir::new().unwrap(), Certs::make());
    let store = dir.path().join("store");
    let csv = dir.path().join("vectors.csv");
    fs::write(&csv, "id,a,b\n42,1,2\n7,3,4\n").unwrap();
    let from = ["--from", &text(&csv), "--store", &text(&store), "--partitions", "2"];
    assert_eq!(run(&[&["table", "build", "user@v1"][..], &from].concat()).0, 0);
    let rules = fs::read_to_string(certs.file("rules.toml")).unwrap();
    let rule = format!("\n[[token]]\nname = \"app\"\nsha256 = \"{TOKEN_HASH}\"\nroles = [\"tenant\"]\n");
    fs::write(certs.file("rules.toml"), rules + &rule).unwrap();

    let audit = dir.path().join("audit.log");
    let settled = [("group_settle_ms", "0".to_owned()), ("audit_log", text(&audit))];
    let controller_keys =
        [keys(dir.path(), &store, "controller"), settled.to_vec(), certs.keys("controller")];
    let controller = Role::start(dir.path(), "controller", &controller_keys.concat());
    let address = &controller.grpc_address;
    let node_keys = [node_keys(dir.path(), &store, &[address]), certs.keys("node")].concat();
    let node = Role::start(dir.path(), "node", &node_keys);

    let flags = certs.flags("client");
    let admin: Vec<&str> =
        ["--controller", address].into_iter().chain(flags.iter().map(String::as_str)).collect();
    let (code, served) = run(&[&admin[..], &["table", "serve", "user@v1"]].concat());
    assert_eq!((code, &served["serving"]), (0, &json!(true)));
    let (code, found) = run(&[&admin[..], &["lookup", "user", "42", "7"]].concat());
    assert_eq!((code, &found["rows"][0]["found"]), (0, &json!(true)));

    // By token alone.
    let ca = certs.file("ca.pem");
    let app = ["--controller", address, "--tls-ca", &ca];
    let (code, found, said) = with_token(TOKEN, &[&app[..], &["lookup", "user", "42"]].concat());
    assert_eq!((code, &found["rows"][0]["found"]), (0, &json!(true)), "{said}");
    let (code, _, said) = with_token(TOKEN, &[&app[..], &["quota", "list"]].concat());
    assert!(
        code == 1 && said.contains("forbidden: /tidepool.v1.Control/ListQuotas needs the role read"),
        "{said}"
    );
    assert!(said.contains("app has only tenant"), "{said}");
    let (code, _, said) = with_token("another token of a length", &[&app[..], &["quota", "list"]].concat());
    assert!(
        code == 1 && said.contains("unauthenticated: the bearer token is not one that is known"),
        "{said}"
    );
    assert!(!said.contains("another token"), "{said}");
    let token_file = dir.path().join("token");
    fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
    let token_file = text(&token_file);
    let by_file = [&app[..], &["--token-file", &token_file, "lookup", "user", "7"]].concat();
    let mode = |mode| fs::set_permissions(&token_file, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    let (code, said) = failure(&by_file);
    assert!(code == 1 && said.contains("can be read by others (its mode is 0644): `chmod 600 "), "{said}");
    mode(0o600);
    assert_eq!(run(&by_file).0, 0);

    // In plaintext nobody gets anywhere, and is told what may be missing.
    // How the connection ends differs from time to time.
    for _ in 0..10 {
        let (code, said) = failure(&["--controller", address, "quota", "list"]);
        assert!(code == 1 && said.contains("see --tls-ca"), "{said}");
    }
    let (code, said) = failure(&["--tls-cert", "x.pem", "quota", "list"]);
    assert!(code == 1 && said.contains("need --tls-ca"), "{said}");

    // Every change is written down, with who made it.
    let audited = fs::read_to_string(&audit).unwrap();
    let lines: Vec<Value> = audited.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["outcome"], &lines[0]["change"]), (&json!("begun"), &lines[1]["change"]));
    let line = &lines[1];
    assert_eq!(
        (&line["who"], &line["action"], &line["outcome"]),
        (&json!("client"), &json!("serve_table"), &json!("ok"))
    );
    assert_eq!(line["what"]["table_version"], json!({ "table": "user", "version": "v1" }));

    assert_eq!(node.terminate(), 0);
    assert_eq!(controller.terminate(), 0);
    let key = |holder: &str| fs::read_to_string(certs.file(&format!("{holder}.key"))).unwrap();
    let secrets: Vec<String> = [TOKEN.to_owned(), TOKEN_HASH.to_owned()]
        .into_iter()
        .chain(
            ["node", "controller", "client"]
                .iter()
                .map(|holder| key(holder).lines().nth(1).unwrap().to_owned()),
        )
        .collect();
    for role in ["controller", "node"] {
        let log = fs::read_to_string(dir.path().join(format!("{role}.log"))).unwrap();
        assert!(log.contains("DEBUG"), "the log of the {role} has everything");
        for secret in &secrets {
            assert!(!log.contains(secret), "the log of the {role} has {secret}");
        }
    }
    assert!(secrets.iter().all(|secret| !audited.contains(secret)));
}

#[test]
fn a_bench_goes_through_the_doors_of_a_cluster_that_runs() {
    let (dir, certs) = (TempDir::new().unwrap(), Certs::make());
    let store = dir.path().join("store");
    let table = ["bench", "table", "--dir", &text(&store), "--rows", "1000", "--partitions", "2"];
    let (code, built) = run(&table);
    assert_eq!(code, 0, "{built}");
    let [name, version] = ["table", "version"].map(|key| built["table_version"][key].as_str().unwrap());
    let table = &format!("{name}@{version}");
    let controller_keys = [
        keys(dir.path(), &store, "controller"),
        vec![("group_settle_ms", "0".to_owned())],
        certs.keys("controller"),
    ];
    let controller = Role::start(dir.path(), "controller", &controller_keys.concat());
    let address = &controller.grpc_address;
    let node_keys = [node_keys(dir.path(), &store, &[address]), certs.keys("node")].concat();
    let _node = Role::start(dir.path(), "node", &node_keys);
    let flags = certs.flags("client");
    let admin: Vec<&str> =
        ["--controller", address].into_iter().chain(flags.iter().map(String::as_str)).collect();
    assert_eq!(run(&[&admin[..], &["table", "serve", table]].concat()).0, 0);
    let bench =
        ["bench", "lookup", "--seconds", "0.3", "--rate", "50", "--batch", "10", "--dir", &text(&store)];
    let (code, benched) = run(&[&admin[..], &bench].concat());
    assert_eq!((code, &benched["wrong_answers"], &benched["failed_requests"]), (0, &json!(0), &json!(0)));
    assert!(benched["checked_answers"].as_u64().unwrap() > 0, "{benched}");
    // Without what opens the doors it ends.
    let (code, _) = failure(&[&["--controller", address][..], &bench].concat());
    assert_eq!(code, 1);
}

#[test]
fn no_role_listens_for_other_machines_where_anyone_may_change_anything() {
    let dir = TempDir::new().unwrap();
    let check = |role: &str, text: &str| {
        let config = dir.path().join(format!("{role}.toml"));
        fs::write(&config, text).unwrap();
        let output = tidepool().args(["config", "check", config.to_str().unwrap()]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let roles = [
        ("controller", "advertise_address = \"c:1\"\n"),
        (
            "node",
            "node = \"a-1\"\ngroup = \"a\"\nadvertise_address = \"n:1\"\nadvertise_http_address = \"n:2\"\n",
        ),
        ("ranker", "ranker = \"r\"\nadvertise_address = \"r:1\"\nadvertise_http_address = \"r:2\"\n"),
    ];
    for (role, base) in roles {
        assert!(check(role, base).0, "{role} on loopback: {}", check(role, base).1);
        for key in ["grpc_address", "http_address"] {
            let open = format!("{key} = \"0.0.0.0:7777\"\n{base}");
            let (ok, said) = check(role, &open);
            assert!(!ok && said.contains(&format!("{key}: 0.0.0.0:7777 can be reached")), "{role}: {said}");
            // TLS alone tells nobody who asks.
            let anyone = "[tls]\ncert = \"c\"\nkey = \"k\"\nca = \"a\"\nclient_auth = \"optional\"\n";
            let (ok, said) = check(role, &(open.clone() + anyone));
            assert!(!ok && said.contains("whoever connects may do anything"), "{role}: {said}");
            let (ok, said) = check(role, &(open + anyone + "[auth]\nrules = \"r\"\n"));
            assert!(ok, "{role}: {said}");
        }
        let both = format!("{base}[auth]\nrules = \"r\"\ninsecure_remote_changes = true\n");
        assert!(check(role, &both).1.contains("auth.insecure_remote_changes"), "{role}");
    }
}

#[test]
fn plaintext_stays_on_this_machine_unless_it_is_told_not_to() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("controller.toml");
    let check = |text: &str| {
        fs::write(&config, text).unwrap();
        tidepool().args(["config", "check", config.to_str().unwrap()]).output().unwrap()
    };
    let refused = check("grpc_address = \"0.0.0.0:7400\"\nadvertise_address = \"c:7400\"\n");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(said.contains("grpc_address: 0.0.0.0:7400 can be reached from other machines"), "{said}");
    assert!(said.contains("tls.insecure_plaintext = true") && said.contains("tidepool certs"), "{said}");
    let told =
        "grpc_address = \"0.0.0.0:7400\"\nadvertise_address = \"c:7400\"\n[tls]\ninsecure_plaintext = true\n";
    assert!(check(told).status.success());
    let half = check("[tls]\ncert = \"x.pem\"\n");
    assert!(String::from_utf8(half.stderr).unwrap().contains("tls.cert and tls.key: both or neither"));
}

#[test]
fn an_expired_certificate_ends_a_start_with_one_clear_line() {
    let (dir, certs) = (TempDir::new().unwrap(), Certs::make());
    fs::create_dir_all(dir.path().join("store")).unwrap();
    let again = failure(&["certs", "--dir", &text(&certs.0.path().join("certs"))]);
    assert!(again.0 == 1 && again.1.contains("--force"), "{again:?}");
    // `certs` makes none that has expired; the library does.
    let options = tidepool_runtime::certs::CertsOptions {
        dir: certs.0.path().join("certs"),
        names: Vec::new(),
        valid_for: Duration::ZERO,
        force: true,
    };
    tidepool_runtime::certs::make(&options).unwrap();
    let keys = [keys(dir.path(), &dir.path().join("store"), "controller"), certs.keys("controller")].concat();
    let until = Instant::now() + DEADLINE;
    loop {
        let mut command = tidepool();
        command.arg("controller");
        for (key, value) in &keys {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        // It must not go on running when the moment has not passed yet.
        let output = command
            .args([
                "--until-stdin-closes",
                "--set",
                "grpc_address=127.0.0.1:0",
                "--set",
                "http_address=127.0.0.1:0",
            ])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        if said.contains("error:") {
            assert_eq!(output.status.code(), Some(1));
            assert!(
                said.contains("controller.pem expired on 20") && said.contains("put a new one there"),
                "{said}"
            );
            return;
        }
        assert!(Instant::now() < until, "{said}");
    }
}
