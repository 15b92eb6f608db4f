//! Ticks per established packet against flows: ours, the floor, what is wanted, and the peers.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use super::BenchError;

/// Pixels.
const SIZE: (u32, u32) = (960, 600);
/// Pixels right of the axes, for names.
const NAMES: i32 = 250;
/// Pixels between two names at least.
const APART: i32 = 17;
/// Flows of A1 to A4.
const FLOWS: [f64; 4] = [1024.0, 65_536.0, 1_048_576.0, 4_194_304.0];
/// Ticks from the bottom to the top.
const TICKS: std::ops::Range<f64> = 10.0..4000.0;

const INK: RGBColor = RGBColor(40, 44, 52);
const FAINT: RGBColor = RGBColor(225, 228, 232);
const OURS: RGBColor = RGBColor(200, 30, 60);
const WANTED: RGBColor = RGBColor(40, 140, 80);
const GROUND: RGBColor = RGBColor(120, 125, 135);

/// Other routers at 1k, 64k and 1M flows: as they were measured side by side on another machine (TSC 2.3 GHz), generator
/// excluded, 64-byte frames in random order.
const PEERS: [(&str, [f64; 3], RGBColor); 5] = [
    ("Linux, ct zone + SNAT", [1508.0, 1642.0, 2086.0], RGBColor(140, 86, 75)),
    ("Open vSwitch, ct + SNAT", [395.0, 564.0, 682.0], RGBColor(148, 103, 189)),
    ("VPP nat44-ed", [119.0, 234.0, 566.0], RGBColor(31, 119, 180)),
    ("VPP stateful ACL, no NAT", [73.0, 95.0, 161.0], RGBColor(23, 160, 180)),
    ("l3fwd exact match, no state", [65.0, 75.0, 83.0], RGBColor(205, 140, 20)),
];

/// A line of the plot.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    colour: RGBColor,
    width: u32,
    dashed: bool,
    dots: bool,
}

/// The plot of a run, or of as much of A1 to A4 as it has.
///
/// # Errors
/// If the run has none of them.
pub fn svg(all: &Value) -> Result<String, BenchError> {
    let lines = lines(all)?;
    let mut text = String::new();
    draw(&mut text, &lines, all).map_err(|e| BenchError::Option(format!("the plot: {e}")))?;
    Ok(format!("{}\n", text.trim_end()))
}

fn lines(all: &Value) -> Result<Vec<Line>, BenchError> {
    let rows: Vec<&Value> = all["rows"].as_array().into_iter().flatten().collect();
    let of = |path: &str| -> Vec<(f64, f64)> {
        let row = |id: &str| rows.iter().find(|row| row["id"] == id)?["figures"].get(0)?.pointer(path)?.as_f64();
        FLOWS.iter().zip(["A1", "A2", "A3", "A4"]).filter_map(|(flows, id)| Some((*flows, row(id)?))).collect()
    };
    let (ours, floor) = (of("/figure/median"), of("/floor/median"));
    if ours.is_empty() {
        return Err(BenchError::Option("a plot needs A1, A2, A3 or A4".into()));
    }
    let floors = |times: Vec<(f64, f64)>| -> Vec<(f64, f64)> {
        times.iter().zip(&floor).map(|((flows, n), (_, f))| (*flows, n * f)).collect()
    };
    let line = |name: &str, points, colour, width| Line {
        name: name.into(),
        points,
        colour,
        width,
        dashed: false,
        dots: true,
    };
    let mut lines: Vec<Line> = PEERS
        .iter()
        .map(|(name, ticks, colour)| line(name, FLOWS.into_iter().zip(*ticks).collect(), *colour, 2))
        .collect();
    let target = |name: &str, points| Line { dashed: true, dots: false, ..line(name, points, WANTED, 2) };
    lines.push(target("must", floors(of("/must"))));
    lines.push(target("aims at", floors(of("/aims"))));
    lines.push(line("the floor: bare table and rewrite", floor.clone(), GROUND, 2));
    lines.push(line("erhu, SNAT, everything on", ours, OURS, 4));
    Ok(lines)
}

