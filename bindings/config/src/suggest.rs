//! Suggestions for misspelt names.

/// `, did you mean `x`?` for the nearest of `known`; empty if none is near.
pub fn did_you_mean<'k>(wrong: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    nearest(wrong, known).map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}

/// The known name with the fewest edits, if they are few for its length. Of equals, the first.
pub fn nearest<'k>(wrong: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Names can be long and many: what differs too much in length is not compared.
    let letters: Vec<char> = wrong.chars().take(64).map(|c| c.to_ascii_lowercase()).collect();
    let most = match letters.len() {
        // One letter is near to everything.
        0..=1 => return None,
        2 => 1,
        3..=5 => 2,
        _ => letters.len() / 3,
    };
    let mut best: Option<(usize, &str)> = None;
    for name in known {
        let other: Vec<char> = name.chars().take(65).map(|c| c.to_ascii_lowercase()).collect();
        if other.len().abs_diff(letters.len()) > most {
            continue;
        }
        let edits = distance(&letters, &other);
        // At least half of the shorter name must be right, so that `x` does not suggest `id`.
        if edits <= most && edits * 2 <= letters.len().min(other.len()).max(2) && best.is_none_or(|(b, _)| edits < b)
        {
            best = Some((edits, name));
        }
    }
    best.map(|(_, name)| name)
}

/// `` `a`, `b` or `c` ``.
pub fn list<'k>(names: impl IntoIterator<Item = &'k str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let mut cost = (last[j] + usize::from(a[i] != b[j])).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_a_missing_and_a_wrong_letter_are_one_edit_each() {
        for (wrong, right) in [("form", "from"), ("zon", "zone"), ("zome", "zone"), ("zonee", "zone")] {
            assert_eq!(nearest(wrong, ["via", right, "metric"]), Some(right), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_near_is_not_suggested() {
        for wrong in ["", "x", "colour", "🦀", &"long".repeat(1000)] {
            assert_eq!(nearest(wrong, ["id", "via", "zone"]), None, "{wrong}");
        }
    }

    #[test]
    fn capital_letters_are_no_reason_not_to_find_a_name() {
        assert_eq!(did_you_mean("Accept", ["accept", "drop"]), ", did you mean `accept`?");
    }

    #[test]
    fn lists_read_as_prose() {
        assert_eq!(list([]), "");
        assert_eq!(list(["a"]), "`a`");
        assert_eq!(list(["a", "b", "c"]), "`a`, `b` or `c`");
    }
}
