//! Text for a person: at most 100 columns, colour only where it tells something.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

/// Columns.
pub const WIDTH: usize = 100;

/// The blue tenant.
pub const BLUE: Style = AnsiColor::Blue.on_default();
/// The green tenant.
pub const GREEN: Style = AnsiColor::Green.on_default();
/// What did not leave.
pub const RED: Style = AnsiColor::Red.on_default();
/// What is neither's.
pub const PLAIN: Style = Style::new();
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// A packet that came in, and in `style` what became of it.
#[derive(Debug)]
pub struct Row {
    /// Protocol and what it is.
    pub kind: String,
    /// Source.
    pub from: String,
    /// Destination.
    pub to: String,
    /// Style of the rest.
    pub style: Style,
    /// The rest.
    pub became: String,
}

/// Lines written so far, with their styles; who prints them takes the styles out where they cannot be shown.
#[derive(Debug, Default)]
pub struct Paper(String);

impl Paper {
    /// What was written.
    pub fn text(&self) -> &str {
        &self.0
    }

    // Writing to a string cannot fail.

    /// Opens a part.
    pub fn title(&mut self, text: &str) {
        let rule = "─".repeat(WIDTH.saturating_sub(text.chars().count() + 4));
        let _ = writeln!(self.0, "\n{DIM}──{DIM:#} {BOLD}{text}{BOLD:#} {DIM}{rule}{DIM:#}");
    }

    /// A command that was given.
    pub fn command(&mut self, text: &str) {
        let _ = writeln!(self.0, "\n{DIM}${DIM:#} {BOLD}{text}{BOLD:#}");
    }

    /// A line of one style.
    pub fn line(&mut self, style: Style, text: &str) {
        let _ = writeln!(self.0, "{style}{text}{style:#}");
    }

    /// Lines as they are.
    pub fn plain(&mut self, text: &str) {
        let _ = writeln!(self.0, "{text}");
    }

    /// Packets and what became of them, in columns.
    pub fn rows(&mut self, rows: &[Row]) {
        let width = |cell: fn(&Row) -> &String| rows.iter().map(|row| cell(row).chars().count()).max().unwrap_or(0);
        let (kind, from, to) = (width(|r| &r.kind), width(|r| &r.from), width(|r| &r.to));
        for row in rows {
            let came = format!("    {:<kind$}  {:>from$} → {:<to$}", row.kind, row.from, row.to);
            let style = row.style;
            let _ = writeln!(self.0, "{came}  {style}{}{style:#}", row.became);
        }
    }

    /// A line of one style that may be wider than the paper: it goes on, indented, on the next.
    pub fn folded(&mut self, text: &str, style: Style) {
        for line in fold(text, WIDTH) {
            self.line(style, &line);
        }
    }
}

/// Breaks a line at blanks; continuations are indented. Blanks between words stay as they are.
fn fold(text: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "      ";
    let mut lines = vec![String::new()];
    let mut columns = 0;
    for word in text.split_inclusive(' ') {
        let bare = word.trim_end().chars().count();
        if columns > 0 && columns + bare > width {
            lines.push(INDENT.to_owned());
            columns = INDENT.len();
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(word);
        }
        columns += word.chars().count();
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_goes_on_indented_and_loses_no_word() {
        let text = "udp      17 28 src=10.0.0.5 dst=192.0.2.1";
        assert_eq!(fold(text, 100), [text]);
        let lines = fold(text, 26);
        assert_eq!(lines, ["udp      17 28", "      src=10.0.0.5", "      dst=192.0.2.1"]);
        assert!(lines.iter().all(|l| l.chars().count() <= 26));
        assert_eq!(fold("", 10), [""]);
    }
}
