use super::*;
use clap::Parser;

const EXAMPLE: &str = include_str!("../../deploy/kvd.example.toml");

fn from_toml(text: &str) -> Result<Config, ConfigError> {
    let config = Config::from_toml(text, Path::new("kvd.toml"), &Args::default())?;
    config.check()?;
    Ok(config)
}

/// The example with the lines that are commented out for having no default.
fn example_in_full() -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest.to_owned(),
        Some(_) | None => line.to_owned(),
    };
    EXAMPLE.lines().map(|line| uncomment(line) + "\n").collect()
}

#[test]
fn the_example_file_sets_everything_to_its_default() {
    let example = from_toml(EXAMPLE).unwrap();
    assert_eq!(format!("{example:#?}"), format!("{:#?}", Config::default()));
}

#[test]
fn the_example_file_names_every_key_there_is() {
    let file: File = toml::from_str(&example_in_full()).unwrap();
    // No `..` anywhere: a key that is added must be added to the example as well.
    let File {
        grpc_listen,
        http_listen,
        health_listen,
        data_dir,
        drain_timeout,
        warmup_timeout,
        snapshot,
        peers,
        log,
        traces,
        index,
        limits,
        weights,
        ingest,
        transfers,
        discovery,
        security,
        publisher,
        listen,
    } = file;
    assert!(grpc_listen.is_some() && http_listen.is_some() && data_dir.is_some() && drain_timeout.is_some());
    assert!(warmup_timeout.is_some() && health_listen.is_some());
    assert!(transfers.names_every_key());
    assert!(discovery.names_every_key());
    assert!(matches!(
        security,
        security::SecurityTable {
            certificate: Some(_),
            key: Some(_),
            client_ca: Some(_),
            read_tokens: Some(_),
            route_tokens: Some(_),
            write_tokens: Some(_),
            peer_ca: Some(_),
            peer_name: Some(_),
            peer_token: Some(_),
            tier_ca: Some(_),
            tier_name: Some(_),
            tier_token: Some(_),
            max_requests_per_client: Some(_),
            max_rate_per_client: Some(_),
            token_review: Some(security::TokenReviewTable {
                kubeconfig: Some(_),
                audiences: Some(_),
                cache_ttl: Some(_),
                read: Some(_),
                route: Some(_),
                write: Some(_),
            }),
        }
    ));
    assert!(matches!(peers, file::PeersTable { addresses: Some(_), compare_every: Some(_) }));
    assert!(matches!(snapshot, file::SnapshotTable { interval: Some(_), keep: Some(_) }));
    assert!(matches!(log, file::LogTable { level: Some(_), format: Some(_) }));
    assert!(matches!(
        traces,
        file::TracesTable { endpoint: Some(_), sample: Some(_), service_name: Some(_) }
    ));
    assert!(matches!(
        index,
        file::IndexTable {
            max_blocks_per_publisher: Some(_),
            max_speculative: Some(_),
            max_memory: Some(_),
            llmd_hash_algorithm: Some(_),
            llmd_hash_seed: Some(_),
            valkey: ref table,
        } if table.names_every_key()
    ));
    assert!(matches!(
        limits,
        file::LimitsTable {
            max_tokens: Some(_),
            max_body: Some(_),
            max_candidates: Some(_),
            max_text: Some(_),
            max_mm_items: Some(_),
            speculative_ttl: Some(_),
            max_speculative_ttl: Some(_),
            max_score_tokens: Some(_),
            max_score_token_memory: Some(_),
            score_token_ttl: Some(_),
            max_predictions: Some(_),
            max_prediction_memory: Some(_),
            prediction_ttl: Some(_),
            outcome_review: Some(_),
            stream_concurrency: Some(_),
        }
    ));
    assert!(matches!(
        weights,
        file::WeightsTable { gpu: Some(_), cpu: Some(_), disk: Some(_), shared: Some(_), unknown: Some(_) }
    ));
    assert!(matches!(
        ingest,
        file::IngestTable {
            threads: Some(_),
            queue_messages: Some(_),
            queue_size: Some(_),
            total_queue_size: Some(_),
            max_message: Some(_),
            replay_timeout: Some(_),
            replay_attempts: Some(_),
            replay_total: Some(_),
            held_batches: Some(_),
            held_size: Some(_),
            suspect_ttl: Some(_),
            dead_after: Some(_),
            max_publishers: Some(_),
        }
    ));
    assert!(matches!(
        publisher[0],
        crate::registration::Registration {
            endpoint: Some(_),
            replay_endpoint: Some(_),
            engine: Some(_),
            modelname: Some(_),
            tenant_id: Some(_),
            instance_id: Some(_),
            block_size: Some(_),
            dp_rank: Some(_),
            lora_name: Some(_),
            additionalsalt: Some(_),
            bind: None,
            topic: Some(_),
            attention_chunk_size: Some(_),
            hash_algo: Some(_),
            hash_seed: Some(_),
            node: Some(_),
            health_url: Some(_),
            lease_seconds: Some(_),
            control_endpoint: None,
            pull_endpoint: None,
        }
    ));
    assert!(publisher[1].bind.is_some());
    assert!(matches!(
        listen[0],
        ListenTable {
            bind: Some(_),
            tenant_id: Some(_),
            engine: Some(_),
            modelname: Some(_),
            additionalsalt: Some(_),
            health_url: Some(_),
            max_publishers: Some(_),
        }
    ));
}

