use super::*;
use crate::sql::substitute::Wanted;

fn lookup(wanted: Wanted) -> Result<Option<String>, String> {
    Ok(match wanted {
        Wanted::Variable("LONG") => Some("a value much longer than its reference".into()),
        Wanted::Variable("LINES") => Some("one\ntwo\nthree".into()),
        Wanted::Variable("EMPTY") => Some(String::new()),
        Wanted::File(_) => Some("hunter22\n".into()),
        Wanted::Variable(_) => None,
    })
}

fn files(source: &str) -> Files {
    Files::from_stored(vec![("a.sql".into(), "SELECT 0".into()), ("q/b.sql".into(), source.into())], &lookup)
}

/// Where the place of `found` in the substituted text is in the original.
fn place_of(source: &str, found: &str) -> (usize, usize, usize) {
    let files = files(source);
    let text = &files.files[1].text;
    let at = text.find(found).unwrap_or_else(|| panic!("{found} is not in {text}"));
    let place = files.place(1, at..at + found.len());
    let lines = Lines::new(text);
    let (begin, end) = (lines.locate(text, at), lines.locate(text, at + found.len()));
    let shift = Files::first_line(1);
    let span = |(line, column): (usize, usize)| (shift + line as u64, column as u64);
    assert_eq!(files.place_of_span(span(begin), span(end)), Some(place));
    assert_eq!(place.file, 1);
    (place.line, place.column, place.len)
}

#[test]
fn places_are_those_of_the_original() {
    let source = "SELECT '${LONG}', later,\n  'ü${LINES}' AS x,\n  below";
    assert_eq!(place_of(source, "later"), (1, 19, 5));
    assert_eq!(place_of(source, "value much"), (1, 9, 7)); // the whole reference
    assert_eq!(place_of(source, "AS x"), (2, 15, 4));
    assert_eq!(place_of(source, "two"), (2, 5, 8));
    assert_eq!(place_of(source, "below"), (3, 3, 5));
    assert_eq!(place_of("a${EMPTY}b c", "b c"), (1, 10, 3)); // `ab` is one word, `b` in it stands here
    assert_eq!(place_of("a ${EMPTY} b", "b"), (1, 12, 1));
    assert_eq!(place_of("SELECT 'x\ny${LONG}z' + 1", "+ 1"), (2, 12, 3));
}

#[test]
fn spans_name_their_file() {
    let files = files("x");
    assert_eq!(files.place_of_span((1, 8), (1, 9)).map(|p| files.label(&p)), Some("a.sql:1:8".into()));
    let line = Files::first_line(1) + 1;
    assert_eq!(files.place_of_token((line, 1)).map(|p| files.label(&p)), Some("q/b.sql:1:1".into()));
    assert_eq!(files.place_of_span((0, 0), (0, 0)), None);
    assert_eq!(files.place_of_span((Files::first_line(9) + 1, 1), (1, 1)), None);
}

#[test]
fn references_that_fail_are_shown_where_they_are() {
    let files = files("SELECT '${LONG}', ${NONE},\n '${ALSO_NONE:}'");
    let shown: Vec<String> = files.errors().iter().map(|(_, error)| error.to_string()).collect();
    insta::assert_snapshot!(shown.join("\n\n"), @r"
    environment variable NONE is not set
      q/b.sql:1:19
       1 | SELECT '${LONG}', ${NONE},
         |                   ^^^^^^^
    hint: set it, or give it a default: ${NONE:-…}

    a reference is ${NAME}, ${NAME:-default} or ${file:PATH}
      q/b.sql:2:3
       2 |  '${ALSO_NONE:}'
         |   ^^
    hint: write $${ for the characters ${ themselves
    ");
}

#[test]
fn no_secret_is_in_a_message_or_in_what_was_written() {
    let files = files("SELECT '${file:/s}'");
    let text = files.files[1].text.clone();
    assert!(text.contains("hunter22"));
    assert_eq!(files.written(1, 0..text.len()), "SELECT '${file:/s}'");
    let error = files.error_at(&files.place(1, 8..12), "cannot cast 'hunter22' to Int64").to_string();
    assert!(!error.contains("hunter22") && error.contains("${file:/s}"), "{error}");
}

#[test]
fn a_folder_is_read_in_the_order_of_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| fs::write(dir.path().join(name), text).unwrap();
    write("10_b.sql", b"SELECT 2");
    write("00_a.sql", "\u{feff}SELECT 1".as_bytes());
    write(".hidden.sql", b"no");
    write("notes.txt", b"no");
    fs::create_dir(dir.path().join("tests")).unwrap();
    fs::create_dir(dir.path().join("folder.sql")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("10_b.sql"), dir.path().join("20_link.sql")).unwrap();
    let files = Files::read(dir.path(), &lookup).unwrap();
    let names: Vec<_> =
        files.iter().map(|f| (f.name.rsplit('/').next().unwrap().to_string(), f.text.clone())).collect();
    let expected = [("00_a.sql", "SELECT 1"), ("10_b.sql", "SELECT 2"), ("20_link.sql", "SELECT 2")];
    assert_eq!(names, expected.map(|(name, text)| (name.to_string(), text.to_string())));
}

#[test]
fn what_cannot_be_read_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let error = |dir: &Path| Files::read(dir, &lookup).unwrap_err().to_string();
    assert!(error(dir.path()).contains("has no .sql file"), "{}", error(dir.path()));
    assert!(error(&dir.path().join("none")).contains("hint: a project is a folder"));
    fs::write(dir.path().join("a.sql"), b"SELECT 1;\n\xff").unwrap();
    assert!(error(dir.path()).contains("a.sql is not UTF-8 text\n  where: "));
    assert!(error(dir.path()).contains("a.sql:2"));
    fs::write(dir.path().join("a.sql"), vec![b' '; usize::try_from(FILE_BYTES_MAX).unwrap() + 1]).unwrap();
    assert!(error(dir.path()).contains("more than 1048576"));
    fs::remove_file(dir.path().join("a.sql")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("a.sql")).unwrap();
    assert!(error(dir.path()).contains("a.sql cannot be read"));
}

#[test]
fn stored_text_is_read_again() {
    let files = files("CREATE VIEW v AS SELECT '${LONG}', '${file:/s}'");
    let again = Files::from_stored(files.stored(), &|wanted| match wanted {
        Wanted::File(_) => Ok(Some("new".into())),
        Wanted::Variable(_) => Ok(Some("changed".into())),
    });
    assert_eq!(again.files[1].text, "CREATE VIEW v AS SELECT 'a value much longer than its reference', 'new'");
}
