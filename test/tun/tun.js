'use strict';

// usage: test/tun/run [WORD]: the tests with WORD in their name, or all

const assert = require('assert');
const { createHash, randomBytes } = require('crypto');
const fs = require('fs');
const os = require('os');
const path = require('path');

const {
  ip, kExec, killAll, kRepo, kStuckAfter, outputs, ping, pingUntilAnswered, run, setUp, start, tearDown,
} = require('./net');

const kNode = `${kRepo}/out/node`;
const kTunnel = `${kRepo}/tools/examples/tun-tunnel.js`;
const env = { TLS_PSK: randomBytes(32).toString('hex'), NODE_NO_WARNINGS: '1' };
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'tun-'));

const tests = [];
// The body can return what the machine does not have: then it is skipped.
function test(name, body) {
  tests.push({ name, body });
}

const address = { a: '10.0.0.1', b: '10.0.0.2' };
const address6 = { a: 'fd00::1', b: 'fd00::2' };

// Linux can segment UDP, and knows it as an offload of TUN devices, from 6.2 on.
const { 0: major, 1: minor } = os.release().split('.').map(Number);
const kHasUso = major > 6 || (major === 6 && minor >= 2);

// What brings a device up. An IPv6 address is good for use some time after it has been added, and what comes for it
// before that is lost.
function setUpCommands(ns, mtu) {
  const commands = [
    `ip link set tun mtu ${mtu} up`,
    `ip address replace ${address[ns]}/24 dev tun`,
  ];
  if (mtu >= 1280) {
    commands.push(`ip address replace ${address6[ns]}/64 dev tun nodad`,
                  `until ip -6 route show table local | grep -q '^local ${address6[ns]} '; do :; done`);
  }
  return commands;
}

function configure(ns, mtu = 1500) {
  run(ns, ['sh', '-ec', setUpCommands(ns, mtu).join('\n')]);
}

// One end of a tunnel, the device up before the first packet can come for it.
function endpoint(ns, role, { mtu = 1500, flags = [], queues = 1, by = [], args = [] } = {}) {
  if (queues > 1)
    flags = [...flags, '--queues', `${queues}`];
  const script = [...setUpCommands(ns, mtu), 'exec "$@"'].join('\n');
  return start(ns, [
    kExec, '--name', 'tun', ...flags, 'sh', '-ec', script, '-', ...by, kNode, kTunnel, ...args, role, '192.0.2.2', '4433',
  ], env);
}

// A tunnel between the namespaces: the two processes, with their devices configured. `at` has options of one end.
async function tunnel({ at = {}, ...options } = {}) {
  const b = endpoint('b', 'listen', { ...options, ...at.b });
  await b.next(/^listening/);
  const a = endpoint('a', 'connect', { ...options, ...at.a });
  for (let i = 0; i < (options.queues ?? 1); i++)
    await Promise.all([a.next(/^up/), b.next(/^up/)]);
  return { a, b };
}

async function stats(end) {
  end.child.kill('SIGUSR2');
  return JSON.parse((await end.next(/^stats (.*)/))[1]);
}

// Ends the tunnel from 'a'; the stats of both ends.
async function end({ a, b }) {
  const both = [await stats(a), await stats(b)];
  await killAll();
  return both;
}

async function sweep(mtu) {
  for (const { to, header } of [{ to: address, header: 28 }, { to: address6, header: 48 }]) {
    const most = mtu - header;
    for (const size of [0, 1, 16, 56, 100, 555, 1024, most - 1, most])
      await ping('a', to.b, size);
    // In fragments. The kernel gives up those that have too many of others between them.
    for (const size of [most + 1, 3 * mtu + 5, 65507])
      await ping('a', to.b, Math.min(size, 65507), 1);
    await ping('b', to.a, most);
  }
}

// What the kernel has counted in a namespace.
function counters(ns) {
  const counted = {};
  for (const file of ['snmp', 'snmp6']) {
    const lines = run(ns, ['cat', `/proc/net/${file}`]).trim().split('\n');
    if (file === 'snmp6') {
      for (const line of lines) {
        const { 0: name, 1: value } = line.split(/\s+/);
        counted[name] = Number(value);
      }
    } else {
      for (let i = 0; i < lines.length; i += 2) {
        const names = lines[i].split(' ');
        const values = lines[i + 1].split(' ');
        for (let j = 1; j < names.length; j++)
          counted[names[0].slice(0, -1) + names[j]] = Number(values[j]);
      }
    }
  }
  return counted;
}

