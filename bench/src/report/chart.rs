//! A comparison as a picture: time over the time of a copy of x, the geometric mean over the large tensors.
//!
//! Every axis begins at 0, and both panels have the same. A mean is only over tensors that everyone in its group measured.

use std::path::Path;

use anyhow::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Comparison;
use super::means::{Group, groups};

const SIZE: (u32, u32) = (1000, 760);
const GREY: RGBColor = RGBColor(90, 98, 110);
const INK: RGBColor = RGBColor(40, 44, 52);

/// In the order of [`Comparison::implementations`].
const COLORS: [RGBColor; 6] = [
    RGBColor(16, 42, 92),
    RGBColor(74, 120, 190),
    RGBColor(222, 107, 53),
    RGBColor(236, 178, 88),
    RGBColor(126, 182, 232),
    RGBColor(150, 150, 150),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The bars of one operation.
struct Panel<'a> {
    op: &'static str,
    groups: Vec<(String, Vec<(usize, f64)>)>,
    names: &'a [&'a str],
    top: f64,
}

/// Draws the forward and the backward panel to an SVG file.
pub(super) fn draw(path: &Path, comparison: &Comparison) -> Result<()> {
    let names = comparison.implementations();
    let [forward, backward] = ["forward", "backward"].map(|op| bars(comparison, op, &names));
    let values = forward.iter().chain(&backward).flat_map(|(_, bars)| bars.iter().map(|&(_, value)| value));
    let top = 1.12 * values.fold(1.0, f64::max);

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{}: time over the time of a copy of x", comparison.device);
    let under = "geometric mean over the tensors of 10 MB and more, medians, caches emptied; lower is better";
    let (head, body) = root.split_vertically(92);
    head.draw_text(&title, &text(22), (24, 16))?;
    head.draw_text(under, &text(15), (24, 44))?;
    legend(&head, &names)?;
    let (upper, lower) = body.split_vertically((SIZE.1 - 92) / 2);
    for (area, op, groups) in [(upper, "forward", forward), (lower, "backward", backward)] {
        panel(&area, &Panel { op, groups, names: &names, top })?;
    }
    root.present()?;
    Ok(())
}

/// For each type and layout, the mean of every implementation that measured it.
fn bars(comparison: &Comparison, op: &str, names: &[&str]) -> Vec<(String, Vec<(usize, f64)>)> {
    let wanted = groups(comparison).into_iter().filter(|group| group.large && group.op == op);
    let mean = |group: &Group<'_>, (at, name): (usize, &&str)| {
        group.mean(|line| line.over_copy(name)).map(|(mean, _)| (at, mean))
    };
    let bars = wanted.map(Group::common).map(|group| {
        let label = format!("{} {}", group.dtype, group.layout);
        (label, names.iter().enumerate().filter_map(|name| mean(&group, name)).collect())
    });
    bars.collect()
}

fn legend(area: &Area<'_>, names: &[&str]) -> Result<()> {
    let mut left = 24;
    for (name, color) in names.iter().zip(COLORS.iter().cycle()) {
        area.draw(&Rectangle::new([(left, 72), (left + 14, 86)], color.filled()))?;
        area.draw_text(name, &text(15), (left + 20, 72))?;
        left += 48 + 9 * i32::try_from(name.len())?;
    }
    Ok(())
}

fn panel(area: &Area<'_>, panel: &Panel<'_>) -> Result<()> {
    let Panel { op, groups, names, top } = panel;
    let width = names.len() as f64 + 1.0;
    let end = width * groups.len().max(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..*top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc(format!("{op}, time / copy"))
        .axis_desc_style(text(16))
        .label_style(text(14))
        .y_label_formatter(&|ratio| format!("{ratio:.1}"))
        .axis_style(GREY)
        .bold_line_style(GREY.mix(0.18))
        .light_line_style(TRANSPARENT)
        .draw()?;
    chart.draw_series([PathElement::new([(0.0, 1.0), (end, 1.0)], GREY.stroke_width(1))])?;
    let centred = |size: u32, vertical| text(size).pos(Pos::new(HPos::Center, vertical));
    for (at, (label, bars)) in groups.iter().enumerate() {
        let left = at as f64 * width + 0.5;
        for (place, &(name, value)) in bars.iter().enumerate() {
            let from = left + place as f64 + (names.len() - bars.len()) as f64 / 2.0;
            let color = COLORS[name % COLORS.len()];
            chart
                .draw_series([Rectangle::new([(from + 0.06, 0.0), (from + 0.94, value)], color.filled())])?;
            let figure = Text::new(format!("{value:.2}"), (from + 0.5, value), centred(12, VPos::Bottom));
            chart.draw_series([figure])?;
        }
        let (x, y) = chart.backend_coord(&(left + (width - 1.0) / 2.0, 0.0));
        let (x, y) = (x - area.get_base_pixel().0, y - area.get_base_pixel().1);
        area.draw_text(label, &centred(15, VPos::Top), (x, y + 8)).map_err(Error::from)?;
    }
    Ok(())
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().transform(FontTransform::None).color(&INK)
}
