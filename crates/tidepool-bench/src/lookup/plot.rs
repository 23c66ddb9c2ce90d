//! A page that shows latency against throughput: one file, no network, light and dark.

use std::fmt::Write;

use super::{Figures, Report};

/// Of a chart, in pixels of its own.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 84.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 62.0;

/// The lines of a chart: name, class, value.
type Line = (&'static str, &'static str, fn(&Figures) -> f64);
const LINES: [Line; 3] = [
    ("p50", "p50", |figures| figures.p50_us),
    ("p99", "p99", |figures| figures.p99_us),
    ("p99.9", "p999", |figures| figures.p999_us),
];

/// A page with a chart for each report that has steps; reports without share one chart, in the order of their
/// throughput.
#[must_use]
pub fn plot(reports: &[Report]) -> String {
    let mut body = String::new();
    let (stepped, single): (Vec<&Report>, Vec<&Report>) =
        reports.iter().partition(|report| !report.steps.is_empty());
    for report in stepped {
        let points: Vec<_> = report.steps.iter().map(|figures| (label(figures), figures)).collect();
        section(&mut body, &title(report), report.slo_p99_us, &points);
    }
    if let Some(first) = single.first() {
        let mut points: Vec<_> = single
            .iter()
            .map(|report| (format!("{} nodes, {} groups", report.nodes, report.groups), &report.figures))
            .collect();
        points.sort_by(|a, b| a.1.rows_per_second.total_cmp(&b.1.rows_per_second));
        section(&mut body, &title(first), None, &points);
    }
    let machine = reports.first().map_or_else(String::new, |report| {
        let machine = &report.machine;
        format!("{}, {} cores, {}; seed {}", machine.cpu, machine.cores, machine.kernel, report.seed)
    });
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>tidepool bench lookup</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Lookups under load</h1>\n\
         <p class=\"note\">Latency runs from the moment at which a request was meant to be sent. {}</p>\n\
         {body}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        escape(&machine)
    )
}

fn label(figures: &Figures) -> String {
    figures.offered_rate.map_or_else(|| "as fast as it goes".into(), |rate| format!("{rate:.0}/s offered"))
}

fn title(report: &Report) -> String {
    let Report { nodes, groups, batch, bag, dim, format, table_rows, .. } = report;
    format!(
        "{nodes} nodes in {groups} group{}, {batch} bags of {bag} a request, {} rows of dim {dim}, {format}",
        if *groups == 1 { "" } else { "s each of" },
        thousands(*table_rows as f64)
    )
}

/// A chart and its table.
fn section(out: &mut String, title: &str, slo_p99_us: Option<f64>, points: &[(String, &Figures)]) {
    let most_x = nice_above(points.iter().map(|(_, f)| f.requests_per_second).fold(1.0, f64::max));
    let all = || points.iter().flat_map(|(_, f)| LINES.map(|(.., of)| of(f).max(1.0))).chain(slo_p99_us);
    let least_y = decade(all().fold(f64::MAX, f64::min), f64::floor);
    let most_y = decade(all().fold(1.0, f64::max), f64::ceil).max(least_y * 10.0);
    let x = |value: f64| LEFT + value / most_x * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| {
        let share = (value.max(least_y) / least_y).log10() / (most_y / least_y).log10();
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg = String::new();
    grid(&mut svg, (most_x, least_y, most_y), &x, &y);
    if let Some(slo) = slo_p99_us {
        let at = y(slo);
        let _ = write!(
            svg,
            "<line class=\"slo\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"slo\" x=\"{}\" y=\"{:.1}\">p99 SLO {}</text>",
            WIDTH - RIGHT,
            LEFT + 8.0,
            at - 6.0,
            time(slo)
        );
    }
    for (name, class, of) in LINES {
        let places: Vec<(f64, f64)> =
            points.iter().map(|(_, f)| (x(f.requests_per_second), y(of(f)))).collect();
        let line = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
        let _ = write!(svg, "<polyline class=\"{class}\" points=\"{line}\"/>");
        for (x, y) in &places {
            let _ = write!(svg, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>");
        }
        if let Some((x, y)) = places.last() {
            let _ = write!(
                svg,
                "<text class=\"name {class}\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
                x + 9.0,
                y + 4.0
            );
        }
    }
    for (label, f) in points {
        let text = format!(
            "{label}: {} requests/s, {} rows/s\np50 {}, p99 {}, p99.9 {}\n{}client CPU {} a request",
            thousands(f.requests_per_second),
            thousands(f.rows_per_second),
            time(f.p50_us),
            time(f.p99_us),
            time(f.p999_us),
            f.node_cpu_us_per_request.map_or_else(String::new, |us| format!("node CPU {}, ", time(us))),
            time(f.client_cpu_us_per_request)
        );
        let _ = write!(
            svg,
            "<rect class=\"hit\" x=\"{:.1}\" y=\"{TOP}\" width=\"24\" height=\"{}\" tabindex=\"0\" \
             data-text=\"{text}\"><title>{text}</title></rect>",
            x(f.requests_per_second) - 12.0,
            HEIGHT - TOP - BOTTOM,
            text = escape(&text)
        );
    }
    let _ = writeln!(
        out,
        "<section>\n<h2>{}</h2>\n<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"latency against throughput\">{svg}</svg><div class=\"tip\" hidden></div></figure>",
        escape(title)
    );
    table(out, points);
    out.push_str("</section>\n");
}

/// Axes, ticks and what they are of.
fn grid(
    svg: &mut String,
    (most_x, least_y, most_y): (f64, f64, f64),
    x: &dyn Fn(f64) -> f64,
    y: &dyn Fn(f64) -> f64,
) {
    let bottom = HEIGHT - BOTTOM;
    for tick in 0..=5 {
        let value = most_x * f64::from(tick) / 5.0;
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text class=\"x\" x=\"{at:.1}\" y=\"{}\">{}</text>",
            bottom + 20.0,
            thousands(value),
            at = x(value)
        );
    }
    let mut decade = least_y;
    while decade <= most_y * 1.001 {
        for factor in [1.0, 2.0, 5.0] {
            let value = decade * factor;
            if value > most_y * 1.001 {
                break;
            }
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 10.0,
                y(value) + 4.0,
                time(value),
                at = y(value)
            );
        }
        decade *= 10.0;
    }
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{}\">answered requests per second</text>\
         <text class=\"axis\" transform=\"translate(16 {:.1}) rotate(-90)\">latency (log scale)</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 14.0,
        f64::midpoint(TOP, bottom)
    );
}

