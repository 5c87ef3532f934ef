//! What kvd keeps on disk, while it is killed, its disk is full, damaged or not its own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Kvd, serve};

/// A registration at an address where nobody is.
fn registration(instance: &str) -> Value {
    json!({
        "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m", "instance_id": instance,
        "block_size": 16, "dp_rank": 0,
    })
}

fn registered(kvd: &Kvd) -> BTreeSet<String> {
    let all = kvd.get("/publishers");
    let all = all.as_array().expect("an array").iter();
    all.map(|p| p["instance_id"].as_str().expect("text").to_owned()).collect()
}

/// What a kvd that cannot start says.
fn refused(mut command: Command, data: &Path) -> String {
    let Output { status, stderr, .. } = command.args(serve(data, &[])).output().expect("run kvd");
    assert_eq!(status.code(), Some(1), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stderr).expect("text")
}

fn kvd() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kvd"))
}

/// Registers and unregisters until the kvd at `http` is gone; every answer moves `done` on. Step `n`
/// registers pod n, and every third takes the one before away again.
fn churn(http: &str, done: &AtomicU64) {
    let post = |path: &str, n: u64| {
        let body = registration(&format!("pod-{n}")).to_string();
        ureq::post(format!("http://{http}/{path}")).header("content-type", "application/json").send(body)
    };
    for step in done.load(Relaxed).. {
        let answer = match step % 3 {
            2 => post("unregister", step - 1),
            _ => post("register", step),
        };
        if answer.is_err() {
            return;
        }
        done.store(step + 1, Relaxed);
    }
}

/// Who is registered after `steps` of [`churn`].
fn expected(steps: u64) -> BTreeSet<String> {
    let kept = (0..steps).filter(|n| match n % 3 {
        0 => true,
        1 => n + 1 >= steps,
        _ => false,
    });
    kept.map(|n| format!("pod-{n}")).collect()
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let data = tempfile::tempdir().expect("a directory");
    let done = AtomicU64::new(0);
    let mut last = 0;
    for round in 0..12u64 {
        let mut kvd = Kvd::start(data.path());
        let there = registered(&kvd);
        let acknowledged = done.load(Relaxed);
        // The step under way when it was killed may be there or not.
        assert!(
            there == expected(acknowledged) || there == expected(acknowledged + 1),
            "round {round}, {acknowledged} steps: {there:?}"
        );
        assert_eq!(kvd.metric("kvd_incarnation"), (round + 1) as f64);
        assert_eq!(kvd.metric("kvd_catalog_set_aside_total"), 0.0);
        // A step done twice is as good as once.
        std::thread::scope(|s| {
            let http = kvd.http.clone();
            let done = &done;
            s.spawn(move || churn(&http, done));
            std::thread::sleep(Duration::from_millis(20 + 37 * round));
            kvd.crash();
        });
        last = done.load(Relaxed);
    }
    assert!(last > 24, "only {last} steps were acknowledged in all");
}

#[test]
fn a_second_kvd_on_the_same_directory_is_refused() {
    let data = tempfile::tempdir().expect("a directory");
    let first = Kvd::start(data.path());
    first.ok("/register", &registration("pod"));
    let said = refused(kvd(), data.path());
    assert!(said.contains(&format!("process {}", first.pid())) && said.contains("--data-dir"), "{said}");
    assert_eq!(registered(&first.crash_and_restart()), BTreeSet::from(["pod".to_owned()]));
}

