//! What happened, readable.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Writes down what happens, where it is wanted.
#[derive(Debug, Default)]
pub struct Trace {
    /// Whether to write anything down.
    pub wanted: bool,
    /// A line for each thing that happened.
    pub lines: Vec<String>,
}

impl Trace {
    /// A trace that is kept.
    pub fn kept() -> Trace {
        Trace { wanted: true, lines: Vec::new() }
    }

    /// Names what happened.
    pub fn hash(&self) -> u64 {
        self.lines.iter().fold(0, |h, line| xxh3_64_with_seed(line.as_bytes(), h))
    }
}

/// Adds a line at a time, in microseconds, if the trace is wanted.
macro_rules! say {
    ($trace:expr, $at:expr, $($what:tt)*) => {
        if $trace.wanted {
            let line = format!("{:>10.3} ms  {}", $at as f64 / 1e3, format_args!($($what)*));
            $trace.lines.push(line);
        }
    };
}
pub(crate) use say;
