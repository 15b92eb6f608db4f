//! The benchmarks themselves: they run, and they notice a router that does wrong.

use std::process::{Command, Output};

use erhu_pipeline::Buffer;
use erhu_planes::connections::Class;
use erhu_planes::tuple::proto;
use erhu_testbed::bench::flows::{FRAME, Flow, Writer};
use erhu_testbed::bench::frames::{Frame, Supply};
use erhu_testbed::bench::measure::{Io, Router, pass};
use erhu_testbed::bench::scene::{LAN, Mapping, Scene, Shape};
use erhu_testbed::bench::verify::Judge;

const FLOWS: u32 = 256;

fn shape(mapping: Mapping) -> Shape {
    Shape::new(FLOWS, Class::Udp4, 4, mapping, true)
}

fn judge(shape: &Shape) -> Judge {
    Judge::new(FLOWS, shape.addresses(), shape.mapping)
}

/// First packets of all flows through a router of that shape; what the judge says of what leaves, changed by `change`.
fn open_all(shape: &Shape, mut change: impl FnMut(u32, &mut Vec<u8>)) -> Result<Judge, String> {
    let mut judge = judge(shape);
    let mut scene = Scene::new(shape.clone()).map_err(|e| e.to_string())?;
    let (writer, mut written, mut read) = (Writer::from_inside(proto::UDP), 0, 0);
    let write = |frame: &mut [u8; FRAME]| {
        let flow = Flow::of(written);
        writer.write(frame, flow.inside, flow.remote, written);
        written += 1;
    };
    let look = |frame: &Frame| {
        let mut bytes = frame.frame().to_vec();
        change(read, &mut bytes);
        read += 1;
        judge.left(&bytes).map(drop)
    };
    pass(&mut Supply::new(), FLOWS, &mut Router { scene: &mut scene, port: LAN }, write, look)
        .map_err(|e| e.to_string())?;
    scene.accounts().balance(FLOWS.into()).map_err(|e| e.to_string())?;
    judge.all_apart()?;
    Ok(judge)
}

fn complaint(shape: &Shape, change: impl FnMut(u32, &mut Vec<u8>)) -> String {
    open_all(shape, change).err().unwrap_or_else(|| "nothing".into())
}

#[test]
fn a_router_that_translates_passes_with_every_kind_of_pool() {
    for mapping in [Mapping::EndpointIndependent, Mapping::AddressPortDependent] {
        for preserve_port in [true, false] {
            let shape = Shape { preserve_port, ..shape(mapping) };
            let judge = open_all(&shape, |_, _| ()).unwrap();
            let (address, port) = judge.external(7).unwrap();
            assert!(shape.addresses().contains(&address) && port >= 1024);
        }
    }
}

#[test]
fn a_router_that_forwards_without_translating_is_noticed() {
    let forwards = Shape { postrouting: "accept", ..shape(Mapping::EndpointIndependent) };
    assert!(complaint(&forwards, |_, _| ()).contains("not translated to the pool"));
}

#[test]
fn a_router_that_drops_is_noticed() {
    let mut supply = Supply::new();
    let mut scene = Scene::new(shape(Mapping::EndpointIndependent)).unwrap();
    let ours = |frame: &mut [u8; FRAME]| {
        frame.fill(0);
        frame[0] = 0x02;
    };
    let error = pass(&mut supply, 64, &mut Router { scene: &mut scene, port: LAN }, ours, |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("of 64 packets 0 were sent (64 buffers lost)"), "{error}");
    assert!(pass(&mut supply, 64, &mut Io, ours, |_| Ok(())).is_ok(), "the frames that are left still do");
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
        let said = complaint(&shape(Mapping::EndpointIndependent), |at, frame| {
            if at == 100 {
                fault(frame);
            }
        });
        let expected = if expected == "without a checksum" { "UDP with a checksum" } else { expected };
        assert!(said.contains(expected), "{said:?} is not about {expected:?}");
    }
}

#[test]
fn mappings_that_change_or_are_shared_are_noticed() {
    let shape = shape(Mapping::EndpointIndependent);
    let first = *shape.addresses().start();
    let left = |judge: &mut Judge, flow: u32, port: u16| {
        let (mut frame, remote) = ([0; FRAME], Flow::of(flow).remote);
        Writer::from_inside(proto::UDP).write(&mut frame, (first, port), remote, flow);
        // As the router leaves it: no tag, other MAC addresses, one hop on.
        let mut frame: Vec<u8> = frame.to_vec();
        frame.drain(12..16);
        frame[..6].copy_from_slice(&erhu_testbed::bench::flows::GATEWAY_MAC);
        frame[6..12].copy_from_slice(&erhu_testbed::bench::flows::WAN_MAC);
        frame[14 + 8] -= 1;
        let sum = u16::from_be_bytes([frame[14 + 10], frame[14 + 11]]);
        let (more, carry) = sum.overflowing_add(0x100);
        frame[14 + 10..14 + 12].copy_from_slice(&(more + u16::from(carry)).to_be_bytes());
        judge.left(&frame)
    };
    let mut judge = judge(&shape);
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

#[test]
fn a_short_run_prints_the_table_and_writes_every_figure() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bench.json");
    let small = ["--rounds", "2", "--packets", "12800", "--connections", "1024"];
    let output = bench(&[&small[..], &["--json", file.to_str().unwrap()]].concat());
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    for word in ["A1", "A2", "A3", "A4", "B1", "C1", "verdict", "per connection, ports chosen"] {
        assert!(table.contains(word), "{word} is missing in\n{table}");
    }
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(all["all_right"], true);
    let rows = all["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 7);
    for row in rows {
        assert_eq!(row["variants"].as_array().unwrap().len(), 4, "{row}");
        assert!(row["figure"]["median"].as_f64().is_some_and(|n| n > 0.0), "{row}");
    }
}

#[test]
fn an_unknown_workload_is_refused_with_the_known_ones() {
    let output = bench(&["A9"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no workload A9 (there are A1, A2, A3, A4, B1, C1)"), "{said}");
}
