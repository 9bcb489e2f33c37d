//! `dispatch-spawn`: see [`dispatch::cli::spawn`].

fn main() -> std::process::ExitCode {
    dispatch::cli::spawn::main()
}
