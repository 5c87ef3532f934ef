//! kvctl: what does kvd hold, and is it right? See [`kvd::ctl`].

fn main() -> std::process::ExitCode {
    kvd::ctl::main()
}
