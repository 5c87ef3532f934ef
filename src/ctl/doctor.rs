//! `kvctl doctor`: what is wrong, and what is to be done about it?

use std::io::Write;

use clap::Args;
use kvproto::rpc::kv::{DiagnoseRequest, DiagnoseResponse, Finding, Severity};
use serde_json::{Value, json};

use crate::ctl::term::{Paint, count, printable};
use crate::ctl::{Global, Outcome};

/// What `kvctl doctor` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl doctor
  kvctl doctor --instance 10.0.0.1:8000 --json

Exit code 0 if nothing is wrong (notes do not count), 1 if there is a warning or an error,
3 if kvd cannot be reached. docs/outcomes.md says what each finding means.")]
pub struct DoctorArgs {
    /// Only findings about this model, and those about kvd as a whole
    #[arg(long)]
    model: Option<String>,
    /// Only findings about this instance, and those about kvd as a whole
    #[arg(long)]
    instance: Option<String>,
}

/// Asks kvd what is wrong.
pub async fn run(global: &Global, args: &DoctorArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    let answer = kvd.admin().diagnose(DiagnoseRequest {}).await;
    let mut diagnosis = answer.map_err(|s| kvd.failed("diagnose", s))?.into_inner();
    diagnosis.findings.retain(|f| {
        let wanted =
            |asked: &Option<String>, is: &str| is.is_empty() || asked.as_ref().is_none_or(|a| a == is);
        wanted(&args.model, &f.model) && wanted(&args.instance, &f.instance_id)
    });
    if global.json {
        diagnosis.findings.iter().try_for_each(|f| writeln!(out, "{}", as_json(f)))?;
    } else {
        write(out, &diagnosis, global.paint())?;
    }
    let bad = diagnosis.findings.iter().any(|f| f.severity() >= Severity::Warning);
    Ok(if bad { Outcome::Failed } else { Outcome::Ok })
}

fn write(out: &mut dyn Write, diagnosis: &DiagnoseResponse, paint: Paint) -> std::io::Result<()> {
    for f in &diagnosis.findings {
        let severity = match f.severity() {
            Severity::Error => paint.bad("error"),
            Severity::Warning => paint.odd("warning"),
            Severity::Note | Severity::Unspecified => paint.dim("note"),
        };
        let who = match &*f.instance_id {
            "" => "kvd".to_owned(),
            instance => format!("{instance} rank {} ({})", f.dp_rank, f.model),
        };
        writeln!(out, "{severity}: {} of {}", paint.bold(&f.problem), printable(&who))?;
        writeln!(out, "  seen    {}{}", printable(&f.evidence), sureness(f.confidence))?;
        writeln!(out, "  do      {}", printable(&f.remedy))?;
    }
    let of = |n: u64, what: &str| count(n as usize, what);
    writeln!(
        out,
        "{}; {}, {}, {} of them without a prediction",
        match diagnosis.findings.len() {
            0 => paint.good("nothing is wrong"),
            n => count(n, "finding"),
        },
        of(diagnosis.publishers, "publisher"),
        of(diagnosis.reports, "reported outcome"),
        diagnosis.unmatched_reports
    )
}

/// How sure a finding is, where it is not a plain count.
fn sureness(confidence: f64) -> String {
    if confidence >= 1.0 { String::new() } else { format!(" (sure to {:.0} %)", 100.0 * confidence) }
}

fn as_json(f: &Finding) -> Value {
    let severity = match f.severity() {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note | Severity::Unspecified => "note",
    };
    let about_one = !f.instance_id.is_empty();
    json!({
        "problem": f.problem, "severity": severity, "confidence": f.confidence,
        "tenant": about_one.then_some(&f.tenant_id), "model": about_one.then_some(&f.model),
        "instance": about_one.then_some(&f.instance_id), "dp_rank": about_one.then_some(f.dp_rank),
        "evidence": f.evidence, "remedy": f.remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding() -> Finding {
        Finding {
            problem: "wrong_block_size".into(),
            severity: Severity::Error.into(),
            model: "m".into(),
            instance_id: "a:1".into(),
            confidence: 0.676,
            evidence: "seen\u{7}".into(),
            remedy: "done".into(),
            ..Finding::default()
        }
    }

    #[test]
    fn a_finding_says_what_was_seen_and_what_to_do() {
        let kvd = Finding { problem: "no_publisher".into(), confidence: 1.0, ..Finding::default() };
        let diagnosis = DiagnoseResponse {
            findings: vec![finding(), kvd],
            reports: 9,
            publishers: 1,
            unmatched_reports: 2,
        };
        let mut out = Vec::new();
        write(&mut out, &diagnosis, Paint::none()).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "error: wrong_block_size of a:1 rank 0 (m)\n  seen    seen\u{fffd} (sure to 68 %)\n  do      done\n\
             note: no_publisher of kvd\n  seen    \n  do      \n\
             2 findings; 1 publisher, 9 reported outcomes, 2 of them without a prediction\n"
        );
    }

    #[test]
    fn what_is_about_kvd_as_a_whole_names_nobody() {
        let one = as_json(&finding());
        assert_eq!(
            (&one["instance"], &one["dp_rank"], &one["severity"]),
            (&json!("a:1"), &json!(0), &json!("error"))
        );
        let kvd = as_json(&Finding::default());
        assert_eq!((&kvd["instance"], &kvd["dp_rank"]), (&Value::Null, &Value::Null));
    }
}
