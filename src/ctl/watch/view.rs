//! How does the live view look?

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table};

use super::sample::{Row, Totals};
use crate::ctl::publishers::silence;
use crate::ctl::term::printable;

/// Everything that is on the screen.
#[derive(Default)]
pub struct View {
    /// Where kvd is.
    pub address: String,
    /// kvd as a whole.
    pub totals: Totals,
    /// One per publisher.
    pub rows: Vec<Row>,
    /// First row that is shown.
    pub top: usize,
    /// Why the last look failed.
    pub error: Option<String>,
    /// Whether colours may be used.
    pub colour: bool,
}

const COLUMNS: [(&str, Constraint); 11] = [
    ("instance", Constraint::Fill(3)),
    ("rank", Constraint::Length(4)),
    ("model", Constraint::Fill(2)),
    ("state", Constraint::Length(10)),
    ("seq", Constraint::Length(9)),
    ("gpu", Constraint::Length(9)),
    ("cpu", Constraint::Length(9)),
    ("further", Constraint::Length(9)),
    ("events/s", Constraint::Length(9)),
    ("blocks/s", Constraint::Length(9)),
    ("lag", Constraint::Length(7)),
];

impl View {
    /// Moves the rows shown by `by`, as far as there are any.
    pub fn scroll(&mut self, by: isize) {
        self.top = self.top.saturating_add_signed(by).min(self.rows.len().saturating_sub(1));
    }

    /// Draws it.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let areas = Layout::vertical([Constraint::Length(2), Constraint::Fill(1), Constraint::Length(1)]);
        let [head, body, foot] = areas.areas(frame.area());
        let t = &self.totals;
        let first = format!(
            "kvd {}  {} publishers, {} live  {} blocks held",
            self.address, t.publishers.0, t.publishers.1, t.entries
        );
        let second = format!(
            "{:.0} events/s  {:.0} queries/s  {} messages dropped",
            t.events_per_s, t.queries_per_s, t.dropped
        );
        frame.render_widget(Paragraph::new(vec![Line::styled(first, self.bold()), Line::from(second)]), head);

        let rows = self.rows.iter().skip(self.top).map(|r| self.row(r));
        let header = TableRow::new(COLUMNS.map(|(name, _)| name)).style(self.bold());
        let table = Table::new(rows, COLUMNS.map(|(_, width)| width)).header(header);
        frame.render_widget(table, body);

        let (text, style) = match &self.error {
            Some(error) => (printable(error), self.colour(Color::Red)),
            None => ("q quits, arrows scroll".to_owned(), Style::default()),
        };
        frame.render_widget(Paragraph::new(text).style(style), foot);
    }

    fn row(&self, r: &Row) -> TableRow<'static> {
        let state = if r.complete { Color::Green } else { Color::Yellow };
        // While nothing waits, how long the engine has been silent says more.
        let lag = if r.queued > 0 || r.lag_ms > 0 {
            Cell::from(format!("{}ms", r.lag_ms)).style(self.colour(Color::Yellow))
        } else {
            Cell::from(format!("idle {}", silence(r.last_seq.is_some(), r.silent_ms)))
        };
        TableRow::new([
            Cell::from(printable(&r.instance)),
            Cell::from(r.rank.to_string()),
            Cell::from(printable(&r.model)),
            Cell::from(r.state).style(self.colour(state)),
            Cell::from(r.last_seq.map_or("-".to_owned(), |n| n.to_string())),
            Cell::from(r.blocks[0].to_string()),
            Cell::from(r.blocks[1].to_string()),
            Cell::from(r.blocks[2].to_string()),
            Cell::from(format!("{:.0}", r.events_per_s)),
            Cell::from(format!("{:+.0}", r.blocks_per_s)),
            lag,
        ])
    }

    fn bold(&self) -> Style {
        Style::default().add_modifier(Modifier::BOLD)
    }

    fn colour(&self, colour: Color) -> Style {
        if self.colour { Style::default().fg(colour) } else { Style::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn row(instance: &str) -> Row {
        Row {
            instance: instance.into(),
            rank: 1,
            model: "llama".into(),
            state: "live",
            complete: true,
            last_seq: Some(42),
            blocks: [7, 3, 0],
            events_per_s: 12.4,
            blocks_per_s: -2.0,
            lag_ms: 0,
            queued: 0,
            silent_ms: 3_000,
            last_error: String::new(),
        }
    }

    fn drawn(view: &View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(120, 6)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_publisher_has_its_tiers_rates_and_state_in_a_row() {
        let view = View { rows: vec![row("10.0.0.1:8000")], ..View::default() };
        let text = drawn(&view);
        for part in ["10.0.0.1:8000", "llama", "live", "42", "12", "-2", "idle 3s", "q quits"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn scrolling_stays_within_the_rows() {
        let mut view = View { rows: vec![row("first"), row("second")], ..View::default() };
        view.scroll(5);
        let text = drawn(&view);
        assert!(text.contains("second") && !text.contains("first"), "{text}");
        view.scroll(-9);
        assert_eq!(view.top, 0);
    }

    #[test]
    fn a_kvd_that_is_gone_is_said_at_the_foot() {
        let view = View { error: Some("cannot reach kvd".into()), ..View::default() };
        assert!(drawn(&view).contains("cannot reach kvd"));
    }
}
