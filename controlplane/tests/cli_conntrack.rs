//! `erhu conntrack`: lines, verbs, filters and forms.

mod cli_fake;

use cli_fake::{Entry, Fake, erhu, tuple};
use erhu_controlplane::conntrack::format::{LineOptions, event_line};
use erhu_planes::connections::status;
use erhu_planes::events::{Event, mask};
use erhu_planes::tuple::proto::{ICMP, TCP, UDP};
use erhu_planes::{Counter, DropReason, TICKS_PER_SECOND};
use std::sync::atomic::Ordering::Relaxed;

const ANSWERED: u32 = status::CONFIRMED | status::SEEN_REPLY;

/// Connection 1 of the manual: TCP of tenant 1, source-translated into `main`.
fn translated() -> Entry {
    Entry {
        reply: tuple("192.0.2.1", "203.0.113.9", TCP, 443, 40000, 0),
        seconds: 431_998,
        status: ANSWERED | status::ASSURED | status::SRC_NAT,
        state: 3,
        counts: [3, 180, 2, 120],
        ..Entry::new(1, tuple("10.0.0.5", "192.0.2.1", TCP, 40000, 443, 1))
    }
}

fn dns() -> Entry {
    Entry::new(2, tuple("10.0.0.5", "192.0.2.1", UDP, 5353, 53, 5))
}

fn ping() -> Entry {
    Entry::new(3, tuple("10.0.0.5", "192.0.2.1", ICMP, 77, 8 << 8, 0))
}

fn syn6() -> Entry {
    let original = tuple("2001:db8::5", "2001:db8:1::1", TCP, 40001, 443, 0);
    Entry { seconds: 118, state: 1, ..Entry::new(242_492_168, original) }
}

fn four() -> Fake {
    let mut fake = Fake::new();
    [translated(), dns(), ping(), syn6()].into_iter().for_each(|entry| fake.put(entry));
    fake
}

fn only(entry: Entry) -> Fake {
    let mut fake = Fake::new();
    fake.put(entry);
    fake
}

#[test]
fn lines_are_those_of_the_manual() {
    let listed = only(translated()).erhu("conntrack -L");
    assert_eq!(
        listed.out,
        "tcp      6 431998 ESTABLISHED src=10.0.0.5 dst=192.0.2.1 sport=40000 dport=443 zone-orig=1 packets=3 bytes=180 \
         src=192.0.2.1 dst=203.0.113.9 sport=443 dport=40000 packets=2 bytes=120 [ASSURED] mark=0 use=1\n"
    );
    assert_eq!(listed.status, 0);
    assert!(listed.err.ends_with(": 1 flow entries have been shown.\n"), "{}", listed.err);
    // The manual leaves the counters out of the others.
    let without_counters = |entry, command| only(entry).erhu(command).out.replace("packets=0 bytes=0 ", "");
    assert_eq!(
        without_counters(dns(), "conntrack -L"),
        "udp      17 28 src=10.0.0.5 dst=192.0.2.1 sport=5353 dport=53 [UNREPLIED] src=192.0.2.1 dst=10.0.0.5 sport=53 \
         dport=5353 mark=0 zone=5 use=1\n"
    );
    assert_eq!(
        without_counters(ping(), "conntrack -L"),
        "icmp     1 28 src=10.0.0.5 dst=192.0.2.1 type=8 code=0 id=77 [UNREPLIED] src=192.0.2.1 dst=10.0.0.5 type=0 \
         code=0 id=77 mark=0 use=1\n"
    );
    assert_eq!(
        without_counters(syn6(), "conntrack -L -o extended,id"),
        "ipv6     10 tcp      6 118 SYN_SENT src=2001:db8::5 dst=2001:db8:1::1 sport=40001 dport=443 [UNREPLIED] \
         src=2001:db8:1::1 dst=2001:db8::5 sport=443 dport=40001 mark=0 use=1 id=242492168\n"
    );
    assert_eq!(
        only(dns()).erhu("conntrack -L -o save").out,
        "-A -t 28 -u UNSET -w 5 -s 10.0.0.5 -d 192.0.2.1 -r 192.0.2.1 -q 10.0.0.5 -p udp --sport 5353 --dport 53 \
         --reply-port-src 53 --reply-port-dst 5353\n"
    );
}

