//! A comparison as Markdown: what was measured where, the means, and every figure.

use std::fmt::Write as _;

use crate::results::Meta;

use super::means::{Group, groups};
use super::{Comparison, LOCAL_PEERS, Line, OURS};

/// The section of one device. `chart` is the name of its picture beside the table.
pub(super) fn markdown(comparison: &Comparison, chart: &str) -> String {
    let mut text = format!("## {}\n\n", comparison.device);
    for source in &comparison.sources {
        text += &provenance(source);
    }
    let _ = writeln!(text, "\n![Time over the time of a copy]({chart})\n");
    text += &means(comparison);
    for op in ["forward", "backward", "forward_wall", "backward_wall", "forward_host", "backward_host"] {
        text += &figures(comparison, op);
    }
    text
}

fn provenance(meta: &Meta) -> String {
    let versions: Vec<_> = meta.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!("- {}: {}, {}; {}\n", meta.date, meta.device, meta.machine, versions.join(", "))
}

fn means(comparison: &Comparison) -> String {
    let peers: Vec<_> = comparison.implementations().into_iter().filter(|&name| name != OURS).collect();
    let locals = peers.iter().filter(|peer| LOCAL_PEERS.contains(peer)).count();
    let mut head = vec!["operation, type, layout".into(), "tensors".into(), format!("{OURS} / copy")];
    head.extend(peers.iter().map(|peer| format!("{peer} / {OURS}")));
    if locals > 1 {
        head.push(format!("best local / {OURS}"));
    }
    let line = |group: &Group<'_>| {
        let size = if group.large { "10 MB and more" } else { "smaller" };
        let mut cells = vec![
            format!("{} {} {}, {size}", group.op, group.dtype, group.layout),
            group.lines.len().to_string(),
            ratio(group.mean(|line| line.over_copy(OURS)).map(|mean| mean.0)),
        ];
        cells.extend(peers.iter().map(|peer| partial(group, |line| line.over_ours(peer))));
        if locals > 1 {
            cells.push(partial(group, Line::best_local_over_ours));
        }
        cells
    };
    let mut text = format!("Geometric means; above 1, {OURS} is faster:\n\n");
    // The host's times are ours alone: there is nothing to put them over.
    let compared = groups(comparison).into_iter().filter(|group| !group.op.ends_with("_host"));
    text += &rows(&head, compared.collect::<Vec<_>>().iter().map(line));
    text
}

/// A mean that says so where it is not over all lines of its group.
fn partial(group: &Group<'_>, figure: impl Fn(&Line) -> Option<f64>) -> String {
    match group.mean(figure) {
        Some((mean, count)) if count < group.lines.len() => format!("{mean:.2} (of {count})"),
        mean => ratio(mean.map(|mean| mean.0)),
    }
}

fn figures(comparison: &Comparison, op: &str) -> String {
    let lines: Vec<_> = comparison.lines.iter().filter(|line| line.what.op == op).collect();
    if lines.is_empty() {
        return String::new();
    }
    let has_copy = lines.iter().any(|line| line.copy().is_some());
    let names: Vec<_> = comparison.implementations();
    let names: Vec<_> =
        names.into_iter().filter(|name| lines.iter().any(|line| line.by.contains_key(*name))).collect();
    let mut head = vec!["type, layout, shape".to_owned()];
    if has_copy {
        head.push("copy".into());
    }
    for name in &names {
        head.push((*name).to_owned());
        if has_copy {
            head.push("/ copy".into());
        }
        if *name != OURS {
            head.push(format!("/ {OURS}"));
        }
    }
    let cells = |line: &&Line| {
        let what = &line.what;
        let mut cells = vec![format!("{} {} {}", what.dtype, what.layout, what.shape)];
        if has_copy {
            cells.push(microseconds(line.copy()));
        }
        for name in &names {
            cells.push(microseconds(line.time(name)));
            if has_copy {
                cells.push(ratio(line.over_copy(name)));
            }
            if *name != OURS {
                cells.push(ratio(line.over_ours(name)));
            }
        }
        cells
    };
    format!("### {op}\n\nMedians in microseconds.\n\n{}", rows(&head, lines.iter().map(cells)))
}

fn rows(head: &[String], lines: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n|---|{}\n", head.join(" | "), "--:|".repeat(head.len() - 1));
    for line in lines {
        let _ = writeln!(text, "| {} |", line.join(" | "));
    }
    text + "\n"
}

fn microseconds(time: Option<f64>) -> String {
    time.map_or_else(|| "-".into(), |time| format!("{time:.1}"))
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"))
}
