'use strict';

// An endpoint that is full before the splice has had its first turn. What is
// below the TLSSocket must not be read on, whatever it is.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { isBuffered, sinks } = require('../common/tls-splice-full-sink');
const {
  MiB, Receiver, run, send, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

// Over what the TLS connection of each test runs: two connected streams, and the
// net.Socket at the peer's side.
const streams = {
  'TCP': async () => {
    const { 0: a, 1: b } = await socketPair();
    return { a, b, raw: a };
  },
  'a Unix socket': async () => {
    const { 0: a, 1: b } = await socketPair('unix');
    return { a, b, raw: a };
  },
  'a Duplex': async () => {
    const { 0: a, 1: b } = await socketPair();
    return { a, b: Duplex.from({ readable: b, writable: b }), raw: a };
  },
  'TLS in TLS': async () => {
    const { client, server, raw } = await tlsPair({ allowHalfOpen: true, raw: true });
    return { a: client, b: server, raw };
  },
};

// TLS over them.
async function tlsOverStreams(makeStream) {
  const { a, b, raw } = await makeStream();
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  await once(client, 'secureConnect');
  return { client, server, raw };
}

// The peer can send a bounded number of bytes, and the statistics say what is
// held of them.
const kSize = 64 * MiB;
const kHighWaterMark = 100_000;
for (const { 0: under, 1: makeStream } of Object.entries(streams)) {
  for (const { 0: kind, 1: makeSink } of Object.entries(sinks)) {
    run(async () => {
      const { client, server, raw } = await tlsOverStreams(makeStream);
      const sink = await makeSink();
      await turns();
      // Sockets of this machine hold less than so much: two of TCP, with those of
      // the kernel's buffers that grow, and the Readables of JavaScript.
      const kMost = 24 * MiB;
      const sending = send(client, kSize);
      await isBuffered(server);
      const splice = server.spliceTo({
        ...sink.options, direction: 'in', highWaterMark: kHighWaterMark,
      }).start();
      await settled(() => raw.bytesWritten);
      const accepted = raw.bytesWritten - raw.writableLength;
      assert(accepted < kMost, `${under}, ${kind}: ${accepted} bytes are held`);
      const { bytesIn, peakBufferedIn } = splice.stats;
      assert.strictEqual(bytesIn, 0);
      assert(peakBufferedIn > 0, `${under}, ${kind}`);
      // One read of the stream below can come on top.
      assert(peakBufferedIn <= kHighWaterMark + 2 * 65536, `${peakBufferedIn}`);

      const receiver = new Receiver();
      let left = sink.filled;
      sink.read().on('data', (chunk) => {
        const skipped = Math.min(left, chunk.length);
        left -= skipped;
        if (chunk.length > skipped)
          receiver.update(chunk.subarray(skipped));
      });
      await Promise.all([sending, splice.finished]);
      await receiver.reached(kSize);
      receiver.check(kSize);
      sink.drop();
    });
  }
}

// The same when the splice begins with the end of the handshake, and all that the peer
// can send comes right behind that.
for (const { 0: under, 1: makeStream } of Object.entries(streams)) {
  for (const { 0: kind, 1: makeSink } of Object.entries(sinks)) {
    for (const version of ['TLSv1.2', 'TLSv1.3']) {
      run(async () => {
        const sink = await makeSink();
        const { a, b, raw } = await makeStream();
        const options = { allowHalfOpen: true, minVersion: version, maxVersion: version };
        const { client, server } = tlsOver(a, b, options);
        const splice = server.spliceTo({
          ...sink.options, direction: 'in', highWaterMark: kHighWaterMark,
        }).start();
        client.write(Buffer.alloc(8 * MiB));
        await Promise.all([once(client, 'secure'), once(server, 'secure')]);
        await settled(() => raw.bytesWritten);
        const { bytesIn, peakBufferedIn } = splice.stats;
        assert.strictEqual(bytesIn, 0);
        assert(peakBufferedIn > 0, `${under}, ${kind}`);
        assert(peakBufferedIn <= kHighWaterMark + 2 * 65536, `${under}: ${peakBufferedIn}`);
        await splice.stop();
        for (const stream of [client, server, a, b, raw])
          stream.destroy();
        sink.drop();
      });
    }
  }
}
