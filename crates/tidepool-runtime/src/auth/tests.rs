//! Who is let in, by rules, tokens and certificates.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tonic::codegen::http::HeaderValue;

use super::{rules::Rules, *};

const TOKEN: &str = "correct horse battery staple";
/// printf %s 'correct horse battery staple' | sha256sum
const HASH: &str = "c4bbcb1fbec99d65bf59d85c8cb62ee2db963f0fe106f483d9afa73bd4e39a8a";

fn rules() -> String {
    format!(
        r#"
[[token]]
name = "alice"
sha256 = "{HASH}"
roles = ["write"]

[[token]]
name = "ads"
sha256 = "{}"
roles = ["tenant"]
tenants = ["ads", "ads-shadow"]

[[certificate]]
name = "node-*.nodes.example"
roles = ["node"]

[[certificate]]
name = "ranker"
roles = ["ranker", "tenant"]
"#,
        hash("a token of the ads team")
    )
}

fn hash(token: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn access(text: &str) -> Access {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.toml");
    fs::write(&path, text).unwrap();
    Access::by_rules(path).unwrap()
}

fn peer(names: &[&str]) -> Peer {
    let certificate = (!names.is_empty()).then(|| names.iter().map(|n| (*n).to_owned()).collect());
    Peer { address: "127.0.0.1:9".parse().unwrap(), certificate }
}

fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    headers
}

#[test]
fn a_token_decides_and_one_that_is_not_known_is_refused_whatever_the_certificate() {
    let access = access(&rules());
    let ranker = peer(&["ranker"]);
    let alice = access.caller(Some(&ranker), &bearer(TOKEN)).unwrap();
    assert_eq!((&*alice.name, alice.by), ("alice", KnownBy::Token));
    assert!(
        alice.may(&[Role::Write]) && alice.may(&[Role::Read]) && !alice.may(&[Role::Ranker, Role::Admin])
    );
    for wrong in ["correct horse battery stapl", "correct horse battery staple ", "", HASH] {
        let headers = bearer(wrong);
        let refusal = match access.caller(Some(&ranker), &headers) {
            // Spaces around a token are no part of it.
            Ok(caller) => {
                assert_eq!((&*caller.name, wrong.trim()), ("alice", TOKEN));
                continue;
            }
            Err(refusal) => refusal,
        };
        assert!(!refusal.known, "{wrong:?}");
        assert!(wrong.is_empty() || !refusal.message.contains(wrong), "{}", refusal.message);
    }
    let mut basic = HeaderMap::new();
    basic.insert(AUTHORIZATION, HeaderValue::from_static("Basic c2VjcmV0"));
    let refusal = access.caller(Some(&ranker), &basic).unwrap_err();
    assert_eq!(refusal.message, "the authorization is not `Bearer TOKEN`");
}

#[test]
fn certificates_have_the_roles_of_the_first_rule_that_a_name_of_theirs_fits() {
    let access = access(&rules());
    let node = access.caller(Some(&peer(&["localhost", "node-7.nodes.example"])), &HeaderMap::new()).unwrap();
    assert_eq!((&*node.name, node.by), ("node-7.nodes.example", KnownBy::Certificate));
    assert!(node.may(&[Role::Node]) && !node.may(&[Role::Tenant]));
    for strange in
        ["node-7.evil.nodes.example", "node-7.nodes.example.evil", "xnode-7.nodes.example", "node-"]
    {
        let stranger = access.caller(Some(&peer(&[strange])), &HeaderMap::new()).unwrap();
        assert!(Role::ALL.iter().all(|role| !stranger.grant.roles.contains(role)), "{strange}");
        let refusal = stranger.check("GetCluster", &[Role::Read]).unwrap_err();
        assert!(refusal.known);
        assert_eq!(refusal.message, format!("GetCluster needs the role read; {strange} has no role"));
    }
}

#[test]
fn a_refusal_names_the_role_that_is_missing() {
    let access = access(&rules());
    let alice = access.caller(None, &bearer(TOKEN)).unwrap();
    let refusal = alice.check("/x/SetQuota", &[Role::Admin]).unwrap_err();
    assert!(refusal.known);
    assert_eq!(refusal.message, "/x/SetQuota needs the role admin; alice has only write");
    let nobody = access.caller(Some(&peer(&[])), &HeaderMap::new()).unwrap();
    let refusal = nobody.check("/x/WatchMap", &[Role::Read, Role::Tenant]).unwrap_err();
    assert!(!refusal.known);
    assert!(refusal.message.starts_with("/x/WatchMap needs the role read or tenant, and nobody is named"));
    assert!(nobody.may(&[]), "what needs nothing is open");
}

