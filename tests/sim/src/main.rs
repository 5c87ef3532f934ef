//! The simulation by hand: many seeds, one seed with all that happened, or each rule left out.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use kvd_sim::{LeftOut, Trace, many, run};

#[derive(Parser)]
#[command(about = "A deterministic simulation of engines, networks and kvd nodes under bad luck")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Runs many seeds and says which of them went wrong.
    Seeds {
        /// How many.
        count: u64,
        /// The first.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Runs one seed and prints everything that happened.
    Trace {
        /// Which.
        seed: u64,
        /// A rule to leave out, or what is to be done wrong, by its name.
        #[arg(long)]
        without: Option<String>,
    },
    /// Leaves out each rule of recovery in turn and says which seed shows it first.
    Rules {
        /// Seeds to try for each.
        #[arg(default_value_t = 2_000)]
        count: u64,
        /// Only what is called so.
        #[arg(long)]
        only: Option<String>,
    },
}

fn main() -> Result<()> {
    match Args::parse().what {
        What::Seeds { count, from } => seeds(from, count),
        What::Trace { seed, without } => trace(seed, without.as_deref()),
        What::Rules { count, only } => rules(count, only.as_deref()),
    }
}

fn seeds(from: u64, count: u64) -> Result<()> {
    let began = Instant::now();
    let found = many(from..from + count, LeftOut::Nothing, usize::MAX);
    for (_, wrong) in &found.wrong {
        println!("{wrong}\n");
    }
    let took = began.elapsed();
    println!("{:#?}", found.tally);
    println!("{} seeds in {took:.1?}, {:.0} a second", found.runs, found.runs as f64 / took.as_secs_f64());
    if !found.wrong.is_empty() {
        bail!("{} of {} seeds went wrong", found.wrong.len(), found.runs);
    }
    Ok(())
}

fn trace(seed: u64, without: Option<&str>) -> Result<()> {
    let left_out = match without {
        None => LeftOut::Nothing,
        Some(name) => match LeftOut::all().find(|l| is_called(*l, name)) {
            Some(left_out) => left_out,
            None => bail!("{name:?} is none of {:?}", LeftOut::all().collect::<Vec<_>>()),
        },
    };
    let outcome = run(seed, left_out, Trace::kept());
    for line in &outcome.trace.lines {
        println!("{line}");
    }
    match outcome.result {
        Ok(tally) => println!("{tally:#?}"),
        Err(wrong) => bail!("{wrong}"),
    }
    Ok(())
}

fn rules(count: u64, only: Option<&str>) -> Result<()> {
    let mut unseen = Vec::new();
    let all = LeftOut::all().filter(|l| only.is_none_or(|name| is_called(*l, name)));
    for left_out in all {
        let found = many(0..count, left_out, 1);
        match found.wrong.first() {
            Some((seed, wrong)) => {
                println!("{left_out:?}: seed {seed}: {}", wrong.lines().next().unwrap_or_default());
            }
            None => unseen.push(left_out),
        }
    }
    if !unseen.is_empty() {
        bail!("nothing went wrong in {count} seeds without {unseen:?}");
    }
    Ok(())
}

fn is_called(left_out: LeftOut, name: &str) -> bool {
    format!("{left_out:?}").contains(&format!("({name})"))
}
