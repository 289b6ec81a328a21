use super::*;
use proptest::prelude::*;

fn lookup(wanted: Wanted) -> Result<Option<String>, String> {
    Ok(match wanted {
        Wanted::Variable("A") => Some("5".into()),
        Wanted::Variable("QUOTED") => Some("it's; DROP TABLE x; --".into()),
        Wanted::Variable("EMPTY") => Some(String::new()),
        Wanted::Variable("NEGATIVE") => Some("-1".into()),
        Wanted::Variable("REFERENCE") => Some("${A} and $${A}".into()),
        Wanted::Variable("DOLLAR") => Some("$".into()),
        Wanted::Variable("BRACE") => Some("{A}".into()),
        Wanted::Variable("COMMENT") => Some("1--".into()),
        Wanted::Variable("E") => Some("E".into()),
        Wanted::Variable("URL") => Some("postgres://me:s3cret@host/db".into()),
        Wanted::Variable("DB_PASSWORD") => Some("hunter22".into()),
        Wanted::Variable("BAD") => return Err("is not UTF-8".into()),
        Wanted::File("/run/secrets/db") => Some("p'w\n".into()),
        Wanted::File("/two") => Some("a\r\nb\r\n\r\n".into()),
        _ => None,
    })
}

fn text(source: &str) -> String {
    let done = substitute(source, &lookup);
    assert_eq!(done.problems, [], "{source}");
    let again = substitute(&done.stored, &lookup);
    assert_eq!((again.text.as_str(), again.problems.len()), (done.text.as_str(), 0), "stored: {}", done.stored);
    done.text
}

fn problem(source: &str) -> String {
    let done = substitute(source, &lookup);
    assert_eq!(done.problems.len(), 1, "{source}: {:?}", done.problems);
    assert!(!done.broken.is_empty());
    done.problems[0].message.clone()
}

fn stored(source: &str) -> String {
    text(source);
    substitute(source, &lookup).stored
}

#[test]
fn values_take_the_place_of_references() {
    assert_eq!(text("SELECT ${A}, '${A}', \"c${A}\""), "SELECT 5, '5', \"c5\"");
    assert_eq!(text("SELECT x > -${A}, t${A}.y"), "SELECT x > -5, t5.y");
    assert_eq!(text("SELECT '${A}${A}' || '${EMPTY}'"), "SELECT '55' || ''");
    assert_eq!(text("FROM events${EMPTY}"), "FROM events");
    assert_eq!(text("SELECT ${NEGATIVE}"), "SELECT -1");
}

#[test]
fn defaults_are_for_unset_and_empty_variables() {
    assert_eq!(text("'${NONE:-x y}' '${EMPTY:-7}' '${A:-7}' '${NONE:-}'"), "'x y' '7' '5' ''");
    assert_eq!(text("SELECT ${NONE:-2.0}"), "SELECT 2.0");
    assert_eq!(text("'${NONE:-it's}'"), "'it''s'");
}

#[test]
fn a_value_never_ends_its_literal() {
    assert_eq!(text("SELECT '${QUOTED}', 1"), "SELECT 'it''s; DROP TABLE x; --', 1");
    assert_eq!(text("SELECT '''${QUOTED}'''"), "SELECT '''it''s; DROP TABLE x; --'''");
    assert!(problem("SELECT ${QUOTED}").starts_with("outside of a '…' literal"));
    assert!(problem("SELECT \"${QUOTED}\"").starts_with("outside of a '…' literal"));
}

#[test]
fn a_value_never_begins_a_comment_or_another_literal() {
    assert!(problem("SELECT ${COMMENT} + 1").starts_with("outside"));
    assert!(problem("SELECT 1 -${NEGATIVE}").starts_with("outside"));
    assert!(problem("SELECT ${E}'a\\'").contains("directly before a quote"));
    assert!(problem("SELECT E'${A}'").contains("this kind of literal"));
    assert!(problem("SELECT $$ ${A} $$").contains("this kind of literal"));
    assert!(problem("SELECT X'${A}'").contains("this kind of literal"));
    assert!(problem("SELECT N'${A}'").contains("this kind of literal"));
}

#[test]
fn comments_are_left_alone() {
    let source = "-- ${NONE} ${ ${file:/no}\nSELECT 1 /* '${NONE} */ -- it's ${A}";
    assert_eq!(text(source), source);
}

#[test]
fn an_escape_gives_the_sign_itself() {
    assert_eq!(text("SELECT '$${A}', '$$${A}', '$'"), "SELECT '${A}', '$${A}', '$'");
    assert_eq!(text("SELECT '${REFERENCE}'"), "SELECT '${A} and $${A}'");
    assert_eq!(text("SELECT '${DOLLAR}${BRACE}', '${DOLLAR}{A}'"), "SELECT '${A}', '${A}'");
}

#[test]
fn files_lose_one_line_end() {
    assert_eq!(text("SELECT '${file:/run/secrets/db}'"), "SELECT 'p''w'");
    assert_eq!(text("SELECT '${file:/two}'"), "SELECT 'a\r\nb\r\n'");
}

