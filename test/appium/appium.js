'use strict';

// usage: test/appium/run [WORD]: the tests with WORD in their name, or all. MODULES has the npm packages.

const assert = require('assert');
const { spawn } = require('child_process');
const { randomBytes } = require('crypto');
const dgram = require('dgram');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');

const { ip, kRepo, kStuckAfter, ping, run } = require('../tun/net');
const { Device } = require('../tun/cdtunnel');

const work = fs.mkdtempSync(path.join(os.tmpdir(), 'appium-'));
process.chdir(work);

const kPlist = 8;

// Of usbmuxd: one device, of which every port is that one of this machine.
class Usbmuxd {
  constructor(port) {
    this.server = net.createServer((client) => this.#serve(client, port)).listen('./usbmuxd');
  }

  #serve(client, port) {
    client.once('readable', () => {
      const request = client.read();
      assert.strictEqual(request.readUInt32LE(8), kPlist);
      assert.strictEqual(request.readUInt32LE(0), request.length);
      this.request = request.toString('utf8', 16);
      const body = `<?xml version="1.0" encoding="UTF-8"?><plist version="1.0"><dict>
        <key>MessageType</key><string>Result</string><key>Number</key><integer>0</integer></dict></plist>`;
      const header = Buffer.alloc(16);
      [16 + body.length, 1, kPlist, request.readUInt32LE(12)].forEach((value, i) => header.writeUInt32LE(value, i * 4));
      client.write(Buffer.concat([header, Buffer.from(body)]));
      const device = net.connect({ port, host: '127.0.0.1' });
      client.on('error', () => device.destroy()).pipe(device);
      device.on('error', () => client.destroy()).pipe(client);
    });
  }
}

const clients = new Set();

class Client {
  output = '';  // What it has said, for messages: stdout and stderr may be mixed within a line.
  lines = '';   // Of stdout alone.

  // A program that uses appium-ios-remotexpc does not know of the adapter.
  constructor(binary, args, env) {
    const preload = args[0].includes('/') ? ['--import', './appium-preload.mjs'] : [];
    this.child = spawn(`${kRepo}/out/${binary}`, ['--no-warnings', ...preload, 'client.mjs', ...args], {
      env: { ...process.env, NODE_DEBUG: 'tls', ...env },
    });
    for (const stream of [this.child.stdout, this.child.stderr])
      stream.on('data', (chunk) => { this.output += chunk; });
    this.child.stdout.on('data', (chunk) => { this.lines += chunk; });
    this.exited = once(this.child, 'close');
    clients.add(this);
    this.exited.then(() => {
      clients.delete(this);
      this.isOver = true;
    });
  }

  async printed(pattern) {
    while (!pattern.test(this.lines)) {
      assert(!this.isOver, `without ${pattern}: ${this.output}`);
      await Promise.race([once(this.child.stdout, 'data'), this.exited]);
    }
  }
}

const tests = [];
function test(name, body) {
  tests.push({ name, body });
}

run('a', ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-noenc', '-subj', '/CN=host', '-days', '2',
          '-keyout', 'key.pem', '-out', 'cert.pem']);
const key = fs.readFileSync('key.pem');
const cert = fs.readFileSync('cert.pem');
const psk = randomBytes(32);
const ways = {
  'a client certificate': {
    argument: 'cert.pem,key.pem',
    credentials: { key, cert, ca: cert, requestCert: true, rejectUnauthorized: true },
  },
  'TLS-PSK': {
    argument: psk.toString('hex'),
    credentials: { ciphers: 'PSK:@SECLEVEL=0', pskCallback: () => psk },
  },
};
const binaries = ['node', 'node-stock'];

async function connect(binary, way, isByUsbmuxd, ...args) {
  const { argument, credentials } = ways[way];
  const device = new Device({ credentials, mtu: 1280, early: [], pieces: [1 << 14] });
  const port = await device.listen();
  const usbmuxd = isByUsbmuxd && new Usbmuxd(port);
  const client = new Client(binary, [isByUsbmuxd ? './usbmuxd' : `${port}`, argument, ...args]);
  await Promise.race([client.printed(/^up: fd12::1 58783$/m), device.failure]);
  await client.printed(/^pinged$/m);
  assert(device.requests.filter((size) => size === 1048).length >= 3);
  assert.strictEqual(device.request.mtu, 1280);
  assert.doesNotMatch(client.lines, /^the socket is closed$/m);
  return { device, client, usbmuxd };
}

