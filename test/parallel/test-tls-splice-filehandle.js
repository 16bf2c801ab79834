'use strict';

// A FileHandle as the endpoint: the splice has a duplicate of its descriptor, and with
// autoClose it closes the FileHandle, which nobody else has to.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { spawnSync } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const { constants: { errno: { EBADF } } } = require('os');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, closing, fifo, isOpen, receive, run, send, settled, socketPair, tlsOver, tlsPair,
} = require('../common/tls-splice');
const tmpdir = require('../common/tmpdir');
tmpdir.refresh();

process.on('warning', (warning) => {
  // A FileHandle that the garbage collector closes would warn.
  if (warning.name !== 'ExperimentalWarning')
    throw warning;
});

let files = 0;
function open(flags, content) {
  const path = tmpdir.resolve(`file${files++}`);
  if (content !== undefined)
    fs.writeFileSync(path, content);
  return fs.promises.open(path, flags);
}

// There and back, through pipeToNative() and spliceTo()
for (const autoClose of [false, true]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const file = await open('w+');
    const { fd } = file;
    const sending = send(client, MiB);
    const { bytesIn } = await server.pipeToNative(file, { direction: 'in', autoClose });
    await sending;
    assert.strictEqual(bytesIn, MiB);
    assert.strictEqual(file.fd, autoClose ? -1 : fd);
    assert.strictEqual(isOpen(fd), !autoClose);
    if (!autoClose) {
      // It is the same open file, so its position has moved.
      assert.strictEqual((await file.read(Buffer.alloc(1), 0, 1)).bytesRead, 0);
      await file.close();
    }
    const source = await fs.promises.open(tmpdir.resolve(`file${files - 1}`));
    const received = receive(client);
    const splice = server.spliceTo({ fd: source, direction: 'out', autoClose }).start();
    const { bytesOut } = await splice.finished;
    assert.strictEqual(bytesOut, MiB);
    (await received).check(MiB);
    assert.strictEqual(source.fd === -1, autoClose);
    await source.close();
  });
}

// Its owner may close it at any time: before the splice starts, while it runs, and at its
// end. That closes it once, and the splice goes on.
for (const autoClose of [false, true]) {
  for (const when of ['before', 'running', 'end']) {
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      const { reader, path, writer } = fifo();
      const file = await fs.promises.open(path, 'w');
      fs.closeSync(writer);
      let closes = 0;
      file.on('close', () => closes++);
      const splice = server.spliceTo({ fd: file, direction: 'in', autoClose });
      if (when === 'before')
        await file.close();
      splice.start();
      client.write('x');
      await settled(() => splice.stats.bytesIn);
      if (when === 'running')
        await file.close();
      const closed = when === 'end' ? once(client, 'finish').then(() => file.close()) : null;
      client.end('y');
      const { reason, bytesIn } = await splice.finished;
      await closed;
      assert.strictEqual(reason, 'end');
      assert.strictEqual(bytesIn, 2);
      assert.strictEqual(file.fd, -1);
      assert.strictEqual(closes, 1);
      const buffer = Buffer.alloc(10);
      assert.strictEqual(fs.readSync(reader, buffer), 2);
      assert.strictEqual(fs.readSync(reader, buffer), 0);
      fs.closeSync(reader);
    });
  }
}

// However it ends; 'close' comes when the FileHandle is closed.
for (const [reason, end] of [
  ['stopped', ({ splice }) => splice.stop()],
  ['aborted', ({ controller }) => controller.abort()],
  ['destroyed', ({ server }) => server.destroy()],
  ['error', ({ client, reader }) => { fs.closeSync(reader); client.write('x'); }],
]) {
  for (const autoClose of [false, true]) {
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      client.on('error', () => {});
      const { reader, path, writer } = fifo();
      const file = await fs.promises.open(path, 'w');
      const { fd } = file;
      fs.closeSync(writer);
      const controller = new AbortController();
      const splice = server.spliceTo({
        fd: file, direction: 'in', autoClose, signal: controller.signal,
      }).start();
      splice.on('error', () => {});
      client.write('x');
      await settled(() => splice.stats.bytesIn);
      const closed = closing(splice);
      end({ splice, controller, server, client, reader });
      assert.strictEqual((await closed).reason, reason);
      assert.strictEqual(file.fd, autoClose ? -1 : fd);
      assert.strictEqual(isOpen(fd), !autoClose);
      await file.close();
      if (reason !== 'error')
        fs.closeSync(reader);
    });
  }
}

