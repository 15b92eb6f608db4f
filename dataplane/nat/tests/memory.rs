//! Translation takes no more memory than the formula of `erhu_planes::sizing` foretells, and not much less.

mod common;

use common::{Worker, pool};
use erhu_nat::Nat;
use erhu_planes::Tuple;
use erhu_planes::program::{Behaviour, Program};
use erhu_planes::sizing::{SHARED, Sizing, Wanted};
use erhu_planes::tuple::proto;

const CONNECTIONS: u32 = 60_000;

/// Bytes with as many connections as there may be, each of a host of its own and to a remote of its own; and what is
/// foretold.
fn bytes(addresses: &str, mapping: Behaviour, filtering: Behaviour) -> (u64, u64) {
    let nat = Nat::for_connections(CONNECTIONS, 1, false).unwrap();
    let pool = erhu_planes::program::Pool { mapping, filtering, ..pool("public", addresses) };
    let program = Program { pools: vec![pool], ..Program::empty() };
    let wanted = Wanted { connections: CONNECTIONS, workers: 1, memory_mb: 0 };
    let foretold = Sizing::of(wanted, &program).nat;
    let pools = nat.compile(&program);
    let is_ipv6 = addresses.contains(':');
    let mut worker = Worker::new(1);
    for n in 0..CONNECTIONS {
        let (src, dst) = if is_ipv6 {
            let of = |prefix: u128| std::net::Ipv6Addr::from(prefix << 112 | u128::from(n)).into();
            (of(0xfd00), of(0x2001))
        } else {
            let of = |first: u32| std::net::Ipv4Addr::from(first + n).into();
            (of(0x0a00_0000), of(0xc612_0000))
        };
        let sport = 1024 + u16::try_from(n % 50_000).unwrap();
        let original = Tuple { src, dst, sport, dport: 53, proto: proto::UDP, zone: 1 };
        worker.pool(&nat, &pools, 0, original).unwrap();
    }
    (nat.bytes_in_use() as u64, foretold)
}

#[test]
fn translation_takes_what_is_foretold_and_no_more_for_mappings_of_every_kind_and_both_families() {
    use Behaviour::{AddressDependent, AddressPortDependent, EndpointIndependent};
    for addresses in ["198.51.100.1-198.51.100.64", "2001:db8::1-2001:db8::40", "2001:db8::-2001:db8::ffff"] {
        for (mapping, filtering) in [
            (EndpointIndependent, AddressPortDependent),
            (EndpointIndependent, AddressDependent),
            (AddressDependent, AddressDependent),
            (AddressPortDependent, AddressPortDependent),
        ] {
            let (took, foretold) = bytes(addresses, mapping, filtering);
            println!("{addresses} {mapping:?} {filtering:?}: {took} of {foretold}");
            // Locks and what is there before the first connection are among what is shared.
            assert!(took <= foretold + SHARED / 8, "{addresses} {mapping:?}: {took} of {foretold}");
            assert!(foretold <= 3 * took, "{addresses} {mapping:?}: {took} of {foretold}");
        }
    }
}
