//! Where in a statement a word stands, so that an error points at it and not at the statement's beginning.
//!
//! Syntax trees do not say where an option, a type or a literal was written; the tokens do. An error that knows what it
//! is about has a [`Part`]; one that only quotes a name gets the place of that name, if the statement has it once.

use std::ops::Range;

use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::place::Place;
use super::text::{Files, Located};
use crate::Part;

/// Words that end the type of a column.
const AFTER_TYPE: [&str; 10] =
    ["NOT", "NULL", "PRIMARY", "CONSTRAINT", "DEFAULT", "CHECK", "UNIQUE", "REFERENCES", "COMMENT", "GENERATED"];

/// The place of a part of the statement that begins at `statement`; `None` if it has no such part.
pub fn place_of(files: &Files, statement: &Place, part: &Part) -> Option<Place> {
    let tokens = files.tokens(statement);
    place(files, statement.file, tokens, find(tokens, part)?)
}

/// The place of the first name or literal that the message quotes and the statement has once: then there is no doubt.
pub fn place_of_quoted(files: &Files, statement: &Place, message: &str) -> Option<Place> {
    let tokens = files.tokens(statement);
    quoted(message).find_map(|name| {
        let name = name.split('(').next().unwrap_or(name); // TIMESTAMP(9), upper(Int64)
        let name = name.rsplit('.').next().unwrap_or(name);
        let mut found = tokens.iter().enumerate().filter(|(_, (token, _))| says(token, name)).map(|(at, _)| at);
        match (found.next(), found.next()) {
            (Some(at), None) => place(files, statement.file, tokens, at..at + 1),
            _ => None,
        }
    })
}

/// The place of the first literal of this text in the statement.
pub fn place_of_literal(files: &Files, statement: &Place, literal: &str) -> Option<Place> {
    let tokens = files.tokens(statement);
    let is_literal = |token: &TokenWithSpan| matches!(&token.token, Token::SingleQuotedString(text) if text == literal);
    let at = tokens.iter().position(|(token, _)| is_literal(token))?;
    place(files, statement.file, tokens, at..at + 1)
}

/// What stands between single or double quotes.
fn quoted(message: &str) -> impl Iterator<Item = &str> {
    ['\'', '"'].into_iter().flat_map(|quote| message.split(quote).skip(1).step_by(2)).filter(|text| !text.is_empty())
}

fn place(files: &Files, file: usize, tokens: &[Located], range: Range<usize>) -> Option<Place> {
    let found = tokens.get(range)?;
    Some(files.place(file, found.first()?.1.start..found.last()?.1.end))
}

fn says(token: &TokenWithSpan, name: &str) -> bool {
    match &token.token {
        Token::SingleQuotedString(text) => text == name,
        Token::Word(word) if word.quote_style.is_some() => word.value == name,
        Token::Word(word) => word.value.eq_ignore_ascii_case(name),
        _ => false,
    }
}

fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

/// As positions among the tokens.
fn find(tokens: &[Located], part: &Part) -> Option<Range<usize>> {
    let assigned = || tokens.iter().position(|(token, _)| token.token == Token::Eq || is_word(token, "TO"));
    match part {
        Part::Name => name(tokens),
        Part::StoredAs => clause(tokens, "STORED").map(|at| at + 2..at + 3),
        Part::Location => clause(tokens, "LOCATION").map(|at| at + 1..at + 2),
        Part::Type(column) => type_of(tokens, column),
        Part::Option(key) => options(tokens).into_iter().rfind(|(name, ..)| name == key).map(|(_, key, _)| key),
        Part::OptionValue(key) => {
            let value = options(tokens).into_iter().rfind(|(name, ..)| name == key).map(|(.., value)| value);
            value.or_else(|| clause(tokens, "OPTIONS").map(|at| at..at + 1))
        }
        Part::SettingKey => assigned().map(|at| 1..at),
        Part::SettingValue => assigned().map(|at| at + 1..tokens.len()),
    }
}

