//! Who may do what. Whoever asks is known by a bearer token or by the certificate of its connection; a file of
//! rules gives roles to both, and a table of each server says which role a call needs.
//!
//! **Invariant:** a call that is in no table is open to nobody. Tokens are kept as their SHA-256 and never shown.

mod gate;
mod rules;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tonic::codegen::http::{Extensions, HeaderMap, header::AUTHORIZATION};

pub(crate) use self::gate::pass;
use self::rules::Rules;
pub use self::{
    gate::{Gate, Gated, Refused},
    rules::RulesError,
};
use crate::{error::chain, listen::Peer, tls::Reloaded};

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

/// The calls of a server by path, each with what it needs.
pub type Table = &'static [(&'static str, Needs)];

/// How a caller is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownBy {
    /// By a bearer token.
    Token,
    /// By the certificate of its connection.
    Certificate,
    /// Not at all.
    Nothing,
}

/// Who asks, as far as that is known. It stands in the extensions of a request that has passed a [`Gate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name of its rule, or of its certificate; `anonymous` when neither is there.
    pub name: Arc<str>,
    /// How that is known.
    pub by: KnownBy,
    /// Where it comes from; `None` within a process.
    pub from: Option<std::net::SocketAddr>,
    grant: Arc<Grant>,
}

/// What a caller may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Grant {
    roles: Vec<Role>,
    /// Tenants in whose name it may ask; `None`: any.
    tenants: Option<Vec<String>>,
}

impl Caller {
    /// The caller of a request that has passed a gate; whoever is in this process otherwise, who may do anything.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_else(|| Self::with_all("in-process", KnownBy::Nothing, None))
    }

    fn with_all(name: impl Into<Arc<str>>, by: KnownBy, peer: Option<&Peer>) -> Self {
        let grant = Arc::new(Grant { roles: Role::ALL.to_vec(), tenants: None });
        Self { name: name.into(), by, from: peer.map(|p| p.address), grant }
    }

    fn with_none(name: impl Into<Arc<str>>, by: KnownBy, peer: Option<&Peer>) -> Self {
        Self { name: name.into(), by, from: peer.map(|p| p.address), grant: Arc::default() }
    }

    /// Whether it may do what needs one of `needs`.
    #[must_use]
    pub fn may(&self, needs: Needs) -> bool {
        needs.is_empty() || self.grant.roles.iter().any(|has| needs.iter().any(|need| has.includes(*need)))
    }

    /// Whether it may ask in the name of `tenant`.
    #[must_use]
    pub fn may_ask_for(&self, tenant: &str) -> bool {
        // An administrator is bound by no rule for tenants.
        self.grant.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|own| own == tenant))
            || self.grant.roles.contains(&Role::Admin)
    }

    /// Refuses it unless it may do what needs one of `needs`; `call` is what it wants.
    ///
    /// # Errors
    /// [`Refusal`] names the roles that would do.
    pub fn check(&self, call: &str, needs: Needs) -> Result<(), Refusal> {
        if self.may(needs) {
            return Ok(());
        }
        let list = |roles: &[Role], joint: &str| {
            roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(joint)
        };
        let needed = list(needs, " or ");
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
    /// Whoever connects may do anything.
    Open,
    /// Whoever shows a certificate may do anything.
    Certified,
    /// As the file of rules says.
    Rules {
        path: PathBuf,
        rules: ArcSwap<Rules>,
        /// Why the file as it is now is not used.
        problem: Mutex<Option<String>>,
    },
}

impl Access {
    /// Whoever connects may do anything.
    #[must_use]
    pub fn open() -> Self {
        Self(Arc::new(Policy::Open))
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
        let rules = ArcSwap::from_pointee(Rules::read(&path)?);
        Ok(Self(Arc::new(Policy::Rules { path, rules, problem: Mutex::default() })))
    }

    /// Reads the rules again. What is refused leaves those there are.
    pub fn reload(&self) -> Reloaded {
        let Policy::Rules { path, rules, problem } = &*self.0 else { return Reloaded::Unchanged };
        let read = Rules::read(path);
        let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(read) => {
                *problem = None;
                if **rules.load() == read {
                    return Reloaded::Unchanged;
                }
                rules.store(Arc::new(read));
                Reloaded::New
            }
            Err(error) => {
                let text = chain(&error);
                if problem.as_ref() == Some(&text) {
                    return Reloaded::Unchanged;
                }
                *problem = Some(text.clone());
                Reloaded::Refused(text)
            }
        }
    }

    /// Why the rules as they are written now are not used, if so.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let Policy::Rules { problem, .. } = &*self.0 else { return None };
        problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether whoever connects may do anything.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(*self.0, Policy::Open)
    }

    /// Whether anything is asked of callers beyond their connection.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        matches!(*self.0, Policy::Rules { .. })
    }

    /// Who asks, by what came with the request.
    ///
    /// # Errors
    /// [`Refusal`]: a token that no rule knows. It is not passed over in favour of the certificate, or a mistyped
    /// one would seem to work.
    pub fn caller(&self, peer: Option<&Peer>, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let shown = peer.and_then(|peer| peer.certificate.as_deref());
        let own_name = |names: &[String]| names.first().map_or("unnamed", String::as_str).to_owned();
        match &*self.0 {
            Policy::Open => Ok(match shown {
                Some(names) => Caller::with_all(own_name(names), KnownBy::Certificate, peer),
                None => Caller::with_all("anonymous", KnownBy::Nothing, peer),
            }),
            Policy::Certified => Ok(match shown {
                Some(names) => Caller::with_all(own_name(names), KnownBy::Certificate, peer),
                None => Caller::with_none("anonymous", KnownBy::Nothing, peer),
            }),
            Policy::Rules { rules, .. } => {
                let rules = rules.load();
                let from = peer.map(|p| p.address);
                if let Some(authorization) = headers.get(AUTHORIZATION) {
                    let refused = |problem: &str| Refusal { known: false, message: problem.to_owned() };
                    let token = authorization
                        .to_str()
                        .ok()
                        .and_then(|text| text.split_once(' '))
                        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
                        .map(|(_, token)| token.trim())
                        .ok_or_else(|| refused("the authorization is not `Bearer TOKEN`"))?;
                    let (name, grant) = rules
                        .by_token(token)
                        .ok_or_else(|| refused("the bearer token is not one that is known here"))?;
                    return Ok(Caller { name, by: KnownBy::Token, from, grant });
                }
                Ok(match shown {
                    Some(names) => match rules.by_certificate(names) {
                        Some((name, grant)) => Caller { name, by: KnownBy::Certificate, from, grant },
                        None => Caller::with_none(own_name(names), KnownBy::Certificate, peer),
                    },
                    None => Caller::with_none("anonymous", KnownBy::Nothing, peer),
                })
            }
        }
    }
}
