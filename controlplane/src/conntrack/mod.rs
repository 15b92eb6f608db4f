//! `erhu conntrack`: the verbs of conntrack(8) on the connection slab.
//!
//! # Overview
//!
//! Listing and counting walk the slab in shared memory, in bounded memory and without asking the dataplane. Ending
//! connections is a request that names each by its line and id, in batches; one that ended by itself and whose line
//! has a new tenant is never hit.

pub mod export;
pub mod filter;
pub mod format;

use std::io::{BufWriter, Write};
use std::sync::atomic::Ordering;

use clap::{ArgAction, ArgGroup, Args, ValueEnum};
use erhu_planes::Counter;
use erhu_planes::DropReason;
use erhu_planes::connections::{Connection, ConnectionsRegion, Cursor};
use erhu_planes::protocol::{Counted, Request, Response};
use erhu_planes::stats::StatsRegion;
use serde_json::json;

use crate::cli::{Failure, Io, banner};
use crate::client::{Dataplane, demand, unexpected};
use filter::Filter;
use format::{LineOptions, write_connection};

/// Entries looked at between two looks at what is collected.
const WALK_STEPS: u32 = 4096;
/// Connections ended by one request.
const DELETE_BATCH: usize = 4096;
/// Bytes of output that are collected before they are written.
const OUTPUT_BUFFER: usize = 1 << 16;

const EXAMPLES: &str = "\
Examples:
  erhu conntrack -L -o extended,id        every connection, with family and id
  erhu conntrack -L -w 5 -p tcp --state ESTABLISHED
  erhu conntrack -D -s 10.0.0.0/24        end what these hosts began
  erhu conntrack -F -w 1                  end everything with a tuple in zone 1
  erhu conntrack -L --json                for programs";

/// Connections: list, look up, end and count them, with the options of conntrack(8)
#[derive(Args, Clone, Debug)]
#[command(
    after_help = EXAMPLES,
    override_usage = "erhu conntrack <VERB> [conntrack|expect] [FILTERS] [-o LIST]",
    group(ArgGroup::new("verb").required(true).multiple(false).args(
        ["list", "get", "delete", "flush", "count", "stats", "insert", "add", "update", "event", "load_file"],
    ))
)]
pub struct ConntrackArgs {
    /// List what the filters match
    #[arg(short = 'L', long = "dump", value_name = "TABLE", hide_possible_values = true)]
    list: Option<Option<Table>>,
    /// Show the connection with this tuple
    #[arg(short = 'G', long = "get", value_name = "TABLE", hide_possible_values = true)]
    get: Option<Option<Table>>,
    /// End what the filters match, and list it
    #[arg(short = 'D', long = "delete", value_name = "TABLE", hide_possible_values = true)]
    delete: Option<Option<Table>>,
    /// End everything, or everything with a tuple in the zone of -w
    #[arg(short = 'F', long = "flush", value_name = "TABLE", hide_possible_values = true)]
    flush: Option<Option<Table>>,
    /// Count what the filters match
    #[arg(short = 'C', long = "count", value_name = "TABLE", hide_possible_values = true)]
    count: Option<Option<Table>>,
    /// Show each worker's statistics
    #[arg(short = 'S', long = "stats", value_name = "TABLE", hide_possible_values = true)]
    stats: Option<Option<Table>>,
    /// Not available yet
    #[arg(short = 'I', long = "create", value_name = "TABLE", hide_possible_values = true)]
    insert: Option<Option<Table>>,
    /// Not available yet
    #[arg(short = 'A', long = "add", value_name = "TABLE", hide_possible_values = true)]
    add: Option<Option<Table>>,
    /// Not available yet
    #[arg(short = 'U', long = "update", value_name = "TABLE", hide_possible_values = true)]
    update: Option<Option<Table>>,
    /// Not available yet
    #[arg(short = 'E', long = "event", value_name = "TABLE", hide_possible_values = true)]
    event: Option<Option<Table>>,
    /// Not available yet
    #[arg(short = 'R', long = "load-file", value_name = "FILE")]
    load_file: Option<String>,

