'use strict';

// Regular files and devices that cannot be polled: they are read and written on
// the thread pool, at the position of the file, which goes on from there.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (!common.isLinux)
  common.skip('files are endpoints on Linux only');

const assert = require('assert');
const { spawn, spawnSync } = require('child_process');
const { createHash } = require('crypto');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const tmpdir = require('../common/tmpdir');
const {
  MiB, Receiver, closing, digestOf, isOpen, payload, receive, record, run, send,
  settled, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 8 * MiB + 41;
tmpdir.refresh();
let files = 0;
const newPath = () => tmpdir.resolve(`file${++files}`);
const positionOf = (fd) =>
  Number(/pos:\s+(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`))[1]);

function makeFile(size, seed) {
  const path = newPath();
  fs.writeFileSync(path, '');
  for (const chunk of payload(size, seed))
    fs.appendFileSync(path, chunk);
  return path;
}

function checkFile(path, size, seed) {
  const content = fs.readFileSync(path);
  assert.strictEqual(content.length, size);
  assert.strictEqual(createHash('sha256').update(content).digest('hex'), digestOf(size, seed));
}

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  // A download
  run(async () => {
    for (const size of [0, 1, 16384, kSize]) {
      const { client, server } = await tlsPair({ maxVersion: version, minVersion: version });
      const path = newPath();
      const fd = fs.openSync(path, 'w');
      client.resume();
      const done = server.pipeToNative(fd, { direction: 'in' });
      await send(client, size);
      const stats = await done;
      checkFile(path, size);
      assert.strictEqual(stats.bytesIn, size);
      assert.strictEqual(stats.bytesOut, 0);
      assert.strictEqual(stats.reason, 'end');
      assert.strictEqual(stats.closeNotify, true);
      assert.strictEqual(positionOf(fd), size);
      fs.closeSync(fd);
      fs.unlinkSync(path);
    }
  });

  // An upload
  run(async () => {
    for (const size of [0, 1, 16384, kSize]) {
      const { client, server } = await tlsPair({ maxVersion: version, minVersion: version });
      const path = makeFile(size);
      const fd = fs.openSync(path, 'r');
      const received = receive(client);
      const stats = await server.pipeToNative(fd, { direction: 'out' });
      (await received).check(size);
      assert.strictEqual(stats.bytesIn, 0);
      assert.strictEqual(stats.bytesOut, size);
      assert.strictEqual(stats.reason, 'end');
      assert.strictEqual(positionOf(fd), size);
      fs.closeSync(fd);
      fs.unlinkSync(path);
    }
  });
}

// Both at once, each with a file of its own
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const source = fs.openSync(makeFile(kSize, 2), 'r');
  const path = newPath();
  const sink = fs.openSync(path, 'w');
  const done = Promise.all([
    server.pipeToNative(source, { direction: 'out', autoClose: true }),
    server.pipeToNative(sink, { direction: 'in', autoClose: true }),
  ]);
  const received = receive(client);
  await send(client, kSize, { seed: 1 });
  (await received).check(kSize, 2);
  await done;
  checkFile(path, kSize, 1);
  assert(!isOpen(source));
  assert(!isOpen(sink));
});

// From where the owner has read to, on to where it is stopped, and so on
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const fd = fs.openSync(makeFile(kSize), 'r');
  const received = receive(client);
  let position = 0;
  let cycles = 0;
  const buffer = Buffer.alloc(1000);
  for (let n; (n = fs.readSync(fd, buffer)) > 0; cycles++) {
    server.write(Buffer.from(buffer.subarray(0, n)));
    position += n;
    const splice = server.spliceTo({ fd, direction: 'out', end: false, highWaterMark: 50000 });
    splice.start();
    await turns(cycles % 20);
    const { bytesOut } = await splice.stop();
    position += bytesOut;
    assert.strictEqual(positionOf(fd), position);
  }
  server.end();
  (await received).check(kSize);
  assert(cycles > 3);
  fs.closeSync(fd);
});

// The peer does not read: no more is read than may be held.
run(async () => {
  const size = 32 * MiB;
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  client.pause();
  const fd = fs.openSync(makeFile(size), 'r');
  const splice = server.spliceTo({ fd, direction: 'out' }).start();
  await settled(() => splice.stats.bytesOut);
  assert(positionOf(fd) < size);
  const stopped = splice.stop();
  const received = receive(client);
  const { bytesOut, peakBufferedOut } = await stopped;
  assert(peakBufferedOut <= 262144);
  assert.strictEqual(positionOf(fd), bytesOut);
  server.pipeToNative(fd, { direction: 'out', autoClose: true });
  (await received).check(size);
});

// JS writes before, in between and after. What the splice has not written when
// it is stopped comes to JS.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const path = newPath();
  const fd = fs.openSync(path, 'w');
  const sending = send(client, kSize);
  let fromJS = 0;
  server.on('data', (chunk) => {
    fs.writeSync(fd, chunk);
    fromJS += chunk.length;
  });
  let spliced = 0;
  for (let i = 0; !server.readableEnded; i++) {
    const splice = server.spliceTo({ fd, direction: 'in', highWaterMark: 50000 }).start();
    await turns(i % 20);
    spliced += (await splice.stop()).bytesIn;
    assert.strictEqual(positionOf(fd), spliced + fromJS);
    await turns(i % 3);
  }
  await sending;
  checkFile(path, kSize);
  assert.strictEqual(spliced + fromJS, kSize);
  fs.closeSync(fd);
});

// O_APPEND: wherever the position is, and whoever else appends
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const path = newPath();
  fs.writeFileSync(path, 'old ');
  const fd = fs.openSync(path, 'a+');
  const splice = server.spliceTo({ fd, direction: 'in' }).start();
  client.write('spliced ');
  while (splice.stats.bytesIn < 8)
    await turns(1);
  fs.appendFileSync(path, 'appended ');
  client.end('spliced');
  await splice.finished;
  assert.strictEqual(fs.readFileSync(path, 'latin1'), 'old spliced appended spliced');
  fs.closeSync(fd);
});

// The position is shared with another process, as between the commands of a
// shell script whose output is a file.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const path = newPath();
  const fd = fs.openSync(path, 'w');
  const echo = (text) => {
    const { status } = spawnSync('printf', [text], { stdio: ['ignore', fd, 'inherit'] });
    assert.strictEqual(status, 0);
  };
  echo('one ');
  const splice = server.spliceTo({ fd, direction: 'in' }).start();
  client.write('two ');
  while (splice.stats.bytesIn < 4)
    await turns(1);
  echo('three ');
  client.end('four ');
  await splice.finished;
  echo('five');
  assert.strictEqual(fs.readFileSync(path, 'latin1'), 'one two three four five');
  fs.closeSync(fd);
});

// The owner closes it, and uses the number for another file.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const path = newPath();
  const stranger = newPath();
  const fd = fs.openSync(path, 'w');
  const splice = server.spliceTo({ fd, direction: 'in' }).start();
  client.write('one ');
  while (splice.stats.bytesIn < 4)
    await turns(1);
  fs.closeSync(fd);
  const again = fs.openSync(stranger, 'w');
  assert.strictEqual(again, fd);
  client.end('two');
  await splice.finished;
  assert.strictEqual(fs.readFileSync(path, 'latin1'), 'one two');
  assert.strictEqual(fs.readFileSync(stranger, 'latin1'), '');
  fs.closeSync(again);
});

// With no thread free the loop turns, nothing moves, and stop() and destroy()
// need not wait for one.
run(async () => {
  const directions = ['in', 'out', 'in', 'out'];
  // Connecting takes a thread, too.
  const connected = [];
  for (let i = 0; i < directions.length; i++)
    connected.push(await tlsPair({ allowHalfOpen: true }));
  const blockers = [];
  const names = [];
  for (let i = 0; i < Number(process.env.UV_THREADPOOL_SIZE ?? 4); i++) {
    const path = newPath();
    assert.strictEqual(spawnSync('mkfifo', [path]).status, 0);
    names.push(path);
    // Until somebody opens the other end
    blockers.push(fs.promises.open(path, 'w'));
  }
  const source = fs.openSync(makeFile(kSize), 'r');
  const path = newPath();
  const sink = fs.openSync(path, 'w');
  const pairs = directions.map((direction, i) => {
    const { client, server } = connected[i];
    const splice = server.spliceTo({ fd: direction === 'in' ? sink : source, direction });
    splice.start();
    client.on('error', () => {});
    client.end('not for the file');
    return { client, server, splice };
  });
  await settled(() => pairs.reduce((sum, { server }) => sum + server.bytesRead, 0));
  for (const { splice: { stats } } of pairs) {
    assert.strictEqual(stats.bytesIn, 0);
    assert.strictEqual(stats.bytesOut, 0);
    assert.strictEqual(stats.reason, null);
  }
  const { 0: stopIn, 1: stopOut, 2: destroyIn, 3: destroyOut } = pairs;
  const stopped = Promise.all([stopIn.splice.stop(), stopOut.splice.stop()]);
  destroyIn.server.destroy();
  destroyOut.server.destroy();
  for (const { bytesIn, bytesOut, reason } of await stopped) {
    assert.strictEqual(bytesIn, 0);
    assert.strictEqual(bytesOut, 0);
    assert.strictEqual(reason, 'stopped');
  }
  assert.strictEqual((await destroyIn.splice.finished).reason, 'destroyed');
  assert.strictEqual((await destroyOut.splice.finished).reason, 'destroyed');
  assert.strictEqual((await stopIn.server.setEncoding('latin1').toArray()).join(''),
                     'not for the file');
  assert.strictEqual(positionOf(source), 0);
  assert.strictEqual(fs.readFileSync(path).length, 0);

  const readers = names.map((name) =>
    fs.openSync(name, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK));
  for (const handle of await Promise.all(blockers))
    await handle.close();
  for (const fd of [...readers, source, sink])
    fs.closeSync(fd);
});

// A device that is full: an error, and what it did not take comes to JS.
run(async () => {
  for (const pipeToNative of [false, true]) {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    client.on('error', () => {});
    const fd = fs.openSync('/dev/full', 'w');
    const expected = { code: 'ENOSPC', syscall: 'write' };
    if (pipeToNative) {
      client.write('x');
      await assert.rejects(server.pipeToNative(fd, { direction: 'in' }), expected);
      assert.strictEqual(server.destroyed, true);
    } else {
      const splice = server.spliceTo({ fd, direction: 'in' });
      const events = record(splice, ['error', 'close']);
      const closed = closing(splice);
      const failed = new Promise((resolve) => splice.on('error', resolve));
      const sending = send(client, kSize);
      splice.start();
      const error = await failed;
      assert.throws(() => { throw error; }, expected);
      const stats = await closed;
      assert.deepStrictEqual(events, ['error', 'close']);
      assert.strictEqual(stats.reason, 'error');
      assert.strictEqual(stats.bytesIn, 0);
      (await receive(server)).check(kSize);
      await sending;
      assert.strictEqual(server.bytesRead, kSize);
    }
    assert(isOpen(fd));
    fs.closeSync(fd);
  }
});

// A file system that becomes full in the middle
run(async () => {
  const directory = newPath();
  fs.mkdirSync(directory);
  const mount = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', directory]);
  // It takes the right to.
  if (mount.error || mount.status !== 0)
    return;
  try {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const fd = fs.openSync(`${directory}/file`, 'w+');
    const sending = send(client, kSize);
    const splice = server.spliceTo({ fd, direction: 'in' });
    const closed = closing(splice);
    const failed = once(splice.start(), 'error');
    const { 0: error } = await failed;
    assert.strictEqual(error.code, 'ENOSPC');
    assert.strictEqual(error.syscall, 'write');
    const { bytesIn } = await closed;
    const receiver = new Receiver();
    receiver.update(fs.readFileSync(`${directory}/file`));
    assert.strictEqual(receiver.bytes, 1 * MiB);
    assert.strictEqual(bytesIn, 1 * MiB);
    await receive(server, receiver);
    await sending;
    receiver.check(kSize);
    fs.closeSync(fd);
  } finally {
    assert.strictEqual(spawnSync('umount', [directory]).status, 0);
  }
});

// Devices without an end, or nothing but an end
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const fd = fs.openSync('/dev/null', 'r+');
  const received = receive(client);
  const done = server.pipeToNative(fd);
  await send(client, kSize);
  assert.strictEqual((await received).bytes, 0);
  const stats = await done;
  assert.strictEqual(stats.bytesIn, kSize);
  assert.strictEqual(stats.bytesOut, 0);
  fs.closeSync(fd);
});

run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const fd = fs.openSync('/dev/zero', 'r');
  const received = receive(client);
  const splice = server.spliceTo({ fd, direction: 'out' }).start();
  await received.receiver.reached(kSize);
  const { bytesOut } = await splice.stop();
  server.end();
  assert.strictEqual((await received).bytes, bytesOut);
  fs.closeSync(fd);
});

// A file of the kernel's that can be polled, too
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const fd = fs.openSync('/proc/self/mounts', 'r');
  const done = server.pipeToNative(fd, { direction: 'out' });
  assert.strictEqual((await client.setEncoding('latin1').toArray()).join(''),
                     fs.readFileSync('/proc/self/mounts', 'latin1'));
  assert.strictEqual((await done).reason, 'end');
  fs.closeSync(fd);
});

// One that takes nothing, and has no error for that: the memory of a process that
// is gone. To try it again, and again, would keep the CPU busy.
for (const direction of ['in', 'duplex']) {
  for (const pipe of [false, true]) {
    run(async () => {
      const { client, server } = await tlsPair({ allowHalfOpen: true });
      const child = spawn(process.execPath, ['-e', 'process.stdin.resume()']);
      await once(child, 'spawn');
      const fd = fs.openSync(`/proc/${child.pid}/mem`, 'r+');
      child.kill();
      await once(child, 'exit');
      const error = { code: 'ENOSPC', syscall: 'write' };
      if (pipe) {
        const done = server.pipeToNative(fd, { direction, end: false });
        send(client, 100_000).catch(() => {});
        client.on('error', () => {});
        await assert.rejects(done, error);
        assert.strictEqual(server.destroyed, true);
      } else {
        const splice = server.spliceTo({ fd, direction, end: false });
        const events = record(splice, ['error', 'close']);
        const closed = closing(splice);
        splice.on('error', common.mustCall((err) => {
          assert.strictEqual(err.code, error.code);
          assert.strictEqual(err.syscall, error.syscall);
        }));
        splice.start();
        await send(client, 100_000, { end: true });
        const { bytesIn, reason } = await closed;
        assert.strictEqual(bytesIn, 0);
        assert.strictEqual(reason, 'error');
        assert.deepStrictEqual(events, ['error', 'close']);
        // Every byte is JS's.
        (await receive(server)).check(100_000);
        server.end();
        client.resume();
      }
      assert(isOpen(fd));
      fs.closeSync(fd);
    });
  }
}

// What is no endpoint
run(async () => {
  const { server } = await tlsPair();
  const directory = fs.openSync(tmpdir.path, 'r');
  for (const direction of ['in', 'out', 'duplex']) {
    assert.throws(() => server.spliceTo({ fd: directory, direction }),
                  direction === 'out' ? { code: 'EISDIR' } : { code: 'ERR_INVALID_ARG_VALUE' });
  }
  const path = newPath();
  const writer = fs.openSync(path, 'w');
  assert.throws(() => server.spliceTo({ fd: writer }), { code: 'ERR_INVALID_ARG_VALUE' });
  const reader = fs.openSync(path, 'r');
  assert.throws(() => server.spliceTo({ fd: reader, direction: 'in' }),
                { code: 'ERR_INVALID_ARG_VALUE' });
  // Only its name is open.
  const name = fs.openSync(path, 0o10000000);  // O_PATH
  assert.throws(() => server.spliceTo({ fd: name, direction: 'out' }), { code: 'EBADF' });
  for (const fd of [directory, writer, reader, name])
    fs.closeSync(fd);
  assert.strictEqual(server.destroyed, false);
});