// The kernel counts what it finds damaged.
const kDamages = [
  'IpInHdrErrors', 'TcpInCsumErrors', 'TcpInErrs', 'UdpInCsumErrors', 'IcmpInCsumErrors', 'IcmpInErrors',
  'Ip6InHdrErrors', 'Ip6InTruncatedPkts', 'Udp6InCsumErrors', 'Icmp6InErrors',
];

function damages() {
  const [inA, inB] = ['a', 'b'].map(counters);
  return kDamages.map((name) => `${name}: ${inA[name]} in a, ${inB[name]} in b`);
}

// When the test began: another one may have sent garbage.
let damagesBefore;

function assertIntact() {
  assert.deepStrictEqual(damages(), damagesBefore);
}

function assertNoDrops(...ends) {
  for (const { dropsIn, dropsOut } of ends) {
    assert.strictEqual(dropsIn, 0);
    assert.strictEqual(dropsOut, 0);
  }
}

for (const mtu of [1280, 1500, 9000, 65000, 65535]) {
  for (const flags of [[], ['--pi']]) {
    test(`mtu ${mtu} ${flags}: ping of all sizes`, async () => {
      const both = await tunnel({ mtu, flags });
      await sweep(mtu);
      const ends = await end(both);
      assertNoDrops(...ends);
      for (const { largestPacketIn, largestPacketOut, packetsIn, packetsOut } of ends) {
        assert.strictEqual(largestPacketIn, mtu);
        assert.strictEqual(largestPacketOut, mtu);
        assert(packetsIn > 50 && packetsOut > 50);
      }
      assertIntact();
    });
  }
}

test('no IPv6 at a small mtu: ping of all sizes', async () => {
  const both = await tunnel({ mtu: 68 });
  for (const size of [0, 1, 40, 41, 400])
    await ping('a', address.b, size);
  assertNoDrops(...await end(both));
  assertIntact();
});

async function iperf(...args) {
  const port = args.includes('-p') ? args.slice(args.indexOf('-p'), args.indexOf('-p') + 2) : [];
  const server = start('b', ['iperf3', '-s', '-1', '--forceflush', ...port]);
  await server.next(/^Server listening/);
  const output = await start('a', ['iperf3', '-J', '-t', '1', ...args]).done();
  await server.done();
  return JSON.parse(output.slice(output.indexOf('{'))).end;
}

for (const mtu of [1280, 9000, 65000]) {
  for (const to of [address.b, address6.b]) {
    test(`mtu ${mtu}: iperf3 to ${to}, both ways`, async () => {
      const both = await tunnel({ mtu });
      for (const way of [[], ['-R'], ['--bidir']]) {
        const tcp = await iperf('-c', to, ...way);
        assert(tcp.sum_sent.bytes > 1e6);
        assert(tcp.sum_received.bytes > 1e6);
      }
      for (const way of [[], ['-R']]) {
        const size = Math.min(mtu, 60000) - 100;
        const { sum, streams: { 0: { udp } } } = await iperf('-c', to, '-u', '-b', '20M', '-l', `${size}`, ...way);
        assert(sum.packets > 10);
        assert.strictEqual(udp.out_of_order, 0);
        // The queues of the devices may overflow, as those of any link. But nothing overtakes.
        assert(sum.lost_percent < 50, `${sum.lost_percent} % lost`);
      }
      assertNoDrops(...await end(both));
      assertIntact();
    });
  }
}

test('curl downloads and uploads a file', async () => {
  const both = await tunnel();
  const file = `${work}/file`;
  const bytes = randomBytes(64 * 1024 * 1024);
  const hash = createHash('sha256').update(bytes).digest('hex');
  fs.writeFileSync(file, bytes);
  const server = start('b', [kNode, `${__dirname}/http.js`, address.b, file]);
  const { 1: port } = await server.next(/^listening on (.*)/);
  const url = `http://${address.b}:${port}/`;
  await start('a', ['curl', '-sSf', '-o', `${work}/down`, url]).done();
  assert.strictEqual(createHash('sha256').update(fs.readFileSync(`${work}/down`)).digest('hex'), hash);
  assert.strictEqual(await start('a', ['curl', '-sSf', '-T', file, url]).done(), hash);
  assertNoDrops(...await end(both));
  assertIntact();
});

