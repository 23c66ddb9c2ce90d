//! Who may do what. Whoever asks is known by a bearer token or by the certificate of its connection; a file of
//! rules gives roles to both, and a table of each server says which role a call needs.
//!
//! **Invariant:** a call that is in no table is open to nobody. Tokens are kept as their SHA-256 and never shown.

mod file;
mod gate;
mod rules;
mod standing;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use tonic::codegen::http::{Extensions, HeaderMap, header::AUTHORIZATION};

pub(crate) use self::gate::pass;
use self::{
    file::RulesFile,
    rules::{Hash, hash_of},
    standing::Passed,
};
pub use self::{
    gate::{Gate, Gated, Refused},
    rules::RulesError,
    standing::Standing,
};
use crate::{listen::Peer, tls::Reloaded};

/// What a caller may do. `docs/security.md` lists every call with the roles that open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at the cluster: map, releases, quotas, `/status`, `/metrics`.
    Read,
    /// Change what is served: publish, promote, tables. Includes `read`.
    Write,
    /// Change who may do how much, and repair the cluster. Includes `write`, `read` and `tenant`.
    Admin,
    /// Ask for vectors and for rankings, for all tenants or for those that the rule names.
    Tenant,
    /// Take part in the cluster as an embedding node.
    Node,
    /// Take part in the cluster as a ranker.
    Ranker,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 6] = [Self::Read, Self::Write, Self::Admin, Self::Tenant, Self::Node, Self::Ranker];

    /// As rules and refusals name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
            Self::Tenant => "tenant",
            Self::Node => "node",
            Self::Ranker => "ranker",
        }
    }

    /// Whether who has this role may do what needs `needed`.
    const fn includes(self, needed: Self) -> bool {
        match (self, needed) {
            (Self::Admin, Self::Read | Self::Write | Self::Tenant) | (Self::Write, Self::Read) => true,
            _ => self as u8 == needed as u8,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which roles open a call: one of these is enough. None at all: whoever connects.
pub type Needs = &'static [Role];

/// The calls of a server by path, each with what it needs. In a path `{name}` stands for any one piece between slashes.
pub type Table = &'static [(&'static str, Needs)];

/// How a caller is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownBy {
    /// By a bearer token.
    Token,
    /// By the certificate of its connection.
    Certificate,
    /// It is this process, or a program that works on the files of the cluster itself.
    Process,
    /// Not at all.
    Nothing,
}

/// Who asks, as far as that is known. It stands in the extensions of a request that has passed a [`Gate`].
#[derive(Clone, Debug)]
pub struct Caller {
    /// The name of its rule, or of its certificate; `anonymous` when neither is there.
    pub name: Arc<str>,
    /// How that is known.
    pub by: KnownBy,
    /// Where it comes from; `None` within a process.
    pub from: Option<std::net::SocketAddr>,
    grant: Arc<Grant>,
    /// By what it has passed a gate where rules may change; `None` where what it may do stays.
    passed: Option<Passed>,
}

/// What a caller may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Grant {
    roles: Vec<Role>,
    /// Tenants in whose name it may ask; `None`: any.
    tenants: Option<Vec<String>>,
    /// Why it may not do more, where it could do nothing about that by saying who it is.
    limit: Option<&'static str>,
}

/// Where nobody is known, changes are made on the machine itself.
const REMOTE: &str = "nobody is known here, so it is taken from this machine only: ask on it, lock the doors \
                      (docs/security.md), or set auth.insecure_remote_changes = true";

