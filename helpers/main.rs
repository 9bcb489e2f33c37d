//! The one program behind the five helpers: see [`dispatch::cli::main`].

fn main() -> std::process::ExitCode {
    dispatch::cli::main()
}
