use super::*;
use crate::sql::statement::parse;

fn resolve_with(source: &str, flags: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Settings> {
    let files = Files::from_stored(vec![("a.sql".into(), source.into())], &|_| Ok(None));
    let (statements, errors) = parse(&files).into_parts();
    assert!(errors.is_empty(), "{errors:?}");
    let flags = flags.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    let environment = |wanted: Wanted| {
        let Wanted::Variable(name) = wanted else { return Ok(None) };
        Ok(environment.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_string()))
    };
    resolve(&flags, &environment, &files, &statements)
}

#[test]
fn defaults_are_in_the_registry() {
    let settings = resolve_with("", &[], &[]).unwrap();
    assert_eq!(
        settings,
        Settings {
            name: None,
            trigger: Duration::from_secs(1),
            checkpoint: "checkpoint".into(),
            max_rows_per_batch: 500_000,
            max_bytes_per_batch: 64_000_000,
            buffer: 24_000_000,
            memory: 1 << 30,
            target_partitions: None,
            migrate: true,
            snapshot_interval: 64,
            outbox: 1_000_000_000,
        }
    );
    assert_eq!(settings.partitions_of_pipeline(), 1);
    assert_eq!(settings.partitions_of_query(), std::thread::available_parallelism().unwrap().get());
    let said = resolve_with("SET poundlock.target_partitions = '3'", &[], &[]).unwrap();
    assert_eq!((said.partitions_of_pipeline(), said.partitions_of_query()), (3, 3));
    assert!(settings.name().unwrap_err().to_string().contains("SET poundlock.name"));
}

#[test]
fn a_flag_wins_over_the_environment_over_set_over_the_default() {
    let set = "SET poundlock.trigger = '4 seconds'";
    let trigger =
        |source, flags: &[_], environment: &[_]| resolve_with(source, flags, environment).unwrap().trigger.as_secs();
    assert_eq!(trigger(set, &[("trigger", "1s")], &[("POUNDLOCK_TRIGGER", "2s"), ("PROCESSING_TRIGGER", "3s")]), 1);
    assert_eq!(trigger(set, &[], &[("POUNDLOCK_TRIGGER", "2s"), ("PROCESSING_TRIGGER", "3s")]), 2);
    assert_eq!(trigger(set, &[], &[("PROCESSING_TRIGGER", "3 seconds")]), 3);
    assert_eq!(trigger(set, &[], &[("PROCESSING_TRIGGER", "")]), 4);
    assert_eq!(trigger("", &[], &[]), 1);
}

#[test]
fn values_that_do_not_fit_are_all_reported_with_their_origin() {
    let source = "SET poundlock.memory = '5 bananas';\nSET poundlock.name = 'a b';\nSET poundlock.triger = '1s';\nSET trigger = '1s'";
    let error = resolve_with(source, &[("target_partitions", "0")], &[("PROCESSING_TRIGGER", "5")]).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @r#"
    setting poundlock.triger does not exist
      a.sql:3:5
       3 | SET poundlock.triger = '1s';
         |     ^^^^^^^^^^^^^^^^
    hint: did you mean poundlock.trigger? there are: datafusion.*, poundlock.name, poundlock.trigger, poundlock.checkpoint, poundlock.max_rows_per_batch, poundlock.max_bytes_per_batch, poundlock.buffer, poundlock.memory, poundlock.target_partitions, poundlock.migrate, poundlock.snapshot_interval, poundlock.outbox

    error: setting trigger does not exist
      a.sql:4:5
       4 | SET trigger = '1s'
         |     ^^^^^^^
    hint: did you mean poundlock.trigger? there are: datafusion.*, poundlock.name, poundlock.trigger, poundlock.checkpoint, poundlock.max_rows_per_batch, poundlock.max_bytes_per_batch, poundlock.buffer, poundlock.memory, poundlock.target_partitions, poundlock.migrate, poundlock.snapshot_interval, poundlock.outbox

    error: setting poundlock.name is "a b", not a name of at most 64 letters, digits, '.', '_' and '-', beginning with a letter or digit
      a.sql:2:22
       2 | SET poundlock.name = 'a b';
         |                      ^^^^^

    error: environment variable PROCESSING_TRIGGER is "5", not a positive duration such as 500ms or '5 seconds' (1 ms to 1 day)

    error: setting poundlock.memory is "5 bananas", not a size such as '64 MB' (16 MiB to 1024 TiB)
      a.sql:1:24
       1 | SET poundlock.memory = '5 bananas';
         |                        ^^^^^^^^^^^

    error: flag --target-partitions is "0", not a whole number from 1 to 1024
    "#);
}

#[test]
fn datafusion_keys_go_to_the_session() {
    let of = |source: &str| {
        let files = Files::from_stored(vec![("a.sql".into(), source.into())], &|_| Ok(None));
        configure(SessionConfig::new(), &files, &parse(&files).statements).map(|config| config.batch_size())
    };
    assert_eq!(of("SET datafusion.execution.batch_size = 1000").unwrap(), 1000);
    assert!(
        of("SET datafusion.execution.batchsize = 1")
            .unwrap_err()
            .to_string()
            .contains("did you mean datafusion.execution.batch_size?")
    );
    assert!(of("SET datafusion.execution.batch_size = many").unwrap_err().to_string().contains("a.sql:1:39"));
    for key in [
        "execution.target_partitions",
        "execution.time_zone",
        "sql_parser.dialect",
        "catalog.x",
        "runtime.memory_limit",
    ] {
        let error = of(&format!("SET datafusion.{key} = 1")).unwrap_err();
        assert!(error.message().contains("the engine's own"), "{error}");
    }
    assert!(
        resolve_with("SET x = 1", &[], &[])
            .unwrap_err()
            .to_string()
            .contains("hint: there are: datafusion.*, poundlock.name")
    );
}

#[test]
fn sizes_have_units() {
    for (text, bytes) in [
        ("64 MB", Some(64_000_000)),
        ("64MiB", Some(64 << 20)),
        ("1.5 gb", Some(1_500_000_000)),
        ("4_096", Some(4096)),
        ("7 b", Some(7)),
        ("0", Some(0)),
        ("", None),
        ("MB", None),
        ("-1", None),
        ("1 M", None),
        ("1.2.3 kB", None),
        ("99999999999999999999", None),
        ("99999999999999 TB", None),
    ] {
        assert_eq!(size(text), bytes, "{text}");
    }
}

#[test]
fn the_registry_is_complete() {
    for setting in reference() {
        assert_eq!(setting.environment[0], format!("POUNDLOCK_{}", setting.name.to_uppercase()));
        assert_eq!(setting.flag, setting.name.replace('_', "-"));
        assert!(!setting.doc.is_empty() && !setting.doc.ends_with('.'), "{}", setting.name);
    }
}
