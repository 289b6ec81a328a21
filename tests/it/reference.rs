//! docs/reference.md against the code: sections between `<!-- begin NAME -->` and `<!-- end NAME -->` are generated, the
//! rest is checked where it names what the code has. `POUNDLOCK_BLESS=1 cargo test --test it reference` writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::{Arg, ArgAction, CommandFactory};
use poundlock::checkpoint::s3;
use poundlock::cli::Cli;
use poundlock::connector::kafka::options::MetadataColumn;
use poundlock::connector::options::ENGINE_OPTIONS;
use poundlock::connector::{OptionDoc, database, delta, elasticsearch, file, kafka, parquet};
use poundlock::sql::settings;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// As it was before any test wrote it anew.
fn page() -> String {
    static PAGE: LazyLock<String> = LazyLock::new(|| fs::read_to_string(root("docs/reference.md")).unwrap());
    PAGE.clone()
}

#[test]
fn generated_sections_are_those_of_the_code() {
    let sections = [
        ("options of every table", options(ENGINE_OPTIONS)),
        ("options of KAFKA", options(kafka::options::OPTIONS)),
        ("options of DATABASE", options(database::OPTIONS)),
        ("options of PARQUET", options(parquet::OPTIONS)),
        ("options of DELTA", options(delta::OPTIONS)),
        ("options of ELASTICSEARCH", options(elasticsearch::OPTIONS)),
        ("options of CSV", options(file::CSV_OPTIONS)),
        ("options of S3", options(s3::OPTIONS)),
        ("settings", settings_table()),
        ("verbs", verbs()),
    ];
    let page = page();
    let mut fresh = page.clone();
    for (name, text) in &sections {
        let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
        let from = fresh.find(&begin).unwrap_or_else(|| panic!("docs/reference.md has no {begin}")) + begin.len();
        let to = fresh.find(&end).unwrap_or_else(|| panic!("docs/reference.md has no {end}"));
        fresh.replace_range(from..to, &format!("\n{text}\n"));
    }
    if fresh != page && std::env::var_os("POUNDLOCK_BLESS").is_some() {
        fs::write(root("docs/reference.md"), &fresh).unwrap();
        return;
    }
    let differs = fresh.lines().zip(page.lines()).find(|(fresh, page)| fresh != page);
    assert!(fresh == page, "docs/reference.md is stale (POUNDLOCK_BLESS=1 writes it anew): {differs:#?}");
}

#[test]
fn what_the_engine_fills_is_on_the_page() {
    let page = page();
    for column in MetadataColumn::ALL {
        let row = format!("| `{}` | {} |", column.name(), column.sql_type());
        assert!(page.contains(&row), "docs/reference.md lacks {row}");
    }
    for (name, _) in kafka::options::RESERVED {
        assert!(page.contains(&format!("`kafka.{name}`")), "docs/reference.md lacks kafka.{name}");
    }
    assert!(page.contains(&format!("`{}`", kafka::sink::ID_HEADER)));
}

/// `${NAME:-default}` in queries/ is a row of the page: name, default. An empty default turns off what it is the address of.
#[test]
fn the_environment_of_the_shipped_project_is_on_the_page() {
    let page = page();
    let mut rows = BTreeSet::new();
    for file in fs::read_dir(root("queries")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("--")) {
            for reference in line.split("${").skip(1) {
                let (reference, _) = reference.split_once('}').unwrap();
                let (name, default) = match reference.split_once(":-") {
                    None => (reference, "required".into()),
                    Some((name, "")) if name.ends_with("_URL") => (name, "off".into()),
                    Some((name, "")) => (name, "none".into()),
                    Some((name, default)) => (name, format!("`{default}`")),
                };
                rows.insert(format!("| `{name}` | {default} |"));
            }
        }
    }
    assert!(rows.len() > 5, "{rows:?}");
    for row in rows {
        assert!(page.contains(&row), "docs/reference.md lacks {row}");
    }
}

/// What compose does not decide itself it hands on; topics are made there, and its Kafka has transactions.
#[test]
fn compose_hands_on_the_environment_of_the_shipped_project() {
    let compose = fs::read_to_string(root("docker-compose.yml")).unwrap();
    let own = ["KAFKA_TOPIC", "KAFKA_DLQ_TOPIC", "KAFKA_ALERT_TOPIC", "KAFKA_TRANSACTIONS"];
    let mut names = BTreeSet::new();
    for file in fs::read_dir(root("queries")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("--")) {
            let references = line.split("${").skip(1).map(|rest| rest.split([':', '}']).next().unwrap().to_string());
            names.extend(references);
        }
    }
    assert!(names.len() > 20, "{names:?}");
    for name in names.iter().filter(|name| !own.contains(&name.as_str())) {
        assert!(compose.contains(&format!("\n      {name}: ")), "docker-compose.yml does not hand on {name}");
    }
}