for (const flags of [[], ['--pi']]) {
  test(`4 queues ${flags}: ping and iperf3`, async () => {
    const both = await tunnel({ flags, queues: 4 });
    await sweep(1500);
    const tcp = await iperf('-c', address.b, '-P', '8', '--bidir');
    assert(tcp.sum_received.bytes > 1e6);
    // Its flows are spread over the queues.
    both.a.child.kill('SIGUSR2');
    let busy = 0;
    for (let i = 0; i < 4; i++)
      busy += JSON.parse((await both.a.next(/^stats (.*)/))[1]).packetsOut > 100;
    assert(busy > 1);
    await killAll();
    assertIntact();
  });
}

test('in a Worker, 4 queues: ping and iperf3', async () => {
  const both = await tunnel({ queues: 4, args: ['--worker'] });
  await sweep(1500);
  const tcp = await iperf('-c', address.b, '-P', '8', '--bidir');
  assert(tcp.sum_received.bytes > 1e6);
  assertNoDrops(...await end(both));
  assertIntact();
});

test('in a Worker: the sender gets SIGKILL, and the next one finds the device', async () => {
  const { a, b } = await tunnel({ args: ['--worker'] });
  await ping('a', address.b);
  await a.kill();
  await b.next(/^(ended|failed)/);
  const again = endpoint('a', 'connect', { args: ['--worker'] });
  await Promise.all([again.next(/^up/), b.next(/^up/)]);
  await pingUntilAnswered('a', address.b, 1000);
  // One end without a device ends the other one's process.
  await b.kill();
  await again.next(/^(ended|failed)/);
  await again.exited;
});

for (const args of [[], ['--worker']]) {
  test(`the main thread computes: packets ${args.length ? 'in a Worker go on' : 'have to wait'}`, async () => {
    const both = await tunnel({ args, by: ['env', `NODE_OPTIONS=--require=${__dirname}/compute.js`] });
    await ping('a', address.b);
    for (const end of Object.values(both)) {
      end.child.kill('SIGALRM');
      await end.next(/^computing$/);
    }
    if (args.length) {
      await ping('a', address.b, 1400, 20);
      await ping('b', address6.a, 1400, 20);
    } else {
      assert.strictEqual(await start('a', ['ping', '-n', '-q', '-c', '1', '-W', '1', address.b]).exited, 1);
    }
    await killAll();
    assertIntact();
  });
}

test('a TAP device', async () => {
  const both = await tunnel({ flags: ['--tap'] });
  await sweep(1500);
  const { 0: a } = await end(both);
  // With the header of Ethernet.
  assert.strictEqual(a.largestPacketIn, 1514);
  assertIntact();
});

test('a TAP device with --pi', async () => {
  const both = await tunnel({ flags: ['--tap', '--pi'] });
  await sweep(1500);
  const { 0: a } = await end(both);
  assert.strictEqual(a.largestPacketIn, 1514);
  assertIntact();
});

for (const flags of [['--tap'], ['--tap', '--pi']]) {
  test(`a TAP device ${flags}: the filter of its owner stays`, async () => {
    const both = await tunnel({ flags, by: ['python3', `${__dirname}/filter.py`] });
    await ping('a', address.b);
    await ping('b', address.a);
    const dropped = (ns) => JSON.parse(ip(ns, '-s -j link show dev tun'))[0].stats64.tx.dropped;
    for (const [ns, to] of [['a', address6.b], ['b', address6.a]]) {
      const before = dropped(ns);
      assert.throws(() => run(ns, ['ping', '-n', '-q', '-c', '1', '-W', '1', to]), /100% packet loss/);
      assert(dropped(ns) > before);
    }
    // Packets flow all the same.
    await ping('a', address.b, 1472);
    assertNoDrops(...await end(both));
    assertIntact();
  });
}

test('the MTU changes on the way', async () => {
  const both = await tunnel();
  for (const mtu of [9000, 1280, 65535, 1500]) {
    for (const ns of ['a', 'b'])
      configure(ns, mtu);
    await ping('a', address.b, mtu - 28);
    await ping('b', address6.a, mtu - 48);
  }
  const ends = await end(both);
  assertNoDrops(...ends);
  for (const { largestPacketIn, largestPacketOut } of ends) {
    assert.strictEqual(largestPacketIn, 65535);
    assert.strictEqual(largestPacketOut, 65535);
  }
  assertIntact();
});

