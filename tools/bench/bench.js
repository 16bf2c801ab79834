'use strict';

// Runs the benchmark; tools/bench/run has made everything ready for it.

const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const readline = require('node:readline');
const { execFileSync, spawn } = require('node:child_process');
const { once } = require('node:events');
const { parseArgs } = require('node:util');
const { addBefore, contenders, load, repo, version, withDevice } = require('./contenders.js');
const { rows, stalled, targets } = require('./rows.js');
const report = require('./report.js');
const tunnel = require('./tunnel.js');

const work = process.env.BENCH_WORK;
const cert = path.join(work, 'cert.pem');
const key = path.join(work, 'key.pem');

function usageError(text) {
  console.error(`error: ${text} (see tools/bench/run --help)`);
  process.exit(2);
}

function options() {
  let values;
  let positionals;
  try {
    ({ values, positionals } = parseArgs({ allowPositionals: true, options: {
      'quick': { type: 'boolean', default: false },
      'check': { type: 'boolean', default: false },
      'save': { type: 'boolean', default: false },
      'list': { type: 'boolean', default: false },
      'rounds': { type: 'string' },
      'only': { type: 'string', multiple: true, default: [] },
      'before': { type: 'string' },
    } }));
  } catch (err) {
    usageError(err.message);
  }
  const rounds = Number(values.rounds ?? (values.quick ? 1 : 7));
  if (!Number.isInteger(rounds) || rounds < 1)
    usageError('--rounds takes a number');
  for (const name of positionals) {
    if (!rows[name])
      usageError(`no row is named ${name}`);
  }
  if (values.before) {
    addBefore(values.before);
    tunnel.addBefore(values.before);
  }
  for (const name of values.only) {
    if (!contenders[name] && !tunnel.tunnels[name])
      usageError(`no contender is named ${name}`);
  }
  // Where there are no TUN devices; tools/bench/run has said so.
  const possible = Object.values(rows).filter(({ endpoint }) => !endpoint.startsWith('tun') || process.env.BENCH_TUN);
  const wanted = possible.filter(({ name, quick, extra }) =>
    (positionals.length ? positionals.includes(name) : !extra && (quick || !values.quick)));
  return { ...values, rounds, wanted, complete: !positionals.length && !values.only.length };
}

const args = options();
const millis = args.quick ? 300 : 600;
const running = new Set();
// For rows about memory. How large the young generation has grown, and how far
// other threads have come with what gc() begins, is luck, and several KiB for each
// connection.
const exactMemory = ['--expose-gc', '--max-semi-space-size=1', '--single-threaded'];

// Of the whole process group, which each contender has to itself.
function kill(child) {
  try {
    process.kill(-child.pid, 'SIGKILL');
  } catch (err) {
    if (err.code !== 'ESRCH')
      throw err;
  }
  running.delete(child);
}

function start(command, stdio) {
  const [file, ...rest] = command.map(String);
  const child = spawn(file, rest, { stdio, detached: true });
  running.add(child);
  return child;
}

