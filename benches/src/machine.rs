//! Where did a number come from, and was the machine ours while it was measured?

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

/// Linux counts processor time in ticks of this length, whatever its timer does.
const TICK: Duration = Duration::from_millis(10);

/// Prints commit, machine, load and date.
pub fn print_header() {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
    println!("commit:              {}", commit());
    println!("processors:          {cpus} x {}", model.trim_start_matches(['\t', ' ', ':']));
    println!("date:                {}", date());
    println!("load average before: {}", load());
    if cfg!(debug_assertions) {
        println!("built without optimisation: the numbers mean nothing");
    }
    println!();
}

/// The load average over 1, 5 and 15 minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Sends a signal to a process that was started here.
pub fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process has a number")?;
    kill_process(pid, signal).context("send a signal")
}

/// Processor time of this thread.
pub fn thread_cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Processor time of a process, all its threads, those that have ended too.
pub fn process_cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may itself hold spaces; user and system time are the 12th and 13th after it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u32>().ok()).unwrap_or(0);
    TICK * (ticks(11) + ticks(12))
}

/// Watches which part of the machine's processors other programs take.
#[derive(Debug)]
pub struct Watch {
    ours: Vec<u32>,
    began: Instant,
    busy: Duration,
    our_cpu: Duration,
}

impl Watch {
    /// Begins. `servers` are processes that belong to the measurement beside this one.
    pub fn start(servers: &[u32]) -> Watch {
        let mut ours = servers.to_vec();
        ours.push(std::process::id());
        Watch { began: Instant::now(), busy: busy(), our_cpu: sum(&ours), ours }
    }

    /// The part of all processors' time since then that went to others, 0 to 1.
    pub fn others(&self) -> f64 {
        let others = (busy() - self.busy).saturating_sub(sum(&self.ours) - self.our_cpu);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        others.as_secs_f64() / (self.began.elapsed().as_secs_f64() * cpus as f64)
    }
}

fn sum(pids: &[u32]) -> Duration {
    pids.iter().map(|p| process_cpu(*p)).sum()
}

/// Time that the processors worked for some process. Interrupts are left out, which loopback
/// traffic of our own causes as well.
fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or("");
    let ticks: Vec<u32> = line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let steal = ticks.get(7).copied().unwrap_or(0);
    TICK * (ticks.iter().take(3).sum::<u32>() + steal)
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    match git(&["status", "--porcelain"]) {
        Some(changes) if !changes.is_empty() => format!("{hash} with uncommitted changes"),
        Some(_) | None => hash,
    }
}

/// Today in UTC, as YYYY-MM-DD.
fn date() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() / 86_400);
    let (year, month, day) = civil(days as i64);
    format!("{year}-{month:02}-{day:02}")
}

/// The Gregorian date `days` after 1970-01-01, by counting years from a March, so that the leap
/// day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates_over_leap_years() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_514), (2026, 3, 2));
    }

    #[test]
    fn a_process_that_works_is_seen_to() {
        let (thread, process) = (thread_cpu(), process_cpu(std::process::id()));
        let mut x = 1u64;
        // Ends with the first tick; only a counter that never moves makes it long, and fail.
        for _ in 0..2_000_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(3));
            if x % 4096 == 1 && thread_cpu() > thread && process_cpu(std::process::id()) > process {
                return;
            }
        }
        panic!("no processor time was counted");
    }
}
