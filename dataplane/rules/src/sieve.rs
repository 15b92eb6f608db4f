//! Which packets no rule of `raw` can be about, told by a few bits.
//!
//! Raw rules run for every packet, and nearly no packet is one that they name. So of each rule the field is taken in
//! which it is pickiest, and marks are set for what it wants there: the upper half of an address, a port, a protocol. A
//! packet none of whose fields hits a mark matches no rule. Marks are hashed, so that a list of rules takes sixteen bits
//! for each value that it names, and one packet in sixteen or less is looked at for nothing.

use crate::fields::{Condition, Conditions, Field, Packet4};
use crate::spans::contains;

/// Values of a field, of which there are 65 536, that a rule may want at most to be told by it.
const MOST: u32 = 1 << 13;
/// What a rule about a protocol that most packets have counts as wanting.
const COMMON: u32 = 1 << 15;
/// Bits for each value that is marked.
const ROOM: usize = 16;

/// Hashed marks of 16-bit values.
#[derive(Debug)]
struct Marks {
    words: Box<[u64]>,
    /// What is left of a product's 32 bits is the number of a bit.
    shift: u32,
}

impl Marks {
    fn of(values: &[u32]) -> Option<Self> {
        let bits = (values.len() * ROOM).next_power_of_two().clamp(64, 1 << 16);
        let mut marks = Self { words: vec![0; bits / 64].into(), shift: 32 - bits.trailing_zeros() };
        for value in values {
            let bit = marks.bit(*value);
            marks.words[bit / 64] |= 1 << (bit % 64);
        }
        (!values.is_empty()).then_some(marks)
    }

    #[inline(always)]
    fn bit(&self, value: u32) -> usize {
        (value.wrapping_mul(0x9e37_79b1) >> self.shift) as usize
    }

    #[inline(always)]
    fn has(&self, value: u32) -> bool {
        let bit = self.bit(value);
        self.words.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Sieve {
    source: Option<Marks>,
    destination: Option<Marks>,
    source_port: Option<Marks>,
    destination_port: Option<Marks>,
    /// A bit for each protocol.
    protocols: [u64; 4],
    /// Some rule is picky in nothing.
    lets_all_through: bool,
}

/// What a rule wants of a field of 16 bits, or of the upper half of an IPv4 address; as many values as that are.
fn wanted(condition: &Condition) -> u32 {
    let half = if condition.field.is_address() { 16 } else { 0 };
    condition
        .narrow
        .iter()
        .fold(0, |all: u32, (first, last)| all.saturating_add((last >> half) - (first >> half) + 1))
}

fn values(condition: &Condition) -> impl Iterator<Item = u32> + '_ {
    let half = if condition.field.is_address() { 16 } else { 0 };
    condition.narrow.iter().flat_map(move |(first, last)| first >> half..=last >> half)
}

impl Sieve {
    /// Of some rules.
    pub(crate) fn of<'r>(rules: impl Iterator<Item = &'r Conditions>) -> Self {
        let mut sieve = Self::default();
        let mut marked: [Vec<u32>; 4] = Default::default();
        for rule in rules {
            let costs = |condition: &Condition| match condition.field {
                Field::Source | Field::Destination | Field::SourcePort | Field::DestinationPort => wanted(condition),
                Field::Protocol if [6, 17].iter().any(|p| contains(&condition.narrow, *p)) => COMMON,
                Field::Protocol => wanted(condition),
                _ => u32::MAX,
            };
            let best = rule.fields.iter().min_by_key(|condition| costs(condition));
            let Some(best) = best.filter(|condition| costs(condition) <= MOST) else {
                sieve.lets_all_through = true;
                return sieve;
            };
            match best.field {
                Field::Source => marked[0].extend(values(best)),
                Field::Destination => marked[1].extend(values(best)),
                Field::SourcePort => marked[2].extend(values(best)),
                Field::DestinationPort => marked[3].extend(values(best)),
                _ => values(best).for_each(|p| sieve.protocols[p as usize / 64 % 4] |= 1 << (p % 64)),
            }
        }
        for values in &mut marked {
            values.sort_unstable();
            values.dedup();
        }
        let [source, destination, source_port, destination_port] = marked.map(|values| Marks::of(&values));
        Self { source, destination, source_port, destination_port, ..sieve }
    }

    /// Whether a rule may match a packet; if not, none does.
    #[inline(always)]
    pub(crate) fn lets_through(&self, packet: &Packet4) -> bool {
        let has = |marks: &Option<Marks>, value| marks.as_ref().is_some_and(|marks| marks.has(value));
        let protocol = usize::from(packet.proto);
        self.lets_all_through
            || has(&self.source, packet.addresses.0 >> 16)
            || has(&self.destination, packet.addresses.1 >> 16)
            || has(&self.source_port, packet.ports.0.into())
            || has(&self.destination_port, packet.ports.1.into())
            || self.protocols[protocol / 64] >> (protocol % 64) & 1 != 0
    }
}

/// The sieves of all interfaces.
#[derive(Debug, Default)]
pub(crate) struct Sieves {
    /// Of rules about all interfaces, or about more than [`FEW`].
    everywhere: Sieve,
    /// Of an interface's other rules, by index.
    own: Vec<Option<Box<Sieve>>>,
}

/// Interfaces that a rule may be about to be in the sieves of these alone.
pub(crate) const FEW: usize = 16;

impl Sieves {
    /// Of rules, given with the interfaces (indices) that they are about; where there are none, about all. The packets of
    /// interfaces in `all_through` have to be looked at whatever the rules are about.
    pub(crate) fn of(rules: &[(&Conditions, Vec<usize>)], all_through: &[bool]) -> Self {
        let is_everywhere = |about: &[usize]| about.is_empty() || about.len() > FEW;
        let everywhere = rules.iter().filter(|(_, about)| is_everywhere(about)).map(|(rule, _)| *rule);
        let mut of_one: Vec<Vec<&Conditions>> = vec![Vec::new(); all_through.len()];
        for (rule, about) in rules.iter().filter(|(_, about)| !is_everywhere(about)) {
            about.iter().for_each(|at| of_one[*at].push(rule));
        }
        let own = of_one.into_iter().zip(all_through).map(|(rules, all_through)| {
            let sieve = Sieve::of(rules.iter().copied());
            let is_needed = !rules.is_empty() || *all_through;
            is_needed.then(|| Box::new(Sieve { lets_all_through: sieve.lets_all_through || *all_through, ..sieve }))
        });
        Self { everywhere: Sieve::of(everywhere), own: own.collect() }
    }

    /// Whether a rule may match a packet; if not, none does.
    #[inline(always)]
    pub(crate) fn let_through(&self, packet: &Packet4) -> bool {
        let own = self.own.get(usize::from(packet.ingress));
        self.everywhere.lets_through(packet)
            || own.is_none_or(|own| own.as_ref().is_some_and(|own| own.lets_through(packet)))
    }
}
