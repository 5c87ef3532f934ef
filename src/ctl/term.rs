//! What may be written to this terminal? Colours, widths and tables.

use std::io::{self, IsTerminal, Write};

/// Paints text, or leaves it alone where colours do not belong.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Colours only on a terminal, and not where `NO_COLOR` is set or `plain` asked for.
    pub fn for_stdout(plain: bool) -> Paint {
        let refused = plain || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Paint { on: !refused && io::stdout().is_terminal() }
    }

    /// No colours.
    #[cfg(test)]
    pub fn none() -> Paint {
        Paint { on: false }
    }

    /// Whether there are colours.
    pub fn is_on(self) -> bool {
        self.on
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.code("1", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.code("2", text)
    }

    /// Good.
    pub fn good(self, text: &str) -> String {
        self.code("32", text)
    }

    /// Odd.
    pub fn odd(self, text: &str) -> String {
        self.code("33", text)
    }

    /// Bad.
    pub fn bad(self, text: &str) -> String {
        self.code("31", text)
    }

    fn code(self, code: &str, text: &str) -> String {
        if self.on && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Columns that a line may take: the terminal's, or where there is none enough for whole names.
pub fn width() -> usize {
    match crossterm::terminal::size() {
        Ok((columns, _)) if io::stdout().is_terminal() => usize::from(columns).max(40),
        Ok(_) | Err(_) => 240,
    }
}

/// `text` in at most `max` characters.
pub fn clip(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(max.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// Text from kvd on one line without control characters: names are what clients registered.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The same over several lines.
pub fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// `n` of something, in words: "1 block", "2 blocks".
pub fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Names.
    Left,
    /// Numbers.
    Right,
}

/// Rows in aligned columns.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

/// One field: what it says and how it is painted.
pub struct Cell {
    text: String,
    paint: fn(Paint, &str) -> String,
}

impl<T: ToString> From<T> for Cell {
    fn from(value: T) -> Cell {
        Cell { text: printable(&value.to_string()), paint: |_, text| text.to_owned() }
    }
}

impl Cell {
    /// A field that is painted.
    pub fn painted(value: impl ToString, paint: fn(Paint, &str) -> String) -> Cell {
        Cell { text: printable(&value.to_string()), paint }
    }
}

impl Table {
    /// A table with these headings.
    pub fn new(columns: &[(&'static str, Align)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; fields beyond the headings are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Writes it in lines of at most `width` characters: left-aligned columns give way, the last
    /// one first, because what a row is about stands in front.
    pub fn write(&self, out: &mut dyn Write, paint: Paint, width: usize) -> io::Result<()> {
        let widths = self.widths(width);
        let heading = self.columns.iter().map(|(name, _)| Cell::painted(name, Paint::dim));
        self.line(out, paint, &widths, &heading.collect::<Vec<_>>())?;
        self.rows.iter().try_for_each(|row| self.line(out, paint, &widths, row))
    }

    fn widths(&self, width: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|(name, _)| name.chars().count()).collect();
        for row in &self.rows {
            for (w, cell) in widths.iter_mut().zip(row) {
                *w = (*w).max(cell.text.chars().count());
            }
        }
        let total = |widths: &[usize]| widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        while total(&widths) > width {
            let least = |i: usize| self.columns[i].0.chars().count().max(8);
            let giving =
                (0..widths.len()).rev().find(|&i| self.columns[i].1 == Align::Left && widths[i] > least(i));
            match giving {
                Some(i) => widths[i] -= 1,
                None => break,
            }
        }
        widths
    }

    fn line(&self, out: &mut dyn Write, paint: Paint, widths: &[usize], row: &[Cell]) -> io::Result<()> {
        let mut line = String::new();
        for (i, ((cell, &w), (_, align))) in row.iter().zip(widths).zip(&self.columns).enumerate() {
            let text = clip(&cell.text, w);
            let pad = " ".repeat(w - text.chars().count());
            let painted = (cell.paint)(paint, &text);
            if i > 0 {
                line.push_str("  ");
            }
            match align {
                // Nothing follows the last column, so nothing needs to be padded there.
                Align::Left if i + 1 == row.len() => line.push_str(&painted),
                Align::Left => line.extend([painted, pad]),
                Align::Right => line.extend([pad, painted]),
            }
        }
        writeln!(out, "{}", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(table: &Table, width: usize) -> String {
        let mut out = Vec::new();
        table.write(&mut out, Paint::none(), width).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn names_stand_left_and_numbers_right() {
        let mut t = Table::new(&[("pod", Align::Left), ("blocks", Align::Right), ("state", Align::Left)]);
        t.row(["10.0.0.1:8000".into(), 7.into(), "live".into()]);
        t.row(["b".into(), 12345.into(), "partial".into()]);
        assert_eq!(
            written(&t, 80),
            "pod            blocks  state\n10.0.0.1:8000       7  live\nb               12345  partial\n"
        );
    }

    #[test]
    fn a_narrow_terminal_shortens_names_and_never_numbers() {
        let mut t = Table::new(&[("pod", Align::Left), ("blocks", Align::Right)]);
        t.row(["a-very-long-name-of-a-pod".into(), 123456789.into()]);
        let out = written(&t, 24);
        assert!(out.lines().all(|l| l.chars().count() <= 24), "{out}");
        assert!(out.contains("123456789") && out.contains('…'), "{out}");
    }

    #[test]
    fn what_clients_registered_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