    /// Which connections are meant.
    #[command(flatten)]
    filter: Filter,

    /// What is printed: extended, id, timestamp, labels; or one of save, xml, json
    #[arg(short = 'o', long = "output", value_name = "LIST", value_delimiter = ',', action = ArgAction::Append)]
    output: Vec<Output>,
    /// Set the counters of what was printed to zero
    #[arg(short = 'z', long = "zero")]
    zero: bool,
    /// Timeout in seconds of a connection that is made
    #[arg(short = 't', long = "timeout", hide = true)]
    timeout: Option<u64>,
    /// Kinds of events
    #[arg(short = 'e', long = "event-mask", hide = true)]
    event_mask: Option<String>,
    /// Labels
    #[arg(short = 'l', long = "label", hide = true)]
    label: Option<String>,
    /// Buffer size
    #[arg(short = 'b', long = "buffer-size", hide = true)]
    buffer_size: Option<u64>,
}

/// A table of conntrack(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    /// Connections.
    Conntrack,
    /// Connections that helpers foresee.
    Expect,
}

/// A word of `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// The family first.
    Extended,
    /// The id last.
    Id,
    /// The time, in events.
    Timestamp,
    /// Names of labels; connections have none so far.
    Labels,
    /// Options that would make it.
    Save,
    /// XML.
    Xml,
    /// JSON.
    Json,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    List,
    Get,
    Delete,
    Flush,
    Count,
    Stats,
}

impl ConntrackArgs {
    fn verb(&self) -> Result<(Verb, Table), Failure> {
        let later = [
            ("-I", self.insert.is_some()),
            ("-A", self.add.is_some()),
            ("-U", self.update.is_some()),
            ("-E", self.event.is_some()),
            ("-R", self.load_file.is_some()),
        ];
        if let Some((name, _)) = later.iter().find(|(_, given)| *given) {
            return Err(Failure::NotYet(format!("conntrack {name}")));
        }
        let verbs = [
            (Verb::List, self.list),
            (Verb::Get, self.get),
            (Verb::Delete, self.delete),
            (Verb::Flush, self.flush),
            (Verb::Count, self.count),
            (Verb::Stats, self.stats),
        ];
        verbs
            .into_iter()
            .find_map(|(verb, table)| Some((verb, table?.unwrap_or(Table::Conntrack))))
            .ok_or_else(|| Failure::Usage("a verb is missing".into()))
    }

    /// Refuses what makes no sense, before a dataplane is looked for.
    ///
    /// # Errors
    /// [`Failure::Usage`] for wrong combinations, [`Failure::NotYet`] for what is still to come.
    pub fn check(&self) -> Result<(), Failure> {
        let (verb, table) = self.verb()?;
        let later = [
            ("conntrack -l", self.label.is_some()),
            ("conntrack -G expect", verb == Verb::Get && table == Table::Expect),
        ];
        if let Some((name, _)) = later.iter().find(|(_, given)| *given) {
            return Err(Failure::NotYet((*name).to_owned()));
        }
        if self.timeout.is_some() || self.event_mask.is_some() || self.buffer_size.is_some() {
            return Err(Failure::Usage("-t, -e and -b do not go with this verb".into()));
        }
        self.filter.check().map_err(Failure::Usage)?;
        let whole = self.output.iter().filter(|o| matches!(o, Output::Save | Output::Xml | Output::Json)).count();
        if whole > 1 || self.output.contains(&Output::Save) && self.output.len() > 1 {
            return Err(Failure::Usage("-o save, xml and json cannot be combined".into()));
        }
        match verb {
            _ if self.zero && (verb != Verb::List || table == Table::Expect) => {
                Err(Failure::Usage("-z goes with -L only".into()))
            }
            Verb::Flush if !self.filter.is_zone_only() => {
                Err(Failure::Usage("-F takes no filter but -w; use -D to end what filters match".into()))
            }
            Verb::Stats if self.filter != Filter::default() => Err(Failure::Usage("-S takes no filter".into())),
            Verb::Get => self
                .filter
                .check_names_a_tuple()
                .map_err(|missing| Failure::Usage(format!("-G needs a whole tuple; {missing} missing"))),
            _ => Ok(()),
        }
    }

