//! A flag for every setting, made from the registry: a new setting needs no second place.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::sql::settings::{SettingDoc, reference};

/// The flags that were given, by name of the setting; values are read by [`crate::sql::settings::resolve`].
#[derive(Debug, Clone, Default)]
pub struct SettingFlags(pub BTreeMap<String, String>);

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        reference().iter().fold(command, |command, setting| command.arg(flag(setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in reference() {
            if let Some(value) = matches.get_one::<String>(setting.name) {
                self.0.insert(setting.name.to_string(), value.clone());
            }
        }
        Ok(())
    }
}

fn flag(setting: &'static SettingDoc) -> Arg {
    let mut help = setting.doc.to_string();
    if let Some(default) = setting.default {
        help.push_str(&format!(" [default: {default}]"));
    }
    help.push_str(&format!(" [env: {}]", setting.environment.join(", ")));
    // So that `-1s` is told what it should be, not that there is no flag of this name. A path or name could be any text.
    let is_measure = !["NAME", "PATH", "BOOLEAN"].contains(&setting.value);
    Arg::new(setting.name)
        .allow_hyphen_values(is_measure)
        .long(setting.flag)
        .value_name(setting.value)
        .help(help)
        .help_heading("Settings of the pipeline")
}
