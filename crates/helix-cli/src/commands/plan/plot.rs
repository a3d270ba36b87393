//! `--plot`: the fronts as a picture to put into a text.

use crate::failure::{Failure, Outcome};
use helix_layout::Strategy;
use helix_plan::Report;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::path::Path;

/// Pixels of a picture.
const SIZE: (u32, u32) = (1200, 700);
/// By this name an SVG's reader picks a font of its own; sizes are those of the one registered.
const FONT: &str = "sans-serif";

/// What a picture is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// Text that scales.
    Svg,
    /// Pixels.
    Png,
}

impl Picture {
    /// By the ending of a file's name.
    pub fn of(path: &Path) -> Outcome<Picture> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("svg") => Ok(Picture::Svg),
            Some("png") => Ok(Picture::Png),
            _ => Err(Failure::request(format!(
                "--plot {}: give a name that ends with .svg or .png",
                path.display()
            ))),
        }
    }

    /// The fronts of all strategies, both axes logarithmic.
    pub fn draw(self, report: &Report) -> Outcome<Vec<u8>> {
        let drawn = match self {
            Picture::Svg => svg(report),
            Picture::Png => png(report),
        };
        drawn.map_err(|error| Failure::running(format!("cannot draw the fronts: {error}")))
    }
}

fn svg(report: &Report) -> Result<Vec<u8>, String> {
    let mut text = String::new();
    chart(&SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), report)?;
    Ok(text.into_bytes())
}

fn png(report: &Report) -> Result<Vec<u8>, String> {
    let (width, height) = SIZE;
    let mut pixels = vec![0; (width * height * 3) as usize];
    chart(&BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area(), report)?;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().map_err(said)?;
    writer.write_image_data(&pixels).map_err(said)?;
    writer.finish().map_err(said)?;
    Ok(bytes)
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn chart<B: DrawingBackend>(area: &DrawingArea<B, Shift>, report: &Report) -> Result<(), String> {
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the font is none".to_owned())?;
    area.fill(&WHITE).map_err(said)?;
    let rows = || report.fronts.iter().flat_map(|of| &of.front);
    let (left, right) = span(rows().map(|row| row.tokens_per_s_user));
    let (bottom, top) = span(rows().map(|row| row.tokens_per_s_rank));
    let title = format!("{} on {}, {} positions", report.model, report.hardware, report.context);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 22))
        .margin(15)
        .x_label_area_size(50)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (left..right).log_scale().with_key_points(ticks(left, right)),
            (bottom..top).log_scale().with_key_points(ticks(bottom, top)),
        )
        .map_err(said)?;
    chart
        .configure_mesh()
        .x_desc("tokens/s/user")
        .y_desc("tokens/s/rank")
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 17))
        .max_light_lines(0)
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .draw()
        .map_err(said)?;
    for of in &report.fronts {
        let colour = colour(&of.strategy);
        let points = of.front.iter().map(|row| (row.tokens_per_s_user, row.tokens_per_s_rank));
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))
            .map_err(said)?
            .label(of.strategy.as_str())
            .legend(move |(x, y)| Circle::new((x + 10, y), 4, colour.filled()));
        let dots = points.map(|point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots).map_err(said)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .label_font((FONT, 17))
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()
        .map_err(said)?;
    area.present().map_err(said)
}

/// A strategy's own, whichever others are drawn.
fn colour(strategy: &str) -> RGBColor {
    let known = Strategy::ALL.iter().zip(COLOURS);
    let mut named = known.filter(|(known, _)| known.to_string() == strategy);
    named.next().map_or(BLACK, |(_, colour)| colour)
}

/// Told apart without red and green; as many as there are strategies.
const COLOURS: [RGBColor; Strategy::ALL.len()] =
    [RGBColor(213, 94, 0), RGBColor(0, 114, 178), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// The values and some room.
fn span(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    (least / 1.1, values.fold(0.0, f64::max) * 1.1)
}

/// What the axes say: 1, 2 and 5 times powers of ten, or where that would be few even steps.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let power = |of: f64| 10f64.powf(of.log10().floor());
    if high / low > 5.0 {
        let decades = std::iter::successors(Some(power(low)), |decade| Some(decade * 10.0));
        let all = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|times| times * decade));
        return all.skip_while(|tick| *tick < low).take_while(|tick| *tick <= high).collect();
    }
    let rough = (high - low) / 6.0;
    let steps = [1.0, 2.0, 5.0].map(|times| times * power(rough));
    let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(power(rough) * 10.0);
    let first = (low / step).ceil();
    let all = (0..).map(|index| (first + f64::from(index)) * step);
    all.take_while(|tick| *tick <= high).collect()
}

/// A number to four digits, without the noise of binary fractions.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "what a formatter is given")]
fn short(value: &f64) -> String {
    let digits = (3.0 - value.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::{short, ticks};

    #[test]
    fn every_axis_has_some_ticks_and_not_many() {
        let said = |low, high| ticks(low, high).iter().map(short).collect::<Vec<_>>().join(" ");
        assert_eq!(said(0.9, 60.0), "1 2 5 10 20 50");
        assert_eq!(said(0.03, 0.25), "0.05 0.1 0.2");
        assert_eq!(said(11.0, 19.0), "12 14 16 18");
        assert_eq!(said(0.93, 1.02), "0.94 0.96 0.98 1 1.02");
        for exponent in -3..6 {
            let low = 1.7 * 10f64.powi(exponent);
            for ratio in [1.1 * 1.1, 2.0, 4.9, 5.1, 9.0, 60.0, 1e4] {
                let ticks = ticks(low, low * ratio);
                let within = ticks.iter().all(|tick| (low..=low * ratio).contains(tick));
                assert!((2..=14).contains(&ticks.len()) && within, "{low} {ratio}: {ticks:?}");
            }
        }
    }
}
