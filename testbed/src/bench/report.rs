//! The table for people and the JSON for programs.

use std::fmt::Write as _;

use erhu_floor::clock;
use serde_json::{Value, json};

use super::measure::Spread;
use super::workloads::{Outcome, Targets, Variant, Workload};

/// A workload and what came of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub workload: Workload,
    /// Flows or connections that it had.
    pub flows: u32,
    /// All kinds of pools.
    pub outcomes: Vec<Outcome>,
}

/// A row's figures: those of the worst variant, yardsticks over all.
struct Figures<'r> {
    worst: &'r Outcome,
    work: Spread,
    io: Option<Spread>,
    floor: Option<Spread>,
}

impl Row {
    fn figures(&self) -> Option<Figures<'_>> {
        let median = |o: &Outcome| o.spread(|r| Some(r.work)).map_or(0.0, |s| s.median);
        let worst = self.outcomes.iter().max_by(|a, b| median(a).total_cmp(&median(b)))?;
        let rounds = || self.outcomes.iter().flat_map(|o| &o.rounds);
        Some(Figures {
            worst,
            work: worst.spread(|r| Some(r.work))?,
            io: Spread::of(rounds().map(|r| r.io)).filter(|s| s.median > 0.0),
            floor: Spread::of(rounds().filter_map(|r| r.floor)),
        })
    }
}

/// What the table shows of a figure beside its targets.
struct Judged {
    ratio: Option<f64>,
    must: f64,
    aims: f64,
    verdict: String,
}

fn judged(targets: Targets, work: f64, floor: Option<f64>) -> Judged {
    let (ratio, must, aims, limit) = match targets {
        Targets::Floors { must, aims, limit, .. } => {
            (floor.filter(|f| *f > 0.0).map(|f| work / f), must, aims, limit)
        }
        Targets::Bytes { must, aims } => (None, must, aims, None),
    };
    let figure = match targets {
        Targets::Floors { .. } => ratio,
        Targets::Bytes { .. } => Some(work),
    };
    let verdict = match (figure, limit) {
        (None, _) => "no floor to compare with".into(),
        (Some(f), _) if f <= aims => "aim reached".into(),
        (Some(f), _) if f <= must => "must reached".into(),
        (Some(f), Some(limit)) if f <= limit => format!("within {limit} F"),
        (Some(f), _) => format!("{:.0} % over must", (f / must - 1.0) * 100.0),
    };
    Judged { ratio, must, aims, verdict }
}

/// The heading of the table.
pub fn heading() -> String {
    format!(
        "{:4} {:29} {:>7} {:>15} {:>6} {:>7} {:>7} {:>7} {:>7} {:>8} {:>7}  verdict",
        "", "workload", "ticks", "(spread)", "io", "F", "ratio", "must", "aims", "ns", "Mpps"
    )
}

/// A row of the table, with a line for each kind of pool below it.
pub fn text(row: &Row) -> String {
    let Some(figures) = row.figures() else { return String::new() };
    let Figures { work, io, floor, .. } = figures;
    let judged = judged(row.workload.targets, work.median, floor.map(|f| f.median));
    let number = |n: Option<f64>| n.map_or_else(|| "-".into(), |n| format!("{n:.1}"));
    let is_bytes = matches!(row.workload.targets, Targets::Bytes { .. });
    let (unit, ns, mpps) = if is_bytes {
        ("B", None, None)
    } else {
        let ns = work.median / clock::hz() * 1e9;
        (" F", Some(ns), Some(1e3 / ns))
    };
    let mut text = format!(
        "{:4} {:29} {:>7.1} {:>15} {:>6} {:>7} {:>7} {:>7} {:>7} {:>8} {:>7}  {}\n",
        row.workload.id,
        row.workload.what,
        work.median,
        format!("({:.1}-{:.1})", work.min, work.max),
        number(io.map(|s| s.median)),
        number(floor.map(|s| s.median)),
        judged.ratio.map_or_else(|| "-".into(), |r| format!("{r:.2}")),
        format!("{}{unit}", judged.must),
        format!("{}{unit}", judged.aims),
        number(ns),
        mpps.map_or_else(|| "-".into(), |n| format!("{n:.2}")),
        judged.verdict,
    );
    for outcome in &row.outcomes {
        let Some(spread) = outcome.spread(|r| Some(r.work)) else { continue };
        let spread = format!("{:>7.1} {:>15}", spread.median, format!("({:.1}-{:.1})", spread.min, spread.max));
        let first = outcome.first_fill.map_or_else(String::new, |f| format!("   first fill {f:.0}"));
        let _ = writeln!(text, "       {:26}  {spread}{first}", label(outcome.variant));
    }
    text
}

fn label(variant: Variant) -> String {
    let keeps = if variant.preserve_port { "ports kept" } else { "ports chosen" };
    let mapping = match variant.mapping {
        super::scene::Mapping::EndpointIndependent => "per endpoint",
        super::scene::Mapping::AddressPortDependent => "per connection",
    };
    format!("{mapping}, {keeps}")
}

/// A row for programs.
pub fn json(row: &Row) -> Value {
    let spread = |s: Option<Spread>| s.map(|s| json!({ "median": s.median, "min": s.min, "max": s.max }));
    let Some(Figures { worst, work, io, floor }) = row.figures() else { return Value::Null };
    let judged = judged(row.workload.targets, work.median, floor.map(|f| f.median));
    let variants = row.outcomes.iter().map(|o| {
        json!({
            "mapping": o.variant.mapping.name(),
            "preserve_port": o.variant.preserve_port,
            "figure": spread(o.spread(|r| Some(r.work))),
            "rounds": o.rounds.iter().map(|r| json!({ "work": r.work, "io": r.io, "floor": r.floor })).collect::<Vec<_>>(),
            "first_fill": o.first_fill,
        })
    });
    let unit = if matches!(row.workload.targets, Targets::Bytes { .. }) { "bytes" } else { "ticks" };
    json!({
        "id": row.workload.id,
        "workload": row.workload.what,
        "flows": row.flows,
        "unit": unit,
        "figure": spread(Some(work)),
        "worst": { "mapping": worst.variant.mapping.name(), "preserve_port": worst.variant.preserve_port },
        "io": spread(io),
        "floor": spread(floor),
        "ratio": judged.ratio,
        "must": judged.must,
        "aims": judged.aims,
        "verdict": judged.verdict,
        "variants": variants.collect::<Vec<_>>(),
    })
}
