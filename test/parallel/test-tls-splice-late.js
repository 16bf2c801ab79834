'use strict';

// What had happened before start(), and what has to wait: a peer that has ended
// or gone, writes that are pending, a source that somebody else reads.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, closing, receive, run, send, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 100_000;

// 'out' begins when 'in' is over: JS's write takes longer than the peer's end.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  other.resume();
  client.pause();
  client.end();
  // More than the kernel takes.
  const before = Buffer.alloc(16 * 1024 * 1024, 'x');
  server.write(before);
  const splice = server.spliceTo({ stream: endpoint, end: false }).start();
  await once(server.resume(), 'end');
  let bytes = 0;
  const reached = new Promise((resolve) => client.on('data', (chunk) => {
    bytes += chunk.length;
    if (bytes === before.length + kSize)
      resolve();
  }));
  client.resume();
  await Promise.all([reached, send(other, kSize)]);
  const stats = await splice.finished;
  assert.strictEqual(stats.reason, 'end');
  assert.strictEqual(stats.bytesOut, kSize);
  assert.strictEqual(stats.closeNotify, true);
});

// The peer goes when its session tickets are about to go out. Nobody hears of that
// write; the splice must.
for (const pending of [false, true]) {
  for (const by of ['fd', 'stream']) {
    run(async () => {
      const { 0: a, 1: b } = await socketPair('unix');
      const { client, server } = tlsOver(a, b, { allowHalfOpen: true, minVersion: 'TLSv1.3' });
      server.on('error', () => {});
      client.on('error', () => {});
      server.once('secure', () => client.destroy());
      await once(server.resume(), 'end');
      assert.strictEqual(server.destroyed, false);
      if (pending)
        server.write('nobody reads this');
      const { 0: endpoint, 1: other } = await socketPair();
      const target = by === 'fd' ? { fd: endpoint._handle.fd } : { stream: endpoint };
      const splice = server.spliceTo(target).start();
      other.resume().end('nor this');
      await assert.rejects(splice.finished, { code: 'EPIPE', syscall: 'write' });
      assert.strictEqual(splice.stats.reason, 'error');
      assert.strictEqual(server.destroyed, true);
    });
  }
}

// The tickets fail after the splice has started, and before JavaScript's own write gets to
// the TLSWrap, which never calls that back then.
for (const by of ['fd', 'stream']) {
  for (const release of ['uncork', 'stop']) {
    run(async () => {
      const { 0: raw, 1: b } = await socketPair();
      const { 0: endpoint, 1: other } = await socketPair('unix');
      const { client, server } = tlsOver(raw, b, { allowHalfOpen: true, minVersion: 'TLSv1.3' });
      server.on('error', () => {});
      client.on('error', () => {});
      let splice;
      let closed;
      const written = new Promise((resolve) => {
        server.once('secure', () => {
          server.cork();
          server.write(Buffer.alloc(kSize), resolve);
          const target = by === 'fd' ? { fd: endpoint._handle.fd } : { stream: endpoint };
          splice = server.spliceTo({ ...target, direction: 'out' }).start();
          splice.on('error', () => {});
          closed = closing(splice);
          raw.resetAndDestroy();
        });
      });
      await once(server.resume(), 'end');
      await turns();
      assert.strictEqual(splice.state, 'running');
      if (release === 'uncork') {
        server.uncork();
        assert.strictEqual((await closed).reason, 'error');
        assert.match(splice.errored.code, /^(ECONNRESET|EPIPE)$/);
        assert.strictEqual(splice.errored.side, 'tls');
        assert.ok(await written instanceof Error);
        assert.strictEqual(server.destroyed, true);
      } else {
        assert.strictEqual((await splice.stop()).reason, 'stopped');
      }
      for (const socket of [client, server, endpoint, other])
        socket.destroy();
    });
  }
}

// end() does not fail because the endpoint has.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const received = receive(client);
  const splice = server.spliceTo({ stream: endpoint }).start();
  splice.on('error', common.mustCall((err) => assert.match(err.code, /^(EPIPE|ECONNRESET)$/)));
  server.on('error', common.mustNotCall());
  const closed = closing(splice);
  client.write('nobody takes this');
  other.resetAndDestroy();
  server.end(common.mustCall((err) => assert.ifError(err)));
  await closed;
  assert.strictEqual(splice.stats.reason, 'error');
  await received;
  assert.strictEqual(server.writableFinished, true);
  client.end();
  await once(server.resume(), 'end');
});

