//! Draws the results as bars.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (900, 260);
const COLOURS: [RGBColor; 3] =
    [RGBColor(31, 119, 180), RGBColor(23, 190, 207), RGBColor(127, 127, 127)];

/// An SVG picture with a panel for each title and its bars, which have names.
pub fn draw(caption: &str, panels: &[(&str, Vec<(&str, f64)>)]) -> Result<String> {
    let mut svg = String::new();
    draw_on(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), caption, panels)
        .map_err(|error| anyhow!("drawing the results: {error}"))?;
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_on(
    area: &Area,
    caption: &str,
    panels: &[(&str, Vec<(&str, f64)>)],
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let area = area.titled(caption, ("sans-serif", 15))?;
    for (panel, (title, bars)) in area.split_evenly((1, panels.len())).iter().zip(panels) {
        let longest = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
        let mut chart = ChartBuilder::on(panel)
            .caption(title, ("sans-serif", 14))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(110)
            .build_cartesian_2d(0.0..1.15 * longest, bars.len() as f64..0.0)?;
        let name = |at: &f64| {
            let is_centre = (at.fract() - 0.5).abs() < 1e-9;
            let bar = bars.get(*at as usize).filter(|_| is_centre);
            bar.map_or(String::new(), |(name, _)| (*name).to_owned())
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(2 * bars.len() + 1)
            .y_label_formatter(&name)
            .x_labels(5)
            .draw()?;
        for (index, ((_, value), colour)) in bars.iter().zip(COLOURS).enumerate() {
            let (top, bottom) = (index as f64 + 0.2, index as f64 + 0.8);
            let bar = Rectangle::new([(0.0, top), (*value, bottom)], colour.filled());
            let label = Text::new(
                format!(" {value:.2}"),
                (*value, index as f64 + 0.42),
                ("sans-serif", 13),
            );
            chart.draw_series([bar])?;
            chart.draw_series([label])?;
        }
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_has_every_title_name_and_value() {
        let bars = vec![("ours", 2.5), ("reference", 0.75)];
        let svg = draw("a machine", &[("rows per second", bars.clone()), ("GiB", bars)]).unwrap();
        for part in ["a machine", "rows per second", "GiB", "ours", "reference", "2.50", "0.75"] {
            assert!(svg.contains(part), "{part}");
        }
    }
}
