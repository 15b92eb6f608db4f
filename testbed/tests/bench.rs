//! The benchmarks themselves: they run, and they notice a router that does wrong.

use std::process::{Command, Output};

use erhu_pipeline::Buffer;
use erhu_planes::connections::Class;
use erhu_testbed::bench::flows::{Flow, Writer};
use erhu_testbed::bench::flows6::{Family, UdpWriter};
use erhu_testbed::bench::frames::{Frame, Supply};
use erhu_testbed::bench::measure::{Io, pass};
use erhu_testbed::bench::scene::{Scene, Shape};
use erhu_testbed::bench::script::{Mapping, Policy};
use erhu_testbed::bench::verify::Judge;
use erhu_testbed::bench::workloads::ALL;

const FLOWS: u32 = 256;

fn policy(mapping: Mapping) -> Policy {
    Policy { addresses: 4, mapping, ..Policy::small() }
}

/// First packets of all flows through a router that is configured so; what the judge says of what leaves, changed by
/// `change`.
fn open_all(policy: &Policy, mut change: impl FnMut(u32, &mut Vec<u8>)) -> Result<Judge, String> {
    let mut judge = Judge::new(FLOWS, policy);
    let class = match policy.family {
        Family::V4 => Class::Udp4,
        Family::V6 => Class::Udp6,
    };
    let mut scene = Scene::new(Shape::new(FLOWS, class, policy.clone())).map_err(|e| e.to_string())?;
    let (writer, mut written, mut read) = (UdpWriter::from_inside(policy.family), 0, 0);
    let mut write = |frame: &mut Frame| {
        let flow = Flow::of(written);
        writer.write_tagged(frame, policy.vlan(written), flow.inside, flow.remote, written);
        written += 1;
    };
    let look = |frame: &Frame| {
        let mut bytes = frame.frame().to_vec();
        change(read, &mut bytes);
        read += 1;
        judge.left(&bytes).map(drop)
    };
    pass(&mut Supply::new(), FLOWS, scene.lane(), &mut write, look).map_err(|e| e.to_string())?;
    scene.balance(FLOWS.into()).map_err(|e| e.to_string())?;
    judge.all_apart()?;
    Ok(judge)
}

fn complaint(policy: &Policy, change: impl FnMut(u32, &mut Vec<u8>)) -> String {
    open_all(policy, change).err().unwrap_or_else(|| "nothing".into())
}

#[test]
fn a_router_that_translates_passes_with_every_kind_of_pool() {
    for family in [Family::V4, Family::V6] {
        for mapping in [Mapping::EndpointIndependent, Mapping::AddressPortDependent] {
            for preserve_port in [true, false] {
                let policy = Policy { family, preserve_port, ..policy(mapping) };
                let judge = open_all(&policy, |_, _| ()).unwrap();
                let (address, port) = judge.external(7).unwrap();
                assert!(policy.pool().contains(&address) && port >= 1024);
            }
        }
    }
}

#[test]
fn a_router_that_forwards_without_translating_is_noticed() {
    for family in [Family::V4, Family::V6] {
        let forwards = Policy { family, postrouting: Some("accept"), ..policy(Mapping::EndpointIndependent) };
        assert!(complaint(&forwards, |_, _| ()).contains("not translated to the pool"));
    }
}

#[test]
fn a_router_that_drops_is_noticed() {
    let mut supply = Supply::new();
    let policy = policy(Mapping::EndpointIndependent);
    let mut scene = Scene::new(Shape::new(FLOWS, Class::Udp4, policy)).unwrap();
    let mut ours = |frame: &mut Frame| {
        if let Some(bytes) = frame.receive::<64>(64, true) {
            bytes.fill(0);
            bytes[0] = 0x02;
        }
    };
    let error = pass(&mut supply, 64, scene.lane(), &mut ours, |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("of 64 packets 0 were sent (64 buffers lost)"), "{error}");
    assert!(pass(&mut supply, 64, &mut Io, &mut ours, |_| Ok(())).is_ok(), "the frames that are left still do");
}

