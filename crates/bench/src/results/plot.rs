//! `manta bench plot`: results as one image. Above, how the times are distributed, a row for each file;
//! below, how they went as the run went on.

use std::fs;
use std::path::PathBuf;

use clap::Args;

use super::ResultsError;
use super::recorded::Recorded;
use super::svg::{Anchor, Axis, Svg};

/// Okabe and Ito's, which the color-blind can tell apart.
const COLORS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const INK: &str = "#222222";
const FAINT: &str = "#666666";
const GRID: &str = "#dddddd";

const WIDTH: f64 = 960.0;
const RIGHT: f64 = WIDTH - 24.0;
/// Left of it the rows are named.
const ROWS_LEFT: f64 = 300.0;
const ROWS_TOP: f64 = 64.0;
const ROW: f64 = 66.0;
const LINE_LEFT: f64 = 76.0;
const LINE_HEIGHT: f64 = 240.0;
/// From the end of the rows to the begin of the time line: numbers, unit, title.
const BETWEEN: f64 = 104.0;
const BELOW: f64 = 52.0;

/// Draw results as one SVG image: the distribution of TTI, and TTI over the time of the run.
#[derive(Debug, Clone, Args)]
pub struct PlotArgs {
    /// Results of `manta bench` or `manta bench-restore`.
    #[arg(value_name = "FILE.json", required = true)]
    pub files: Vec<PathBuf>,
    /// Where the image goes.
    #[arg(long, value_name = "FILE.svg")]
    pub out: PathBuf,
}

/// Writes the image. There is nothing to say about it.
///
/// # Errors
/// [`ResultsError`].
pub fn plot(args: &PlotArgs) -> Result<String, ResultsError> {
    let runs: Vec<Recorded> = args.files.iter().map(|path| Recorded::read(path)).collect::<Result<_, _>>()?;
    fs::write(&args.out, draw(&runs))
        .map_err(|source| ResultsError::Write { path: args.out.clone(), source })?;
    Ok(String::new())
}

/// The scale of all TTIs of an image.
#[derive(Debug, Clone, Copy)]
struct Unit {
    name: &'static str,
    ns: f64,
}

fn draw(runs: &[Recorded]) -> String {
    let all =
        |values: fn(&Recorded) -> Vec<u64>| runs.iter().flat_map(values).max().unwrap_or_default() as f64;
    let slowest = all(|run| run.of(|sample| sample.tti_ns));
    let latest = all(Recorded::starts) / 1e9;
    let unit = if slowest < 10e9 { Unit { name: "ms", ns: 1e6 } } else { Unit { name: "s", ns: 1e9 } };
    let rows_bottom = ROWS_TOP + ROW * runs.len() as f64;
    let line_top = rows_bottom + BETWEEN;
    let line_bottom = line_top + LINE_HEIGHT;

    let mut svg = Svg::new(WIDTH, line_bottom + BELOW);
    svg.text((24.0, 28.0), 17, Anchor::Start, INK, "Time to interactive (TTI): each dot is one sandbox");
    svg.text((24.0, 47.0), 12, Anchor::Start, FAINT, "thick bar: median (p50); thin bar: p95");
    let ttis = Axis::new(slowest / unit.ns, ROWS_LEFT, RIGHT);
    horizontal(&mut svg, &ttis, (ROWS_TOP, rows_bottom), &format!("TTI ({})", unit.name));
    for ((run, color), row) in runs.iter().zip(COLORS.iter().cycle()).zip(0_u32..) {
        draw_row(&mut svg, run, color, &ttis, unit, ROWS_TOP + ROW * f64::from(row));
    }

    svg.text(
        (24.0, line_top - 20.0),
        15,
        Anchor::Start,
        INK,
        "TTI by the time at which the sandbox was asked for",
    );
    let times = Axis::new(latest, LINE_LEFT, RIGHT);
    horizontal(&mut svg, &times, (line_top, line_bottom), "time since the first launch (s)");
    let ttis = Axis::new(slowest / unit.ns, line_bottom, line_top);
    for (y, number) in ttis.ticks() {
        svg.line((LINE_LEFT, y), (RIGHT, y), GRID, 1.0);
        let number = format!("{number} {}", unit.name);
        svg.text((LINE_LEFT - 8.0, y + 4.0), 12, Anchor::End, FAINT, &number);
    }
    for (run, color) in runs.iter().zip(COLORS.iter().cycle()) {
        for (start, sample) in run.starts().into_iter().zip(&run.samples) {
            let x = times.at(start as f64 / 1e9);
            svg.dot((x, ttis.at(sample.tti_ns as f64 / unit.ns)), color);
        }
    }
    svg.finish()
}

/// Numbers, their vertical lines, and what they mean.
fn horizontal(svg: &mut Svg, axis: &Axis, (top, bottom): (f64, f64), title: &str) {
    let mut middle = 0.0;
    for (x, number) in axis.ticks() {
        svg.line((x, top), (x, bottom), GRID, 1.0);
        svg.text((x, bottom + 17.0), 12, Anchor::Middle, FAINT, &number);
        middle = x;
    }
    middle = (axis.at(0.0) + middle) / 2.0;
    svg.text((middle, bottom + 38.0), 13, Anchor::Middle, INK, title);
}

/// What a run is, its dots, and its median and p95.
fn draw_row(svg: &mut Svg, run: &Recorded, color: &str, axis: &Axis, unit: Unit, top: f64) {
    let middle = top + ROW / 2.0;
    let tti = run.tti();
    let [p50, p95] = [tti.p50_ns, tti.p95_ns].map(|ns| ns.unwrap_or_default() as f64 / unit.ns);
    let decimals = if unit.name == "s" || p50 < 10.0 { 2 } else { 0 };
    let unit_name = unit.name;
    svg.line((ROWS_LEFT, top + ROW), (RIGHT, top + ROW), GRID, 1.0);
    svg.line((24.0, middle - 18.0), (34.0, middle - 18.0), color, 10.0);
    svg.text((40.0, middle - 14.0), 13, Anchor::Start, INK, &shorten(&run.name));
    let numbers = format!("p50 {p50:.decimals$} {unit_name}, p95 {p95:.decimals$} {unit_name}");
    svg.text((40.0, middle + 4.0), 12, Anchor::Start, INK, &numbers);
    svg.text((40.0, middle + 20.0), 11, Anchor::Start, FAINT, &run.description());

    for (value, width) in [(p50, 3.0), (p95, 1.2)] {
        let x = axis.at(value);
        svg.line((x, top + 7.0), (x, top + ROW - 7.0), INK, width);
    }
    for (sample, n) in run.samples.iter().zip(0_u32..) {
        // Evenly spread and never in a row: multiples of the golden ratio. Height has no meaning.
        let spread = (f64::from(n) * 0.618_033_988_75).fract() - 0.5;
        svg.dot((axis.at(sample.tti_ns as f64 / unit.ns), middle + spread * ROW * 0.6), color);
    }
}

/// What of a name has room beside its row.
fn shorten(name: &str) -> String {
    const ROOM: usize = 30;
    if name.chars().count() <= ROOM {
        return name.to_owned();
    }
    name.chars().take(ROOM - 1).chain(['…']).collect()
}
