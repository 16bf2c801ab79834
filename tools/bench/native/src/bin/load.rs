//! The load generator: both ends of what goes through a forwarder, in one process. It prints one
//! line of JSON when it is over. Each time it prints "mark" it waits for a line on its standard
//! input: at the last but one the measurement begins, at the last it has ended.

use std::cell::Cell;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use openssl::ssl::SslContext;
use tls_splice_bench::args::Args;
use tls_splice_bench::datagrams;
use tls_splice_bench::flow::{self, Counters, End, Side, CHUNK, DISCARD, DRAIN, QUIT, VERIFY};
use tls_splice_bench::packets::{self, Device};
use tls_splice_bench::process::{self, Usage};
use tls_splice_bench::sys::{self, Endpoint, Ends, PATIENCE};
use tls_splice_bench::tls::{self, Read, ResumingClient, Tls};

fn error<T>(text: impl Display) -> io::Result<T> {
    Err(io::Error::other(text.to_string()))
}

/// How many connections there are to be.
fn connections(args: &Args) -> usize {
    args.get("--connections").unwrap_or(1)
}

/// How many bytes one of them sends before it is another one's turn. With many of them it would
/// take too long otherwise until each has had a turn.
fn turn(connections: usize) -> usize {
    (CHUNK * 16 / connections).clamp(65536, CHUNK)
}

/// How the forwarder is listened for.
enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, SslContext),
    Unix(UnixListener),
    /// Open from the beginning: a FIFO that nobody reads cannot be opened for writing. Two for
    /// each connection, and the number of the next connection.
    Fifos(Vec<(OwnedFd, OwnedFd)>, Cell<usize>),
}

/// Where the forwarder connects to.
struct Upstream {
    endpoint: Endpoint,
    listener: Listener,
}

impl Upstream {
    fn listen(args: &Args) -> io::Result<Self> {
        let endpoint = args.need("--plain");
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = match &endpoint {
            Endpoint::Tcp(port) => Listener::Tcp(bind(*port)?),
            Endpoint::Tls(port) => {
                let (cert, key): (String, String) = (args.need("--cert"), args.need("--key"));
                // What it had read ahead would be lost when the kernel begins to drop.
                Listener::Tls(bind(*port)?, tls::server(&cert, &key, None)?)
            }
            Endpoint::Unix(path) => Listener::Unix(UnixListener::bind(path)?),
            Endpoint::Fifo(dir) => {
                let open = |name: String| -> io::Result<OwnedFd> {
                    Ok(sys::open_fifo(&Path::new(dir).join(name))?.into())
                };
                let both = |i| Ok((open(format!("in{i}"))?, open(format!("out{i}"))?));
                let fifos: io::Result<_> = (0..connections(args)).map(both).collect();
                Listener::Fifos(fifos?, Cell::new(0))
            }
            Endpoint::Tun(_) => return error("nobody connects to a device"),
        };
        Ok(Upstream { endpoint, listener })
    }

    fn accept(&self) -> io::Result<End> {
        let ends = match &self.listener {
            Listener::Tcp(listener) => Ends::socket(accept_tcp(listener)?)?,
            Listener::Tls(listener, ctx) => {
                return Ok(End::Tls(handshake(ctx, accept_tcp(listener)?, true)?));
            }
            Listener::Unix(listener) => {
                sys::poll(listener.as_raw_fd(), libc::POLLIN)?;
                Ends::socket(listener.accept()?.0)?
            }
            Listener::Fifos(fifos, next) => {
                let (source, sink) = &fifos[next.replace(next.get() + 1)];
                let (source, sink) = (source.try_clone()?, Some(sink.try_clone()?));
                Ends { source, sink }
            }
        };
        Ok(End::Plain(self.endpoint.clone(), ends))
    }

    /// Whether what arrives is counted as ciphertext while it is dropped.
    fn is_tls(&self) -> bool {
        matches!(self.endpoint, Endpoint::Tls(_))
    }
}