/// Behind `CREATE … TABLE`, `CREATE VIEW`, `CREATE SCHEMA` or `INSERT INTO`.
fn name(tokens: &[Located]) -> Option<Range<usize>> {
    let before = |word: &&str| tokens.iter().position(|(token, _)| is_word(token, word));
    let mut begin = ["TABLE", "VIEW", "SCHEMA", "INTO"].iter().filter_map(before).min()? + 1;
    let passed = ["TABLE", "IF", "NOT", "EXISTS"];
    while tokens.get(begin).is_some_and(|(token, _)| passed.iter().any(|word| is_word(token, word))) {
        begin += 1;
    }
    let mut end = begin + 1;
    while tokens.get(end).is_some_and(|(token, _)| token.token == Token::Period) {
        end += 2;
    }
    Some(begin..end)
}

/// How deep in parentheses (and the `<>` of a type) each token stands; a closing one as deep as what it closes.
fn depths(tokens: &[Located]) -> impl Iterator<Item = usize> {
    let mut open = vec![];
    tokens.iter().map(move |(token, _)| {
        let close = |open: &mut Vec<Token>| drop(open.pop_if(|sign| *sign == Token::Lt));
        match &token.token {
            sign @ (Token::LParen | Token::Lt) => {
                open.push(sign.clone());
                return open.len() - 1;
            }
            // A comparison within the parentheses may have left a < open.
            Token::RParen => while open.pop().is_some_and(|sign| sign != Token::LParen) {},
            Token::Gt => close(&mut open),
            Token::ShiftRight => (0..2).for_each(|_| close(&mut open)),
            _ => {}
        }
        open.len()
    })
}

/// The last one outside of parentheses: the table may have the same name.
fn clause(tokens: &[Located], word: &str) -> Option<usize> {
    let outside = tokens.iter().zip(depths(tokens)).enumerate().filter(|(_, (_, depth))| *depth == 0);
    outside.filter(|(_, ((token, _), _))| is_word(token, word)).map(|(at, _)| at).last()
}

fn type_of(tokens: &[Located], column: &str) -> Option<Range<usize>> {
    let depths: Vec<usize> = depths(tokens).collect();
    let begins = |at: &usize| matches!(tokens[at - 1].0.token, Token::LParen | Token::Comma);
    let name =
        (1..tokens.len()).filter(|at| depths[*at] == 1).filter(begins).find(|at| says(&tokens[*at].0, column))?;
    let ends = |at: &usize| {
        let token = &tokens[*at].0;
        let closes = depths[*at] == 0 || (depths[*at] == 1 && token.token == Token::Comma);
        closes || AFTER_TYPE.iter().any(|word| is_word(token, word))
    };
    Some(name + 1..(name + 1..tokens.len()).find(ends)?)
}

/// Of `OPTIONS (…)`: each key in lower case, where it stands, where its value stands.
fn options(tokens: &[Located]) -> Vec<(String, Range<usize>, Range<usize>)> {
    let mut found = vec![];
    let Some(mut at) = clause(tokens, "OPTIONS").map(|at| at + 1) else { return found };
    // At the parenthesis, then at the comma behind each value.
    while tokens.get(at).is_some_and(|(token, _)| matches!(token.token, Token::LParen | Token::Comma)) {
        let begin = at + 1;
        let Some(mut key) = tokens.get(begin).and_then(|(token, _)| text_of(&token.token)) else { break };
        at = begin + 1;
        while tokens.get(at).is_some_and(|(token, _)| token.token == Token::Period) {
            let part = tokens.get(at + 1).and_then(|(token, _)| text_of(&token.token)).unwrap_or_default();
            key = format!("{key}.{part}");
            at += 2;
        }
        found.push((key, begin..at, at..at + 1));
        at += 1;
    }
    found
}

