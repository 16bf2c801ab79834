'use strict';

// tools/examples/cdtunnel.js with a stand-in for the iOS device at the other end.

const assert = require('assert');
const { randomBytes } = require('crypto');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');

const { ip, kExec, kRepo, ping, run, start } = require('./net');

const kNode = `${kRepo}/out/node`;
const kExample = `${kRepo}/tools/examples/cdtunnel.js`;
const kClient = 'fd12::2';
const kServer = 'fd12::1';
// An address is good for use some time after it has been added, and what comes before that is lost.
const kPrepare = `
  ip link set utun up
  ip address add ${kClient} peer ${kServer} dev utun nodad
  until ip -6 route show table local | grep -q '^local ${kClient} '; do :; done
  exec "$@"`;
const kEchoRequest = 128;
const kEchoReply = 129;

function addressBytes(text) {
  const bytes = Buffer.alloc(16);
  const { 0: head, 1: tail } = text.split('::');
  bytes.writeUInt16BE(parseInt(head, 16));
  bytes.writeUInt16BE(parseInt(tail, 16), 14);
  return bytes;
}

// The checksum of an ICMPv6 packet, over what stands for its IPv6 header, too.
function setChecksum(packet) {
  packet.writeUInt16BE(0, 42);
  const length = packet.length - 40;
  let sum = 58 + length;
  for (let i = 8; i < packet.length - 1; i += 2)
    sum += packet.readUInt16BE(i);
  if (packet.length % 2 === 1)
    sum += packet[packet.length - 1] << 8;
  while (sum > 0xffff)
    sum = (sum & 0xffff) + (sum >>> 16);
  packet.writeUInt16BE(~sum & 0xffff, 42);
}

function echo(type, from, to, sequence, payload) {
  const packet = Buffer.concat([Buffer.alloc(48), payload]);
  packet[0] = 0x60;
  packet.writeUInt16BE(packet.length - 40, 4);
  packet[6] = 58;
  packet[7] = 64;
  from.copy(packet, 8);
  to.copy(packet, 24);
  packet[40] = type;
  packet.writeUInt16BE(sequence, 46);
  setChecksum(packet);
  return packet;
}

// It sends the packets `early` behind its response, in pieces of the sizes that
// `pieces` has. Then it answers each echo request. `stall` is a promise, for as long as
// which it reads nothing.
class Device {
  stall = undefined;
  requests = [];
  replies = [];
  largest = 0;

  constructor({ credentials, mtu, early, pieces, magic = 'CDTunnel' }) {
    this.options = { mtu, early, pieces, magic };
    this.failure = new Promise((resolve, reject) => { this.fail = reject; });
    this.failure.catch(() => {});
    const serve = (socket) => this.#serve(socket).catch(this.fail);
    this.server = tls.createServer({ maxVersion: 'TLSv1.2', ...credentials }, serve);
    this.server.on('tlsClientError', this.fail);
  }

  async listen() {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    return this.server.address().port;
  }

  async #serve(socket) {
    socket.on('error', this.fail);
    this.socket = socket;
    this.server.close();
    const { mtu, early, pieces, magic } = this.options;
    let bytes = Buffer.alloc(0);
    let greeted = false;
    for await (const chunk of socket) {
      await this.stall;
      bytes = Buffer.concat([bytes, chunk]);
      if (!greeted && bytes.length >= 10 && bytes.length >= 10 + bytes.readUInt16BE(8)) {
        greeted = true;
        const end = 10 + bytes.readUInt16BE(8);
        this.magic = bytes.toString('latin1', 0, 8);
        this.request = JSON.parse(bytes.toString('utf8', 10, end));
        bytes = bytes.subarray(end);
        const body = Buffer.from(JSON.stringify({
          type: 'serverHandshakeResponse',
          clientParameters: { address: kClient, mtu, netmask: 'ffff:ffff:ffff:ffff::' },
          serverAddress: kServer,
          serverRSDPort: 58783,
        }));
        const header = Buffer.from(`${magic}\0\0`);
        header.writeUInt16BE(body.length, 8);
        const all = Buffer.concat([header, body, ...early]);
        for (let at = 0, i = 0; at < all.length; at += pieces[i++ % pieces.length]) {
          // A record each: what waits for one would share the next.
          await new Promise((resolve) => socket.write(all.subarray(at, at + pieces[i % pieces.length]), resolve));
        }
      }
      if (greeted)
        bytes = this.#take(bytes);
    }
  }

  // Packets, back to back.
  #take(bytes) {
    while (bytes.length >= 40 && bytes.length >= 40 + bytes.readUInt16BE(4)) {
      const packet = bytes.subarray(0, 40 + bytes.readUInt16BE(4));
      bytes = bytes.subarray(packet.length);
      if (packet[0] >> 4 !== 6)
        return this.fail(new Error('No IPv6 packet'));
      this.largest = Math.max(this.largest, packet.length);
      if (packet[6] !== 58)
        continue;
      if (packet[40] === kEchoRequest) {
        const reply = Buffer.from(packet);
        packet.copy(reply, 8, 24, 40);
        packet.copy(reply, 24, 8, 24);
        reply[40] = kEchoReply;
        setChecksum(reply);
        this.requests.push(packet.length);
        this.socket.write(reply);
      } else if (packet[40] === kEchoReply) {
        const reply = Buffer.from(packet);
        reply.writeUInt32BE(0x60000000);  // Without the flow label, which is the host's choice.
        this.replies.push(reply);
        this.onReply?.();
      }
    }
    return bytes;
  }

  async replied(count) {
    while (this.replies.length < count)
      await Promise.race([new Promise((resolve) => { this.onReply = resolve; }), this.failure]);
  }
}

