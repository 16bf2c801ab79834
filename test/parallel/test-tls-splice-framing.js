'use strict';

// framing: 'ip' on a byte stream, whose other end speaks the same: the packets
// are passed on in any pieces, but followed, counted, and refused where they
// are none.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  closing, ipv4, ipv6, receive, run, socketPair, tlsPair,
} = require('../common/tls-splice');

const packets = [];
for (const size of [40, 1280, 41, 1500, 9000, 65535, 100, 60])
  packets.push(ipv4(size, packets.length), ipv6(size, packets.length + 100));
packets.push(ipv4(20), ipv6(65575));

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream)
    chunks.push(chunk);
  return Buffer.concat(chunks);
}

// Each way, in records of many sizes: some have many packets, and some packets
// are in many of them.
for (const [size, count] of [[1, 4], [7, 8], [1000, packets.length],
                             [1 << 20, packets.length]]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: near, 1: far } = await socketPair('unix');
    const sent = Buffer.concat(packets.slice(0, count));
    const received = [collect(far), collect(client)];
    const done = server.pipeToNative(near, { framing: 'ip' });
    for (const to of [client, far]) {
      for (let at = 0; at < sent.length; at += size) {
        if (!to.write(sent.subarray(at, at + size)))
          await once(to, 'drain');
      }
      to.end();
    }
    const stats = await done;
    for (const bytes of received)
      assert.deepStrictEqual(await bytes, sent);
    const largest = Math.max(...packets.slice(0, count).map((p) => p.length));
    assert.strictEqual(stats.packetsIn, count);
    assert.strictEqual(stats.packetsOut, count);
    assert.strictEqual(stats.largestPacketIn, largest);
    assert.strictEqual(stats.largestPacketOut, largest);
    assert.strictEqual(stats.dropsIn, 0);
    assert.strictEqual(stats.dropsOut, 0);
    assert.strictEqual(stats.bytesIn, sent.length);
    assert.strictEqual(stats.bytesOut, sent.length);
  });
}

const jumbogram = ipv6(40);
jumbogram[6] = 0;
const garbage = {
  'IP version 0': Buffer.from([0, 0, 0, 0]),
  'IP version 5': Buffer.from([0x55]),
  'IP version 15': Buffer.from([0xff]),
  'a header that is too short': Buffer.from([0x44]),
  'a packet shorter than its header': Buffer.from([0x45, 0, 0, 19]),
  'no length': Buffer.from([0x45, 0, 0, 0]),
  'a jumbogram': jumbogram,
};

// What is no packet ends the splice where it begins. What was before it has
// arrived, and the socket is given back with it.
for (const name of Object.keys(garbage)) {
  for (const before of [0, 3]) {
    run(async () => {
      const { client, server } = await tlsPair();
      const { 0: near, 1: far } = await socketPair();
      const good = Buffer.concat(packets.slice(0, before));
      const bytes = Buffer.concat([good, garbage[name], Buffer.from('rest')]);
      const splice = server.spliceTo({ stream: near, framing: 'ip' });
      const { 0: { 0: err }, 1: stats } = await Promise.all([
        once(splice, 'error'), closing(splice), splice.start(),
        client.write(bytes),
      ]);
      assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING', name);
      assert.strictEqual(err.name, 'Error');
      assert.strictEqual(err.direction, 'in');
      assert.strictEqual(err.offset, good.length);
      assert.match(err.message, new RegExp(`byte ${good.length} `));
      assert.strictEqual(stats.reason, 'error');
      assert.strictEqual(stats.bytesIn, good.length);
      assert.strictEqual(stats.packetsIn, before);
      assert(!server.destroyed);
      const rest = [];
      for (let n = good.length; n < bytes.length;) {
        const { 0: chunk } = await once(server, 'data');
        rest.push(chunk);
        n += chunk.length;
      }
      assert.deepStrictEqual(Buffer.concat(rest), bytes.subarray(good.length));
      near.end();
      const receiver = await receive(far);
      assert.strictEqual(receiver.bytes, good.length);
    });
  }
}

// From the endpoint: the peer gets what was before it, and can be written to.
run(async () => {
  const { client, server } = await tlsPair();
  const { 0: near, 1: far } = await socketPair();
  const good = Buffer.concat(packets.slice(0, 5));
  const received = collect(client);
  const splice = server.spliceTo({ stream: near, framing: 'ip' }).start();
  const closed = closing(splice);
  far.write(Buffer.concat([good, Buffer.from('\0no packet')]));
  const { 0: err } = await once(splice, 'error');
  assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
  assert.strictEqual(err.direction, 'out');
  assert.strictEqual(err.offset, good.length);
  await closed;
  server.end('text');
  assert.deepStrictEqual(await received,
                         Buffer.concat([good, Buffer.from('text')]));
});

// pipeToNative() rejects with the error and destroys the socket.
run(async () => {
  const { client, server } = await tlsPair();
  const { 0: near } = await socketPair();
  client.on('error', () => {});
  client.write('\0no packet');
  await assert.rejects(server.pipeToNative(near, { framing: 'ip' }), {
    code: 'ERR_TLS_SPLICE_FRAMING',
    direction: 'in',
    offset: 0,
  });
  assert(server.destroyed);
});

// An end within a packet is one of them, with and without close_notify.
for (const properly of [true, false]) {
  run(async () => {
    const { client, server, raw } = await tlsPair({ raw: true });
    const { 0: near } = await socketPair();
    server.on('error', () => {});
    const splice = server.spliceTo({ stream: near, framing: 'ip' }).start();
    const bytes = Buffer.concat([packets[1], packets[3].subarray(0, 100)]);
    if (properly)
      client.end(bytes);
    else
      client.write(bytes, () => raw.end());
    const { 0: err } = await once(splice, 'error');
    assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
    assert.strictEqual(err.offset, packets[1].length);
  });
}

// So is one of the endpoint.
run(async () => {
  const { client, server } = await tlsPair();
  const { 0: near, 1: far } = await socketPair();
  client.resume();
  const splice = server.spliceTo({ stream: near, framing: 'ip' }).start();
  far.end(Buffer.concat([packets[1], packets[3].subarray(0, 5)]));
  const { 0: err } = await once(splice, 'error');
  assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
  assert.strictEqual(err.direction, 'out');
  assert.strictEqual(err.offset, packets[1].length);
});
