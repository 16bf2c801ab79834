'use strict';

// The rows tunnel-*: whole tunnels between two network namespaces, of which each end has a TUN device, and what people
// send through them. Both ends are measured.

const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { createHash, randomBytes } = require('node:crypto');
const { once } = require('node:events');
const { performance } = require('node:perf_hooks');
const { kExec, kRepo, killAll, setUp, start, tearDown } = require('../../test/tun/net.js');

const work = process.env.BENCH_WORK;
const relay = path.join(process.env.BENCH_NATIVE, 'tun-relay');
const script = path.join(__dirname, 'tunnel-end.js');

// What an end is: flags of tun-exec, and a command. With `isHost` it opens a device of its own.
const node = (binary, script) => [`${kRepo}/out/${binary}`, '--no-warnings', script];
const host = (binary) => ({ isHost: true, device: [], command: node(binary, `${work}/tunnel-host.js`) });
const ends = {
  'relay': { device: [], command: [relay] },
  'relay-offload': { device: ['--vnet-hdr'], command: [relay, '--offload'] },
  'splice': { device: [], command: node('node', script) },
  'splice-offload': { device: ['--offload'], command: node('node', script) },
  'native': host('node-stock'),
  'adapter': host('node'),
  'ios': { device: [], command: node('node', path.join(__dirname, 'tunnel-device.js')) },
};

// What the end that connects, and sends, is, and the end that listens.
const both = (end) => ({ sender: end, receiver: end });
const tunnels = {
  'relay': both('relay'),
  'relay-offload': both('relay-offload'),
  'relay-sends': { sender: 'relay-offload', receiver: 'relay' },
  'relay-receives': { sender: 'relay', receiver: 'relay-offload' },
  'splice': both('splice'),
  'splice-offload': both('splice-offload'),
  'splice-sends': { sender: 'splice-offload', receiver: 'splice' },
  'splice-receives': { sender: 'splice', receiver: 'splice-offload' },
  'native': { sender: 'native', receiver: 'ios' },
  'adapter': { sender: 'adapter', receiver: 'ios' },
};

// Splices of another build take part, as `before`.
function addBefore(file) {
  ends.before = { device: [], command: [file, '--no-warnings', script] };
  tunnels.before = both('before');
}

// Why a tunnel cannot be had here, if it cannot.
function missing(name) {
  const { isHost } = ends[tunnels[name].sender];
  return isHost && !process.env.BENCH_APPIUM ? 'its packages cannot be had from npm' : undefined;
}

// CPU-seconds of all threads of a process so far.
function cpuOf({ child: { pid } }) {
  const threads = fs.readdirSync(`/proc/${pid}/task`);
  const nanoseconds = threads.map((thread) =>
    Number(fs.readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]));
  return nanoseconds.reduce((a, b) => a + b) / 1e9;
}

// CPU-seconds that the machine was busy so far, and those that its host has given to others.
function cpuOfMachine() {
  const { 1: line } = /^cpu +(.*)$/m.exec(fs.readFileSync('/proc/stat', 'utf8'));
  const [user, nice, system, , , irq, softirq, stolen] = line.split(' ').map((ticks) => Number(ticks) / 100);
  return { busy: user + nice + system + irq + softirq, stolen };
}

// Where the end that connects finds the packages.
function prepareHost() {
  if (fs.existsSync(`${work}/node_modules`))
    return;
  fs.symlinkSync(process.env.BENCH_APPIUM, `${work}/node_modules`);
  fs.copyFileSync(`${__dirname}/tunnel-host.js`, `${work}/tunnel-host.js`);
  fs.copyFileSync(`${kRepo}/tools/examples/appium-forwarder.js`, `${work}/appium-forwarder.js`);
}

let network;
async function open(row, name) {
  network ??= setUp();
  await network;
  const env = {
    APPIUM_TUNTAP_MTU_REQUEST_SIZE: `${row.mtu}`, ...(row.busy && { BUSY: '1' }), ...(row.single && { SINGLE: '1' }),
  };
  const end = (ns, kind, address, ...role) => {
    const { device, command, isHost } = ends[kind];
    if (isHost)
      return start(ns, [...command, ...role], env);
    const prepare = 'ip link set tun addrgenmode none; ip link set tun mtu "$1" up; ip address add $2 dev tun; ' +
                    'shift 2; exec "$@"';
    return start(ns, [kExec, ...device, '--name', 'tun', 'sh', '-ec', prepare, '-', `${row.mtu}`, address,
                      ...command, ...role], env);
  };
  const { sender, receiver } = tunnels[name];
  if (ends[sender].isHost)
    prepareHost();
  const certificate = [`${work}/cert.pem`, `${work}/key.pem`];
  const { 0: listens, 1: connects } = addresses(row);
  const listening = end('a', receiver, listens, 'listen', '192.0.2.1', '4433', ...certificate);
  await listening.next(/^listening/);
  // A host shows its certificate to the device.
  const connecting = end('b', sender, connects, 'connect', '192.0.2.1', '4433',
                         ...(ends[sender].isHost ? certificate : []));
  await Promise.all([listening.next(/^up/), connecting.next(/^up/)]);
  return { sender: connecting, receiver: listening, to: addresses(row)[2] };
}

const sha = (bytes) => createHash('sha256').update(bytes).digest('hex');

// Of both devices, as ip-address(8) takes them, and of what listens for the transfers. A host sets its own.
function addresses({ ipv6 }) {
  if (ipv6)
    return ['fd12::1 peer fd12::2 nodad', 'fd12::2 peer fd12::1 nodad', 'fd12::1'];
  return ['10.0.0.1/24', '10.0.0.2/24', '10.0.0.1'];
}

