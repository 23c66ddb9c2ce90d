//! Certificates for development and tests: an authority of one's own, and certificates of it for every role.
//!
//! The authority's key lies beside the others, unencrypted. That is right for a laptop and for a cluster that one
//! person runs; others have an authority already.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use thiserror::Error;

/// Whom certificates are made for: the roles, and whoever operates them.
pub const HOLDERS: [&str; 4] = ["controller", "node", "ranker", "client"];

const AUTHORITY: &str = "ca";
const AUTHORITY_DAYS: u32 = 10 * 365;
/// Clocks of other machines may be a little behind.
const BACKDATED: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The rules that go with the certificates: `[auth] rules` of every role.
const RULES: &str = r#"# Who may do what, by the first DNS name of a certificate. docs/security.md has all roles.
# A bearer token gets its roles the same way:
#   [[token]]
#   name = "alice"
#   sha256 = "<64 hexadecimal digits: printf %s "$TOKEN" | sha256sum>"
#   roles = ["admin"]

[[certificate]]
name = "controller"
roles = ["read"]

[[certificate]]
name = "node"
roles = ["node"]

[[certificate]]
name = "ranker"
roles = ["ranker", "tenant"]

[[certificate]]
name = "client"
roles = ["admin"]
"#;

/// What to make.
#[derive(Clone, Debug)]
pub struct CertsOptions {
    /// Where; it is made if it is not there.
    pub dir: PathBuf,
    /// Host names and IP addresses beside `localhost`, 127.0.0.1 and ::1 that the roles are reached by.
    pub names: Vec<String>,
    /// How long the certificates hold, from now on; those of the authority hold for ten years.
    pub valid_for: Duration,
    /// Certificates that are there are replaced. The authority never is.
    pub force: bool,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The files, in the order in which they were written.
    pub files: Vec<PathBuf>,
    /// Whether the authority is new; otherwise the one in the folder signed.
    pub new_authority: bool,
}

/// Why no certificates were made.
#[derive(Debug, Error)]
pub enum CertsError {
    /// A file could not be read or written.
    #[error("could not {did} {path}", path = path.display())]
    File {
        /// "read", "write" or "create".
        did: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Files are there already.
    #[error("{} there already; --force replaces certificates (not the authority)", list(paths))]
    Exists {
        /// Which.
        paths: Vec<PathBuf>,
    },
    /// Half of an authority.
    #[error("{there} is there and {missing} is not: put it back, or remove both for a new authority", there = there.display(), missing = missing.display())]
    HalfAuthority {
        /// The file that is there.
        there: PathBuf,
        /// The one that is not.
        missing: PathBuf,
    },
    /// A name that rules give roles to.
    #[error(
        "--names {name:?}: every certificate would have that name, and the rules give it a role: leave it out, and \
         reach the {name} by another name"
    )]
    RoleName {
        /// Which.
        name: String,
    },
    /// A certificate could not be made: of a name that is none, or of a key that is none.
    #[error("could not make {path}", path = path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
    format!("{} {}", paths.join(", "), if paths.len() == 1 { "is" } else { "are" })
}