fn text_of(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) => Some(word.value.to_lowercase()),
        Token::SingleQuotedString(text) | Token::DoubleQuotedString(text) | Token::EscapedStringLiteral(text) => {
            Some(text.to_lowercase())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(source: &str, statement: usize, found: impl Fn(&Files, &Place) -> Option<Place>) -> String {
        let files = Files::from_stored(vec![("a.sql".into(), source.into())], &|_| Ok(Some("a longer value".into())));
        let place = found(&files, &files.statements(0)[statement]);
        place.map_or_else(|| "nowhere".into(), |place| format!("{} {}", place.column, files.at(&place).unwrap_or("")))
    }

    fn part(source: &str, part: &Part) -> String {
        at(source, 1, |files, statement| place_of(files, statement, part))
    }

    #[test]
    fn the_parts_of_a_declaration_are_found() {
        let table = "SET a.b = 1; CREATE EXTERNAL TABLE db.options (a INT, s STRUCT<x INT, b DATE>, b TIMESTAMP(9) NOT NULL) \
                     STORED AS kafka LOCATION '${L}' OPTIONS ('Key' 'v', watermark.delay '${V}', role x)";
        let of = |found: Part| part(table, &found);
        assert_eq!(of(Part::Name), "36 db.options");
        assert_eq!(of(Part::StoredAs), "115 kafka");
        assert_eq!(of(Part::Location), "130 '${L}'");
        assert_eq!(of(Part::Type("b".into())), "82 TIMESTAMP(9)");
        assert_eq!(of(Part::Type("s".into())), "57 STRUCT<x INT, b DATE>");
        assert_eq!(of(Part::Type("x".into())), "nowhere");
        assert_eq!(of(Part::Option("key".into())), "146 'Key'");
        assert_eq!(of(Part::OptionValue("key".into())), "152 'v'");
        assert_eq!(of(Part::Option("watermark.delay".into())), "157 watermark.delay");
        assert_eq!(of(Part::OptionValue("watermark.delay".into())), "173 '${V}'");
        assert_eq!(of(Part::OptionValue("brokers".into())), "137 OPTIONS");
        assert_eq!(of(Part::Option("brokers".into())), "nowhere");
        let plain = part(
            "SELECT 1; CREATE EXTERNAL TABLE t (a INT) STORED AS CSV LOCATION 'x'",
            &Part::OptionValue("k".into()),
        );
        assert_eq!(plain, "nowhere");
        let compared =
            "; CREATE EXTERNAL TABLE t (a INT CHECK (a < 5), b INT CHECK (a > 5), c ARRAY<ARRAY<INT>>, d DATE)";
        let of = |column: &str| at(compared, 0, |files, place| place_of(files, place, &Part::Type(column.into())));
        assert_eq!([of("a"), of("b"), of("c"), of("d")], ["30 INT", "51 INT", "72 ARRAY<ARRAY<INT>>", "93 DATE"]);
    }

    #[test]
    fn the_parts_of_other_statements_are_found() {
        let set = "SELECT 1; SET poundlock.trigger = '1 s';";
        assert_eq!(part(set, &Part::SettingKey), "15 poundlock.trigger");
        assert_eq!(part(set, &Part::SettingValue), "35 '1 s'");
        assert_eq!(part("SELECT 1; SET a.b TO -5", &Part::SettingValue), "22 -5");
        assert_eq!(part("SELECT 1; INSERT INTO TABLE a.b SELECT 1", &Part::Name), "29 a.b");
        assert_eq!(part("SELECT 1; CREATE SCHEMA IF NOT EXISTS s", &Part::Name), "39 s");
    }

    #[test]
    fn a_quoted_name_is_found_if_there_is_one_of_it() {
        let of = |message: &str| {
            let source = "SELECT a; SELECT upper(b, 1), b, \"C\", 'two words' FROM t";
            at(source, 1, |files, statement| place_of_quoted(files, statement, message))
        };
        assert_eq!(of("function 'UPPER' takes one argument"), "18 upper");
        assert_eq!(of("'t.b' is not known"), "nowhere", "there are two");
        assert_eq!(of("'t.b' of 'public.t'"), "56 t");
        assert_eq!(of("'a' is not known"), "nowhere", "that is another statement's");
        assert_eq!(of("\"C\""), "34 \"C\"");
        assert_eq!(of("cannot cast 'two words'"), "39 'two words'");
        assert_eq!(of("it doesn't fit"), "nowhere");
    }
}
