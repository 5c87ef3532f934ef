//! A server that asks who is there: TLS with certificates of both sides, a user, a password, and no more rights than
//! docs/valkey.md says.

#![cfg(feature = "tls")]

#[path = "support/servers.rs"]
mod servers;

use std::path::Path;
use std::time::{Duration, Instant};

use kvindex::{HolderSpec, Prompt, Query};
use kvindex_valkey::{Claim, Config, Health, Shared, Standing};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use servers::Servers;

/// Writes a certificate for `names` by `issuer`, and its key.
fn certify(dir: &Path, name: &str, issuer: &CertifiedIssuer<'static, KeyPair>) -> (Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    // OpenSSL takes a certificate of its issuer's name for self-signed.
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, issuer).expect("signed");
    let pair = (certificate.pem().into_bytes(), key.serialize_pem().into_bytes());
    std::fs::write(dir.join(format!("{name}.crt")), &pair.0).expect("write");
    std::fs::write(dir.join(format!("{name}.key")), &pair.1).expect("write");
    pair
}

#[tokio::test]
async fn a_server_is_reached_with_tls_and_a_user_of_few_rights() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    std::fs::write(dir.path().join("ca.crt"), ca.pem()).expect("write");
    certify(dir.path(), "server", &ca);
    let identity = certify(dir.path(), "client", &ca);
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (certificate, key, authority) = (file("server.crt"), file("server.key"), file("ca.crt"));
    let rights = "on >secret ~{kvd:* +@hash +@string +@stream +@keyspace +@transaction +info +cluster +ping";
    let Some(servers) = Servers::guarded(&[
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &authority,
        "--user",
        &format!("kvd {rights}"),
        "--user",
        "default off",
    ]) else {
        return;
    };
    let plain = servers.config("guarded");
    let config = Config {
        urls: plain.urls.iter().map(|u| u.replace("redis://", "valkeys://")).collect(),
        username: Some("kvd".to_owned()),
        password: Some("secret".to_owned()),
        ca: Some(ca.pem().into_bytes()),
        identity: Some(identity),
        ..plain
    };
    let began = Instant::now();
    let shared = loop {
        match Shared::connect(config.clone()).await {
            Ok(shared) => break shared,
            Err(e) => assert!(began.elapsed() < Duration::from_secs(20), "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let id = shared.attach(HolderSpec::new("t", "m", "p", 0)).expect("an engine");
    let Claim::Ours(mut writer) = shared.claim(id, "a", None).await.expect("rights to claim") else {
        panic!("free")
    };
    writer.renew(Health { live: true, complete: true }).await.expect("rights to write");
    let asked = shared.query(&Query::new("t", "m", Prompt::tokens(&[1, 2]))).await.expect("rights to ask");
    assert_eq!(asked.vouched[0].standing, Standing::Live);
    let query = Query { speculative: true, ..Query::new("t", "m", Prompt::tokens(&[1, 2])) };
    let blocks = [(id, vec![kvproto::SeqHash(1)])];
    let noted = shared.announce("r", &blocks, Duration::from_secs(60)).await.expect("rights to announce");
    shared.query(&query).await.expect("rights to ask");
    assert_eq!((noted, shared.speculative()), (1, 1), "it was read");
    assert!(shared.forget("r").await.expect("rights to forget"));
    writer.clear().await.expect("rights to clear");
    writer.retire().await.expect("rights to retire");

    for wrong in [
        Config { password: Some("guess".to_owned()), ..config.clone() },
        Config { username: None, password: None, ..config.clone() },
        Config { ca: None, ..config.clone() },
        Config { identity: None, ..config.clone() },
    ] {
        // Without a user the server takes the connection, and then no command.
        let why = match Shared::connect(wrong).await {
            Err(e) => e.to_string(),
            Ok(shared) => {
                let id = shared.attach(HolderSpec::new("t", "m", "p", 0)).expect("an engine");
                shared.claim(id, "b", None).await.expect_err("it lets nobody in").to_string()
            }
        };
        assert!(!why.contains("secret") && !why.contains("guess"), "{why}");
    }
}
