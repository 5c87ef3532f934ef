//! TLS, tokens and limits on the real binaries.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Engine, Kvd, file};

const READ: &str = "a-token-that-may-read";
const WRITE: &str = "a-token-that-may-write";

/// Registers an engine with kvctl.
const REGISTER: [&str; 11] = [
    "register",
    "--model",
    "m",
    "--instance",
    "a:1",
    "--endpoint",
    "tcp://127.0.0.1:1",
    "--block-size",
    "16",
    "--type",
    "vLLM",
];

/// A CA, and certificates that it signed, as files.
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Authority {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("a directory");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        std::fs::write(folder.join("ca.crt"), issuer.pem()).expect("write");
        Authority { folder, issuer }
    }

    pub fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    /// Writes `tls.crt` and `tls.key` for `name`.
    fn sign(&self, name: &str) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        // Whoever has the name of who signed it is taken to have signed itself.
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(self.folder.join("tls.crt"), certificate.pem()).expect("write");
        std::fs::write(self.folder.join("tls.key"), key.serialize_pem()).expect("write");
    }
}

/// A kvd with this `[security]`, which answers health on a port that is known.
fn kvd(folder: &Path, security: &str) -> Kvd {
    let config = file(folder, "kvd.toml", &format!("[security]\n{security}\n"));
    Kvd::start_with(&folder.join("data"), &["--config", &config])
}

/// A kvd that asks for certificates and tokens, with its own for `kvd.test`; who signs them, and the file of a token
/// that may read.
pub fn guarded(folder: &Path) -> (Kvd, Authority, String) {
    let ours = Authority::new(folder, "ours");
    ours.sign("kvd.test");
    let (read, write) = (file(folder, "r", READ), file(folder, "w", WRITE));
    let config = format!(
        "[security]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\nread_tokens = {read:?}\nwrite_tokens = {write:?}\n",
        ours.path("tls.crt"),
        ours.path("tls.key"),
        ours.path("ca.crt"),
    );
    let config = file(folder, "kvd.toml", &config);
    (Kvd::start_blind(&folder.join("data"), &["--config", &config]), ours, read)
}

fn kvctl(address: &str, args: &[&str]) -> Output {
    let kvctl = Command::new(env!("CARGO_BIN_EXE_kvctl")).args(["--grpc", address]).args(args).output();
    kvctl.expect("run kvctl")
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&[&out.stdout[..], &out.stderr].concat()).into_owned()
}

#[test]
fn who_shows_no_token_may_ask_but_not_say_who_is_followed() {
    let folder = TempDir::new().expect("a directory");
    let tokens = file(folder.path(), "write", &format!("{WRITE}\n"));
    let kvd = kvd(folder.path(), &format!("write_tokens = {tokens:?}"));
    let engine = Engine::open("10.0.0.1:8000");
    let (status, refusal) = kvd.post("/register", &engine.registration("vLLM", 16));
    assert_eq!((status, &refusal["field"]), (401, &json!("authorization")), "{refusal}");
    let out = kvctl(&kvd.grpc, &REGISTER);
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(said(&out).contains("a bearer token is required (Unauthenticated)"), "{}", said(&out));
    let with_token = [&["--token-file", &tokens][..], &REGISTER[..]].concat();
    let out = kvctl(&kvd.grpc, &with_token);
    assert!(out.status.success(), "{}", said(&out));
    assert!(kvctl(&kvd.grpc, &["publishers"]).status.success(), "looking is open");
    assert_eq!(kvd.metric("kvd_refused_unknown_total"), 2.0);

    // Another token from now on.
    std::fs::write(&tokens, "another-token-that-may\n").expect("write");
    let old = file(folder.path(), "old", &format!("{WRITE}\n"));
    let with_old = [&["--token-file", &old][..], &REGISTER[..]].concat();
    kvd.wait("the token to be taken back", || !kvctl(&kvd.grpc, &with_old).status.success());
    assert!(kvctl(&kvd.grpc, &with_token).status.success());
}

#[test]
fn where_reads_are_guarded_only_health_is_open() {
    let folder = TempDir::new().expect("a directory");
    let (read, write) = (file(folder.path(), "r", READ), file(folder.path(), "w", WRITE));
    let kvd = kvd(folder.path(), &format!("read_tokens = {read:?}\nwrite_tokens = {write:?}"));
    let get = |path: &str, token: Option<&str>| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = agent.get(format!("http://{}{path}", kvd.http));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call().expect("an answer").status().as_u16()
    };
    assert_eq!(get("/healthz", None), 200);
    for path in ["/metrics", "/publishers", "/dump", "/discovery"] {
        assert_eq!(
            (get(path, None), get(path, Some(READ)), get(path, Some(WRITE))),
            (401, 200, 200),
            "{path}"
        );
    }
    assert_eq!(get("/metrics", Some("a-token-nobody-knows")), 401);
    let out = kvctl(&kvd.grpc, &["stats"]);
    assert!(said(&out).contains("Unauthenticated"), "{}", said(&out));
    assert!(kvctl(&kvd.grpc, &["--token-file", &read, "stats"]).status.success());
    let unregister = ["--token-file", &read, "unregister", "--instance", "a:1"];
    let out = kvctl(&kvd.grpc, &unregister);
    assert!(said(&out).contains("does not give the right to write (PermissionDenied)"), "{}", said(&out));
}

