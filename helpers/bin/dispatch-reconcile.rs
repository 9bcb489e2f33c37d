//! `dispatch-reconcile`: see [`dispatch::cli::reconcile`].

fn main() -> std::process::ExitCode {
    dispatch::cli::reconcile::main()
}