// Never started
run(async () => {
  const { server } = await tlsPair();
  const file = await open('w');
  await server.spliceTo({ fd: file, direction: 'in' }).stop();
  assert.notStrictEqual(file.fd, -1);
  await server.spliceTo({ fd: file, direction: 'in', autoClose: true }).stop();
  assert.strictEqual(file.fd, -1);
});

// Somebody else still uses it, who does not let it be closed: no longer than two seconds.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const file = await open('r', Buffer.alloc(MiB));
  const stream = file.createReadStream();
  await once(stream, 'readable');
  client.resume();
  const done = server.pipeToNative(file, { direction: 'out', autoClose: true });
  assert.strictEqual((await done).reason, 'end');
  stream.destroy();
  await file.close();
});

// One that is closed, and one whose mode does not fit. With autoClose, pipeToNative() closes
// it when it fails.
run(async () => {
  const { server } = await tlsPair();
  const file = await open('w');
  const value = { code: 'ERR_INVALID_ARG_VALUE', message: /^The property 'options\.fd' is not open for direction 'out'/ };
  assert.throws(() => server.spliceTo({ fd: file, direction: 'out' }), value);
  await assert.rejects(server.pipeToNative(file, { direction: 'out' }), {
    ...value, message: /^The argument 'target' is not open for direction 'out'/,
  });
  assert.notStrictEqual(file.fd, -1);
  await assert.rejects(server.pipeToNative(file, { direction: 'out', autoClose: true }),
                       { code: 'ERR_INVALID_ARG_VALUE' });
  assert.strictEqual(file.fd, -1);
  const closed = { code: 'EBADF', errno: -EBADF, syscall: 'open' };
  assert.throws(() => server.spliceTo({ fd: file, direction: 'in' }), closed);
  for (const autoClose of [false, true])
    await assert.rejects(server.pipeToNative(file, { direction: 'in', autoClose }), closed);
  assert.strictEqual(server.destroyed, false);
});

// So it is if the socket has no descriptor, either.
run(async () => {
  const sockets = (await socketPair()).map((socket) => Duplex.from({ readable: socket, writable: socket }));
  const { client, server } = tlsOver(...sockets);
  await Promise.all([once(client, 'secure'), once(server, 'secure')]);
  for (const socket of [client, server])
    socket.on('error', () => {});
  const file = await open('w');
  await file.close();
  assert.throws(() => server.spliceTo({ fd: file, direction: 'in' }), { code: 'EBADF' });
});

// While it is being closed it is closed.
run(async () => {
  const { server } = await tlsPair();
  const file = await open('w');
  const closing = file.close();
  assert.throws(() => server.spliceTo({ fd: file, direction: 'in' }), { code: 'EBADF' });
  await closing;
});

// A program that has no FileHandle does not load the module of its class.
run(async () => {
  const program = "require('tls'); console.log(process.moduleLoadList.join())";
  const { stdout } = spawnSync(process.execPath, ['-e', program], { encoding: 'utf8' });
  assert.match(stdout, /NativeModule internal\/tls\/splice,/);
  assert.doesNotMatch(stdout, /NativeModule internal\/fs\/promises/);
});

// One that somebody has given another number
run(async () => {
  const { server } = await tlsPair();
  const file = await open('w');
  for (const value of ['x', 1.5, -2]) {
    Object.defineProperty(file, 'fd', { configurable: true, value });
    const code = typeof value === 'string' ? 'ERR_INVALID_ARG_TYPE' : 'ERR_OUT_OF_RANGE';
    assert.throws(() => server.spliceTo({ fd: file, direction: 'in' }), { code });
  }
  delete file.fd;
  await file.close();
});