impl Caller {
    /// The caller of a request that has passed a gate; otherwise nobody, who may do nothing.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_else(|| Self::nobody("nobody"))
    }

    /// This process, or a program that works on the files of the cluster itself: it asks nobody.
    #[must_use]
    pub fn process(name: impl Into<Arc<str>>) -> Self {
        Self::with_all(name, KnownBy::Process, None)
    }

    pub(crate) fn nobody(name: &str) -> Self {
        Self::with_none(name, KnownBy::Nothing, None)
    }

    fn with_all(name: impl Into<Arc<str>>, by: KnownBy, peer: Option<&Peer>) -> Self {
        let grant = Arc::new(Grant { roles: Role::ALL.to_vec(), ..Grant::default() });
        Self { name: name.into(), by, from: peer.map(|p| p.address), grant, passed: None }
    }

    fn with_none(name: impl Into<Arc<str>>, by: KnownBy, peer: Option<&Peer>) -> Self {
        Self { name: name.into(), by, from: peer.map(|p| p.address), grant: Arc::default(), passed: None }
    }

    /// Whoever connects from another machine where nobody is known: all but changes, and what tells of all tenants.
    fn from_elsewhere(peer: &Peer) -> Self {
        let roles = Role::ALL.into_iter().filter(|role| ![Role::Write, Role::Admin].contains(role)).collect();
        let grant = Arc::new(Grant { roles, tenants: None, limit: Some(REMOTE) });
        Self { grant, ..Self::with_none("anonymous", KnownBy::Nothing, Some(peer)) }
    }

    /// Whether it may do what needs one of `needs`.
    #[must_use]
    pub fn may(&self, needs: &[Role]) -> bool {
        needs.is_empty() || self.grant.roles.iter().any(|has| needs.iter().any(|need| has.includes(*need)))
    }

    /// Whether it may ask in the name of `tenant`.
    #[must_use]
    pub fn may_ask_for(&self, tenant: &str) -> bool {
        let is_own =
            self.grant.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|own| own == tenant));
        // An administrator is bound by no rule for tenants.
        (is_own && self.may(&[Role::Tenant])) || self.grant.roles.contains(&Role::Admin)
    }

    /// Refuses it unless it may do what needs one of `needs`; `call` is what it wants.
    ///
    /// # Errors
    /// [`Refusal`] names the roles that would do.
    pub fn check(&self, call: &str, needs: &[Role]) -> Result<(), Refusal> {
        if self.may(needs) {
            return Ok(());
        }
        let list = |roles: &[Role], joint: &str| {
            roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(joint)
        };
        let needed = list(needs, " or ");
        if let Some(limit) = self.grant.limit {
            let message = format!("{call} needs the role {needed}, and {limit}");
            return Err(Refusal { known: false, message });
        }
        if self.by == KnownBy::Nothing {
            let message = format!(
                "{call} needs the role {needed}, and nobody is named: send a bearer token, or connect with a \
                 certificate"
            );
            return Err(Refusal { known: false, message });
        }
        let has = match &*self.grant.roles {
            [] => "no role".to_owned(),
            roles => format!("only {}", list(roles, ", ")),
        };
        let message = format!("{call} needs the role {needed}; {} has {has}", self.name);
        Err(Refusal { known: true, message })
    }
}

/// Why a call is refused before it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whether it is known who asks: then it is forbidden (HTTP 403), otherwise not authenticated (401).
    pub known: bool,
    /// What is missing, without any secret.
    pub message: String,
}

/// Who is let in by what. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access(Arc<Policy>);

#[derive(Debug)]
enum Policy {
    /// Whoever connects may do anything; from other machines only when that is `remote`.
    Open { remote: bool },
    /// Whoever shows a certificate may do anything.
    Certified,
    /// As the file of rules says.
    Rules(RulesFile),
}

impl Access {
    /// Whoever connects may do anything: from other machines everything but changes, unless `remote_changes`.
    #[must_use]
    pub fn open(remote_changes: bool) -> Self {
        Self(Arc::new(Policy::Open { remote: remote_changes }))
    }

    /// Whoever connects with a certificate may do anything.
    #[must_use]
    pub fn certified() -> Self {
        Self(Arc::new(Policy::Certified))
    }

    /// By the rules in a file.
    ///
    /// # Errors
    /// [`RulesError`] names the file and the rule.
    pub fn by_rules(path: PathBuf) -> Result<Self, RulesError> {
        Ok(Self(Arc::new(Policy::Rules(RulesFile::open(path)?))))
    }