    fn form(&self, json: bool) -> Form {
        let has = |output| self.output.contains(&output);
        if json || has(Output::Json) {
            Form::Json
        } else if has(Output::Save) {
            Form::Save
        } else if has(Output::Xml) {
            Form::Xml
        } else {
            let (extended, id, timestamp) = (has(Output::Extended), has(Output::Id), has(Output::Timestamp));
            Form::Lines(LineOptions { extended, id, timestamp })
        }
    }
}

/// Runs one verb.
///
/// # Errors
/// [`Failure`], explained.
pub(crate) fn run(args: &ConntrackArgs, io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    args.check()?;
    io.json |= args.output.contains(&Output::Json);
    match args.verb()? {
        (verb, Table::Expect) => expectations(verb, io, dataplane),
        (Verb::List, _) => list(args, io, dataplane),
        (Verb::Get, _) => get(args, io, dataplane),
        (Verb::Delete, _) => delete(args, io, dataplane),
        (Verb::Flush, _) => flush(args, io, dataplane),
        (Verb::Count, _) => count(args, io, dataplane),
        (Verb::Stats, _) => stats(io, dataplane),
    }
}

/// How connections are written.
#[derive(Clone, Copy, Debug)]
enum Form {
    Lines(LineOptions),
    Save,
    Xml,
    Json,
}

/// Writes connections one by one, whatever the form.
struct Printer<'a> {
    out: BufWriter<&'a mut dyn Write>,
    form: Form,
    line: String,
    printed: u64,
}

impl<'a> Printer<'a> {
    fn new(out: &'a mut dyn Write, form: Form) -> std::io::Result<Self> {
        let mut out = BufWriter::with_capacity(OUTPUT_BUFFER, out);
        match form {
            Form::Xml => out.write_all(export::XML_HEAD.as_bytes())?,
            Form::Json => out.write_all(b"[")?,
            Form::Lines(_) | Form::Save => {}
        }
        Ok(Self { out, form, line: String::with_capacity(512), printed: 0 })
    }

    fn print(&mut self, connection: &Connection, now_tick: u32) -> std::io::Result<()> {
        self.line.clear();
        match self.form {
            Form::Lines(options) => write_connection(&mut self.line, connection, now_tick, options),
            Form::Save => export::write_save(&mut self.line, connection, now_tick),
            Form::Xml => export::write_xml(&mut self.line, connection, now_tick),
            Form::Json => {
                self.line.push_str(if self.printed == 0 { "\n" } else { ",\n" });
                self.out.write_all(self.line.as_bytes())?;
                serde_json::to_writer(&mut self.out, &export::JsonConnection::new(connection, now_tick))?;
                self.printed += 1;
                return Ok(());
            }
        }
        self.line.push('\n');
        self.printed += 1;
        self.out.write_all(self.line.as_bytes())
    }

    fn finish(mut self) -> std::io::Result<u64> {
        match self.form {
            Form::Xml => self.out.write_all(export::XML_TAIL.as_bytes())?,
            Form::Json => self.out.write_all(if self.printed == 0 { b"]\n" } else { b"\n]\n" })?,
            Form::Lines(_) | Form::Save => {}
        }
        self.out.flush()?;
        Ok(self.printed)
    }
}

fn now_tick(region: &ConnectionsRegion) -> u32 {
    region.slab().now_tick.load(Ordering::Relaxed)
}

