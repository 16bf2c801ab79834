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
  closing, ipv4, ipv6, run, tlsPair, turns,
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

// More at a time than one system call moves: of one length, so that the kernel
// can cut them, and of many. The longest are as long as UDP allows. They are not
// more than the queue of a socket holds.
for (const lengths of [
  Array(80).fill(700),
  Array.from({ length: 80 }, (_, i) => i * 7),
  [...Array(20).fill(1), 65_507, 1, 65_507, ...Array(20).fill(0)],
]) {
  for (const highWaterMark of [65_536, undefined]) {
    run(async () => {
      const { client, server } = await tlsPair();
      const { near, far, fd } = await datagrams();
      const many = lengths.map((length, i) => Buffer.alloc(length, i + 1));
      const bytes = framed(...many);
      const splice = server.spliceTo({ fd, highWaterMark }).start();
      near.close();
      const atFar = readDatagrams(far, many.length);
      client.write(bytes);
      assert.deepStrictEqual(await atFar, many);
      const atClient = read(client, bytes.length);
      for (const packet of many)
        far.send(packet);
      assert.deepStrictEqual(await atClient, bytes);
      const { packetsIn, packetsOut, dropsIn, dropsOut } = await splice.stop();
      assert.deepStrictEqual({ packetsIn, packetsOut, dropsIn, dropsOut },
                             { packetsIn: many.length, packetsOut: many.length, dropsIn: 0, dropsOut: 0 });
      far.close();
    });
  }
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

// What the framing or the largest size does not allow is dropped if it comes from the
// endpoint. From the peer it is no packet.
for (const [options, good, bad] of [
  [{ framing: 'ipv6' }, ipv6(60), ipv4(60)],
  [{ framing: 'ipv4' }, ipv4(60), ipv6(60)],
  [{ framing: 'ipv6', maxPacketSize: 1280 }, ipv6(1280), ipv6(1281)],
  [{ maxPacketSize: 1280 }, ipv4(1280), ipv4(1281)],
]) {
  run(async () => {
    const { client, server } = await tlsPair();
    const { near, far, fd } = await datagrams();
    const splice = server.spliceTo({ fd, ...options }).start();
    const bytes = options.framing ? Buffer.concat([good, good]) : framed(good, good);
    const atClient = read(client, bytes.length);
    for (const packet of [bad, good, bad, bad, good])
      far.send(packet);
    assert.deepStrictEqual(await atClient, bytes);
    assert.strictEqual(splice.stats.dropsOut, 3);
    assert.strictEqual(splice.stats.packetsOut, 2);

    const atFar = readDatagrams(far, 1);
    client.write(options.framing ? Buffer.concat([good, bad]) : framed(good, bad));
    const { 0: err } = await once(splice, 'error');
    assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
    assert.strictEqual(err.offset, bytes.length / 2);
    assert.deepStrictEqual(await atFar, [good]);
    assert.strictEqual(splice.stats.packetsIn, 1);
    near.close();
    far.close();
  });
}

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

// Stopped at each byte and spliced again, each packet arrives once, and whole.
run(async () => {
  const { client, server } = await tlsPair();
  const { near, far, fd } = await datagrams();
  const expected = ['abc', '', 'defgh'].map((text) => Buffer.from(text));
  const bytes = framed(...expected);
  const ends = [5, 7, 14];
  for (let cut = 0; cut <= bytes.length; cut++) {
    const arrived = readDatagrams(far, expected.length);
    const whole = ends.filter((end) => end <= cut).length;
    const first = server.spliceTo({ fd }).start();
    if (cut > 0)
      client.write(bytes.subarray(0, cut));
    while (first.stats.packetsIn < whole)
      await turns(1);
    const before = await first.stop();
    assert.strictEqual(before.packetsIn, whole);
    assert.strictEqual(before.bytesIn, ends[whole - 1] ?? 0);
    const second = server.spliceTo({ fd }).start();
    if (cut < bytes.length)
      client.write(bytes.subarray(cut));
    assert.deepStrictEqual(await arrived, expected);
    const after = await second.stop();
    assert.strictEqual(after.packetsIn, expected.length - whole);
    assert.strictEqual(after.bytesIn, bytes.length - before.bytesIn);
  }
  near.close();
  far.close();
});

// What comes while nothing is spliced waits in the socket.
run(async () => {
  const { client, server } = await tlsPair();
  const { near, far, fd } = await datagrams();
  const bytes = framed(...['1', '', '333'].map((text) => Buffer.from(text)));
  for (let i = 0; i < 5; i++) {
    for (const text of ['1', '', '333'])
      far.send(text);
    const arrived = read(client, bytes.length);
    const splice = server.spliceTo({ fd, direction: 'out' }).start();
    assert.deepStrictEqual(await arrived, bytes);
    const stats = await splice.stop();
    assert.strictEqual(stats.packetsOut, 3);
    assert.strictEqual(stats.largestPacketOut, 3);
  }
  near.close();
  far.close();
});

// Two splices, one each way. Either goes on when the other has stopped.
for (const stopped of ['in', 'out']) {
  run(async () => {
    const { client, server } = await tlsPair();
    const { near, far, fd } = await datagrams();
    const splices = {
      in: server.spliceTo({ fd, direction: 'in' }).start(),
      out: server.spliceTo({ fd, direction: 'out' }).start(),
    };
    near.close();
    const exchange = {
      async in() {
        const arrived = readDatagrams(far, 1);
        client.write(framed(Buffer.from('to the endpoint')));
        assert.deepStrictEqual(await arrived, [Buffer.from('to the endpoint')]);
      },
      async out() {
        far.send('to the peer');
        const bytes = framed(Buffer.from('to the peer'));
        assert.deepStrictEqual(await read(client, bytes.length), bytes);
      },
    };
    await Promise.all([exchange.in(), exchange.out()]);
    await splices[stopped].stop();
    await exchange[stopped === 'in' ? 'out' : 'in']();
    far.close();
  });
}

// A packet is never too large for highWaterMark.
for (const highWaterMark of [1, 1000, 65535]) {
  run(async () => {
    const { client, server } = await tlsPair();
    const { near, far, fd } = await datagrams();
    const sent = [Buffer.alloc(50_000, 1), Buffer.alloc(0), Buffer.alloc(1, 2)];
    const splice = server.spliceTo({ fd, highWaterMark }).start();
    const arrived = readDatagrams(far, sent.length);
    const bytes = framed(...sent);
    client.write(bytes);
    assert.deepStrictEqual(await arrived, sent);
    const atClient = read(client, bytes.length);
    for (const packet of sent)
      far.send(packet);
    assert.deepStrictEqual(await atClient, bytes);
    assert.strictEqual(splice.stats.packetsIn, 3);
    assert.strictEqual(splice.stats.packetsOut, 3);
    near.close();
    far.close();
  });
}

// What is no packet ends the splice where it begins, dropped packets included.
// The packets before it have arrived, the rest is JavaScript's.
const garbage = [
  Buffer.from([0x45, 0, 0, 0]),
  Buffer.from([0x45, 0, 0, 19]),
  Buffer.from([0x4f, 0, 0, 59]),
  ...Array.from({ length: 5 }, (_, length) => Buffer.from([0x40 + length])),
  ...Array.from({ length: 16 }, (_, version) => Buffer.from([version << 4 | 5]))
    .filter((_, version) => version !== 4 && version !== 6),
];
for (const dropped of [[], [ipv4(65535)]]) {
  for (const bad of garbage) {
    run(async () => {
      const { client, server } = await tlsPair();
      const { near, far, fd } = await datagrams();
      const good = Buffer.concat([ipv4(100), ...dropped, ipv6(41)]);
      const rest = Buffer.concat([bad, Buffer.from('rest')]);
      const splice = server.spliceTo({ fd, framing: 'ip', direction: 'in' });
      const arrived = readDatagrams(far, 2);
      const closed = closing(splice);
      const failed = once(splice, 'error');
      splice.start();
      client.write(Buffer.concat([good, rest]));
      const { 0: err } = await failed;
      assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
      assert.strictEqual(err.offset, good.length);
      const stats = await closed;
      assert.strictEqual(stats.packetsIn, 2);
      assert.strictEqual(stats.bytesIn, 141);
      assert.strictEqual(stats.dropsIn, dropped.length);
      assert.strictEqual(stats.dropsEMSGSIZE, dropped.length);
      assert.deepStrictEqual(await arrived, [ipv4(100), ipv6(41)]);
      assert.deepStrictEqual(await read(server, rest.length), rest);
      near.close();
      far.close();
    });
  }
}

// So does an end within a packet: what is there of it is JavaScript's. A reset
// is an error of its own.
for (const how of ['close_notify', 'FIN', 'RST']) {
  for (const length of [1, 2, 50]) {
    run(async () => {
      const { client, server, raw } = await tlsPair({ raw: true });
      const { near, far, fd } = await datagrams();
      client.on('error', () => {});
      server.on('error', () => {});
      const before = [Buffer.alloc(10, 1), Buffer.alloc(0)];
      const whole = framed(...before);
      const part = framed(Buffer.alloc(100, 2)).subarray(0, length);
      const arrived = readDatagrams(far, 2);
      const splice = server.spliceTo({ fd, direction: 'in' });
      const closed = closing(splice);
      const failed = once(splice, 'error');
      splice.start();
      client.write(Buffer.concat([whole, part]));
      assert.deepStrictEqual(await arrived, before);
      if (how === 'close_notify')
        client.end();
      else if (how === 'FIN')
        raw.end();
      else
        raw.resetAndDestroy();
      const { 0: err } = await failed;
      const stats = await closed;
      assert.strictEqual(stats.reason, 'error');
      assert.strictEqual(stats.bytesIn, whole.length);
      if (how === 'RST') {
        assert.strictEqual(err.code, 'ECONNRESET');
      } else {
        assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
        assert.strictEqual(err.offset, whole.length);
        assert.deepStrictEqual(await read(server, length), part);
      }
      near.close();
      far.close();
    });
  }
}

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