fn event(mask: u32, timeout: u32) -> Event {
    let original = tuple("10.0.0.7", "192.0.2.1", UDP, 5353, 53, 0);
    Event {
        time_ns: 1_795_171_797_628_367_000,
        id: 707_211_218,
        mask,
        status: status::CONFIRMED,
        mark: 0,
        timeout: timeout * TICKS_PER_SECOND,
        state: 0,
        original,
        reply: original.reversed().unwrap(),
        original_count: [1, 29],
        reply_count: [0, 0],
    }
}

const STAMPED: LineOptions = LineOptions { extended: false, id: true, timestamp: true };

#[test]
fn an_event_is_printed_as_in_the_manual_with_counters_on_destroy_only() {
    assert_eq!(
        event_line(&event(mask::NEW, 29), STAMPED),
        "[1795171797.628367]\t    [NEW] udp      17 29 src=10.0.0.7 dst=192.0.2.1 sport=5353 dport=53 [UNREPLIED] \
         src=192.0.2.1 dst=10.0.0.7 sport=53 dport=5353 mark=0 id=707211218"
    );
    assert_eq!(
        event_line(&Event { status: ANSWERED, mark: 7, ..event(mask::UPDATE, 30) }, LineOptions::default()),
        " [UPDATE] udp      17 30 src=10.0.0.7 dst=192.0.2.1 sport=5353 dport=53 src=192.0.2.1 dst=10.0.0.7 sport=53 \
         dport=5353 mark=7"
    );
    assert_eq!(
        event_line(&event(mask::DESTROY, 0), STAMPED),
        "[1795171797.628367]\t[DESTROY] udp      17 src=10.0.0.7 dst=192.0.2.1 sport=5353 dport=53 packets=1 bytes=29 \
         [UNREPLIED] src=192.0.2.1 dst=10.0.0.7 sport=53 dport=5353 packets=0 bytes=0 mark=0 id=707211218"
    );
    let zones = |zone, other| {
        let mut event = event(mask::NEW, 30);
        (event.original.zone, event.reply.zone) = (zone, other);
        event_line(&event, LineOptions::default())
    };
    assert!(zones(4, 4).ends_with("dport=5353 mark=0 zone=4"));
    assert!(zones(4, 0).contains("dport=53 zone-orig=4 [UNREPLIED]") && zones(4, 0).ends_with("mark=0"));
    assert!(zones(0, 4).ends_with("dport=5353 zone-reply=4 mark=0"));
    assert!(zones(3, 4).contains("zone-orig=3 ") && zones(3, 4).contains("zone-reply=4 "));
}

#[test]
fn a_tcp_destroy_keeps_its_state_and_the_time_that_was_left() {
    let original = tuple("10.0.0.7", "192.0.2.1", TCP, 5353, 80, 0);
    let ended = Event { original, reply: original.reversed().unwrap(), state: 7, ..event(mask::DESTROY, 0) };
    assert!(event_line(&ended, LineOptions::default()).starts_with("[DESTROY] tcp      6 TIME_WAIT src="));
    let deleted = Event { timeout: 99 * TICKS_PER_SECOND, state: 3, ..ended };
    assert!(event_line(&deleted, LineOptions::default()).starts_with("[DESTROY] tcp      6 99 ESTABLISHED src="));
}

