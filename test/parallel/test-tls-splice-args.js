'use strict';

// Bad arguments and states get an error with a code, and change nothing.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const { constants: { errno: { EBADF } } } = require('os');
const net = require('net');
const { PassThrough } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  fifo, isOpen, run, socketPair, tlsPair,
} = require('../common/tls-splice');

run(async () => {
  const { client: socket, server: peer } = await tlsPair();
  peer.resume();
  const { reader, writer } = fifo();
  const { 0: endpoint, 1: other } = await socketPair();

  // For spliceTo() and for pipeToNative(), which rejects and never throws.
  const rejections = [];
  function bad(options, expected) {
    assert.throws(() => socket.spliceTo(options), expected);
    if (options !== null && typeof options === 'object' &&
        !('fd' in options && 'stream' in options)) {
      const { fd, stream, ...rest } = options;
      rejections.push(
        assert.rejects(socket.pipeToNative(fd ?? stream, rest), expected));
    }
  }

  const type = { code: 'ERR_INVALID_ARG_TYPE', name: 'TypeError' };
  const value = { code: 'ERR_INVALID_ARG_VALUE', name: 'TypeError' };
  const range = { code: 'ERR_OUT_OF_RANGE', name: 'RangeError' };

  for (const options of [undefined, null, 1, 'fd', true, []])
    bad(options, type);
  for (const options of [null, 1, 'duplex', true, []])
    rejections.push(assert.rejects(socket.pipeToNative(writer, options), type));

  // The endpoint
  bad({}, type);
  for (const fd of [null, '1', true, {}, [], 1n, Symbol('fd')])
    bad({ fd }, type);
  for (const fd of [-1, 1.5, NaN, Infinity, 2 ** 31, -(2 ** 31) - 1])
    bad({ fd }, range);
  for (const stream of [null, 1, 'stream', true, {}, [], net.createServer(),
                        process, () => {}]) {
    assert.throws(() => socket.spliceTo({ stream }), type);
    if (stream !== 1)
      rejections.push(assert.rejects(socket.pipeToNative(stream), type));
  }
  const hint = { ...value, message: /no native handle; use pipe\(\)/ };
  for (const stream of [new PassThrough(),
                        new PassThrough({ objectMode: true })]) {
    bad({ stream }, hint);
    rejections.push(assert.rejects(socket.pipeToNative(stream), hint));
  }
  bad({ fd: writer, stream: endpoint }, value);

  // -0 is standard input, whatever that is.
  const made = (fd) => {
    try {
      socket.spliceTo({ fd, direction: 'out' }).stop();
      return 'made';
    } catch (err) {
      return err.code;
    }
  };
  assert.strictEqual(made(-0), made(0));

  // Another `this`
  const { spliceTo, pipeToNative } = tls.TLSSocket.prototype;
  const self = { code: 'ERR_INVALID_THIS', name: 'TypeError' };
  for (const other of [undefined, null, {}, { encrypted: true }, endpoint,
                       new PassThrough(), tls.TLSSocket.prototype]) {
    assert.throws(() => spliceTo.call(other, { fd: writer, direction: 'in' }), self);
    rejections.push(
      assert.rejects(pipeToNative.call(other, writer, { direction: 'in' }), self));
  }
  endpoint.encrypted = true;
  assert.throws(() => spliceTo.call(endpoint, { fd: writer, direction: 'in' }),
                { code: 'ERR_INVALID_STATE' });
  delete endpoint.encrypted;

  // Options
  const fd = writer;
  const direction = 'in';
  for (const bad_ of [null, 1, true, {}, [], Symbol('in')])
    bad({ fd, direction: bad_ }, type);
  for (const bad_ of ['', 'both', 'IN', 'in ', 'toString', '__proto__'])
    bad({ fd, direction: bad_ }, value);
  for (const name of ['autoClose', 'end']) {
    for (const bad_ of [null, 0, 1, '', 'true', {}, []])
      bad({ fd, direction, [name]: bad_ }, type);
  }
  for (const head of [null, 1, 'head', true, {}, [], new ArrayBuffer(1)])
    bad({ fd, direction, head }, type);
  for (const head of [Buffer.alloc(1), Buffer.alloc(0)])
    bad({ fd: reader, direction: 'out', head }, value);
  for (const highWaterMark of [null, '1', true, {}, [], 1n])
    bad({ fd, direction, highWaterMark }, type);
  for (const highWaterMark of [0, -1, 1.5, NaN, Infinity, 2 ** 53])
    bad({ fd, direction, highWaterMark }, range);
  for (const signal of [null, 1, 'abort', true, {}, [], new AbortController()])
    bad({ fd, direction, signal }, type);

  // The endpoint's access mode
  for (const direction of ['in', 'duplex'])
    bad({ fd: reader, direction }, value);
  for (const direction of ['out', 'duplex'])
    bad({ fd: writer, direction }, value);

  // An fd that is not open
  {
    const fd = fs.openSync('/dev/null', 'r+');
    fs.closeSync(fd);
    assert(!isOpen(fd));
    for (const direction of ['in', 'out', 'duplex']) {
      const closed = {
        code: 'EBADF',
        errno: -EBADF,
        name: 'Error',
        syscall: 'open',
        message: /EBADF/,
      };
      assert.throws(() => socket.spliceTo({ fd, direction }), closed);
      await assert.rejects(socket.pipeToNative(fd, { direction }), closed);
    }
    assert(!isOpen(fd));
  }

  // A stream that is not connected, or no more
  {
    const invalid = { code: 'ERR_INVALID_STATE', name: 'Error' };
    const closed = { code: 'ERR_SOCKET_CLOSED', name: 'Error' };
    const fresh = new net.Socket();
    bad({ stream: fresh }, invalid);
    fresh.destroy();
    bad({ stream: fresh }, closed);
    // One that is connecting is no error, unless it has been destroyed.
    const server = net.createServer().listen(0);
    await once(server, 'listening');
    const connecting = net.connect(server.address().port);
    await socket.spliceTo({ stream: connecting }).stop();
    connecting.destroy();
    bad({ stream: connecting }, closed);
    server.close();
  }

  // Messages name what the caller has passed.
  for (const [options, message] of [
    [{ fd: 'x' }, /"options\.fd" property must be of type number or an instance of FileHandle\./],
    [{ fd: -1 }, /"options\.fd" is out of range/],
    [{ stream: 'x' }, /"options\.stream" property must be/],
    [{ stream: new PassThrough() }, /'options\.stream' has no native handle/],
    [{ stream: socket }, /'options\.stream' is the socket itself/],
    [{ fd: reader, direction: 'in' }, /'options\.fd' is not open for direction 'in'/],
    [{ fd: socket._handle.fd }, /'options\.fd' is the transport/],
    [{ stream: new net.Socket() }, /The stream is not connected$/],
  ]) {
    const { fd, stream, ...rest } = options;
    assert.throws(() => socket.spliceTo(options), { message });
    rejections.push(assert.rejects(socket.pipeToNative(fd ?? stream, rest), (err) => {
      assert.match(err.message, /target/);
      assert.doesNotMatch(err.message, /options|stream is/);
      return true;
    }));
  }
  for (const name of ['fd', 'stream']) {
    const options = { direction: 'in', [name]: name === 'fd' ? writer : endpoint };
    rejections.push(assert.rejects(socket.pipeToNative(writer, options), {
      ...value, message: new RegExp(`'options\\.${name}' cannot be combined with target`),
    }));
  }

  // Of several errors the first is reported, in the order in which the arguments are
  // documented. States come last.
  {
    const order = [
      ['direction', 'both'], ['autoClose', 0], ['end', 0], ['head', 'text'],
      ['highWaterMark', 0], ['signal', 0],
    ];
    const destroyed = new net.Socket().destroy();
    for (let i = 0; i < order.length; i++) {
      const options = Object.fromEntries(order.slice(i));
      const message = new RegExp(`options\\.${order[i][0]}\\b`);
      assert.throws(() => socket.spliceTo({ ...options, stream: destroyed }), { message });
      assert.throws(() => socket.spliceTo({ ...options, fd: 'x' }), { message: /options\.fd/ });
      rejections.push(assert.rejects(socket.pipeToNative(destroyed, options), { message }));
      rejections.push(assert.rejects(socket.pipeToNative('x', options), { message: /target/ }));
    }
    rejections.push(assert.rejects(socket.pipeToNative('x', 'options'), { message: /target/ }));
    rejections.push(assert.rejects(socket.pipeToNative(destroyed, 'x'), { message: /"options"/ }));
  }

  await Promise.all(rejections);

  // None of it has touched the sockets, or keeps a file descriptor.
  assert.strictEqual(socket.destroyed, false);
  assert.strictEqual(endpoint.destroyed, false);
  assert(isOpen(reader));
  assert(isOpen(writer));
  socket.write('still ');
  endpoint.write('there');
  const { 0: { 0: a }, 1: { 0: b } } =
    await Promise.all([once(peer, 'data'), once(other, 'data')]);
  assert.strictEqual(`${a}${b}`, 'still there');

  // The same direction twice
  {
    const state = { code: 'ERR_INVALID_STATE', name: 'Error' };
    const first = socket.spliceTo({ stream: endpoint });
    const second = socket.spliceTo({ fd: writer, direction: 'in' });
    const third = socket.spliceTo({ fd: reader, direction: 'out' });
    first.start();
    assert.throws(() => second.start(), state);
    assert.throws(() => third.start(), state);
    assert.strictEqual(second.state, 'idle');
    assert.strictEqual(first.state, 'running');
    assert.strictEqual(first.start(), first);
    // The promise rejects, and the socket is not destroyed for it.
    await assert.rejects(
      socket.pipeToNative(writer, { direction: 'in' }), state);
    assert.strictEqual(socket.destroyed, false);
    assert.strictEqual(first.state, 'running');
    await first.stop();
    assert.throws(() => first.start(), state);
    // Free again
    second.start();
    third.start();
    assert.strictEqual(socket.destroyed, false);
    await Promise.all([second.stop(), third.stop()]);
  }

  // Somebody decodes what is read
  {
    const { client, server } = await tlsPair();
    client.setEncoding('utf8');
    const splice = client.spliceTo({ fd: writer, direction: 'in' });
    assert.throws(() => splice.start(), { code: 'ERR_INVALID_STATE' });
    // What is written may still be spliced.
    await client.spliceTo({ fd: reader, direction: 'out' }).start().stop();
    client.destroy();
    server.destroy();
  }

  // Nothing can be written any more
  {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const splice = client.spliceTo({ fd: reader, direction: 'out' });
    client.end();
    assert.throws(() => splice.start(), { code: 'ERR_INVALID_STATE' });
    client.destroy();
    server.destroy();
  }

  // A destroyed socket
  {
    const splice = socket.spliceTo({ fd: writer, direction: 'in' });
    const closed = { code: 'ERR_SOCKET_CLOSED', name: 'Error' };
    socket.destroy();
    assert.throws(() => splice.start(), closed);
    bad({ fd: writer, direction: 'in' }, closed);
    bad({ stream: endpoint }, closed);
    await once(socket, 'close');
    bad({ fd: writer, direction: 'in' }, closed);
    assert.throws(() => new tls.TLSSocket().destroy().spliceTo({ fd: writer, direction: 'in' }), closed);
  }

  await Promise.all(rejections);
  peer.destroy();
  endpoint.destroy();
  other.destroy();
  fs.closeSync(reader);
  fs.closeSync(writer);
});

// What a program has put on all objects is no endpoint.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  const { reader, writer } = fifo();
  const names = ['fd', 'file', 'stream'];
  for (const name of names)
    Object.defineProperty(Object.prototype, name, { configurable: true, value: {} });
  try {
    const done = server.pipeToNative(writer, { __proto__: null, direction: 'in' });
    client.end('there');
    assert.strictEqual((await done).bytesIn, 5);
    const joined = server.pipeToNative(endpoint, { __proto__: null, direction: 'out' });
    other.end('back');
    endpoint.end();
    client.resume();
    assert.strictEqual((await joined).bytesOut, 4);
    await assert.rejects(server.pipeToNative(writer, { __proto__: null, autoClose: true }),
                         { code: 'ERR_SOCKET_CLOSED' });
  } finally {
    for (const name of names)
      delete Object.prototype[name];
  }
  assert.strictEqual(isOpen(writer), false);
  fs.closeSync(reader);
  endpoint.destroy();
});

// The class is for instanceof, not for making.
assert.strictEqual(typeof tls.TLSSplice, 'function');
assert.strictEqual(tls.TLSSplice.name, 'TLSSplice');