// A stream is read by one splice at a time, until that is closed.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const second = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, end: false }).start();
  const refused = { code: 'ERR_INVALID_STATE' };
  const another = second.server.spliceTo({ stream: endpoint });
  assert.throws(() => another.start(), refused);
  // Its source is over, and JS writes again; the stream it has nevertheless.
  other.end();
  let wrote = false;
  while (!wrote) {
    await turns(1);
    try {
      server.write('from JS');
      wrote = true;
    } catch (err) {
      assert.strictEqual(err.code, 'ERR_INVALID_STATE');
    }
  }
  assert.strictEqual(splice.state, 'running');
  const again = server.spliceTo({ stream: endpoint, direction: 'out' });
  assert.throws(() => again.start(), refused);
  client.setEncoding('utf8');
  const { 0: text } = await once(client, 'data');
  assert.strictEqual(text, 'from JS');
  await splice.stop();
  another.start();
  await another.stop();
  await again.stop();
  assert.strictEqual(endpoint.destroyed, false);
});

// JS has read the endpoint to its end, and not taken it. A splice that is stopped
// before its turn comes gives both back.
for (const stop of [true, false]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    other.end('hello');
    endpoint.on('readable', () => {});
    while (!endpoint._readableState.ended) {
      await turns(1);
      endpoint.read(0);
    }
    endpoint.removeAllListeners('readable');
    assert.strictEqual(endpoint.readableLength, 5);
    client.pause();
    // More than the kernel takes.
    const size = 16 * 1024 * 1024;
    server.write(Buffer.alloc(size));
    const splice = server.spliceTo({ stream: endpoint, direction: 'out' }).start();
    await turns();
    if (stop) {
      assert.strictEqual((await splice.stop()).bytesOut, 0);
      assert.strictEqual(`${Buffer.concat(await endpoint.toArray())}`, 'hello');
    } else {
      assert.strictEqual((await receive(client)).bytes, size + 5);
      assert.strictEqual((await splice.finished).bytesOut, 5);
    }
  });
}

// JavaScript takes the last bytes of a socket that has ended, and gives them back with
// unshift(), as one that looks for a header does: the splice has them and the end, also if
// the sink is full.
for (const direction of ['in', 'out']) {
  for (const stop of [false, true]) {
    run(async () => {
      const { client, server } = await tlsPair();
      const { 0: endpoint, 1: other } = await socketPair();
      const [source, far, sink] = direction === 'in' ? [server, client, other] : [endpoint, other, client];
      const filler = Buffer.alloc(16 * 1024 * 1024);
      sink.pause();
      (direction === 'in' ? endpoint : server).write(filler);
      far.resume().end('request');
      while (!source._readableState.ended) {
        await turns(1);
        source.read(0);
      }
      const head = source.read();
      assert.strictEqual(`${head}`, 'request');
      source.unshift(head);
      const splice = server.spliceTo({ stream: endpoint, direction }).start();
      await turns();
      assert.strictEqual(source.readableEnded, false);
      if (stop) {
        await splice.stop();
        assert.strictEqual(`${Buffer.concat(await source.toArray())}`, 'request');
      } else {
        const { bytes } = await receive(sink);
        assert.strictEqual(bytes, filler.length + head.length);
        assert.strictEqual((await splice.finished).reason, 'end');
      }
      for (const socket of [client, server, endpoint, other])
        socket.destroy();
    });
  }
}

// The shutdown waits for what a splice has written. A stream of JS takes one
// write at a time, and the peer can make TLS write another in that moment.
const shutdown = (flushed) => async () => {
  const { 0: a, 1: b } = await socketPair();
  const held = [];
  let hold = false;
  const under = new Duplex({
    autoDestroy: false,
    read() {},
    write(chunk, encoding, callback) {
      if (hold)
        held.push(() => a.write(chunk, callback));
      else
        a.write(chunk, callback);
    },
  });
  a.on('data', (chunk) => under.push(chunk));
  const { client, server } = tlsOver(b, under, { allowHalfOpen: true });
  client.on('error', () => {});
  await Promise.all([once(client, 'secure'), once(server, 'secure')]);
  await turns();
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  hold = !flushed;
  other.write('held');
  if (flushed)
    await once(client, 'data');
  while (hold && held.length === 0)
    await turns(1);
  await splice.stop();
  hold = true;
  // Without a tls.Server it does not become 'error'.
  const failed = once(server, '_tlsError');
  server.end();
  await turns();
  under.push(Buffer.from('\x17\x03\x03\x00\x05wrong', 'latin1'));
  const { 0: err } = await failed;
  assert.match(err.code, /^ERR_SSL_/);
  hold = false;
  for (const write of held.splice(0))
    write();
};
run(shutdown(false));
run(shutdown(true));