#[test]
fn protocols_without_ports_print_what_the_kernel_tool_prints() {
    let line =
        |protocol| only(Entry::new(1, tuple("10.0.0.5", "192.0.2.1", protocol, 5, 6, 0))).erhu("conntrack -L").out;
    assert!(line(89).starts_with("unknown  89 28 src=10.0.0.5 dst=192.0.2.1 packets=0"), "{}", line(89));
    assert!(line(47).contains(" dst=192.0.2.1 srckey=0x5 dstkey=0x6 packets=0"), "{}", line(47));
    assert!(line(136).starts_with("udplite  136 28 src=10.0.0.5 dst=192.0.2.1 sport=5 dport=6 "), "{}", line(136));
}

#[test]
fn every_filter_shows_what_it_names_and_nothing_else() {
    let mut fake = Fake::new();
    fake.put(translated());
    fake.put(dns());
    fake.put(ping());
    fake.put(Entry { mark: 0x17, ..syn6() });
    let six = 242_492_168;
    let rows: &[(&str, &[u64])] = &[
        ("", &[1, 2, 3, six]),
        ("-s 10.0.0.5", &[1, 2, 3]),
        ("--src 10.0.0.0/24", &[1, 2, 3]),
        ("--orig-src 10.0.1.0/24", &[]),
        ("-s 2001:db8::/64", &[six]),
        ("-d 192.0.2.1", &[1, 2, 3]),
        ("--dst 192.0.2.2", &[]),
        ("-r 192.0.2.0/24", &[1, 2, 3]),
        ("--reply-src 2001:db8:1::1", &[six]),
        ("-q 203.0.113.9", &[1]),
        ("--reply-dst 10.0.0.5", &[2, 3]),
        ("-p tcp", &[1, six]),
        ("-p 17", &[2]),
        ("--proto ICMP", &[3]),
        ("--sport 40000", &[1]),
        ("-p tcp --dport 443", &[1, six]),
        ("--orig-port-src 5353 --orig-port-dst 53", &[2]),
        ("--reply-port-src 443 --reply-port-dst 40001", &[six]),
        ("--icmp-type 8", &[3]),
        ("-p icmp --icmp-type 8 --icmp-code 0 --icmp-id 77", &[3]),
        ("--icmp-id 78", &[]),
        ("--state ESTABLISHED", &[1]),
        ("-p tcp --state SYN_SENT", &[six]),
        ("-m 23", &[six]),
        ("-m 0x10/0xf0", &[six]),
        ("--mark 0", &[1, 2, 3]),
        ("-w 1", &[1]),
        ("-w 5", &[2]),
        ("-w 0", &[3, six]),
        ("--zone 9", &[]),
        ("--orig-zone 1", &[1]),
        ("--orig-zone 1 --reply-zone 0", &[1]),
        ("--reply-zone 1", &[]),
        ("--reply-zone 5", &[2]),
        ("-u ASSURED", &[1]),
        ("-u seen_reply,assured", &[1]),
        ("--status UNSET", &[2, 3, six]),
        ("-n", &[1]),
        ("--src-nat 203.0.113.9", &[1]),
        ("-n 203.0.113.8", &[]),
        ("-g", &[]),
        ("-j", &[1]),
        ("--any-nat=203.0.113.0/24", &[1]),
        ("-f ipv6", &[six]),
        ("--family ipv4", &[1, 2, 3]),
    ];
    for (filter, ids) in rows {
        let listed = fake.erhu(&format!("conntrack -L -o id {filter}"));
        assert_eq!((listed.status, listed.ids().as_slice()), (0, *ids), "{filter}: {}", listed.err);
        assert!(listed.err.contains(&format!(": {} flow entries have been shown.", ids.len())), "{filter}");
        let counted = fake.erhu(&format!("conntrack -C {filter}"));
        assert_eq!((counted.status, counted.out), (0, format!("{}\n", ids.len())), "{filter}");
    }
}

