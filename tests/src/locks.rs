//! Certificates and rules of a sandbox that has locks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use tidepool_runtime::{
    certs::{self, CertsOptions},
    security::{RawAuth, RawTls},
    tls::{ClientAuth, ClientFiles, Dial},
};

/// How long certificates hold at first.
const DAYS: u64 = 30;

/// A folder of certificates and rules.
#[derive(Clone, Debug)]
pub struct Locks {
    dir: PathBuf,
}

impl Locks {
    /// Makes certificates in `dir`, and the rules that go with them.
    ///
    /// # Errors
    /// What is in the way.
    pub fn make(dir: &Path) -> Result<Self> {
        let locks = Self { dir: dir.to_owned() };
        locks.renew(Duration::from_secs(DAYS * 24 * 3600))?;
        Ok(locks)
    }

    /// Puts new certificates in the place of those there are.
    ///
    /// # Errors
    /// What is in the way.
    pub fn renew(&self, valid_for: Duration) -> Result<()> {
        let dir = self.dir.clone();
        certs::make(&CertsOptions { dir, names: Vec::new(), valid_for, force: true })?;
        Ok(())
    }

    /// A file of the folder: `node.pem`, `ca.pem`, `rules.toml`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Adds rules.
    ///
    /// # Errors
    /// What the file system says.
    pub fn add_rules(&self, text: &str) -> Result<()> {
        self.edit_rules(|rules| rules + text)
    }

    /// Puts other rules in the place of those there are.
    ///
    /// # Errors
    /// What the file system says.
    pub fn edit_rules(&self, edit: impl FnOnce(String) -> String) -> Result<()> {
        let (path, draft) = (self.file("rules.toml"), self.file("rules.draft"));
        fs::write(&draft, edit(fs::read_to_string(&path)?))?;
        Ok(fs::rename(draft, path)?)
    }

    /// The section of a role.
    #[must_use]
    pub fn tls(&self, holder: &str) -> RawTls {
        let text = |kind: &str| self.file(&format!("{holder}.{kind}")).display().to_string();
        RawTls {
            cert: text("pem"),
            key: text("key"),
            ca: self.file("ca.pem").display().to_string(),
            // Whoever has a token needs no certificate.
            client_auth: ClientAuth::Optional,
            insecure_plaintext: false,
        }
    }

    /// The section of every role.
    #[must_use]
    pub fn auth(&self) -> RawAuth {
        RawAuth { rules: self.file("rules.toml").display().to_string(), ..RawAuth::default() }
    }

    /// Connections with the certificate of `holder`; of nobody, when that is empty.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn dial(&self, holder: &str) -> Result<Dial> {
        let of = |kind: &str| self.file(&format!("{holder}.{kind}"));
        let own = (!holder.is_empty()).then(|| (of("pem"), of("key")));
        Ok(Dial::with_files(&ClientFiles { ca: self.file("ca.pem"), own })?)
    }

    /// The same with the certificate that is there whenever a connection is made.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn dial_of_now(&self, holder: &str) -> Result<Dial> {
        let of = |kind: &str| self.file(&format!("{holder}.{kind}"));
        let own = Some((of("pem"), of("key")));
        Ok(Dial::with_files_of_now(ClientFiles { ca: self.file("ca.pem"), own })?)
    }

    /// Writes nonsense into a file of the folder.
    ///
    /// # Errors
    /// What the file system says.
    pub fn damage(&self, name: &str) -> Result<()> {
        Ok(fs::write(self.file(name), "-----BEGIN NONSENSE-----\n")?)
    }
}