module.exports = function(test, work) {
  const files = { key: `${work}/key.pem`, cert: `${work}/cert.pem` };
  run('a', ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-noenc', '-subj', '/CN=host', '-days', '2',
            '-keyout', files.key, '-out', files.cert]);
  const key = fs.readFileSync(files.key);
  const cert = fs.readFileSync(files.cert);
  const psk = randomBytes(32);

  const ways = {
    'a client certificate': {
      credentials: { key, cert, ca: cert, requestCert: true, rejectUnauthorized: true },
      env: { TLS_CERT: files.cert, TLS_KEY: files.key },
    },
    'TLS-PSK': {
      credentials: { ciphers: 'PSK', pskCallback: () => psk },
      env: { TLS_PSK: psk.toString('hex') },
    },
  };
  const pieces = { 'one record': [1 << 14], 'records of 1 byte': [1], 'records of 7 bytes': [7], 'some': [11, 100, 1000] };

  async function connect({ credentials, env }, options) {
    const device = new Device({ credentials, ...options });
    const port = await device.listen();
    const client = start('a', [
      kExec, '--name', 'utun', 'sh', '-ec', kPrepare, '-', kNode, kExample, '127.0.0.1', `${port}`,
    ], env);
    return { device, client };
  }

  for (const way of Object.keys(ways)) {
    for (const name of Object.keys(pieces)) {
      for (const mtu of name === 'one record' ? [1280, 1500, 16000] : [16000]) {
        test(`CDTunnel with ${way}, mtu ${mtu}, packets behind the response in ${name}`, async () => {
          const from = addressBytes(kServer);
          const to = addressBytes(kClient);
          const early = [];
          for (let i = 0; i < 10; i++)
            early.push(echo(kEchoRequest, from, to, i, Buffer.alloc(i * 20, i)));
          const { device, client } = await connect(ways[way], { mtu, early, pieces: pieces[name] });
          await Promise.race([client.next(new RegExp(`^${kClient} -> ${kServer}, MTU ${mtu}`)), device.failure]);
          assert.strictEqual(device.magic, 'CDTunnel');
          assert.deepStrictEqual(device.request, { type: 'clientHandshakeRequest', mtu: 16000 });
          assert.strictEqual(device.socket.getProtocol(), 'TLSv1.2');
          assert.match(ip('a', 'link show utun'), new RegExp(`mtu ${mtu} `));

          // The host has had each of the first packets, whole.
          await device.replied(early.length);
          for (let i = 0; i < early.length; i++)
            assert.deepStrictEqual(device.replies[i], echo(kEchoReply, to, from, i, Buffer.alloc(i * 20, i)));

          const sizes = [0, 1, 8, 56, 1000, mtu - 49, mtu - 48];
          for (const size of sizes)
            await ping('a', kServer, size, 5);
          assert.strictEqual(device.requests.length, 5 * sizes.length);
          assert.strictEqual(device.largest, mtu);

          device.socket.end();
          const stats = JSON.parse((await client.next(/^(\{.*)/))[1]);
          assert.strictEqual(await client.exited, 0);
          assert.strictEqual(stats.reason, 'end');
          assert.strictEqual(stats.closeNotify, true);
          assert.strictEqual(stats.packetsIn, early.length + 5 * sizes.length);
          assert.strictEqual(stats.largestPacketIn, mtu);
          assert.strictEqual(stats.dropsIn, 0);
        });
      }
    }
  }

  test('CDTunnel with something else at the other end', async () => {
    const { client } = await connect(ways['TLS-PSK'], { mtu: 1500, early: [], pieces: [100], magic: 'CDFunnel' });
    assert.strictEqual(await client.exited, 1);
    assert.match(client.output, /^The device does not speak CDTunnel$/m);
  });

  for (const [name, garbage] of [
    ['an IPv4 packet', Buffer.from([0x45, 0, 0, 60])],
    ['a packet that is longer than its mtu', Buffer.from([0x60, 0, 0, 0, 0x05, 0xb5, 17])],
  ]) {
    test(`CDTunnel with ${name} in the tunnel`, async () => {
      const { client } = await connect(ways['TLS-PSK'], { mtu: 1500, early: [garbage], pieces: [1 << 14] });
      assert.strictEqual(await client.exited, 1);
      assert.match(client.output, /^The data at byte 0 of direction 'in' is not a valid packet$/m);
    });
  }

  test('CDTunnel until SIGTERM', async () => {
    const { device, client } = await connect(ways['TLS-PSK'], { mtu: 1500, early: [], pieces: [100] });
    await client.next(/->/);
    client.child.kill('SIGTERM');
    assert.strictEqual(JSON.parse((await client.next(/^(\{.*)/))[1]).reason, 'stopped');
    assert.strictEqual(await client.exited, 0);
    device.socket.destroy();
  });
};

module.exports.Device = Device;