#[test]
fn get_shows_the_one_connection_with_a_tuple() {
    let mut fake = four();
    let found = fake.erhu("conntrack -G -o id -p udp -s 10.0.0.5 -d 192.0.2.1 --sport 5353 --dport 53");
    assert_eq!((found.status, found.ids()), (0, vec![2]));
    let found = fake
        .erhu("conntrack -G -o id -p tcp -r 192.0.2.1 -q 203.0.113.9 --reply-port-src 443 --reply-port-dst 40000");
    assert_eq!(found.ids(), [1]);
    let missing = fake.erhu("conntrack -G -p udp -s 10.0.0.5 -d 192.0.2.1 --sport 5353 --dport 54");
    assert_eq!((missing.status, missing.out.as_str()), (1, ""));
    assert!(missing.err.contains("such conntrack doesn't exist"));
    for part in
        ["-p udp", "-s 10.0.0.5 -d 192.0.2.1", "-p udp -s 10.0.0.5 -d 192.0.2.1 --sport 1", "-p icmp -s ::1 -d ::1"]
    {
        let refused = fake.erhu(&format!("conntrack -G {part}"));
        assert_eq!(refused.status, 2, "{part}");
        assert!(refused.err.contains("-G needs a whole tuple"), "{part}: {}", refused.err);
    }
}

#[test]
fn get_asks_for_the_zone_where_two_tenants_have_the_same_tuple() {
    let mut fake = Fake::new();
    for zone in [1, 2] {
        let mut entry = translated();
        (entry.id, entry.original.zone, entry.reply.dport) = (u64::from(zone), zone, 40000 + zone);
        fake.put(entry);
    }
    let tuple = "-p tcp -s 10.0.0.5 -d 192.0.2.1 --sport 40000 --dport 443";
    let refused = fake.erhu(&format!("conntrack -G {tuple}"));
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("zones 1/0 and 2/0") && refused.err.contains("--orig-zone"), "{}", refused.err);
    assert_eq!(fake.erhu(&format!("conntrack -G -o id {tuple} -w 2")).ids(), [2]);
}

// CASES C4
#[test]
fn delete_ends_what_it_lists_and_fails_where_nothing_matches() {
    let mut fake = four();
    let wrong = fake.erhu("conntrack -D -s 10.0.0.6");
    assert_eq!((wrong.status, wrong.out.as_str()), (1, ""));
    assert!(wrong.err.ends_with(": 0 flow entries have been deleted.\n"), "{}", wrong.err);
    let deleted = fake.erhu("conntrack -D -o id -s 10.0.0.5 -p udp");
    assert_eq!((deleted.status, deleted.ids()), (0, vec![2]));
    assert!(deleted.err.ends_with(": 1 flow entries have been deleted.\n"));
    assert_eq!(fake.ids().len(), 3);
    assert_eq!(fake.erhu("conntrack -D").status, 0);
    assert!(fake.ids().is_empty());
}

#[test]
fn delete_goes_on_over_many_batches() {
    let mut fake = Fake::new();
    for n in 0..10_000_u16 {
        fake.put(Entry::new(u64::from(n) + 1, tuple("10.0.0.5", "192.0.2.1", UDP, n, 53, n % 2)));
    }
    let deleted = fake.erhu("conntrack -D -w 1");
    assert!(deleted.err.ends_with(": 5000 flow entries have been deleted.\n"), "{}", deleted.err);
    assert_eq!(deleted.lines().len(), 5000);
    assert_eq!(fake.erhu("conntrack -C").out, "5000\n");
    assert_eq!(fake.erhu("conntrack -C -w 1").out, "0\n");
}

#[test]
fn flush_empties_the_table_or_a_zone_and_takes_no_other_filter() {
    let mut fake = four();
    let flushed = fake.erhu("conntrack -F -w 1");
    assert_eq!((flushed.status, flushed.out.as_str()), (0, ""));
    assert!(flushed.err.ends_with(": connection tracking table has been emptied.\n"));
    assert_eq!(fake.ids(), [2, 3, 242_492_168]);
    let refused = fake.erhu("conntrack -F -s 10.0.0.5");
    assert_eq!(refused.status, 2);
    assert_eq!(fake.ids().len(), 3);
    assert_eq!(fake.erhu("conntrack -F --json").json()["ended"], 3);
}

