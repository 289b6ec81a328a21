use super::*;
use clap::CommandFactory;

fn parse(args: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(args.split(' '))
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_help_opens_with_an_example() {
    for verb in Cli::command().get_subcommands_mut().filter(|verb| verb.get_name() != "help") {
        let help = verb.render_help().to_string();
        assert!(help.starts_with("Example: poundlock "), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 120 || line.contains("[env: ")), "{help}");
    }
    assert!(Cli::command().render_help().to_string().starts_with("Example: poundlock "));
}

#[test]
fn every_setting_is_a_flag() {
    let cli = parse("poundlock run --trigger 5s --max-rows-per-batch 10 -v --once").unwrap();
    let Verb::Run(args) = cli.verb else { panic!() };
    let flags: Vec<_> = args.settings.0.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(flags, [("max_rows_per_batch", "10"), ("trigger", "5s")]);
    assert_eq!(args.queries.to_str(), Some("queries"));
    assert!(args.once && cli.verbose == 1);
}

#[test]
fn a_negative_value_reaches_the_setting() {
    let cli = parse("poundlock run --trigger -1s --checkpoint base --once").unwrap();
    let Verb::Run(args) = cli.verb else { panic!() };
    assert_eq!(args.settings.0["trigger"], "-1s");
    assert!(args.once);
    assert!(parse("poundlock run --checkpoint --once").is_err(), "no path");
}

#[test]
fn global_flags_may_stand_behind_the_verb() {
    let cli = parse("poundlock check other --log-format json").unwrap();
    assert_eq!(cli.log_format, LogFormat::Json);
    assert!(matches!(cli.verb, Verb::Check(args) if args.queries.to_str() == Some("other")));
}

#[test]
fn wrong_usage_is_refused() {
    for args in ["poundlock", "poundlock rnu", "poundlock run --once --until-caught-up", "poundlock sql --format xml"] {
        let error = parse(args).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{args}");
    }
}
