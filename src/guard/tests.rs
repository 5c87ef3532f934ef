//! Rights, tokens and limits by example.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method};
use prost::Message;

use super::access::Access;
use super::limits::{Limit, Used};
use super::tokens::Tokens;
use super::wire::Caller;
use super::{Admission, Admitted, Client, Guard, Refusal, Reloaded, SecurityConfig};

const READ: &str = "read-read-read-read";
const ROUTE: &str = "route-route-route-route";
const WRITE: &str = "write-write-write-write";

/// A guard by files of these tokens; "" = no file.
fn guard(folder: &tempfile::TempDir, files: [&str; 3], limit: Limit) -> Arc<Guard> {
    let file = |name: &str, token: &str| -> Option<PathBuf> {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("# whose\n\n{token}\n")).expect("write");
        (!token.is_empty()).then_some(path)
    };
    let config = SecurityConfig {
        read_tokens: file("read", files[0]),
        route_tokens: file("route", files[1]),
        write_tokens: file("write", files[2]),
        limit,
        ..SecurityConfig::default()
    };
    Arc::new(Guard::load(&config, None).expect("sound files"))
}

fn showing(token: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("text");
    HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
}

/// What is said at once, as it is of tokens of files.
fn admit(guard: &Arc<Guard>, access: Access, headers: &HeaderMap) -> Admitted {
    match guard.admit(access, headers, &Caller::default()) {
        Admission::Now(admitted) => admitted,
        Admission::Later(_) => panic!("there is no cluster to be asked"),
    }
}

fn may(guard: &Arc<Guard>, access: Access, token: &str) -> Result<(), Refusal> {
    let headers = if token.is_empty() { HeaderMap::new() } else { showing(token) };
    admit(guard, access, &headers).map(drop)
}

#[test]
fn a_token_gives_its_right_and_those_before_it() {
    let folder = tempfile::tempdir().expect("a directory");
    let guard = guard(&folder, [READ, ROUTE, WRITE], Limit::default());
    let rights = [Access::Read, Access::Route, Access::Write];
    for (have, token) in [READ, ROUTE, WRITE].into_iter().enumerate() {
        for (need, access) in rights.into_iter().enumerate() {
            let expected = if have >= need { Ok(()) } else { Err(Refusal::Forbidden(access)) };
            assert_eq!(may(&guard, access, token), expected, "{token} for {access:?}");
        }
    }
    assert_eq!(may(&guard, Access::Open, ""), Ok(()));
    assert_eq!(may(&guard, Access::Read, ""), Err(Refusal::NoToken));
    assert_eq!(may(&guard, Access::Read, "guess-guess-guess-guess"), Err(Refusal::Unknown));
    let basic = HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_static("Basic eDp5"))]);
    assert_eq!(admit(&guard, Access::Read, &basic).map(drop), Err(Refusal::NoToken));
}

#[test]
fn what_no_file_guards_is_open_and_what_is_above_a_guarded_right_is_not() {
    let folder = tempfile::tempdir().expect("a directory");
    let writes = guard(&folder, ["", "", WRITE], Limit::default());
    assert_eq!(may(&writes, Access::Route, ""), Ok(()));
    assert_eq!(may(&writes, Access::Write, ""), Err(Refusal::NoToken));
    let reads = guard(&folder, [READ, "", WRITE], Limit::default());
    assert_eq!(may(&reads, Access::Route, ""), Err(Refusal::NoToken), "above what is guarded");
    assert_eq!(may(&reads, Access::Route, READ), Err(Refusal::Forbidden(Access::Route)));
    assert_eq!(may(&reads, Access::Route, WRITE), Ok(()));
}

#[test]
fn tokens_change_with_their_file_and_a_broken_file_changes_nothing() {
    let folder = tempfile::tempdir().expect("a directory");
    let guard = guard(&folder, ["", "", WRITE], Limit::default());
    let file = folder.path().join("write");
    let look = || guard.tokens.iter().flatten().for_each(|t| t.look());
    std::fs::write(&file, "other-other-other-other\n").expect("write");
    look();
    assert_eq!(may(&guard, Access::Write, WRITE), Err(Refusal::Unknown), "it is taken back");
    assert_eq!(may(&guard, Access::Write, "other-other-other-other"), Ok(()));
    for broken in ["", "short\n", "# nothing\n", "with space in the middle\n"] {
        std::fs::write(&file, broken).expect("write");
        look();
        assert_eq!(may(&guard, Access::Write, "other-other-other-other"), Ok(()), "{broken:?}");
    }
    std::fs::remove_file(&file).expect("remove");
    look();
    assert_eq!(may(&guard, Access::Write, ""), Err(Refusal::NoToken), "it is not open");
}

#[test]
fn an_error_about_tokens_tells_none() {
    let why = Tokens::read(&[b"good-good-good-good\nsecret\n".to_vec()]).expect_err("short");
    assert_eq!(why, "line 2: a token is at least 16 printable characters");
    let read = Reloaded::load(vec!["/no/such/file".into()], Tokens::read).expect_err("not there");
    assert!(read.to_string().starts_with("/no/such/file: "));
}

