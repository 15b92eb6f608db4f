//! Every file of `configs/` does what it says: configurations load, scripts check, and tenants leave from their own
//! pools.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use erhu_controlplane::config::Config;
use erhu_controlplane::{Facts, check_script};
use erhu_testbed::demo::{self, Step};
use erhu_testbed::packet::read::Upper;
use erhu_testbed::packet::{arp_request, icmp_error, ping, tcp, udp};
use erhu_testbed::scenario::{Outcome, Scenario, Side, repository};

const WAN: Side = Side::untagged("wan");

/// The files of `configs/` with this extension; there are some.
fn files(extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(repository().join("configs")).unwrap();
    let paths =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension() == Some(OsStr::new(extension)));
    let paths: Vec<_> = paths.collect();
    assert!(!paths.is_empty());
    paths
}

/// Checks a script and returns what there is to say about it.
fn complaints(script: &std::path::Path, facts: &Facts) -> Vec<String> {
    match check_script(script, facts) {
        Ok(checked) => checked.warnings.iter().map(ToString::to_string).collect(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn every_configuration_loads_and_fits_every_script() {
    for path in files("toml") {
        let config = Config::load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert!(config.rules.is_file(), "{}: rules = {}", path.display(), config.rules.display());
        for script in files("rhai") {
            assert_eq!(
                complaints(&script, &Facts::from(&config)),
                [""; 0],
                "{} on {}",
                script.display(),
                path.display()
            );
        }
    }
}

#[test]
fn two_tenants_with_the_same_addresses_leave_from_their_own_pools_and_get_their_own_answers() {
    // Its name becomes the instance's.
    let folder = tempfile::Builder::new().prefix("erhu-").tempdir().unwrap();
    let run = |step| demo::run(&step, &mut std::io::sink()).unwrap_or_else(|e| panic!("{e}"));
    let prepare = Step::Prepare { folder: folder.path().into(), config: repository().join("configs/ci.toml") };
    run(prepare);
    Config::load(&folder.path().join("demo.toml")).unwrap_or_else(|e| panic!("{e}"));
    // It fails where a packet leaves from another pool than its tenant's, or an answer goes astray.
    run(Step::Back { folder: folder.path().into() });
}

const TENANTS: u16 = 1000;

/// Where tenant `n` (from 0) is attached, and the public address that is its own.
fn tenant(n: u16) -> (Side, Ipv4Addr) {
    let [high, low] = (256 + n).to_be_bytes();
    (Side::vlan("lan", 1001 + n), Ipv4Addr::new(198, 18, high, low))
}

/// A thousand tenants send the same datagram at the same instant, and the server answers each with its number.
fn a_thousand_at_once() -> Outcome {
    // The next hop says where it is, so that nothing waits for it.
    let next_hop = arp_request("198.18.0.1", "198.18.0.1");
    let mut scenario = Scenario::of_file("configs/many-tenants.rhai").send(0.0, WAN, next_hop);
    for n in 0..TENANTS {
        let (side, public) = tenant(n);
        let request = udp("10.0.0.5:5353", "192.0.2.1:53").payload(&n.to_be_bytes());
        let answer = udp("192.0.2.1:53", &format!("{public}:5353")).payload(&n.to_be_bytes());
        scenario = scenario.send(0.1, side, request).send(0.2, WAN, answer);
    }
    scenario.run()
}

#[test]
fn a_thousand_tenants_with_the_same_addresses_leave_from_their_own_and_get_their_own_answers() {
    let outcome = a_thousand_at_once();
    outcome.count_left(WAN, usize::from(TENANTS));
    for seen in outcome.packets(WAN) {
        let [high, low] = *seen.payload() else { panic!("{seen} is not what was sent") };
        assert_eq!(seen.source().ip(), &tenant(u16::from_be_bytes([high, low])).1, "{seen}");
    }
    for n in 0..TENANTS {
        let seen = outcome.only(tenant(n).0);
        assert_eq!(seen.to_string(), "udp 192.0.2.1:53 > 10.0.0.5:5353");
        assert_eq!(seen.payload(), n.to_be_bytes());
    }
    assert_eq!(outcome.entries.len(), usize::from(TENANTS));
    outcome.drops(&[]);
}

#[test]
fn only_the_named_tenants_cannot_send_mail() {
    let mut scenario = Scenario::of_file("configs/many-tenants.rhai");
    // Tenants are numbered from 1 in the script.
    for n in [0, 16, 399, 999] {
        scenario = scenario.send(0.0, tenant(n).0, tcp("10.0.0.5:40025", "192.0.2.1:25").flags("S"));
    }
    let outcome = scenario.run();
    let left: Vec<_> = outcome.packets(WAN).iter().map(|seen| *seen.source().ip()).collect();
    assert_eq!(left, [tenant(0).1, tenant(999).1]);
    for n in [16, 399] {
        let icmp = outcome.only(tenant(n).0).icmp();
        assert_eq!((icmp.kind, icmp.code), (3, 13), "communication administratively prohibited");
    }
    outcome.drops(&[("rule", 2)]);
}

/// Every way to a published service: from outside, from the other tenant, from its own network.
#[test]
fn published_services_are_reached_from_everywhere_by_their_public_addresses() {
    let (blue, green) = (Side::vlan("lan", 100), Side::vlan("lan", 200));
    let syn = |from: &str, to: &str| tcp(from, to).flags("S").seq(1);
    let outcome = Scenario::of_file("configs/published-services.rhai")
        .send(0.0, WAN, syn("203.0.113.7:40000", "198.51.100.10:443"))
        .send(0.1, WAN, syn("203.0.113.7:40000", "198.51.100.10:22"))
        .send(0.2, green, syn("10.0.0.5:40000", "198.51.100.10:80"))
        .send(0.3, blue, syn("10.0.0.5:40000", "198.51.100.10:80"))
        .send(0.4, blue, udp("10.0.0.5:5000", "198.51.100.20:53"))
        .send(0.5, WAN, udp("203.0.113.7:9", "198.51.100.20:5000"))
        .send(0.6, blue, udp("10.0.0.5:5000", "198.51.100.21:7"))
        .send(0.7, WAN, udp("203.0.113.7:9", "198.51.100.10:5000"))
        .run();
    outcome.left(
        blue,
        &[
            "tcp 203.0.113.7:40000 > 10.0.0.80:443 S",
            "tcp 203.0.113.7:40000 > 10.0.0.22:2222 S",
            "tcp 198.51.100.20:40000 > 10.0.0.80:80 S",
            "tcp 198.51.100.10:40000 > 10.0.0.80:80 S",
            "udp 203.0.113.7:9 > 10.0.0.5:5000",
        ],
    );
    outcome.left(green, &["udp 198.51.100.10:5000 > 10.0.0.53:53", "udp 198.51.100.10:5000 > 10.0.0.99:7"]);
    outcome.left(WAN, &[]);
    outcome.drops(&[("no_mapping", 1)]);
}

/// Each tenant reaches the services by its own link and they tell the tenants apart; everything else goes out, and
/// services open nothing.
#[test]
fn shared_services_are_reached_over_links_and_nothing_else_is() {
    let (blue, green, services) = (Side::vlan("lan", 100), Side::vlan("lan", 200), Side::vlan("lan", 300));
    let outcome = Scenario::of_file("configs/shared-services.rhai")
        .send(0.0, blue, udp("10.0.0.5:5000", "100.64.1.1:53"))
        .send(0.1, green, udp("10.0.0.5:5000", "100.64.2.1:53"))
        .send(0.2, green, tcp("10.0.0.5:5000", "100.64.2.1:587").flags("S").seq(1))
        .answered(services, 0.01, |seen| {
            let is_name = matches!(seen.upper(), Upper::Udp(_));
            is_name.then(|| seen.answer())
        })
        .send(0.5, blue, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.6, blue, tcp("10.0.0.5:5001", "100.64.1.1:80").flags("S").seq(1))
        .send(0.7, services, udp("10.0.0.53:53", "100.64.1.2:7"))
        .run();
    outcome.left(
        services,
        &[
            "udp 100.64.1.2:5000 > 10.0.0.53:53",
            "udp 100.64.2.2:5000 > 10.0.0.53:53",
            "tcp 100.64.2.2:5000 > 10.0.0.25:587 S",
            "icmp 10.0.0.1 > 10.0.0.53 3/3 about udp 10.0.0.53:53 > 100.64.1.2:7",
        ],
    );
    // Nobody listens at the far end itself.
    outcome.left(blue, &["udp 100.64.1.1:53 > 10.0.0.5:5000", "tcp 100.64.1.1:80 > 10.0.0.5:5001 RA"]);
    outcome.left(green, &["udp 100.64.2.1:53 > 10.0.0.5:5000"]);
    outcome.left(WAN, &["udp 198.51.100.10:5000 > 192.0.2.1:53"]);
    outcome.drops(&[("rule", 1), ("unsupported", 1)]);
}

const OFFICE: Side = Side::vlan("lan", 10);
const LAB: Side = Side::vlan("lan", 20);

/// Each family of each network goes out and comes back.
#[test]
fn two_families_leave_as_each_network_wants_it_and_get_their_answers() {
    let outcome = Scenario::of_file("configs/dual-stack.rhai")
        .send(0.0, OFFICE, udp("10.0.0.5:2000", "192.0.2.1:53"))
        .send(0.1, OFFICE, udp("[2001:db8:5::5]:2000", "[2001:db8:1::1]:53"))
        .send(0.2, LAB, udp("10.0.0.5:2000", "192.0.2.1:53"))
        .send(0.3, LAB, udp("[fd00:20::5]:2000", "[2001:db8:1::1]:53"))
        .answered(WAN, 0.01, |seen| Some(seen.answer()))
        .run();
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.10:2000 > 192.0.2.1:53",
            "udp [2001:db8:5::5]:2000 > [2001:db8:1::1]:53",
            "udp 198.51.100.20:2000 > 192.0.2.1:53",
            "udp [2001:db8::20]:2000 > [2001:db8:1::1]:53",
        ],
    );
    let back =
        |host, host6: &str| [format!("udp 192.0.2.1:53 > {host}"), format!("udp [2001:db8:1::1]:53 > {host6}")];
    let lines = back("10.0.0.5:2000", "[2001:db8:5::5]:2000");
    outcome.left(OFFICE, &lines.each_ref().map(String::as_str));
    let lines = back("10.0.0.5:2000", "[fd00:20::5]:2000");
    outcome.left(LAB, &lines.each_ref().map(String::as_str));
    outcome.table(&[
        "udp 10.0.0.5:2000>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:2000",
        "udp [2001:db8:5::5]:2000>[2001:db8:1::1]:53@1 [2001:db8:1::1]:53>[2001:db8:5::5]:2000",
        "udp 10.0.0.5:2000>192.0.2.1:53@2 192.0.2.1:53>198.51.100.20:2000",
        "udp [fd00:20::5]:2000>[2001:db8:1::1]:53@2 [2001:db8:1::1]:53>[2001:db8::20]:2000",
    ]);
    outcome.drops(&[]);
}

#[test]
fn of_the_office_a_web_server_and_echo_are_open_to_the_world_and_nothing_else_is() {
    let from = "[2001:db8:1::1]:40000";
    let outcome = Scenario::of_file("configs/dual-stack.rhai")
        .send(0.0, WAN, tcp(from, "[2001:db8:5::80]:443").flags("S"))
        .send(0.1, WAN, tcp(from, "[2001:db8:5::80]:22").flags("S"))
        .send(0.2, WAN, tcp(from, "[2001:db8:5::81]:443").flags("S"))
        .send(0.3, WAN, ping("2001:db8:1::1", "2001:db8:5::81", 7))
        .send(0.4, WAN, ping("2001:db8:1::1", "2001:db8::20", 7))
        .answered(OFFICE, 0.01, |seen| (!matches!(seen.upper(), Upper::Tcp(_))).then(|| seen.answer()))
        .run();
    outcome.left(
        OFFICE,
        &[
            "tcp [2001:db8:1::1]:40000 > [2001:db8:5::80]:443 S",
            "icmpv6 2001:db8:1::1 > 2001:db8:5::81 echo-request 7",
        ],
    );
    outcome.left(WAN, &["icmpv6 2001:db8:5::81 > 2001:db8:1::1 echo-reply 7"]);
    outcome.drops(&[("no_mapping", 1), ("rule", 2)]);
}

/// An error about a translated packet names what its sender knows, in either family.
#[test]
fn errors_find_their_way_back_in_both_families() {
    let outcome = Scenario::of_file("configs/dual-stack.rhai")
        .send(0.0, LAB, udp("10.0.0.5:1000", "192.0.2.1:53").payload_len(20))
        .send(0.1, LAB, udp("[fd00:20::5]:1000", "[2001:db8:1::1]:53").payload_len(20))
        .answered(WAN, 0.01, |seen| {
            let (source, _) = seen.ends();
            let (from, kind, code) = if source.is_ipv4() { ("203.0.113.9", 11, 0) } else { ("2001:db8:9::9", 3, 0) };
            Some(icmp_error(from, &source.ip().to_string(), kind, code).about(seen.l3()))
        })
        .run();
    outcome.left(
        LAB,
        &[
            "icmp 203.0.113.9 > 10.0.0.5 11/0 about udp 10.0.0.5:1000 > 192.0.2.1:53",
            "icmpv6 2001:db8:9::9 > fd00:20::5 3/0 about udp [fd00:20::5]:1000 > [2001:db8:1::1]:53",
        ],
    );
}
