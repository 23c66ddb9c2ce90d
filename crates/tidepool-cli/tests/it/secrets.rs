//! What is secret is shown nowhere: not in logs, not in answers over HTTP, not in audit logs, whoever asks and however
//! wrongly.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use tempfile::TempDir;

use crate::command::{Role, json as run, keys, node_keys, tidepool};

const TOKEN: &str = "open-sesame-open-sesame";
/// printf %s 'open-sesame-open-sesame' | sha256sum
const TOKEN_HASH: &str = "402ea51cd0fd3ab5140c27f5bdc85e0d2236a65cb62d7d2040fc8b61f124e0dd";
/// Tokens that nobody knows: a mistyped one is a secret too.
const WRONG: [&str; 3] = ["open-sesame-open-sesamee", "sesame", "another token with blanks"];

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Asks over plain HTTP/1.1; gives everything that comes.
fn http(address: &str, request: &str, token: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Runs to the end with a token; gives all that it prints.
fn command(token: &str, args: &[&str]) -> String {
    let output = tidepool().env("TIDEPOOL_TOKEN", token).arg("--json").args(args).output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn tokens_and_keys_are_in_nothing_that_anybody_reads() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    let certs = dir.path().join("certs");
    assert_eq!(run(&["certs", "--dir", &text(&certs)]).0, 0);
    let rules = fs::read_to_string(certs.join("rules.toml")).unwrap();
    let rule = format!(
        "\n[[token]]\nname = \"alice\"\nsha256 = \"{TOKEN_HASH}\"\nroles = [\"admin\", \"node\", \"ranker\"]\n"
    );
    fs::write(certs.join("rules.toml"), rules + &rule).unwrap();
    let file = |name: &str| text(&certs.join(name));
    let locks = |holder: &str| {
        vec![
            ("tls.cert", file(&format!("{holder}.pem"))),
            ("tls.key", file(&format!("{holder}.key"))),
            ("tls.ca", file("ca.pem")),
            ("tls.client_auth", "optional".to_owned()),
            ("auth.rules", file("rules.toml")),
            ("log.filter", "trace".to_owned()),
        ]
    };
    let audit = |role: &str| vec![("audit_log", text(&dir.path().join(format!("{role}-audit.log"))))];
    let controller_keys =
        [keys(dir.path(), &store, "controller"), audit("controller"), locks("controller")].concat();
    let controller = Role::start(dir.path(), "controller", &controller_keys);
    let address = controller.grpc_address.clone();
    let node_keys = [node_keys(dir.path(), &store, &[&address]), locks("node")].concat();
    let node = Role::start(dir.path(), "node", &node_keys);
    let ranker_keys = [
        keys(dir.path(), &store, "ranker"),
        vec![("ranker", "r".to_owned()), ("controllers", format!("[\"{address}\"]"))],
        audit("ranker"),
        locks("ranker"),
    ];
    let ranker = Role::start(dir.path(), "ranker", &ranker_keys.concat());
    // One that speaks plaintext and has rules: what comes to it in the clear must not be repeated either.
    let open_keys = [
        keys(dir.path(), &store, "open"),
        vec![("auth.rules", file("rules.toml")), ("log.filter", "trace".to_owned())],
    ];
    let open_dir = dir.path().join("plain");
    fs::create_dir(&open_dir).unwrap();
    let open = Role::start(&open_dir, "controller", &open_keys.concat());

    let mut shown = String::new();
    let ca = file("ca.pem");
    for token in [TOKEN].iter().chain(&WRONG) {
        for asked in [
            &["quota", "list"][..],
            &["quota", "set", "ads", "--rows-per-second", "7"],
            &["release", "list"],
            &["table", "serve", "user@v1"],
            &["lookup", "user", "42"],
            &["metastore", "rebuild", "--dry-run"],
        ] {
            let flags = ["--controller", &address, "--tls-ca", &ca];
            shown += &command(token, &[&flags, asked].concat());
        }
        let to_ranker =
            ["--controller", &address, "--tls-ca", &ca, "hot-ids", "export", "user@v1", "--ranker"];
        let out = text(&dir.path().join("hot"));
        shown += &command(token, &[&to_ranker[..], &[&ranker.http_address, "--out", &out]].concat());
        for path in ["GET /status", "GET /metrics", "POST /status", "GET /nothing"] {
            shown += &http(&open.http_address, path, token);
        }
    }
    // Where nobody is known at all, and an authorization that is none.
    shown += &http(&open.http_address, "GET /status", "");
    let asked_by_key = ["--tls-ca", &ca, "--tls-cert", &file("client.pem"), "--tls-key", &file("client.key")];
    shown +=
        &command(TOKEN, &[&["--controller", &address], &asked_by_key[..], &["release", "list"]].concat());
    // The rules with the token in the place of its hash, and a key where a certificate should be.
    let broken = fs::read_to_string(certs.join("rules.toml")).unwrap().replace(TOKEN_HASH, TOKEN);
    fs::write(certs.join("draft"), broken).unwrap();
    let checked = tidepool()
        .args(["controller", "--until-stdin-closes"])
        .args(["--set", &format!("auth.rules={}", file("draft"))])
        .args(["--set", &format!("data_dir={}", text(&dir.path().join("x")))])
        .args(["--set", &format!("store={}", text(&store))])
        .args(["--set", "grpc_address=127.0.0.1:0", "--set", "http_address=127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(!checked.status.success());
    shown += &String::from_utf8_lossy(&checked.stderr);
    assert!(shown.contains("sha256 is not 64 hexadecimal digits"), "{shown}");
    let swapped = ["--tls-ca", &ca, "--tls-cert", &file("client.key"), "--tls-key", &file("client.pem")];
    fs::set_permissions(file("client.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    shown += &command(TOKEN, &[&swapped[..], &["quota", "list"]].concat());

    for role in [node, ranker, open, controller] {
        assert_eq!(role.terminate(), 0);
    }
    assert!(shown.contains("alice") || shown.contains("\"rules\""), "somebody was let in: {shown}");
    let mut read = vec![("what was answered".to_owned(), shown)];
    let logs = ["controller.log", "node.log", "ranker.log", "plain/controller.log", "controller-audit.log"];
    for name in logs.into_iter().chain(["ranker-audit.log"]) {
        read.push((name.to_owned(), fs::read_to_string(dir.path().join(name)).unwrap()));
    }
    let of = |name: &str| &read.iter().find(|(read, _)| read == name).unwrap().1;
    assert!(of("controller-audit.log").contains("\"who\":\"alice\""), "it has been driven");
    assert!(of("controller.log").contains("TRACE") || of("controller.log").contains("DEBUG"));
    let key = |holder: &str| fs::read_to_string(file(&format!("{holder}.key"))).unwrap();
    let holders = ["ca", "controller", "node", "ranker", "client"];
    let keys = holders.iter().map(|holder| key(holder).lines().nth(1).unwrap().to_owned());
    let tokens = [TOKEN, TOKEN_HASH].into_iter().chain(WRONG).filter(|token| token.len() > 6);
    let secrets: Vec<String> = keys.chain(tokens.map(str::to_owned)).collect();
    for (name, text) in &read {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{name} has {secret}");
        }
    }
}
