//! Pages with charts of latency: one file, no network, light and dark.

use std::fmt::Write;

use crate::lookup::Figures;

/// Of a chart, in pixels of its own.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 62.0;
/// Between the names of two lines, at least.
const NAME_HEIGHT: f64 = 15.0;
/// Colours there are; more lines begin again with the first.
const COLOURS: usize = 6;

/// What latency is plotted against.
#[derive(Clone, Debug)]
pub(crate) enum Axis {
    /// Answered requests per second.
    Throughput,
    /// One place for each of these, in their order; the first word says what they are.
    Places(&'static str, Vec<String>),
}

/// A line of a chart.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// What it is of, at its end.
    pub(crate) name: String,
    /// Which of the colours.
    pub(crate) colour: usize,
    /// Whether it is dashed.
    pub(crate) dashed: bool,
    /// Where on the axis (a throughput, or the number of a place), and how many microseconds.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A load, its place on the axis, and what it is called.
#[derive(Clone, Debug)]
pub(crate) struct Point<'a> {
    pub(crate) label: String,
    pub(crate) x: f64,
    pub(crate) figures: &'a Figures,
}

/// A chart, and the loads that it shows, which are in a table below it.
#[derive(Clone, Debug)]
pub(crate) struct Chart<'a> {
    pub(crate) title: String,
    pub(crate) axis: Axis,
    pub(crate) lines: Vec<Line>,
    pub(crate) slo_p99_us: Option<f64>,
    pub(crate) points: Vec<Point<'a>>,
}

