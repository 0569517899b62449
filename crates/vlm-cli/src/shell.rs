//! `vlm completions` and `vlm man`: the command line as shells and `man` show it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;

/// Flags of `vlm completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell that the completions are for.
    #[arg(value_enum)]
    shell: Shell,
}

/// Flags of `vlm man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder for the pages, such as ~/.local/share/man/man1.
    #[arg(value_name = "DIR")]
    output: PathBuf,
}

/// Prints the completions of a shell for the command line `vlm`.
pub fn completions(args: &CompletionsArgs, mut vlm: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut vlm, "vlm", &mut script);
    print!("{}", String::from_utf8(script).context("the completions are not UTF-8")?);
    Ok(())
}

/// Writes a manual page for each command of the command line `vlm`.
pub fn man(args: &ManArgs, vlm: Command) -> Result<()> {
    let folder = &args.output;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(vlm, folder))
        .with_context(|| format!("writing manual pages to {}", folder.display()))
}
