//! `dispatch-worker`: see [`dispatch::cli::worker`].

fn main() -> std::process::ExitCode {
    dispatch::cli::worker::main()
}
