//! Several captures as one sequence in time.

use crate::pcap::Record;

/// One frame with the input it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Position of the input.
    pub input: usize,
    /// The frame. Its time is when it is offered: never before that of an earlier frame of the same input.
    pub record: Record,
}

/// Merges captures by time. At one time, frames of an earlier input come first.
///
/// An input that goes back in time keeps its order: such frames are offered at the latest time seen in that input.
pub fn merge(inputs: Vec<Vec<Record>>) -> Vec<Merged> {
    let mut merged: Vec<Merged> = Vec::with_capacity(inputs.iter().map(Vec::len).sum());
    for (input, records) in inputs.into_iter().enumerate() {
        let mut latest_ns = 0;
        merged.extend(records.into_iter().map(|mut record| {
            latest_ns = record.time_ns.max(latest_ns);
            record.time_ns = latest_ns;
            Merged { input, record }
        }));
    }
    // Stable, and inputs are already one after the other: ties keep the order of inputs, and that within each.
    merged.sort_by_key(|m| m.record.time_ns);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(frames: &[(u64, &str)]) -> Vec<Record> {
        frames.iter().map(|(time_ns, text)| Record { time_ns: *time_ns, data: text.as_bytes().to_vec() }).collect()
    }

    fn order(inputs: Vec<Vec<Record>>) -> Vec<(usize, u64, String)> {
        let text = |m: Merged| (m.input, m.record.time_ns, String::from_utf8(m.record.data).unwrap());
        merge(inputs).into_iter().map(text).collect()
    }

    #[test]
    fn frames_come_in_the_order_of_time_and_ties_in_that_of_inputs() {
        let got = order(vec![input(&[(1, "a"), (3, "b"), (3, "c")]), input(&[(0, "x"), (3, "y"), (4, "z")])]);
        let want = [(1, 0, "x"), (0, 1, "a"), (0, 3, "b"), (0, 3, "c"), (1, 3, "y"), (1, 4, "z")];
        assert_eq!(got, want.map(|(i, t, s)| (i, t, s.to_owned())));
    }

    #[test]
    fn an_input_that_goes_back_in_time_keeps_its_order() {
        let got = order(vec![input(&[(5, "a"), (2, "b"), (6, "c")]), input(&[(5, "x"), (6, "y")])]);
        let want = [(0, 5, "a"), (0, 5, "b"), (1, 5, "x"), (0, 6, "c"), (1, 6, "y")];
        assert_eq!(got, want.map(|(i, t, s)| (i, t, s.to_owned())));
    }

    #[test]
    fn nothing_merges_to_nothing() {
        assert!(merge(Vec::new()).is_empty() && merge(vec![Vec::new()]).is_empty());
    }
}