test('the link goes down and comes up again', async () => {
  const both = await tunnel();
  const flood = start('b', ['ping', '-n', '-q', '-f', address.a]);
  const load = start('b', ['sh', '-c', `while :; do ping -n -q -f -w 1 ${address6.a} || :; done`]);
  for (let i = 0; i < 5; i++) {
    const before = await stats(both.a);
    ip('a', 'link set tun down');
    for (let now = before; now.dropsEIO === before.dropsEIO;)
      now = await stats(both.a);
    configure('a');
    await ping('a', address.b, 1000);
    await ping('a', address6.b, 1000);
  }
  await Promise.all([flood.kill(), load.kill()]);
  await ping('b', address.a, 1472);
  const { 0: a, 1: b } = await end(both);
  assert(a.dropsEIO >= 5);
  assert.strictEqual(a.dropsIn, a.dropsEIO);
  assertNoDrops(b);
});

test('the other link goes down, and more comes for it than fits anywhere', async () => {
  const both = await tunnel();
  ip('b', 'link set tun down');
  await start('a', ['ping', '-n', '-q', '-c', '5000', '-l', '5000', '-W', '0.1', '-s', '1400', address.b]).exited;
  configure('b');
  await ping('a', address.b, 1000);
  const { 1: b } = await end(both);
  assert(b.dropsEIO > 100);
});

for (const signal of ['SIGKILL', 'SIGTERM', 'SIGSTOP']) {
  test(`the sender gets ${signal}`, async () => {
    const { a, b } = await tunnel();
    const server = start('b', ['iperf3', '-s', '-1', '--forceflush']);
    await server.next(/^Server listening/);
    const load = start('a', ['iperf3', '-c', address.b, '-t', '60', '--forceflush', '-i', '0.1']);
    await load.next(/bits\/sec/);
    if (signal === 'SIGSTOP') {
      // It goes on where it was.
      a.child.kill('SIGSTOP');
      assert.strictEqual(await start('b', ['ping', '-n', '-c', '1', '-W', '0.2', address.a]).exited, 1);
      a.child.kill('SIGCONT');
      load.lines.length = 0;
      await load.next(/bits\/sec/);
      await killAll();
      return;
    }
    await a.kill(signal);
    await b.next(/^(ended|failed)/);
    await Promise.all([server.kill(), load.kill()]);
    // The device is there, and takes the next connection. The kernel first sends what is left of the load, and refuses it.
    const again = endpoint('a', 'connect');
    await Promise.all([again.next(/^up/), b.next(/^up/)]);
    await pingUntilAnswered('a', address.b, 1000);
    await pingUntilAnswered('b', address6.a, 1000);
    await killAll();
    assertIntact();
  });
}

test('the device is deleted', async () => {
  const { a, b } = await tunnel();
  await ping('a', address.b, 1000);
  ip('a', 'link delete tun');
  const { 1: code } = await a.next(/^failed (\S+)/);
  assert.strictEqual(code, 'EBADFD');
  assert.strictEqual(await a.exited, 1);
  assert.match((await b.next(/^(?:ended|failed) (.*)/))[1], /"reason":"end"|ECONNRESET/);
});

// libuv does not know this error.
const badfd = (syscall, side) => {
  const message = `EBADFD: file descriptor in bad state, ${syscall}`;
  return { message, code: 'EBADFD', errno: -77, syscall, ...side && { side }, stack: `Error: ${message}` };
};

for (const [direction, syscall] of [['in', 'write'], ['out', 'read'], ['duplex', 'read']]) {
  test(`the device is deleted, direction ${direction}`, async () => {
    const child = start('a', [kExec, '--name', 'tun', kNode, `${__dirname}/badfd.js`, direction], env);
    await child.next(/^up/);
    ip('a', 'link set tun up');
    ip('a', 'link delete tun');
    const { 1: text } = await child.next(/^emitted (.*)/);
    assert.deepStrictEqual(JSON.parse(text), badfd(syscall, 'endpoint'));
    await child.done();
  });
}

test('a device that is attached to none', async () => {
  const output = await start('a', [kNode, `${__dirname}/badfd.js`, 'unattached'], env).done();
  const { 1: text } = /^thrown (.*)/m.exec(output);
  assert.deepStrictEqual(JSON.parse(text), badfd('open'));
});

