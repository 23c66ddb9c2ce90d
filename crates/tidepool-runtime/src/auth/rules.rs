//! The file of rules: tokens and names of certificates, each with its roles.

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ring::digest;
use serde::Deserialize;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use thiserror::Error;

use super::{Grant, Role};

const HASH_BYTES: usize = 32;
/// A token shorter than this can be guessed; the file has only hashes, so whoever sends one is measured.
pub(crate) const MIN_TOKEN_LEN: usize = 16;

/// What is kept of a token: its SHA-256, or nothing of one that is too short to be any.
#[derive(Clone, Copy)]
pub(super) struct Hash(Option<[u8; HASH_BYTES]>);

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(not shown)")
    }
}

pub(super) fn hash_of(token: &str) -> Hash {
    let hash = digest::digest(&digest::SHA256, token.as_bytes());
    Hash(hash.as_ref().try_into().ok().filter(|_| token.len() >= MIN_TOKEN_LEN))
}

/// Why rules cannot be used.
#[derive(Debug, Error)]
pub enum RulesError {
    /// The file could not be read.
    #[error("could not read the rules in {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not TOML, or has an unknown key.
    #[error("the rules in {path} are not accepted: line {line}: {problem}", path = path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why, without the line itself: a token may stand in it.
        problem: String,
    },
    /// Its rules contradict themselves.
    #[error("the rules in {path} are not valid: {}", problems.join("; "), path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All problems, each with the rule it is about.
        problems: Vec<String>,
    },
    /// It may be half of a file.
    #[error(
        "{path} was written in place, so nobody can tell whether it is whole: write it beside and `mv` it there, or \
         say that it is whole with SIGHUP", path = path.display()
    )]
    InPlace {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<RawToken>,
    #[serde(default)]
    certificate: Vec<RawCertificate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    name: String,
    sha256: String,
    roles: Vec<Role>,
    tenants: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCertificate {
    name: String,
    roles: Vec<Role>,
    tenants: Option<Vec<String>>,
}

/// The rules of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rules {
    tokens: Vec<TokenRule>,
    certificates: Vec<CertificateRule>,
}

#[derive(Debug, PartialEq, Eq)]
struct TokenRule {
    name: Arc<str>,
    sha256: [u8; HASH_BYTES],
    grant: Arc<Grant>,
}

#[derive(Debug, PartialEq, Eq)]
struct CertificateRule {
    /// A name, in which `*` stands for any letters but dots.
    pattern: String,
    grant: Arc<Grant>,
}

impl Rules {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, RulesError> {
        let form = |error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            RulesError::Form { path: path.to_owned(), line, problem: error.message().to_owned() }
        };
        let File { token, certificate } = toml::from_str(text).map_err(form)?;
        let mut problems = Vec::new();
        let (mut tokens, mut seen): (Vec<TokenRule>, BTreeSet<String>) = (Vec::new(), BTreeSet::new());
        for RawToken { name, sha256, roles, tenants } in token {
            let what = format!("token {name:?}");
            check(&mut problems, &what, &name, &roles, tenants.as_deref());
            if !seen.insert(name.clone()) {
                problems.push(format!("{what} stands there twice"));
            }
            let Some(sha256) = hash_of_hex(&sha256) else {
                // Not shown: someone may have put the token itself there.
                problems.push(format!("{what}: sha256 is not 64 hexadecimal digits"));
                continue;
            };
            if let Some(other) = tokens.iter().find(|rule| rule.sha256 == sha256) {
                problems.push(format!("{what}: it is the same token as that of {:?}", other.name));
            }
            tokens.push(TokenRule { name: name.into(), sha256, grant: grant(roles, tenants) });
        }
        let mut certificates: Vec<CertificateRule> = Vec::new();
        for RawCertificate { name, roles, tenants } in certificate {
            let what = format!("certificate {name:?}");
            check(&mut problems, &what, &name, &roles, tenants.as_deref());
            if certificates.iter().any(|rule| rule.pattern == name) {
                problems.push(format!("{what} stands there twice"));
            }
            certificates.push(CertificateRule { pattern: name, grant: grant(roles, tenants) });
        }
        if tokens.is_empty() && certificates.is_empty() && problems.is_empty() {
            problems.push("there is no rule in it, so nobody could do anything".to_owned());
        }
        if problems.is_empty() {
            Ok(Self { tokens, certificates })
        } else {
            Err(RulesError::Invalid { path: path.to_owned(), problems })
        }
    }

    /// Name and roles of a token. However much of it is right, it takes the same time.
    pub(super) fn by_token(&self, Hash(hash): &Hash) -> Option<(Arc<str>, Arc<Grant>)> {
        let hash = hash.as_ref()?;
        let mut found = u64::MAX;
        for (at, rule) in (0u64..).zip(&self.tokens) {
            let equal: Choice = rule.sha256.ct_eq(hash);
            found = u64::conditional_select(&found, &at, equal);
        }
        let rule = self.tokens.get(usize::try_from(found).ok()?)?;
        Some((rule.name.clone(), rule.grant.clone()))
    }

    /// Name and roles of a certificate with these DNS names: those of the first rule that one of them fits.
    pub(super) fn by_certificate(&self, names: &[String]) -> Option<(Arc<str>, Arc<Grant>)> {
        self.certificates.iter().find_map(|rule| {
            let name = names.iter().find(|name| fits(&rule.pattern, name))?;
            Some((name.as_str().into(), rule.grant.clone()))
        })
    }
}

fn grant(roles: Vec<Role>, tenants: Option<Vec<String>>) -> Arc<Grant> {
    Arc::new(Grant { roles, tenants, limit: None })
}

fn check(problems: &mut Vec<String>, what: &str, name: &str, roles: &[Role], tenants: Option<&[String]>) {
    if name.is_empty() {
        problems.push(format!("{what}: a name must be given"));
    }
    if roles.is_empty() {
        problems.push(format!("{what}: at least one role must be given"));
    }
    if let Some(tenants) = tenants {
        if !roles.contains(&Role::Tenant) {
            problems.push(format!("{what}: tenants are for the role tenant"));
        }
        if tenants.is_empty() {
            problems.push(format!("{what}: tenants: at least one; leave the key out for any"));
        }
    }
}

fn hash_of_hex(text: &str) -> Option<[u8; HASH_BYTES]> {
    let mut hash = [0; HASH_BYTES];
    if text.len() != 2 * HASH_BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(hash)
}

/// Whether `name` is as `pattern` has it, in which `*` stands for any letters but dots. Case does not matter.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern.eq_ignore_ascii_case(name) };
    let Some((head, rest)) = name.split_at_checked(before.len()) else { return false };
    if !head.eq_ignore_ascii_case(before) {
        return false;
    }
    let ends = rest.char_indices().map(|(at, c)| (at, c == '.')).chain([(rest.len(), true)]);
    for (at, last) in ends {
        if fits(after, &rest[at..]) {
            return true;
        }
        if last {
            break;
        }
    }
    false
}
