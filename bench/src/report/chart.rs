//! A comparison as pictures: time over the time of a copy of x, the geometric mean over the large tensors; and for several ranks, time
//! over the time of a rank alone, over all tensors.
//!
//! Both panels of a picture have the same axis. Copies begin at 0; ranks, which differ by a factor of 20, have a logarithmic axis that
//! begins at 1. A mean is only over tensors that everyone in its group measured.

use std::path::Path;

use anyhow::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::means::{Group, groups};
use super::{ALONE, Comparison, Line};

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

/// What a picture shows.
struct Picture {
    title: &'static str,
    under: &'static str,
    axis: &'static str,
    large_only: bool,
    ratio: fn(&Line, &str) -> Option<f64>,
    /// How high a ratio is drawn, and which ratio is drawn so high.
    height: fn(f64) -> f64,
    ratio_at: fn(f64) -> f64,
}

const OVER_COPY: Picture = Picture {
    title: "time over the time of a copy of x",
    under: "geometric mean over the tensors of 10 MB and more, medians, caches emptied; lower is better",
    axis: "time / copy",
    large_only: true,
    ratio: Line::over_copy,
    height: |ratio| ratio,
    ratio_at: |height| height,
};

const OVER_ALONE: Picture = Picture {
    title: "time with all ranks over the time of one alone",
    under: "geometric mean over all tensors, medians, caches emptied; lower is better; logarithmic axis",
    axis: "time / alone",
    large_only: false,
    ratio: Line::over_alone,
    height: f64::log2,
    ratio_at: f64::exp2,
};

/// The bars of one operation.
struct Panel<'a> {
    op: &'static str,
    picture: &'a Picture,
    groups: Vec<(String, Vec<(usize, f64)>)>,
    names: &'a [&'a str],
    top: f64,
}

/// Draws times over the time of a copy to an SVG file.
pub(super) fn draw(path: &Path, comparison: &Comparison) -> Result<()> {
    draw_picture(path, comparison, &OVER_COPY, &comparison.implementations())
}

/// Draws times over the time of a rank alone to an SVG file.
pub(super) fn draw_ranks(path: &Path, comparison: &Comparison) -> Result<()> {
    let names: Vec<_> = comparison.implementations().into_iter().filter(|&name| name != ALONE).collect();
    draw_picture(path, comparison, &OVER_ALONE, &names)
}

/// The forward and the backward panel.
fn draw_picture(path: &Path, comparison: &Comparison, picture: &Picture, names: &[&str]) -> Result<()> {
    let [forward, backward] = ["forward", "backward"].map(|op| bars(comparison, picture, op, names));
    let values = forward.iter().chain(&backward).flat_map(|(_, bars)| bars.iter().map(|&(_, value)| value));
    let top = 1.12 * (picture.height)(values.fold(1.0, f64::max));

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(92);
    head.draw_text(&format!("{}: {}", comparison.device, picture.title), &text(22), (24, 16))?;
    head.draw_text(picture.under, &text(15), (24, 44))?;
    legend(&head, names)?;
    let (upper, lower) = body.split_vertically((SIZE.1 - 92) / 2);
    for (area, op, groups) in [(upper, "forward", forward), (lower, "backward", backward)] {
        panel(&area, &Panel { op, picture, groups, names, top })?;
    }
    root.present()?;
    Ok(())
}

/// For each type and layout, the mean of every implementation that measured it.
fn bars(
    comparison: &Comparison,
    picture: &Picture,
    op: &str,
    names: &[&str],
) -> Vec<(String, Vec<(usize, f64)>)> {
    let wanted = groups(comparison).into_iter();
    let wanted = wanted.filter(|group| (group.large || !picture.large_only) && group.op == op);
    let mean = |group: &Group<'_>, (at, name): (usize, &&str)| {
        group.mean(|line| (picture.ratio)(line, name)).map(|(mean, _)| (at, mean))
    };
    let bars = wanted.map(Group::common).map(|group| {
        let small = if group.large || picture.large_only { "" } else { ", small" };
        let label = format!("{} {}{small}", group.dtype, group.layout);
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
    let Panel { op, picture, groups, names, top } = panel;
    let Picture { axis, height, ratio_at, .. } = picture;
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
        .y_desc(format!("{op}, {axis}"))
        .axis_desc_style(text(16))
        .label_style(text(14))
        .y_label_formatter(&|at| format!("{:.1}", ratio_at(*at)))
        .axis_style(GREY)
        .bold_line_style(GREY.mix(0.18))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let one = height(1.0);
    chart.draw_series([PathElement::new([(0.0, one), (end, one)], GREY.stroke_width(1))])?;
    let centred = |size: u32, vertical| text(size).pos(Pos::new(HPos::Center, vertical));
    for (at, (label, bars)) in groups.iter().enumerate() {
        let left = at as f64 * width + 0.5;
        for (place, &(name, value)) in bars.iter().enumerate() {
            let from = left + place as f64 + (names.len() - bars.len()) as f64 / 2.0;
            let color = COLORS[name % COLORS.len()];
            let bar = [(from + 0.06, 0.0), (from + 0.94, height(value))];
            chart.draw_series([Rectangle::new(bar, color.filled())])?;
            let at = (from + 0.5, height(value));
            let figure = Text::new(format!("{value:.2}"), at, centred(12, VPos::Bottom));
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
