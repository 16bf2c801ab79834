'use strict';

// framing: 'ip' on a byte stream, whose other end speaks the same: the packets
// are passed on in any pieces, but followed, counted, and refused where they
// are none.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  Receiver, closing, ipv4, ipv6, receive, run, settled, socketPair, tlsPair, turns,
} = require('../common/tls-splice');
const tmpdir = require('../common/tmpdir');
tmpdir.refresh();

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

// A format that allows less finds at once what 'ip' would take for a packet, or the
// beginning of one: it does not wait for the rest.
const shorter = Buffer.alloc(7);
ipv6(1281).copy(shorter);
for (const [options, first, bad] of [
  [{ framing: 'ipv6' }, ipv6(1280), ipv4(60)],
  [{ framing: 'ipv6' }, ipv6(65575), Buffer.from([0x45])],
  [{ framing: 'ipv4' }, ipv4(1280), ipv6(60)],
  [{ framing: 'ipv4' }, ipv4(65535), Buffer.from([0x60])],
  [{ framing: 'ipv6', maxPacketSize: 1280 }, ipv6(1280), shorter],
  [{ framing: 'ip', maxPacketSize: 1280 }, ipv6(1280), shorter],
  [{ framing: 'ip', maxPacketSize: 1280 }, ipv4(1280), ipv4(1281).subarray(0, 4)],
  [{ framing: 'ipv4', maxPacketSize: 1280 }, ipv4(1280), ipv4(1281).subarray(0, 4)],
  [{ framing: 'ip', maxPacketSize: Number.MAX_SAFE_INTEGER }, ipv6(65575), jumbogram],
]) {
  for (const direction of ['in', 'out']) {
    run(async () => {
      const { client, server } = await tlsPair();
      const { 0: near, 1: far } = await socketPair();
      const { 0: from, 1: to } = direction === 'in' ? [client, far] : [far, client];
      const receiver = new Receiver();
      to.on('data', (chunk) => receiver.update(chunk));
      const splice = server.spliceTo({ stream: near, direction, ...options }).start();
      const failed = Promise.all([once(splice, 'error'), closing(splice)]);
      // Its other side stays open, and sends nothing more.
      from.write(Buffer.concat([first, bad]));
      const { 0: { 0: err }, 1: stats } = await failed;
      assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
      assert.strictEqual(err.direction, direction);
      assert.strictEqual(err.offset, first.length);
      assert.strictEqual(err.side, direction === 'in' ? 'tls' : 'endpoint');
      assert.strictEqual(direction === 'in' ? stats.packetsIn : stats.packetsOut, 1);
      await receiver.reached(first.length);
      assert.strictEqual(receiver.bytes, first.length);
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

// A regular file, which threads read and write: all of many packets.
for (const count of [10, 1000, 10_000]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const path = tmpdir.resolve(`packets-${count}`);
    const sent = Buffer.concat(
      Array.from({ length: count }, (_, i) => ipv4(100, i)));
    let fd = fs.openSync(path, 'w');
    client.end(sent);
    const inward = await server.spliceTo({
      fd, direction: 'in', framing: 'ip',
    }).start().finished;
    fs.closeSync(fd);
    assert.deepStrictEqual(fs.readFileSync(path), sent);
    assert.strictEqual(inward.packetsIn, count);
    assert.strictEqual(inward.bytesIn, sent.length);
    assert.strictEqual(inward.largestPacketIn, 100);

    const received = collect(client);
    fd = fs.openSync(path, 'r');
    const outward = await server.spliceTo({
      fd, direction: 'out', framing: 'ip',
    }).start().finished;
    fs.closeSync(fd);
    assert.deepStrictEqual(await received, sent);
    assert.strictEqual(outward.packetsOut, count);
    assert.strictEqual(outward.largestPacketOut, 100);
  });
}

// A file gets the packets, and not what comes behind them, with them or later.
for (const together of [true, false]) {
  run(async () => {
    const { client, server } = await tlsPair();
    const path = tmpdir.resolve(`garbage-${together}`);
    const fd = fs.openSync(path, 'w');
    const good = Buffer.concat(packets);
    const bad = Buffer.alloc(1000, 0xff);
    const splice = server.spliceTo({
      fd, direction: 'in', framing: 'ip',
    }).start();
    const failed = Promise.all([once(splice, 'error'), closing(splice)]);
    const received = collect(server);
    if (together) {
      client.end(Buffer.concat([good, bad]));
    } else {
      client.write(good);
      while (splice.stats.bytesIn < good.length)
        await turns();
      client.end(bad);
    }
    const { 0: { 0: err }, 1: stats } = await failed;
    fs.closeSync(fd);
    assert.strictEqual(err.code, 'ERR_TLS_SPLICE_FRAMING');
    assert.strictEqual(err.direction, 'in');
    assert.strictEqual(err.offset, good.length);
    assert.deepStrictEqual(fs.readFileSync(path), good);
    assert.strictEqual(stats.bytesIn, good.length);
    assert.strictEqual(stats.packetsIn, packets.length);
    assert.deepStrictEqual(await received, bad);
  });
}

// Stopped, or failed by the sink, while the peer does not read and the next
// bytes of the source are no packet: those are not waited for.
for (const how of ['stop', 'fail']) {
  run(async () => {
    const { client, server } = await tlsPair();
    const { 0: near, 1: far } = await socketPair('unix');
    far.on('error', () => {});
    const good = Buffer.alloc(8_000_000, ipv4(1000));
    near.unshift(Buffer.concat([good, Buffer.alloc(1000, 0xff)]));
    const splice = server.spliceTo({ stream: near, framing: 'ip' });
    const closed = closing(splice);
    splice.start();
    await settled(() => server.bytesWritten);
    if (how === 'stop') {
      const stats = await splice.stop();
      assert.strictEqual(stats.reason, 'stopped');
    } else {
      const failed = once(splice, 'error');
      far.destroy();
      client.write(ipv4(100));
      const { 0: err } = await failed;
      assert.strictEqual(err.code, 'EPIPE');
      assert.strictEqual((await closed).reason, 'error');
    }
    assert.strictEqual(splice.stats.bytesOut, good.length);
    server.end();
    assert.deepStrictEqual(await collect(client), good);
  });
}

// The TLS side ends, by its peer or by end(), while the source is within a
// packet. The source may have had the rest: no error.
for (const how of ['peer', 'end()']) {
  run(async () => {
    const { client, server } = await tlsPair();
    const { 0: near, 1: far } = await socketPair();
    const splice = server.spliceTo({ stream: near, framing: 'ip' }).start();
    const received = collect(client);
    far.write(packets[3].subarray(0, 700));
    while (splice.stats.bytesOut < 700)
      await turns();
    if (how === 'peer')
      client.end(packets[0]);
    else
      server.end();
    const stats = await splice.finished;
    assert.strictEqual(stats.reason, 'end');
    assert.strictEqual(stats.closeNotify, true);
    assert.strictEqual(stats.bytesOut, 700);
    assert.strictEqual(stats.packetsOut, 0);
    assert.strictEqual(stats.packetsIn, how === 'peer' ? 1 : 0);
    assert.deepStrictEqual(await received, packets[3].subarray(0, 700));
  });
}

// Counted are those that the other side has whole.
run(async () => {
  const { client, server } = await tlsPair();
  const { 0: near, 1: far } = await socketPair('unix');
  far.pause();
  const splice = server.spliceTo({ stream: near, framing: 'ip' }).start();
  client.write(Buffer.alloc(2_000_000, ipv4(25)));
  await settled(() => splice.stats.bytesIn);
  const stats = await splice.stop();
  assert(stats.bytesIn < 2_000_000);
  assert.strictEqual(stats.packetsIn, Math.floor(stats.bytesIn / 25));
});

run(async () => {
  const { client, server } = await tlsPair();
  const { 0: near, 1: far } = await socketPair();
  far.resume();
  const splice = server.spliceTo({ stream: near, framing: 'ip' }).start();
  // More than it takes to know its length.
  client.write(packets[2].subarray(0, 8));
  far.write(packets[3].subarray(0, 8));
  while (splice.stats.bytesIn < 8 || splice.stats.bytesOut < 8)
    await turns();
  assert.strictEqual(splice.stats.packetsIn, 0);
  assert.strictEqual(splice.stats.largestPacketIn, 0);
  assert.strictEqual(splice.stats.packetsOut, 0);
  assert.strictEqual(splice.stats.largestPacketOut, 0);
  client.write(packets[2].subarray(8));
  far.write(packets[3].subarray(8));
  while (splice.stats.packetsIn < 1 || splice.stats.packetsOut < 1)
    await turns();
  const stats = await splice.stop();
  assert.strictEqual(stats.largestPacketIn, packets[2].length);
  assert.strictEqual(stats.largestPacketOut, packets[3].length);
});
