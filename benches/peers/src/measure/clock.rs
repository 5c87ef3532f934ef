//! Processor time and memory of this process.

/// Processor seconds of this thread.
pub fn thread_cpu() -> f64 {
    cpu(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Processor seconds of the whole process.
pub fn process_cpu() -> f64 {
    cpu(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the structure handed in.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Watches the processor time of the thread that writes an index.
#[derive(Clone, Copy)]
pub struct WriterCpu {
    own_thread: bool,
    mine: f64,
    all: f64,
}

impl WriterCpu {
    /// Begins. `own_thread`: the index writes in a thread of its own, whose time is what no other
    /// took of the process's.
    pub fn start(own_thread: bool) -> WriterCpu {
        WriterCpu { own_thread, mine: thread_cpu(), all: process_cpu() }
    }

    /// Ends. `others` is what threads besides this one took meanwhile.
    pub fn stop(self) -> impl Fn(f64) -> f64 {
        let (mine, all) = (thread_cpu() - self.mine, process_cpu() - self.all);
        move |others| if self.own_thread { all - mine - others } else { mine }
    }
}

/// Bytes of memory that are resident.
pub fn resident_bytes() -> isize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|n| n.parse::<isize>().ok());
    pages.unwrap_or(0) * 4096
}