#[test]
fn a_table_is_one_json_array_or_one_xml_document() {
    let mut fake = four();
    for command in ["conntrack -L --json", "--json conntrack -L", "conntrack -L -o json"] {
        let table = fake.erhu(command).json();
        let one = table.as_array().unwrap().iter().find(|c| c["id"] == 1).unwrap();
        assert_eq!(table.as_array().unwrap().len(), 4);
        assert_eq!(one["original"]["zone"], 1);
        assert_eq!(one["reply"]["dst"], "203.0.113.9");
        assert_eq!(one["status"], serde_json::json!(["SEEN_REPLY", "ASSURED", "SRC_NAT"]));
        assert_eq!((&one["state"], &one["timeout"]), (&"ESTABLISHED".into(), &431_998.into()));
    }
    assert_eq!(Fake::new().erhu("conntrack -L --json").json(), serde_json::json!([]));
    let xml = only(translated()).erhu("conntrack -L -o xml").out;
    assert_eq!(
        xml,
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<conntrack>\n\
         <flow><meta direction=\"original\"><layer3 protonum=\"2\" protoname=\"ipv4\"><src>10.0.0.5</src>\
         <dst>192.0.2.1</dst></layer3><layer4 protonum=\"6\" protoname=\"tcp\"><sport>40000</sport><dport>443</dport>\
         </layer4><zone>1</zone><counters><packets>3</packets><bytes>180</bytes></counters></meta>\
         <meta direction=\"reply\"><layer3 protonum=\"2\" protoname=\"ipv4\"><src>192.0.2.1</src>\
         <dst>203.0.113.9</dst></layer3><layer4 protonum=\"6\" protoname=\"tcp\"><sport>443</sport>\
         <dport>40000</dport></layer4><counters><packets>2</packets><bytes>120</bytes></counters></meta>\
         <meta direction=\"independent\"><state>ESTABLISHED</state><timeout>431998</timeout><mark>0</mark><use>1</use>\
         <id>1</id><assured/></meta></flow>\n</conntrack>\n"
    );
}

#[test]
fn save_lines_name_zones_states_and_translation() {
    assert_eq!(
        only(translated()).erhu("conntrack -L -o save").out,
        "-A -t 431998 -u SEEN_REPLY,ASSURED --orig-zone 1 -s 10.0.0.5 -d 192.0.2.1 -r 192.0.2.1 -n 203.0.113.9 -p tcp \
         --sport 40000 --dport 443 --reply-port-src 443 --reply-port-dst 40000 --state ESTABLISHED\n"
    );
    assert_eq!(
        only(ping()).erhu("conntrack -L -o save").out,
        "-A -t 28 -u UNSET -s 10.0.0.5 -d 192.0.2.1 -r 192.0.2.1 -q 10.0.0.5 -p icmp --icmp-type 8 --icmp-code 0 \
         --icmp-id 77\n"
    );
}

#[test]
fn statistics_have_a_line_per_worker_with_the_keys_of_the_kernel() {
    let mut fake = Fake::new();
    let block = fake.counters.worker(1).unwrap();
    block.cpu.store(6, Relaxed);
    block.created.store(4, Relaxed);
    block.counters[Counter::ClashRemapped.index()].store(2, Relaxed);
    block.refused[DropReason::ZoneLimit.index()].store(3, Relaxed);
    fake.counters.worker(0).unwrap().cpu.store(u32::MAX, Relaxed);
    assert_eq!(
        fake.erhu("conntrack -S").out,
        "cpu=0   \tfound=0 invalid=0 insert=0 insert_failed=0 drop=0 early_drop=0 error=0 search_restart=0 \
         clash_resolve=0 chaintoolong=0 \n\
         cpu=6   \tfound=0 invalid=0 insert=4 insert_failed=0 drop=3 early_drop=0 error=0 search_restart=0 \
         clash_resolve=2 chaintoolong=0 \n"
    );
    assert_eq!(fake.erhu("conntrack -S --json").json()[1]["insert"], 4);
}