/// The versions that the page says are tried are those that the tests install.
#[test]
fn versions_are_those_of_the_services() {
    let page = page();
    let service = |name: &str| fs::read_to_string(root(&format!("tests/services/lib/{name}.sh"))).unwrap();
    for (name, product, variable) in [
        ("kafka", "Apache Kafka", "${KAFKA_VERSION:="),
        ("elasticsearch", "Elasticsearch", "${ELASTICSEARCH_VERSION:="),
        ("s3", "versitygw", "${VERSITYGW_VERSION:=v"),
    ] {
        let text = service(name);
        let version = text.split_once(variable).unwrap().1.split('}').next().unwrap();
        assert!(page.contains(&format!("{product} {version}")), "docs/reference.md lacks {product} {version}");
    }
    let registry = service("registry");
    let page_of = page.split_once("Apicurio Registry ").unwrap().1.split([',', ' ']).next().unwrap();
    assert!(registry.contains(page_of), "{page_of}");
}

/// A limit on the page is a constant of the code, with the value it has there: `src/…` `NAME = value`.
#[test]
fn limits_are_those_of_the_code() {
    let page = page();
    let (_, limits) = page.split_once("\n## Limits\n").unwrap();
    let limits = limits.split("\n## ").next().unwrap();
    let mut checked = 0;
    for row in limits.lines().filter(|line| line.contains("`src/")) {
        let code: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let path = code.iter().find(|code| code.starts_with("src/")).unwrap();
        let source = fs::read_to_string(root(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        for constant in code.iter().filter(|code| code.contains(" = ")) {
            let (name, value) = constant.split_once(" = ").unwrap();
            let declared = source.lines().find(|line| line.contains(&format!("const {name}:")));
            let declared = declared.unwrap_or_else(|| panic!("{path} has no constant {name}"));
            assert!(declared.ends_with(&format!(" = {value};")), "{path}: {declared}, but the page says {constant}");
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked} limits");
}

fn options(options: &[OptionDoc]) -> String {
    let mut out = "| option | meaning |\n| --- | --- |\n".to_string();
    for (name, meaning) in options {
        writeln!(out, "| `{name}` | {} |", cell(meaning)).unwrap();
    }
    out
}

fn settings_table() -> String {
    let mut out = "| SET | flag | environment | default | meaning |\n| --- | --- | --- | --- | --- |\n".to_string();
    for setting in settings::reference() {
        let environment: Vec<String> = setting.environment.iter().map(|name| format!("`{name}`")).collect();
        let default = setting.default.map_or("none".into(), |default| format!("`{default}`"));
        let flag = format!("`--{} {}`", setting.flag, setting.value);
        let (key, environment) = (setting.key(), environment.join(", "));
        writeln!(out, "| `{key}` | {flag} | {environment} | {default} | {} |", cell(setting.doc)).unwrap();
    }
    out
}

fn verbs() -> String {
    let mut command = Cli::command();
    let mut out = "Of every verb:\n\n".to_string() + &flags(command.get_arguments());
    let globals: BTreeSet<String> = command.get_arguments().map(|arg| arg.get_id().to_string()).collect();
    command.build();
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let about = verb.get_long_about().or(verb.get_about()).unwrap().to_string();
        let own = verb.get_arguments().filter(|arg| !globals.contains(arg.get_id().as_str()));
        let own: Vec<&Arg> = own.filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())).collect();
        let (settings, own): (Vec<&Arg>, Vec<&Arg>) =
            own.into_iter().partition(|arg| settings::reference().iter().any(|s| s.name == arg.get_id().as_str()));
        let example = verb.get_before_help().map_or(String::new(), |text| text.to_string());
        let example = example.trim_start_matches("Example: ");
        write!(out, "\n### poundlock {}\n\n{}.\n", verb.get_name(), about.trim_end_matches('.')).unwrap();
        if !example.is_empty() {
            write!(out, "\n    {example}\n").unwrap();
        }
        write!(out, "\n{}", flags(own.into_iter())).unwrap();
        if !settings.is_empty() {
            out.push_str("\nAnd every setting as a flag.\n");
        }
    }
    out
}

fn flags<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let mut out = "| argument | default | environment | meaning |\n| --- | --- | --- | --- |\n".to_string();
    for arg in arguments.filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
        let value = arg.get_value_names().and_then(<[_]>::first).map(ToString::to_string).unwrap_or_default();
        let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        let value = if takes { value } else { String::new() };
        let value = if arg.is_require_equals_set() { format!("[={value}]") } else { format!(" {value}") };
        let name = match (arg.get_short(), arg.get_long()) {
            (Some(short), Some(long)) => format!("`-{short}`, `{}`", format!("--{long}{value}").trim_end()),
            (None, Some(long)) => format!("`{}`", format!("--{long}{value}").trim_end()),
            _ => format!("`[{}]`", value.trim_start()),
        };
        let default: Vec<String> =
            arg.get_default_values().iter().map(|default| format!("`{}`", default.to_string_lossy())).collect();
        let default = if takes { default.join(" ") } else { String::new() };
        let environment = arg.get_env().map_or(String::new(), |name| format!("`{}`", name.to_string_lossy()));
        let mut meaning = arg.get_help().map_or(String::new(), ToString::to_string);
        let values = arg.get_possible_values();
        if takes && !values.is_empty() {
            let values: Vec<String> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
            let gap = if meaning.is_empty() { "" } else { ": " };
            meaning += &format!("{gap}{}", values.join(" or "));
        }
        writeln!(out, "| {name} | {default} | {environment} | {} |", cell(&meaning)).unwrap();
    }
    out
}

/// One line, and no column of its own.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}