#[test]
fn a_rule_binds_its_tenants_and_admin_is_bound_by_none() {
    let access = access(&rules());
    let ads = access.caller(None, &bearer("a token of the ads team")).unwrap();
    assert!(ads.may_ask_for("ads") && ads.may_ask_for("ads-shadow") && !ads.may_ask_for("search"));
    let ranker = access.caller(Some(&peer(&["ranker"])), &HeaderMap::new()).unwrap();
    assert!(ranker.may_ask_for("anyone"));
}

#[test]
fn roles_include_what_their_names_promise_and_no_more() {
    let included: &[(Role, &[Role])] = &[
        (Role::Read, &[Role::Read]),
        (Role::Write, &[Role::Write, Role::Read]),
        (Role::Admin, &[Role::Admin, Role::Write, Role::Read, Role::Tenant]),
        (Role::Tenant, &[Role::Tenant]),
        (Role::Node, &[Role::Node]),
        (Role::Ranker, &[Role::Ranker]),
    ];
    for (role, expected) in included {
        for other in Role::ALL {
            assert_eq!(role.includes(other), expected.contains(&other), "{role} and {other}");
        }
    }
    assert_eq!(included.len(), Role::ALL.len());
}

#[test]
fn without_rules_a_connection_or_a_certificate_is_enough() {
    let (named, nobody) = (peer(&["node-1"]), peer(&[]));
    for caller in [
        Access::open(false).caller(Some(&nobody), &HeaderMap::new()),
        Access::certified().caller(Some(&named), &HeaderMap::new()),
    ] {
        assert!(Role::ALL.iter().all(|role| caller.as_ref().unwrap().grant.roles.contains(role)));
    }
    let nobody = Access::certified().caller(Some(&nobody), &HeaderMap::new()).unwrap();
    assert!(!nobody.may(&[Role::Read]) && nobody.may(&[]));
}

#[test]
fn all_mistakes_in_rules_are_told_at_once_and_no_token_among_them() {
    let text = format!(
        r#"
[[token]]
name = "a"
sha256 = "the token itself"
roles = []

[[token]]
name = "a"
sha256 = "{HASH}"
roles = ["read"]
tenants = ["x"]

[[token]]
name = "b"
sha256 = "{HASH}"
roles = ["tenant"]
tenants = []

[[certificate]]
name = ""
roles = ["node"]
"#
    );
    let RulesError::Invalid { problems, .. } = Rules::parse(Path::new("rules.toml"), &text).unwrap_err()
    else {
        panic!("it is TOML")
    };
    let expected = [
        "token \"a\": at least one role",
        "token \"a\": sha256 is not 64",
        "token \"a\": tenants are for the role tenant",
        "token \"a\" stands there twice",
        "token \"b\": tenants: at least one",
        "token \"b\": it is the same token as that of \"a\"",
        "certificate \"\": a name must be given",
    ];
    let all = problems.join("\n");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem:?} is not {expected:?}");
    }
    assert_eq!(problems.len(), expected.len(), "{all}");
    assert!(!all.contains("the token itself"));
    for bad in ["[[token]]\nname = 1", "[[tokens]]\n", "[[certificate]]\nname = \"x\"\nroles = [\"root\"]"] {
        let error = Rules::parse(Path::new("rules.toml"), bad).unwrap_err();
        assert!(matches!(error, RulesError::Form { .. }), "{error:?}");
    }
    // Whoever mistakes a key puts the token itself there: what is said of it goes to logs and to the status.
    for bad in [
        "# rules\n[[token]]\ntoken = \"the token itself\"\n",
        "[[token]]\nname = \"a\"\nsha256 = \"the token itself",
    ] {
        let error = Rules::parse(Path::new("rules.toml"), bad).unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
        assert!(!format!("{error:?} {error}").contains("the token itself"), "{error:?}");
    }
}

/// Puts a file in the place of another, as `mv` does.
fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).unwrap();
    fs::rename(draft, path).unwrap();
}

