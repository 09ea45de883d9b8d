//! One picture of the three loss curves.
//!
//! A batch's loss is noisy, so a running mean is drawn in full colour over the pale loss itself. Synchronised and single lie
//! on each other: the one is a thin dark line in the middle of the other's broad one.

use std::num::NonZeroUsize;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::FontTransform;

use crate::Result;

const SIZE: (u32, u32) = (900, 520);
const WINDOW: usize = 12;
const GREY: RGBColor = RGBColor(90, 98, 110);

struct Look {
    label: fn(NonZeroUsize, usize) -> String,
    color: RGBColor,
    width: u32,
}

/// In the order in which they are drawn.
const LOOKS: [Look; 3] = [
    Look {
        label: |_, batch| format!("one process, batch of {batch}"),
        color: RGBColor(126, 182, 232),
        width: 7,
    },
    Look { label: |ranks, _| format!("{ranks} ranks, local"), color: RGBColor(222, 107, 53), width: 2 },
    Look { label: |ranks, _| format!("{ranks} ranks, synchronised"), color: RGBColor(16, 42, 92), width: 2 },
];

/// Draws the curves, in the order single, local, synchronised, of so many ranks and samples of a step, to an SVG file.
pub fn draw(path: &Path, (ranks, batch): (NonZeroUsize, usize), curves: [&[f64]; 3]) -> Result<()> {
    let steps = curves[0].len();
    let top = curves.iter().flat_map(|curve| curve.iter().copied()).fold(0.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Digits: the loss with batch norm on one process and on several ranks", text(22))
        .margin(18)
        .x_label_area_size(48)
        .y_label_area_size(60)
        .build_cartesian_2d(0..steps, 0.0..1.02 * top)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(format!("cross-entropy of the batch (bold: mean of {WINDOW} steps)"))
        .axis_desc_style(text(16))
        .label_style(text(14))
        .y_label_formatter(&|loss| format!("{loss:.1}"))
        .axis_style(GREY)
        .bold_line_style(GREY.mix(0.18))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (Look { color, .. }, curve) in LOOKS.iter().zip(curves) {
        chart.draw_series(LineSeries::new(points(curve), color.mix(0.25).stroke_width(1)))?;
    }
    for (Look { label, color, width }, curve) in LOOKS.iter().zip(curves) {
        let style = color.stroke_width(*width);
        chart
            .draw_series(LineSeries::new(points(&running_mean(curve)), style))?
            .label(label(ranks, batch))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 26, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .legend_area_size(34)
        .margin(14)
        .label_font(text(15))
        .background_style(WHITE.mix(0.9))
        .border_style(GREY.mix(0.4))
        .draw()?;
    root.present()?;
    Ok(())
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().transform(FontTransform::None).color(&RGBColor(40, 44, 52))
}

fn points(curve: &[f64]) -> impl Iterator<Item = (usize, f64)> + '_ {
    curve.iter().copied().enumerate()
}

/// The mean of each value and those before it, [`WINDOW`] in all where there are as many.
fn running_mean(curve: &[f64]) -> Vec<f64> {
    let mean = |end: usize| {
        let window = &curve[end.saturating_sub(WINDOW)..end];
        window.iter().sum::<f64>() / window.len() as f64
    };
    (1..=curve.len()).map(mean).collect()
}
