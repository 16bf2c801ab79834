'use strict';

// What is measured, and which figures the issue of the benchmark asks for.

const peers = ['nginx', 'haproxy', 'hitch', 'socat', 'stunnel'];
const everybody = ['floor', 'splice', 'splice-fd', 'pipe', 'pipeline', ...peers];

const bulk = (direction, ...more) => ['--load', 'bulk', '--direction', direction, ...more];

// `load` is for the load generator, without its `connections`. `quick` rows are in
// a --quick run, and `extra` ones only in a run that names them. `rounds` is a
// limit, for figures that vary little.
const rows = {};

function row(name, title, load, contenders, more) {
  rows[name] = { name, title, load, contenders, endpoint: 'tcp', quick: true, connections: 1, ...more };
}

row('decrypt', 'decrypt, 16 KiB records', bulk('decrypt'), everybody, { syscalls: true });
row('encrypt', 'encrypt, 16 KiB records', bulk('encrypt'), everybody, { syscalls: true });
row('small', 'decrypt, 1400 B records', bulk('decrypt', '--record', 1400), everybody, { syscalls: true });
row('duplex', 'duplex, 16 KiB records', bulk('duplex'), everybody, { syscalls: true });

// From one TLS connection to another: the same bytes are decrypted and encrypted.
row('tls-to-tls', 'TLS to TLS, 16 KiB records', bulk('decrypt'),
    ['floor', 'splice', 'pipe', 'pipeline', 'nginx', 'haproxy'], { endpoint: 'tls', syscalls: true });
row('tls-to-tls-duplex', 'TLS to TLS, duplex, 16 KiB records', bulk('duplex'),
    ['floor', 'splice', 'pipe', 'nginx'], { endpoint: 'tls' });

const ways = ['decrypt', 'encrypt'];
for (const direction of ways) {
  row(`pipe-${direction}`, `${direction}, 16 KiB records, pipe`, bulk(direction),
      ['floor', 'splice-fd', 'pipe'], { endpoint: 'fifo', rounds: 3 });
  row(`unix-${direction}`, `${direction}, 16 KiB records, Unix socket`, bulk(direction),
      ['floor', 'splice-fd', 'pipe'], { endpoint: 'unix', rounds: 3 });
}

row('paced', 'duplex, 200 Mbit/s each way in 1400 B records',
    bulk('duplex', '--record', 1400, '--rate', 200e6 / 8),
    ['floor', 'splice', 'splice-fd', 'pipe', 'pipeline']);
// Each packet is for itself when they come one by one: a record of its own, and
// the forwarder is woken for one or a few.
const packetLoad = (direction, ...more) => ['--load', 'packets', '--direction', direction, ...more];
for (const way of ways) {
  row(`tun-${way}`, `${way}, IP packets of 1400 B, TUN device`, packetLoad(way),
      ['floor', 'splice', 'pipe', 'pipe-fs'], { endpoint: 'tun', syscalls: true });
  row(`tun-${way}-paced`, `${way}, 200 Mbit/s of IP packets of 1400 B, TUN device`,
      packetLoad(way, '--record', 1400, '--rate', 200e6 / 8),
      ['floor', 'splice', 'pipe', 'pipe-fs'], { endpoint: 'tun', rounds: 3 });
}

// Datagrams of 1400 B behind a length of two bytes each, eleven in a record.
for (const way of ways) {
  row(`udp-${way}`, `${way}, datagrams of 1400 B, UDP socket`, ['--load', 'datagrams', '--direction', way],
      ['splice', 'before', 'pipe'], { endpoint: 'udp', syscalls: true });
}

// Tunnels as a whole, with a TUN device at each end. Those with super-packets are named *-offload, or by the end that
// has them. `mtu` is the devices', `traffic` one of tunnel.js.
const tunnelRow = (name, title, traffic, contenders, more) =>
  row(`tunnel-${name}`, title, undefined, contenders, { endpoint: 'tunnel', mtu: 1400, traffic, ...more });
