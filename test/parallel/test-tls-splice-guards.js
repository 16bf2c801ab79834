'use strict';

// JavaScript cannot write to what a splice writes to, whichever method it uses
// and whenever it got hold of it, and has its methods back afterwards. A socket
// that is not spliced has the methods and the properties that it always had.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const net = require('net');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, key, payload, receive, run, send, settled, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 1 * MiB + 5;
const state = { code: 'ERR_INVALID_STATE', name: 'Error' };
const kMethods = ['write', 'end', '_write', '_writev'];

// The next `length` bytes, in however many pieces they come
async function text(socket, length) {
  let got = '';
  while (got.length < length)
    got += (await once(socket, 'data'))[0];
  return got;
}

// What the Writable knows of itself
function writableState({ _writableState: s }) {
  return {
    length: s.length, writelen: s.writelen, pendingcb: s.pendingcb, writing: s.writing,
    writecb: s.writecb.name, needDrain: s.needDrain, corked: s.corked,
    buffered: s.bufferedRequestCount, errored: s.errored, ending: s.ending,
    ended: s.ended, destroyed: s.destroyed,
  };
}

// Sockets that a splice, which `make()` makes, writes to: `peer` gets what `source`
// sends.
const spliced = {
  async server(direction) {
    const { client: peer, server: socket } = await tlsPair({ allowHalfOpen: true });
    const { 0: stream, 1: source } = await socketPair();
    return { socket, peer, source, make: () => socket.spliceTo({ stream, direction }) };
  },
  async client(direction) {
    const { client: socket, server: peer } = await tlsPair({ allowHalfOpen: true });
    const { 0: stream, 1: source } = await socketPair();
    return { socket, peer, source, make: () => socket.spliceTo({ stream, direction }) };
  },
  async fd(direction) {
    const { client: peer, server: socket } = await tlsPair({ allowHalfOpen: true });
    const { 0: source, 1: { _handle: { fd } } } =
      await socketPair('tcp', { pauseOnConnect: true });
    return { socket, peer, source, make: () => socket.spliceTo({ fd, direction }) };
  },
  async 'the other TLSSocket'(direction) {
    const mirrored = direction === 'out' ? 'in' : direction;
    const { client: peer, server: socket } = await tlsPair({ allowHalfOpen: true });
    const { client: source, server } = await tlsPair({ allowHalfOpen: true });
    return {
      socket, peer, source,
      make: () => server.spliceTo({ stream: socket, direction: mirrored }),
    };
  },
  async endpoint(direction) {
    const mirrored = direction === 'out' ? 'in' : direction;
    const { client: source, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: socket, 1: peer } = await socketPair();
    return {
      socket, peer, source,
      make: () => server.spliceTo({ stream: socket, direction: mirrored }),
    };
  },
  async 'unix endpoint'(direction) {
    const mirrored = direction === 'out' ? 'in' : direction;
    const { client: source, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: socket, 1: peer } = await socketPair('unix');
    return {
      socket, peer, source,
      make: () => server.spliceTo({ stream: socket, direction: mirrored }),
    };
  },
};

// The same before the handshake, which waits for `secure()`.
for (const kind of ['socket', 'endpoint']) {
  spliced[`${kind} before the handshake`] = async (direction) => {
    const { 0: a, 1: b } = await socketPair();
    const { 0: stream, 1: other } = await socketPair();
    const early = tls.connect({ socket: a, rejectUnauthorized: false });
    let secure;
    const peerOf = new Promise((resolve) => {
      secure = () => resolve(new tls.TLSSocket(b, {
        isServer: true, secureContext: tls.createSecureContext({ key, cert }),
      }));
    });
    const mirrored = direction === 'out' ? 'in' : direction;
    return {
      socket: kind === 'socket' ? early : stream,
      peer: kind === 'socket' ? peerOf : other,
      source: kind === 'socket' ? other : peerOf,
      make: () => early.spliceTo({
        stream, direction: kind === 'socket' ? direction : mirrored,
      }),
      secure,
    };
  };
}

const cases = [];
for (const kind of Object.keys(spliced)) {
  for (const direction of ['out', 'duplex'])
    cases.push({ kind, direction });
}

// What the series gives to a socket, or could give.
const kOurs = /splice|pipeToNative|takeover|guard|idle|kTLSError|reader$|writer$/i;

function keysOf(object) {
  return Reflect.ownKeys(object).map(String);
}

