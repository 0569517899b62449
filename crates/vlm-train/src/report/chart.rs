//! Draws a curve as SVG. A long curve is drawn as the mean and range of groups of points, and a noisy
//! one also as a smoothed line.

use std::fmt::Write;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 220.0;
/// Margins, in which the numbers of the axes are written.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;
/// A curve with more points is reduced to this many groups of points.
const MAX_POINTS: usize = 400;
/// Decay of the exponential moving average.
const SMOOTHING: f64 = 0.9;

/// The curve of `points`, `(x, y)` with x rising. There must be two or more. `title` is for screen
/// readers.
pub(super) fn draw(title: &'static str, points: &[(f64, f64)], is_noisy: bool) -> String {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|(_, y)| y.is_finite()).collect();
    let bins = bins(&finite);
    let low = bins.iter().map(|bin| bin.low).fold(f64::INFINITY, f64::min);
    let high = bins.iter().map(|bin| bin.high).fold(f64::NEG_INFINITY, f64::max);
    let (first, last) = (finite[0].0, finite[finite.len() - 1].0);
    let y_ticks = ticks(low, high, 5);
    let x_ticks = ticks(first, last, 6);
    let (bottom, top) = (y_ticks[0].min(low), y_ticks[y_ticks.len() - 1].max(high));
    let x =
        |value: f64| LEFT + (value - first) / (last - first).max(1e-300) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| {
        HEIGHT - BOTTOM - (value - bottom) / (top - bottom).max(1e-300) * (HEIGHT - TOP - BOTTOM)
    };

    let mut svg = String::new();
    for tick in &y_ticks {
        let at = y(*tick);
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 3.5,
            short(*tick)
        );
    }
    for tick in x_ticks.iter().filter(|tick| (first..=last).contains(*tick)) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(*tick),
            HEIGHT - 7.0,
            short(*tick)
        );
    }
    if bins.len() < finite.len() {
        let upper = bins.iter().map(|bin| (x(bin.x), y(bin.high)));
        let lower = bins.iter().rev().map(|bin| (x(bin.x), y(bin.low)));
        let _ = writeln!(svg, "<path class=\"band\" d=\"{}Z\"/>", path(upper.chain(lower)));
    } else if is_noisy {
        let raw = path(bins.iter().map(|bin| (x(bin.x), y(bin.mean))));
        let _ = writeln!(svg, "<path class=\"raw\" d=\"{raw}\"/>");
    }
    let means: Vec<(f64, f64)> = bins.iter().map(|bin| (bin.x, bin.mean)).collect();
    let line = if is_noisy { smoothed(&means) } else { means };
    let line = path(line.into_iter().map(|(a, b)| (x(a), y(b))));
    let _ = writeln!(svg, "<path class=\"line\" d=\"{line}\"/>");

    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n{svg}</svg>"
    )
}

/// A group of neighbouring points.
struct Bin {
    x: f64,
    low: f64,
    mean: f64,
    high: f64,
}

fn bins(points: &[(f64, f64)]) -> Vec<Bin> {
    let size = points.len().div_ceil(MAX_POINTS).max(1);
    let bin = |points: &[(f64, f64)]| {
        let mean =
            |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
        Bin {
            x: mean(|point| point.0),
            low: points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min),
            mean: mean(|point| point.1),
            high: points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max),
        }
    };
    points.chunks(size).map(bin).collect()
}

/// The exponential moving average with bias correction (Kingma and Ba 2015, section 3). A curve with
/// fewer than 20 points is not smoothed.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() < 20 {
        return points.to_vec();
    }
    let (mut sum, mut weight) = (0.0, 0.0);
    let step = |&(x, y): &(f64, f64)| {
        sum = SMOOTHING * sum + (1.0 - SMOOTHING) * y;
        weight = SMOOTHING * weight + (1.0 - SMOOTHING);
        (x, sum / weight)
    };
    points.iter().map(step).collect()
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (index, (x, y)) in points.enumerate() {
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    path
}

/// Round numbers from at or below `low` to at or above `high`, about `count` of them.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let (low, high) = if high > low {
        (low, high)
    } else {
        (low - 0.5 * low.abs().max(1e-9), high + 0.5 * high.abs().max(1e-9))
    };
    let rough = (high - low) / count as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    (first..=last).map(|index| index as f64 * step).collect()
}

/// A number with at most four significant digits.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        0.0 => return "0".into(),
        _ if size >= 1e9 => format!("{:.1}G", value / 1e9),
        _ if size >= 1e6 => format!("{:.1}M", value / 1e6),
        _ if size >= 1e5 => format!("{:.0}k", value / 1e3),
        _ if size < 1e-3 => return format!("{value:.1e}").replace(".0e", "e"),
        _ => format!("{:.*}", (3.0 - size.log10().floor()).clamp(0.0, 6.0) as usize, value),
    };
    match text.contains('.') && !text.ends_with(['G', 'M']) {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        assert_eq!(ticks(0.13, 8.9, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let small = ticks(4.0e-5, 4.4e-4, 5);
        assert!(small[0] <= 4.0e-5 && *small.last().unwrap() >= 4.4e-4 && small.len() <= 7);
        let flat = ticks(3.0, 3.0, 5);
        assert!(flat[0] < 3.0 && *flat.last().unwrap() > 3.0);
        assert!(ticks(0.0, 0.0, 5).len() >= 2);
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 1.0, 2.5, 1234.0, 0.05, 4.4e-4, 250_000.0, 2.6e6, -0.5];
        let expected = ["0", "1", "2.5", "1234", "0.05", "4.4e-4", "250k", "2.6M", "-0.5"];
        assert_eq!(all.map(short), expected);
    }

    #[test]
    fn many_points_become_a_band_that_keeps_the_extremes() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|n| (f64::from(n), 1.0)).collect();
        points[5000].1 = 7.0;
        let bins = bins(&points);
        assert!(bins.len() <= MAX_POINTS);
        assert_eq!(bins.iter().map(|bin| bin.high).fold(0.0, f64::max), 7.0);
        let svg = draw("t", &points, true);
        assert!(svg.contains("class=\"band\"") && !svg.contains("NaN"));
        assert!(draw("t", &points[..30], true).contains("class=\"raw\""));
    }

    #[test]
    fn losses_that_are_not_finite_leave_a_drawing() {
        let svg = draw("t", &[(1.0, f64::NAN), (2.0, 1.0), (3.0, 1.0)], true);
        assert!(!svg.contains("NaN") && svg.contains("<svg"));
    }
}
