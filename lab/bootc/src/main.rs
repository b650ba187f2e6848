//! The lab's stand-in for `bootc`, and ostree's own container verbs.
//!
//! No distribution of the lab packages bootc, and its current sources cannot be
//! had from the crate registry; what can is `ostree-ext`, the library that does
//! bootc's work on ostree systems. This one binary is
//!
//! * `ostree container ...`, when ostree calls it by the name `ostree-container`
//!   (libostree looks for `/usr/libexec/libostree/ext/ostree-VERB`): upstream's
//!   code, unchanged;
//! * `bootc status --format=json`, otherwise: upstream's `host-v1` document,
//!   filled from the real sysroot.
//!
//! Every other bootc command says that this is a stand-in and fails, so that
//! nobody takes it for the real one.

mod host;
mod status;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The name under which libostree runs its container extension.
const OSTREE_EXTENSION: &str = "ostree-container";

/// The one version of the status document, as in upstream's `--format-version`.
const FORMAT_VERSION: &str = "1";

const USAGE: &str = "usage: bootc status --format=json [--format-version=1]

This is the veilor lab's stand-in for bootc: it answers only `status`, in the
host-v1 schema, from the real ostree sysroot. See https://bootc-dev.github.io/bootc/
for the real one.";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args
        .first()
        .and_then(|a| Path::new(a).file_name().map(|n| n.to_owned()))
        .unwrap_or_default();
    if name == OSTREE_EXTENSION {
        return report(ostree_container(args));
    }
    let args: Vec<String> = args
        .into_iter()
        .skip(1)
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    match parse(&args) {
        Ok(Command::Help) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Command::Status) => report(status::print()),
        Err(complaint) => {
            eprintln!("bootc (lab stand-in): {complaint}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn ostree_container(args: Vec<OsString>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(ostree_ext::cli::run_from_iter(args))
}

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Status,
}

/// Understands the part of upstream's command line that is answered here.
fn parse(args: &[String]) -> Result<Command, String> {
    let mut args = args.iter().map(String::as_str);
    match args.next() {
        Some("status") => {}
        None | Some("help" | "--help" | "-h") => return Ok(Command::Help),
        Some(other) => return Err(format!("`{other}` is not there; only `status` is")),
    }
    let mut json = false;
    while let Some(arg) = args.next() {
        let (flag, mut value) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (arg, None),
        };
        let mut value = || value.take().or_else(|| args.next()).unwrap_or_default();
        match flag {
            "--help" | "-h" => return Ok(Command::Help),
            "--json" => json = true,
            "--format" => match value() {
                "json" => json = true,
                other => return Err(format!("format `{other}` is not there; only json is")),
            },
            "--format-version" => match value() {
                FORMAT_VERSION => {}
                other => return Err(format!("format version `{other}` is not there; only 1 is")),
            },
            other => return Err(format!("`status {other}` is not there")),
        }
    }
    if json {
        Ok(Command::Status)
    } else {
        Err("say --format=json: the human form is not there".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(
            &line
                .split_whitespace()
                .map(String::from)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn status_in_every_spelling() {
        for line in [
            "status --format=json",
            "status --format json",
            "status --json",
            "status --format=json --format-version=1",
            "status --format-version 1 --json",
        ] {
            assert_eq!(parsed(line), Ok(Command::Status), "{line}");
        }
    }

    #[test]
    fn everything_else_says_so() {
        for line in [
            "upgrade",
            "switch x",
            "status",
            "status --format=yaml",
            "status --format",
            "status --json --format-version=2",
            "status --json --booted",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn help() {
        for line in ["", "--help", "status --help"] {
            assert_eq!(parsed(line), Ok(Command::Help), "{line}");
        }
    }
}
