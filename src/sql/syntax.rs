//! What was probably meant by a text that does not parse.
//!
//! A guess proves itself before it is told: the statement with this one change parses, or (of a misspelled keyword) gets
//! further than it did. So there is often no hint, and seldom a wrong one.

use std::collections::VecDeque;

use datafusion::error::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement as Parsed};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, TokenWithSpan, TokenizerError};

use super::explain::{distance, lower, position};
use super::text::Files;
use crate::Error;

/// What queries and declarations are made of.
const KEYWORDS: &str = "SELECT FROM WHERE GROUP ORDER BY HAVING LIMIT OFFSET DISTINCT JOIN INNER LEFT RIGHT FULL OUTER \
    CROSS ON USING UNION EXCEPT INTERSECT INSERT INTO CREATE VIEW TABLE EXTERNAL UNBOUNDED SCHEMA STORED AS LOCATION \
    OPTIONS PARTITIONED PARTITION PRIMARY KEY VALUES INTERVAL BETWEEN LIKE ILIKE CASE WHEN THEN ELSE END EXISTS OVER \
    WINDOW WITH FILTER QUALIFY NULL AND OR NOT IN IS ASC DESC SET LATERAL CAST TRY_CAST EXTRACT";

/// Words that a statement begins with.
const BEGINNINGS: [&str; 3] = ["CREATE", "INSERT", "SET"];

/// Keywords that one word is tried as.
const TRIES_MAX: usize = 4;

/// The statements that these tokens are.
///
/// # Errors
/// As DataFusion's parser has them, at the lines and columns of the tokens.
pub fn parse_tokens(tokens: Vec<TokenWithSpan>) -> Result<VecDeque<Parsed>, DataFusionError> {
    let parsed = DFParserBuilder::new(tokens.clone()).build().and_then(|mut parser| parser.parse_statements());
    parsed.map_err(|error| within_case(&tokens, error))
}

/// A CASE that does not parse is taken for a name, with WHEN as its alias, and what is told is that nothing can stand behind:
/// here, what is wrong within it. One CASE may stand in another.
fn within_case(tokens: &[TokenWithSpan], mut error: DataFusionError) -> DataFusionError {
    use sqlparser::keywords::Keyword;
    let is = |at: usize, keyword: Keyword| matches!(tokens.get(at).map(|token| &token.token), Some(Token::Word(word)) if word.keyword == keyword);
    let mut from = 0;
    // Each time round it is a CASE further behind.
    loop {
        let before = stopped_at(tokens, &error).saturating_sub(1);
        let case = if is(before, Keyword::WHEN) { before.saturating_sub(1) } else { before };
        if case < from || !is(case, Keyword::CASE) {
            return error;
        }
        from = case + 1;
        let mut parser = Parser::new(&GenericDialect {}).with_tokens_with_locations(tokens[from..].to_vec());
        match parser.parse_case_expr() {
            Err(inner) => error = DataFusionError::SQL(Box::new(inner), None),
            Ok(_) => return error,
        }
    }
}

/// The error of tokens that do not parse, with a hint where there is one, at the word that the hint is about.
pub fn hinted(files: &Files, shown: Error, tokens: &[TokenWithSpan], error: &DataFusionError) -> Error {
    let Some((hint, word)) = guess(tokens, error) else { return shown };
    let span = word.and_then(|word| tokens.get(word)).map(|token| token.span);
    let place = span
        .and_then(|span| files.place_of_span((span.start.line, span.start.column), (span.end.line, span.end.column)));
    let shown = shown.hint(files.hide(&hint));
    match place {
        Some(place) => shown.snippet(files.snippet(&place)),
        None => shown,
    }
}

/// A hint, and the word that it is about if that is another one than where the parser stopped.
fn guess(tokens: &[TokenWithSpan], error: &DataFusionError) -> Option<(String, Option<usize>)> {
    if let Some(hint) = missing_clause(&error.to_string()) {
        return Some((hint.into(), None));
    }
    let at = stopped_at(tokens, error);
    let keyword = keyword(tokens, at);
    let meant = |keyword: Keyword| (format!("did you mean {}?", keyword.meant), Some(keyword.word));
    if keyword.as_ref().is_some_and(|keyword| keyword.parses) {
        return keyword.map(meant);
    }
    let sign = missing_sign(tokens, at).or_else(|| needless_sign(tokens, at));
    sign.map(|hint| (hint, None)).or_else(|| keyword.map(meant))
}

/// A word that may be a misspelled keyword.
struct Keyword {
    word: usize,
    meant: &'static str,
    /// Whether the statement then parses, or only gets further.
    parses: bool,
}

