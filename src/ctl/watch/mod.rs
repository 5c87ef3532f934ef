//! `kvctl watch`: a live view of pods, tiers, rates and lag.

mod sample;
mod view;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use kvproto::rpc::kv::StatsRequest;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::ctl::client::{ClientError, Kvd};
use crate::ctl::{Global, Outcome, publishers, term};
use sample::{Sample, compare};
use view::View;

/// How long a look for keys takes before it is seen whether the view has ended.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// What `kvctl watch` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl watch
  kvctl watch --interval 200ms
  kvctl watch --count 1 | cat

q, Esc or Ctrl-C ends it. Where the output is no terminal, a table is written at each interval.")]
pub struct WatchArgs {
    /// How often to look
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// End after this many looks (default: never)
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Shows kvd until it is ended.
pub async fn run(global: &Global, args: &WatchArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    if io::stdout().is_terminal() && io::stdin().is_terminal() && !global.json {
        screen(global, args, &kvd).await?;
    } else {
        lines(global, args, &kvd, out).await?;
    }
    Ok(Outcome::Ok)
}

async fn look(kvd: &Kvd) -> Result<Sample, ClientError> {
    let publishers = kvd.publishers().await?;
    let stats = kvd.admin().stats(StatsRequest {}).await.map_err(|s| kvd.failed("read stats", s))?;
    Ok(Sample { publishers, stats: stats.into_inner() })
}

fn ticks(args: &WatchArgs) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(args.interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Tables, one under the other, for pipes and logs.
async fn lines(global: &Global, args: &WatchArgs, kvd: &Kvd, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut ticks = ticks(args);
    let mut looks = 0;
    while args.count.is_none_or(|n| looks < n) {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let now = look(kvd).await?;
        looks += 1;
        if global.json {
            let all: Vec<_> = now.publishers.iter().map(publishers::as_json).collect();
            writeln!(out, "{}", json!({"uptime_ms": now.stats.uptime_ms, "publishers": all}))?;
        } else {
            publishers::write_table(out, &now.publishers, global.paint(), term::width())?;
            writeln!(out)?;
        }
        out.flush()?;
    }
    Ok(())
}

/// The whole terminal, until a key ends it.
async fn screen(global: &Global, args: &WatchArgs, kvd: &Kvd) -> anyhow::Result<()> {
    // Also restores the terminal when something panics.
    let mut terminal = ratatui::try_init().context("take over the terminal")?;
    let _restored = Restore;
    let mut keys = Keys::listen();
    let mut ticks = ticks(args);
    let mut view =
        View { address: kvd.address().to_owned(), colour: global.paint().is_on(), ..View::default() };
    let mut before: Option<(Sample, Instant)> = None;
    let mut looks = 0;
    while args.count.is_none_or(|n| looks < n) {
        tokio::select! {
            _ = ticks.tick() => {
                looks += 1;
                match look(kvd).await {
                    Ok(now) => {
                        let at = Instant::now();
                        let elapsed = before.as_ref().map_or(args.interval, |(_, then)| at - *then);
                        (view.rows, view.totals) = compare(before.as_ref().map(|(s, _)| s), &now, elapsed);
                        view.scroll(0);
                        view.error = None;
                        before = Some((now, at));
                    }
                    // It may come back; until then the last look stays on the screen.
                    Err(e) => view.error = Some(e.to_string()),
                }
            }
            key = keys.next() => match key {
                None | Some(Key::Quit) => break,
                Some(Key::Scroll(by)) => view.scroll(by),
                Some(Key::Redraw) => {}
            },
        }
        terminal.draw(|frame| view.draw(frame)).context("draw")?;
    }
    Ok(())
}

/// Gives the terminal back, however the view ends.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Quit,
    Scroll(isize),
    Redraw,
}

impl Key {
    fn of(event: &Event) -> Option<Key> {
        let key = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => key,
            Event::Resize(..) => return Some(Key::Redraw),
            _ => return None,
        };
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
            // In raw mode Ctrl-C is a key like any other.
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
            KeyCode::Down | KeyCode::Char('j') => Some(Key::Scroll(1)),
            KeyCode::Up | KeyCode::Char('k') => Some(Key::Scroll(-1)),
            KeyCode::PageDown => Some(Key::Scroll(20)),
            KeyCode::PageUp => Some(Key::Scroll(-20)),
            KeyCode::Home => Some(Key::Scroll(isize::MIN)),
            KeyCode::End => Some(Key::Scroll(isize::MAX)),
            _ => None,
        }
    }
}

/// Reads keys on a thread of its own, because reading them blocks.
struct Keys {
    keys: mpsc::Receiver<Key>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keys {
    fn listen() -> Keys {
        let (send, keys) = mpsc::channel(16);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A terminal that cannot be read ends the view by closing the channel.
                let Ok(ready) = event::poll(KEY_WAIT) else { return };
                if !ready {
                    continue;
                }
                let Ok(event) = event::read() else { return };
                if let Some(key) = Key::of(&event)
                    && send.blocking_send(key).is_err()
                {
                    return;
                }
            }
        });
        Keys { keys, stop, thread: Some(thread) }
    }

    async fn next(&mut self) -> Option<Key> {
        self.keys.recv().await
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.keys.close();
        if let Some(thread) = self.thread.take() {
            // It does not panic; a panic there must not become one here.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossterm::event::KeyEvent;

    #[test]
    fn q_escape_and_ctrl_c_end_the_view() {
        let key = |code, modifiers| Key::of(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Some(Key::Quit));
        assert_eq!(key(KeyCode::Esc, KeyModifiers::NONE), Some(Key::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(Key::of(&Event::Resize(80, 24)), Some(Key::Redraw));
    }
}
