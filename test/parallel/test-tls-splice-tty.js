'use strict';

// A terminal: bytes both ways, its blocking mode as before, and EIO when it is
// hung up. A child process holds the other side of it.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (!common.isLinux)
  common.skip('looks at /proc');

const assert = require('assert');
const { spawn, spawnSync } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
const { ReadStream } = require('tty');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');
if (spawnSync('python3', ['-c', 'import fcntl, pty, tty']).status !== 0)
  common.skip('missing python3');

const {
  MiB, closing, isOpen, receive, record, run, send, settled, tlsPair,
} = require('../common/tls-splice');

const kSize = 256 * 1024 + 3;

// Passes on what comes from the other side of the terminal, and from its
// standard input, until that ends. Then the terminal is hung up.
//
// With 'slave' or 'cooked' in front it opens one and says its name, otherwise the master is
// its file descriptor 3. A 'cooked' one keeps its line discipline, in which ^D is an end.
const holder = `
import fcntl, os, pty, select, struct, sys, tty
if sys.argv[1] != 'master':
    mine, other = pty.openpty()
    if sys.argv[1] == 'slave':
        tty.setraw(other)
    os.write(2, os.ttyname(other).encode() + b'\\n')
    os.read(0, 1)
    os.close(other)
else:
    # TIOCSPTLCK and TIOCGPTN, for which Python has no names
    fcntl.ioctl(3, 0x40045431, struct.pack('i', 0))
    number = struct.unpack('i', fcntl.ioctl(3, 0x80045430, struct.pack('i', 0)))[0]
    mine = os.open('/dev/pts/%d' % number, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(mine)
    os.close(3)
    os.write(2, b'ready\\n')
poll = select.poll()
poll.register(0, select.POLLIN)
poll.register(mine, select.POLLIN)
while True:
    for fd, _ in poll.poll():
        try:
            data = os.read(fd, 4096)
        except OSError:  # EIO: nobody has the slave open.
            sys.exit(0)
        if not data:
            sys.exit(0)
        to = mine if fd == 0 else 1
        while data:
            data = data[os.write(to, data):]
`;

async function terminal(side) {
  const { O_NOCTTY, O_RDWR } = fs.constants;
  const master = side === 'master' ? fs.openSync('/dev/ptmx', O_RDWR | O_NOCTTY) : 'ignore';
  const child = spawn('python3', ['-c', holder, side], {
    stdio: ['pipe', 'pipe', 'pipe', master],
  });
  const answer = `${(await once(child.stderr, 'data'))[0]}`;
  child.stderr.pipe(process.stderr);
  if (side === 'master')
    return { child, fd: master };
  const fd = fs.openSync(answer.trim(), O_RDWR | O_NOCTTY);
  // It is open here, so it can be closed there.
  child.stdin.write('x');
  return { child, fd };
}

