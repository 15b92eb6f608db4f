//! The table for people and the JSON for programs. The table is made of the JSON, so that both say the same.

use std::fmt::Write as _;

use erhu_floor::clock;
use serde_json::{Value, json};

use super::goals::{Goal, Unit};
use super::measure::Spread;
use super::workloads::{Outcome, Workload};

/// A workload and what came of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub workload: Workload,
    /// Flows or connections that it had.
    pub flows: u32,
    /// All kinds of pools; none where something was wrong.
    pub outcomes: Vec<Outcome>,
    /// What was wrong.
    pub error: Option<String>,
}

fn spread(s: Option<Spread>) -> Value {
    s.map_or(Value::Null, |s| json!({ "median": s.median, "min": s.min, "max": s.max }))
}

/// A row for programs.
pub fn json(row: &Row) -> Value {
    let figures =
        row.workload.figures.iter().enumerate().map(|(at, wanted)| figure(row, at, wanted.what, wanted.goal));
    let figures: Vec<Value> = if row.error.is_some() { Vec::new() } else { figures.collect() };
    json!({ "id": row.workload.id, "flows": row.flows, "error": row.error, "figures": figures })
}

fn figure(row: &Row, at: usize, what: &str, goal: Goal) -> Value {
    let rounds = |o: &Outcome| o.figures.get(at).cloned().unwrap_or_default();
    let of = |o: &Outcome| goal.measured(&rounds(o)).map(|s| s.median);
    let worse = |a: &&Outcome, b: &&Outcome| match (of(a), of(b)) {
        (Some(a), Some(b)) if goal.is_worse(a, b) => std::cmp::Ordering::Greater,
        (Some(a), Some(b)) if goal.is_worse(b, a) => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Equal,
    };
    let Some(worst) = row.outcomes.iter().max_by(worse) else { return Value::Null };
    let own = rounds(worst);
    let measured = goal.measured(&own);
    let verdict = goal.verdict(measured.map(|s| s.median));
    let (must, aims) = goal.targets();
    let work = Spread::of(own.iter().map(|r| r.work));
    let against = match goal {
        Goal::Floors { flows, .. } => format!("F({flows})"),
        Goal::Times { of, .. } => of.to_owned(),
        Goal::More { than, .. } => than.to_owned(),
        Goal::Faster { .. } => "one worker".to_owned(),
        Goal::AtMost { .. } => String::new(),
    };
    let is_ticks = goal.unit() == Unit::Ticks && !matches!(goal, Goal::Faster { .. });
    let ns = work.filter(|_| is_ticks).map(|w| w.median / clock::hz() * 1e9);
    let every = |of: fn(&super::goals::Round) -> Option<f64>| Spread::of(own.iter().filter_map(of));
    let variants: Vec<Value> = row
        .outcomes
        .iter()
        .map(|o| {
            let rounds = rounds(o);
            json!({
                "name": o.variant.name(),
                "mapping": o.variant.mapping.name(),
                "preserve_port": o.variant.preserve_port,
                "figure": spread(Spread::of(rounds.iter().map(|r| r.work))),
                "rounds": rounds
                    .iter()
                    .map(|r| json!({ "work": r.work, "io": r.io, "floor": r.floor, "base": r.base }))
                    .collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "what": what,
        "unit": goal.unit().name(),
        "figure": spread(work),
        "io": spread(every(|r| r.io)),
        "floor": spread(every(|r| r.floor)),
        "base": spread(every(|r| r.base)),
        "against": against,
        "measured": spread(measured),
        "suffix": goal.suffix(),
        "unit_suffix": goal.unit().suffix(),
        "must": must,
        "aims": aims,
        "verdict": verdict.name(),
        "ns": ns,
        "worst": worst.variant.name(),
        "variants": variants,
    })
}

/// The heading of the table.
pub fn heading() -> String {
    format!(
        "{:5} {:47} {:>9} {:>17} {:>6} {:>7} {:>8}  {:>9} {:>9}  {:>7} {:>6}  verdict",
        "", "workload", "figure", "(spread)", "io", "beside", "measured", "must", "aims", "ns", "Mpps"
    )
}

fn number(n: f64) -> String {
    if n.abs() >= 1000.0 {
        format!("{n:.0}")
    } else if n.abs() >= 10.0 || n == 0.0 {
        format!("{n:.1}")
    } else {
        format!("{n:.2}")
    }
}

/// What stands for a figure in either table.
struct Cells {
    what: String,
    figure: String,
    spread: String,
    io: String,
    beside: String,
    measured: String,
    must: String,
    aims: String,
    ns: String,
    mpps: String,
    verdict: String,
}

fn cells(figure: &Value) -> Cells {
    let at = |path: &str| figure.pointer(path).and_then(Value::as_f64);
    let text = |path: &str| figure.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let dash = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), number);
    let suffix = text("/suffix");
    let with = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), |n| format!("{}{suffix}", number(n)));
    let is_amount = text("/against").is_empty();
    let ns = at("/ns");
    Cells {
        what: text("/what").to_owned(),
        figure: at("/figure/median").map_or_else(|| "-".into(), |n| format!("{}{}", number(n), text("/unit_suffix"))),
        spread: match (at("/figure/min"), at("/figure/max")) {
            (Some(min), Some(max)) => format!("({}-{})", number(min), number(max)),
            _ => String::new(),
        },
        io: dash(at("/io/median")),
        beside: dash(at("/floor/median").or(at("/base/median"))),
        measured: if is_amount { "-".into() } else { with(at("/measured/median")) },
        must: with(at("/must")),
        aims: with(at("/aims")),
        ns: dash(ns),
        mpps: ns.filter(|ns| *ns > 0.0).map_or_else(|| "-".into(), |ns| format!("{:.2}", 1e3 / ns)),
        verdict: text("/verdict").to_owned(),
    }
}