const tunnels = ['relay', 'relay-offload', 'splice', 'splice-offload', 'before'];
for (const mtu of [1400, 1280])
  tunnelRow(`${mtu}`, `tunnel, iperf3 (TCP), MTU ${mtu}`, 'tcp', tunnels, { mtu });
tunnelRow('mixed', 'tunnel, iperf3 (TCP), MTU 1400, one end with super-packets', 'tcp',
          ['relay', 'relay-sends', 'relay-receives', 'splice', 'splice-sends', 'splice-receives']);
tunnelRow('udp', 'tunnel, iperf3 (UDP), one packet per system call', 'udp', tunnels, { args: ['-l', '1372'] });
tunnelRow('udp-segments', 'tunnel, iperf3 (UDP), with UDP_SEGMENT', 'udp', tunnels, { args: ['-l', '1372', '--gsro'] });
tunnelRow('ping', 'tunnel, ping', 'ping', tunnels);
tunnelRow('ping-loaded', 'tunnel, ping beside iperf3 (TCP)', 'ping-loaded', tunnels);

// The tunnel of appium-ios-tuntap to an iOS device, by its own forwarder in C++, and by appium-forwarder.js. The end of
// the host is measured.
const nativeRow = (name, title, traffic, { others = [], ...more } = {}) =>
  tunnelRow(`native-${name}`, `tunnel to an iOS device, ${title}`, traffic, ['native', 'adapter', ...others],
            { mtu: 1280, ipv6: true, quick: false, ...more });
// One that a device takes, too.
const kLargeMtu = 16000;
nativeRow('up', 'iperf3 (TCP) from the host', 'tcp');
nativeRow('down', 'iperf3 (TCP) to the host', 'tcp', { args: ['-R'] });
nativeRow(`up-${kLargeMtu}`, `iperf3 (TCP) from the host, MTU ${kLargeMtu}`, 'tcp', { mtu: kLargeMtu });
nativeRow(`down-${kLargeMtu}`, `iperf3 (TCP) to the host, MTU ${kLargeMtu}`, 'tcp', { mtu: kLargeMtu, args: ['-R'] });
nativeRow('single', 'iperf3 (TCP) to the host, one packet per record', 'tcp', { args: ['-R'], single: true });
nativeRow('udp', 'iperf3 (UDP) to the host, one packet per record', 'udp', {
  args: ['-R', '-l', '1232'], single: true,
});
nativeRow('ping', 'ping', 'ping', { others: ['relay'] });
nativeRow('busy', 'ping, the main thread blocked for 300 ms of 600', 'ping', { busy: true });
nativeRow('dead', 'until the host knows that the device is gone', 'dead');

row('delay', 'duplex, 16 KiB records, with the event loop watched', bulk('duplex'),
    ['splice', 'splice-fd', 'pipe', 'pipeline'], { delay: true, rounds: 3 });
row('ping-pong', 'one byte there and back', ['--load', 'ping-pong'], ['floor', 'splice', 'splice-fd', 'pipe', 'nginx']);

// It takes a while until TCP's windows have grown, and the share of each shows.
const scales = [1, 8, 64, 512];
for (const n of scales) {
  row(`scale-${n}`, `decrypt, ${n} connection${n > 1 ? 's' : ''}`,
      bulk('decrypt', '--warm-up', 1000), n === 1 ? ['floor', 'splice', 'before'] : ['floor', 'splice'],
      { connections: n, longer: 2, rounds: 3 });
}

