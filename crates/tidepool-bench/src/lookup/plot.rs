//! What `bench lookup` and `trace replay` have measured, as a page.

use super::{Figures, Report};
use crate::{
    Machine,
    page::{Axis, Chart, Line, Point, QUANTILES, page, quantiles, thousands},
};

/// A page of reports. Those with steps have a chart each, latency against throughput, and when there are several, one
/// of all their p50 and p99 first; those without share one, in their order.
#[must_use]
pub fn plot(reports: &[Report]) -> String {
    let (stepped, single): (Vec<&Report>, Vec<&Report>) =
        reports.iter().partition(|report| !report.steps.is_empty());
    let mut charts = Vec::new();
    if stepped.len() > 1 {
        charts.push(beside_each_other(&stepped));
    }
    charts.extend(stepped.iter().map(|report| steps(report)));
    if let Some(first) = single.first() {
        let points: Vec<_> = single
            .iter()
            .enumerate()
            .map(|(n, report)| Point { label: nodes(report), x: n as f64, figures: &report.figures })
            .collect();
        charts.push(Chart {
            title: format!("{}, {}", label(&first.figures), asked(first)),
            axis: Axis::Places("nodes of the cluster", points.iter().map(|p| p.label.clone()).collect()),
            lines: quantiles(&points),
            slo_p99_us: None,
            points,
        });
    }
    let machine = reports.first().map_or_else(String::new, |report| of(&report.machine, Some(report.seed)));
    page("Lookups under load", &machine, &charts)
}

/// A page of a trace that was asked again, at several speeds perhaps: what each is called, and what came of it.
#[must_use]
pub fn plot_replay(title: &str, speeds: &[(String, Figures)]) -> String {
    let points: Vec<_> = speeds
        .iter()
        .map(|(label, figures)| Point { label: label.clone(), x: figures.requests_per_second, figures })
        .collect();
    let (title, lines) = (title.to_owned(), quantiles(&points));
    let chart = Chart { title, axis: Axis::Throughput, lines, slo_p99_us: None, points };
    page("A trace asked again", &of(&Machine::here(), None), &[chart])
}

fn of(machine: &Machine, seed: Option<u64>) -> String {
    let seed = seed.map(|seed| format!("; seed {seed}")).unwrap_or_default();
    format!("{}, {} cores, {}{seed}", machine.cpu, machine.cores, machine.kernel)
}

/// Steps of one cluster.
fn steps(report: &Report) -> Chart<'_> {
    let points: Vec<_> = report
        .steps
        .iter()
        .map(|figures| Point { label: label(figures), x: figures.requests_per_second, figures })
        .collect();
    Chart {
        title: format!("{}, {}", nodes(report), asked(report)),
        axis: Axis::Throughput,
        lines: quantiles(&points),
        slo_p99_us: report.slo_p99_us,
        points,
    }
}

/// Several clusters in one chart.
fn beside_each_other<'a>(reports: &[&'a Report]) -> Chart<'a> {
    let [p50, p99, _] = QUANTILES;
    let lines = reports.iter().enumerate().flat_map(|(colour, report)| {
        [(p50, true), (p99, false)].map(|((name, of), dashed)| Line {
            name: format!("{} {name}", nodes(report)),
            colour,
            dashed,
            points: report.steps.iter().map(|f| (f.requests_per_second, of(f))).collect(),
        })
    });
    Chart {
        title: format!("p50 (dashed) and p99 side by side, {}", asked(reports[0])),
        axis: Axis::Throughput,
        lines: lines.collect(),
        slo_p99_us: reports[0].slo_p99_us,
        points: Vec::new(),
    }
}

fn label(figures: &Figures) -> String {
    figures.offered_rate.map_or_else(|| "as fast as it goes".into(), |rate| format!("{rate:.0}/s offered"))
}

fn nodes(Report { nodes, groups, .. }: &Report) -> String {
    if *groups == 1 { format!("{nodes} nodes") } else { format!("{groups} x {nodes} nodes") }
}

fn asked(report: &Report) -> String {
    let Report { batch, bag, dim, format, table_rows, .. } = report;
    format!("{batch} bags of {bag} a request, {} rows of dim {dim}, {format}", thousands(*table_rows as f64))
}