/// A folder with rules, and who is let in by them.
fn watched() -> (tempfile::TempDir, PathBuf, Access) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.toml");
    fs::write(&path, rules()).unwrap();
    let access = Access::by_rules(path.clone()).unwrap();
    (folder, path, access)
}

const OTHER: &str = "[[certificate]]\nname = \"x\"\nroles = [\"read\"]\n";

#[test]
fn rules_are_read_again_and_bad_ones_leave_those_there_are() {
    let (_folder, path, access) = watched();
    assert_eq!(access.reload(false), Reloaded::Unchanged);
    for (bad, why) in [("[[token]]\n", "missing field"), ("", "no rule in it")] {
        replace(&path, bad);
        assert_eq!(access.reload(false), Reloaded::Unchanged, "it may be half of a file");
        let Reloaded::Refused(problem) = access.reload(false) else { panic!("{bad:?} is no file of rules") };
        assert!(problem.contains("rules.toml") && problem.contains(why), "{problem}");
        assert_eq!(access.reload(false), Reloaded::Unchanged, "once is enough");
        assert_eq!(access.problem(), Some(problem));
        assert!(access.caller(None, &bearer(TOKEN)).is_ok());
    }
    replace(&path, OTHER);
    assert_eq!(access.reload(false), Reloaded::Unchanged);
    assert!(access.caller(None, &bearer(TOKEN)).is_ok(), "after one look nothing is different");
    assert_eq!(access.reload(false), Reloaded::New);
    assert_eq!(access.problem(), None);
    assert!(access.caller(None, &bearer(TOKEN)).is_err());
    fs::write(&path, "").unwrap();
    assert!(Access::by_rules(path).unwrap_err().to_string().contains("no rule in it"));
}

#[test]
fn what_was_put_there_twice_between_two_looks_is_taken() {
    let (_folder, path, access) = watched();
    // What there was is gone by the second time, and its number may be given to what comes then.
    replace(&path, &format!("{}\n# once more\n", rules()));
    replace(&path, &rules()[..rules().find("[[certificate]]").unwrap()]);
    assert_eq!(access.reload(false), Reloaded::Unchanged, "it might still grow");
    assert_eq!((access.reload(false), access.problem()), (Reloaded::New, None));
}

#[test]
fn half_of_a_file_that_would_do_is_not_taken() {
    let (_folder, path, access) = watched();
    // A copy over the file that was cut off behind the first rule.
    let half = rules()[..rules().find("[[certificate]]").unwrap()].to_owned();
    fs::write(&path, &half).unwrap();
    let Reloaded::Refused(problem) = access.reload(false) else { panic!("it was written in place") };
    assert!(problem.contains("`mv` it there") && problem.contains("SIGHUP"), "{problem}");
    assert_eq!(access.reload(false), Reloaded::Unchanged);
    let ranker = access.caller(Some(&peer(&["ranker"])), &HeaderMap::new()).unwrap();
    assert!(ranker.may(&[Role::Ranker]));
    assert_eq!(access.reload(true), Reloaded::New, "somebody says that it is whole");
    assert_eq!(access.problem(), None);
    // One that still grows is no file that was put there.
    replace(&path, &rules()[..30]);
    assert_eq!(access.reload(false), Reloaded::Unchanged);
    fs::write(&path, &rules()[..60]).unwrap();
    assert!(matches!(access.reload(false), Reloaded::Refused(_)), "it was written in place");
    replace(&path, &half);
    assert_eq!(
        (access.reload(false), access.problem()),
        (Reloaded::Unchanged, None),
        "what there was is there"
    );
}

