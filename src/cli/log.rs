//! The log: events of `tracing` (and of the `log` crate, as librdkafka's), one line each, on stderr.

use std::io;

use tracing_subscriber::EnvFilter;

use super::{LogFormat, colour};
use crate::{Error, Result};

/// Starts the log. POUNDLOCK_LOG wins over RUST_LOG over `-v`.
///
/// # Errors
/// The filter does not parse; the log was started before.
pub fn start(format: LogFormat, verbose: u8) -> Result<()> {
    let said = ["POUNDLOCK_LOG", "RUST_LOG"].into_iter().find_map(|name| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
        Some((name, value))
    });
    let (origin, filter) = said.unwrap_or(("-v", default(verbose).to_string()));
    let filter = EnvFilter::try_new(&filter).map_err(|e| {
        Error::user(format!("{origin} is {filter:?}, not a filter of the log"))
            .cause(e)
            .hint("for example: warn,poundlock=debug")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(colour()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
    started.map_err(|e| Error::internal("the log cannot be started").cause(e))
}

fn default(verbose: u8) -> &'static str {
    match verbose {
        // What Delta's kernel tells as an error is an error of ours too, or none.
        0 => "warn,refinery_core=error,buoyant_kernel=off,poundlock=info",
        1 => "warn,refinery_core=error,buoyant_kernel=off,poundlock=debug",
        2 => "info,poundlock=trace",
        _ => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_filters_parse() {
        for verbose in 0..5 {
            EnvFilter::try_new(default(verbose)).unwrap();
        }
    }
}