/// A quantile of latency: its name, and how many microseconds it is.
type Quantile = (&'static str, fn(&Figures) -> f64);
/// Those that are plotted, from the shortest on.
pub(crate) const QUANTILES: [Quantile; 3] =
    [("p50", |f| f.p50_us), ("p99", |f| f.p99_us), ("p99.9", |f| f.p999_us)];

/// The quantiles of loads, a line for each of them.
pub(crate) fn quantiles(points: &[Point<'_>]) -> Vec<Line> {
    let lines = QUANTILES.into_iter().enumerate().map(|(colour, (name, of))| Line {
        name: name.to_owned(),
        colour,
        dashed: false,
        points: points.iter().map(|point| (point.x, of(point.figures))).collect(),
    });
    lines.collect()
}

/// A page of charts below a heading and a note.
pub(crate) fn page(heading: &str, note: &str, charts: &[Chart<'_>]) -> String {
    let mut body = String::new();
    for chart in charts {
        section(&mut body, chart);
    }
    let (heading, note) = (escape(heading), escape(note));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>tidepool: {heading}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{heading}</h1>\n\
         <p class=\"note\">Latency runs from the moment at which a request was meant to be sent. {note}</p>\n\
         {body}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// Where things are on a chart.
struct Scale {
    most_x: f64,
    /// Room at both ends of an axis of places, in places.
    margin: f64,
    least_y: f64,
    most_y: f64,
}

impl Scale {
    fn of(chart: &Chart<'_>) -> Self {
        let points = || chart.lines.iter().flat_map(|line| line.points.iter().copied());
        let (most_x, margin) = match &chart.axis {
            Axis::Throughput => (nice_above(points().map(|(x, _)| x).fold(1.0, f64::max)), 0.0),
            Axis::Places(_, places) => (places.len().saturating_sub(1) as f64, 0.5),
        };
        let all = || points().map(|(_, y)| y.max(1.0)).chain(chart.slo_p99_us);
        let least_y = step(all().fold(f64::MAX, f64::min), f64::floor);
        let most_y = step(all().fold(1.0, f64::max), f64::ceil).max(least_y * 10.0);
        Self { most_x, margin, least_y, most_y }
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value + self.margin) / (self.most_x + 2.0 * self.margin);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value.max(self.least_y) / self.least_y).log10() / (self.most_y / self.least_y).log10();
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// A chart and its table.
fn section(out: &mut String, chart: &Chart<'_>) {
    let scale = Scale::of(chart);
    let mut svg = String::new();
    grid(&mut svg, &chart.axis, &scale);
    if let Some(slo) = chart.slo_p99_us {
        let at = scale.y(slo);
        let right = WIDTH - RIGHT;
        let _ =
            write!(svg, "<line class=\"slo\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
    }
    for line in &chart.lines {
        draw(&mut svg, line, &scale);
    }
    names(&mut svg, chart, &scale);
    for point in &chart.points {
        let text = escape(&words(point));
        let _ = write!(
            svg,
            "<rect class=\"hit\" x=\"{:.1}\" y=\"{TOP}\" width=\"24\" height=\"{}\" tabindex=\"0\" \
             data-text=\"{text}\"><title>{text}</title></rect>",
            scale.x(point.x) - 12.0,
            HEIGHT - TOP - BOTTOM,
        );
    }
    let _ = writeln!(
        out,
        "<section>\n<h2>{}</h2>\n<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"latency against {}\">{svg}</svg><div class=\"tip\" hidden></div></figure>",
        escape(&chart.title),
        of_axis(&chart.axis)
    );
    if !chart.points.is_empty() {
        table(out, &chart.points);
    }
    out.push_str("</section>\n");
}

fn draw(svg: &mut String, line: &Line, scale: &Scale) {
    let class = format!("c{}{}", line.colour % COLOURS, if line.dashed { " dashed" } else { "" });
    let places: Vec<String> =
        line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", scale.x(*x), scale.y(*y))).collect();
    let _ = write!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", places.join(" "));
    for (x, y) in &line.points {
        let (x, y) = (scale.x(*x), scale.y(*y));
        let _ = write!(svg, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>");
    }
}

/// The names of lines, and of the SLO, in a column on the right, each as near to its line's end as the others leave
/// room.
fn names(svg: &mut String, chart: &Chart<'_>, scale: &Scale) {
    let of_line = |line: &Line| {
        let (_, last) = line.points.last()?;
        Some((scale.y(*last), format!("c{}", line.colour % COLOURS), line.name.clone()))
    };
    let slo = chart.slo_p99_us.map(|slo| (scale.y(slo), "slo".to_owned(), format!("p99 SLO {}", time(slo))));
    let mut ends: Vec<_> = chart.lines.iter().filter_map(of_line).chain(slo).collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let wanted: Vec<f64> = ends.iter().map(|(y, ..)| *y).collect();
    for ((_, class, name), y) in ends.iter().zip(apart(&wanted)) {
        let _ = write!(
            svg,
            "<text class=\"name {class}\" x=\"{}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT + 10.0,
            y + 4.0,
            escape(name)
        );
    }
}

/// Places for names that want to be at `wanted`, from top to bottom, and do not lie on each other.
fn apart(wanted: &[f64]) -> Vec<f64> {
    let mut at: Vec<f64> = wanted.to_vec();
    for n in 1..at.len() {
        at[n] = at[n].max(at[n - 1] + NAME_HEIGHT);
    }
    // What was pushed below the chart goes up again, and pushes the others.
    let mut lowest = HEIGHT - BOTTOM;
    for y in at.iter_mut().rev() {
        *y = y.min(lowest);
        lowest = *y - NAME_HEIGHT;
    }
    at
}

fn of_axis(axis: &Axis) -> &'static str {
    match axis {
        Axis::Throughput => "answered requests per second",
        Axis::Places(what, _) => what,
    }
}

/// Axes, ticks and what they are of.
fn grid(svg: &mut String, axis: &Axis, scale: &Scale) {
    let bottom = HEIGHT - BOTTOM;
    let ticks: Vec<(f64, String)> = match axis {
        Axis::Throughput => {
            (0..=5).map(|n| scale.most_x * f64::from(n) / 5.0).map(|at| (at, thousands(at))).collect()
        }
        Axis::Places(_, places) => places.iter().enumerate().map(|(n, p)| (n as f64, p.clone())).collect(),
    };
    for (value, text) in ticks {
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text class=\"x\" x=\"{at:.1}\" y=\"{}\">{}</text>",
            bottom + 20.0,
            escape(&text),
            at = scale.x(value)
        );
    }
    let mut value = scale.least_y;
    while value <= scale.most_y * 1.001 {
        let at = scale.y(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 10.0,
            at + 4.0,
            time(value)
        );
        value = step(value * 1.1, f64::ceil);
    }
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{}\">{}</text>\
         <text class=\"axis\" transform=\"translate(16 {:.1}) rotate(-90)\">latency (log scale)</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 14.0,
        of_axis(axis),
        f64::midpoint(TOP, bottom)
    );
}

/// A load in a few lines.
fn words(Point { label, figures: f, .. }: &Point<'_>) -> String {
    let cpu = |who: &str, us: Option<f64>| us.map(|us| format!("{who} CPU {} a request", time(us)));
    let cpu = [cpu("node", f.node_cpu_us_per_request), cpu("client", f.client_cpu_us_per_request)];
    let lines = [
        format!(
            "{label}: {} requests/s, {} rows/s",
            thousands(f.requests_per_second),
            thousands(f.rows_per_second)
        ),
        format!("p50 {}, p99 {}, p99.9 {}", time(f.p50_us), time(f.p99_us), time(f.p999_us)),
        cpu.into_iter().flatten().collect::<Vec<_>>().join(", "),
    ];
    lines.join("\n").trim_end().to_owned()
}

fn table(out: &mut String, points: &[Point<'_>]) {
    out.push_str(
        "<div class=\"wide\"><table>\n<tr><th></th><th>requests/s</th><th>rows/s</th><th>mean</th><th>p50</th>\
         <th>p99</th><th>p99.9</th><th>node CPU<br>a request</th><th>client CPU<br>a request</th>\
         <th>nodes<br>asked</th><th>bytes<br>a request</th><th>failed</th><th>wrong</th></tr>\n",
    );
    let cpu = |us: Option<f64>| us.map_or_else(|| "-".into(), time);
    for Point { label, figures: f, .. } in points {
        let _ = writeln!(
            out,
            "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(label),
            thousands(f.requests_per_second),
            thousands(f.rows_per_second),
            time(f.mean_us),
            time(f.p50_us),
            time(f.p99_us),
            time(f.p999_us),
            cpu(f.node_cpu_us_per_request),
            cpu(f.client_cpu_us_per_request),
            f.nodes_touched_per_request,
            thousands(f.wire_bytes_per_request),
            f.failed_requests,
            f.wrong_answers
        );
    }
    out.push_str("</table></div>\n");
}

/// The 1, 2 or 5 times a power of ten at or below `value` (`f64::floor`), or at or above it (`f64::ceil`).
fn step(value: f64, round: fn(f64) -> f64) -> f64 {
    let decade = 10f64.powf(value.max(1.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * decade);
    // A power of ten that a logarithm has made a little smaller is that power of ten all the same.
    let (above, below) = (value * (1.0 - 1e-9), value * (1.0 + 1e-9));
    if round(0.5) > 0.0 {
        steps.into_iter().find(|step| *step >= above).unwrap_or(steps[3])
    } else {
        steps.into_iter().rev().find(|step| *step <= below).unwrap_or(decade)
    }
}

/// A round number at or above `value`, that five parts make round ticks of.
fn nice_above(value: f64) -> f64 {
    let decade = 10f64.powf(value.max(1.0).log10().floor());
    let factors = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0];
    factors.map(|factor| factor * decade).into_iter().find(|nice| *nice >= value).unwrap_or(10.0 * decade)
}

/// Microseconds, in the unit that people read.
fn time(us: f64) -> String {
    match us {
        us if us < 1.0 => format!("{us:.2} µs"),
        us if us < 1000.0 => format!("{us:.0} µs"),
        us if us < 1e6 => format!("{} ms", short(us / 1e3)),
        us => format!("{} s", short(us / 1e6)),
    }
}

fn short(value: f64) -> String {
    let text = if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(crate) fn thousands(value: f64) -> String {
    match value {
        value if value < 1e4 => format!("{value:.0}"),
        value if value < 1e6 => format!("{}k", short(value / 1e3)),
        value => format!("{}M", short(value / 1e6)),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #d9dee4; --page: #fff; --card: #f7f8fa;
  --c0: #0b6bcb; --c1: #c25e00; --c2: #a3195b; --c3: #1a7f4b; --c4: #6d4bc3; --c5: #5b6470; --slo: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebef; --soft: #9aa4b0; --line: #2f3640; --page: #14171b;
  --card: #1c2127; --c0: #5eb1ff; --c1: #ffad5c; --c2: #ff7eb6; --c3: #5fd39b; --c4: #b49cff; --c5: #b3bcc7;
  --slo: #9ca3af; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 28px 0 8px; }
.note { color: var(--soft); margin: 0; }
figure { margin: 0; position: relative; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.x, .axis { text-anchor: middle; } .y { text-anchor: end; } svg .axis { fill: var(--ink); font-size: 13px; }
.grid { stroke: var(--line); stroke-width: 1; }
.c0 { --of: var(--c0); } .c1 { --of: var(--c1); } .c2 { --of: var(--c2); } .c3 { --of: var(--c3); }
.c4 { --of: var(--c4); } .c5 { --of: var(--c5); }
polyline { fill: none; stroke: var(--of); stroke-width: 2; } polyline.dashed { stroke-dasharray: 3 4; }
circle { fill: var(--of); stroke: var(--card); stroke-width: 1; } circle.dashed { fill: var(--card); stroke: var(--of); }
svg text.name { fill: var(--of); font-weight: 600; }
line.slo { stroke: var(--slo); stroke-dasharray: 5 4; } svg text.slo { fill: var(--slo); font-weight: 400; }
.hit { fill: transparent; outline: none; } .hit:hover, .hit:focus { fill: var(--line); fill-opacity: .45; }
.tip { position: absolute; top: 10px; pointer-events: none; white-space: pre; background: var(--page); color: var(--ink);
  border: 1px solid var(--line); border-radius: 6px; padding: 6px 10px; font-size: 13px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin-top: 12px; font-size: 13px; }
th, td { padding: 4px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; } tr > th:first-child { text-align: left; }
";

const SCRIPT: &str = "
for (const figure of document.querySelectorAll('figure')) {
  const tip = figure.querySelector('.tip');
  for (const hit of figure.querySelectorAll('.hit')) {
    // The script's own words replace the ones of the browser.
    hit.querySelector('title').remove();
    const show = () => {
      tip.textContent = hit.dataset.text;
      tip.hidden = false;
      const at = hit.getBoundingClientRect(), box = figure.getBoundingClientRect();
      const right = at.right - box.left + 8, left = at.left - box.left - tip.offsetWidth - 8;
      tip.style.left = Math.max(4, right + tip.offsetWidth < box.width ? right : left) + 'px';
    };
    const hide = () => { tip.hidden = true; };
    hit.addEventListener('pointerenter', show);
    hit.addEventListener('pointerleave', hide);
    hit.addEventListener('focus', show);
    hit.addEventListener('blur', hide);
  }
}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_ticks_round() {
        let times = [0.25, 87.0, 1240.0, 15_000.0, 2_000_000.0].map(time);
        assert_eq!(times, ["0.25 µs", "87 µs", "1.24 ms", "15 ms", "2 s"]);
        assert_eq!([950.0, 12_300.0, 5_000_000.0].map(thousands), ["950", "12.3k", "5M"]);
        assert_eq!([1.0, 99.0, 101.0, 760.0].map(nice_above), [1.0, 100.0, 150.0, 1000.0]);
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-6;
        for (value, below, above) in [
            (87.0, 50.0, 100.0),
            (100.0, 100.0, 100.0),
            (1000.0, 1000.0, 1000.0),
            (0.5, 1.0, 1.0),
            (2.1, 2.0, 5.0),
        ] {
            let found = (step(value, f64::floor), step(value, f64::ceil));
            assert!(near(found.0, below) && near(found.1, above), "{value}: {found:?}");
        }
        assert_eq!(escape("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }

    #[test]
    fn names_do_not_lie_on_each_other_nor_below_the_chart() {
        assert_eq!(apart(&[10.0, 100.0]), [10.0, 100.0]);
        assert_eq!(apart(&[10.0, 12.0, 13.0]), [10.0, 25.0, 40.0]);
        let bottom = HEIGHT - BOTTOM;
        assert_eq!(apart(&[bottom - 5.0, bottom - 1.0]), [bottom - 15.0, bottom]);
        assert_eq!(apart(&[]), [0.0; 0]);
    }
}