// How long a turn of the event loop becomes when all of many splices are busy.
const busy = 200;
for (const way of ways) {
  const load = bulk(way, '--warm-up', 1000);
  for (const [name, title, endpoint, splice] of [
    ['many', 'TCP', 'tcp', 'splice'],
    ['many-unix', 'Unix sockets', 'unix', 'splice-fd'],
    ['many-pipe', 'pipes', 'fifo', 'splice-fd'],
  ]) {
    row(`${name}-${way}`, `${way}, ${busy} busy connections, ${title}, with the event loop watched`, load,
        [splice, 'pipe'], { endpoint, connections: busy, delay: true, quick: false, longer: 2, rounds: 3 });
  }
  row(`many-tun-${way}`, `${way}, ${busy} busy connections, queues of a TUN device, with the event loop watched`,
      packetLoad(way, '--warm-up', 1000), ['splice', 'pipe'],
      { endpoint: 'tun', connections: busy, delay: true, quick: false, longer: 2, rounds: 3 });
}

// Threads.
row('workers', 'decrypt, 16 connections, in Workers', bulk('decrypt', '--warm-up', 500),
    ['splice', 'workers-1', 'workers-2', 'workers-4', 'pipe', 'pipe-workers-2', 'nginx-2', 'haproxy-2'],
    { connections: 16, quick: false });
row('workers-delay', 'duplex, 16 connections, with the event loop of the main thread watched', bulk('duplex'),
    ['splice', 'workers-2', 'beside-workers-2'], { connections: 16, delay: true, quick: false, rounds: 3 });
const computing = ['splice', 'splice-computing', 'workers-1', 'worker-computing'];
for (const way of ways) {
  row(`tunnel-busy-${way}`, `${way}, IP packets, while the main thread computes`, packetLoad(way), computing,
      { endpoint: 'tun', quick: false, rounds: 3 });
}
// At a rate: a computation that nothing is sent in could not delay it.
row('tunnel-busy-ping', 'one packet there and back, 500 times a second, while the main thread computes',
    ['--load', 'packet-ping-pong', '--rate', 500], computing, { endpoint: 'tun', quick: false, longer: 2, rounds: 3 });

// One after the other, warm. What differs is the handshake.
for (const [name, title, ...more] of [
  ['short', 'full handshakes'],
  ['short-resumed', 'resumed sessions', '--resume'],
]) {
  row(name, `short connections, ${title}`, ['--load', 'short', '--warm-up', 3000, ...more],
      ['floor', 'splice', 'splice-fd', 'before', 'pipe', 'pipeline', 'nginx', 'haproxy'],
      { quick: false, syscalls: true, longer: 4 });
}

row('idle', 'idle connections', ['--load', 'idle'], ['none', 'splice', 'splice-fd', 'before', 'pipe'],
    { connections: 1000, gc: true });
// With the tenth more that is made, these are as many as 20,000 descriptors allow.
row('crowd', '8,000 connections, at first idle', ['--load', 'traffic'],
    ['splice', 'before', 'pipe', 'nginx', 'haproxy'], { connections: 8000, gc: true, quick: false, rounds: 1 });

const stalled = 64;
const highWaterMark = 262144;
row('stall-decrypt', `decrypt, ${stalled} stalled endpoints`,
    bulk('decrypt', '--stall'), ['splice', 'splice-fd', 'pipe'], { connections: stalled, gc: true, rounds: 3 });
row('stall-encrypt', `encrypt, ${stalled} stalled TLS peers`,
    bulk('encrypt', '--stall'), ['splice', 'splice-fd', 'pipe'], { connections: stalled, gc: true, rounds: 3 });

const recordSizes = [64, 256, 1400, 4096, 16384];
const recordRow = (size) => ({ 1400: 'small', 16384: 'decrypt' })[size] ?? `record-${size}`;
for (const size of recordSizes) {
  if (!rows[recordRow(size)]) {
    row(recordRow(size), `decrypt, ${size} B records`, bulk('decrypt', '--record', size),
        ['floor', 'splice', 'pipe', 'nginx', 'haproxy'], { quick: false, rounds: 3 });
  }
}

for (const gigabytes of [1, 100]) {
  row(`long-${gigabytes}`, `decrypt, ${gigabytes} GB in one splice`, bulk('decrypt', '--bytes', gigabytes * 1e9),
      ['splice'], { extra: true, rounds: 1 });
}

