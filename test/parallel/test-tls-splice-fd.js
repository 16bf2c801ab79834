'use strict';

// Endpoints that are file descriptors: FIFOs, pipes of a child process, the
// socket of somebody else. The file descriptor stays its owner's.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { spawn } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const tmpdir = require('../common/tmpdir');
const {
  MiB, fifo, isOpen, pipeSocket, receive, run, send, socketPair, tlsPair,
} = require('../common/tls-splice');

const kSize = 2 * MiB + 11;
const kPath = 0o10000000;  // O_PATH of Linux

// In, to a FIFO
run(async () => {
  const { client, server } = await tlsPair();
  const { reader, writer } = fifo();
  const received = receive(pipeSocket(reader));
  const done = server.pipeToNative(writer, { direction: 'in' });
  // The splice has its own.
  fs.closeSync(writer);
  client.resume();
  await send(client, kSize);
  const stats = await done;
  assert.strictEqual(stats.bytesIn, kSize);
  assert.strictEqual(stats.bytesOut, 0);
  assert.strictEqual(stats.reason, 'end');
  // The last writer is gone, so the reader sees the end.
  (await received).check(kSize);
});

// Out, from a FIFO
run(async () => {
  const { client, server } = await tlsPair();
  const { reader, writer } = fifo();
  const received = receive(client);
  const done = server.pipeToNative(reader, { direction: 'out' });
  const writing = pipeSocket(writer, { readable: false });
  await send(writing, kSize);
  (await received).check(kSize);
  const stats = await done;
  assert.strictEqual(stats.bytesIn, 0);
  assert.strictEqual(stats.bytesOut, kSize);
  assert.strictEqual(stats.reason, 'end');
  assert(isOpen(reader));
  fs.closeSync(reader);
  client.end();
});

// Both, with one FIFO for each direction
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const there = fifo();
  const back = fifo();
  const inward = receive(pipeSocket(there.reader));
  const outward = receive(client);
  const spliceIn = server.spliceTo({ fd: there.writer, direction: 'in' }).start();
  const spliceOut = server.spliceTo({ fd: back.reader, direction: 'out' }).start();
  fs.closeSync(there.writer);
  fs.closeSync(back.reader);
  await Promise.all([
    send(client, kSize, { seed: 1 }),
    send(pipeSocket(back.writer, { readable: false }), kSize, { seed: 2 }),
  ]);
  assert.strictEqual((await spliceIn.finished).bytesIn, kSize);
  assert.strictEqual((await spliceOut.finished).bytesOut, kSize);
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
});

// The stdio of a child process
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const child = spawn(process.execPath, ['-e', 'process.stdin.pipe(process.stdout)'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit');
  const received = receive(client);
  const { stdin, stdout } = child;
  const spliceIn = server.spliceTo({ stream: stdin, direction: 'in' }).start();
  const spliceOut = server.spliceTo({ stream: stdout, direction: 'out' }).start();
  await send(client, kSize);
  (await received).check(kSize);
  assert.strictEqual((await spliceIn.finished).bytesIn, kSize);
  assert.strictEqual((await spliceOut.finished).bytesOut, kSize);
  assert.deepStrictEqual(await exited, [0, null]);
});

// The socket of a net.Socket that is paused
for (const kind of ['tcp', 'unix']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: other, 1: socket } =
      await socketPair(kind, { pauseOnConnect: true });
    const { fd } = socket._handle;
    const splice = server.spliceTo({ fd }).start();
    const inward = receive(other);
    const outward = receive(client);
    await Promise.all([
      send(client, kSize, { seed: 1 }), send(other, kSize, { seed: 2 }),
    ]);
    const stats = await splice.finished;
    (await inward).check(kSize, 1);
    (await outward).check(kSize, 2);
    assert.strictEqual(stats.bytesIn, kSize);
    assert.strictEqual(stats.bytesOut, kSize);
    assert(isOpen(fd));
    socket.destroy();
  });
}

// A descriptor that only names a file (O_PATH) cannot be read or written, and so
// does not become one that can, as a FIFO or a terminal would that is reopened.
if (common.isLinux) {
  run(async () => {
    const { server } = await tlsPair();
    const { reader, writer } = fifo();
    const path = common.PIPE;
    const listener = net.createServer().listen(path);
    await once(listener, 'listening');
    const file = tmpdir.resolve('named');
    fs.writeFileSync(file, 'content');
    const link = tmpdir.resolve('link');
    fs.symlinkSync(file, link);
    const kNoFollow = fs.constants.O_NOFOLLOW;
    for (const { 0: name, 1: flags } of [
      [`/proc/self/fd/${reader}`], [`/proc/self/fd/${writer}`], [path], [file],
      [tmpdir.path], [link, kNoFollow], ['/dev/null'], ['/dev/ptmx'],
    ]) {
      const fd = fs.openSync(name, kPath | flags);
      for (const direction of ['in', 'out', 'duplex']) {
        for (const autoClose of [false, true]) {
          const error = { code: 'EBADF', syscall: 'open' };
          assert.throws(() => server.spliceTo({ fd, direction, autoClose }), error);
          assert(isOpen(fd));
        }
      }
      fs.closeSync(fd);
    }
    for (const fd of [reader, writer])
      fs.closeSync(fd);
    listener.close();
    assert.strictEqual(server.destroyed, false);
  });
}
