//! Why a plan is as it is, for people.

use std::fmt::{self, Write};
use std::time::Duration;

use crate::transfer::types::{self, Choice, Endpoint, LegKind, Purpose, Question, Reason};

/// One sentence with the numbers that matter.
pub(super) fn explain(q: &Question, choice: &Choice, reason: Reason) -> String {
    let mut out = String::with_capacity(200);
    // Writing to a string does not fail.
    let _ = match &choice.decode {
        Some(decode) if q.purpose == Purpose::Migrate => write_moves(&mut out, decode, choice),
        Some(decode) => write_way(&mut out, q, decode, choice),
        None if choice.estimate.total == Duration::ZERO => write!(out, "no pod may decode it"),
        None => write!(out, "the best way would cost {}", Seconds(choice.estimate.total)),
    };
    out + match reason {
        Reason::Faster | Reason::LocalFaster | Reason::Busy => "",
        Reason::OnlyPod => "; it is the only pod",
        Reason::SmallGain => "; moving blocks would gain too little",
        Reason::NothingToPull => "; nobody has more of it to pull",
        Reason::Incompatible => "; no pod understands another's blocks",
        Reason::AtLimit => "; a better way is at a limit",
        Reason::Constrained => "; a better way is ruled out by the request",
        Reason::UnknownModel => "; the sizes of the model are not known",
    }
}

fn write_moves(out: &mut String, to: &Endpoint, choice: &Choice) -> fmt::Result {
    match choice.legs.first() {
        Some(leg) => write!(out, "{} in {}", Leg(leg), Seconds(choice.estimate.total)),
        None => write!(out, "{to} gets nothing"),
    }
}

fn write_way(out: &mut String, q: &Question, decode: &Endpoint, choice: &Choice) -> fmt::Result {
    let e = &choice.estimate;
    for leg in choice.legs.iter().filter(|l| l.kind == LegKind::Pull) {
        write!(out, "{}, ", Leg(leg))?;
    }
    let pod = choice.prefill.as_ref().unwrap_or(decode);
    let has = q.prompt_tokens.saturating_sub(choice.prefill_tokens);
    let (n, prefill) = (choice.prefill_tokens, Seconds(e.prefill));
    match e.queue + e.pull {
        Duration::ZERO => write!(out, "{pod} computes {n} tokens in {prefill}")?,
        wait => write!(out, "{pod} computes {n} tokens in {prefill} after {}", Seconds(wait))?,
    }
    if has > 0 {
        write!(out, " with {has} there")?;
    }
    for leg in choice.legs.iter().filter(|l| l.kind == LegKind::Handover) {
        write!(out, ", {} in {}", Leg(leg), Seconds(e.handover + e.setup))?;
    }
    write!(out, "; costs {}", Seconds(e.total))?;
    if !choice.legs.is_empty() && e.local > Duration::ZERO {
        write!(out, ", without moving {}", Seconds(e.local))?;
    }
    Ok(())
}

/// Who moves what.
struct Leg<'a>(&'a types::Leg);

impl fmt::Display for Leg<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leg = self.0;
        let (tokens, bytes, from, to) = (leg.tokens, Bytes(leg.bytes), &leg.from, &leg.to);
        match leg.kind {
            LegKind::Pull => {
                write!(f, "{to} pulls {tokens} tokens ({bytes}) from {from} ({})", leg.tier.name())
            }
            LegKind::Handover => write!(f, "{from} hands {tokens} tokens ({bytes}) to {to}"),
        }
    }
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs_f64();
        if s < 0.9995 { write!(f, "{:.0} ms", s * 1e3) } else { write!(f, "{s:.2} s") }
    }
}

struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0 as f64;
        match self.0 {
            0..1_000_000 => write!(f, "{:.0} kB", n / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.0} MB", n / 1e6),
            _ => write!(f, "{:.1} GB", n / 1e9),
        }
    }
}