#[tokio::test]
async fn who_is_taken_out_of_the_rules_loses_his_stream_and_who_stays_keeps_it() {
    let (_folder, path, access) = watched();
    let table: Table = &[("/x.Service/Watch", &[Role::Read])];
    let headers = bearer(TOKEN);
    let pass = || super::pass(&access, table, "/x.Service/Watch", Some(&peer(&[])), &headers).unwrap();
    let mut standing = Standing::new(pass());
    assert!(futures::poll!(Box::pin(standing.lost())).is_pending());
    replace(&path, &rules().replace("roles = [\"write\"]", "roles = [\"read\"]"));
    assert_eq!(access.reload(true), Reloaded::New);
    assert!(futures::poll!(Box::pin(standing.lost())).is_pending(), "what it does it still may");
    assert!(!standing.caller().may(&[Role::Write]), "and no more than that");
    let waiting = tokio::spawn(async move { standing.lost().await });
    replace(&path, OTHER);
    assert_eq!(access.reload(true), Reloaded::New);
    let lost = tokio::time::timeout(std::time::Duration::from_secs(30), waiting).await.unwrap().unwrap();
    assert!(lost.known && lost.message.starts_with("the rules have changed while this was open"), "{lost:?}");
    // A change between the gate and the stream is noticed too.
    replace(&path, &rules());
    assert_eq!(access.reload(true), Reloaded::New);
    let mut late = Standing::new({
        let caller = pass();
        replace(&path, OTHER);
        assert_eq!(access.reload(true), Reloaded::New);
        caller
    });
    assert!(futures::poll!(Box::pin(late.lost())).is_ready());
}

#[test]
fn a_request_that_passed_no_gate_is_nobodys() {
    let caller = Caller::of(&Extensions::new());
    assert!(Role::ALL.iter().all(|role| !caller.may(&[*role])));
    assert!(!caller.may_ask_for("ads") && !caller.may_ask_for(""));
}

#[test]
fn one_request_has_one_authorization_and_a_token_goes_before_the_certificate() {
    let access = access(&rules());
    let ranker = peer(&["ranker"]);
    let alice = access.caller(Some(&ranker), &bearer(TOKEN)).unwrap();
    assert!(!alice.may(&[Role::Ranker]) && !alice.may_ask_for("ads"), "the certificate adds nothing");
    let mut two = bearer(TOKEN);
    two.append(AUTHORIZATION, HeaderValue::from_static("Bearer another token of a length"));
    let refusal = access.caller(Some(&ranker), &two).unwrap_err();
    assert!(refusal.message.contains("more than one authorization"), "{refusal:?}");
    assert!(!format!("{alice:?}").contains(&HASH[..8]));
}

#[test]
fn without_locks_changes_are_made_on_the_machine_itself() {
    let at = |address: &str| Peer { address: address.parse().unwrap(), certificate: None };
    let caller = |access: &Access, address| access.caller(Some(&at(address)), &HeaderMap::new()).unwrap();
    let open = Access::open(false);
    for here in ["127.0.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
        assert!(caller(&open, here).may(&[Role::Admin]), "{here}");
    }
    for elsewhere in ["10.0.0.7:9", "[2001:db8::1]:9", "[::ffff:10.0.0.7]:9"] {
        let caller = caller(&open, elsewhere);
        let served = [Role::Read, Role::Tenant, Role::Node, Role::Ranker];
        assert!(served.iter().all(|role| caller.may(&[*role])) && caller.may_ask_for("ads"), "{elsewhere}");
        for changes in [Role::Write, Role::Admin] {
            let refusal = caller.check("/x/Promote", &[changes]).unwrap_err();
            assert!(refusal.message.contains("from this machine only"), "{refusal:?}");
            assert!(refusal.message.contains("auth.insecure_remote_changes"), "{refusal:?}");
        }
    }
    assert!(caller(&Access::open(true), "10.0.0.7:9").may(&[Role::Admin]));
}

#[test]
fn a_call_in_no_table_is_open_to_nobody_but_who_asks_whether_a_connection_is_there() {
    let table: Table = &[("/x.Service/Look", &[Role::Read]), ("/x.Service/Open", &[])];
    let (access, anyone) = (access(&rules()), peer(&[]));
    let alice = bearer(TOKEN);
    let passes = |access: &Access, path, headers| super::pass(access, table, path, Some(&anyone), headers);
    assert_eq!(&*passes(&access, "/x.Service/Look", &alice).unwrap().name, "alice");
    let refused = passes(&access, "/x.Service/Forgotten", &alice).unwrap_err();
    assert_eq!(refused.refusal.message, "/x.Service/Forgotten is a call that nobody may make here");
    let nobody = HeaderMap::new();
    assert!(passes(&access, "/x.Service/Open", &nobody).is_ok());
    assert!(passes(&access, "/x.Service/Look", &nobody).is_err());
    assert!(passes(&access, "/grpc.health.v1.Health/Check", &nobody).is_ok());
    // Without locks it is for the server to say that it knows no such call.
    assert!(passes(&Access::open(false), "/x.Service/Forgotten", &nobody).is_ok());
}
