//! The one program behind the five helpers: see [`dispatch::cli::main`].

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> std::process::ExitCode {
    dispatch::cli::main()
}
