//! Programs that are whole, broken or harmful.

use super::*;

fn small() -> Program {
    let mut p = Program::empty();
    p.zones.push(Zone { id: 5, name: "blue".into(), ..p.zones[0].clone() });
    p.interfaces.push(Interface {
        name: "lan".into(),
        port: "lan".into(),
        encapsulation: Encapsulation::Vlan(100),
        zone: 5,
        addresses: vec![InterfaceAddress { address: "10.0.0.1".parse().unwrap(), length: 24 }],
        mtu: 1500,
        mac: None,
        proxy_arp: false,
    });
    p.chains.push(Chain {
        name: "c".into(),
        rules: vec![Rule { at: Position::default(), matches: vec![], actions: vec![Action::Return] }],
    });
    p.hooks[Hook::Forward.index()].rules.push(Rule {
        at: Position { source: 0, line: 3, column: 1 },
        matches: vec![Match { negated: true, key: MatchKey::Ingress(vec![0]) }],
        actions: vec![Action::Jump(0), Action::Drop],
    });
    p
}

#[test]
fn what_is_encoded_decodes_to_the_same() {
    let p = small();
    assert_eq!(Program::decode(&p.encode().unwrap()).unwrap(), p);
}

#[test]
fn any_changed_byte_is_refused_by_the_checksum() {
    let bytes = small().encode().unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x41;
        assert!(Program::decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn any_changed_byte_with_a_right_checksum_is_refused_or_a_valid_program() {
    let bytes = small().encode().unwrap();
    for at in HEADER_BYTES..bytes.len() {
        for value in 0..=255 {
            let mut bad = bytes.clone();
            bad[at] = value;
            let sum = crc32fast::hash(&bad[HEADER_BYTES..]);
            bad[12..16].copy_from_slice(&sum.to_le_bytes());
            if let Ok(program) = Program::decode(&bad) {
                program.validate().unwrap();
            }
        }
    }
}

#[test]
fn a_cut_program_is_refused() {
    let bytes = small().encode().unwrap();
    for len in 0..bytes.len() {
        assert!(Program::decode(&bytes[..len]).is_err());
    }
}

#[test]
fn a_link_has_two_ends_that_name_each_other_and_neither_port_nor_neighbours() {
    let refused = |change: &dyn Fn(&mut Program)| {
        let mut p = small();
        for (name, peer) in [("a", 2), ("b", 1)] {
            let encapsulation = Encapsulation::Link(peer);
            let end = Interface { name: name.into(), port: String::new(), encapsulation, ..p.interfaces[0].clone() };
            p.interfaces.push(Interface { addresses: vec![], ..end });
        }
        change(&mut p);
        p.validate().err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&|_| ()), "");
    for peer in [0, 1, 3, u16::MAX] {
        let why = refused(&|p| p.interfaces[1].encapsulation = Encapsulation::Link(peer));
        assert!(why.contains("not one end of a link of two"), "{peer}: {why}");
    }
    assert!(refused(&|p| p.interfaces[2].port = "lan".into()).contains("not one end of a link of two"));
    assert!(refused(&|p| p.interfaces[1].encapsulation = Encapsulation::Untagged).contains("bad port name"));
    let neighbour = Neighbour { interface: 1, address: "10.0.0.9".parse().unwrap(), mac: [2, 0, 0, 0, 0, 1] };
    assert!(refused(&|p| p.neighbours.push(neighbour.clone())).contains("a link has none"));
}

#[test]
fn a_status_without_meaning_is_refused() {
    let refused = |bits| {
        let mut p = small();
        p.hooks[Hook::Forward.index()].rules[0].matches[0].key = MatchKey::Status(bits);
        p.validate().is_err()
    };
    assert_eq!([0, 1, 15, 16, 0x1f].map(refused), [true, false, false, true, true]);
}

#[test]
fn loops_of_chains_are_refused_even_if_no_hook_reaches_them() {
    let mut p = small();
    p.chains[0].rules[0].actions = vec![Action::Jump(0)];
    assert!(p.validate().unwrap_err().to_string().contains("leads back"));
    p.hooks[Hook::Forward.index()].rules.clear();
    assert!(p.validate().unwrap_err().to_string().contains("leads back"));
}

#[test]
fn an_action_is_refused_in_a_hook_that_reaches_it_by_a_jump_and_may_not_do_it() {
    let mut p = small();
    p.chains[0].rules[0].actions = vec![Action::Notrack];
    assert!(p.validate().unwrap_err().to_string().contains("not possible in forward"));
}

#[test]
fn chains_that_multiply_are_refused_before_a_walk_could_take_for_ever() {
    let mut p = small();
    let at = Position::default();
    p.chains = (0..12_u16)
        .map(|n| Chain {
            name: format!("c{n}"),
            rules: vec![Rule { at, matches: vec![], actions: vec![Action::Jump(n + 1); 60] }],
        })
        .collect();
    p.chains.push(Chain { name: "end".into(), rules: vec![Rule { at, matches: vec![], actions: vec![] }] });
    assert!(p.validate().unwrap_err().to_string().contains("more than 1048576 rules"));
}

#[test]
fn prefixes_contain_what_they_should() {
    let p = Prefix::new("10.1.2.3".parse().unwrap(), 8).unwrap();
    assert!(p.contains("10.255.0.1".parse().unwrap()) && !p.contains("11.0.0.1".parse().unwrap()));
    let all = Prefix::new("::".parse().unwrap(), 0).unwrap();
    assert!(all.contains("2001:db8::1".parse().unwrap()) && !all.contains("1.2.3.4".parse().unwrap()));
}

#[test]
fn a_prefix_laid_over_an_address_keeps_its_host_bits() {
    let over = |prefix: &str, length, address: &str| {
        Prefix::new(prefix.parse().unwrap(), length).unwrap().over(address.parse().unwrap()).map(|a| a.to_string())
    };
    assert_eq!(over("198.18.7.0", 24, "10.1.0.42").as_deref(), Some("198.18.7.42"));
    assert_eq!(over("203.0.113.20", 32, "10.0.0.5").as_deref(), Some("203.0.113.20"));
    assert_eq!(over("0.0.0.0", 0, "10.0.0.5").as_deref(), Some("10.0.0.5"));
    assert_eq!(over("2001:db8:7::", 48, "fd00::1:2").as_deref(), Some("2001:db8:7::1:2"));
    assert_eq!(over("2001:db8:7::", 48, "10.0.0.5"), None);
}

#[test]
fn a_destination_that_cannot_be_is_refused() {
    let dnat =
        |ports, zone| Dnat { destination: DestinationChoice::Ingress, ports, zone, random: false, persistent: false };
    let refused = |dnat: Dnat| {
        let mut p = small();
        let actions = vec![Action::Dnat(dnat)];
        p.hooks[Hook::Prerouting.index()].rules.push(Rule { at: Position::default(), matches: vec![], actions });
        p.validate().err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(dnat(None, Some(5))), "");
    assert!(refused(dnat(None, Some(6))).contains("zone 6 does not exist"));
    assert!(refused(dnat(Some(PortRange { first: 0, last: 9 }), None)).contains("port 0"));
    assert!(refused(Dnat { destination: DestinationChoice::To(vec![]), ..dnat(None, None) }).contains("0 addresses"));
}
