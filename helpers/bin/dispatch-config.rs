//! `dispatch-config`: see [`dispatch::cli::config`].

fn main() -> std::process::ExitCode {
    dispatch::cli::config::main()
}
