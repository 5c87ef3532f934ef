//! Where is the index that replicas share?

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::units::Time;
use super::{ConfigError, invalid, set};

/// `[index.valkey]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct ValkeyTable {
    urls: Option<Vec<String>>,
    single: Option<bool>,
    namespace: Option<String>,
    answer: Option<bool>,
    ttl: Option<Time>,
    lease: Option<Time>,
    timeout: Option<Time>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// The index on Valkey, checked; what is secret is still in its files.
#[derive(Clone, Debug)]
pub struct Valkey {
    /// Whether questions are answered from there; else it is only written.
    pub answer: bool,
    /// Everything but what is in files.
    servers: kvindex_valkey::Config,
    password: Option<PathBuf>,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

impl Valkey {
    /// With what the files have.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn load(&self) -> anyhow::Result<kvindex_valkey::Config> {
        let password = self.password.as_deref().map(std::fs::read_to_string);
        let mut servers = self.servers.clone();
        servers.password = match (password, &self.password) {
            (Some(read), Some(path)) => Some(named(path, read)?.trim_end_matches(['\r', '\n']).to_owned()),
            _ => None,
        };
        servers.ca = self.ca.as_deref().map(read).transpose()?;
        servers.identity =
            self.identity.as_ref().map(|(c, k)| anyhow::Ok((read(c)?, read(k)?))).transpose()?;
        Ok(servers)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    named(path, std::fs::read(path))
}

fn named<T>(path: &Path, read: std::io::Result<T>) -> anyhow::Result<T> {
    read.map_err(|e| anyhow::anyhow!("read {}: {e}", path.display()))
}

impl ValkeyTable {
    /// For the test of the example file.
    #[cfg(test)]
    pub(super) fn names_every_key(&self) -> bool {
        let ValkeyTable {
            urls: Some(_),
            single: Some(_),
            namespace: Some(_),
            answer: Some(_),
            ttl: Some(_),
            lease: Some(_),
            timeout: Some(_),
            username: Some(_),
            password_file: Some(_),
            ca: Some(_),
            certificate: Some(_),
            key: Some(_),
        } = self
        else {
            return false;
        };
        true
    }

    /// `None` where no servers are named.
    pub(super) fn check(
        self,
        max_blocks: usize,
        max_speculative: usize,
    ) -> Result<Option<Valkey>, ConfigError> {
        let ValkeyTable {
            urls,
            single,
            namespace,
            answer,
            ttl,
            lease,
            timeout,
            username,
            password_file,
            ca,
            certificate,
            key,
        } = self;
        let urls: Vec<String> = urls.unwrap_or_default();
        if urls.is_empty() {
            return Ok(None);
        }
        for url in &urls {
            let known = ["redis://", "rediss://", "valkey://", "valkeys://"];
            if !known.iter().any(|scheme| url.starts_with(scheme)) {
                return Err(invalid(
                    "index.valkey.urls",
                    url.clone(),
                    "use valkey://HOST:PORT, or valkeys:// with TLS",
                ));
            }
            // It would be in the configuration, and in whatever prints that.
            if url.contains('@') {
                let why = "name the user in index.valkey.username and the password's file in password_file";
                return Err(invalid("index.valkey.urls", "...@...", why));
            }
        }
        let mut servers = kvindex_valkey::Config {
            urls,
            max_blocks: max_blocks as u64,
            max_speculative,
            ..Default::default()
        };
        set(&mut servers.single, single);
        set(&mut servers.namespace, namespace.filter(|n| !n.is_empty()));
        set(&mut servers.ttl, ttl.map(|t| t.0));
        set(&mut servers.lease, lease.map(|t| t.0));
        set(&mut servers.timeout, timeout.map(|t| t.0));
        servers.username = username.filter(|n| !n.is_empty());
        let millis = |d: std::time::Duration| d.as_millis();
        let (ttl, lease, timeout) = (millis(servers.ttl), millis(servers.lease), millis(servers.timeout));
        for (key, ms, from, to) in [
            ("index.valkey.timeout (ms)", timeout, 10, 60_000),
            ("index.valkey.lease (ms)", lease, timeout * 3, 600_000),
            ("index.valkey.ttl (ms)", ttl, lease * 2, 86_400_000),
        ] {
            if !(from..=to).contains(&ms) {
                return Err(invalid(key, ms.to_string(), format!("must be from {from} to {to}")));
            }
        }
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(invalid("index.valkey.certificate", "", "certificate and key belong together")),
        };
        Ok(Some(Valkey { answer: answer.unwrap_or(true), servers, password: password_file, ca, identity }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<Option<Valkey>, ConfigError> {
        toml::from_str::<ValkeyTable>(text).expect("a table").check(9, 9)
    }

    #[test]
    fn passwords_are_read_from_files_and_nowhere_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("password");
        std::fs::write(&file, "secret\n").expect("a file");
        let text = format!("urls = [\"valkeys://a:1\"]\npassword_file = {file:?}");
        let valkey = table(&text).expect("it makes sense").expect("servers");
        let servers = valkey.load().expect("it can be read");
        assert_eq!((servers.password.as_deref(), servers.max_blocks), (Some("secret"), 9));
        assert!(!format!("{servers:?}{valkey:?}").contains("secret"));
        assert!(table("urls = [\"redis://u:secret@a:1\"]").is_err_and(|e| !e.to_string().contains("secret")));
        std::fs::remove_file(&file).expect("it is there");
        assert!(valkey.load().is_err_and(|e| e.to_string().contains("password")));
    }

    #[test]
    fn a_lease_outlasts_its_commits_and_data_its_lease() {
        assert!(table("").is_ok_and(|v| v.is_none()), "no servers, no shared index");
        assert!(table("urls = [\"http://a\"]").is_err());
        assert!(table("urls = [\"redis://a\"]\nlease = \"2s\"").is_err());
        assert!(table("urls = [\"redis://a\"]\nttl = \"10s\"").is_err());
        assert!(table("urls = [\"redis://a\"]\ncertificate = \"c\"").is_err());
        assert!(table("urls = [\"redis://a\"]\nlease = \"9s\"\nttl = \"1m\"").is_ok());
    }
}