#[test]
fn with_a_certificate_everything_but_health_is_encrypted_and_strangers_are_turned_away() {
    let folder = TempDir::new().expect("a directory");
    let (ours, others) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "others"));
    ours.sign("kvd.test");
    others.sign("kvd.test");
    let (certificate, key, ca) = (ours.path("tls.crt"), ours.path("tls.key"), ours.path("ca.crt"));
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let health = format!("127.0.0.1:{port}");
    let config = file(
        folder.path(),
        "kvd.toml",
        &format!(
            "health_listen = {health:?}\n[security]\ncertificate = {certificate:?}\nkey = {key:?}\nclient_ca = {ca:?}\n"
        ),
    );
    let kvd = Kvd::start_blind(&folder.path().join("data"), &["--config", &config]);
    let tls = ["--tls-ca", &ca, "--tls-name", "kvd.test"];
    let own = ["--tls-cert", &certificate, "--tls-key", &key];
    let stats = |args: &[&[&str]]| {
        let mut all: Vec<&str> = args.concat();
        all.push("stats");
        kvctl(&kvd.grpc, &all)
    };
    kvd.wait("it to answer by TLS", || stats(&[&tls, &own]).status.success());

    let (cert2, key2, ca2) = (others.path("tls.crt"), others.path("tls.key"), others.path("ca.crt"));
    let their_own = ["--tls-cert", &cert2, "--tls-key", &key2];
    let (their_ca, their_name) =
        (["--tls-ca", &ca2, "--tls-name", "kvd.test"], ["--tls-ca", &ca, "--tls-name", "other.test"]);
    let strangers: [(&str, &[&[&str]]); 5] = [
        ("in the clear", &[]),
        ("without a certificate", &[&tls]),
        ("with another CA's", &[&tls, &their_own]),
        ("who expects another CA", &[&their_ca, &own]),
        ("who expects another name", &[&their_name, &own]),
    ];
    for (who, args) in strangers {
        let out = stats(args);
        assert!(!out.status.success(), "{who}: {}", said(&out));
    }
    assert!(stats(&[&tls, &own]).status.success(), "the others are served on");

    // HTTP as well.
    let mut plain = std::net::TcpStream::connect(&kvd.http).expect("it listens");
    std::io::Write::write_all(&mut plain, b"GET /healthz HTTP/1.1\r\nhost: k\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut plain, &mut answer);
    assert!(!answer.starts_with(b"HTTP"), "nothing is said in the clear");

    // Health is in the clear, and nothing else is there.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let channel = tonic::transport::Channel::from_shared(format!("http://{health}")).expect("an address");
        let channel = channel.connect().await.expect("it listens");
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        let request = tonic_health::pb::HealthCheckRequest { service: "liveness".into() };
        assert_eq!(client.check(request).await.expect("an answer").into_inner().status, 1);
        let mut admin = kvproto::rpc::kv::admin_service_client::AdminServiceClient::new(channel);
        let refused = admin.stats(kvproto::rpc::kv::StatsRequest::default()).await.expect_err("not there");
        assert_eq!(refused.code(), tonic::Code::Unimplemented);
    });

    // Another certificate from now on, without a restart.
    ours.sign("renewed.test");
    let renewed = ["--tls-ca", &ca, "--tls-name", "renewed.test"];
    kvd.wait("the new certificate", || stats(&[&renewed, &own]).status.success());
    assert!(!stats(&[&tls, &own]).status.success(), "the old name is gone");
}

#[test]
fn replicas_find_one_another_by_tls_and_token() {
    let folder = TempDir::new().expect("a directory");
    let ours = Authority::new(folder.path(), "ours");
    ours.sign("kvd.test");
    let write = file(folder.path(), "w", WRITE);
    let security = format!(
        "[security]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\npeer_ca = {:?}\npeer_name = \"kvd.test\"\n\
         write_tokens = {write:?}\npeer_token = {write:?}\n",
        ours.path("tls.crt"),
        ours.path("tls.key"),
        ours.path("ca.crt"),
        ours.path("ca.crt"),
    );
    let free = || {
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").to_string()
    };
    let addresses = [free(), free()];
    let start = |i: usize| {
        let data = folder.path().join(i.to_string());
        std::fs::create_dir_all(&data).expect("a directory");
        let peers = format!("[peers]\naddresses = {:?}\n", addresses);
        let config = file(&data, "kvd.toml", &(security.clone() + &peers));
        Kvd::start_blind(&data.join("data"), &["--config", &config, "--grpc-listen", &addresses[i]])
    };
    let (a, b) = (start(0), start(1));
    let (certificate, key, ca) = (ours.path("tls.crt"), ours.path("tls.key"), ours.path("ca.crt"));
    let access = [
        "--tls-ca",
        &ca,
        "--tls-name",
        "kvd.test",
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
        "--token-file",
        &write,
    ];
    let run = |kvd: &Kvd, args: &[&str]| kvctl(&kvd.grpc, &[&access[..], args].concat());
    a.wait("it to answer", || run(&a, &["stats"]).status.success());
    let registered = run(&a, &REGISTER);
    assert!(registered.status.success(), "{}", said(&registered));
    b.wait("the other replica to be told", || said(&run(&b, &["publishers", "--json"])).contains("a:1"));
}

