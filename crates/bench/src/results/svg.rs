//! The little of SVG that a plot needs: text, lines, dots, and axes with round numbers.

use std::fmt::Write as _;

const FONT: &str = r#"font-family="DejaVu Sans, Verdana, sans-serif""#;

/// An image under construction. Coordinates are pixels from the top left.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// How a text stands to its point.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// From values, 0 at least, to pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    step: f64,
    steps: u32,
    from: f64,
    to: f64,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    /// One line of text, `size` pixels high, its baseline at `y`.
    pub(super) fn text(&mut self, (x, y): (f64, f64), size: u32, anchor: Anchor, color: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        let style = format!(r#"font-size="{size}" text-anchor="{anchor}" fill="{color}""#);
        self.element(&format!(r#"<text x="{x:.1}" y="{y:.1}" {style}>{text}</text>"#));
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), color: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let ends = format!(r#"x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}""#);
        self.element(&format!(r#"<line {ends} stroke="{color}" stroke-width="{width}"/>"#));
    }

    pub(super) fn dot(&mut self, (x, y): (f64, f64), color: &str) {
        let fill = format!(r#"fill="{color}" fill-opacity="0.7""#);
        self.element(&format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" {fill}/>"#));
    }

    fn element(&mut self, element: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "{element}");
    }

    /// The whole file. Its background is white, also where the page's is not.
    pub(super) fn finish(self) -> String {
        let Self { width, height, body } = self;
        let size = format!(r#"width="{width}" height="{height}" viewBox="0 0 {width} {height}""#);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" {size} {FONT}>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}

impl Axis {
    /// With 0 at the pixel `from`, and the next round number from `max` upwards at `to`.
    pub(super) fn new(max: f64, from: f64, to: f64) -> Self {
        let max = if max > 0.0 { max } else { 1.0 };
        let rough = max / 6.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        Self { step, steps: (max / step).ceil().max(1.0) as u32, from, to }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * value / (self.step * f64::from(self.steps))
    }

    /// Where a number stands, and the number.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        let Self { step, steps, .. } = *self;
        (0..=steps).map(move |n| {
            let value = f64::from(n) * step;
            (self.at(value), format!("{value:.decimals$}"))
        })
    }
}

/// Text as XML has it; characters that XML has not become blanks.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(max: f64) -> Vec<String> {
        Axis::new(max, 0.0, 100.0).ticks().map(|(_, number)| number).collect()
    }

    #[test]
    fn numbers_at_an_axis_are_round_and_cover_the_values() {
        assert_eq!(numbers(979.2).join(" "), "0 200 400 600 800 1000");
        assert_eq!(numbers(101.0).join(" "), "0 20 40 60 80 100 120");
        assert_eq!(numbers(0.31).join(" "), "0.0 0.1 0.2 0.3 0.4");
        assert_eq!(numbers(0.0).join(" "), "0.0 0.2 0.4 0.6 0.8 1.0");
        let axis = Axis::new(979.2, 40.0, 140.0);
        assert_eq!((axis.at(0.0), axis.at(1000.0)), (40.0, 140.0));
    }

    #[test]
    fn no_text_ends_the_element_it_is_in() {
        assert_eq!(escape("</text><a href=\"x\">&\u{0}"), "&lt;/text&gt;&lt;a href=&quot;x&quot;&gt;&amp; ");
    }
}
