//! What moved between two runs, beyond what either run's rounds differ among themselves.

use std::fmt::Write as _;

use serde_json::Value;

/// Part of a figure that always counts as noise: other tenants of the machine, another placement in memory.
const NOISE: f64 = 0.02;

/// One figure of two runs.
struct Pair<'v> {
    id: &'v str,
    what: &'v str,
    old: [f64; 3],
    new: [f64; 3],
    suffix: &'v str,
    faster_is_more: bool,
}

/// Median and extremes of what is held against the targets; of the figure itself where there was no yardstick.
fn spread(figure: &Value) -> Option<[f64; 3]> {
    let of = |name: &str| {
        let at = |part: &str| figure.pointer(&format!("/{name}/{part}")).and_then(Value::as_f64);
        Some([at("median")?, at("min")?, at("max")?])
    };
    of("measured").or_else(|| of("figure"))
}

fn figures(all: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    all["rows"].as_array().into_iter().flatten().flat_map(|row| {
        let id = row["id"].as_str().unwrap_or_default();
        row["figures"].as_array().into_iter().flatten().filter_map(move |f| Some((id, f["what"].as_str()?, f)))
    })
}

fn pairs<'v>(old: &'v Value, new: &'v Value) -> impl Iterator<Item = Pair<'v>> {
    figures(new).filter_map(move |(id, what, figure)| {
        let before = figures(old).find(|(i, w, _)| (*i, *w) == (id, what))?.2;
        let suffix = figure["suffix"].as_str().unwrap_or_default();
        let faster_is_more = figure["against"] == "one worker";
        Some(Pair { id, what, old: spread(before)?, new: spread(figure)?, suffix, faster_is_more })
    })
}

impl Pair<'_> {
    /// How far the median moved, if the spreads of both runs do not meet.
    fn moved(&self) -> Option<f64> {
        let ([old, old_min, old_max], [new, new_min, new_max]) = (self.old, self.new);
        let apart = new_min > old_max || new_max < old_min;
        let far = (new - old).abs() > old.abs() * NOISE;
        (apart && far).then(|| if old == 0.0 { f64::INFINITY } else { (new / old - 1.0) * 100.0 })
    }
}

/// What moved, and how much did not.
pub fn text(old: &Value, new: &Value) -> String {
    let mut text = String::from("\nagainst the older run:\n");
    let (mut moved, mut same) = (0, 0);
    for pair in pairs(old, new) {
        let Some(percent) = pair.moved() else {
            same += 1;
            continue;
        };
        moved += 1;
        let better = (percent < 0.0) != pair.faster_is_more;
        // Into a String: cannot fail.
        let _ = writeln!(
            text,
            "{:5} {:47} {:>9.2} -> {:>9.2}{} {percent:>+8.1} %  {}",
            pair.id,
            pair.what,
            pair.old[0],
            pair.new[0],
            pair.suffix,
            if better { "better" } else { "WORSE" },
        );
    }
    let missing = figures(old).count() - moved - same;
    let _ = writeln!(
        text,
        "{moved} moved beyond the noise of both runs, {same} did not, {missing} of the older run are not in this one"
    );
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(figures: &[(&str, [f64; 3])]) -> Value {
        let rows: Vec<Value> = figures
            .iter()
            .map(|(id, [median, min, max])| {
                let spread = json!({ "median": median, "min": min, "max": max });
                json!({ "id": id, "figures": [{ "what": "it", "measured": spread, "suffix": " F" }] })
            })
            .collect();
        json!({ "rows": rows })
    }

    #[test]
    fn only_what_leaves_the_spread_of_both_runs_has_moved() {
        let old = run(&[("A1", [2.0, 1.9, 2.1]), ("A2", [3.0, 2.9, 3.1]), ("A3", [4.0, 3.9, 4.1]), ("A4", [1.0; 3])]);
        let new = run(&[("A1", [2.05, 2.0, 2.2]), ("A2", [2.5, 2.4, 2.6]), ("A3", [5.0, 4.5, 5.5])]);
        let text = text(&old, &new);
        assert!(
            !text.contains("A1") && text.contains("-16.7 %  better") && text.contains("+25.0 %  WORSE"),
            "{text}"
        );
        assert!(text.contains("2 moved beyond the noise of both runs, 1 did not, 1 of the older"), "{text}");
    }

    #[test]
    fn a_hundredth_is_noise_even_where_rounds_agree_exactly() {
        let [old, new] = [[100.0; 3], [101.0; 3]].map(|figure| run(&[("C1", figure)]));
        assert!(text(&old, &new).contains("0 moved"), "{}", text(&old, &new));
    }
}