#[test]
fn what_is_wrong_is_said() {
    assert_eq!(problem("SELECT ${NONE}"), "environment variable NONE is not set");
    assert_eq!(problem("SELECT '${BAD}'"), "environment variable BAD is not UTF-8");
    assert_eq!(problem("SELECT '${file:/none}'"), "file \"/none\" is not there");
    assert!(problem("SELECT '${1}'").contains("${NAME}"));
    assert!(problem("SELECT '${file:}'").contains("no path"));
    assert!(problem("SELECT '${A:-${A}}'").contains("cannot hold another"));
    assert!(problem("SELECT '${A'\n, '}'").contains("not closed"));
    assert!(problem("SELECT 'abc").contains("unterminated string literal"));
    let done = substitute("SELECT '${NONE}', ${QUOTED}; SELECT '${BAD}'", &lookup);
    assert_eq!(done.problems.len(), 3);
    assert!(done.problems.iter().all(|p| !p.message.contains("DROP")), "{:?}", done.problems);
}

#[test]
fn the_stored_text_keeps_thresholds_and_not_addresses() {
    let source = "\
CREATE UNBOUNDED EXTERNAL TABLE t (a INT) STORED AS KAFKA LOCATION '${A}' OPTIONS ('brokers' '${NONE:-b}',
  'watermark.delay' '${A} seconds', 'timeout' '${A} s', 'format' '${NONE:-json}', 'kafka.key' '${A}');
CREATE VIEW v AS SELECT * FROM t WHERE a > ${A} AND b = '${file:/run/secrets/db}' AND c = '${DB_PASSWORD}';
-- CREATE EXTERNAL
SET x = '${REFERENCE}'; -- ${A}
SET url = '${URL}'";
    assert_eq!(
        stored(source),
        "\
CREATE UNBOUNDED EXTERNAL TABLE t (a INT) STORED AS KAFKA LOCATION '${A}' OPTIONS ('brokers' '${NONE:-b}',
  'watermark.delay' '5 seconds', 'timeout' '${A} s', 'format' 'json', 'kafka.key' '${A}');
CREATE VIEW v AS SELECT * FROM t WHERE a > 5 AND b = '${file:/run/secrets/db}' AND c = '${DB_PASSWORD}';
-- CREATE EXTERNAL
SET x = '$${A} and $$${A}'; -- ${A}
SET url = '${URL}'"
    );
}

#[test]
fn a_kept_reference_after_a_dollar_is_refused() {
    assert!(problem("SELECT '${DOLLAR}${file:/two}'").contains("ends in $"));
}

#[test]
fn secrets_are_known() {
    let done =
        substitute("SELECT '${DB_PASSWORD}', '${URL}', '${file:/two}', '${A}', '${file:/run/secrets/db}'", &lookup);
    let names: Vec<&str> = done.secrets.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["${DB_PASSWORD}", "${URL}", "${file:/two}"]); // p'w is too short to look for
}

#[test]
fn a_long_value_is_refused() {
    let long = |_: Wanted| Ok(Some("x".repeat(VALUE_BYTES_MAX + 1)));
    assert!(substitute("SELECT '${A}'", &long).problems[0].message.contains("longer than"));
    let zero = |_: Wanted| Ok(Some("a\0b".into()));
    assert!(substitute("SELECT '${A}'", &zero).problems[0].message.contains("zero byte"));
}

proptest! {
    /// Whatever the value, the literal holds exactly it, and the stored text gives the same again.
    #[test]
    fn a_literal_holds_its_value(value in "[a'\"$${}A\\\\;\n-]{0,12}", secret in any::<bool>()) {
        let lookup = |_: Wanted| Ok(Some(value.clone()));
        let source = format!("SELECT 'x${{{}}}y', 1", if secret { "file:f" } else { "A" });
        let done = substitute(&source, &lookup);
        prop_assert_eq!(&done.problems, &[]);
        let value = if secret { value.strip_suffix('\n').unwrap_or(&value) } else { &value };
        let tokens = Tokenizer::new(&GenericDialect {}, &done.text).tokenize().unwrap();
        // SELECT, space, literal, comma, space, number
        prop_assert_eq!(tokens.len(), 6);
        // The tokenizer takes the doubling away again.
        prop_assert_eq!(&tokens[2], &Token::SingleQuotedString(format!("x{value}y")));
        prop_assert_eq!(substitute(&done.stored, &lookup).text, done.text);
    }

    /// No text makes it panic, and text without references stays as it is.
    #[test]
    fn any_text_is_taken(source in "[a'\"$${}:A\\-;*/\né ]{0,40}") {
        let done = substitute(&source, &lookup);
        if !source.contains("${") {
            prop_assert_eq!(&done.text, &source);
        }
        prop_assert_eq!(done.segments.iter().map(|s| s.source.len()).sum::<usize>(), source.len());
    }
}
