//! Runs every conversation in `tests/plan/scripts/` with the planner.
//!
//! Lines above a `---` describe and ask; those below it, up to an empty line, are the answers.
//! `UPDATE_SCRIPTS=1 cargo test -p kvd --test plan` writes them, to be reviewed as a diff.
//!
//! ```text
//! model 128KiB                        bytes per token; without a model nothing moves
//! cost token=0.2ms handshake=5s       starting values; also failures= (a share)
//! caps source=1 destination=1 link=1GiB pinned=1GiB prefills=1
//! pod p1 prefill decode source        roles; none named = all
//!        held=4096 cpu=4096           tokens on the GPU; tokens in host memory alone
//!        waiting=2000 running=3       prompt tokens that wait; requests that run
//!        room=100000 committed=90000  tokens its cache has room for, and that are spoken for
//!        class=b rack=r1 host=h1      one class and rack unless said
//!        egress=2x1GB ingress=..      transfers under way
//!        pinned=1GB prefills=3        what the ledger has reserved there
//! warm p1 d1                          the pair has worked together (`warm all`: every pair)
//! fail p1 d1 [TIMES]                  a transfer between them failed
//! slow p1 d1 1GB                      the link was measured: bytes a second
//! took p1 8000 2s                     the pod computed so many tokens in so much time
//! link p1 d1 60GB                     bytes under way
//! plan 12000 [connector=nixl_push] [purpose=pull|migrate] [decode=d1] [avoid=p1] [max=1GB]
//!      [deadline=1s] [gain=1s] [within=rack]
//! ```
//!
//! What a pod is said to be stays until it is said again.

use std::path::Path;
use std::time::Duration;

use kvd::transfer::types::{Connector, Distance, Flow, LegKind, Lesson, Plan, Purpose};

use crate::cluster::{Cluster, bytes};

fn replay(name: &str, text: &str) -> Result<String, String> {
    let mut cluster = Cluster::default();
    let mut out = String::new();
    let mut said: Vec<(String, String)> = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((n, line)) = lines.next() {
        out += &format!("{line}\n");
        if line == "---" {
            let several = said.len() > 1;
            for (question, answer) in said.drain(..) {
                if several {
                    out += &format!("> {question}\n");
                }
                out += &answer;
            }
            // The answers of last time.
            if lines.by_ref().any(|(_, l)| l.is_empty()) {
                out.push('\n');
            }
            continue;
        }
        let words = line.split('#').next().unwrap_or("").trim();
        if let Some(answer) = say(&mut cluster, words).map_err(|e| format!("{name}:{}: {e}", n + 1))? {
            said.push((words.to_owned(), answer));
        }
    }
    if said.is_empty() { Ok(out) } else { Err(format!("{name}: the last plan has no `---` after it")) }
}

fn say(cluster: &mut Cluster, line: &str) -> Result<Option<String>, String> {
    let mut words = line.split_whitespace();
    let Some(verb) = words.next() else { return Ok(None) };
    let rest: Vec<&str> = words.collect();
    let at = |i: usize| rest.get(i).copied().ok_or(format!("{verb} wants more"));
    match verb {
        "model" => cluster.model(bytes(at(0)?)?),
        "cost" => cluster.cost(&rest)?,
        "caps" => cluster.caps(&rest)?,
        "pod" => cluster.pod(at(0)?, &rest[1..])?,
        "warm" if at(0)? == "all" => cluster.warm_all(),
        "warm" => cluster.warm(at(0)?, at(1)?),
        "fail" => {
            let times = rest.get(2).map_or(Ok(1), |n| n.parse()).map_err(|_| "how many times?")?;
            for _ in 0..times {
                cluster.learn(&Lesson::Failed {
                    from: Cluster::endpoint(at(0)?),
                    to: Cluster::endpoint(at(1)?),
                });
            }
        }
        "slow" => cluster.learn(&Lesson::Measured {
            from: Cluster::endpoint(at(0)?),
            to: Cluster::endpoint(at(1)?),
            bytes_per_second: bytes(at(2)?)?,
            setup: Duration::from_millis(1),
        }),
        "took" => cluster.learn(&Lesson::Prefilled {
            pod: Cluster::endpoint(at(0)?),
            model: "m".into(),
            tokens: at(1)?.parse().map_err(|_| "how many tokens?")?,
            cached: 0,
            took: humantime::parse_duration(at(2)?).map_err(|e| e.to_string())?,
        }),
        "link" => {
            let (from, to) = (cluster.place(at(0)?)?, cluster.place(at(1)?)?);
            cluster.question.links.push((from, to, Flow { transfers: 1, bytes: bytes(at(2)?)? }));
        }
        "plan" => return Ok(Some(plan(cluster, &rest)?)),
        _ => return Err(format!("{verb}?")),
    }
    Ok(None)
}