#[test]
fn a_client_has_only_so_many_calls_at_a_time_and_per_second() {
    let (mut used, now) = (Used::default(), Instant::now());
    let limit = Limit { at_a_time: 2, per_second: 4 };
    let (a, b) = (Client::Certificate("a".into()), Client::Address(None));
    assert_eq!(used.enter(&a, &limit, now), Ok(()));
    assert_eq!(used.enter(&a, &limit, now), Ok(()));
    assert_eq!(used.enter(&a, &limit, now), Err(Refusal::TooManyAtATime));
    assert_eq!(used.enter(&b, &limit, now), Ok(()), "another client");
    (0..2).for_each(|_| used.leave(&a));
    for _ in 0..2 {
        assert_eq!(used.enter(&a, &limit, now), Ok(()));
        used.leave(&a);
    }
    assert_eq!(used.enter(&a, &limit, now), Err(Refusal::TooOften));
    assert_eq!(used.enter(&a, &limit, now + Duration::from_millis(300)), Ok(()), "one came back");
}

#[test]
fn clients_that_are_known_are_bounded_and_idle_ones_make_room() {
    let (mut used, now) = (Used::default(), Instant::now());
    let limit = Limit { at_a_time: 1, per_second: 0 };
    let client = |i: u32| Client::Address(Some(std::net::Ipv4Addr::from(i).into()));
    for i in 0..70_000 {
        let entered = used.enter(&client(i), &limit, now);
        assert_eq!(entered.is_ok(), i < 65_536, "all before are busy");
    }
    (0..1000).for_each(|i| used.leave(&client(i)));
    let later = now + Duration::from_secs(2);
    assert_eq!(used.enter(&client(80_000), &limit, later), Ok(()));
    assert_eq!(used.known(), 65_536 - 1000 + 1);
}

#[test]
fn a_permit_is_given_back_when_the_call_is_over() {
    let folder = tempfile::tempdir().expect("a directory");
    let guard = guard(&folder, ["", "", ""], Limit { at_a_time: 1, per_second: 0 });
    let enter = || admit(&guard, Access::Read, &HeaderMap::new());
    let permit = enter().expect("the first").expect("it is counted");
    assert_eq!(enter().map(drop), Err(Refusal::TooManyAtATime));
    drop(permit);
    assert!(enter().is_ok());
}

/// A call that is added must be thought about: unless it is named, it needs the highest right, and this list
/// says which do on purpose.
#[test]
fn every_call_that_there_is_has_a_right() {
    let highest = [
        "kv.v1.IngestService/RegisterPublisher",
        "kv.v1.IngestService/UnregisterPublisher",
        "kv.v1.PeerService/Hello",
        "kv.v1.PeerService/Bootstrap",
        "kv.v1.PeerService/Tell",
        "kv.v1.PeerService/GetDigest",
        "kv.v1.TierService/Prefetch",
        "kv.v1.TierService/Hold",
        "kv.v1.TierService/Pin",
        "kv.v1.TierService/RenewPin",
        "kv.v1.TierService/Unpin",
        "kv.v1.TierService/Evict",
        "kv.v1.TierService/SetQuota",
        "kv.v1.TierService/Scrub",
        "kv.v1.TierService/Drain",
        "kv.v1.TierService/Copy",
        "kv.v1.TierService/Move",
    ];
    let set = prost_types::FileDescriptorSet::decode(kvproto::rpc::DESCRIPTORS).expect("ours");
    let mut calls = 0;
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let call = format!("{}.{}/{}", file.package(), service.name(), method.name());
                let access = Access::of_grpc(&format!("/{call}"));
                assert_eq!(
                    access == Access::Write,
                    highest.contains(&call.as_str()),
                    "{call} needs {access:?}"
                );
                calls += 1;
            }
        }
    }
    assert!(calls > highest.len(), "{calls} calls");
    assert_eq!(Access::of_grpc("/grpc.health.v1.Health/Watch"), Access::Open);
    for odd in ["", "/", "/kv.v1.IndexService", "kv.v1.IndexService/Score", "/kv.v1.IndexService/Score/"] {
        assert_eq!(Access::of_grpc(odd), Access::Write, "{odd}");
    }
}

#[test]
fn http_needs_what_grpc_does() {
    let of = |method, path| Access::of_http(&method, path);
    assert_eq!(of(Method::GET, "/readyz"), Access::Open);
    assert_eq!(of(Method::GET, "/page/kvd.js"), Access::Open);
    assert_eq!(of(Method::POST, "/page/kvd.js"), Access::Write);
    assert_eq!(of(Method::GET, "/v1/overview"), Access::Read);
    assert_eq!(of(Method::POST, "/v1/explain"), Access::Read);
    assert_eq!(of(Method::GET, "/metrics"), Access::Read);
    assert_eq!(of(Method::GET, "/v1/transfers"), Access::Read);
    assert_eq!(of(Method::POST, "/query"), Access::Read);
    assert_eq!(of(Method::POST, "/report_outcome"), Access::Route);
    assert_eq!(of(Method::POST, "/v1/transfers"), Access::Route);
    for (method, path) in [
        (Method::POST, "/register"),
        (Method::POST, "/unregister"),
        (Method::POST, "/"),
        (Method::DELETE, "/healthz"),
        (Method::PUT, "/anything"),
    ] {
        assert_eq!(of(method.clone(), path), Access::Write, "{method} {path}");
    }
}