async function freePorts(n) {
  const servers = Array.from({ length: n }, () => net.createServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  const ports = servers.map((server) => server.address().port);
  await Promise.all(servers.map((server) => once(server.close(), 'close')));
  return ports;
}

async function prepare(dir, row) {
  fs.mkdirSync(dir);
  fs.writeFileSync(path.join(dir, 'both.pem'), fs.readFileSync(cert) + fs.readFileSync(key));
  const [port, plain] = await freePorts(2);
  const upstream = {
    tcp: () => `tcp:${plain}`,
    tls: () => `tls:${plain}`,
    unix: () => `unix:${dir}/socket`,
    fifo() {
      for (let i = 0; i < row.connections; i++)
        execFileSync('mkfifo', [`${dir}/in${i}`, `${dir}/out${i}`]);
      return `fifo:${dir}`;
    },
    // Of its own, since the one before may not be gone yet.
    tun: () => `tun:${deviceName()}`,
    udp: () => `udp:${plain}`,
  }[row.endpoint]();
  const { connections, delay, gc } = row;
  return { dir, port, upstream, cert, key, connections, delay, node: gc && exactMemory };
}

// A process and its children: some leave the work to those.
function family(pid) {
  const file = `/proc/${pid}/task/${pid}/children`;
  const children = fs.readFileSync(file, 'utf8').trim().split(' ').filter(Boolean);
  return [pid, ...children.flatMap(family)];
}

async function startTracing(pid, file) {
  const tracer = start(['strace', '-f', '-c', '-o', file, ...family(pid).flatMap((pid) => ['-p', pid])],
                       ['ignore', 'ignore', 'pipe']);
  const lines = readline.createInterface({ input: tracer.stderr });
  await once(lines, 'line');
  return tracer;
}

// The last line of strace's table is "100.00 SECONDS USECS CALLS [ERRORS] total".
async function stopTracing(tracer, file) {
  process.kill(tracer.pid, 'SIGINT');
  await once(tracer, 'exit');
  running.delete(tracer);
  return Number(/^\s*100\.00\s+\S+\s+\S+\s+(\d+).*total$/m.exec(fs.readFileSync(file, 'utf8'))[1]);
}

let runs = 0;

function deviceName() {
  return `tun${runs}`;
}

// A contender that is only just starting may drop its first connection.
async function measure(row, name, options) {
  if (row.endpoint === 'tunnel')
    return tunnel.measure(row, name, args.quick ? 1 : 4);
  for (let attempt = 1; ; attempt++) {
    try {
      return await tryToMeasure(row, name, options);
    } catch (err) {
      if (!err.early || attempt === 3)
        throw err;
    }
  }
}

// Measures one contender once. With `trace` its system calls are counted
// instead, which makes all other figures worthless.
async function tryToMeasure(row, name, { trace = false } = {}) {
  const dir = path.join(work, String(++runs));
  const to = await prepare(dir, row);
  const contender = contenders[name];
  const log = path.join(dir, 'log');
  const fd = fs.openSync(log, 'w');
  const command = contender.command(to);
  // Number 3 is for the device.
  const forwarder = start(row.endpoint === 'tun' ? withDevice(deviceName(), row.connections, command) : command,
                          ['ignore', fd, fd, 'ignore', ...contender.isNode ? ['ipc'] : []]);
  fs.closeSync(fd);
  const generator = start([
    load, ...row.load, '--connections', row.connections, '--port', to.port, '--plain', to.upstream,
    '--cert', cert, '--key', key,
    '--pid', forwarder.pid, '--ms', trace ? 200 : millis * (row.longer ?? 1),
  ], ['pipe', 'pipe', 'inherit']);
  const marks = [];
  let early = true;
  let tracer;
  let calls;
  let result;
  generator.stdin.on('error', () => {});
  // Without it there is nothing to wait for.
  forwarder.once('exit', () => kill(generator));
  const exited = once(generator, 'exit');
  for await (const line of readline.createInterface({ input: generator.stdout })) {
    if (line !== 'mark') {
      result = JSON.parse(line);
      continue;
    }
    early = false;
    if (trace) {
      const file = path.join(dir, 'strace');
      if (tracer)
        calls = await stopTracing(tracer, file);
      else
        tracer = await startTracing(forwarder.pid, file);
    } else if (contender.isNode && forwarder.connected) {
      forwarder.send('report');
      marks.push((await once(forwarder, 'message'))[0]);
    }
    generator.stdin.write('\n');
  }
  const [code] = await exited;
  running.delete(generator);
  forwarder.removeAllListeners('exit');
  kill(forwarder);
  if (code !== 0 || !result) {
    process.stderr.write(fs.readFileSync(log));
    throw Object.assign(new Error(`${row.name}, ${name}: the measurement failed`), { early });
  }
  fs.rmSync(dir, { recursive: true });
  return figures(result, marks.at(-1), calls);
}

function figures(result, last, calls) {
  const { seconds, bytes, cpu, load_cpu: loadCpu, slowest, memory, idle_memory: idleMemory, peak } = result;
  const { median, p99, each, trickle, burst, packets, connections } = result;
  const all = {
    // CPU-seconds per GB, MB/s, and what the load generator itself has used.
    cost: cpu / bytes * 1e9,
    rate: bytes / seconds / 1e6,
    load: loadCpu / bytes * 1e9,
    slowest,
    peak: peak / 2 ** 20,
    held: (memory - idleMemory) / stalled,
    median,
    p99,
    each,
    trickle,
    burst,
    loop: last?.loop,
    delay: last?.delay,
    buffered: last?.buffered,
    calls: calls / (bytes / 1e6),
    packetCost: cpu / packets * 1e6,
    packetRate: packets / seconds,
    packetCalls: calls / packets,
    // CPU-milliseconds.
    connectionCost: cpu / connections * 1e3,
    connectionRate: connections / seconds,
    connectionCalls: calls / connections,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => Number.isFinite(value)));
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length / 2;
  return (sorted[Math.ceil(half) - 1] + sorted[Math.floor(half)]) / 2;
}

// Results count that were measured while others had no more than 5 % of the machine, if there are any.
function undisturbed(results) {
  const clean = results.filter(({ others = 0 }) => others <= 0.05);
  return clean.length > 0 ? clean : results;
}

// The median of each figure by itself.
function medians(results) {
  const names = new Set(results.flatMap(Object.keys));
  return Object.fromEntries(Array.from(names, (name) =>
    [name, median(results.map((result) => result[name]).filter((value) => value !== undefined))]));
}

// How far results are apart: the largest less the smallest, as a part of the median. Nothing is said of a figure that
// was measured only once.
function spreads(results) {
  return Object.fromEntries(Object.entries(medians(results)).flatMap(([name, middle]) => {
    const values = results.map((result) => result[name]).filter((value) => value !== undefined);
    return values.length < 2 ? [] : [[name, (Math.max(...values) - Math.min(...values)) / middle]];
  }));
}

