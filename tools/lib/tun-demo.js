'use strict';

// Run by tools/demo --tun in a network namespace: tunnels of four kinds, the work that they do and what it costs.
// usage: node tun-demo.js ROUNDS SECONDS RELAY, the last being tun-relay.c compiled

const { randomBytes } = require('crypto');
const fs = require('fs');
const os = require('os');
const path = require('path');

const { kExec, kRepo, killAll, run, setUp, start, tearDown } = require('../../test/tun/net');

const { 2: rounds, 3: seconds, 4: relay } = process.argv;
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'tun-'));
const measure = `${__dirname}/measure.cjs`;
const examples = `${kRepo}/tools/examples`;
const spliced = [`${kRepo}/out/node`, '--require', measure, `${examples}/tun-tunnel.js`];
// The flags are those of tun-exec, at both ends.
const kinds = {
  'spliced, --offload': { flags: ['--offload'], command: spliced },
  'spliced': { flags: [], command: spliced },
  'JavaScript': {
    flags: [],
    // Debian's, which is the same version.
    command: ['/usr/bin/node', '--require', measure, `${examples}/tun-tunnel-pipe.js`],
  },
  'C': { flags: [], command: [relay] },
};
const env = {
  TLS_PSK: randomBytes(32).toString('hex'),
  TLS_CIPHERS: 'PSK-AES256-GCM-SHA384',
  NODE_NO_WARNINGS: '1',
};

function end(ns, address, flags, command, more) {
  const script = `ip link set tun mtu 1400 up; ip address add ${address}/24 dev tun; exec "$@"`;
  return start(ns, [kExec, '--name', 'tun', ...flags, 'sh', '-ec', script, '-', ...command], { ...env, ...more },
               'pipe');
}

// CPU-seconds of a process so far.
function cpu({ child }) {
  const { 1: rest } = fs.readFileSync(`/proc/${child.pid}/stat`, 'utf8').split(') ');
  const fields = rest.split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

// Seconds that its event loop was busy since it was asked the last time.
async function busy(name, tunnel, file) {
  if (name === 'C')
    return NaN;
  fs.rmSync(file, { force: true });
  tunnel.child.stdin.write('\n');
  for (;;) {
    try {
      return JSON.parse(fs.readFileSync(file, 'utf8')).loop;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

async function iperf(...args) {
  const server = start('a', ['iperf3', '-s', '-1', '--forceflush']);
  await server.next(/^Server listening/);
  const output = await start('b', ['iperf3', '-J', '-c', '10.0.0.1', '-t', seconds, ...args]).done();
  await server.done();
  return JSON.parse(output.slice(output.indexOf('{'))).end;
}

// The average of what comes back, and all of it must.
function pinged() {
  const output = run('b', ['ping', '-n', '-q', '-c', '200', '-i', '0.002', '-s', '1372', '10.0.0.1']);
  const time = / 0% packet loss[^]*= [\d.]+\/([\d.]+)\//.exec(output);
  if (!time)
    throw new Error(output);
  return Number(time[1]);
}

// One kind, at the connecting side in namespace b: both directions.
async function round(name) {
  const { flags, command } = kinds[name];
  const listen = [`${kRepo}/out/node`, `${examples}/tun-tunnel.js`, 'listen', '192.0.2.1', '4433'];
  const peer = end('a', '10.0.0.1', flags, listen);
  await peer.next(/^listening/);
  const file = `${work}/measured`;
  const tunnel = end('b', '10.0.0.2', flags, [...command, 'connect', '192.0.2.1', '4433'], { MEASURE: file });
  await tunnel.next(/^up/);
  const result = { 'ping, ms there and back': pinged() };
  for (const { direction, reverse } of [
    { direction: 'decrypt', reverse: ['-R'] },
    { direction: 'encrypt', reverse: [] },
  ]) {
    const { sum_received: tcp } = await iperf(...reverse);
    result[`${direction}, Mbit/s (TCP)`] = tcp.bits_per_second / 1e6;
    await busy(name, tunnel, file);
    const before = { cpu: cpu(tunnel), time: process.hrtime.bigint() };
    const { sum: udp } = await iperf('-u', '-b', '200M', '-l', '1372', ...reverse);
    const used = cpu(tunnel) - before.cpu;
    // Those that have arrived. The counters of a device count a super-packet as one.
    const count = udp.packets - udp.lost_packets;
    const elapsed = Number(process.hrtime.bigint() - before.time) / 1e9;
    result[`${direction}, packets/s (UDP)`] = count / elapsed;
    result[`${direction}, CPU-seconds per million packets`] = used / count * 1e6;
    result[`${direction}, event loop busy %`] = await busy(name, tunnel, file) / elapsed * 100;
  }
  await killAll();
  return result;
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

async function main() {
  await setUp();
  const results = Object.fromEntries(Object.keys(kinds).map((name) => [name, []]));
  // In turns, so that what else the machine does falls on each.
  for (let i = 0; i < rounds; i++) {
    for (const name of Object.keys(kinds))
      results[name].push(await round(name));
  }
  tearDown();
  fs.rmSync(work, { recursive: true });

  const names = Object.keys(kinds);
  console.log(`| 1400-byte packets | ${names.join(' | ')} | spliced : JavaScript |`);
  console.log(`|---|${'---|'.repeat(names.length + 1)}`);
  for (const row of Object.keys(results.spliced[0])) {
    const values = names.map((name) => median(results[name].map((result) => result[row])));
    const texts = values.map((value) => (Number.isNaN(value) ? '' : value.toFixed(value < 100 ? 2 : 0)));
    const ratio = values[names.indexOf('spliced')] / values[names.indexOf('JavaScript')];
    console.log(`| ${row} | ${texts.join(' | ')} | ${ratio.toFixed(2)} |`);
  }
}

main();