fn plan(cluster: &mut Cluster, words: &[&str]) -> Result<String, String> {
    let mut q = cluster.question.clone();
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            q.prompt_tokens = word.parse().map_err(|_| format!("{word} tokens?"))?;
            continue;
        };
        let seconds = || humantime::parse_duration(value).map_err(|e| e.to_string());
        match key {
            "connector" => {
                let name = serde_json::Value::from(value);
                q.connector = serde_json::from_value::<Connector>(name).map_err(|e| e.to_string())?;
            }
            "purpose" => {
                q.purpose = match value {
                    "pull" => Purpose::Pull,
                    "migrate" => Purpose::Migrate,
                    _ => Purpose::PrefillDecode,
                }
            }
            "decode" => q.decode = Some(cluster.place(value)?),
            "avoid" => q.avoid.push(cluster.place(value)?),
            "max" => q.constraints.max_bytes = Some(bytes(value)?),
            "deadline" => q.constraints.deadline = Some(seconds()?),
            "gain" => q.constraints.min_gain = seconds()?,
            "within" => {
                q.constraints.within = Some(match value {
                    "host" => Distance::Host,
                    "rack" => Distance::Rack,
                    _ => Distance::Zone,
                });
            }
            _ => return Err(format!("{key}?")),
        }
    }
    Ok(answer(&cluster.plan(&q)))
}

fn answer(plan: &Plan) -> String {
    let name = |v: &serde_json::Value| v.as_str().unwrap_or("?").to_owned();
    let (decision, reason) = (serde_json::json!(plan.choice.decision), serde_json::json!(plan.reason));
    let mut out = format!("{} ({}): {}\n", name(&decision), name(&reason), plan.explanation);
    for other in &plan.alternatives {
        let mut ways = vec![name(&serde_json::json!(other.decision))];
        for leg in &other.legs {
            let verb = if leg.kind == LegKind::Pull { "pull" } else { "handover" };
            ways.push(format!("{verb} {} to {}", leg.from, leg.to));
        }
        if let (true, Some(decode)) = (other.legs.is_empty(), &other.decode) {
            ways.push(format!("on {decode}"));
        }
        out += &format!("  or {}: {:.0?}\n", ways.join(", "), other.estimate.total);
    }
    out
}

#[test]
fn every_conversation_goes_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan/scripts");
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).expect("the scripts").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() > 8, "the scripts are found");
    let mut wrong = Vec::new();
    for file in &files {
        let name = file.file_name().expect("a name").display().to_string();
        let text = std::fs::read_to_string(file).expect("a script");
        match replay(&name, &text) {
            Err(e) => wrong.push(e),
            Ok(got) if std::env::var_os("UPDATE_SCRIPTS").is_some() => {
                std::fs::write(file, got).expect("write a script");
            }
            Ok(got) if got != text => wrong.push(difference(&name, &text, &got)),
            Ok(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn difference(name: &str, expected: &str, got: &str) -> String {
    let pairs = expected.lines().zip(got.lines()).enumerate();
    match pairs.into_iter().find(|(_, (e, g))| e != g) {
        Some((n, (e, g))) => format!("{name}:{}: expected {e}\n  got {g}", n + 1),
        None => format!("{name}: one is longer than the other"),
    }
}