#[test]
fn tenants_with_their_own_tags_are_told_apart() {
    let many = Policy { tenants: 50, pools: 5, ..policy(Mapping::EndpointIndependent) };
    let judge = open_all(&many, |_, _| ()).unwrap();
    assert!((0..FLOWS).all(|flow| judge.external(flow).is_some()));
}

#[test]
fn every_fault_of_a_frame_is_noticed() {
    type Fault = fn(&mut Vec<u8>);
    let faults: [(&str, Fault); 7] = [
        ("Ethernet header", |f| f[0] ^= 4),
        ("Ethernet header", |f| {
            f.splice(12..12, [0x81, 0, 0, 100]);
        }),
        ("checksum", |f| f[14 + 10] ^= 1),
        ("checksum", |f| f[14 + 20 + 6] ^= 1),
        ("checksum", |f| f[14 + 20 + 25] ^= 1),
        ("without a checksum", |f| f[14 + 20 + 6..14 + 20 + 8].fill(0)),
        // The checksum follows the time to live (RFC 1624).
        ("time to live 64", |f| {
            f[14 + 8] += 1;
            let sum = u16::from_be_bytes([f[14 + 10], f[14 + 11]]);
            let (less, borrow) = sum.overflowing_sub(0x100);
            f[14 + 10..14 + 12].copy_from_slice(&(less - u16::from(borrow)).to_be_bytes());
        }),
    ];
    for (expected, fault) in faults {
        let said = complaint(&policy(Mapping::EndpointIndependent), |at, frame| {
            if at == 100 {
                fault(frame);
            }
        });
        let expected = if expected == "without a checksum" { "UDP with a checksum" } else { expected };
        assert!(said.contains(expected), "{said:?} is not about {expected:?}");
    }
}

#[test]
fn every_fault_of_an_ipv6_frame_is_noticed() {
    type Fault = fn(&mut Vec<u8>);
    // No checksum covers the hop limit, and none notices words in another order.
    let faults: [(&str, Fault); 6] = [
        ("Ethernet header", |f| f[0] ^= 4),
        ("checksum", |f| f[14 + 40 + 6] ^= 1),
        ("checksum", |f| f[14 + 40 + 8] ^= 1),
        ("time to live 64", |f| f[14 + 7] += 1),
        ("not translated to the pool", |f| f[14 + 8..14 + 24].rotate_left(2)),
        ("another remote", |f| f[14 + 24..14 + 40].rotate_left(2)),
    ];
    let policy = Policy { family: Family::V6, ..policy(Mapping::EndpointIndependent) };
    for (expected, fault) in faults {
        let said = complaint(&policy, |at, frame| {
            if at == 100 {
                fault(frame);
            }
        });
        assert!(said.contains(expected), "{said:?} is not about {expected:?}");
    }
}

