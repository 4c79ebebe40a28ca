//! The plot: a bar for each row's ratio, its quartiles, and every turn as a dot.

use std::fmt::Write as _;

use crate::report::Line;
use crate::rows::{GROUPS, Group, PROGRAMS, SIZES};
use crate::worker::Mode;

const ROW: f64 = 15.0;
const NAMES: f64 = 250.0;
const PANEL: f64 = 300.0;
const GAP: f64 = 30.0;
const TOP: f64 = 76.0;
/// The ratio at the right edge; what is beyond is drawn there.
const MOST: f64 = 1.5;

fn x(panel: usize, ratio: f64) -> f64 {
    NAMES + panel as f64 * (PANEL + GAP) + PANEL * ratio.clamp(0.0, MOST) / MOST
}

/// All lines, a panel for each mode.
pub(crate) fn svg(lines: &[Line]) -> String {
    let modes: Vec<Mode> =
        Mode::ALL.into_iter().filter(|mode| lines.iter().any(|line| line.mode == *mode)).collect();
    let mut body = String::new();
    let mut y = TOP;
    let more: [Group; 2] = [("memory of an object", SIZES), ("unmodified programs, live engine", PROGRAMS)];
    for (title, rows) in GROUPS.iter().chain(&more) {
        let here: Vec<&str> = rows
            .iter()
            .filter(|row| lines.iter().any(|line| line.row.name == row.name))
            .map(|row| row.name)
            .collect();
        if here.is_empty() {
            continue;
        }
        y += ROW * 1.6;
        let _ = writeln!(body, r#"<text x="8" y="{:.1}" class="title">{title}</text>"#, y - 3.0);
        for name in here {
            let _ = writeln!(
                body,
                r#"<text x="{:.1}" y="{:.1}" class="name">{name}</text>"#,
                NAMES - 8.0,
                y + ROW - 4.0
            );
            for (panel, mode) in modes.iter().enumerate() {
                let Some(line) = lines.iter().find(|line| line.row.name == name && line.mode == *mode) else {
                    continue;
                };
                let (ratio, middle) = (line.ratio, y + ROW / 2.0);
                let class = match ratio.median {
                    less if less < 0.98 => "less",
                    same if same <= 1.02 => "same",
                    _ => "more",
                };
                let _ = writeln!(
                    body,
                    r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" class="{class}"><title>{}: {:.1} / {:.1} {}, {:.3}</title></rect>"#,
                    x(panel, 0.0),
                    y + 2.0,
                    x(panel, ratio.median) - x(panel, 0.0),
                    ROW - 4.0,
                    line.name(),
                    line.holdfast.median,
                    line.stock.median,
                    line.unit,
                    ratio.median,
                );
                for turn in &line.ratios {
                    let _ = writeln!(body, r#"<circle cx="{:.1}" cy="{middle:.1}" r="1"/>"#, x(panel, *turn));
                }
                let _ = writeln!(
                    body,
                    r#"<path d="M{:.1} {middle:.1}H{:.1}" class="quartiles"/><text x="{:.1}" y="{:.1}" class="value">{:.2}</text>"#,
                    x(panel, ratio.low),
                    x(panel, ratio.high),
                    x(panel, 0.0) + 3.0,
                    y + ROW - 4.0,
                    ratio.median,
                );
            }
            y += ROW;
        }
    }
    let (width, height) = (NAMES + modes.len() as f64 * (PANEL + GAP), y + 16.0);
    let mut axes = String::new();
    for (panel, mode) in modes.iter().enumerate() {
        let _ =
            writeln!(axes, r#"<text x="{:.1}" y="48" class="title">{}</text>"#, x(panel, 0.0), mode.title());
        for tick in [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5] {
            let class = if tick == 1.0 { "one" } else { "tick" };
            let _ = writeln!(
                axes,
                r#"<path d="M{0:.1} {TOP}V{1:.1}" class="{class}"/><text x="{0:.1}" y="68" class="axis">{tick}</text>"#,
                x(panel, tick),
                height - 12.0,
            );
        }
    }
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}">
<style>
text {{ font: 11px sans-serif; fill: #222 }}
.title {{ font-weight: bold }} .head {{ font: bold 14px sans-serif }} .name {{ text-anchor: end; font-family: monospace; font-size: 10px }}
.axis {{ text-anchor: middle; fill: #666; font-size: 10px }} .value {{ font-size: 9px; fill: #fff }}
.less {{ fill: #2b7a4b }} .same {{ fill: #777 }} .more {{ fill: #b3402a }} .tick {{ stroke: #ddd }} .one {{ stroke: #222; stroke-dasharray: 3 2 }}
circle {{ fill: #000; fill-opacity: 0.18 }} .quartiles {{ stroke: #f0b429; stroke-width: 3 }}
</style>
<rect width="100%" height="100%" fill="white"/>
<text x="8" y="22" class="head">holdfast / stock libmlx5, bar the median (green: less, grey: within 2 %, red: more), yellow the quartiles, dots the turns (1: the same)</text>
{axes}{body}</svg>
"#
    )
}