#[expect(clippy::cast_possible_truncation, reason = "pixels of a plot")]
fn whole(pixels: f64) -> i32 {
    pixels.round() as i32
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(text: &mut String, lines: &[Line], all: &Value) -> Drawn {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let style = |size: i32, colour: &RGBColor| ("sans-serif", size).into_font().color(colour);
    root.draw(&Text::new("Ticks per established packet", (24, 16), style(20, &INK)))?;
    let said = "64-byte frames, flows in random order, one thread, what receiving and sending cost taken off; both scales logarithmic";
    root.draw(&Text::new(said, (24, 42), style(13, &GROUND)))?;
    let machine = all["machine"].as_str().unwrap_or_default();
    let foot = format!("erhu, the floor and the targets: {machine}. Peers: another machine, TSC 2300 MHz.");
    root.draw(&Text::new(foot, (24, i32::try_from(SIZE.1)? - 22), style(11, &GROUND)))?;
    let mut chart = ChartBuilder::on(&root)
        .margin_top(70)
        .margin_left(14)
        .margin_bottom(36)
        .margin_right(NAMES)
        .x_label_area_size(34)
        .y_label_area_size(52)
        .build_cartesian_2d((FLOWS[0]..FLOWS[3]).log_scale(), TICKS.log_scale())?;
    let (xs, ys) = chart.plotting_area().get_pixel_range();
    let (left, right, top, bottom) = (xs.start, xs.end, ys.start, ys.end);
    let place = |flows: f64, ticks: f64| {
        let part = |n: f64, from: f64, to: f64| (n / from).ln() / (to / from).ln();
        let x = part(flows, FLOWS[0], FLOWS[3]) * f64::from(right - left);
        let y = part(ticks, TICKS.start, TICKS.end) * f64::from(bottom - top);
        (left + whole(x), bottom - whole(y))
    };
    for ticks in [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0_f64] {
        let y = place(FLOWS[0], ticks).1;
        root.draw(&PathElement::new(vec![(left, y), (right, y)], FAINT.stroke_width(1)))?;
        let at = style(13, &INK).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(format!("{ticks:.0}"), (left - 8, y), at))?;
    }
    for (flows, name) in [
        (1024.0, "1k"),
        (16_384.0, "16k"),
        (65_536.0, "64k"),
        (262_144.0, "256k"),
        (1_048_576.0, "1M"),
        (4_194_304.0, "4M"),
    ] {
        let x = place(flows, TICKS.start).0;
        root.draw(&PathElement::new(vec![(x, top), (x, bottom)], FAINT.stroke_width(1)))?;
        let at = style(13, &INK).pos(Pos::new(HPos::Center, VPos::Top));
        let text = if flows == FLOWS[0] { format!("{name} flows") } else { name.to_owned() };
        root.draw(&Text::new(text, (x, bottom + 8), at))?;
    }
    for line in lines {
        let stroke = line.colour.stroke_width(line.width);
        if line.dashed {
            chart.draw_series(DashedLineSeries::new(line.points.iter().copied(), 7, 5, stroke))?;
        } else {
            chart.draw_series(LineSeries::new(line.points.iter().copied(), stroke))?;
        }
        if line.dots {
            let radius = i32::try_from(line.width)? + 1;
            chart.draw_series(line.points.iter().map(|p| Circle::new(*p, radius, line.colour.filled())))?;
        }
    }
    // Names stand beside the ends of their lines, moved apart where they would meet.
    let mut names: Vec<(i32, (i32, i32), &Line)> = lines
        .iter()
        .filter_map(|line| {
            let end = line.points.last().map(|(x, y)| place(*x, *y))?;
            Some((end.1, end, line))
        })
        .collect();
    names.sort_by_key(|(y, ..)| *y);
    for at in 1..names.len() {
        names[at].0 = names[at].0.max(names[at - 1].0 + APART);
    }
    for (y, end, line) in names {
        let ticks = line.points.last().map_or(0.0, |p| p.1);
        let leader = vec![(end.0 + 7, end.1), (right + 12, y), (right + 22, y)];
        root.draw(&PathElement::new(leader, line.colour.mix(0.45).stroke_width(1)))?;
        let at = style(if line.width > 2 { 15 } else { 13 }, &line.colour).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(format!("{}  {ticks:.0}", line.name), (right + 26, y), at))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(id: &str, work: f64, floor: f64) -> Value {
        let median = |n: f64| json!({ "median": n });
        json!({ "id": id, "figures": [{ "figure": median(work), "floor": median(floor), "must": 2.0, "aims": 1.5 }] })
    }

    #[test]
    fn a_plot_names_every_line() {
        let rows = [row("A1", 60.0, 16.0), row("A3", 100.0, 40.0), row("A4", 130.0, 60.0)];
        let svg = svg(&json!({ "machine": "m", "rows": rows })).unwrap();
        for name in ["erhu", "the floor", "must", "aims at", "VPP nat44-ed", "Linux", "l3fwd", "Open vSwitch"] {
            assert!(svg.contains(name), "{name}");
        }
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_run_without_established_packets_has_no_plot() {
        assert!(svg(&json!({ "rows": [] })).is_err());
    }
}
