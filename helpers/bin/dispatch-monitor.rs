//! `dispatch-monitor`: see [`dispatch::cli::monitor`].

fn main() -> std::process::ExitCode {
    dispatch::cli::monitor::main()
}