test('tun-exec becomes the program', async () => {
  for (const [args, outcome, output] of [
    [['--help'], 0, /^usage: tun-exec/],
    [[], 2, /no program to run/],
    [['--name'], 2, /--name takes a value/],
    [['--name', '0123456789abcdef', 'true'], 2, /--name takes at most 15 bytes/],
    [['--queues', 'x', 'true'], 2, /--queues takes a number/],
    [['--queues', '0', 'true'], 2, /--queues takes a number from 1 to 256/],
    [['--queues', '257', 'true'], 2, /--queues takes a number from 1 to 256/],
    [['--frames', 'true'], 2, /unknown option --frames/],
    [['--name', 'lo', 'true'], 1, /^tun-exec: /],
    [['/no/such/program'], 127, /^tun-exec: cannot run .*No such file/],
    [['sh', '-c', 'exit 42'], 42, /^$/],
    [['sh', '-c', 'kill -TERM $$'], 'SIGTERM', /^$/],
    [['--name', 'x%d', 'sh', '-c', 'echo $TUN_NAME $TUN_FD $TUN_QUEUES'], 0, /^x0 3 1$/m],
    [['--queues', '3', 'sh', '-c', 'echo $TUN_FD $TUN_QUEUES; ls -l /proc/$$/fd | grep -o "[0-9]* -> /dev/net/tun"'], 0,
     /^3 3\n3 -> .*\n4 -> .*\n5 -> .*\n$/],
    [['--', 'echo', '--tap'], 0, /^--tap$/m],
    [['--name', 'x', '--offload', 'sh', '-c', 'echo "<$TUN_OFFLOAD>" >&2'], 0,
     kHasUso ? /^tun-exec: x has (csum tso4 tso6 uso4 uso6)\n<\1>$/m : /^tun-exec: x has (csum tso4 tso6)\n<\1>$/m],
    [['--vnet-hdr', 'sh', '-c', 'echo "<$TUN_OFFLOAD>"'], 0, /^<>$/m],
    [['--offload', kExec, 'sh', '-c', 'echo "<$TUN_OFFLOAD>"'], 0, /^<>$/m],
  ]) {
    const child = start('a', [kExec, ...args]);
    assert.strictEqual(await child.exited, outcome, `${args}`);
    assert.match(child.output, output);
  }
  const child = start('a', [kExec, '--name', 'gone', 'sh', '-c', 'echo up; exec sleep infinity']);
  await child.next(/^up$/);
  ip('a', 'link show gone');
  assert.strictEqual(await child.kill('SIGINT'), 'SIGINT');
  assert.throws(() => ip('a', 'link show gone'), /does not exist/);

  // One that exists stays.
  ip('a', 'tuntap add mode tun name stays');
  await start('a', [kExec, '--name', 'stays', 'true']).done();
  ip('a', 'link delete stays');
});

test('tun-exec sets the offloads of a device that exists', async () => {
  ip('a', 'tuntap add mode tun name stays');
  const features = ['tx-checksumming', 'tcp-segmentation-offload', ...kHasUso ? ['tx-udp-segmentation'] : []];
  // What one has set, the next one does not find.
  for (const [flags, state] of [[[], 'off'], [['--offload'], 'on'], [[], 'off'], [['--vnet-hdr'], 'off']]) {
    const output = await start('a', [kExec, '--name', 'stays', ...flags, 'ethtool', '-k', 'stays']).done();
    for (const feature of features)
      assert.match(output, new RegExp(`^${feature}: ${state}\\b`, 'm'));
  }
  ip('a', 'link delete stays');
});

test('some devices with IFF_VNET_HDR are refused, and so is framing that does not fit', async () => {
  const twenty = ['--vnet-hdr', 'python3', `${__dirname}/vnet.py`, '20', 'native'];
  for (const [flags, framing, message] of [
    [['--vnet-hdr', '--tap'], 'u16be', /is a device with IFF_VNET_HDR/],
    [['--vnet-hdr', '--pi'], 'auto', /is a device with IFF_VNET_HDR/],
    [twenty, 'auto', /is a device with IFF_VNET_HDR/],
    [['--vnet-hdr'], 'raw', /options\.framing.*does not fit the endpoint/],
    [['--vnet-hdr'], 'auto', /^fits/],
    [['--vnet-hdr'], 'u16be', /^fits/],
    [['--offload'], 'ip', /^fits/m],
    [[], 'raw', /options\.framing.*does not fit the endpoint/],
    [['--tap'], 'raw', /options\.framing.*does not fit the endpoint/],
    [['--tap'], 'ip', /options\.framing.*does not fit the endpoint/],
    [['--tap', '--tap'], 'ip', /options\.framing.*does not fit the endpoint/],
    [[], 'ip', /^fits/],
    [[], 'u16be', /^fits/],
    [['--tap'], 'u16be', /^fits/],
  ]) {
    const output = await start('a', [kExec, ...flags, kNode, `${__dirname}/open.js`, framing], env).done();
    assert.match(output, message);
    if (!String(message).includes('fits'))
      assert.match(output, /ERR_INVALID_ARG_VALUE/);
  }
});