fn missing_clause(error: &str) -> Option<&'static str> {
    if error.contains("Missing STORED AS clause") {
        Some("add STORED AS KAFKA, DATABASE, PARQUET, DELTA, ELASTICSEARCH, CSV or JSON")
    } else if error.contains("Missing LOCATION clause") {
        Some("add LOCATION '…': the topic, the address of the database, the file or folder")
    } else {
        None
    }
}

/// The token that the parser did not expect; behind the last one, if it expected more.
fn stopped_at(tokens: &[TokenWithSpan], error: &DataFusionError) -> usize {
    let begin = |token: &TokenWithSpan| (token.span.start.line, token.span.start.column);
    let end = tokens.iter().rposition(|token| token.token != Token::SemiColon).map_or(0, |last| last + 1);
    let named = position(error).and_then(|place| tokens.iter().position(|token| begin(token) == place));
    named.map_or(end, |at| at.min(end))
}

/// A word that is nearly a keyword: where the parser stopped, or just before, where it took it for an alias, or just
/// behind, as in GROUP BU; before the parenthesis that is open there, as in TRYCAST(a AS INT); or behind the kind of a join,
/// of which the parser tells no place.
fn keyword(tokens: &[TokenWithSpan], at: usize) -> Option<Keyword> {
    let mut further = None;
    let near = [Some(at), at.checked_sub(1), Some(at + 1), before_parenthesis(&tokens[..at])];
    for place in near.into_iter().flatten().chain(behind_kinds_of_joins(tokens)) {
        let Some(Token::Word(word)) = tokens.get(place).map(|token| &token.token) else { continue };
        if word.quote_style.is_some() {
            continue;
        }
        for meant in near_keywords(&word.value) {
            let mut changed = tokens.to_vec();
            changed[place].token = Token::make_keyword(meant);
            match parse_tokens(changed) {
                Ok(_) => return Some(Keyword { word: place, meant, parses: true }),
                Err(error) if further.is_none() && stopped_at(tokens, &error) > at => {
                    further = Some(Keyword { word: place, meant, parses: false });
                }
                Err(_) => {}
            }
        }
    }
    further
}

/// Words of a join that another one follows.
const KINDS_OF_JOINS: [&str; 7] = ["LEFT", "RIGHT", "FULL", "INNER", "CROSS", "OUTER", "NATURAL"];

/// At most so many joins are looked at.
const JOINS_MAX: usize = 20;

fn behind_kinds_of_joins(tokens: &[TokenWithSpan]) -> impl Iterator<Item = usize> {
    let is_kind = |token: &TokenWithSpan| match &token.token {
        Token::Word(word) => KINDS_OF_JOINS.iter().any(|kind| word.value.eq_ignore_ascii_case(kind)),
        _ => false,
    };
    tokens.iter().enumerate().filter(move |(_, token)| is_kind(token)).map(|(at, _)| at + 1).take(JOINS_MAX)
}

/// The word before the innermost parenthesis that is open at the end of the tokens.
fn before_parenthesis(tokens: &[TokenWithSpan]) -> Option<usize> {
    let mut closed = 0;
    for (at, token) in tokens.iter().enumerate().rev() {
        match token.token {
            Token::RParen => closed += 1,
            Token::LParen if closed == 0 => return at.checked_sub(1),
            Token::LParen => closed -= 1,
            _ => {}
        }
    }
    None
}

/// Nearest first; not the word itself.
fn near_keywords(word: &str) -> Vec<&'static str> {
    let word = word.to_uppercase();
    let length = word.chars().count();
    if length < 2 {
        return vec![];
    }
    let near = |keyword: &&str| (1..=(length / 3).max(1)).contains(&distance(&word, keyword));
    let mut near: Vec<&str> = KEYWORDS.split_whitespace().filter(near).collect();
    near.sort_by_key(|keyword| distance(&word, keyword));
    near.truncate(TRIES_MAX);
    near
}

fn missing_sign(tokens: &[TokenWithSpan], at: usize) -> Option<String> {
    let before = match tokens.get(at) {
        Some(token) if token.token != Token::SemiColon => format!("before {}", token.token),
        _ => "at the end".into(),
    };
    let parses_with = |place: usize, sign: Token| {
        let mut changed = tokens.to_vec();
        changed.insert(place, TokenWithSpan::wrap(sign));
        parse_tokens(changed).is_ok()
    };
    if is_open(&tokens[..at]) && parses_with(at, Token::RParen) {
        return Some(format!("is a ) missing {before}?"));
    }
    // A word behind a table's name is taken for its alias, even INSERT.
    for place in [Some(at), at.checked_sub(1)].into_iter().flatten().filter(|place| *place > 0) {
        let begins =
            |word: &&str| tokens.get(place).is_some_and(|token| token.token.to_string().eq_ignore_ascii_case(word));
        if let Some(word) = BEGINNINGS.iter().find(|word| begins(word))
            && parses_with(place, Token::SemiColon)
        {
            return Some(format!("is a ; missing before {word}?"));
        }
    }
    (at > 0 && at < tokens.len() && parses_with(at, Token::Comma)).then(|| format!("is a comma missing {before}?"))
}