// Bytes to the other side and back: compared.
async function verify(to) {
  const file = path.join(work, 'random');
  if (!fs.existsSync(file))
    fs.writeFileSync(file, randomBytes(8 << 20));
  const expected = sha(fs.readFileSync(file));
  const server = net.createServer({ allowHalfOpen: true }).listen(0, to);
  await once(server, 'listening');
  const there = start('b', ['bash', '-ec', 'exec 3<>"/dev/tcp/$1/$2"; cat "$3" >&3 & sha256sum <&3; wait', '-',
                            to, `${server.address().port}`, file]);
  const { 0: socket } = await once(server, 'connection');
  socket.end(fs.readFileSync(file));
  const chunk = Buffer.alloc(8 << 20);
  let length = 0;
  for await (const bytes of socket)
    length += bytes.copy(chunk, length);
  const output = await there.done();
  server.close();
  if (sha(chunk.subarray(0, length)) !== expected || !output.startsWith(expected))
    throw new Error('what arrives is not what was sent');
}

async function iperf(to, seconds, ...args) {
  const server = start('a', ['iperf3', '-s', '-1', '--forceflush']);
  await server.next(/^Server listening/);
  const client = start('b', ['iperf3', '-J', '-c', to, '-t', `${seconds}`, ...args]);
  const output = await client.done();
  await server.done();
  return JSON.parse(output.slice(output.indexOf('{'))).end;
}

// The figures of one transfer, of which `figuresOf` gives those that are not about CPU time.
async function transfer({ sender, receiver, to }, seconds, args, figuresOf) {
  const now = () => ({
    time: performance.now(), sender: cpuOf(sender), receiver: cpuOf(receiver), machine: cpuOfMachine(),
  });
  const before = now();
  const end = await iperf(to, seconds, ...args);
  const after = now();
  const elapsed = (after.time - before.time) / 1e3;
  const used = { sender: after.sender - before.sender, receiver: after.receiver - before.receiver };
  const busy = after.machine.busy - before.machine.busy;
  const stolen = after.machine.stolen - before.machine.stolen;
  const { host_total: client, remote_total: server } = end.cpu_utilization_percent;
  const own = used.sender + used.receiver + (client + server) / 100 * seconds;
  return {
    ...figuresOf(end, used, busy),
    others: Math.max(0, busy + stolen - own) / (elapsed * os.cpus().length),
  };
}

// In milliseconds there, microseconds here.
async function ping(to, seconds) {
  const interval = 0.005;
  const output = await start('b', ['ping', '-n', '-c', `${Math.round(seconds / interval)}`, '-i', `${interval}`,
                                   to]).done();
  const times = Array.from(output.matchAll(/ time=([\d.]+) ms$/gm), ({ 1: time }) => Number(time) * 1e3);
  times.sort((a, b) => a - b);
  const at = (part) => times[Math.floor(times.length * part)];
  const average = times.reduce((a, b) => a + b) / times.length;
  return { average, median: at(0.5), p99: at(0.99), maximum: times.at(-1) };
}

// How many milliseconds it takes until the host's program is told that the device is gone. It says so behind what the
// package logs, perhaps in the same line.
async function die({ sender: host, receiver: device }) {
  const told = host.next(/dead: /);
  const begin = performance.now();
  device.child.kill('SIGTERM');
  await told;
  return { noticed: performance.now() - begin };
}

// What the end of the host costs. Which end sends is told by the arguments of iperf3.
const hostLoads = {
  tcp: (tunnel, seconds, args) => transfer(tunnel, seconds, args, (end, { sender: host }) => {
    const { bytes, bits_per_second: rate } = end.sum_received;
    return { cost: host / bytes * 1e9, gbits: rate / 1e9 };
  }),
  udp: (tunnel, seconds, args) => transfer(tunnel, seconds, ['-u', '-b', '0', ...args], (end, { sender: host }) => {
    const count = end.sum_received.packets - end.sum_received.lost_packets;
    return { packetRate: count / seconds, packetCost: host / count * 1e6 };
  }),
  dead: die,
};

const loads = {
  tcp: (tunnel, seconds, args) => transfer(tunnel, seconds, args, (end, { sender, receiver }, busy) => {
    const { bytes, bits_per_second: rate } = end.sum_received;
    const perGB = (value) => value / bytes * 1e9;
    return {
      ends: perGB(sender + receiver), sender: perGB(sender), receiver: perGB(receiver), machine: perGB(busy),
      gbits: rate / 1e9, retransmits: end.sum_sent.retransmits,
    };
  }),
  udp: (tunnel, seconds, args) => transfer(tunnel, seconds, ['-u', '-b', '0', ...args], (end, { sender, receiver }) => {
    // In `sum` those are counted that were sent.
    const count = end.sum_received.packets - end.sum_received.lost_packets;
    return { packetRate: count / seconds, packetCost: (sender + receiver) / count * 1e6 };
  }),
  ping: ({ to }, seconds) => ping(to, seconds),
  async 'ping-loaded'({ to }, seconds) {
    const { 1: figures } = await Promise.all([iperf(to, seconds + 1), ping(to, seconds)]);
    return figures;
  },
};

async function measure(row, name, seconds) {
  try {
    const tunnel = await open(row, name);
    await verify(tunnel.to);
    const load = (ends[tunnels[name].sender].isHost && hostLoads[row.traffic]) || loads[row.traffic];
    return await load(tunnel, seconds, row.args ?? []);
  } finally {
    await killAll();
  }
}

function close() {
  if (network)
    tearDown();
}

module.exports = { addBefore, close, measure, missing, tunnels };