fn list(args: &ConntrackArgs, io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let region = dataplane.connections()?;
    let mut printer = Printer::new(io.out, args.form(io.json))?;
    let mut result = Ok(());
    let mut cursor = Some(Cursor::default());
    while let (Some(from), Ok(())) = (cursor, &result) {
        let now = now_tick(&region);
        let mut printed = Vec::new();
        cursor = region.walk(from, WALK_STEPS, |connection| {
            if result.is_ok() && args.filter.matches(&connection) {
                result = printer.print(&connection, now);
                if args.zero {
                    printed.push(counted(&connection));
                }
            }
        });
        if !printed.is_empty() {
            demand(dataplane, &Request::Discount { connections: printed }, None)?;
        }
    }
    result?;
    let shown = printer.finish()?;
    writeln!(io.err, "{}: {shown} flow entries have been shown.", banner("conntrack"))?;
    Ok(())
}

/// What `-z` takes off the counters: exactly what was printed, whatever came since.
fn counted(connection: &Connection) -> Counted {
    let (original, reply) = (&connection.original, &connection.reply);
    Counted {
        line: connection.line,
        id: connection.id,
        counters: [original.packets, original.bytes, reply.packets, reply.bytes],
    }
}

fn get(args: &ConntrackArgs, io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let region = dataplane.connections()?;
    let mut found: Vec<Connection> = Vec::new();
    let mut cursor = Some(Cursor::default());
    while let (Some(from), 0..=1) = (cursor, found.len()) {
        cursor = region.walk(from, WALK_STEPS, |connection| {
            if found.len() < 2 && args.filter.matches(&connection) {
                found.push(connection);
            }
        });
    }
    match found.as_slice() {
        [] => Err(Failure::Refused("such conntrack doesn't exist".into())),
        [only] => {
            let mut printer = Printer::new(io.out, args.form(io.json))?;
            printer.print(only, now_tick(&region))?;
            let shown = printer.finish()?;
            writeln!(io.err, "{}: {shown} flow entries have been shown.", banner("conntrack"))?;
            Ok(())
        }
        [a, b, ..] => Err(Failure::Refused(format!(
            "several connections have this tuple, in zones {}/{} and {}/{} among others: choose with --orig-zone or \
             --reply-zone, or name the other direction too",
            a.original.tuple.zone, a.reply.tuple.zone, b.original.tuple.zone, b.reply.tuple.zone
        ))),
    }
}

fn delete(args: &ConntrackArgs, io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let region = dataplane.connections()?;
    let mut printer = Printer::new(io.out, args.form(io.json))?;
    let mut batch: Vec<Connection> = Vec::new();
    let mut deleted = 0;
    let mut cursor = Some(Cursor::default());
    while let Some(from) = cursor {
        cursor = region.walk(from, WALK_STEPS, |connection| {
            if args.filter.matches(&connection) {
                batch.push(connection);
            }
        });
        if batch.len() >= DELETE_BATCH || cursor.is_none() && !batch.is_empty() {
            let now = now_tick(&region);
            deleted += end(dataplane, &batch)?;
            for connection in batch.drain(..) {
                printer.print(&connection, now)?;
            }
        }
    }
    printer.finish()?;
    writeln!(io.err, "{}: {deleted} flow entries have been deleted.", banner("conntrack"))?;
    if deleted == 0 { Err(Failure::Said) } else { Ok(()) }
}

/// Asks the dataplane to end these; returns how many it did.
fn end(dataplane: &mut dyn Dataplane, connections: &[Connection]) -> Result<u64, Failure> {
    let connections = connections.iter().map(|c| (c.line, c.id)).collect();
    match demand(dataplane, &Request::Delete { connections }, None)?.0 {
        Response::Ended { connections } => Ok(connections),
        other => Err(unexpected(&other).into()),
    }
}

fn flush(args: &ConntrackArgs, io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let ended = match demand(dataplane, &Request::Flush { zone: args.filter.zone }, None)?.0 {
        Response::Ended { connections } => connections,
        other => return Err(unexpected(&other).into()),
    };
    if io.json {
        writeln!(io.out, "{}", json!({ "ended": ended }))?;
    }
    writeln!(io.err, "{}: connection tracking table has been emptied.", banner("conntrack"))?;
    Ok(())
}