#[test]
fn a_scheduler_shows_its_certificate_and_its_token() {
    use scorer_client::{
        ConnectError, Prompt, ReplicaSettings, Replicas, ScoreCall, ScoreError, ScorerClient, Security, Token,
    };
    let folder = TempDir::new().expect("a directory");
    let (kvd, ours, read) = guarded(folder.path());
    let pem = |name: &str| std::fs::read(ours.path(name)).expect("there");
    let trusted = Security::default().ca(pem("ca.crt")).server_name("kvd.test");
    let own = trusted.clone().identity(pem("tls.crt"), pem("tls.key"));
    let whole = own.clone().token(Token::file(&read).expect("a token"));
    let (address, patience) = (format!("https://{}", kvd.grpc), std::time::Duration::from_secs(10));
    let client = |security: &Security| {
        ScorerClient::builder(&address)
            .deadline(patience)
            .connect_timeout(patience)
            .security(security.clone())
    };
    let call = || ScoreCall::new("m", Prompt::tokens(&[1, 2, 3]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let began = std::time::Instant::now();
        let guarded = loop {
            match client(&whole).connect().await {
                Ok(guarded) => break guarded,
                Err(e) => assert!(began.elapsed() < patience, "{e}"),
            }
        };
        guarded.score(call()).await.expect("an answer");
        let without = client(&own).connect().await.expect("a connection").score(call()).await;
        assert!(
            matches!(without, Err(ScoreError::Refused { code: tonic::Code::Unauthenticated, .. })),
            "{without:?}"
        );
        let stranger = client(&trusted).connect_lazy().expect("an address").score(call()).await;
        assert!(stranger.is_err(), "without a certificate: {stranger:?}");
        let elsewhere = client(&whole.clone().server_name("other.test")).connect().await;
        assert!(matches!(elsewhere, Err(ConnectError::Unreachable { .. })), "{elsewhere:?}");

        let settings = ReplicaSettings {
            deadline: patience,
            security: whole.clone(),
            ..ReplicaSettings::new([&kvd.grpc])
        };
        let replicas = Replicas::start(settings).await.expect("a place");
        assert!(replicas.score(call()).await.is_from_kvd());
        for (place, security, what) in [
            (&address, Security::default(), "needs a CA"),
            (&format!("http://{}", kvd.grpc), whole, "not https"),
        ] {
            let refused =
                Replicas::start(ReplicaSettings { security, ..ReplicaSettings::new([place]) }).await;
            let why = refused.expect_err("does not fit").to_string();
            assert!(why.contains(what), "{why}");
        }
    });
}

#[test]
fn a_client_over_its_limit_is_told_so() {
    let folder = TempDir::new().expect("a directory");
    let kvd = kvd(folder.path(), "max_rate_per_client = 5");
    let question = json!({"model": "m", "token_ids": [1], "block_size": 16});
    let statuses: Vec<u16> = (0..60).map(|_| kvd.post("/query", &question).0).collect();
    assert!(statuses.iter().filter(|s| **s == 200).count() >= 5, "{statuses:?}");
    assert!(statuses.contains(&429), "{statuses:?}");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(kvd.post("/query", &question).0, 200, "it may go on");
    assert!(kvd.metric("kvd_refused_limited_total") > 0.0);
}

#[test]
fn kvctl_verifies_a_guarded_kvd_over_http() {
    let folder = TempDir::new().expect("a directory");
    let (kvd, ours, _) = guarded(folder.path());
    let write = folder.path().join("w").display().to_string();
    let (ca, certificate, key) = (ours.path("ca.crt"), ours.path("tls.crt"), ours.path("tls.key"));
    let capture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures/vllm032-main-b32.json");
    let verify = |access: &[&str]| {
        let mut kvctl = Command::new(env!("CARGO_BIN_EXE_kvctl"));
        kvctl.args(["--http", &kvd.http]).args(access).args(["verify", "--via", "http"]).arg(&capture);
        kvctl.output().expect("run kvctl")
    };
    let tls = ["--tls-ca", &ca, "--tls-name", "kvd.test", "--tls-cert", &certificate, "--tls-key", &key];
    let out = verify(&[&tls[..], &["--token-file", &write]].concat());
    assert!(out.status.success(), "{}", said(&out));
    let out = verify(&tls);
    assert!(!out.status.success() && said(&out).contains("HTTP 401"), "{}", said(&out));
    let out = verify(&["--token-file", &write]);
    assert!(!out.status.success() && said(&out).contains("cannot reach kvd"), "{}", said(&out));
}