function progress(total) {
  const begin = Date.now();
  let shown = 0;
  let done = 0;
  return (text) => {
    const left = done ? Math.round((Date.now() - begin) / done * (total - done) / 1000) : undefined;
    const line = `[${++done}/${total}] ${text}${left === undefined ? '' : `, ${left} s left`}`;
    if (process.env.BENCH_TTY)
      process.stderr.write(`\r${line}\x1b[K${done === total ? '\r\x1b[K' : ''}`);
    else if (Date.now() - shown >= 20_000)
      process.stderr.write(`${line}\n`);
    else
      return;
    shown = Date.now();
  };
}

function machine() {
  const cpus = os.cpus();
  const system = /^PRETTY_NAME="(.*)"$/m.exec(fs.readFileSync('/etc/os-release', 'utf8'));
  return {
    cpu: cpus[0].model,
    cpus: cpus.length,
    memory: `${Math.round(os.totalmem() / 2 ** 30)} GiB`,
    kernel: os.release(),
    system: system?.[1],
    load: Number(os.loadavg()[0].toFixed(2)),
  };
}

function versions(names) {
  const list = Object.fromEntries(names.filter((name) => contenders[name]?.peer).map((name) => [name, version(name)]));
  return { node: process.version, openssl: version('floor'), ...list };
}

// Whether a contender is to take part. There may be no other build to be `before`.
function isWanted(name) {
  if (name === 'before' && !args.before)
    return false;
  return !args.only.length || args.only.includes(name);
}

// In a random order, so that no contender always comes right after the same other one, which may leave the machine in a
// state that is good or bad for the next.
function shuffled(names) {
  const places = new Map(names.map((name) => [name, Math.random()]));
  return names.toSorted((a, b) => places.get(a) - places.get(b));
}

// Whether a contender can take part here. It is said once why another one cannot.
const missing = new Set();
function isPossible({ endpoint }, name) {
  const why = endpoint === 'tunnel' ? tunnel.missing(name) : undefined;
  if (why === undefined)
    return true;
  if (!missing.has(name))
    console.error(`${name} is left out: ${why}`);
  missing.add(name);
  return false;
}

async function main() {
  if (args.list) {
    for (const { name, title } of Object.values(rows))
      console.log(`${name.padEnd(22)}${title}`);
    return;
  }
  const plan = args.wanted.map((row) => ({
    row,
    names: row.contenders.filter((name) => isWanted(name) && isPossible(row, name)),
    rounds: Math.min(args.rounds, row.rounds ?? Infinity),
  })).filter(({ names }) => names.length);
  const tracing = args.quick ? [] : plan.filter(({ row }) => row.syscalls);
  const count = (list) => list.reduce((sum, { names, rounds }) => sum + names.length * rounds, 0);
  const show = progress(count(plan) + count(tracing.map((item) => ({ ...item, rounds: 1 }))));
  const about = { date: new Date().toISOString().slice(0, 10), rounds: args.rounds, millis, machine: machine(),
                  versions: versions([...new Set(plan.flatMap(({ names }) => names))]) };

  // In the order of rows.js, which is that of the tables.
  const results = Object.fromEntries(plan.map(({ row, names }) =>
    [row.name, Object.fromEntries(names.map((name) => [name, []]))]));
  const add = (row, name, figures) => results[row.name][name].push(figures);
  for (let round = 0; round < args.rounds; round++) {
    for (const { row, names, rounds } of plan) {
      if (round >= rounds)
        continue;
      for (const name of shuffled(names)) {
        show(`round ${round + 1}: ${row.title}, ${name}`);
        add(row, name, await measure(row, name));
      }
    }
  }
  for (const { row, names } of tracing) {
    for (const name of names) {
      show(`system calls: ${row.title}, ${name}`);
      const { calls, packetCalls, connectionCalls } = await measure(row, name, { trace: true });
      add(row, name, packetCalls !== undefined ? { packetCalls } :
        connectionCalls !== undefined ? { connectionCalls } : { calls });
    }
  }
  // Of each contender of each row.
  const summarize = (summary) => Object.fromEntries(Object.entries(results).map(([row, list]) =>
    [row, Object.fromEntries(Object.entries(list).map(([name, list]) => [name, summary(undisturbed(list))]))]));
  const run = { about, medians: summarize(medians), spreads: summarize(spreads), results };
  run.targets = targets((row, name, figure) => run.medians[row]?.[name]?.[figure] ?? NaN);
  console.log(report.markdown(run));
  if (args.save) {
    const dir = path.join(repo, 'tools/bench/results');
    fs.mkdirSync(dir, { recursive: true });
    report.save(dir, run);
    for (const file of ['README.md', 'node-patches/PROPOSAL.md'])
      report.writeBrief(path.join(repo, file), run);
  }
  if (args.check && run.targets.some(({ binding, met }) => binding && !met))
    process.exitCode = 1;
}

process.on('exit', () => {
  running.forEach(kill);
  tunnel.close();
});
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'])
  process.on(signal, () => process.exit(130));
// The namespaces of the tunnels would keep it running.
main().finally(tunnel.close).catch((err) => {
  console.error(err.message);
  process.exit(1);
});