function assertUnspliced(...sockets) {
  for (const socket of sockets) {
    const keys = keysOf(socket);
    for (const name of kMethods) {
      assert.strictEqual(keys.includes(name), false, name);
      assert.strictEqual(socket[name], net.Socket.prototype[name]);
    }
    assert.deepStrictEqual(keys.filter((name) => kOurs.test(name)), []);
    assert.deepStrictEqual(keysOf(socket._handle).filter((name) => kOurs.test(name)), []);
  }
}

// As it is without splices: nothing of its own, nothing new on the prototypes. What the
// first splice of a socket gives to it is all that there is to be seen.
run(async () => {
  const kNew = ['pipeToNative', 'spliceTo'];
  for (const name of [...kMethods, '_final', '_destroy', '_onTimeout'])
    assert.strictEqual(Object.hasOwn(tls.TLSSocket.prototype, name), false, name);
  assert.deepStrictEqual(keysOf(tls.TLSSocket.prototype).filter((name) => kOurs.test(name)).sort(), kNew);
  assert.deepStrictEqual(
    Object.getOwnPropertySymbols(tls.TLSSocket.prototype)
      .map(({ description }) => description),
    ['kReinitializeHandle']);
  assert.deepStrictEqual(keysOf(net.Socket.prototype).filter((name) => kOurs.test(name)), []);
  const { client, server } = await tlsPair();
  const { 0: plain } = await socketPair();
  assertUnspliced(client, server, plain);
  assert.strictEqual(client.write, Duplex.prototype.write);

  const before = [server, plain].map(keysOf);
  const splice = server.spliceTo({ stream: plain }).start();
  for (const [i, socket] of [server, plain].entries()) {
    const added = keysOf(socket).filter((name) => !before[i].includes(name));
    assert.deepStrictEqual(added.sort(), ['Symbol(kTakeover)', ...kMethods].sort());
  }
  assertUnspliced(client);
  await splice.stop();

  // Nor has one that is made when there has been a splice.
  const { client: laterClient, server: laterServer } = await tlsPair();
  assertUnspliced(laterClient, laterServer);
});

// What is set on a prototype is called for all sockets, whether they connect or
// are accepted, now or later.
run(async () => {
  const before = await tlsPair({ allowHalfOpen: true });
  for (const prototype of [tls.TLSSocket.prototype, net.Socket.prototype]) {
    const after = await tlsPair({ allowHalfOpen: true });
    for (const socket of [before.client, before.server, after.client, after.server]) {
      const original = Object.getOwnPropertyDescriptor(prototype, 'write');
      const calls = [];
      prototype.write = function write(chunk, ...args) {
        if (this === socket)
          calls.push(`${chunk}`);
        return Duplex.prototype.write.call(this, chunk, ...args);
      };
      socket.write('x');
      // Also while it is spliced: this is what renegotiate() does.
      const { 0: endpoint } = await socketPair();
      const splice = socket.spliceTo({ stream: endpoint }).start();
      socket.write('');
      assert.throws(() => socket.write('y'), state);
      await splice.stop();
      socket.write('z');
      if (original)
        Object.defineProperty(prototype, 'write', original);
      else
        delete prototype.write;
      assert.deepStrictEqual(calls, ['x', '', 'z']);
    }
  }
});