fn count(args: &ConntrackArgs, io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let mut count = 0_u64;
    dataplane.connections()?.for_each(|connection| count += u64::from(args.filter.matches(&connection)));
    if io.json {
        writeln!(io.out, "{}", json!({ "count": count }))?;
    } else {
        writeln!(io.out, "{count}")?;
    }
    Ok(())
}

/// No helper exists that could make one, so the table of expectations is empty.
fn expectations(verb: Verb, io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let who = banner("conntrack");
    match verb {
        Verb::List => {
            if io.json {
                writeln!(io.out, "[]")?;
            }
            writeln!(io.err, "{who}: 0 expectations have been shown.")?;
        }
        Verb::Get => return Err(Failure::NotYet("conntrack -G expect".into())),
        Verb::Delete => {
            writeln!(io.err, "{who}: 0 expectations have been deleted.")?;
            return Err(Failure::Said);
        }
        Verb::Flush => writeln!(io.err, "{who}: expectation table has been emptied.")?,
        Verb::Count if io.json => writeln!(io.out, "{}", json!({ "count": 0 }))?,
        Verb::Count => writeln!(io.out, "0")?,
        Verb::Stats => {
            let keys = ["expect_new", "expect_create", "expect_delete"].map(|key| (key, 0));
            worker_lines(io, &dataplane.stats()?, |_| keys.to_vec())?;
        }
    }
    Ok(())
}

fn stats(io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let stats = dataplane.stats()?;
    worker_lines(io, &stats, |worker| kernel_counters(&stats, worker))
}

/// A worker's counters under the names that conntrack(8) gives them. What the kernel counts and we have no case of is 0.
fn kernel_counters(stats: &StatsRegion, worker: usize) -> Vec<(&'static str, u64)> {
    let Some(block) = stats.worker(worker) else { return Vec::new() };
    let counter = |c: Counter| block.counters[c.index()].load(Ordering::Relaxed);
    let refused = |r: DropReason| block.refused[r.index()].load(Ordering::Relaxed);
    let full = [DropReason::TableFull, DropReason::ZoneLimit, DropReason::ZoneRate, DropReason::HostLimit];
    vec![
        ("found", counter(Counter::FastPath)),
        ("invalid", counter(Counter::InvalidPackets)),
        ("insert", block.created.load(Ordering::Relaxed)),
        ("insert_failed", refused(DropReason::Clash)),
        ("drop", full.into_iter().map(refused).sum()),
        ("early_drop", counter(Counter::EarlyDrop)),
        ("error", counter(Counter::Bug)),
        ("search_restart", 0),
        ("clash_resolve", counter(Counter::ClashRemapped)),
        ("chaintoolong", 0),
    ]
}

/// One line per worker as `conntrack -S` has one per CPU. An unpinned worker shows its number.
fn worker_lines(
    io: &mut Io<'_>,
    stats: &StatsRegion,
    counters: impl Fn(usize) -> Vec<(&'static str, u64)>,
) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for worker in 0..stats.workers() {
        let pinned =
            stats.worker(worker).map(|block| block.cpu.load(Ordering::Relaxed)).filter(|cpu| *cpu != u32::MAX);
        let cpu = pinned.map_or(worker, |cpu| cpu as usize);
        if io.json {
            let mut row: serde_json::Map<String, serde_json::Value> =
                counters(worker).into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
            row.insert("cpu".into(), cpu.into());
            rows.push(row);
            continue;
        }
        write!(io.out, "cpu={cpu:<4}\t")?;
        for (key, value) in counters(worker) {
            write!(io.out, "{key}={value} ")?;
        }
        writeln!(io.out)?;
    }
    if io.json {
        writeln!(io.out, "{}", serde_json::Value::from_iter(rows))?;
    }
    Ok(())
}