/// A row of the table: a line for each figure, with one for each kind of pool below it.
pub fn lines(row: &Value) -> String {
    let id = row["id"].as_str().unwrap_or_default();
    let mut text = String::new();
    if let Some(error) = row["error"].as_str() {
        return format!("{id:5} {error}\n");
    }
    for figure in row["figures"].as_array().into_iter().flatten() {
        let c = cells(figure);
        // Into a String: cannot fail.
        let _ = writeln!(
            text,
            "{id:5} {:47} {:>9} {:>17} {:>6} {:>7} {:>8}  {:>9} {:>9}  {:>7} {:>6}  {}",
            c.what, c.figure, c.spread, c.io, c.beside, c.measured, c.must, c.aims, c.ns, c.mpps, c.verdict
        );
        let variants = figure["variants"].as_array().map(Vec::as_slice).unwrap_or_default();
        for variant in variants.iter().filter(|_| variants.len() > 1) {
            let at = |path: &str| variant.pointer(path).and_then(Value::as_f64).map_or_else(|| "-".into(), number);
            let _ = writeln!(
                text,
                "        {:44} {:>9} {:>17}",
                variant["name"].as_str().unwrap_or_default(),
                at("/figure/median"),
                format!("({}-{})", at("/figure/min"), at("/figure/max")),
            );
        }
    }
    text
}

/// The whole table of a run.
pub fn table(all: &Value) -> String {
    let mut text = format!("{}\n{}\n", all["machine"].as_str().unwrap_or_default(), heading());
    all["rows"].as_array().into_iter().flatten().for_each(|row| text.push_str(&lines(row)));
    text
}

const BEGIN: &str = "<!-- begin of figures: written by `erhu-testbed bench --record` -->";
const END: &str = "<!-- end of figures -->";
/// What a page lacks that [`with_table`] cannot fill.
pub const NO_PLACE: &str = "there is no place for the figures: the two comments around them are missing";

/// A page of Markdown with the run's table between its two comments; `None` if it has none.
pub fn with_table(page: &str, all: &Value) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}{END}{after}", markdown(all)))
}

fn markdown(all: &Value) -> String {
    let mut text = format!(
        "{}; medians of {} rounds of {} packets.\n\n",
        all["machine"].as_str().unwrap_or_default(),
        all["rounds"],
        all["packets"],
    );
    for page in all["pages"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if page.contains("worse") {
            let _ = writeln!(text, "{page}.\n");
        }
    }
    text.push_str("| # | workload | figure | spread | io | beside | measured | must | aims | ns | |\n");
    text.push_str("|---|---|---:|---|---:|---:|---:|---:|---:|---:|---|\n");
    for row in all["rows"].as_array().into_iter().flatten() {
        let id = row["id"].as_str().unwrap_or_default();
        if let Some(error) = row["error"].as_str() {
            let _ = writeln!(text, "| {id} | {error} | | | | | | | | | no figure |");
        }
        for figure in row["figures"].as_array().into_iter().flatten() {
            let c = cells(figure);
            let verdict = if c.verdict == "missed" { "**missed**" } else { c.verdict.as_str() };
            let beside = match figure["against"].as_str().unwrap_or_default() {
                "" => c.beside.clone(),
                against => format!("{} {}", against, c.beside),
            };
            let _ = writeln!(
                text,
                "| {id} | {} | {} | {} | {} | {beside} | {} | {} | {} | {} | {verdict} |",
                c.what,
                c.figure,
                c.spread.trim_matches(['(', ')']),
                c.io,
                c.measured,
                c.must,
                c.aims,
                c.ns,
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::goals::Round;
    use crate::bench::workloads::{ALL, Variant};

    fn run() -> Value {
        let workload = *ALL.iter().find(|w| w.id == "A1").unwrap();
        let round = |work| Round { work, io: Some(20.0), floor: Some(16.0), base: None };
        let outcome = |variant, work| Outcome { variant, figures: vec![vec![round(work), round(work + 2.0)]] };
        let outcomes = vec![outcome(Variant::ALL[0], 40.0), outcome(Variant::ALL[1], 55.0)];
        let good = Row { workload, flows: 1024, outcomes, error: None };
        let bad = Row { workload, flows: 1024, outcomes: Vec::new(), error: Some("wrong: it dropped".into()) };
        json!({ "machine": "a machine", "rounds": 2, "packets": 64, "rows": [json(&good), json(&bad)] })
    }

    #[test]
    fn the_worst_kind_of_pool_counts() {
        let all = run();
        let figure = &all["rows"][0]["figures"][0];
        assert_eq!(figure["worst"], "per endpoint, ports chosen");
        assert_eq!(figure["measured"]["median"], 3.5);
        assert_eq!((&figure["verdict"], &figure["must"]), (&json!("must reached"), &json!(3.5)));
        let table = table(&all);
        assert!(table.contains("A1    wrong: it dropped") && table.contains("per endpoint, ports kept"), "{table}");
    }

    #[test]
    fn a_page_gets_its_table_between_two_comments_and_keeps_the_rest() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let page = with_table(&page, &run()).unwrap();
        assert!(page.starts_with("before\n") && page.ends_with("after\n") && !page.contains("old"), "{page}");
        assert!(page.contains("| A1 | established UDP, 1k flows | 56.0 |"), "{page}");
        assert_eq!(with_table("no place", &run()), None);
    }
}
