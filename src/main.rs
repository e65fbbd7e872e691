//! The `histokern` command: everything is in [`histokern::cli`].

fn main() -> std::process::ExitCode {
    histokern::cli::main()
}