fn accept_tcp(listener: &TcpListener) -> io::Result<TcpStream> {
    sys::poll(listener.as_raw_fd(), libc::POLLIN)?;
    let stream = listener.accept()?.0;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn handshake(ctx: &SslContext, stream: TcpStream, is_server: bool) -> io::Result<Tls> {
    sys::set_nonblocking(stream.as_raw_fd())?;
    let mut tls = Tls::new(ctx, stream.into(), is_server)?;
    tls.handshake()?;
    Ok(tls)
}

/// To a forwarder that may only just have been started.
fn connect(port: u16) -> io::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match sys::connect_tcp(port) {
            Err(err)
                if err.kind() == io::ErrorKind::ConnectionRefused && start.elapsed() < PATIENCE =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// The TLS end of one more connection.
fn join_tls(ctx: &SslContext, port: u16) -> io::Result<Tls> {
    handshake(ctx, connect(port)?, false)
}

/// Both ends of one more connection.
fn join(ctx: &SslContext, port: u16, upstream: &Upstream) -> io::Result<(Tls, End)> {
    Ok((join_tls(ctx, port)?, upstream.accept()?))
}

/// Lets whoever started this do what it has to do at this moment.
fn mark() -> io::Result<()> {
    println!("mark");
    io::stdout().flush()?;
    match io::stdin().read_line(&mut String::new())? {
        0 => error("nobody answers a mark"),
        _ => Ok(()),
    }
}

/// Waits for something that other threads bring about.
fn until(what: &str, mut done: impl FnMut() -> bool) -> io::Result<()> {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > PATIENCE {
            return error(what);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits until nothing more is sent.
fn until_stalled(sender: &Side) -> io::Result<()> {
    let mut before = (sender.sent(), Instant::now());
    until("the sender does not stall", || {
        if sender.sent() != before.0 {
            before = (sender.sent(), Instant::now());
        }
        before.1.elapsed() > Duration::from_millis(500)
    })
}

/// At the beginning or the end of a measurement.
struct Moment {
    time: Instant,
    usage: Usage,
    own_cpu: u64,
    /// What the plain side has received, and what it has sent: cleartext, or packets.
    moved: [Vec<u64>; 2],
}

impl Moment {
    fn now(pid: i32, moved: [Vec<u64>; 2]) -> io::Result<Self> {
        Ok(Moment {
            time: Instant::now(),
            usage: process::usage(pid)?,
            own_cpu: process::own_cpu()?,
            moved,
        })
    }
}

fn json(fields: &[(&str, f64)]) -> String {
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("{name:?}:{value}"))
        .collect();
    format!("{{{}}}", fields.join(","))
}

/// Bulk data: as much as possible, or at a rate.
fn bulk(args: &Args) -> io::Result<String> {
    let upstream = Upstream::listen(args)?;
    let direction: String = args.need("--direction");
    let (decrypt, encrypt) = (direction != "encrypt", direction != "decrypt");
    let connections = connections(args);
    let stall = args.has("--stall");
    let side = |sends, receives: bool| Side {
        sends,
        receives: receives && !stall,
        record: args.get("--record").unwrap_or(16384),
        turn: turn(connections),
        rate: args.get("--rate"),
        content: flow::pattern,
        counters: (0..connections).map(|_| Counters::default()).collect(),
    };
    let sides = [side(decrypt, encrypt), side(encrypt, decrypt)];
    let [client, plain] = &sides;
    let pid = args.need("--pid");
    let warm_up = Duration::from_millis(args.get("--warm-up").unwrap_or(120));

    let ctx = tls::client(None)?;
    let mut ends = (Vec::new(), Vec::new());
    for _ in 0..connections {
        let (tls, accepted) = join(&ctx, args.need("--port"), &upstream)?;
        ends.0.push(End::Tls(tls));
        ends.1.push(accepted);
    }
    // Before anything is sent.
    if stall {
        mark()?;
    }
    let idle = process::usage(pid)?;

    // Of each connection. What is sent differs from what arrives by what is on the way, which is
    // about the same at the beginning and at the end.
    let moved = || -> [Vec<u64>; 2] {
        let sent = |side: &Side| {
            side.counters
                .iter()
                .map(|each| each.sent.load(Relaxed))
                .collect()
        };
        let arrived = || {
            plain
                .counters
                .iter()
                .map(|each| each.received.load(Relaxed))
                .collect()
        };
        let received = if upstream.is_tls() {
            sent(client)
        } else {
            arrived()
        };
        [received, sent(plain)]
    };
    // Of a record that the change to DISCARD cuts in two only a part counts.
    let lost = 17_000 * connections as u64;
    let phase = AtomicU8::new(VERIFY);
    let (first, last) = thread::scope(|scope| -> io::Result<(Moment, Moment)> {
        let run = |ends, side| {
            if let Err(err) = flow::run(ends, side, &phase) {
                eprintln!("{err}");
                std::process::exit(1);
            }
        };
        scope.spawn(move || run(ends.0, client));
        scope.spawn(move || run(ends.1, plain));

        let measured = (|| {
            if stall {
                until_stalled(if decrypt { client } else { plain })?;
            } else {
                let all = |side: &Side| {
                    side.counters
                        .iter()
                        .all(|counters| counters.received.load(Relaxed) > 0)
                };
                until("not every connection gets something", || {
                    sides.iter().all(|side| !side.receives || all(side))
                })?;
                thread::sleep(warm_up);
                if args.get::<f64>("--rate").is_none() {
                    phase.store(DISCARD, Relaxed);
                    thread::sleep(warm_up / 4);
                }
            }
            mark()?;
            let first = Moment::now(pid, moved())?;
            if let Some(bytes) = args.get::<u64>("--bytes") {
                let total = || moved().iter().flatten().sum::<u64>();
                let goal = total() + bytes;
                while total() < goal {
                    thread::sleep(Duration::from_millis(1));
                }
            } else if !stall {
                thread::sleep(Duration::from_millis(args.need("--ms")));
            }
            let last = Moment::now(pid, moved())?;
            mark()?;
            phase.store(DRAIN, Relaxed);
            if !stall {
                let ways = [(client, plain, upstream.is_tls()), (plain, client, true)];
                for (sender, receiver, is_ciphertext) in ways {
                    until("not all that was sent has arrived", || {
                        let (sent, received) = (sender.sent(), receiver.received());
                        received == sent || (is_ciphertext && received + lost >= sent)
                    })?;
                }
            }
            Ok((first, last))
        })();
        // Also after an error: the other threads would go on.
        phase.store(QUIT, Relaxed);
        measured
    })?;

    let seconds = (last.time - first.time).as_secs_f64();
    let moved = |way: usize| {
        let both = last.moved[way].iter().zip(&first.moved[way]);
        both.map(|(last, first)| last - first)
    };
    let each: Vec<u64> = moved(0).zip(moved(1)).map(|(a, b)| a + b).collect();
    let bytes: u64 = each.iter().sum();
    let slowest = each.iter().min().copied().unwrap_or(0) as f64;
    Ok(json(&[
        ("seconds", seconds),
        ("bytes", bytes as f64),
        (
            "slowest",
            slowest * connections as f64 / bytes.max(1) as f64,
        ),
        ("cpu", (last.usage.cpu - first.usage.cpu) as f64 / 1e9),
        ("load_cpu", (last.own_cpu - first.own_cpu) as f64 / 1e9),
        ("memory", last.usage.memory as f64),
        ("idle_memory", idle.memory as f64),
        ("peak", last.usage.peak as f64),
    ]))
}

/// IP packets to or from a device: as many as possible, or at a rate.
fn ip(args: &Args) -> io::Result<String> {
    let Endpoint::Tun(name) = args.need("--plain") else {
        return error("packets need a device");
    };
    let decrypt = args.need::<String>("--direction") == "decrypt";
    let rate: Option<f64> = args.get("--rate");
    let pid = args.need("--pid");
    let warm_up = Duration::from_millis(args.get("--warm-up").unwrap_or(120));
    let (ctx, port) = (tls::client(None)?, args.need("--port"));
    // Each has a queue of the device.
    let connections = connections(args);
    let ends: io::Result<Vec<_>> = (0..connections).map(|_| join_tls(&ctx, port)).collect();
    let mut ends = ends?;
    let device = Device::find(&name)?;
    match (decrypt, ends.as_mut_slice()) {
        (true, ends) => {
            for tls in ends {
                packets::verify_decrypt(&device, tls)?;
            }
        }
        (false, [tls]) => packets::verify_encrypt(&device, tls)?,
        (false, ends) => packets::verify_spread(&device, ends)?,
    }

    let before = device.counters()?;
    let client = Side {
        sends: decrypt,
        receives: !decrypt,
        record: args.get("--record").unwrap_or(16384),
        turn: turn(connections),
        rate,
        content: packets::stream,
        counters: (0..connections).map(|_| Counters::default()).collect(),
    };
    let sent = AtomicU64::new(0);
    // All has been compared above.
    let phase = AtomicU8::new(DISCARD);
    let (first, last) = thread::scope(|scope| -> io::Result<(Moment, Moment)> {
        fn check(result: io::Result<()>) {
            if let Err(err) = result {
                eprintln!("{err}");
                std::process::exit(1);
            }
        }
        let (client, device, phase, sent) = (&client, &device, &phase, &sent);
        let ends = ends.into_iter().map(End::Tls).collect();
        scope.spawn(move || check(flow::run(ends, client, phase)));
        if !decrypt {
            scope.spawn(move || check(packets::send(device, connections, rate, sent, phase)));
        }
        let moment = || {
            let now = device.counters()?;
            let moved = |now, before| vec![now - before];
            let received = moved(now.from_forwarder, before.from_forwarder);
            Moment::now(
                pid,
                [received, moved(now.to_forwarder, before.to_forwarder)],
            )
        };
        let measured = (|| {
            thread::sleep(warm_up);
            mark()?;
            let first = moment()?;
            thread::sleep(Duration::from_millis(args.need("--ms")));
            let last = moment()?;
            mark()?;
            phase.store(DRAIN, Relaxed);
            until("not all that was sent has arrived", || {
                let Ok(now) = moment() else { return false };
                if decrypt {
                    // The last one of each connection may have been sent in part.
                    let whole = |each: &Counters| each.sent.load(Relaxed) / packets::LEN as u64;
                    now.moved[0][0] == client.counters.iter().map(whole).sum::<u64>()
                } else {
                    // Every packet was read, and at least its bytes have come as ciphertext.
                    let count = sent.load(Relaxed);
                    now.moved[1][0] == count && client.received() > count * packets::LEN as u64
                }
            })?;
            Ok((first, last))
        })();
        phase.store(QUIT, Relaxed);
        measured
    })?;

    let way = usize::from(!decrypt);
    let count = (last.moved[way][0] - first.moved[way][0]) as f64;
    Ok(json(&[
        ("seconds", (last.time - first.time).as_secs_f64()),
        ("packets", count),
        ("bytes", count * packets::LEN as f64),
        ("cpu", (last.usage.cpu - first.usage.cpu) as f64 / 1e9),
        ("load_cpu", (last.own_cpu - first.own_cpu) as f64 / 1e9),
        ("peak", last.usage.peak as f64),
    ]))
}

/// Datagrams to or from a UDP socket, as many as possible.
fn udp(args: &Args) -> io::Result<String> {
    let upstream = args.need::<String>("--plain");
    let port = upstream
        .strip_prefix("udp:")
        .and_then(|port| port.parse().ok());
    let Some(port) = port else {
        return error("datagrams need a UDP port");
    };
    let decrypt = args.need::<String>("--direction") == "decrypt";
    let pid = args.need("--pid");
    let warm_up = Duration::from_millis(args.get("--warm-up").unwrap_or(120));
    let ends = datagrams::Ends::bind(port)?;
    let mut tls = join_tls(&tls::client(None)?, args.need("--port"))?;
    ends.meet(&mut tls)?;

    let phase = AtomicU8::new(VERIFY);
    let (first, last) = thread::scope(|scope| -> io::Result<(Moment, Moment)> {
        fn check(result: io::Result<()>) {
            if let Err(err) = result {
                eprintln!("{err}");
                std::process::exit(1);
            }
        }
        let (ends, phase) = (&ends, &phase);
        if decrypt {
            scope.spawn(move || check(ends.send_tls(&mut tls, phase)));
            scope.spawn(move || check(ends.receive_udp(phase)));
        } else {
            scope.spawn(move || check(ends.send_udp(phase)));
            scope.spawn(move || check(ends.receive_tls(&mut tls, phase)));
        }
        let moment = || Moment::now(pid, [vec![ends.arrived.load(Relaxed)], vec![]]);
        let measured = (|| {
            thread::sleep(warm_up);
            mark()?;
            let first = moment()?;
            thread::sleep(Duration::from_millis(args.need("--ms")));
            let last = moment()?;
            mark()?;
            phase.store(DRAIN, Relaxed);
            until("not all that was sent has arrived", || {
                ends.arrived.load(Relaxed) == ends.sent.load(Relaxed)
            })?;
            Ok((first, last))
        })();
        phase.store(QUIT, Relaxed);
        measured
    })?;

    let count = (last.moved[0][0] - first.moved[0][0]) as f64;
    Ok(json(&[
        ("seconds", (last.time - first.time).as_secs_f64()),
        ("packets", count),
        ("bytes", count * datagrams::LEN as f64),
        ("cpu", (last.usage.cpu - first.usage.cpu) as f64 / 1e9),
        ("load_cpu", (last.own_cpu - first.own_cpu) as f64 / 1e9),
        ("peak", last.usage.peak as f64),
    ]))
}

/// One byte there and back, over and over.
fn ping_pong(args: &Args) -> io::Result<String> {
    let upstream = Upstream::listen(args)?;
    let (mut tls, end) = join(&tls::client(None)?, args.need("--port"), &upstream)?;
    let End::Plain(_, ends) = end else {
        return error("only cleartext comes back");
    };
    thread::spawn(move || -> io::Result<()> {
        let mut byte = [0];
        loop {
            sys::poll(ends.source(), libc::POLLIN)?;
            match sys::read(ends.source(), &mut byte)? {
                Some(0) => return Ok(()),
                Some(_) => sys::write(ends.sink(), &byte)?,
                None => None,
            };
        }
    });
    round_trips(args, |number| {
        let value = number as u8;
        tls.write(&[value])?;
        tls.flush_all()?;
        let mut byte = [0];
        loop {
            match tls.read(&mut byte)? {
                Read::Bytes(_) if byte == [value] => return Ok(()),
                Read::Blocked => sys::poll(tls.fd(), libc::POLLIN)?,
                _ => return error("another answer"),
            }
            tls.readable();
        }
    })
}

/// One packet to the device and one from there, over and over, or at a rate.
fn packet_ping_pong(args: &Args) -> io::Result<String> {
    let Endpoint::Tun(name) = args.need("--plain") else {
        return error("packets need a device");
    };
    let mut tls = join_tls(&tls::client(None)?, args.need("--port"))?;
    let mut ping = packets::Ping::new(&Device::find(&name)?)?;
    round_trips(args, |_| ping.round_trip(&mut tls))
}

/// How long `round_trip` takes, which is given the number of the round. With a rate each round is
/// due at a time of its own, from which its time counts: one that has to wait for those before it
/// has been late as well, and a standstill counts in each round that was due in it.
fn round_trips(
    args: &Args,
    mut round_trip: impl FnMut(usize) -> io::Result<()>,
) -> io::Result<String> {
    let pid = args.need("--pid");
    let interval = args.get("--rate").map(|rate: f64| 1.0 / rate);
    sys::exact_timers();
    let mut run = |time: Duration| -> io::Result<Vec<u64>> {
        let start = Instant::now();
        let mut times = Vec::new();
        loop {
            let due = match interval {
                Some(interval) => start + Duration::from_secs_f64(times.len() as f64 * interval),
                None => Instant::now(),
            };
            if due - start >= time {
                break;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            round_trip(times.len())?;
            times.push(due.elapsed().as_nanos() as u64);
        }
        times.sort_unstable();
        Ok(times)
    };
    run(Duration::from_millis(args.get("--warm-up").unwrap_or(120)))?;
    mark()?;
    let times = run(Duration::from_millis(args.need("--ms")))?;
    let peak = process::usage(pid)?.peak;
    mark()?;
    let micros = |part: usize| times[times.len() * part / 100] as f64 / 1e3;
    Ok(json(&[
        ("median", micros(50)),
        ("p99", micros(99)),
        ("peak", peak as f64),
    ]))
}

/// Connections that do nothing at first, a tenth more than are asked for, and what each of them
/// takes in memory: what the first ones bring into memory is not theirs alone.
fn crowd(args: &Args) -> io::Result<(Vec<(Tls, End)>, f64)> {
    let upstream = Upstream::listen(args)?;
    let (port, pid) = (args.need("--port"), args.need("--pid"));
    let connections: usize = args.need("--connections");
    let ctx = tls::client(None)?;
    let mut ends = Vec::new();
    let mut memory = Vec::new();
    for count in [connections / 10, connections] {
        for _ in 0..count {
            ends.push(join(&ctx, port, &upstream)?);
        }
        mark()?;
        memory.push(process::usage(pid)?.memory as f64);
    }
    Ok((ends, (memory[1] - memory[0]) / connections as f64))
}

/// Connections on which nothing ever moves: what each of them costs.
fn idle(args: &Args) -> io::Result<String> {
    let (_ends, each) = crowd(args)?;
    Ok(json(&[("each", each)]))
}

/// Sends so many bytes each way on one connection after the other, and compares them.
fn pass_round(ends: &mut [(Tls, End)], len: usize) -> io::Result<()> {
    for (tls, end) in ends {
        let End::Plain(_, ends) = end else {
            return error("only cleartext is compared");
        };
        let content = flow::pattern(0, len);
        tls.write(content)?;
        let mut received = 0;
        let mut buf = vec![0; len];
        while received < len {
            tls.writable();
            tls.flush()?;
            sys::poll(ends.source(), libc::POLLIN)?;
            received += sys::read(ends.source(), &mut buf[received..])?.unwrap_or(0);
        }
        if buf != content {
            return error("wrong content at the plain side");
        }
        let (mut sent, mut received) = (0, 0);
        buf.fill(0);
        while received < len {
            sent += sys::write(ends.sink(), &content[sent..])?.unwrap_or(0);
            received += match tls.read_some(&mut buf[received..])? {
                0 => return error("the forwarder has closed a connection"),
                n => n,
            };
        }
        if buf != content {
            return error("wrong content at the TLS side");
        }
    }
    Ok(())
}

/// Connections that are idle, then have a byte each way now and then, and then much at once: what
/// each of them costs after that.
fn traffic(args: &Args) -> io::Result<String> {
    let pid = args.need("--pid");
    let (mut ends, each) = crowd(args)?;
    let idle = process::usage(pid)?.memory as f64;
    let count = ends.len() as f64;
    let mut after = |rounds: usize, len| -> io::Result<f64> {
        for _ in 0..rounds {
            pass_round(&mut ends, len)?;
        }
        mark()?;
        Ok(each + (process::usage(pid)?.memory as f64 - idle) / count)
    };
    let (trickle, burst) = (after(10, 1)?, after(1, CHUNK)?);
    Ok(json(&[
        ("each", each),
        ("trickle", trickle),
        ("burst", burst),
    ]))
}

/// What is asked on a short connection.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// Bytes of the answer.
const ANSWER: usize = 1024;

/// Answers one request on each connection, and then ends the connection; counts the connections
/// that are over.
fn answer(upstream: &Upstream, over: &AtomicU64) -> io::Result<()> {
    loop {
        let End::Plain(_, ends) = upstream.accept()? else {
            return error("only cleartext is answered");
        };
        let mut buf = [0; ANSWER];
        let mut received = 0;
        while !buf[..received].ends_with(b"\r\n\r\n") {
            sys::poll(ends.source(), libc::POLLIN)?;
            match sys::read(ends.source(), &mut buf[received..])? {
                Some(0) => return error("a connection ends before it is answered"),
                n => received += n.unwrap_or(0),
            }
        }
        if buf[..received] != *REQUEST {
            return error("another request");
        }
        sys::write(ends.sink(), flow::pattern(0, ANSWER))?;
        sys::shutdown_write(ends.sink())?;
        sys::poll(ends.source(), libc::POLLIN)?;
        if sys::read(ends.source(), &mut buf)? != Some(0) {
            return error("a connection goes on after its end");
        }
        over.fetch_add(1, Relaxed);
    }
}

/// Short connections, one after the other: a handshake, which is that of an earlier session or
/// not, one request, one answer, and the end.
fn short(args: &Args) -> io::Result<String> {
    let resumes = args.has("--resume");
    let (port, pid) = (args.need("--port"), args.need("--pid"));
    let upstream = Upstream::listen(args)?;
    let over = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&over);
    thread::spawn(move || {
        if let Err(err) = answer(&upstream, &count) {
            eprintln!("{err}");
            std::process::exit(1);
        }
    });
    let client = ResumingClient::new()?;
    let full = tls::client(None)?;
    let one = |is_first: bool| -> io::Result<()> {
        let stream = connect(port)?;
        sys::set_nonblocking(stream.as_raw_fd())?;
        let mut tls = match resumes {
            true => client.connect(stream.into())?,
            false => Tls::new(&full, stream.into(), false)?,
        };
        tls.handshake()?;
        if tls.is_resumed() != (resumes && !is_first) {
            return error("the handshake is of the other kind");
        }
        tls.write(REQUEST)?;
        tls.flush_all()?;
        let mut buf = [0; ANSWER + 1];
        let mut received = 0;
        while let n @ 1.. = tls.read_some(&mut buf[received..])? {
            received += n;
        }
        if buf[..received] != *flow::pattern(0, ANSWER) {
            return error("another answer");
        }
        tls.shutdown();
        tls.flush_all()
    };
    let mut made = 0;
    let mut run = |time: Duration| -> io::Result<u64> {
        let start = Instant::now();
        while start.elapsed() < time {
            one(made == 0)?;
            made += 1;
        }
        until("not all connections are over", || {
            over.load(Relaxed) == made
        })?;
        Ok(made)
    };
    let moment = |made| Moment::now(pid, [vec![made], vec![]]);
    let made = run(Duration::from_millis(args.need("--warm-up")))?;
    mark()?;
    let first = moment(made)?;
    let last = moment(run(Duration::from_millis(args.need("--ms")))?)?;
    mark()?;
    Ok(json(&[
        ("seconds", (last.time - first.time).as_secs_f64()),
        ("connections", (last.moved[0][0] - first.moved[0][0]) as f64),
        ("cpu", (last.usage.cpu - first.usage.cpu) as f64 / 1e9),
        ("load_cpu", (last.own_cpu - first.own_cpu) as f64 / 1e9),
        ("peak", last.usage.peak as f64),
    ]))
}

fn main() -> ExitCode {
    let args = Args::new();
    let line = match args.need::<String>("--load").as_str() {
        "bulk" => bulk(&args),
        "packets" => ip(&args),
        "datagrams" => udp(&args),
        "ping-pong" => ping_pong(&args),
        "packet-ping-pong" => packet_ping_pong(&args),
        "idle" => idle(&args),
        "traffic" => traffic(&args),
        "short" => short(&args),
        load => error(format!("no load is named {load}")),
    };
    match line {
        Ok(line) => println!("{line}"),
        Err(err) => {
            eprintln!("{err}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
