//! Addresses that rules of `prerouting` name as those whose packets they translate: what hosts inside may reach by them
//! too.

use std::net::IpAddr;

use erhu_planes::program::{Action, AddressRange, Hook, MatchKey, Program, Rule, limits};

use crate::spans::{Spans, contains, union};

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Some rule translates destinations.
    pub any: bool,
    narrow: Spans<u32>,
    wide: Spans<u128>,
}

impl Published {
    pub(crate) fn of(program: &Program) -> Self {
        let mut found = Self::default();
        let Some(hook) = program.hooks.get(Hook::Prerouting.index()) else { return found };
        let (mut narrow, mut wide) = (Vec::new(), Vec::new());
        // Chains that were come by without an address of their own to pass on: once is enough.
        let mut done = vec![false; program.chains.len()];
        found.walk(program, &hook.rules, None, 0, &mut done, &mut |range| match (range.first, range.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => narrow.push((u32::from(a), u32::from(b))),
            (IpAddr::V6(a), IpAddr::V6(b)) => wide.push((u128::from(a), u128::from(b))),
            _ => {}
        });
        (found.narrow, found.wide) = (union(narrow), union(wide));
        found
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => contains(&self.narrow, u32::from(a)),
            IpAddr::V6(a) => contains(&self.wide, u128::from(a)),
        }
    }

    /// Goes through rules; `from` are the addresses that whoever jumped here named.
    fn walk(
        &mut self,
        program: &Program,
        rules: &[Rule],
        from: Option<&[AddressRange]>,
        depth: usize,
        done: &mut [bool],
        name: &mut impl FnMut(&AddressRange),
    ) {
        for rule in rules {
            let own = rule.matches.iter().find_map(|m| match &m.key {
                // All addresses are none in particular.
                MatchKey::Destination(v) if !m.negated && !v.iter().any(is_all) => Some(&v[..]),
                _ => None,
            });
            let named = own.or(from);
            for action in &rule.actions {
                match action {
                    Action::Dnat(_) | Action::Netmap(_) => {
                        self.any = true;
                        named.into_iter().flatten().for_each(&mut *name);
                    }
                    Action::Jump(chain) | Action::GoTo(chain) if depth <= limits::JUMPS => {
                        let chain = usize::from(*chain);
                        let is_done = named.is_none() && done.get(chain).copied().unwrap_or(true);
                        if let Some(list) = program.chains.get(chain).filter(|_| !is_done) {
                            done[chain] |= named.is_none();
                            self.walk(program, &list.rules, named, depth + 1, done, name);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

fn is_all(range: &AddressRange) -> bool {
    match (range.first, range.last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.is_unspecified() && b.is_broadcast(),
        (IpAddr::V6(a), IpAddr::V6(b)) => a.is_unspecified() && u128::from(b) == u128::MAX,
        _ => false,
    }
}
