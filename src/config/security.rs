//! What is kvd guarded by?

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::units::Time;
use super::{ConfigError, invalid, set};
use crate::guard::SecurityConfig;
use crate::guard::review::{Grants, ReviewConfig, Subjects};

/// How long what the cluster says of a token may hold.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);

/// `[security]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SecurityTable {
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub client_ca: Option<PathBuf>,
    pub read_tokens: Option<PathBuf>,
    pub route_tokens: Option<PathBuf>,
    pub write_tokens: Option<PathBuf>,
    pub peer_ca: Option<PathBuf>,
    pub peer_name: Option<String>,
    pub peer_token: Option<PathBuf>,
    pub tier_ca: Option<PathBuf>,
    pub tier_name: Option<String>,
    pub tier_token: Option<PathBuf>,
    pub max_requests_per_client: Option<u32>,
    pub max_rate_per_client: Option<u32>,
    pub token_review: Option<TokenReviewTable>,
}

/// `[security.token_review]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenReviewTable {
    pub kubeconfig: Option<PathBuf>,
    pub audiences: Option<Vec<String>>,
    pub cache_ttl: Option<Time>,
    pub read: Option<SubjectsTable>,
    pub route: Option<SubjectsTable>,
    pub write: Option<SubjectsTable>,
}

/// Users and groups of the cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SubjectsTable {
    pub users: Vec<String>,
    pub groups: Vec<String>,
}

impl TokenReviewTable {
    fn config(self) -> ReviewConfig {
        let of = |table: Option<SubjectsTable>| {
            let SubjectsTable { users, groups } = table.unwrap_or_default();
            Subjects { users: users.into_iter().collect(), groups: groups.into_iter().collect() }
        };
        ReviewConfig {
            kubeconfig: self.kubeconfig.filter(|path| !path.as_os_str().is_empty()),
            audiences: self.audiences.unwrap_or_else(|| vec!["kvd".to_owned()]),
            grants: Grants { read: of(self.read), route: of(self.route), write: of(self.write) },
            ttl: self.cache_ttl.map_or(Duration::from_secs(10), |t| t.0),
        }
    }
}

impl SecurityTable {
    pub(crate) fn apply(self, to: &mut SecurityConfig) {
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
            tier_ca,
            tier_name,
            tier_token,
            max_requests_per_client,
            max_rate_per_client,
            token_review,
        } = self;
        let given = |path: Option<PathBuf>| path.filter(|p| !p.as_os_str().is_empty());
        *to = SecurityConfig {
            certificate: given(certificate),
            key: given(key),
            client_ca: given(client_ca),
            read_tokens: given(read_tokens),
            route_tokens: given(route_tokens),
            write_tokens: given(write_tokens),
            token_review: token_review.map(TokenReviewTable::config),
            peer_ca: given(peer_ca),
            peer_name: peer_name.filter(|n| !n.is_empty()),
            peer_token: given(peer_token),
            tier_ca: given(tier_ca),
            tier_name: tier_name.filter(|n| !n.is_empty()),
            tier_token: given(tier_token),
            limit: to.limit,
        };
        set(&mut to.limit.at_a_time, max_requests_per_client);
        set(&mut to.limit.per_second, max_rate_per_client);
    }
}

/// Refuses what would guard less than it seems to.
pub(crate) fn check(security: &SecurityConfig) -> Result<(), ConfigError> {
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
    let review = security.token_review.as_ref();
    review.map_or(Ok(()), check_review)?;
    let reviewed = |of: fn(&Grants) -> &Subjects| review.is_some_and(|r| !of(&r.grants).is_empty());
    let asks_for_less = read_tokens.is_some()
        || route_tokens.is_some()
        || reviewed(|grants| &grants.read)
        || reviewed(|grants| &grants.route);
    if asks_for_less && write_tokens.is_none() && !reviewed(|grants| &grants.write) {
        let why = "is missing: with tokens for less, nobody could register an engine";
        return Err(invalid("security.write_tokens", "", why));
    }
    for (of, name, ca) in
        [("peer", &security.peer_name, &security.peer_ca), ("tier", &security.tier_name, &security.tier_ca)]
    {
        if let (Some(name), None) = (name, ca) {
            return Err(invalid(format!("security.{of}_name"), name, format!("needs security.{of}_ca")));
        }
    }
    Ok(())
}

fn check_review(review: &ReviewConfig) -> Result<(), ConfigError> {
    let key = |name: &str| format!("security.token_review.{name}");
    if review.audiences.is_empty() || review.audiences.iter().any(String::is_empty) {
        let value = format!("{:?}", review.audiences);
        return Err(invalid(key("audiences"), value, "name whom tokens must be meant for, such as kvd"));
    }
    if !TTL.contains(&review.ttl) {
        let why = format!("is outside {:?}..{:?}", TTL.start(), TTL.end());
        return Err(invalid(key("cache_ttl"), format!("{:?}", review.ttl), why));
    }
    for (right, subjects) in review.grants.by_right() {
        let mut names = subjects.users.iter().chain(&subjects.groups);
        if names.any(|name| name.trim().is_empty()) {
            return Err(invalid(key(right.name()), "", "a user or group has no name"));
        }
    }
    if review.grants.by_right().iter().all(|(_, subjects)| subjects.is_empty()) {
        return Err(invalid(key("write"), "", "is missing: nobody is given a right"));
    }
    Ok(())
}
