//! A picture of loss and accuracy in the three ways.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontTransform;

use crate::Result;
use crate::trainer::Outcome;

const SIZE: (u32, u32) = (1100, 460);
/// How many steps a loss is averaged over.
const WINDOW: usize = 20;
const LOOKS: [(&str, RGBColor, u32); 3] = [
    ("one process", RGBColor(126, 182, 232), 7),
    ("ranks, local", RGBColor(222, 107, 53), 2),
    ("ranks, synchronised", RGBColor(16, 42, 92), 2),
];

/// Draws the outcomes, in the order single, local, synchronised, to an SVG file.
pub fn draw(path: &Path, outcomes: [&Outcome; 3]) -> Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    let losses = outcomes.map(|outcome| running_mean(&outcome.losses));
    panel(&left, "loss", "step", &losses.each_ref().map(|curve| points(curve, 0)))?;
    panel(
        &right,
        "accuracy on the test samples",
        "epoch",
        &outcomes.map(|outcome| points(&outcome.accuracies, 1)),
    )?;
    root.present()?;
    Ok(())
}

type Curve = Vec<(f64, f64)>;

fn points(values: &[f64], first: u32) -> Curve {
    values.iter().zip(first..).map(|(&value, at)| (f64::from(at), value)).collect()
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    axis: &str,
    curves: &[Curve; 3],
) -> Result<()> {
    let largest = |of: fn(&(f64, f64)) -> f64| curves.iter().flatten().map(of).fold(0.0, f64::max);
    let (right, top) = (largest(|point| point.0), largest(|point| point.1));
    let mut chart = ChartBuilder::on(area)
        .caption(title, text(20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..right, 0.0..1.03 * top)?;
    chart
        .configure_mesh()
        .x_desc(axis)
        .axis_desc_style(text(15))
        .label_style(text(13))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for ((label, color, width), curve) in LOOKS.into_iter().zip(curves) {
        let style = color.stroke_width(width);
        chart
            .draw_series(LineSeries::new(curve.iter().copied(), style))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
    }
    let labels =
        if title == "loss" { SeriesLabelPosition::UpperRight } else { SeriesLabelPosition::LowerRight };
    chart
        .configure_series_labels()
        .position(labels)
        .legend_area_size(30)
        .label_font(text(14))
        .background_style(WHITE.mix(0.9))
        .draw()?;
    Ok(())
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().transform(FontTransform::None).color(&RGBColor(40, 44, 52))
}

fn running_mean(curve: &[f64]) -> Vec<f64> {
    let mean = |end: usize| {
        let window = &curve[end.saturating_sub(WINDOW)..end];
        window.iter().sum::<f64>() / window.len() as f64
    };
    (1..=curve.len()).map(mean).collect()
}
