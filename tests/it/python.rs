//! The Python client against real replicas, with whatever Python is here.
//!
//! It needs grpcio and protobuf: where `python3` does not have them, they come from PyPI to a virtual environment in
//! the target folder. What does not run says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::client::Rig;
use crate::guard::guarded;

fn run(command: &mut Command) -> Option<Output> {
    command.output().ok().filter(|output| output.status.success())
}

/// A Python that has what the client needs.
fn python(package: &Path) -> Option<PathBuf> {
    let has_all = |python: &Path| {
        let imports = "import grpc, kvd_scorer._rpc.kv_pb2";
        run(Command::new(python).args(["-c", imports]).env("PYTHONPATH", package)).is_some()
    };
    let here = PathBuf::from("python3");
    if has_all(&here) {
        return Some(here);
    }
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("scorer-venv");
    let python = venv.join("bin/python");
    if !has_all(&python) {
        run(Command::new(&here).args(["-m", "venv"]).arg(&venv))?;
        run(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "grpcio>=1.60",
            "protobuf>=6.31,<8",
        ]))?;
    }
    has_all(&python).then_some(python)
}

/// Runs the tests that `pattern` means, with `variable` set.
fn tests(pattern: &str, variable: &str, value: &str) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("scorer-client/python");
    let Some(python) = python(&package) else {
        println!("SKIPPED: no python3 with grpcio and protobuf, and none could be made");
        return;
    };
    let output = Command::new(python)
        .args(["-m", "unittest", "discover", "--verbose", "--start-directory", "tests", "--pattern", pattern])
        .current_dir(&package)
        .env("PYTHONPATH", &package)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env(variable, value)
        .output()
        .expect("it ran a moment ago");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    println!("{said}");
}

#[test]
fn the_python_client_answers_whatever_happens_to_replicas() {
    let rig = Rig::start();
    let replicas: Vec<String> =
        rig.replicas.iter().map(|kvd| format!("{},{}", kvd.grpc, kvd.pid())).collect();
    tests("test_[pr]*.py", "KVD_REPLICAS", &replicas.join(";"));
}

#[test]
fn the_python_client_shows_its_certificate_and_its_token() {
    let folder = tempfile::TempDir::new().expect("a directory");
    let (kvd, ours, read) = guarded(folder.path());
    let files = ["ca.crt", "tls.crt", "tls.key"].map(|name| ours.path(name));
    tests("test_guarded.py", "KVD_GUARDED", &format!("{};{};{read}", kvd.grpc, files.join(";")));
}
