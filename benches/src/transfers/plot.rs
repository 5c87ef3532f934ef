//! Time to first token by who decides, a panel per trace: a bar to p90, with marks at p50 and p99.

use std::fmt::Write;

use super::world::Outcome;

const LEFT: f64 = 250.0;
const WIDTH: f64 = 420.0;
const ROW: f64 = 18.0;

/// One trace and cluster.
pub struct Panel {
    title: String,
    rows: Vec<(String, [f64; 3])>,
}

impl Panel {
    /// Takes what is shown of outcomes whose times are sorted.
    pub fn new(title: String, rows: &[(String, &Outcome)]) -> Panel {
        let row = |(name, o): &(String, &Outcome)| {
            (name.replace('*', ""), [0.5, 0.9, 0.99].map(|p| super::at(&o.ttft, p)))
        };
        Panel { title, rows: rows.iter().map(row).collect() }
    }
}

/// The picture.
pub fn svg(panels: &[Panel]) -> String {
    let height: f64 = panels.iter().map(|p| 52.0 + ROW * p.rows.len() as f64).sum::<f64>() + 30.0;
    let mut out = String::new();
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/><text x="12" y="18">Seconds to the first token: bar to p90, white mark at p50, line to p99 (left is better)</text>"##,
        LEFT + WIDTH + 70.0
    );
    let mut top = 30.0;
    for panel in panels {
        // Who is far off the others is cut, with the number beside it.
        let mut p90: Vec<f64> = panel.rows.iter().map(|r| r.1[1]).collect();
        p90.sort_by(f64::total_cmp);
        let most = (2.5 * p90[p90.len() / 2]).min(4.0 * p90[1.min(p90.len() - 1)]);
        let x = |v: f64| LEFT + WIDTH * (v / most).min(1.0);
        let _ = writeln!(out, r#"<text x="12" y="{}" font-weight="bold">{}</text>"#, top + 18.0, panel.title);
        for (i, (name, [p50, p90, p99])) in panel.rows.iter().enumerate() {
            let y = top + 26.0 + ROW * i as f64;
            let fill = if name.starts_with("kvd") { "#c2410c" } else { "#64748b" };
            let _ = writeln!(
                out,
                r##"<text x="{}" y="{}" text-anchor="end">{name}</text><line x1="{LEFT}" x2="{}" y1="{m}" y2="{m}" stroke="{fill}"/><rect x="{LEFT}" y="{y}" width="{}" height="12" fill="{fill}"/><rect x="{}" y="{y}" width="2" height="12" fill="#fff"/><text x="{}" y="{}" font-size="10">{p90:.2}</text>"##,
                LEFT - 8.0,
                y + 10.0,
                x(*p99),
                x(*p90) - LEFT,
                x(*p50) - 1.0,
                x(*p90).max(x(*p99)) + 6.0,
                y + 10.0,
                m = y + 6.0,
            );
        }
        top += 52.0 + ROW * panel.rows.len() as f64;
    }
    out.push_str("</svg>\n");
    out
}