#[test]
fn the_table_of_expectations_is_there_and_empty() {
    let mut fake = four();
    let listed = fake.erhu("conntrack -L expect");
    assert_eq!((listed.status, listed.out.as_str()), (0, ""));
    assert!(listed.err.ends_with(": 0 expectations have been shown.\n"));
    assert_eq!(fake.erhu("conntrack -C expect").out, "0\n");
    assert_eq!(fake.erhu("conntrack -D expect").status, 1);
    assert_eq!(fake.erhu("conntrack -F expect").status, 0);
    assert_eq!(fake.ids().len(), 4, "the connections are another table");
}

#[test]
fn what_is_still_to_come_is_refused_before_anything_is_done() {
    let commands = [
        "conntrack -I -p udp -s 10.0.0.5 -d 192.0.2.1 -t 100",
        "conntrack -A -t 28 -u UNSET -w 5 -s 10.0.0.5 -d 192.0.2.1 -r 192.0.2.1 -q 10.0.0.5 -p udp --sport 1 --dport 2",
        "conntrack -U -p tcp -m 7",
        "conntrack -E -e NEW -o timestamp",
        "conntrack -R file.txt",
        "conntrack -L -l label",
        "conntrack -G expect",
        "show sets",
        "show services",
        "set add blocked 192.0.2.7",
        "set list x --timeout 5",
        "top",
        "trace -s 10.0.0.5",
        "capture wan -w out.pcapng",
    ];
    for command in commands {
        let mut fake = four();
        for refused in [fake.erhu(command), erhu(command)] {
            assert_eq!((refused.status, refused.out.as_str()), (1, ""), "{command}: {}", refused.err);
            assert!(refused.err.ends_with(": not available yet\n"), "{command}: {}", refused.err);
        }
        assert!(fake.asked.is_empty());
    }
}

#[test]
fn wrong_usage_is_explained_with_status_2() {
    let commands = [
        ("conntrack", "required"),
        ("conntrack -L -D", "cannot be used with"),
        ("conntrack -L -s 1.2.3.4.5", "neither an address nor a prefix"),
        ("conntrack -L -s 10.0.0.0/33", "neither an address nor a prefix"),
        ("conntrack -L -p foo", "no protocol"),
        ("conntrack -L -p udp --state ESTABLISHED", "a TCP state cannot be matched with protocol udp"),
        ("conntrack -L -p tcp --state FOO", "no TCP state"),
        ("conntrack -L -p icmp --sport 5", "ports cannot be matched"),
        ("conntrack -L -p tcp --icmp-type 8", "ICMP type, code and id cannot be matched"),
        ("conntrack -L -u FOO", "no status"),
        ("conntrack -L -m x/1", "no mark"),
        ("conntrack -L -w 65536", "65536"),
        ("conntrack -L --sport 65536", "65536"),
        ("conntrack -L -o foo", "foo"),
        ("conntrack -L -o save,id", "cannot be combined"),
        ("conntrack -L -o xml,json", "cannot be combined"),
        ("conntrack -L dying", "dying"),
        ("conntrack -S -p tcp", "-S takes no filter"),
        ("conntrack -L -t 5", "-t"),
        ("conntrack -L --bogus", "--bogus"),
        ("show", "required"),
        ("show cables", "cables"),
        ("frobnicate", "frobnicate"),
        ("apply", "required"),
    ];
    let mut fake = four();
    for (command, why) in commands {
        let refused = fake.erhu(command);
        assert_eq!((refused.status, refused.out.as_str()), (2, ""), "{command}");
        assert!(refused.err.contains(why), "{command}: {}", refused.err);
    }
    assert!(fake.asked.is_empty());
}
