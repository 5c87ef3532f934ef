//! What if an engine cuts its region while the agent reads it?
//!
//! Touching a mapped page behind the end of its file raises SIGBUS, which would end the agent and
//! with it the tiers of all other engines. A sealed memfd cannot be cut, but vLLM's region is a
//! plain file in /dev/shm, which cannot be sealed. So there is a handler for SIGBUS: if the address
//! is in a guarded region, it puts private zeros in the place of the whole region and notes that;
//! the instruction then goes on with zeros, and whoever asked finds the region broken afterwards.
//! Anything else goes to the handler that was there before.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Most regions guarded at a time.
const PLACES: usize = 256;

struct Place {
    /// 0 where free.
    start: AtomicUsize,
    bytes: AtomicUsize,
    broken: AtomicBool,
    taken: AtomicBool,
}

/// A handler may take no lock, so this is all it looks at.
static TABLE: [Place; PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
        taken: AtomicBool::new(false),
    }
}; PLACES];

/// What handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

/// A guarded mapping, until dropped. It must be dropped before the mapping is unmapped.
#[derive(Debug)]
pub(super) struct Guard(usize);

impl Guard {
    /// Guards the mapping of `bytes` bytes at `start`.
    pub fn new(start: *mut u8, bytes: usize) -> io::Result<Guard> {
        install()?;
        let free = |place: &Place| !place.taken.swap(true, Ordering::Acquire);
        let at = TABLE.iter().position(free).ok_or_else(|| io::Error::other("256 regions are guarded"))?;
        let place = &TABLE[at];
        place.broken.store(false, Ordering::Relaxed);
        place.bytes.store(bytes, Ordering::Relaxed);
        place.start.store(start.addr(), Ordering::Release);
        Ok(Guard(at))
    }

    /// Whether something was found missing, so that zeros are there now.
    pub fn is_broken(&self) -> bool {
        TABLE[self.0].broken.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let place = &TABLE[self.0];
        place.start.store(0, Ordering::Release);
        place.taken.store(false, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    let installed = INSTALLED.get_or_init(|| {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all fields of a sigaction may be zero; sigaction reads and writes nothing but
        // the two it is given.
        let failed = unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handle as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            // What was there is read first: the handler may be called as soon as it is set.
            libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr());
            BEFORE.get_or_init(|| before.assume_init());
            libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) != 0
        };
        if failed { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(()) }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO, and si_addr is set
    // for SIGBUS.
    let address = unsafe { (*info).si_addr() }.addr();
    for place in &TABLE {
        let start = place.start.load(Ordering::Acquire);
        let bytes = place.bytes.load(Ordering::Relaxed);
        if start == 0 || address < start || address >= start + bytes {
            continue;
        }
        // SAFETY: the range is a mapping that its owner keeps until the guard is gone, and whoever
        // touched it holds the owner. All of it is replaced, so that it stays one mapping. mmap is
        // a bare system call.
        let zeros = unsafe {
            libc::mmap(
                ptr::without_provenance_mut(start),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if zeros != libc::MAP_FAILED {
            place.broken.store(true, Ordering::Release);
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Not ours.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get().filter(|b| b.sa_flags & libc::SA_SIGINFO != 0);
    match before {
        Some(before) => {
            // SAFETY: with SA_SIGINFO, that is the type of the handler that was installed.
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(before.sa_sigaction) };
            handler(signal, info, context);
        }
        None => {
            // SAFETY: sets the default, which ends the process when the instruction is tried again.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}