// The targets. `of` is a function that gives one result's figure, or NaN when
// it was not measured.
function targets(of) {
  const list = [];
  // `floor` is what the floor has in place of the splice. It is told where it
  // misses the target, too.
  const add = (what, value, limit, { unit = 'x', binding = true, atLeast = false, floor = NaN } = {}) => {
    if (Number.isNaN(value))
      return;
    const meets = (value) => (atLeast ? value >= limit : value <= limit);
    list.push({ what, value, limit, unit, binding, met: meets(value), atLeast,
                floor: Number.isNaN(floor) || meets(floor) ? undefined : floor });
  };
  // To the best of the others. `bindsWithFloor` is for targets that bind only where
  // the floor meets them.
  const addRatio = (what, figure, row, own, others, limit, { binding = true, bindsWithFloor = false } = {}) => {
    const best = Math.min(...others.map((name) => of(row, name, figure)).filter((value) => !Number.isNaN(value)));
    if (!Number.isFinite(best))
      return;
    const floor = of(row, 'floor', figure) / best;
    add(what, of(row, own, figure) / best, limit, { binding: binding && (!bindsWithFloor || floor <= limit), floor });
  };
  const cost = (row, name) => of(row, name, 'cost');
  for (const splice of ['splice', 'splice-fd']) {
    for (const [row, toPeer, toPipe] of [
      ['decrypt', 0.95, 0.40],
      ['encrypt', 0.90, 0.55],
      ['small', 0.90, 0.20],
      ['duplex', 0.95, 0.50],
      ['tls-to-tls', 0.95, 0.55],
    ]) {
      const what = `${rows[row].title}, CPU of ${splice} to`;
      addRatio(`${what} the floor's`, 'cost', row, splice, ['floor'], 1.05);
      addRatio(`${what} the best peer's`, 'cost', row, splice, peers, toPeer, { bindsWithFloor: true });
      addRatio(`${what} pipe()'s`, 'cost', row, splice, ['pipe'], toPipe);
    }
    addRatio(`paced, CPU of ${splice} to the floor's`, 'cost', 'paced', splice, ['floor'], 1.10, { binding: false });
    add(`paced, event loop's use of ${splice} to pipe()'s`,
        of('paced', splice, 'loop') / of('paced', 'pipe', 'loop'), 0.25);
    add(`saturated, event-loop delay p99 with ${splice}`, of('delay', splice, 'delay'), 5, { unit: ' ms' });
    add(`saturated, event-loop delay p99 with ${splice} to pipe()'s`,
        of('delay', splice, 'delay') / of('delay', 'pipe', 'delay'), 1);
    add(`ping-pong, median of ${splice} to pipe()'s`,
        of('ping-pong', splice, 'median') / of('ping-pong', 'pipe', 'median'), 0.7);
    add(`ping-pong, median of ${splice} to nginx's`,
        of('ping-pong', splice, 'median') / of('ping-pong', 'nginx', 'median'), 1.2);
    add(`idle, memory of one ${splice}`, (of('idle', splice, 'each') - of('idle', 'none', 'each')) / 1024, 4,
        { unit: ' KiB' });
    for (const row of ['short', 'short-resumed'])
      addRatio(`${rows[row].title}, CPU of ${splice} to pipe()'s`, 'connectionCost', row, splice, ['pipe'], 0.85);
    for (const row of ['stall-decrypt', 'stall-encrypt']) {
      add(`${rows[row].title}, memory of one ${splice}`, of(row, splice, 'held') / 1024, highWaterMark / 1024 + 128,
          { unit: ' KiB' });
    }
  }
  for (const [figure, when] of [['each', 'idle'], ['trickle', 'after a trickle'], ['burst', 'after a burst']]) {
    add(`${rows.crowd.title}, memory of one splice and its socket, ${when}`,
        of('crowd', 'splice', figure) / 1024, 45, { unit: ' KiB' });
  }
  for (const row of ['decrypt', 'encrypt', 'duplex']) {
    add(`${rows[row].title}, CPU of splice to that of splice-fd`, cost(row, 'splice') / cost(row, 'splice-fd'), 1.05);
  }
  for (const [other, limit, more] of [['floor', 1.10, { binding: false }], ['nginx', 1.00], ['pipe', 0.55]]) {
    addRatio(`${rows['tls-to-tls-duplex'].title}, CPU of splice to that of ${other}`, 'cost', 'tls-to-tls-duplex',
             'splice', [other], limit, more);
  }
  for (const [endpoint, name] of [['pipe', 'a pipe'], ['unix', 'a Unix socket']]) {
    for (const way of ways) {
      const what = `${way}, ${name}, CPU of splice-fd to`;
      const row = `${endpoint}-${way}`;
      addRatio(`${what} pipe()'s`, 'cost', row, 'splice-fd', ['pipe'], 0.5);
      addRatio(`${what} the floor's`, 'cost', row, 'splice-fd', ['floor'], 1.1, { binding: false });
    }
  }
  for (const way of ways) {
    for (const [row, binding] of [[`tun-${way}`, true], [`tun-${way}-paced`, false]]) {
      const what = `${rows[row].title}, CPU of splice to`;
      addRatio(`${what} the floor's`, 'packetCost', row, 'splice', ['floor'], 1.10, { binding });
      addRatio(`${what} pipe()'s`, 'packetCost', row, 'splice', ['pipe'], 0.25, { binding });
    }
  }
  for (const way of ways) {
    const what = `${rows[`udp-${way}`].title}, CPU of splice to`;
    addRatio(`${what} what it was before`, 'packetCost', `udp-${way}`, 'splice', ['before'], 0.6);
  }
  for (const row of ['tunnel-1400', 'tunnel-1280']) {
    const { title } = rows[row];
    const ratio = (figure, own, other) => of(row, own, figure) / of(row, other, figure);
    const [own, old, offload] = ['splice', 'before', 'splice-offload'];
    add(`${title}, CPU of ${offload} to what it was before`, ratio('ends', offload, old), 0.40);
    add(`${title}, Gbit/s of ${offload} to what it was before`, ratio('gbits', offload, old), 2.5, { atLeast: true });
    add(`${title}, CPU of ${offload} to that of relay-offload`, ratio('ends', offload, 'relay-offload'), 1.10);
    add(`${title}, CPU of ${own} to that of relay`, ratio('ends', own, 'relay'), 1.08);
    add(`${title}, Gbit/s of relay to that of ${own}`, ratio('gbits', 'relay', own), 1.08);
  }
  const mixed = (own, figure) => of('tunnel-mixed', own, figure) / of('tunnel-mixed', 'splice', figure);
  add('tunnel, super-packets at the sender alone, CPU of that end', mixed('splice-sends', 'sender'), 0.85);
  add('tunnel, super-packets at the receiver alone, CPU of that end', mixed('splice-receives', 'receiver'), 0.65);
  const tunnel = (row, figure, own, other) => of(`tunnel-${row}`, own, figure) / of(`tunnel-${row}`, other, figure);
  add('tunnel, UDP with UDP_SEGMENT, packets/s of splice-offload to those before',
      tunnel('udp-segments', 'packetRate', 'splice-offload', 'before'), 2, { atLeast: true });
  add('tunnel, UDP, packets/s of splice-offload to those before',
      tunnel('udp', 'packetRate', 'splice-offload', 'before'), 1, { atLeast: true });
  for (const figure of ['median', 'p99']) {
    add(`tunnel, ping, ${figure} of splice-offload to what it was before`,
        tunnel('ping', figure, 'splice-offload', 'before'), 1.05);
  }
  for (const row of ['up', 'down', `up-${kLargeMtu}`, `down-${kLargeMtu}`, 'single']) {
    const { title } = rows[`tunnel-native-${row}`];
    add(`${title}, CPU to that of the native forwarder`, tunnel(`native-${row}`, 'cost', 'adapter', 'native'), 1);
    add(`${title}, Gbit/s to those of the native forwarder`, tunnel(`native-${row}`, 'gbits', 'adapter', 'native'), 1,
        { atLeast: true });
  }
  add(`${rows['tunnel-native-udp'].title}, CPU-s per million packets`,
      of('tunnel-native-udp', 'adapter', 'packetCost'), 12, { unit: '' });
  for (const [row, ...figures] of [['ping', 'p99'], ['busy', 'average', 'p99', 'maximum'], ['dead', 'noticed']]) {
    for (const figure of figures) {
      add(`${rows[`tunnel-native-${row}`].title}, ${figure} to that of the native forwarder`,
          tunnel(`native-${row}`, figure, 'adapter', 'native'), 1);
    }
  }
  add(`${rows['tunnel-native-ping'].title}, median to that of relay`,
      tunnel('native-ping', 'median', 'adapter', 'relay'), 1.15);
  add('tunnel, ping, median of splice to that of relay', tunnel('ping', 'median', 'splice', 'relay'), 1.15);
  add('tunnel, ping beside iperf3, p99 of splice-offload to what it was before',
      tunnel('ping-loaded', 'p99', 'splice-offload', 'before'), 1);
  add('512 connections, throughput to that of 8', of('scale-512', 'splice', 'rate') / of('scale-8', 'splice', 'rate'),
      0.85, { atLeast: true });
  for (const n of scales.slice(1)) {
    add(`${n} connections, the slowest to the mean`, of(`scale-${n}`, 'splice', 'slowest'), 0.5, { atLeast: true });
  }
  for (const way of ways) {
    for (const [name, splice] of [['many', 'splice'], ['many-unix', 'splice-fd'], ['many-pipe', 'splice-fd']]) {
      const row = `${name}-${way}`;
      add(`${rows[row].title}, delay p99`, of(row, splice, 'delay'), 10, { unit: ' ms' });
      add(`${rows[row].title}, throughput to pipe()'s`, of(row, splice, 'rate') / of(row, 'pipe', 'rate'), 1,
          { atLeast: true });
    }
    const row = `many-tun-${way}`;
    add(`${rows[row].title}, delay p99`, of(row, 'splice', 'delay'), 10, { unit: ' ms' });
  }
  for (const n of [1, 2, 4]) {
    const what = `${n} Worker${n > 1 ? 's' : ''}`;
    const ratio = (figure) => of('workers', `workers-${n}`, figure) / of('workers', 'splice', figure);
    add(`${what}, CPU per GB to that of one event loop`, ratio('cost'), 1.05);
    add(`${what}, throughput to that of one event loop`, ratio('rate'), 0.95, { atLeast: true });
  }
  add("2 Workers at full speed, the main thread's use of its event loop",
      of('workers-delay', 'workers-2', 'loop'), 0.02, { unit: '' });
  add("2 Workers at full speed, the main thread's event-loop delay p99 to that of an idle process",
      of('workers-delay', 'workers-2', 'delay') / of('workers-delay', 'beside-workers-2', 'delay'), 1.2);
  for (const way of ways) {
    const rate = (name) => of(`tunnel-busy-${way}`, name, 'packetRate');
    add(`${way}, tunnel in a Worker while the main thread computes, packets per second to those while it is idle`,
        rate('worker-computing') / rate('workers-1'), 0.91, { atLeast: true });
  }
  const ping = (name) => of('tunnel-busy-ping', name, 'p99');
  add('tunnel in a Worker while the main thread computes, ping p99 to that while it is idle',
      ping('worker-computing') / ping('workers-1'), 1.1);
  add('100 GB, CPU per GB to that of 1 GB', cost('long-100', 'splice') / cost('long-1', 'splice'), 1.1);
  return list;
}

module.exports = { peers, recordRow, recordSizes, rows, stalled, targets };
