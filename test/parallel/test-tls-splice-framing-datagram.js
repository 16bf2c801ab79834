// Flags: --no-deprecation
'use strict';

// Sockets that keep packets apart: each datagram is a packet, whole and alone.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no file descriptors of sockets');

const assert = require('assert');
const dgram = require('dgram');
const { on, once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  ipv4, ipv6, run, tlsPair,
} = require('../common/tls-splice');

// Two UDP sockets that are connected to each other, of which `fd` is only that.
async function datagrams() {
  const near = dgram.createSocket('udp4');
  const far = dgram.createSocket('udp4');
  for (const socket of [near, far]) {
    socket.bind(0, '127.0.0.1');
    await once(socket, 'listening');
  }
  near.connect(far.address().port, '127.0.0.1');
  far.connect(near.address().port, '127.0.0.1');
  await Promise.all([once(near, 'connect'), once(far, 'connect')]);
  near._handle.recvStop();
  return { near, far, fd: near._handle.fd };
}

function framed(...packets) {
  return Buffer.concat(packets.flatMap((packet) => {
    const length = Buffer.alloc(2);
    length.writeUInt16BE(packet.length);
    return [length, packet];
  }));
}

async function read(stream, length) {
  const chunks = [];
  for (let n = 0; n < length;) {
    const { 0: chunk } = await once(stream, 'data');
    chunks.push(chunk);
    n += chunk.length;
  }
  return Buffer.concat(chunks);
}

async function readDatagrams(socket, count) {
  const packets = [];
  for await (const { 0: packet } of on(socket, 'message')) {
    packets.push(packet);
    if (packets.length === count)
      return packets;
  }
}
const sizes = [1, 0, 1400, 2, 0, 0, 9000, 50_000, 255, 256];
const packets = sizes.map((size, i) => Buffer.alloc(size, i + 1));
const stream = framed(...packets);

// Whole in both directions, the empty ones too, in records of any size.
for (const size of [1, 1000, stream.length]) {
  run(async () => {
    const { client, server } = await tlsPair();
    const { near, far, fd } = await datagrams();
    const few = size === 1 ? packets.slice(0, 6) : packets;
    const bytes = framed(...few);
    const splice = server.spliceTo({ fd }).start();
    near.close();  // The splice has one of its own.
    const atFar = readDatagrams(far, few.length);
    for (let at = 0; at < bytes.length; at += size)
      client.write(bytes.subarray(at, at + size));
    assert.deepStrictEqual(await atFar, few);

    const atClient = read(client, bytes.length);
    for (const packet of few)
      far.send(packet);
    assert.deepStrictEqual(await atClient, bytes);

    const stats = await splice.stop();
    assert.strictEqual(stats.packetsIn, few.length);
    assert.strictEqual(stats.packetsOut, few.length);
    assert.strictEqual(stats.bytesIn, bytes.length);
    assert.strictEqual(stats.bytesOut, bytes.length);
    const largest = Math.max(...few.map((packet) => packet.length));
    assert.strictEqual(stats.largestPacketIn, largest);
    assert.strictEqual(stats.largestPacketOut, largest);
    far.close();
  });
}

// 'ip' fits, too; what the endpoint has that is none is dropped.
run(async () => {
  const { client, server } = await tlsPair();
  const { near, far, fd } = await datagrams();
  const splice = server.spliceTo({ fd, framing: 'ip' }).start();
  const sent = [ipv4(100, 1), ipv6(1280, 2), ipv4(20)];
  const atFar = readDatagrams(far, sent.length);
  client.write(Buffer.concat(sent));
  assert.deepStrictEqual(await atFar, sent);

  const bytes = Buffer.concat(sent);
  const atClient = read(client, bytes.length);
  for (const packet of ['no packet', '', Buffer.concat([sent[0], sent[1]]),
                        sent[1].subarray(1), sent[1].subarray(0, 1279), ...sent])
    far.send(packet);
  assert.deepStrictEqual(await atClient, bytes);
  assert.strictEqual(splice.stats.dropsOut, 5);
  assert.strictEqual(splice.stats.packetsOut, 3);

  // What the peer sends is not.
  client.write(Buffer.concat([sent[0], Buffer.from('\0no packet')]));
  const { 0: err } = await once(splice, 'error');
  assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
  assert.strictEqual(err.offset, bytes.length + 100);
  near.close();
  far.close();
});