#[test]
fn mappings_that_change_or_are_shared_are_noticed() {
    let policy = policy(Mapping::EndpointIndependent);
    let first = *policy.pool().start();
    let mut supply = Supply::new();
    let mut left = |judge: &mut Judge, flow: u32, port: u16| {
        let (mut frame, remote) = (supply.take().unwrap(), Flow::of(flow).remote);
        Writer::udp_from_inside().write(&mut frame, (first, port), remote, flow);
        // As the router leaves it: no tag, other MAC addresses, one hop on.
        let mut frame: Vec<u8> = frame.frame().to_vec();
        frame.drain(12..16);
        frame[..6].copy_from_slice(&erhu_testbed::bench::flows::GATEWAY_MAC);
        frame[6..12].copy_from_slice(&erhu_testbed::bench::flows::WAN_MAC);
        frame[14 + 8] -= 1;
        let sum = u16::from_be_bytes([frame[14 + 10], frame[14 + 11]]);
        let (more, carry) = sum.overflowing_add(0x100);
        frame[14 + 10..14 + 12].copy_from_slice(&(more + u16::from(carry)).to_be_bytes());
        judge.left(&frame)
    };
    let mut judge = Judge::new(FLOWS, &policy);
    assert_eq!(left(&mut judge, 1, 5000), Ok(1));
    assert!(left(&mut judge, 1, 5001).unwrap_err().contains("changed its external end"));
    assert!(judge.all_apart().unwrap_err().contains("never seen to leave"));
    for flow in 0..FLOWS {
        let port = if flow == 1 { 5000 } else { u16::try_from(6000 + flow / 2).unwrap() };
        left(&mut judge, flow, port).unwrap();
    }
    assert!(judge.all_apart().unwrap_err().contains("flows 2 and 3 share an external end"));
}

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_erhu-testbed"));
    command.arg("bench").args(arguments).output().unwrap()
}

/// Every workload but those that build large routers, quick enough for every day.
fn quick() -> Vec<&'static str> {
    let large = ["A4", "C2", "D1", "D2", "E3", "E4", "GROWN"];
    ALL.iter().map(|w| w.id).filter(|id| !large.contains(id) && !id.ends_with('M')).collect()
}

#[test]
fn a_short_run_prints_the_table_writes_every_figure_and_draws() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(
        file("BENCHMARKS.md"),
        "x\n<!-- begin of figures: written by `erhu-testbed bench --record` -->\n<!-- end of figures -->\ny\n",
    )
    .unwrap();
    let small = ["--rounds", "2", "--packets", "12800", "--connections", "1024", "--default-pool"];
    let (json, svg) = (file("out.json"), file("out.svg"));
    let outputs = ["--json", &json, "--svg", &svg, "--record", folder.path().to_str().unwrap()];
    let output = bench(&[&quick()[..], &small, &outputs].concat());
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    for word in ["A1", "A5", "A7", "B2", "C1", "E1", "F3", "G1", "H1", "verdict", "every tenth packet new"] {
        assert!(table.contains(word), "{word} is missing in\n{table}");
    }
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(all["all_right"], true);
    let rows = all["rows"].as_array().unwrap();
    for row in rows {
        let workload = ALL.iter().find(|w| w.id == row["id"]).unwrap();
        let figures = row["figures"].as_array().unwrap();
        assert_eq!(figures.len(), workload.figures.len(), "{row}");
        for figure in figures {
            assert!(figure["figure"]["median"].is_number() && figure["verdict"].is_string(), "{figure}");
        }
    }
    assert!(std::fs::read_to_string(&svg).unwrap().contains("erhu, SNAT"));
    assert_eq!(std::fs::read(file("bench.svg")).unwrap(), std::fs::read(&svg).unwrap());
    let page = std::fs::read_to_string(file("BENCHMARKS.md")).unwrap();
    assert!(page.contains("| A1 | established UDP, 1k flows |") && page.ends_with("y\n"), "{page}");

    let again = bench(&["--from", &json, "--compare", &json]);
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success() && said.contains("0 moved beyond the noise"), "{said}");
}

#[test]
fn every_kind_of_pool_is_measured_where_it_matters() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("out.json").display().to_string();
    let small = ["A1", "B1", "B2", "--rounds", "1", "--packets", "6400", "--connections", "512", "--json", &json];
    let output = bench(&small);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && table.contains("per connection, ports chosen"), "{table}");
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    for row in all["rows"].as_array().unwrap() {
        assert_eq!(row["figures"][0]["variants"].as_array().unwrap().len(), 4, "{row}");
    }
}

#[test]
fn an_unknown_workload_is_refused_with_the_known_ones() {
    let output = bench(&["A9"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no workload A9 (there are A1, A2, A3, A4, A5, A6, A7, B1,"), "{said}");
}