#[test]
fn a_damaged_catalog_is_set_aside_and_what_is_left_goes_on() {
    let data = tempfile::tempdir().expect("a directory");
    let mut first = Kvd::start(data.path());
    for n in 0..8 {
        first.ok("/register", &registration(&format!("pod-{n}")));
    }
    first.crash();
    let log =
        fs::read_dir(data.path().join("catalog")).expect("a catalog").map(|f| f.expect("a file").path());
    let log = log.filter(|f| f.extension().is_some_and(|e| e == "log")).max().expect("a log");
    let mut bytes = fs::read(&log).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, bytes).expect("writable");
    let second = Kvd::start(data.path());
    let left = registered(&second);
    assert!(left.contains("pod-0") && !left.contains("pod-7"), "{left:?}");
    assert_eq!((second.metric("kvd_catalog_set_aside_total"), second.metric("kvd_incarnation")), (1.0, 2.0));
    assert!(data.path().join("catalog.damaged-1").is_dir());
    second.ok("/register", &registration("pod-7"));
    let third = second.crash_and_restart();
    assert_eq!(registered(&third).len(), left.len() + 1);
    assert_eq!(third.metric("kvd_catalog_set_aside_total"), 0.0);
}

/// What a full disk does: a file may not grow any more. The log of what was registered is the first to
/// reach the limit.
#[test]
fn what_a_full_disk_refuses_is_said_and_the_rest_goes_on() {
    let data = tempfile::tempdir().expect("a directory");
    let mut limited = Command::new("sh");
    // Blocks of 512 bytes. Without the signal, a write fails as on a full disk.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_kvd")]);
    let kvd = Kvd::start_by(limited, data.path(), &[]);
    let mut refusals = 0;
    let mut kept = BTreeSet::new();
    for n in 0..200 {
        let name = format!("pod-{n}");
        let mut body = registration(&name);
        body["additionalsalt"] = json!("x".repeat(1000));
        match kvd.post("/register", &body) {
            (200, _) => {
                kept.insert(name);
            }
            (500, answer) => {
                let said = answer.to_string();
                let path = data.path().join("catalog").display().to_string();
                assert!(said.contains("disk is full") && said.contains(&path), "{said}");
                refusals += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(refusals > 0 && kept.len() > 20, "{refusals} refused, {} kept", kept.len());
    assert_eq!(kvd.metric("kvd_catalog_write_errors_total"), f64::from(refusals));
    assert_eq!(registered(&kvd).len(), 200, "what is not kept is in force nevertheless");
    let limit = rlimit::Resource::FSIZE;
    let unlimited = Some((rlimit::INFINITY, rlimit::INFINITY));
    match rlimit::prlimit(i32::try_from(kvd.pid()).expect("a pid"), limit, unlimited, None) {
        Ok(()) => {
            kvd.ok("/register", &registration("late"));
            let after = registered(&kvd.crash_and_restart());
            assert_eq!(after.len(), 201, "what is right again is kept with the next registration");
        }
        // Only root may raise a limit.
        Err(_) => {
            let after = registered(&kvd.crash_and_restart());
            assert!(kept.is_subset(&after), "{after:?}");
        }
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let data = tempfile::tempdir().expect("a directory");
    let catalog = data.path().join("catalog");
    let mut first = Kvd::start(data.path());
    first.ok("/register", &registration("pod"));
    first.crash();
    // Root may write anywhere, unless it gives that up.
    let without_privilege = || {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_kvd")]);
        command
    };
    let may = Command::new("setpriv").args(["--bounding-set=-all", "--inh-caps=-all", "true"]).status();
    if !may.is_ok_and(|s| s.success()) {
        eprintln!("not tested: setpriv is missing or may not drop privileges");
        return;
    }
    let locked = data.path().join("kvd.lock");
    for (closed, named, what) in [(&locked, data.path(), "data directory"), (&catalog, &catalog, "catalog")] {
        let before = fs::metadata(closed).expect("ours").permissions();
        fs::set_permissions(closed, fs::Permissions::from_mode(0o555)).expect("ours");
        let said = refused(without_privilege(), data.path());
        fs::set_permissions(closed, before).expect("ours");
        assert!(said.contains(&format!("{what} {} cannot be written", named.display())), "{said}");
        assert!(said.contains("--data-dir"), "{said}");
    }
    assert_eq!(registered(&Kvd::start(data.path())).len(), 1, "nothing was set aside");
}