fn table(out: &mut String, points: &[(String, &Figures)]) {
    out.push_str(
        "<div class=\"wide\"><table>\n<tr><th></th><th>requests/s</th><th>rows/s</th><th>mean</th><th>p50</th>\
         <th>p99</th><th>p99.9</th><th>node CPU<br>a request</th><th>client CPU<br>a request</th>\
         <th>nodes</th><th>bytes</th><th>failed</th><th>wrong</th></tr>\n",
    );
    for (label, f) in points {
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
            f.node_cpu_us_per_request.map_or_else(|| "-".into(), time),
            time(f.client_cpu_us_per_request),
            f.nodes_touched_per_request,
            thousands(f.wire_bytes_per_request),
            f.failed_requests,
            f.wrong_answers
        );
    }
    out.push_str("</table></div>\n");
}

/// The power of ten at or beyond `value`.
fn decade(value: f64, round: fn(f64) -> f64) -> f64 {
    10f64.powf(round(value.max(1.0).log10()))
}

/// A round number at or above `value`, that five parts make round ticks of.
fn nice_above(value: f64) -> f64 {
    let decade = decade(value, f64::floor);
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

fn thousands(value: f64) -> String {
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
  --p50: #0b6bcb; --p99: #c25e00; --p999: #a3195b; --slo: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebef; --soft: #9aa4b0; --line: #2f3640; --page: #14171b;
  --card: #1c2127; --p50: #5eb1ff; --p99: #ffad5c; --p999: #ff7eb6; --slo: #9ca3af; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 28px 0 8px; }
.note { color: var(--soft); margin: 0; }
figure { margin: 0; position: relative; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.x, .axis { text-anchor: middle; } .y { text-anchor: end; } svg .axis { fill: var(--ink); font-size: 13px; }
.grid { stroke: var(--line); stroke-width: 1; }
polyline { fill: none; stroke-width: 2; } circle { stroke: var(--card); stroke-width: 1; }
polyline.p50 { stroke: var(--p50); } polyline.p99 { stroke: var(--p99); } polyline.p999 { stroke: var(--p999); }
circle.p50, svg text.p50 { fill: var(--p50); } circle.p99, svg text.p99 { fill: var(--p99); }
circle.p999, svg text.p999 { fill: var(--p999); } svg text.name { font-weight: 600; }
line.slo { stroke: var(--slo); stroke-dasharray: 5 4; } svg text.slo { fill: var(--slo); }
.hit { fill: transparent; outline: none; } .hit:hover, .hit:focus { fill: var(--line); fill-opacity: .45; }
.tip { position: absolute; top: 10px; pointer-events: none; white-space: pre; background: var(--page); color: var(--ink);
  border: 1px solid var(--line); border-radius: 6px; padding: 6px 10px; font-size: 13px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin-top: 12px; font-size: 13px; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
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
        assert_eq!((decade(87.0, f64::floor), decade(87.0, f64::ceil)), (10.0, 100.0));
        assert_eq!(escape("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }
}
