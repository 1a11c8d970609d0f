//! Plots as SVG, readable on light and dark pages and in text.

use std::fmt::Write as _;

use crate::figures::number;

const WIDTH: f64 = 720.0;
const BAR_HEIGHT: f64 = 22.0;
const LABELS_WIDTH: f64 = 210.0;
const CURVE_HEIGHT: f64 = 300.0;
const MARGIN: f64 = 56.0;
/// Colours that people who do not see all of them can tell apart.
const COLOURS: [&str; 8] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442",
];

/// A plot that is a part of a page.
pub(crate) struct Panel {
    height: f64,
    body: String,
}

/// Draws panels below each other.
pub(crate) fn page(panels: &[Panel]) -> String {
    let height: f64 = panels.iter().map(|panel| panel.height).sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut top = 0.0;
    for panel in panels {
        let _ = writeln!(
            svg,
            "<g transform=\"translate(0 {top:.0})\">\n{}</g>",
            panel.body
        );
        top += panel.height;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Draws one bar for each value.
pub(crate) fn bars(title: &str, bars: &[(String, f64)]) -> Panel {
    let mut body = heading(title);
    let most = bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let room = WIDTH - LABELS_WIDTH - 100.0;
    let mut top = 32.0;
    for (at, (label, value)) in bars.iter().enumerate() {
        let length = if most > 0.0 { value / most * room } else { 0.0 };
        let text_top = top + BAR_HEIGHT * 0.68;
        let colour = COLOURS[at % COLOURS.len()];
        let _ = writeln!(
            body,
            "<text x=\"{:.0}\" y=\"{text_top:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABELS_WIDTH}\" y=\"{top:.0}\" width=\"{length:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"{text_top:.0}\">{}</text>",
            LABELS_WIDTH - 8.0,
            escaped(label),
            BAR_HEIGHT - 4.0,
            LABELS_WIDTH + length + 6.0,
            number(*value),
        );
        top += BAR_HEIGHT;
    }
    Panel {
        height: top + 12.0,
        body,
    }
}

/// A named line of points.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws distributions of latencies: percent to the right, spread so that the
/// last thousandth is as wide as the first nine tenths; milliseconds upwards,
/// each line of the grid ten times the one below.
pub(crate) fn latencies(title: &str, lines: &[Line]) -> Panel {
    let stretch = |percent: f64| -(1.0 - percent.min(99.99) / 100.0).log10();
    let x = |percent: f64| MARGIN + stretch(percent) / 4.0 * (WIDTH - MARGIN - 24.0);
    let values = lines.iter().flat_map(|line| &line.points);
    let values: Vec<f64> = values.map(|(_, ms)| ms.max(0.01)).collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.01, f64::max);
    let bottom = least.min(most).log10().floor();
    let top = most.log10().ceil().max(bottom + 1.0);
    let y = |ms: f64| {
        let part = (ms.max(0.01).log10() - bottom) / (top - bottom);
        CURVE_HEIGHT - 40.0 - part * (CURVE_HEIGHT - 80.0)
    };
    let mut body = heading(title);
    let mut power = bottom;
    while power <= top {
        let value = 10_f64.powf(power);
        grid_line(&mut body, y(value), &format!("{} ms", number(value)));
        power += 1.0;
    }
    for percent in [50.0, 90.0, 99.0, 99.9] {
        let _ = writeln!(
            body,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#555555\">{percent} %</text>",
            x(percent),
            CURVE_HEIGHT - 22.0,
        );
    }
    draw(&mut body, lines, |(percent, ms)| (x(percent), y(ms)));
    legend(body, lines)
}

/// Draws values over time, from zero upwards.
pub(crate) fn over_time(title: &str, lines: &[Line]) -> Panel {
    let points = || lines.iter().flat_map(|line| &line.points);
    let last = points().map(|(time, _)| *time).fold(1.0, f64::max);
    let most = points().map(|(_, value)| *value).fold(1.0, f64::max);
    let x = |time: f64| MARGIN + time / last * (WIDTH - MARGIN - 24.0);
    let y = |value: f64| CURVE_HEIGHT - 40.0 - value / most * (CURVE_HEIGHT - 80.0);
    let mut body = heading(title);
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        grid_line(&mut body, y(most * part), &number(most * part));
        let _ = writeln!(
            body,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#555555\">{} s</text>",
            x(last * part),
            CURVE_HEIGHT - 22.0,
            number(last * part),
        );
    }
    draw(&mut body, lines, |(time, value)| (x(time), y(value)));
    legend(body, lines)
}

fn heading(title: &str) -> String {
    format!(
        "<text x=\"8\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    )
}

fn grid_line(body: &mut String, y: f64, label: &str) {
    let _ = writeln!(
        body,
        "<line x1=\"{MARGIN}\" x2=\"{:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\
         <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"10\" fill=\"#555555\">{label}</text>",
        WIDTH - 24.0,
        MARGIN - 4.0,
        y + 4.0,
    );
}

fn draw(body: &mut String, lines: &[Line], place: impl Fn((f64, f64)) -> (f64, f64)) {
    for (at, line) in lines.iter().enumerate() {
        let mut points = String::new();
        for point in &line.points {
            let (x, y) = place(*point);
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(
            body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            points.trim_end(),
            COLOURS[at % COLOURS.len()],
        );
    }
}

fn legend(mut body: String, lines: &[Line]) -> Panel {
    let mut x = MARGIN;
    let mut y = CURVE_HEIGHT - 2.0;
    for (at, line) in lines.iter().enumerate() {
        let width = 28.0 + 7.0 * line.name.chars().count() as f64;
        if x + width > WIDTH {
            x = MARGIN;
            y += 18.0;
        }
        let _ = writeln!(
            body,
            "<rect x=\"{x:.0}\" y=\"{:.0}\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{:.0}\" y=\"{y:.0}\">{}</text>",
            y - 10.0,
            COLOURS[at % COLOURS.len()],
            x + 16.0,
            escaped(&line.name),
        );
        x += width;
    }
    Panel {
        height: y + 18.0,
        body,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_all_names_and_no_impossible_numbers() {
        let line = |name: &str, points: &[(f64, f64)]| Line {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        let lines = [
            line("a<b", &[(0.0, 0.0), (50.0, 1.0), (100.0, 700.0)]),
            line("empty", &[]),
        ];
        let svg = page(&[
            bars("rates", &[("one".to_owned(), 0.0), ("two".to_owned(), 5.0)]),
            latencies("latencies", &lines),
            over_time("time", &lines),
            latencies("nothing", &[]),
        ]);
        for text in ["rates", "two", "a&lt;b", "empty", "nothing"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