const flagsOf = (fd) => /flags:\s+(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`))[1];

// Both ways, and twice
for (const side of ['slave', 'master']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { child, fd } = await terminal(side);
    const flags = flagsOf(fd);
    assert.strictEqual(Number.parseInt(flags, 8) & fs.constants.O_NONBLOCK, 0);
    for (const seed of [1, 3]) {
      const inward = receive(child.stdout);
      const outward = receive(client);
      const splice = server.spliceTo({ fd }).start();
      await Promise.all([
        send(client, kSize, { seed, end: false }),
        send(child.stdin, kSize, { seed: seed + 1, end: false }),
        inward.receiver.reached(kSize),
        outward.receiver.reached(kSize),
      ]);
      inward.receiver.check(kSize, seed);
      outward.receiver.check(kSize, seed + 1);
      // The master cannot be opened again.
      if (side === 'slave')
        assert.strictEqual(flagsOf(fd), flags);
      const stats = await splice.stop();
      assert.strictEqual(stats.bytesIn, kSize);
      assert.strictEqual(stats.bytesOut, kSize);
      assert.strictEqual(flagsOf(fd), flags);
      child.stdout.removeAllListeners('data');
      client.removeAllListeners('data');
    }
    fs.closeSync(fd);
    child.stdin.end();
    await once(child, 'exit');
  });
}

// It is hung up. The socket lives on.
const endings = {
  // What is written is an error, or is kept. What is read is an error; or nothing,
  // with the slave, once the kernel is through with the hang-up.
  slave: { in: 'write', out: 'read' },
  master: { out: 'read', duplex: 'read' },
};

for (const { 0: side, 1: directions } of Object.entries(endings)) {
  for (const { 0: direction, 1: syscall } of Object.entries(directions)) {
    for (const autoClose of [false, true]) {
      run(async () => {
        const { client, server } = await tlsPair({ allowHalfOpen: true });
        const { child, fd } = await terminal(side);
        const flags = flagsOf(fd);
        const splice = server.spliceTo({ fd, direction, autoClose, end: false });
        const events = record(splice, ['error', 'close']);
        const closed = closing(splice);
        let error;
        splice.on('error', (err) => { error = err; });
        splice.start();
        if (direction !== 'out') {
          client.write('before');
          assert.strictEqual(`${(await once(child.stdout, 'data'))[0]}`, 'before');
        }
        if (direction !== 'in') {
          child.stdin.write('before');
          assert.strictEqual(`${(await once(client, 'data'))[0]}`, 'before');
        }
        child.stdin.end();
        await once(child, 'exit');
        if (direction === 'in')
          client.write('after ');
        const stats = await closed;
        if (side === 'slave' && direction === 'out' && stats.reason === 'end') {
          assert.deepStrictEqual(events, ['close']);
        } else {
          assert.deepStrictEqual(events, ['error', 'close']);
          assert.strictEqual(error.code, 'EIO');
          assert.strictEqual(error.syscall, syscall);
          assert.strictEqual(stats.reason, 'error');
        }
        assert.strictEqual(stats.bytesIn, direction === 'out' ? 0 : 6);
        assert.strictEqual(stats.bytesOut, direction === 'in' ? 0 : 6);
        assert.strictEqual(isOpen(fd), !autoClose);
        if (!autoClose) {
          assert.strictEqual(flagsOf(fd), flags);
          fs.closeSync(fd);
        }

        // What the terminal did not take, and what comes now
        client.end('end');
        assert.strictEqual((await server.setEncoding('latin1').toArray()).join(''),
                           direction === 'in' ? 'after end' : 'end');
        server.end('!');
        assert.strictEqual(`${(await once(client, 'data'))[0]}`, '!');
      });
    }
  }
}

// A terminal has an end that is followed by more. If a splice has read the end, JavaScript
// sees it, too, and does not wait for the next one, whether it reads the terminal or not.
for (const isReading of [true, false]) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { child, fd } = await terminal('cooked');
    const stream = new ReadStream(fd);
    const ended = once(stream, 'end');
    if (isReading)
      stream.on('data', common.mustNotCall());
    const received = receive(client);
    const splice = server.spliceTo({ stream, direction: 'out' }).start();
    child.stdin.write('line\n\x04');
    assert.strictEqual((await splice.finished).bytesOut, 5);
    assert.strictEqual((await received).bytes, 5);
    await ended;
    stream.destroy();
    child.stdin.end();
    await once(child, 'exit');
  });
}

// A terminal that is full, and what is behind it
const kMore = 1 * MiB + 3;
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { child, fd } = await terminal('slave');
  child.stdout.pause();
  const splice = server.spliceTo({ fd, direction: 'in' }).start();
  const sending = send(client, kMore);
  await settled(() => splice.stats.bytesIn);
  assert(splice.stats.bytesIn < kMore);
  const received = receive(child.stdout);
  assert.strictEqual((await splice.finished).bytesIn, kMore);
  await sending;
  await received.receiver.reached(kMore);
  received.receiver.check(kMore);
  fs.closeSync(fd);
  child.stdin.end();
  await once(child, 'exit');
});