for (const binary of binaries) {
  for (const way of Object.keys(ways)) {
    for (const by of ['TCP', 'usbmuxd']) {
      test(`out/${binary}, ${way}, by ${by}`, async () => {
        const { device, client, usbmuxd } = await connect(binary, way, by === 'usbmuxd');
        assert.match(ip('a', '-6 route show'), /^fd12::1 dev /m);
        client.child.stdin.end();
        await client.printed(/^closed$/m);
        assert.deepStrictEqual(await client.exited, [0, null], client.output);
        assert.doesNotMatch(client.lines, /^dead/m);
        assert.strictEqual(/splice begin, direction duplex/.test(client.output), binary === 'node', client.output);
        assert.doesNotMatch(ip('a', '-6 route show'), /^fd12::1 dev /m);
        device.socket.destroy();
        if (usbmuxd) {
          assert.match(usbmuxd.request, /<key>MessageType<\/key>\s*<string>Connect<\/string>/);
          usbmuxd.server.close();
        }
      });
    }
  }
  test(`out/${binary}, a device that goes away`, async () => {
    const { device, client } = await connect(binary, 'a client certificate', false);
    device.socket.destroy();
    await client.printed(/^dead: /m);
    client.child.stdin.end();
    assert.deepStrictEqual(await client.exited, [0, null], client.output);
  });
  test(`out/${binary}, a device that goes away, of which nobody closes the tunnel`, async () => {
    const { device, client } = await connect(binary, 'a client certificate', false, 'forget');
    device.socket.destroy();
    await client.printed(/^dead: /m);
    assert.deepStrictEqual(await client.exited, [0, null], client.output);
    assert.doesNotMatch(client.lines, /^closed/m);
    assert.doesNotMatch(ip('a', '-6 route show'), /^fd12::1 dev /m);
  });
  test(`out/${binary}, a device that does not know this host`, async () => {
    const device = new Device({ credentials: ways['TLS-PSK'].credentials, mtu: 1280, early: [], pieces: [1] });
    const client = new Client(binary, [`${await device.listen()}`, randomBytes(32).toString('hex')]);
    const [code] = await client.exited;
    assert.strictEqual(code, 1, client.output);
    device.server.close();
  });
}

// A Node for Windows may have the class, but it cannot splice.
test('out/node, as if on Windows', () => {
  run('a', [`${kRepo}/out/node`, '--no-warnings', '-e', `
    const assert = require('assert');
    // First, since it loads what was compiled for the platform.
    const tuntap = require('appium-ios-tuntap');
    assert(require('tls').TLSSplice);
    Object.defineProperty(process, 'platform', { value: 'win32' });
    for (const [name, value] of Object.entries(require('./appium-forwarder.js')))
      assert.strictEqual(value, tuntap[name]);`]);
});

// What the environment asks for, and what the device is asked for.
const requests = {
  '': 1280, ' ': 1280, 'abc': 1280, '1500.5': 1280, '-1': 1280, '1279': 1280,
  '1281': 1281, ' 16000 ': 16000, '0x5dc': 1500, '65000': 65000, '65001': 65000, '1e9': 65000,
};
for (const binary of binaries) {
  test(`out/${binary}, requests of an MTU`, async () => {
    const { argument, credentials } = ways['TLS-PSK'];
    const seen = {};
    for (const size of Object.keys(requests)) {
      // There is no tunnel to be had from it, but it has heard the request by then.
      const device = new Device({ credentials, mtu: 1280, early: [], pieces: [1 << 14], magic: 'CDFunnel' });
      const port = await device.listen();
      const client = new Client(binary, [`${port}`, argument], { APPIUM_TUNTAP_MTU_REQUEST_SIZE: size });
      const [code] = await client.exited;
      assert.strictEqual(code, 1, client.output);
      seen[size] = device.request.mtu;
    }
    assert.deepStrictEqual(seen, requests);
  });
}