// TLS has failed, JS has seen the end, and the splice fails for that: nothing of it
// is left in OpenSSL's error queue for a connection that is read next.
run(async () => {
  const { 0: a, 1: b } = await socketPair();
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  await Promise.all([once(client, 'secure'), once(server, 'secure')]);
  const bystander = await tlsPair();
  const received = receive(bystander.server);
  client.on('error', () => {});
  server.on('error', () => {});
  const ended = new Promise((resolve) => server.on('end', resolve));
  server.resume();
  a.end('this is no record of TLS');
  await ended;
  const { 0: endpoint, 1: other } = await socketPair();
  other.resume();
  const splice = server.spliceTo({ stream: endpoint, direction: 'in' });
  const failed = assert.rejects(splice.start().finished, { code: 'ERR_SSL_BAD_RECORD_TYPE' });
  await Promise.all([failed, send(bystander.client, kSize)]);
  (await received).check(kSize);
});

// A socket that is not half-open closes itself when its peer has ended in the
// handshake, which may be before the first turn of a splice that was started earlier.
// It is over all the same, whichever of the two TLSSockets that is.
for (const version of ['TLSv1.2', 'TLSv1.3']) {
  for (const isEndpoint of [false, true]) {
    for (const role of ['server', 'client']) {
      for (const kind of ['unix', 'tcp']) {
        run(async () => {
          const { client, server } = await tlsPair();
          const below = await socketPair(kind);
          const options = { minVersion: version, maxVersion: version };
          const pair = tlsOver(...below, { server: options, client: options });
          const early = pair[role];
          const other = role === 'server' ? pair.client : pair.server;
          early.allowHalfOpen = false;
          client.resume();
          const [socket, stream] = isEndpoint ? [server, early] : [early, server];
          const splice = socket.spliceTo({ stream, direction: isEndpoint ? 'out' : 'in' }).start();
          other.once('secure', () => other.end());
          other.resume();
          const stats = await splice.finished;
          assert.strictEqual(stats.reason, 'end');
          assert.strictEqual(stats.closeNotify, !isEndpoint);
          for (const tlsSocket of [client, server, early, other])
            tlsSocket.destroy();
        });
      }
    }
  }
}

// The endpoint is a TLSSocket whose peer goes in the middle of the handshake: the
// splice ends, and so does the endpoint.
for (const direction of ['in', 'out', 'duplex']) {
  for (const allowHalfOpen of [false, true]) {
    run(async () => {
      const { client, server } = await tlsPair();
      client.on('error', () => {});
      server.on('error', () => {});
      const { 0: a, 1: b } = await socketPair('unix');
      const { client: other, server: endpoint } = tlsOver(a, b);
      endpoint.allowHalfOpen = allowHalfOpen;
      endpoint.on('error', () => {});
      other.on('error', () => {});
      const splice = server.spliceTo({ stream: endpoint, direction });
      const closed = Promise.all([closing(splice), closing(endpoint)]);
      splice.on('error', () => {});
      splice.start();
      client.write('nobody reads this');
      a.destroy();
      if (allowHalfOpen)
        endpoint.once('end', () => endpoint.end());
      endpoint.resume();
      await closed;
      client.destroy();
      server.destroy();
    });
  }
}

// The endpoint is destroyed while 'out' waits for a socket that is corked, and has not
// emitted 'close' when that is over. The memory of other handles may have been used anew.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  client.resume();
  const { 0: used } = await socketPair();
  for (let i = 0; i < 250; i++) {
    const splice = server.spliceTo({ fd: used._handle.fd, direction: 'out' }).start();
    await splice.stop();
    await turns(1);
  }
  for (const direction of ['out', 'duplex']) {
    const { 0: endpoint } = await socketPair();
    server.cork();
    const splice = server.spliceTo({ stream: endpoint, direction }).start();
    await turns();
    endpoint.destroy();
    server.uncork();
    await assert.rejects(splice.finished, { code: 'ERR_STREAM_PREMATURE_CLOSE', side: 'endpoint' });
    assert.strictEqual(server.destroyed, false);
  }
});