fn needless_sign(tokens: &[TokenWithSpan], at: usize) -> Option<String> {
    let sign = tokens.get(at).map(|token| &token.token).filter(|sign| matches!(sign, Token::Comma | Token::RParen))?;
    let mut changed = tokens.to_vec();
    changed.remove(at);
    parse_tokens(changed).is_ok().then(|| format!("leave out this {sign}"))
}

fn is_open(tokens: &[TokenWithSpan]) -> bool {
    let count = |sign: &Token| tokens.iter().filter(|token| token.token == *sign).count();
    count(&Token::LParen) > count(&Token::RParen)
}

/// What is wrong with a text that has no tokens, and a hint. `before` are those up to there.
pub fn unreadable<'t>(
    error: &TokenizerError,
    before: impl IntoIterator<Item = &'t TokenWithSpan>,
) -> (String, Option<String>) {
    let message = lower(error.message.trim_end_matches('.'));
    if message.contains("string literal") {
        // Where one quote is missing, every later literal is taken inside out, and the last one stays open.
        let spans_lines = |token: &&TokenWithSpan| {
            matches!(&token.token, Token::SingleQuotedString(_)) && token.span.start.line < token.span.end.line
        };
        let hint = match before.into_iter().find(spans_lines) {
            Some(token) => format!("or is it the literal of line {} that is not closed?", token.span.start.line),
            None => "close it with '; a quote within it is written ''".into(),
        };
        (message, Some(hint))
    } else if message.contains("multi-line comment") {
        ("unterminated comment".into(), Some("close it with */".into()))
    } else if message.contains("close delimiter") {
        ("unterminated quoted name".into(), Some("close it with the quote that it begins with".into()))
    } else {
        (message, None)
    }
}

#[cfg(test)]
mod tests {
    use sqlparser::tokenizer::{Tokenizer, Whitespace};

    use super::*;

    fn tokens(sql: &str) -> Vec<TokenWithSpan> {
        let mut tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().unwrap();
        tokens.retain(|token| !matches!(token.token, Token::Whitespace(Whitespace::Space | Whitespace::Newline)));
        tokens
    }

    fn hint(sql: &str) -> String {
        let tokens = tokens(sql);
        let error = parse_tokens(tokens.clone()).map(|_| ()).expect_err(sql);
        guess(&tokens, &error).map(|(hint, _)| hint).unwrap_or_default()
    }

    #[test]
    fn a_misspelled_keyword_is_recognised() {
        for (sql, keyword) in [
            ("CREATE VIEW v AS SELECT a FROM t WHRE a = 1", "WHERE"),
            ("CREATE VIEW v AS SELCT a FROM t", "SELECT"),
            ("INSRT INTO t SELECT a FROM s;", "INSERT"),
            ("CREATE VEIW v AS SELECT 1", "VIEW"),
            ("CREATE VIEW v AS SELECT a FORM t", "FROM"),
            ("CREATE VIEW v AS SELECT a FROM t GRUOP BY a", "GROUP"),
            ("CREATE VIEW v AS SELECT a FROM t GROUP BU a", "BY"),
            ("CREATE VIEW v AS SELECT a FROM t WHERE a = 1 ADN b = 2", "AND"),
            ("CREATE VIEW v AS SELECT a FROM t JOIN s OM t.a = s.a", "ON"),
            ("CREATE VIEW v AS SELECT a FROM t LIMT 5;", "LIMIT"),
            ("CREATE VIEW v AS SELECT sum(a) FLITER (WHERE a > 1) FROM t", "FILTER"),
            ("CREATE UNBOUNDD EXTERNAL TABLE t (a INT) STORED AS KAFKA LOCATION 'x'", "UNBOUNDED"),
            ("CREATE EXTERNAL TABLE t (a INT) STORED AS KAFKA LOCATON 'x'", "LOCATION"),
            ("CREATE EXTERNAL TABLE t (a INT) STORED AS KAFKA LOCATION 'x' OPTION ('a' 'b')", "OPTIONS"),
            ("CREATE EXTERNAL TABLE t (a INT) STORED AS CSV LOCATION 'x' PARTITION BY (a)", "PARTITIONED"),
            ("CREATE VIEW v AS SELECT a FROM t LEFT JION s ON t.a = s.a", "JOIN"),
            ("CREATE VIEW v AS SELECT a FROM t JOIN s USING (a) LEFT OUTR JOIN u USING (a)", "OUTER"),
            ("CREATE EXTERNAL TABLE t (a INT PRIMRY KEY) STORED AS CSV LOCATION 'x'", "PRIMARY"),
            ("CREATE VIEW v AS SELECT TRYCAST(a AS INT) FROM t", "TRY_CAST"),
            ("CREATE VIEW v AS SELECT b, CSAT(coalesce(a, 1) AS INT) FROM t", "CAST"),
            // The second mistake is behind the first one.
            ("CREATE VIEW v AS SELCT a FROM t WHRE a = 1", "SELECT"),
        ] {
            assert_eq!(hint(sql), format!("did you mean {keyword}?"), "{sql}");
        }
    }

