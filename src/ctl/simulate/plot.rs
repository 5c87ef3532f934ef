//! Two pictures side by side: hits against load balance, and hits against the time to the first token.

use std::fmt::Write;

use super::Row;
use super::rules::Who;

const SIDE: f64 = 330.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 60.0;
const GAP: f64 = 90.0;

fn colour(who: Who) -> &'static str {
    match who {
        Who::Random => "#94a3b8",
        Who::LeastLoad => "#475569",
        Who::Approximate => "#2563eb",
        Who::Exact => "#ea580c",
        Who::Announced => "#b91c1c",
    }
}

/// The pictures, as SVG.
pub(super) fn svg(title: &str, rows: &[Row]) -> String {
    let all: Vec<Who> = Who::BLIND.into_iter().chain(Who::SEEING).collect();
    let (width, height) = (LEFT + 2.0 * SIDE + GAP + 20.0, TOP + SIDE + 50.0 + 16.0 * all.len() as f64);
    let mut out = String::new();
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/><text x="12" y="20" font-weight="bold">{}</text>"##,
        escaped(title)
    );
    let balance: Axis<'_> = ("busiest pod / mean, requests (left is better)", &|r| r.played.imbalance);
    let wait: Axis<'_> = ("seconds to the first token, p90 (left is better)", &|r| r.ttft(0.9));
    panel(&mut out, LEFT, &all, rows, balance);
    panel(&mut out, LEFT + SIDE + GAP, &all, rows, wait);
    for (i, who) in all.iter().enumerate() {
        let y = TOP + SIDE + 50.0 + 16.0 * i as f64;
        let _ = writeln!(
            out,
            r#"<circle cx="{LEFT}" cy="{}" r="4" fill="{}"/><text x="{}" y="{y}">{}</text>"#,
            y - 4.0,
            colour(*who),
            LEFT + 10.0,
            who.name()
        );
    }
    out.push_str("</svg>\n");
    out
}

/// What it is called, and where a row is on it.
type Axis<'a> = (&'a str, &'a dyn Fn(&Row) -> f64);

fn panel(out: &mut String, left: f64, all: &[Who], rows: &[Row], (name, value): Axis<'_>) {
    let (least_x, most_x) = range(rows.iter().map(value));
    let (least_y, most_y) = range(rows.iter().map(Row::hits));
    let x = |r: &Row| left + SIDE * (value(r) - least_x) / (most_x - least_x);
    let y = |r: &Row| TOP + SIDE * (1.0 - (r.hits() - least_y) / (most_y - least_y));
    let _ = writeln!(
        out,
        r##"<rect x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#cbd5e1"/><text x="{left}" y="{}">hit ratio %</text><text x="{}" y="{}" text-anchor="middle">{name}</text>"##,
        TOP - 10.0,
        left + SIDE / 2.0,
        TOP + SIDE + 32.0
    );
    for part in [0.0, 0.5, 1.0] {
        let (at_x, at_y) = (least_x + part * (most_x - least_x), least_y + part * (most_y - least_y));
        let _ = writeln!(
            out,
            r#"<text x="{}" y="{}" text-anchor="middle">{at_x:.2}</text><text x="{}" y="{}" text-anchor="end">{:.1}</text>"#,
            left + part * SIDE,
            TOP + SIDE + 16.0,
            left - 6.0,
            TOP + SIDE * (1.0 - part) + 4.0,
            100.0 * at_y
        );
    }
    for who in all {
        let of: Vec<&Row> = rows.iter().filter(|r| r.who == *who).collect();
        let points: Vec<String> = of.iter().map(|r| format!("{:.1},{:.1}", x(r), y(r))).collect();
        let fill = colour(*who);
        let _ = writeln!(out, r#"<polyline points="{}" fill="none" stroke="{fill}"/>"#, points.join(" "));
        for row in of {
            let weight = row.weight.map(|w| w.to_string()).unwrap_or_default();
            let _ = writeln!(
                out,
                r#"<circle cx="{:.1}" cy="{:.1}" r="4" fill="{fill}"/><text x="{:.1}" y="{:.1}" font-size="9">{weight}</text>"#,
                x(row),
                y(row),
                x(row) + 5.0,
                y(row) - 4.0
            );
        }
    }
}

/// With a little room on both sides.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), v| (l.min(v), m.max(v)));
    let room = ((most - least) * 0.05).max(1e-6);
    (least - room, most + room)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
