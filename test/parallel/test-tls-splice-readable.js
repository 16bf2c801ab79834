'use strict';

// Readers that wait for 'readable': a splice takes what is buffered, without a
// read() of theirs, and they hear of what comes after it all the same.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { run, settled, socketPair, tlsPair, turns } = require('../common/tls-splice');

async function until(condition) {
  while (!condition())
    await turns(1);
}

// A socket that a splice reads, the other side of that, and the other side of
// what the splice writes to.
const subjects = {
  async 'a TLSSocket'(direction) {
    const { client: from, server: socket } = await tlsPair({ allowHalfOpen: true });
    const { 0: stream, 1: to } = await socketPair();
    return { socket, from, to, make: () => socket.spliceTo({ stream, direction }) };
  },
  async 'a net.Socket'(direction) {
    const mirrored = direction === 'in' ? 'out' : direction;
    const { client: to, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: socket, 1: from } = await socketPair();
    return {
      socket, from, to,
      make: () => server.spliceTo({ stream: socket, direction: mirrored }),
    };
  },
  async 'another TLSSocket'(direction) {
    const mirrored = direction === 'in' ? 'out' : direction;
    const { client: to, server } = await tlsPair({ allowHalfOpen: true });
    const { client: from, server: socket } = await tlsPair({ allowHalfOpen: true });
    return {
      socket, from, to,
      make: () => server.spliceTo({ stream: socket, direction: mirrored }),
    };
  },
};

// Each of them adds to `got` what it reads.
const readers = {
  listener(socket, got) {
    socket.on('readable', () => {
      let chunk;
      while ((chunk = socket.read()) !== null)
        got.text += chunk;
    });
  },
  async iterator(socket, got) {
    for await (const chunk of socket)
      got.text += chunk;
  },
  // Never more than is there already, but for the last time
  'read(n)'(socket, got) {
    socket.on('readable', () => {
      let chunk;
      while ((chunk = socket.read(3)) !== null)
        got.text += chunk;
    });
  },
  // One that comes and goes
  once(socket, got) {
    socket.once('readable', function onReadable() {
      let chunk;
      while ((chunk = socket.read()) !== null)
        got.text += chunk;
      socket.once('readable', onReadable);
    });
  },
};

// What JavaScript has when the splice begins
const befores = {
  nothing() {},
  unshifted({ socket }) { socket.unshift('abc'); },
  async 'unshifted, and told'({ socket }) {
    // By when nobody listens
    const listeners = socket.rawListeners('readable');
    socket.removeAllListeners('readable');
    socket.unshift('abc');
    await turns();
    for (const listener of listeners)
      socket.on('readable', listener.listener ?? listener);
  },
};

// How long it takes
const durations = {
  'not at all': () => {},
  'a tick': () => new Promise(process.nextTick),
  'some turns': () => turns(),
};

for (const [subject, connect] of Object.entries(subjects)) {
  for (const [reader, read] of Object.entries(readers)) {
    for (const [before, prepare] of Object.entries(befores)) {
      for (const [duration, wait] of Object.entries(durations)) {
        for (const direction of duration === 'a tick' ? ['in'] : ['in', 'duplex']) {
          run(async () => {
            const context = await connect(direction);
            const { socket, from, to, make } = context;
            const name = [subject, reader, before, duration, direction].join(', ');
            const got = { text: '' };
            let moved = 0;
            to.resume();
            from.setNoDelay(true);
            const reading = read(socket, got);
            reading?.catch(() => {});
            await turns();
            let expected = 0;
            // Twice, since the first may leave something behind for the second.
            for (let i = 0; i < 2; i++) {
              await prepare(context);
              expected += before === 'nothing' ? 0 : 3;
              const splice = make().start();
              await wait();
              const { bytesIn, bytesOut } = await splice.stop();
              moved += bytesIn + bytesOut;
              await turns();
              from.write('defghi');
              expected += 6;
              await until(() => socket.bytesRead === (i + 1) * 6);
              await turns();
              assert.strictEqual(moved + got.text.length, expected, name);
            }
            // What went by the splice is what was there before.
            assert.strictEqual(got.text.replaceAll('abc', ''), 'defghidefghi', name);
          });
        }
      }
    }
  }
}

// What is read while it is spliced, and not taken by the sink, is told as well.
for (const [reader, read] of Object.entries(readers)) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: to, 1: stream } = await socketPair('unix', { pauseOnConnect: true });
    to.pause();
    const got = { text: '' };
    read(server, got)?.catch(() => {});
    await turns();
    server.unshift('abc');
    const splice = server.spliceTo({ stream, direction: 'in' }).start();
    const chunk = 'x'.repeat(65536);
    let sent = 3;
    for (let i = 0; i < 100; i++, sent += chunk.length)
      client.write(chunk);
    await settled(() => splice.stats.bytesIn);
    const { bytesIn } = await splice.stop();
    assert(bytesIn < sent);
    client.write('last');
    sent += 4;
    await until(() => server.bytesRead === sent - 3);
    await turns();
    let left = sent - bytesIn;
    if (reader === 'read(n)')
      left -= left % 3;
    assert.strictEqual(got.text.length, left);
  });
}

// The end, too
for (const read of Object.values(readers)) {
  for (const stop of [true, false]) {
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      const { 0: stream, 1: to } = await socketPair();
      to.resume();
      const got = { text: '' };
      const reading = read(server, got);
      server.on('end', common.mustCall());
      await turns();
      server.unshift('abc');
      const splice = server.spliceTo({ stream, direction: 'in' }).start();
      if (stop)
        await splice.stop();
      client.end('defghi');
      await until(() => server.bytesRead === 6 && server._readableState.ended);
      await turns();
      assert.strictEqual(server.readableEnded, true);
      assert.strictEqual(splice.stats.bytesIn + got.text.length, 9);
      await reading;
    });
  }
}