    #[test]
    fn a_missing_or_needless_sign_is_recognised() {
        for (sql, expected) in [
            ("CREATE VIEW v AS SELECT a b c FROM t", "is a comma missing before c?"),
            ("CREATE EXTERNAL TABLE t (a INT b INT) STORED AS CSV LOCATION 'x'", "is a comma missing before b?"),
            ("CREATE VIEW v AS SELECT count(a FROM t", "is a ) missing before FROM?"),
            ("CREATE VIEW v AS SELECT a FROM t WHERE a IN (1, 2;", "is a ) missing at the end?"),
            ("CREATE VIEW v AS SELECT a FROM t WHERE a IN (1, 2", "is a ) missing at the end?"),
            ("CREATE EXTERNAL TABLE t (a INT STORED AS CSV LOCATION 'x'", "is a ) missing before STORED?"),
            ("CREATE VIEW v AS SELECT a) FROM t", "leave out this )"),
            ("CREATE VIEW v AS SELECT a,, b FROM t", "leave out this ,"),
            ("CREATE VIEW v AS SELECT a FROM t INSERT INTO x SELECT a FROM v", "is a ; missing before INSERT?"),
            ("SET a.b = 1 CREATE VIEW v AS SELECT a FROM t", "is a ; missing before CREATE?"),
            (
                "CREATE EXTERNAL TABLE t (a INT) LOCATION 'x'",
                "add STORED AS KAFKA, DATABASE, PARQUET, DELTA, ELASTICSEARCH, CSV or JSON",
            ),
        ] {
            assert_eq!(hint(sql), expected, "{sql}");
        }
    }

    /// The rules of the shipped project are a CASE in a function in a CASE.
    #[test]
    fn what_is_wrong_in_a_case_is_told_of_its_own_place() {
        let rules = |rules: &str| {
            format!(
                "CREATE VIEW v AS SELECT CASE WHEN e IS NOT NULL THEN e ELSE nullif(concat_ws('; ', {rules}), '') END AS r FROM t"
            )
        };
        let first = "CASE WHEN a IS NULL THEN 'no a' WHEN a <= 0 THEN 'odd' END";
        for (sql, expected) in [
            (rules(&format!("{first} CASE WHEN b IS NULL THEN 'no b' END")), "is a comma missing before CASE?"),
            (rules(&format!("{first}, CASE WHEN b IS NULL TEHN 'no b' END")), "did you mean THEN?"),
            (rules(&format!("{first}, CASE WEHN b IS NULL THEN 'no b' END")), "did you mean WHEN?"),
            (rules(&format!("{first}, CASE WHEN b IS NULL ADN c THEN 'no b' END")), "did you mean AND?"),
            (rules(&format!("{first}, CSE WHEN b IS NULL THEN 'no b' END")), "did you mean CASE?"),
        ] {
            assert_eq!(hint(&sql), expected, "{sql}");
        }
        let without_end = rules(&format!("{first}, CASE WHEN b IS NULL THEN 'no b'"));
        let error = parse_tokens(tokens(&without_end)).map(drop).unwrap_err().to_string();
        assert!(error.contains("Expected: END"), "{error}");
    }

    #[test]
    fn what_cannot_be_known_is_not_guessed() {
        for sql in [
            "CREATE VIEW v AS SELECT a FROM",
            "CREATE VIEW v AS SELECT a FROM t WHERE = 1",
            "HELLO WORLD",
            "CREATE VIEW v AS SELECT ((a FROM t",
        ] {
            assert_eq!(hint(sql), "", "{sql}");
        }
    }

    #[test]
    fn a_literal_that_is_not_closed_is_looked_for() {
        let of = |sql: &str| {
            let mut before = vec![];
            let error =
                Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location_into_buf(&mut before).unwrap_err();
            let (message, hint) = unreadable(&error, &before);
            format!("{message}; {}", hint.unwrap_or_default())
        };
        assert_eq!(of("SELECT 'a"), "unterminated string literal; close it with '; a quote within it is written ''");
        assert_eq!(
            of("SELECT 1;\nSELECT 'a;\nSELECT 'b'"),
            "unterminated string literal; or is it the literal of line 2 that is not closed?"
        );
        assert_eq!(of("SELECT /* a"), "unterminated comment; close it with */");
        assert_eq!(of("SELECT \"a"), "unterminated quoted name; close it with the quote that it begins with");
    }
}