    /// Looks at the file of rules again. What is refused leaves those there are. Where nobody has `told` that the
    /// file is whole, it must look so.
    #[must_use]
    pub fn reload(&self, told: bool) -> Reloaded {
        let Policy::Rules(file) = &*self.0 else { return Reloaded::Unchanged };
        file.look(told)
    }

    /// Why the rules as they are written now are not used, if so.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let Policy::Rules(file) = &*self.0 else { return None };
        file.problem()
    }

    /// Whether nothing is asked of whoever connects.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(*self.0, Policy::Open { .. })
    }

    /// Whether anything is asked of callers beyond their connection.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        matches!(*self.0, Policy::Rules(_))
    }

    /// Who asks, by what came with the request.
    ///
    /// # Errors
    /// [`Refusal`]: a token that no rule knows. It is not passed over in favour of the certificate, or a mistyped
    /// one would seem to work.
    pub fn caller(&self, peer: Option<&Peer>, headers: &HeaderMap) -> Result<Caller, Refusal> {
        Ok(self.caller_and_shown(peer, headers)?.0)
    }

    /// The same, and what it was known by.
    fn caller_and_shown(&self, peer: Option<&Peer>, headers: &HeaderMap) -> Result<(Caller, Shown), Refusal> {
        let names = peer.and_then(|peer| peer.certificate.clone());
        let mut authorizations = headers.get_all(AUTHORIZATION).iter();
        let shown = match (authorizations.next(), names) {
            (Some(authorization), _) if self.has_rules() => {
                if authorizations.next().is_some() {
                    return Err(unknown("there is more than one authorization"));
                }
                let token = authorization
                    .to_str()
                    .ok()
                    .and_then(|text| text.split_once(' '))
                    .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
                    .map(|(_, token)| token.trim())
                    .ok_or_else(|| unknown("the authorization is not `Bearer TOKEN`"))?;
                Shown::Token(hash_of(token))
            }
            (_, Some(names)) => Shown::Certificate(names),
            (_, None) => Shown::Nothing,
        };
        Ok((self.by_shown(peer, &shown)?, shown))
    }

    /// Who has shown this.
    fn by_shown(&self, peer: Option<&Peer>, shown: &Shown) -> Result<Caller, Refusal> {
        let own_name = |names: &[String]| names.first().map_or("unnamed", String::as_str).to_owned();
        let known =
            |(name, grant), by| Caller { name, by, from: peer.map(|p| p.address), grant, passed: None };
        Ok(match (&*self.0, shown) {
            (Policy::Rules(file), Shown::Token(hash)) => {
                let rule = file.rules().by_token(hash);
                let rule = rule.ok_or_else(|| unknown("the bearer token is not one that is known here"))?;
                known(rule, KnownBy::Token)
            }
            (Policy::Rules(file), Shown::Certificate(names)) => match file.rules().by_certificate(names) {
                Some(rule) => known(rule, KnownBy::Certificate),
                None => Caller::with_none(own_name(names), KnownBy::Certificate, peer),
            },
            (Policy::Open { .. } | Policy::Certified, Shown::Certificate(names)) => {
                Caller::with_all(own_name(names), KnownBy::Certificate, peer)
            }
            (Policy::Open { remote }, _) => match peer.filter(is_elsewhere) {
                Some(peer) if !remote => Caller::from_elsewhere(peer),
                _ => Caller::with_all("anonymous", KnownBy::Nothing, peer),
            },
            (Policy::Certified | Policy::Rules(_), _) => {
                Caller::with_none("anonymous", KnownBy::Nothing, peer)
            }
        })
    }
}

/// What a caller is known by.
#[derive(Clone, Debug)]
enum Shown {
    /// A token, of which only this is kept.
    Token(Hash),
    /// The DNS names of a certificate.
    Certificate(Arc<[String]>),
    Nothing,
}

fn unknown(problem: &str) -> Refusal {
    Refusal { known: false, message: problem.to_owned() }
}

fn is_elsewhere(peer: &&Peer) -> bool {
    !peer.address.ip().to_canonical().is_loopback()
}