for (const { kind, direction } of cases) {
  // Methods that were got before, during, and after the splice: none of them gets
  // a byte through, and each works before and afterwards.
  run(async () => {
    const { socket, peer: peerOf, source: sourceOf, make, secure } =
      await spliced[kind](direction);
    const keys = Object.getOwnPropertyNames(socket);
    const before = Object.fromEntries(kMethods.map((name) => [name, socket[name]]));
    const splice = make().start();
    const during = Object.fromEntries(kMethods.map((name) => [name, socket[name]]));
    for (const name of kMethods) {
      const { value, ...attributes } = Object.getOwnPropertyDescriptor(socket, name);
      assert.strictEqual(value, during[name]);
      assert.deepStrictEqual(attributes, {
        configurable: true, enumerable: false, writable: true,
      });
    }

    const refused = () => {
      for (const { write, end } of [socket, before, during]) {
        for (const chunk of ['LEAK', Buffer.from('LEAK'), new Uint8Array(4)]) {
          const was = writableState(socket);
          const { bytesWritten } = socket;
          assert.throws(() => write.call(socket, chunk), state);
          assert.throws(() => write.call(socket, chunk, common.mustNotCall()), state);
          if (typeof chunk === 'string')
            assert.throws(() => write.call(socket, chunk, 'latin1', common.mustNotCall()), state);
          assert.throws(() => end.call(socket, chunk), state);
          assert.throws(() => end.call(socket, chunk, common.mustNotCall()), state);
          assert.deepStrictEqual(writableState(socket), was);
          assert.strictEqual(socket.bytesWritten, bytesWritten);
        }
        // Null is nothing to be written.
        assert.throws(() => write.call(socket, null), { name: /^(Type)?Error$/ });
      }
    };
    refused();
    if (secure)
      await turns();
    refused();
    secure?.();
    const peer = await peerOf;
    const source = await sourceOf;
    const received = receive(peer);
    await send(source, kSize, { end: false });
    refused();
    await received.receiver.reached(kSize);
    refused();
    received.receiver.check(kSize);
    await splice.stop();

    for (const name of kMethods)
      assert.strictEqual(socket[name], before[name], name);
    assert.deepStrictEqual(Object.getOwnPropertyNames(socket), keys);
    const after = Object.fromEntries(kMethods.map((name) => [name, socket[name]]));
    let bytes = kSize;
    for (const { write } of [socket, before, during, after]) {
      write.call(socket, 'works', common.mustSucceed());
      await received.receiver.reached(bytes += 5);
    }
    assert.strictEqual(received.receiver.bytes, bytes);
    during.end.call(socket, 'works', common.mustSucceed());
    await received;
    assert.strictEqual(received.receiver.bytes, bytes + 5);
    source.destroy();
  });

  // What a tool has put on the socket before is called for what JavaScript may do,
  // and is there again afterwards; what it puts there meanwhile stays.
  run(async () => {
    const { socket, peer: peerOf, source: sourceOf, make, secure } =
      await spliced[kind](direction);
    const calls = [];
    const wrap = (name) => {
      const original = socket.write;
      socket.write = function(chunk, ...args) {
        calls.push(name);
        return Reflect.apply(original, this, [chunk, ...args]);
      };
      return socket.write;
    };
    const first = wrap('first');
    let splice = make().start();
    assert.throws(() => socket.write('LEAK'), state);
    assert.deepStrictEqual(calls.splice(0), []);
    const second = wrap('second');
    assert.throws(() => socket.write('LEAK'), state);
    assert.throws(() => first.call(socket, 'LEAK'), state);
    assert.deepStrictEqual(calls.splice(0), ['second', 'first']);
    await splice.stop();
    assert.strictEqual(socket.write, second);
    assert.strictEqual(Object.getOwnPropertyDescriptor(socket, 'write').enumerable, true);

    // Again, over that
    splice = make().start();
    assert.throws(() => socket.write('LEAK'), state);
    assert.throws(() => second.call(socket, 'LEAK'), state);
    assert.deepStrictEqual(calls.splice(0), ['second']);
    socket.write('');
    assert.deepStrictEqual(calls.splice(0), ['second', 'first']);
    const third = wrap('third');
    assert.throws(() => third.call(socket, 'LEAK'), state);
    calls.length = 0;
    await splice.stop();
    assert.strictEqual(socket.write, third);
    secure?.();
    const received = receive(await peerOf);
    socket.write('works');
    assert.deepStrictEqual(calls, ['third', 'second', 'first']);
    await received.receiver.reached(5);
    assert.strictEqual(received.receiver.bytes, 5);

    // Put back
    socket.write = first;
    splice = make().start();
    await splice.stop();
    assert.strictEqual(socket.write, first);
    assert.strictEqual(Object.getOwnPropertyDescriptor(socket, 'write').enumerable, true);
    delete socket.write;
    assert.strictEqual(socket.write, net.Socket.prototype.write);
    (await sourceOf).destroy();
  });

  // A method that was got before, while the Writable only queues: it cannot throw
  // there, and is told. Nothing of it goes out, and what was written before does.
  for (const how of ['corked before', 'corked meanwhile', 'pending']) {
    run(async () => {
      const { socket, peer: peerOf, source: sourceOf, make, secure } =
        await spliced[kind](direction);
      secure?.();
      const { 0: peer, 1: source } = await Promise.all([peerOf, sourceOf]);
      for (const each of [socket, peer, source])
        each.on('error', () => {});
      const { write } = socket;
      let expected = 0;
      if (how === 'corked before') {
        socket.cork();
        socket.write('first');
        socket.write('second');
        expected = 11;
      } else if (how === 'pending') {
        // More than the kernel takes
        peer.pause();
        for (const chunk of payload(16 * MiB))
          socket.write(chunk);
        assert(socket.writableLength > 0);
        expected = 16 * MiB;
      }
      const splice = make().start();
      splice.on('error', () => {});
      if (how === 'corked meanwhile') {
        await turns();
        socket.cork();
      }
      const failed = [];
      const done = new Promise((resolve) => {
        write.call(socket, 'LEAK', (err) => { failed.push(err.code); resolve(); });
      });
      if (how !== 'pending')
        socket.uncork();
      const received = receive(peer);
      received.catch(() => {});
      await done;
      assert.deepStrictEqual(failed, ['ERR_INVALID_STATE']);
      await settled(() => received.receiver.bytes);
      assert.strictEqual(received.receiver.bytes, expected);
    });
  }
}