/// Makes the authority, unless the folder has one, a certificate and a key for each of [`HOLDERS`], and rules that
/// go with them. Only the owner may read the files. Nothing is written when anything is in the way.
///
/// # Errors
/// [`CertsError`] names the file.
pub fn make(options: &CertsOptions) -> Result<Made, CertsError> {
    let CertsOptions { dir, names, valid_for, force } = options;
    // A node whose certificate is one of a "client" too would be an administrator.
    let is_role = |name: &&String| HOLDERS.iter().any(|holder| holder.eq_ignore_ascii_case(name));
    if let Some(name) = names.iter().find(is_role) {
        return Err(CertsError::RoleName { name: name.to_lowercase() });
    }
    let file = |name: &str, kind: &str| dir.join(format!("{name}.{kind}"));
    let rules = dir.join("rules.toml");
    let of_holders = HOLDERS.iter().flat_map(|h| [file(h, "pem"), file(h, "key")]);
    let there: Vec<_> = of_holders.filter(|path| path.exists()).collect();
    if !there.is_empty() && !force {
        return Err(CertsError::Exists { paths: there });
    }
    fs::create_dir_all(dir).map_err(|source| CertsError::File {
        did: "create",
        path: dir.clone(),
        source,
    })?;

    let (certificate, key) = (file(AUTHORITY, "pem"), file(AUTHORITY, "key"));
    let made = |path: &Path| {
        let path = path.to_owned();
        move |source| CertsError::Make { path, source }
    };
    let mut to_write = Vec::new();
    let authority_key = match (certificate.exists(), key.exists()) {
        (true, true) => {
            let read = |source| CertsError::File { did: "read", path: key.clone(), source };
            KeyPair::from_pem(&fs::read_to_string(&key).map_err(read)?).map_err(made(&key))?
        }
        (true, false) => return Err(CertsError::HalfAuthority { there: certificate, missing: key }),
        (false, true) => return Err(CertsError::HalfAuthority { there: key, missing: certificate }),
        (false, false) => {
            let pair = KeyPair::generate().map_err(made(&key))?;
            let signed = authority().self_signed(&pair).map_err(made(&certificate))?;
            to_write.extend([(key.clone(), pair.serialize_pem()), (certificate, signed.pem())]);
            pair
        }
    };
    let new_authority = !to_write.is_empty();
    // The authority's name and key are all that a signature needs of it, and the name is always the same.
    let issuer = Issuer::new(authority(), authority_key);
    for holder in HOLDERS {
        let (certificate, key) = (file(holder, "pem"), file(holder, "key"));
        let pair = KeyPair::generate().map_err(made(&key))?;
        let params = params(holder, names, *valid_for).map_err(made(&certificate))?;
        let signed = params.signed_by(&pair, &issuer).map_err(made(&certificate))?;
        to_write.extend([(key, pair.serialize_pem()), (certificate, signed.pem())]);
    }
    // They are for people to edit: what is there stays.
    if !rules.exists() {
        to_write.push((rules, RULES.to_owned()));
    }
    for (path, text) in &to_write {
        write(path, text).map_err(|source| CertsError::File { did: "write", path: path.clone(), source })?;
    }
    Ok(Made { files: to_write.into_iter().map(|(path, _)| path).collect(), new_authority })
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Tidepool development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + AUTHORITY_DAYS * DAY).into();
    params
}

fn params(holder: &str, names: &[String], valid_for: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut all = vec![holder.to_owned()];
    // A client is no server, and is reached by no name.
    if holder != "client" {
        all.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        all.extend(names.iter().cloned());
    }
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, holder);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match holder {
        "client" => vec![ExtendedKeyUsagePurpose::ClientAuth],
        _ => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + valid_for).into();
    Ok(params)
}