test('a device that is open for reading alone', async () => {
  for (const [flags, direction, message] of [
    ['TUN,NO_PI', 'out', /^fits/],
    ['TUN', 'out', /^fits/],
    ['TUN,NO_PI', 'in', /is not open for direction 'in'/],
    // What is before each frame only shows when one is written.
    ['TUN,NO_PI,VNET_HDR', 'out', /is not open for direction 'out'/],
    ['TAP,NO_PI', 'out', /is not open for direction 'out'/],
    ['TAP', 'out', /is not open for direction 'out'/],
  ]) {
    const output = await start('a', [
      'python3', `${__dirname}/macvtap.py`, '/dev/net/tun', `${flags},READ_ONLY`, kNode, `${__dirname}/open.js`, 'auto',
      direction,
    ], env).done();
    assert.match(output, message);
  }
});

test('macvtap without IFF_VNET_HDR is a TAP device', async () => {
  try {
    ip('a', 'link add link cable name macvtap type macvtap mode bridge');
  } catch (err) {
    if (!/Unknown device type|Operation not supported/.test(err.message))
      throw err;
    return err.message;
  }
  ip('a', 'link set macvtap up');
  const { 1: index } = /^(\d+):/.exec(ip('a', '-o link show macvtap'));
  for (const [flags, framing, message] of [
    ['TAP,NO_PI,VNET_HDR', 'auto', /is a device with IFF_VNET_HDR/],
    ['TAP,NO_PI', 'raw', /options\.framing.*does not fit the endpoint/],
    ['TAP,NO_PI', 'ip', /options\.framing.*does not fit the endpoint/],
    ['TAP,NO_PI', 'u16be', /^fits/],
    ['TAP,NO_PI', 'auto', /^fits/],
  ]) {
    const output = await start('a', [
      'python3', `${__dirname}/macvtap.py`, `/dev/tap${index}`, flags, kNode, `${__dirname}/open.js`, framing,
    ], env).done();
    assert.match(output, message);
  }
  ip('a', 'link delete macvtap');
});

test('a router has a smaller MTU than a UDP endpoint', async () => {
  const host = start('b', ['unshare', '--net', 'sh', '-c', 'echo ready; exec sleep infinity']);
  await host.next(/^ready/);
  const { pid } = host.child;
  const inHost = (...command) => ['nsenter', `--net=/proc/${pid}/ns/net`, ...command];
  run('b', ['sh', '-ec', `
    echo 1 >/proc/sys/net/ipv4/ip_forward
    ip link add narrow mtu 1000 type veth peer name narrow mtu 1000 netns ${pid}
    ip address add 198.51.100.1/24 dev narrow
    ip link set narrow up`]);
  run('a', inHost('sh', '-ec', `
    ip address add 198.51.100.2/24 dev narrow
    ip link set narrow up
    ip route add default via 198.51.100.1`));
  ip('a', 'route add 198.51.100.0/24 via 192.0.2.2');
  const echo = start('a', inHost(kNode, `${__dirname}/udp.js`, 'echo', '198.51.100.2'));
  const { 1: port } = await echo.next(/^listening on (.*)/);
  const spliced = start('a', [kNode, `${__dirname}/udp.js`, 'splice', '198.51.100.2', port], env);
  const { packetsIn, packetsOut, dropsIn, dropsEMSGSIZE, largestPacketOut } = JSON.parse(await spliced.done());
  assert.strictEqual(packetsIn, 11);
  assert.strictEqual(dropsIn, 1);
  assert.strictEqual(dropsEMSGSIZE, 1);
  assert.strictEqual(packetsOut, 10);
  assert.strictEqual(largestPacketOut, 1280);
  ip('a', 'route delete 198.51.100.0/24');
});