// A receiver that has gone: its packets are lost, as on any link, and another
// one may come.
run(async () => {
  const { client, server } = await tlsPair();
  const { near, far, fd } = await datagrams();
  const { address, port } = far.address();
  const splice = server.spliceTo({ fd }).start();
  far.close();
  await once(far, 'close');
  while (splice.stats.dropsECONNREFUSED === 0) {
    client.write(framed(Buffer.from('lost')));
    await new Promise(setImmediate);
  }
  assert.strictEqual(splice.stats.dropsIn, splice.stats.dropsECONNREFUSED);
  assert.strictEqual(splice.state, 'running');
  const again = dgram.createSocket('udp4').bind(port, address);
  await once(again, 'listening');
  const arrived = once(again, 'message');
  const sending = setInterval(() => client.write(framed(Buffer.from('x'))), 1);
  await arrived;
  clearInterval(sending);
  await splice.stop();
  near.close();
  again.close();
});

// Too large for the device: dropped, the others are not.
run(async () => {
  const { client, server } = await tlsPair();
  const { near, far, fd } = await datagrams();
  const splice = server.spliceTo({ fd }).start();
  const arrived = readDatagrams(far, 2);
  client.write(framed(Buffer.from('a'), Buffer.alloc(65535), Buffer.from('b')));
  assert.deepStrictEqual(await arrived, [Buffer.from('a'), Buffer.from('b')]);
  assert.strictEqual(splice.stats.dropsEMSGSIZE, 1);
  assert.strictEqual(splice.stats.dropsIn, 1);
  assert.strictEqual(splice.stats.packetsIn, 2);
  near.close();
  far.close();
});

// An exchange of JavaScript's comes first. What follows it in the same record
// belongs to the splice.
for (const split of [0, 1, 2, 3, 20]) {
  run(async () => {
    const { client, server } = await tlsPair();
    const { near, far, fd } = await datagrams();
    const expected = ['first', '', 'second'].map((text) => Buffer.from(text));
    const bytes = framed(...expected);
    const hello = Buffer.from('hello');
    client.write(Buffer.concat([hello, bytes.subarray(0, split)]));
    const { 0: chunk } = await once(server, 'data');
    server.pause();
    assert.strictEqual(chunk.toString('latin1', 0, 5), 'hello');
    if (chunk.length > 5)
      server.unshift(chunk.subarray(5));
    const arrived = readDatagrams(far, 3);
    server.spliceTo({ fd, direction: 'in' }).start();
    client.write(bytes.subarray(split));
    assert.deepStrictEqual(await arrived, expected);
    near.close();
    far.close();
  });
}

// stop() gives back a packet that is not there whole.
run(async () => {
  const { client, server } = await tlsPair();
  const { near, far, fd } = await datagrams();
  const splice = server.spliceTo({ fd, direction: 'in' }).start();
  const bytes = framed(Buffer.from('whole'), Buffer.from('cut off'));
  const arrived = readDatagrams(far, 1);
  client.write(bytes.subarray(0, -3));
  assert.deepStrictEqual(await arrived, [Buffer.from('whole')]);
  const stats = await splice.stop();
  assert.strictEqual(stats.packetsIn, 1);
  assert.strictEqual(stats.bytesIn, 7);
  client.write(bytes.subarray(-3));
  assert.deepStrictEqual(await read(server, 9), bytes.subarray(7));
  near.close();
  far.close();
});

// Refused: bytes have no place in datagrams.
run(async () => {
  const { server } = await tlsPair();
  const { near, far, fd } = await datagrams();
  assert.throws(() => server.spliceTo({ fd, framing: 'raw' }), {
    code: 'ERR_INVALID_ARG_VALUE',
    message: /options\.framing.*does not fit the endpoint/,
  });
  near.close();
  far.close();
});

// A socket that is not connected has nowhere to send to.
run(async () => {
  const { client, server } = await tlsPair();
  const socket = dgram.createSocket('udp4').bind(0, '127.0.0.1');
  await once(socket, 'listening');
  const { fd } = socket._handle;
  const splice = server.spliceTo({ fd, direction: 'in' }).start();
  client.write(framed(Buffer.from('packet')));
  const { 0: err } = await once(splice, 'error');
  assert.strictEqual(err.code, 'EDESTADDRREQ');
  assert.strictEqual(err.syscall, 'write');
  socket.close();
});