/// Writes a file that only its owner may read, whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("draft");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::tls::{ClientAuth, Tls, TlsError, TlsFiles};

    fn options(dir: &Path) -> CertsOptions {
        let names = vec!["node-1.example".to_owned(), "10.0.0.7".to_owned()];
        CertsOptions { dir: dir.to_owned(), names, valid_for: 90 * DAY, force: false }
    }

    fn files(dir: &Path, holder: &str) -> TlsFiles {
        TlsFiles {
            cert: dir.join(format!("{holder}.pem")),
            key: dir.join(format!("{holder}.key")),
            ca: Some(dir.join("ca.pem")),
            client_auth: ClientAuth::Require,
        }
    }

    #[test]
    fn a_set_is_made_that_only_its_owner_can_read_and_that_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("certs");
        let made = make(&options(&dir)).unwrap();
        assert!(made.new_authority);
        assert_eq!(made.files.len(), 2 + 2 * HOLDERS.len() + 1);
        for path in &made.files {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
        for holder in HOLDERS {
            Tls::load(files(&dir, holder)).unwrap();
        }
        let authority = fs::read(dir.join("ca.pem")).unwrap();
        let old = fs::read(dir.join("node.pem")).unwrap();
        let error = make(&options(&dir)).unwrap_err();
        assert!(matches!(&error, CertsError::Exists { paths } if paths.len() == 2 * HOLDERS.len()));
        assert!(
            error.to_string().contains("controller.pem") && error.to_string().contains("--force"),
            "{error}"
        );
        assert_eq!(fs::read(dir.join("node.pem")).unwrap(), old);

        fs::write(dir.join("rules.toml"), "# mine\n").unwrap();
        let again = make(&CertsOptions { force: true, ..options(&dir) }).unwrap();
        assert!(!again.new_authority);
        assert_eq!(fs::read(dir.join("ca.pem")).unwrap(), authority, "the authority stays");
        assert_eq!(fs::read_to_string(dir.join("rules.toml")).unwrap(), "# mine\n", "rules are for people");
        assert_ne!(fs::read(dir.join("node.pem")).unwrap(), old);
        Tls::load(files(&dir, "node")).unwrap();
    }

    #[test]
    fn a_name_that_is_a_role_is_refused_for_all_certificates_would_have_it() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["client", "Controller", "NODE", "ranker"] {
            let names = vec!["10.0.0.7".to_owned(), name.to_owned()];
            let error = make(&CertsOptions { names, ..options(folder.path()) }).unwrap_err();
            assert!(matches!(&error, CertsError::RoleName { .. }), "{error:?}");
            assert!(error.to_string().contains("the rules give it a role"), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
    }

    #[test]
    fn a_private_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        make(&options(folder.path())).unwrap();
        let key = folder.path().join("node.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Tls::load(files(folder.path(), "node")).unwrap_err().to_string();
        assert!(error.contains("node.key can be read by others (its mode is 0640)"), "{error}");
        assert!(error.contains("`chmod 600 "), "{error}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        Tls::load(files(folder.path(), "node")).unwrap();
    }

    #[test]
    fn half_an_authority_and_a_bad_name_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = make(&CertsOptions { names: vec!["ü".into()], ..options(folder.path()) }).unwrap_err();
        assert!(matches!(error, CertsError::Make { .. }), "{error:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
        make(&options(folder.path())).unwrap();
        fs::remove_file(folder.path().join("ca.key")).unwrap();
        let error = make(&CertsOptions { force: true, ..options(folder.path()) }).unwrap_err();
        assert!(error.to_string().contains("ca.key is not: put it back"), "{error}");
    }

    #[test]
    fn an_expired_certificate_is_refused_at_the_start_and_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        make(&CertsOptions { valid_for: Duration::ZERO, ..options(folder.path()) }).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        let error = Tls::load(files(folder.path(), "node")).unwrap_err();
        assert!(matches!(error, TlsError::Expired { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("node.pem expired on 20") && text.ends_with("put a new one there"), "{text}");
    }

    #[test]
    fn a_key_of_another_certificate_and_files_of_another_kind_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        make(&options(dir)).unwrap();
        let node = files(dir, "node");
        let load = |files: TlsFiles| Tls::load(files).unwrap_err();
        let error = load(TlsFiles { key: dir.join("ranker.key"), ..node.clone() });
        assert!(matches!(error, TlsError::Pair { .. }), "{error:?}");
        let error = load(TlsFiles { cert: dir.join("node.key"), ..node.clone() });
        assert!(matches!(error, TlsError::Nothing { what: "certificate", .. }), "{error:?}");
        let error = load(TlsFiles { key: dir.join("node.pem"), ..node.clone() });
        assert!(matches!(error, TlsError::Nothing { what: "private key", .. }), "{error:?}");
        let error = load(TlsFiles { ca: Some(dir.join("nowhere.pem")), ..node.clone() });
        assert!(error.to_string().ends_with("nowhere.pem"), "{error}");
        fs::write(dir.join("bad.pem"), "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n")
            .unwrap();
        let error = load(TlsFiles { cert: dir.join("bad.pem"), ..node });
        assert!(matches!(error, TlsError::Pem { .. } | TlsError::Malformed { .. }), "{error:?}");
    }
}
