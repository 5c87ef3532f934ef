//! What is kvd guarded by?

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, invalid, set};
use crate::guard::SecurityConfig;

/// `[security]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct SecurityTable {
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub client_ca: Option<PathBuf>,
    pub read_tokens: Option<PathBuf>,
    pub route_tokens: Option<PathBuf>,
    pub write_tokens: Option<PathBuf>,
    pub peer_ca: Option<PathBuf>,
    pub peer_name: Option<String>,
    pub peer_token: Option<PathBuf>,
    pub max_requests_per_client: Option<u32>,
    pub max_rate_per_client: Option<u32>,
}

impl SecurityTable {
    pub(super) fn apply(self, to: &mut SecurityConfig) {
        let SecurityTable {
            certificate,
            key,
            client_ca,
            read_tokens,
            route_tokens,
            write_tokens,
            peer_ca,
            peer_name,
            peer_token,
            max_requests_per_client,
            max_rate_per_client,
        } = self;
        let given = |path: Option<PathBuf>| path.filter(|p| !p.as_os_str().is_empty());
        *to = SecurityConfig {
            certificate: given(certificate),
            key: given(key),
            client_ca: given(client_ca),
            read_tokens: given(read_tokens),
            route_tokens: given(route_tokens),
            write_tokens: given(write_tokens),
            peer_ca: given(peer_ca),
            peer_name: peer_name.filter(|n| !n.is_empty()),
            peer_token: given(peer_token),
            limit: to.limit,
        };
        set(&mut to.limit.at_a_time, max_requests_per_client);
        set(&mut to.limit.per_second, max_rate_per_client);
    }
}

/// Refuses what would guard less than it seems to.
pub(super) fn check(security: &SecurityConfig) -> Result<(), ConfigError> {
    let SecurityConfig { certificate, key, client_ca, read_tokens, route_tokens, write_tokens, .. } =
        security;
    let shown =
        |path: &Option<PathBuf>| path.as_deref().map_or("", |p| Path::to_str(p).unwrap_or("?")).to_owned();
    if certificate.is_some() != key.is_some() {
        return Err(invalid("security.key", shown(key), "goes with security.certificate: set both"));
    }
    if client_ca.is_some() && certificate.is_none() {
        return Err(invalid("security.client_ca", shown(client_ca), "needs security.certificate"));
    }
    if write_tokens.is_none() && (read_tokens.is_some() || route_tokens.is_some()) {
        let why = "is missing: with tokens for less, nobody could register an engine";
        return Err(invalid("security.write_tokens", "", why));
    }
    if security.peer_name.is_some() && security.peer_ca.is_none() {
        let name = security.peer_name.clone().unwrap_or_default();
        return Err(invalid("security.peer_name", name, "needs security.peer_ca"));
    }
    Ok(())
}
