//! `turbo-registry config check`: the settings that `serve` would use, as a configuration file, and what is wrong with them.

use anyhow::{Context, Result};
use registry::Options;

/// Prints the settings without secrets. With `connect` it says on stderr what it found of database and storage.
///
/// # Errors
/// If `serve` would not start with these settings, as far as that can be told without starting it.
pub(crate) async fn run(options: Options, connect: bool) -> Result<()> {
    let (address, log_format) = (options.listen().to_owned(), options.log_format);
    let config = options.into_config()?;
    for local in tokio::net::lookup_host(&address).await.with_context(|| format!("could not understand the address {address}"))? {
        config.check_listen(local)?;
    }
    let shown = Options { log_format: Some(log_format.unwrap_or_default()), ..Options::of(&config, &address) };
    print!("{}", shown.to_toml().context("could not show the settings")?);
    if connect {
        for line in registry::probe(&config).await? {
            eprintln!("{line}");
        }
    }
    Ok(())
}