function tunnelInterface() {
  return JSON.parse(ip('a', '-6 -j route show fd12::1'))[0].dev;
}

// How many packets the process behind the tunnel's interface has read from it.
function packetsRead() {
  return JSON.parse(ip('a', `-s -j link show dev ${tunnelInterface()}`))[0].stats64.tx.packets;
}

// Sends datagrams into the tunnel until nobody takes them any more.
async function fill() {
  const socket = dgram.createSocket('udp6');
  let before;
  do {
    before = packetsRead();
    for (let i = 0; i < 1000; i++)
      await new Promise((resolve) => socket.send(randomBytes(1000), 9, 'fd12::1', resolve));
  } while (packetsRead() > before);
  socket.close();
}

// stop() has nobody to wait for.
test('out/node, a device that reads nothing any more', async () => {
  const { device, client } = await connect('node', 'a client certificate', false);
  device.stall = new Promise(() => {});
  await fill();
  client.child.stdin.end();
  await client.printed(/^closed$/m);
  assert.deepStrictEqual(await client.exited, [0, null], client.output);
  assert.doesNotMatch(client.lines, /^dead/m);
  device.socket.destroy();
});

// Of the size of the MTU, with nothing in it.
function emptyPacket() {
  const packet = Buffer.alloc(1280);
  packet[0] = 0x60;
  packet.writeUInt16BE(packet.length - 40, 4);
  packet[6] = 59;
  return packet;
}

test('out/node, the link goes down and comes up again', async () => {
  const { device, client } = await connect('node', 'TLS-PSK', false);
  const dev = tunnelInterface();
  ip('a', `link set ${dev} down`);
  // More than what is on the way can hold: when all of it is sent, the interface has refused packets.
  const packets = Buffer.alloc(50_000 * 1280, emptyPacket());
  await Promise.race([new Promise((resolve) => device.socket.write(packets, resolve)), device.failure]);
  ip('a', `link set ${dev} up`);
  // Both have gone with the link.
  ip('a', `-6 address add fd12::2/64 dev ${dev} nodad`);
  ip('a', `-6 route add fd12::1/128 dev ${dev}`);
  await ping('a', 'fd12::1', 1000);
  client.child.stdin.end();
  await client.printed(/^closed$/m);
  assert.deepStrictEqual(await client.exited, [0, null], client.output);
  assert.doesNotMatch(client.lines, /^dead/m);
  device.socket.destroy();
});

for (const [what, bytes] of Object.entries({
  'an IPv4 packet': Buffer.from('4500001c', 'hex'),
  'garbage that begins as a long packet': Buffer.from('60000000ffff3a40', 'hex'),
})) {
  test(`out/node, a device that sends ${what}`, async () => {
    const { device, client } = await connect('node', 'TLS-PSK', false);
    device.socket.write(bytes);
    await client.printed(/^dead: .*packet/m);
    client.child.stdin.end();
    assert.deepStrictEqual(await client.exited, [0, null], client.output);
  });
}

async function main() {
  ip('a', 'link set lo up');
  fs.symlinkSync(process.env.MODULES, 'node_modules');
  fs.copyFileSync(`${__dirname}/client.mjs`, 'client.mjs');
  for (const file of ['appium-forwarder.js', 'appium-preload.mjs'])
    fs.copyFileSync(`${kRepo}/tools/examples/${file}`, file);
  const word = process.argv[2] ?? '';
  let passed = 0;
  let failed = 0;
  // Whatever waits for them is told.
  const stop = () => Promise.all(Array.from(clients, ({ child, exited }) => child.kill('SIGKILL') && exited));
  for (const { name, body } of tests.filter(({ name }) => name.includes(word))) {
    const deadline = setTimeout(stop, kStuckAfter);
    try {
      await body();
      passed++;
      console.log(`ok - ${name}`);
    } catch (err) {
      failed++;
      console.log(`not ok - ${name}\n${err.stack.replace(/^/gm, '    ')}`);
    }
    clearTimeout(deadline);
    await stop();
  }
  process.chdir('/');
  fs.rmSync(work, { recursive: true });
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}
main();