// JavaScript reads what was given back in the turn in which the next splice starts.
// start() calls no listener with the rest, which could change anything after the checks.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const size = 8 * MiB;
  client.write(Buffer.alloc(size, 'x'));
  const first = server.spliceTo({ stream: endpoint, direction: 'in', highWaterMark: 2000 }).start();
  await settled(() => first.stats.bytesIn);
  server.pause();
  await first.stop();
  let starts = false;
  let read = 0;
  server.on('data', (chunk) => {
    assert.strictEqual(starts, false);
    read += chunk.length;
  });
  server.resume();
  // Node has emitted what is in the readable buffer by then, but not what OpenSSL holds.
  await new Promise(process.nextTick);
  await new Promise(process.nextTick);
  const second = server.spliceTo({ stream: endpoint, direction: 'in' });
  starts = true;
  second.start();
  starts = false;
  other.resume();
  client.end();
  await second.finished;
  assert.strictEqual(first.stats.bytesIn + read + second.stats.bytesIn, size);
});

// A splice has taken bytes and the end behind them, and gives both back. A reader takes the
// head and starts the next splice, which has what is left: the end comes behind that, and
// nobody hears of it before.
for (const side of ['socket', 'endpoint']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: side === 'endpoint' });
    const { 0: endpoint, 1: far } = await socketPair('tcp', { allowHalfOpen: side === 'socket' });
    far.allowHalfOpen = client.allowHalfOpen = true;
    const [from, source, sink, to] = side === 'socket' ?
      [client, server, endpoint, far] : [far, endpoint, server, client];
    const filler = Buffer.alloc(16 * MiB);
    const rest = Buffer.alloc(1000, 'x');
    to.pause();
    from.resume();
    // The sink is full for both splices, or 'out' waits until this is written.
    sink.write(filler);
    source.pause();
    from.end(Buffer.concat([Buffer.from('head'), rest]));
    while (!source._readableState.ended) {
      await turns(1);
      source.read(0);
    }
    const direction = side === 'socket' ? 'in' : 'out';
    const { 0: another } = await socketPair();
    const stream = side === 'socket' ? another : endpoint;
    const first = server.spliceTo({ stream, direction }).start();
    let second;
    let ended = false;
    source.on('end', () => ended = true);
    source.once('data', (chunk) => {
      assert.strictEqual(chunk.toString('latin1', 0, 4), 'head');
      source.pause();
      source.unshift(chunk.subarray(4));
      second = server.spliceTo({ stream: endpoint, direction }).start();
    });
    source.resume();
    await first.stop();
    await turns();
    assert.strictEqual(ended, false);
    assert.strictEqual(source.destroyed, false);
    const finished = second.finished;
    const chunks = await to.toArray();
    assert(Buffer.concat(chunks).equals(Buffer.concat([filler, rest])));
    const { reason, bytesIn, bytesOut } = await finished;
    assert.strictEqual(reason, 'end');
    assert.strictEqual(bytesIn + bytesOut, rest.length);
  });
}

// JavaScript has read the end of the peer, but not the bytes before it. When the splice gives
// that end, a 'readable' listener destroys the socket. The endpoint has been ended by then.
for (const kind of ['stream', 'fd']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair('tcp', { allowHalfOpen: true });
    endpoint.pause();
    client.resume().end('the bytes');
    let splice;
    const started = new Promise((resolve) => server.on('readable', () => {
      if (splice !== undefined) {
        server.destroy();
      } else if (server._readableState.ended) {
        const target = kind === 'fd' ? { fd: endpoint._handle.fd } : { stream: endpoint };
        splice = server.spliceTo({ ...target, direction: 'in' });
        setImmediate(() => resolve(splice.start()));
      }
    }));
    await started;
    const chunks = await other.toArray();
    assert.strictEqual(`${Buffer.concat(chunks)}`, 'the bytes');
    assert.strictEqual((await splice.finished).reason, 'end');
    for (const each of [client, server, endpoint, other])
      each.destroy();
  });
}