test('tun-exec says what is wrong, and its exit code', async () => {
  fs.copyFileSync(kExec, `${work}/tun-exec`);
  for (const [command, code, message] of [
    [[kExec, '/nowhere/program'], 127, /^tun-exec: cannot run \/nowhere\/program: No such file/],
    [[kExec, 'no-such-program', '--help'], 127, /^tun-exec: cannot run no-such-program: No such file/],
    [[kExec, kTunnel], 126, /^tun-exec: cannot run .*: Permission denied/],
    [[kExec, 'sh', '-c', 'exit 3'], 3, /^$/],
    [[kExec, '--name', 'lo', 'true'], 1, /^tun-exec: cannot have the device: /],
    // There is nothing else in that root.
    [['chroot', work, '/tun-exec', 'true'], 1, /^tun-exec: cannot open \/dev\/net\/tun: No such file/],
    [[kExec, '--no-such-option', 'true'], 2, /^tun-exec: unknown option --no-such-option\nusage: /],
    [[kExec], 2, /^tun-exec: no program to run\nusage: /],
    [[kExec, '--help'], 0, /^usage: tun-exec /],
    [['sh', '-c', 'exec "$0" --help >/dev/full', kExec], 1, /^tun-exec: No space left on device/],
  ]) {
    const started = start('a', command);
    assert.strictEqual(await started.exited, code, `${started.name}: ${started.output}`);
    assert.match(started.output, message);
  }
});

test('the examples say how they are used', async () => {
  const cdtunnel = `${kRepo}/tools/examples/cdtunnel.js`;
  for (const [command, code, message] of [
    [[kExec, kNode, kTunnel, 'relay', '192.0.2.2', '4433'], 2, /^usage: .*tun-exec .*\n$/],
    [[kExec, kNode, kTunnel, 'connect'], 2, /^usage: .*tun-exec .*\n$/],
    [[kNode, kTunnel, 'connect', '192.0.2.2', '4433'], 2, /^usage: .*tun-exec .*\n$/],
    [[kExec, kNode, cdtunnel], 2, /^usage: .*tun-exec .*\n$/],
    [[kNode, cdtunnel, '192.0.2.2', '4433'], 2, /^usage: .*tun-exec .*\n$/],
    // Nobody listens there.
    [[kExec, kNode, kTunnel, 'connect', '192.0.2.2', '4433'], 1, /^connect ECONNREFUSED 192\.0\.2\.2:4433\n$/],
    [[kExec, kNode, cdtunnel, '192.0.2.2', '4433'], 1, /^connect ECONNREFUSED 192\.0\.2\.2:4433\n$/],
  ]) {
    const started = start('a', command, env);
    assert.strictEqual(await started.exited, code, `${started.name}: ${started.output}`);
    assert.match(started.output, message);
  }
});

// What `body` returns, or its error; a test that is stuck fails with what its processes have printed.
async function bounded(body) {
  let timer;
  const stuck = new Promise((resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`stuck:\n${outputs()}`)), kStuckAfter);
  });
  try {
    return await Promise.race([body(), stuck]);
  } finally {
    clearTimeout(timer);
  }
}

async function main() {
  await setUp();
  require('./cdtunnel')(test, work);
  const { 2: refuse, 3: word = '' } = process.argv;
  require('./offload')(test, {
    address, address6, assertIntact, assertNoDrops, configure, counters, end, endpoint, env, iperf, kHasUso, stats, sweep,
    tunnel,
  }, work, refuse);
  let passed = 0;
  let failed = 0;
  let skipped = 0;
  for (const { name, body } of tests) {
    if (!name.includes(word))
      continue;
    damagesBefore = damages();
    const begin = process.hrtime.bigint();
    try {
      const missing = await bounded(body);
      if (missing === undefined) {
        passed++;
        console.log(`ok - ${name} (${Math.round(Number(process.hrtime.bigint() - begin) / 1e6)} ms)`);
      } else {
        skipped++;
        console.log(`ok - ${name} # skip ${missing}`);
      }
    } catch (err) {
      failed++;
      console.log(`not ok - ${name}\n${err.stack.replace(/^/gm, '    ')}`);
    }
    await killAll();
  }
  tearDown();
  fs.rmSync(work, { recursive: true });
  console.log(`${passed} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ''}`);
  process.exitCode = failed === 0 ? 0 : 1;
}
main();