// What JavaScript has written before still goes first, in its order, and is
// called back; what comes after is refused from start() on.
for (const kind of Object.keys(spliced)) {
  for (const corked of [true, false]) {
    run(async () => {
      const { socket, peer: peerOf, source: sourceOf, make, secure } =
        await spliced[kind]('out');
      let called = 0;
      if (corked)
        socket.cork();
      for (let i = 0; i < 20; i++)
        socket.write(`${i % 10}`, common.mustSucceed(() => called++));
      const splice = make().start();
      assert.throws(() => socket.write('LEAK'), state);
      if (corked) {
        await turns();
        assert.throws(() => socket.write('LEAK'), state);
        socket.uncork();
      }
      secure?.();
      const peer = await peerOf;
      (await sourceOf).end('spliced');
      let got = '';
      peer.setEncoding('latin1').on('data', (chunk) => got += chunk);
      await once(peer, 'end');
      assert.strictEqual(got, '01234567890123456789spliced');
      assert.strictEqual(called, 20);
      if (kind !== 'endpoint before the handshake' && !kind.includes('the other'))
        peer.end();
      await Promise.race([splice.finished, settled(() => splice.state)]);
    });
  }
}

// A splice that is over, or given up, before what was written has gone: it goes
// all the same, and so does what is written then.
for (const kind of Object.keys(spliced)) {
  for (const times of [1, 3]) {
    run(async () => {
      const { socket, peer: peerOf, make, secure } = await spliced[kind]('out');
      socket.cork();
      socket.write('before ');
      for (let i = 0; i < times; i++) {
        const splice = make().start();
        assert.throws(() => socket.write('LEAK'), state);
        await splice.stop();
        socket.write(`${i} `);
      }
      const last = make().start();
      assert.throws(() => socket.write('LEAK'), state);
      socket.uncork();
      secure?.();
      const expected = `before ${times === 1 ? '0 ' : '0 1 2 '}`;
      assert.strictEqual(await text(await peerOf, expected.length), expected);
      await last.stop();
      for (const name of kMethods)
        assert.strictEqual(Object.hasOwn(socket, name), false, name);
      socket.write('after');
      assert.strictEqual(await text(await peerOf, 5), 'after');
    });
  }
}

// end() without data is allowed, and an endpoint whose direction is over is not
// guarded any more.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint, end: false }).start();
  client.end('last');
  assert.strictEqual(await text(other, 4), 'last');
  await settled(() => Object.hasOwn(endpoint, 'write'));
  assert.strictEqual(splice.state, 'running');
  endpoint.end('JS');
  assert.strictEqual(await text(other, 2), 'JS');
  other.end();
  assert.strictEqual((await splice.finished).reason, 'end');
  server.end();
});

// end() of another side puts a write() there that says so.
run(async () => {
  const { 0: a, 1: b } = await socketPair('tcp', { allowHalfOpen: false });
  const { client, server } = tlsOver(a, b);
  await once(client, 'secure');
  const { 0: endpoint, 1: other } = await socketPair();
  other.resume();
  const splice = server.spliceTo({ stream: endpoint }).start();
  await turns();
  client.end();
  client.resume();
  await splice.finished;
  assert.strictEqual(server.writableEnded, true);
  for (const name of ['end', '_write', '_writev'])
    assert.strictEqual(Object.hasOwn(server, name), false, name);
});
