//! Places in the user's files: a line, a column, and how they are shown.
//!
//! ```text
//!   queries/20_windows.sql:7:8
//!    7 | SELECT windw_start, count(*)
//!      |        ^^^^^^^^^^^
//! ```
//!
//! Lines and columns count from 1; a column is a character, as in sqlparser, not a byte.

/// Some characters of one line of one file, as the user wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Position in [`super::text::Files`].
    pub file: usize,
    pub line: usize,
    pub column: usize,
    /// Characters to underline; at least 1.
    pub len: usize,
}

/// Longer lines are cut around the place.
const SHOWN_CHARS_MAX: usize = 120;

/// The place with its line and a caret, as [`crate::Error::snippet`] takes it.
pub fn render(file_name: &str, source: &str, place: &Place) -> String {
    let line: Vec<char> = source.lines().nth(place.line.saturating_sub(1)).unwrap_or("").chars().collect();
    let begin = place.column.saturating_sub(1).min(line.len());
    let end = (begin + place.len.max(1)).min(line.len().max(begin + 1));
    let from = if line.len() <= SHOWN_CHARS_MAX { 0 } else { begin.saturating_sub(SHOWN_CHARS_MAX / 3) };
    let to = line.len().min(from + SHOWN_CHARS_MAX);
    // A tab stays a tab in the line and under it, so that the caret stands right whatever the terminal makes of it.
    let clean = |c: &char| if *c == '\t' || !c.is_control() { *c } else { ' ' };
    let shown: String = line[from..to].iter().map(clean).collect();
    let pad: String = line[from..begin].iter().map(|c| if *c == '\t' { '\t' } else { ' ' }).collect();
    let carets = "^".repeat(end.min(to.max(begin + 1)) - begin);
    let (cut_before, blank) = if from > 0 { ("…", " ") } else { ("", "") };
    let cut_after = if to < line.len() { "…" } else { "" };
    let number = place.line.to_string();
    let margin = " ".repeat(number.len());
    format!(
        "  {file_name}:{}:{}\n   {number} | {cut_before}{shown}{cut_after}\n   {margin} | {blank}{pad}{carets}",
        place.line, place.column
    )
}

/// Where the lines of a text begin.
#[derive(Debug, Clone)]
pub struct Lines(Vec<usize>);

impl Lines {
    pub fn new(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// The byte at a line and column; the end of the line where it is shorter, the end of the text where that is.
    pub fn offset(&self, text: &str, line: usize, column: usize) -> usize {
        let Some(start) = self.0.get(line.saturating_sub(1)).copied() else { return text.len() };
        let end = self.0.get(line).copied().unwrap_or(text.len());
        let mut chars = text[start..end].char_indices().skip(column.saturating_sub(1));
        chars.next().map_or(end, |(at, _)| start + at)
    }

    /// Line and column of a byte.
    pub fn locate(&self, text: &str, offset: usize) -> (usize, usize) {
        let line = self.0.partition_point(|start| *start <= offset).max(1);
        let start = self.0[line - 1];
        (line, text.get(start..offset).map_or(1, |before| before.chars().count() + 1))
    }
}

/// Goes through a text once, forwards, turning lines and columns into bytes: linear also for one very long line.
pub struct Cursor<'t> {
    text: &'t str,
    line: u64,
    column: u64,
    offset: usize,
}

impl<'t> Cursor<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { text, line: 1, column: 1, offset: 0 }
    }

    /// Stays where it is if the place lies behind.
    pub fn advance(&mut self, line: u64, column: u64) -> usize {
        for c in self.text[self.offset..].chars() {
            if (self.line, self.column) >= (line, column) {
                break;
            }
            self.offset += c.len_utf8();
            if c == '\n' {
                (self.line, self.column) = (self.line + 1, 1);
            } else {
                self.column += 1;
            }
        }
        self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(line: usize, column: usize, len: usize) -> Place {
        Place { file: 0, line, column, len }
    }

    #[test]
    fn a_place_is_shown_with_its_line_and_a_caret() {
        let source = "CREATE VIEW v AS\r\n\tSELECT windw_start\r\nFROM ü";
        insta::assert_snapshot!(render("q/a.sql", source, &place(2, 9, 11)), @r"
          q/a.sql:2:9
           2 | 	SELECT windw_start
             | 	       ^^^^^^^^^^^
        ");
        insta::assert_snapshot!(render("a.sql", source, &place(3, 6, 9)), @r"
          a.sql:3:6
           3 | FROM ü
             |      ^
        ");
    }

    #[test]
    fn a_place_past_the_end_is_still_shown() {
        insta::assert_snapshot!(render("a.sql", "SELECT", &place(1, 7, 3)), @r"
          a.sql:1:7
           1 | SELECT
             |       ^
        ");
        assert!(render("a.sql", "", &place(9, 9, 9)).contains("a.sql:9:9"));
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let source = format!("{}here{}", "x".repeat(500), "y".repeat(500));
        let shown = render("a.sql", &source, &place(1, 501, 4));
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].chars().count() < 140, "{shown}");
        let caret = lines[2].chars().position(|c| c == '^').unwrap();
        assert_eq!(lines[1].chars().skip(caret).take(4).collect::<String>(), "here");
    }

    #[test]
    fn offsets_and_places_fit() {
        let text = "ab\nüc\n\nd";
        let lines = Lines::new(text);
        for (offset, at) in [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (5, (2, 2)), (7, (3, 1)), (8, (4, 1)), (9, (4, 2))]
        {
            assert_eq!(lines.locate(text, offset), at);
            assert_eq!(lines.offset(text, at.0, at.1), offset);
            assert_eq!(Cursor::new(text).advance(at.0 as u64, at.1 as u64), offset);
        }
        assert_eq!(lines.offset(text, 99, 1), text.len());
    }
}