#[test]
fn the_example_file_can_be_used_with_all_its_examples() {
    let dir = tempfile::tempdir().unwrap();
    let (key, model) = (dir.path().join("key"), dir.path().join("config.json"));
    std::fs::write(&key, "sixteen bytes or more").unwrap();
    let llama = r#"{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "hidden_size": 4096, "torch_dtype": "bfloat16"}"#;
    std::fs::write(&model, llama).unwrap();
    let example = example_in_full()
        .replace("/etc/kvd/transfers.key", key.to_str().unwrap())
        .replace("/models/llama/config.json", model.to_str().unwrap());
    let config = from_toml(&example).unwrap();
    assert_eq!((config.transfers.models.len(), config.transfers.config.replicas.len()), (2, 2));
    assert_eq!(config.publishers.len(), 2);
    assert_eq!(config.ingest.listen.len(), 1);
    assert_eq!(config.data_dir, Some(PathBuf::from("/var/lib/kvd")));
}

#[test]
fn a_wrong_file_is_refused_with_the_key_and_the_value() {
    let wrong = [
        ("grpc_listen = \"50051\"", "grpc_listen = \"50051\": is no host:port"),
        ("[log]\nformat = \"xml\"", "log.format = \"xml\": use text or json"),
        ("[log]\nlevel = \"kvd=loud\"", "log.level = \"kvd=loud\""),
        ("[[discovery.pods]]\npool_name = \"a\"\nservice_name = \"b\"", "give one of both"),
        ("[[discovery.pods]]\npool_name = \"a\"\nlabel_selector = \"b=c\"", "leave label_selector out"),
        ("[[discovery.pods]]\npool_name = \"a\"\nserving_ports = [8000]", "leave serving_ports out"),
        ("[[discovery.pods]]\npool_name = \"a\"\nnamespaces = [\"*\"]", "is in a namespace"),
        ("[[discovery.pods]]\nservice_name = \"a,b\"", "discovery.pods.service_name = \"a,b\": is no name"),
        (
            "[[discovery.pods]]\npool_name = \"a\"\npool_group = \"v1\"",
            "discovery.pods.pool_group = \"v1\": use inf",
        ),
        ("[index]\nllmd_hash_seed = \"1\"", "index.llmd_hash_algorithm = \"\": is missing"),
        ("[index]\nllmd_hash_algorithm = \"md5\"", "use cbor-fnv or xxh64"),
        ("[ingest]\nthreads = 0", "ingest.threads = \"0\": is outside 1..256"),
        ("[weights]\ngpu = -1.0", "weights.gpu = \"-1\""),
        ("[weights]\ngpu = nan", "weights.gpu = \"NaN\""),
        ("[ingest]\nqueue_size = \"64Mb\"", "\"64Mb\" is no size"),
        ("drain_timeout = \"5\"", "\"5\" is no duration"),
        ("[ingest]\nthreads = \"two\"", "threads = \"two\""),
        ("[ingest]\ntreads = 2\n[limitz]\na = 1", "unknown key `ingest.treads`, `limitz`"),
        ("[[publisher]]\nmodelnam = \"m\"", "unknown key `publisher.0.modelnam`"),
        ("[[publisher]]\nendpoint = \"tcp://h:1\"", "publisher number 1: type: type is required"),
        ("[[listen]]\ntype = \"vLLM\"", "listen.bind = \"\": is missing in [[listen]] number 1"),
        ("[[listen]]\nbind = \"*:5557\"", "listen.bind = \"*:5557\": \"*:5557\" does not begin with tcp://"),
        ("[[listen]]\nbind = \"tcp://*:1\"\n[[listen]]\nbind = \"tcp://*:1\"", "is there twice"),
        ("= 3", "line 1, column 1"),
    ];
    for (text, says) in wrong {
        let error = from_toml(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn what_would_guard_less_than_it_seems_to_is_refused() {
    let review = |more: &str| format!("[security.token_review]\n{more}");
    let wrong = [
        ("[security]\nkey = \"k\"".to_owned(), "security.key = \"k\": goes with security.certificate"),
        ("[security]\nread_tokens = \"r\"".to_owned(), "security.write_tokens = \"\": is missing"),
        ("[security]\ntier_name = \"n\"".to_owned(), "security.tier_name = \"n\": needs security.tier_ca"),
        (review(""), "security.token_review.write = \"\": is missing: nobody is given a right"),
        (review("read = { users = [\"u\"] }"), "security.write_tokens = \"\": is missing"),
        (review("audiences = []\nwrite = { users = [\"u\"] }"), "name whom tokens must be meant for"),
        (review("cache_ttl = \"1h\"\nwrite = { users = [\"u\"] }"), "is outside 1s..300s"),
        (
            review("write = { groups = [\" \"] }"),
            "security.token_review.write = \"\": a user or group has no name",
        ),
        (review("write = { user = [\"u\"] }"), "unknown key `security.token_review.write.user`"),
    ];
    for (text, says) in wrong {
        let error = from_toml(&text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    let config = from_toml(&review("write = { groups = [\"g\"] }")).unwrap().security.token_review.unwrap();
    assert_eq!((config.audiences, config.ttl), (vec!["kvd".to_owned()], Duration::from_secs(10)));
}

#[test]
fn one_engine_twice_is_refused() {
    let publisher = "[[publisher]]\nendpoint = \"tcp://h:1\"\ntype = \"vLLM\"\nmodelname = \"m\"\n\
                     instance_id = \"h:8000\"\nblock_size = 16\ndp_rank = 0\n";
    assert!(from_toml(publisher).is_ok());
    let error = from_toml(&publisher.repeat(2)).unwrap_err().to_string();
    assert!(error.contains("h:8000 rank 0") && error.contains("twice"), "{error}");
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "grpc_listen = \"127.0.0.1:1\"\nhttp_listen = \"127.0.0.1:2\"\ndata_dir = \"/d\"")
        .unwrap();
    let path = file.path().to_str().unwrap();
    let typed = [
        "kvd",
        "serve",
        "--config",
        path,
        "--grpc-listen",
        "127.0.0.1:9",
        "--data-dir",
        "",
        "--drain-timeout",
        "70ms",
    ];
    let crate::args::Command::Serve(args) = crate::args::Cli::try_parse_from(typed).unwrap().command else {
        panic!("serve was typed")
    };
    let config = Config::load(&args).unwrap();
    assert_eq!((config.grpc_listen.as_str(), config.http_listen.as_str()), ("127.0.0.1:9", "127.0.0.1:2"));
    assert_eq!(config.data_dir, None, "an empty flag takes back what the file says");
    assert_eq!(config.drain_timeout, Duration::from_millis(70));
    assert_eq!(config.log_format, LogFormat::Text);
}

#[test]
fn where_a_replica_is_asked_about_transfers_may_be_typed() {
    let args = Args { transfers_replica: Some("http://kvd-1:50051".into()), ..Args::default() };
    let load = |text: &str| Config::from_toml(text, Path::new("kvd.toml"), &args);
    let shared = load("[index.valkey]\nurls = [\"valkey://v:1\"]\n[transfers]\nvalkey = true").unwrap();
    assert_eq!(shared.transfers.valkey.unwrap().address, "http://kvd-1:50051");
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), [b'k'; 64]).unwrap();
    let text = format!(
        "[transfers]\nkey_file = {:?}\nreplicas = [\"http://kvd-0:50051\", \"http://kvd-1:50051\"]",
        key.path()
    );
    assert_eq!(load(&text).unwrap().transfers.config.replicas.me(), 1);
    // Who has no others is told where it is asked all the same: all replicas are started alike.
    assert!(load("").unwrap().transfers.config.replicas.is_empty());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let args = Args { config: Some("/nowhere/kvd.toml".into()), ..Args::default() };
    assert!(
        Config::load(&args)
            .unwrap_err()
            .to_string()
            .starts_with("config file /nowhere/kvd.toml: No such file")
    );
}

#[test]
fn traces_go_nowhere_unless_it_is_said_where() {
    assert_eq!(from_toml("[traces]\nsample = 1.0").unwrap().traces, None);
    let traces = from_toml("[traces]\nendpoint = \"http://collector:4317\"").unwrap().traces.unwrap();
    assert_eq!((traces.service_name.as_str(), traces.sample), ("kvd", 0.1));
    for bad in ["endpoint = \"collector:4317\"", "endpoint = \"https://c\"", "sample = 1.5"] {
        assert!(from_toml(&format!("[traces]\n{bad}")).is_err(), "{bad}");
    }
}
