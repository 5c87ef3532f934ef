//! The Python package against the example agent, with whatever Python is here.
//!
//! It needs `msgspec`, numpy and `typing_extensions`: where `python3` does not have them, they come from PyPI to a virtual
//! environment in the target folder. vLLM's and SGLang's own classes take part if
//! `KVTIER_ENGINES` names a folder of them (`kvtier/python/tests/engines.py`). What does not run
//! says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn run(command: &mut Command) -> Option<Output> {
    command.output().ok().filter(|output| output.status.success())
}

/// A Python that has what the tests need.
fn python() -> Option<PathBuf> {
    let has_all = |python: &Path| {
        run(Command::new(python).args(["-c", "import msgspec, numpy, typing_extensions"])).is_some()
    };
    let here = PathBuf::from("python3");
    if has_all(&here) {
        return Some(here);
    }
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("venv");
    let python = venv.join("bin/python");
    if !has_all(&python) {
        run(Command::new(&here).args(["-m", "venv"]).arg(&venv))?;
        run(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "msgspec",
            "numpy",
            "typing_extensions",
        ]))?;
    }
    has_all(&python).then_some(python)
}

/// Cargo builds examples for tests, beside them.
fn agent() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let agent = test.parent()?.parent()?.join("examples/agent");
    agent.exists().then_some(agent)
}

#[test]
fn the_python_package_works_with_the_agent() {
    let Some(python) = python() else {
        println!("SKIPPED: no python3 with msgspec, numpy and typing_extensions, and none could be made");
        return;
    };
    let agent =
        agent().expect("cargo test builds the examples; with --test python, name --example agent too");
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
    let output = Command::new(python)
        .args(["-m", "unittest", "discover", "--verbose", "--start-directory", "tests"])
        .current_dir(&package)
        .env("PYTHONPATH", &package)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("KVTIER_AGENT", agent)
        .output()
        .expect("it ran a moment ago");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    println!("{said}");
}
